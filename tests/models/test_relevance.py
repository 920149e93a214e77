"""Relevance propagation against a float64 reference that walks the layers by hand, and what it must keep and refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snn_repro.data.augment.rpg import check_relevance, relevance
from snn_repro.data.batches import make_generator
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.models.blocks import SpikingNetwork
from snn_repro.neurons import build_neuron

T, B, K, SHAPE = 4, 3, 5, (2, 8, 8)


def network(name="small", neuron="lif", **options):
    torch.manual_seed(0)
    model = build_model(name, num_classes=K, input_shape=SHAPE, timesteps=T, neuron={"name": neuron}, **options)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 1, 2)
        nn.init.uniform_(norm.bias, 0.2, 0.8)
        norm.momentum = 1.0  # the running statistics are those of the frames, so that all layers fire
    with torch.no_grad():
        model(counts())
    for norm in norms:
        norm.momentum = 0.1
    return model


def counts():
    return torch.randint(0, 4, (T, B, *SHAPE), generator=make_generator(1)).float()


def predicted(model, frames):
    return model.eval()(frames).mean(0).argmax(1)


def divided(a, b):
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


def through(R, x, weight, apply, back):
    """Alpha 1, beta 0, inputs that are not negative."""
    w = weight.clamp(min=0)
    return x * back(divided(R, apply(x, w)), w)


def reference(model, frames, labels, rule):
    """The small network, layer by layer: convolutions (stride from the layer), LIF, pool, SEW block, linear."""
    model = model.double().eval()
    x = frames.double()
    tau = model.sn1.tau

    def conv(layer, norm, x):
        y = F.conv2d(x.flatten(0, 1), layer.weight, None, layer.stride, layer.padding).unflatten(0, (T, B))
        return norm(y)

    def fire(h_in):
        v, spikes, kept = torch.zeros_like(h_in[0]), [], []
        for x_t in h_in:
            h = v + (x_t - v) / tau
            s = (h >= 1).double()
            v = h - s
            spikes.append(s)
            kept.append(v)
        return torch.stack(spikes), torch.stack(kept)

    with torch.no_grad():
        x1 = conv(model.conv1, model.bn1, x)
        s1, v1 = fire(x1)
        x2 = conv(model.conv2, model.bn2, s1)
        s2, v2 = fire(x2)
        p2 = F.avg_pool2d(s2.flatten(0, 1), 2).unflatten(0, (T, B))
        x3 = conv(model.conv3, model.bn3, p2)
        s3, v3 = fire(x3)
        f = p2 + s3
        logits = F.linear(f.flatten(2), model.fc.weight, model.fc.bias)
        R = torch.full_like(logits, -1 / K)
        for b, k in enumerate(labels.tolist()):
            R[:, b, k] += 1
        mean = rule == "slrp"
        values = [x, s1, s2, p2, s3, f]
        if mean:
            R, values = R.mean(0, keepdim=True), [v.mean(0, keepdim=True) for v in values]
        x, s1, s2, p2, s3, f = values

        def neuron(R, x, v):
            if mean:
                return R
            R, found = R.clone(), torch.zeros_like(R)
            for t in reversed(range(T)):
                found[t] = R[t]
                if t:
                    from_v, from_x = (v[t - 1] * (1 - 1 / tau)).clamp(min=0), (x[t] / tau).clamp(min=0)
                    part = divided(from_v, from_v + from_x)
                    R[t - 1] += R[t] * part
                    found[t] = R[t] * (1 - part)
            return found

        def convolution(R, x, layer):
            steps = R.shape[:2]
            size = x.shape[-2:]

            def apply(v, w):
                return F.conv2d(v, w, None, layer.stride, layer.padding)

            def back(S, w):
                return torch.nn.grad.conv2d_input((len(S), *x.shape[2:3], *size), w, S, layer.stride, layer.padding)

            return through(R.flatten(0, 1), x.flatten(0, 1), layer.weight, apply, back).unflatten(0, steps)

        R = through(R, f.flatten(2), model.fc.weight, F.linear, lambda S, w: S @ w).unflatten(2, f.shape[2:])
        of_features = R
        of_s3, of_p2 = divided(R * s3, f), divided(R * p2, f)
        R = of_p2 + convolution(neuron(of_s3, x3, v3), p2, model.conv3)
        unit = divided(R, p2).flatten(0, 1)
        R = s2 * F.interpolate(unit, scale_factor=2, mode="nearest").unflatten(0, R.shape[:2]) / 4
        R = convolution(neuron(R, x2, v2), s1, model.conv2)
        R = convolution(neuron(R, x1, v1), x, model.conv1)
    return R.expand(T, *R.shape[1:]), of_features.expand(T, *of_features.shape[1:])


@pytest.mark.parametrize("rule", ["sltrp", "slrp"])
def test_the_small_network_is_the_reference(rule):
    model, frames = network().double(), counts().double()
    found = relevance(model, frames, rule)
    expected = reference(model, frames, predicted(model, frames), rule)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name, neuron, options, rule", [
    ("small", "leaky", {}, "sltrp"), ("vgg128", "if", {"norm": "tebn"}, "slrp"),
    ("sew_resnet18_cifar", "if", {"checkpointing": "blocks"}, "slrp"),
])  # fmt: skip
def test_it_leaves_the_network_as_it_was(name, neuron, options, rule):
    model, frames = network(name, neuron, **options), counts()
    before, state = model(frames), {k: v.clone() for k, v in model.state_dict().items()}

    def settings():
        keys = "forward", "backend", "checkpointing", "training"
        return {k: {n: v for n, v in vars(m).items() if n in keys} for k, m in model.named_modules()}

    kept, random = settings(), torch.get_rng_state()
    of_input, of_features = relevance(model, frames, rule)
    for a, b in zip(relevance(model, frames, rule, parts=2), (of_input, of_features), strict=True):
        torch.testing.assert_close(a, b)  # parts of a batch are the whole
    assert of_input.shape == frames.shape and of_features.shape[:2] == frames.shape[:2] and of_features.dim() == 5
    assert of_input.isfinite().all() and of_input.abs().sum() > 0
    places = frames if rule == "sltrp" else frames.sum(0).expand_as(frames)
    assert (of_input[places == 0] == 0).all()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items()) and model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert settings() == kept
    assert not any(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(model(frames), before)


class Residual(SpikingNetwork):
    """A sum of values of both signs before the neuron, as in ResNet-19."""

    def __init__(self):
        super().__init__(SHAPE, T)
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
        self.sn, self.fc = build_neuron("if"), nn.Linear(4, K)

    def forward(self, x, last_step=False):
        a, b = (conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for conv in (self.one, self.two))
        return self.fc(self.sn(a + b).mean((-2, -1)))


def test_sums_of_both_signs_go_by_their_positive_parts():
    torch.manual_seed(1)
    model, x = Residual().double(), counts().double()
    found, labels = relevance(model, x, "slrp")[0], predicted(model, x)
    with torch.no_grad():
        a, b = (conv(x.flatten(0, 1)).unflatten(0, (T, B)) for conv in (model.one, model.two))
        s = model.sn(a + b)
        f = s.mean((0, -2, -1))
        R = torch.full((B, K), -1 / K, dtype=torch.double)
        R[torch.arange(B), labels] += 1
        w = model.fc.weight.clamp(min=0)
        unit = divided(R, f @ w.T) @ w  # what a class counts for, per unit of a channel's mean
        R = s.mean(0) * unit[..., None, None] / 64
        expected = 0
        both = sum(v.clamp(min=0).mean(0) for v in (a, b))
        for v, layer in ((a, model.one), (b, model.two)):
            part = R * divided(v.clamp(min=0).mean(0), both)
            w = layer.weight.clamp(min=0)
            S = divided(part, F.conv2d(x.mean(0), w, None, 1, layer.padding))
            expected += x.mean(0) * torch.nn.grad.conv2d_input(x.shape[1:], w, S, 1, layer.padding)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found[0], expected, rtol=1e-7, atol=1e-12)
    assert relevance(model, x, "sltrp")[0].isfinite().all()


class Gated(SpikingNetwork):
    def __init__(self):
        super().__init__(SHAPE, T)
        self.conv, self.sn = nn.Conv2d(2, 4, 3, padding=1), build_neuron("if")
        self.fc = nn.Linear(4, K)

    def forward(self, x, last_step=False):
        x = self.sn(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return self.fc((x * x.mean((-2, -1), keepdim=True).sigmoid()).mean((-2, -1)))


def test_a_network_without_a_rule_is_one_sentence():
    with pytest.raises(
        UserError, match=r"augment.rpg_mix needs relevance .*: the network computes 'sigmoid' between its"
    ):
        check_relevance(Gated(), (T, B, *SHAPE), "slrp", "rpg_mix")
    model = network()
    model.sn2.charge = lambda v, x: (v + x).relu()
    said = r"the neuron 'lif' \(sn2\) is not additive in its potential and its input; choose another network"
    with pytest.raises(UserError, match=said):
        check_relevance(model, (T, B, *SHAPE), "sltrp", "rpg_drop")
    check_relevance(network(), (T, B, *SHAPE), "sltrp", "rpg_drop")
