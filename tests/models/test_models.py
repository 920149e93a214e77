"""Models: reference networks and counts, both kinds of input, IMP in the optimiser, saving and loading, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from spikingjelly.activation_based.neuron import BaseNode
from test_networks import frames, small
from torch import nn

from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.models import build_model, count_parameters
from snn_repro.models.blocks import AvgPool2d
from snn_repro.models.norms import NORMS
from snn_repro.neurons import firing_rates

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
ARCHITECTURES = json.loads((GOLDEN_DIR / "architectures.json").read_text())["architectures"]
NETWORKS = json.loads((GOLDEN_DIR / "networks.json").read_text())["networks"]
IF_IMP = {"name": "if", "imp": True}


def neurons(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, BaseNode)}


# reference values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_golden_architecture(name):
    a = ARCHITECTURES[name]
    with torch.device("meta"):  # shapes and counts need no memory
        given = {key: a[key] for key in ("num_classes", "input_shape", "timesteps")}
        model = build_model(a["model"], neuron=IF_IMP, **given, **a["options"])
    assert count_parameters(model) == (a["weights"], a["imp"])
    shapes = {name: list(node.imp.shape) for name, node in neurons(model).items()}
    if a["names"]:
        assert shapes == dict(zip(a["names"], a["shapes"], strict=True))
    else:
        assert list(shapes.values()) == a["shapes"]


def sine(tensor, a, c, s):
    i = torch.arange(tensor.numel(), dtype=torch.float64)
    return (a * torch.sin(c * i + s)).view_as(tensor)


@torch.no_grad()
def fill(model):
    """Fill every parameter by the rules in golden/networks.json."""
    layers = imps = norms = 0
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            fan_in = m.weight[0].numel()
            m.weight.copy_(sine(m.weight, 1.5 * math.sqrt(2 / fan_in), 0.7, 1 + 0.3 * layers))
            if m.bias is not None:
                m.bias.copy_(sine(m.bias, 0.05, 1.1, 0.2 * layers))
            layers += 1
        elif isinstance(m, nn.BatchNorm2d):
            m.weight.fill_(1)
            m.bias.copy_(sine(m.bias, 0.2, 0.9, 0.5 * layers))
            if hasattr(m, "te"):
                m.te.copy_(1 + 0.2 * torch.sin(torch.arange(len(m.te), dtype=torch.float64) + norms))
                norms += 1
        elif isinstance(m, BaseNode):
            m.imp.copy_(sine(m.imp, 0.3, 0.5, imps))
            imps += 1


@pytest.mark.parametrize("conv_backend", ["dense", pytest.param("sparse", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_golden_network(name, conv_backend):
    g = NETWORKS[name]
    model = build_model(
        g["model"], num_classes=10, input_shape=g["input_shape"], timesteps=4, neuron=g["neuron"],
        conv_backend=conv_backend, **({"dropout": 0.0} if g["model"] == "vgg48" else {}),
    ).double()  # fmt: skip
    fill(model)
    if g["input"] == "static":
        x = sine(torch.empty(2, *g["input_shape"]), 1, 0.05, 0)
    else:
        x = (4 * sine(torch.empty(4, 2, *g["input_shape"]), 1, 0.05, 0).abs()).floor()

    with firing_rates(model) as rates:
        logits = model(x)
    loss = build_loss(g["loss_name"])(logits, torch.tensor([3, 7]))
    loss.backward()

    near = dict(abs=1e-6, rel=1e-6)
    layers = neurons(model)
    assert {n: list(m.imp.shape) for n, m in layers.items()} == g["neuron_shapes"]
    counts = {n: round(rates[n] * 4 * 2 * m.imp.numel()) for n, m in layers.items()}
    assert counts == g["spike_counts"]
    assert logits.sum((1, 2)).tolist() == pytest.approx(g["logits_sum_per_step"], **near)
    assert logits[..., :5].flatten().tolist() == pytest.approx(
        torch.tensor(g["logits_first5"], dtype=torch.float64).flatten().tolist(), **near
    )
    assert loss.item() == pytest.approx(g["loss"], **near)
    for layer, (total, norm) in g["imp_grad_sum_norm"].items():
        grad = layers[layer].imp.grad
        assert (grad.sum().item(), grad.norm().item()) == pytest.approx((total, norm), **near), layer
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weights[0].grad.norm().item() == pytest.approx(g["first_weight_grad_norm"], **near)
    assert weights[-1].grad.norm().item() == pytest.approx(g["last_weight_grad_norm"], **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("norm", "key"), [("tebn", "tebn_out"), ("tebn_gesture", "gesture_quirk_out")])
def test_golden_tebn(norm, key, dtype):
    g = json.loads((GOLDEN_DIR / "tebn.json").read_text())
    tensor = lambda k: torch.tensor(g[k], dtype=dtype)  # noqa: E731
    layer = NORMS[norm](2, 3).to(dtype)
    with torch.no_grad():
        for k in ("weight", "bias", "te"):
            getattr(layer, k).copy_(tensor(k))
    near = dict(atol=1e-6 if dtype == torch.float64 else 1e-5, rtol=0)
    torch.testing.assert_close(layer(tensor("x")).detach(), tensor(key), **near)
    torch.testing.assert_close(layer.running_mean, tensor("running_mean_after"), **near)
    torch.testing.assert_close(layer.running_var, tensor("running_var_after"), **near)


@pytest.mark.parametrize("name", ["small", "sew_resnet18_cifar", "vgg48"])
def test_the_stem_runs_once_for_a_static_image(name):
    model = small(name)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    seen = []
    stem.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    model(frames(name)[0])
    model(frames(name))
    assert seen == [2, 2 * len(frames(name))]


# how the networks run on a CPU


@pytest.mark.parametrize("name", ["vgg48"])
def test_checkpointing_saves_less_and_recomputes(name):
    saved = {}
    for checkpointing in ("off", "norms", "blocks"):
        model, sizes = small(name, checkpointing=checkpointing).double(), {}  # in float32 the fused operator keeps less
        keep = lambda t, sizes=sizes: sizes.__setitem__(t.data_ptr(), t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(frames(name).double())
        saved[checkpointing] = sum(sizes.values()) - sum(p.numel() for p in model.parameters())
    assert saved["blocks"] < 0.5 * saved["off"] and saved["norms"] < 0.8 * saved["off"]


@pytest.mark.slow
@pytest.mark.parametrize("conv_backend", ["dense", "sparse"])
def test_a_compiled_network_computes_the_same(conv_backend):
    model = small("small", kernels="auto", conv_backend=conv_backend).double()
    x = frames("small").double()
    names = list(model.state_dict())
    gradients = lambda: [  # noqa: E731
        torch.autograd.grad(model(x, last_step=last).square().sum(), list(model.parameters())) for last in (False, True)
    ]
    eager = gradients()
    torch._dynamo.utils.counters.clear()
    model.compile()
    compiled = gradients()
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(model.state_dict()) == names
    for a, b in zip([g for part in compiled for g in part], [g for part in eager for g in part], strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


# bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="sew_resnet19"), "model.name='sew_resnet19' is not one of.*did you mean 'sew_resnet1"),
        (dict(timesteps=2.5), "timesteps=2.5 must be a whole number"),
        (dict(input_shape=(8, 8)), r"input_shape=\[8, 8\] must be 3 whole numbers of at least 1"),
        (dict(neuron={"imp": True}), "neuron.name=None is not one of if, lif"),
        (dict(name="vgg48", input_shape=(2, 128, 128)), "model.name=vgg48 accepts only 48x48 pixels, not 128x128"),
        (dict(input_shape=(1, 3, 8)), "model.name=small needs frames of at least 4x4 pixels, not 3x8"),
        (dict(widht=None), "model.widht"),
        (dict(conv_backend="spars"), "model.conv_backend='spars' is not one of auto, dense, sparse; did you"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    defaults = dict(name="small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if"})
    with pytest.raises(UserError, match=message):
        build_model(**{**defaults, **arguments})


def test_input_that_does_not_fit_is_named():
    model = small("small")
    for bad in (torch.zeros(1, 8, 8), torch.zeros(2, 2, 8, 8)):
        with pytest.raises(UserError, match=r"images \[B, 1, 8, 8\]"):
            model(bad)
    with pytest.raises(UserError, match="one IMP value for each of"):
        model(torch.zeros(2, 1, 16, 8))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels-last"])
def test_the_pool_is_torchs_and_keeps_nothing(form):
    ours, torchs = AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)
    x = torch.randn(3, 8, 9, 7).contiguous(memory_format=form).requires_grad_()
    y, expected = ours(x), torchs(x)
    assert torch.equal(y, expected) and y.stride() == expected.stride()
    assert expected.grad_fn._saved_self.data_ptr() == x.data_ptr() != y.grad_fn._saved_self.data_ptr()
    for gy in (torch.randn_like(y), torch.randn(y.shape).contiguous()):
        (wanted,), (found,) = (torch.autograd.grad(out, x, gy, retain_graph=True) for out in (expected, y))
        assert torch.equal(found, wanted) and found.is_contiguous(memory_format=form)


# one image, one time step: a batch of one sample, whose first stride means nothing


def formats(x):
    """x [1, 1, C, H, W] in both memory formats, each with regular strides and with those that a view leaves on axes of size 1."""
    _, _, c, h, w = x.shape
    rows, last = x.contiguous(), x.movedim(2, -1).contiguous().movedim(-1, 2)
    for values, regular in ((rows, (h * w, w, 1)), (last, (1, w * c, c))):
        for stride in (c * h * w, c, h * w):
            yield values.as_strided(x.shape, (stride, stride, *regular))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", ["bn", "tebn", "tebn_gesture", "tab", "tdbn"])  # those with this equation at one step
def test_the_gradient_of_one_sample_does_not_hang_on_its_strides(name, training, dtype):
    torch.manual_seed(0)
    norm = NORMS[name](4, 1).to(dtype).train(training)
    batch_norm = norm.bn[0] if name == "tab" else norm
    with torch.no_grad():
        batch_norm.weight.uniform_(0.5, 2)
    values, gradients = torch.randn(2, 1, 1, 4, 5, 6, dtype=dtype)

    def plain(x):
        axes, shape = (0, 1, 3, 4), (1, 1, -1, 1, 1)
        mean = x.mean(axes, keepdim=True) if training else batch_norm.running_mean.view(shape)
        var = x.var(axes, unbiased=False, keepdim=True) if training else batch_norm.running_var.view(shape)
        y = (x - mean) / (var + batch_norm.eps).sqrt() * batch_norm.weight.view(shape) + batch_norm.bias.view(shape)
        return y * {"tebn_gesture": x}.get(name, 1)

    def found(forward, x, gradient):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(forward(x), [x, batch_norm.weight, batch_norm.bias], gradient)

    expected = found(plain, values, gradients)
    for x in formats(values):
        for gradient in formats(gradients):
            for a, b in zip(found(norm, x, gradient), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)
