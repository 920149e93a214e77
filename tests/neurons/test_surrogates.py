"""Surrogates by their equations, and TrSG, whose surrogate follows a learned threshold."""

import math

import pytest
import torch
from torch import nn

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.neurons import SURROGATES, build_neuron, firing_rates
from snn_repro.neurons.surrogates import Spike
from snn_repro.optim import build_optimizer, parameter_groups
from snn_repro.runs import checkpoint
from snn_repro.train import run


def derivative(name, z, width=None):
    z = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(Spike(name, width)(z).sum(), z)[0].tolist()


def test_rectangle():
    assert derivative("rectangle", [-0.6, -0.5, -0.49, 0, 0.49, 0.5]) == [0, 0, 1, 1, 1, 0]
    assert derivative("rectangle", [-0.9, 0.3, 1.1], 2.0) == [0.5, 0.5, 0]
    assert derivative("rectangle_closed", [-1.1, -1, 0, 1, 1.1], 2.0) == [0, 0.5, 0.5, 0.5, 0]
    for family, edge in (("clif", 1), ("glif", 0)):  # as their authors have it
        spike = build_neuron(family, state_shape=(1,), timesteps=1).surrogate_function
        z = torch.tensor([-0.5, 0.5], requires_grad=True)
        assert torch.autograd.grad(spike(z).sum(), z)[0].tolist() == [edge, edge]


@pytest.mark.parametrize("name", SURROGATES)
def test_it_integrates_to_one_and_trains_in_a_neuron(name):
    z = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    area = torch.trapezoid(SURROGATES[name].derivative(z, SURROGATES[name].width), z).item()
    assert area == pytest.approx(1, abs=2e-3)
    x = torch.rand(3, 2, 4, requires_grad=True)
    build_neuron("lif", surrogate=name)(x).sum().backward()
    assert x.grad.any()


def test_the_adaptive_dspike_takes_the_temperature_nearest_to_finite_differences(tmp_path, monkeypatch):
    """In a run: weights, statistics and generators are those of a run that adapts nothing until its first step."""
    from snn_repro import train
    from snn_repro.neurons.surrogates import dspike_adaptive as adaptive

    seen, adapt = [], SURROGATES["dspike_adaptive"].adapt

    def few(weight, loss):
        found = torch.zeros_like(weight)  # three of its values, by hand
        for i in (0, 5, 7):
            ends = []
            for sign in (1, -1):
                kept = weight.data[i].clone()
                weight.data[i] += sign * 0.01
                ends.append(loss().item())
                weight.data[i] = kept
            found[i] = (ends[0] - ends[1]) / 0.02
        return found

    def watched(model, spikes, loss):
        before = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith("function.width")}
        draw = torch.random.get_rng_state()
        adapt(model, spikes, loss)
        near = {}
        for b in (3.0, 3.2, 2.8):
            chosen = [float(s.width) for s in spikes]
            for s in spikes:
                s.width.fill_(b)
            g, truth = torch.autograd.grad(loss(), model.conv1.weight)[0].flatten(), few(model.conv1.weight, loss)
            near[b] = (g @ truth.flatten() / g.norm() / truth.norm()).item()
            for s, value in zip(spikes, chosen, strict=True):
                s.width.fill_(value)
        seen.append((float(spikes[0].width), near, len(spikes)))
        torch.random.set_rng_state(draw)
        weights = {
            k: v for k, v in model.state_dict().items() if k in before and "running" not in k and "num_" not in k
        }
        assert all(torch.equal(v, before[k]) for k, v in weights.items())

    monkeypatch.setitem(SURROGATES, "dspike_adaptive", SURROGATES["dspike_adaptive"]._replace(adapt=watched))
    monkeypatch.setattr(adaptive, "finite_differences", few)
    short = ["logger.mode=disabled", "debug.max_steps=2", "debug.max_eval_batches=1", "recipe.epochs=1", "neuron=if"]
    words = [*short, "loss=sdt", "neuron.surrogate=dspike_adaptive", "neuron.surrogate_width=null"]
    run(load_config([*words, f"hydra.run.dir={tmp_path / 'a'}"]))
    ((chosen, near, layers),) = seen
    assert layers == 3 and chosen == pytest.approx(max(near, key=near.get))
    saved = checkpoint.load(tmp_path / "a" / checkpoint.LAST)["model"]
    assert float(saved["sn1.surrogate_function.width"]) == pytest.approx(chosen)
    assert int(saved["bn1.num_batches_tracked"]) == 2  # the steps alone
    monkeypatch.setattr(train, "adapt_surrogates", lambda *_: None)
    run(load_config([*short, "loss=sdt", "neuron.surrogate=dspike", f"neuron.surrogate_width={chosen:.1f}",
                     f"hydra.run.dir={tmp_path / 'b'}"]))  # fmt: skip
    other = checkpoint.load(tmp_path / "b" / checkpoint.LAST)["model"]
    gaps = {k: (v - saved[k]).abs().max().item() for k, v in other.items() if v.is_floating_point()}
    assert not {k: v for k, v in gaps.items() if v > 1e-4}  # Adam makes roundings larger


def test_finite_differences_of_a_quadratic():
    from snn_repro.neurons.surrogates.dspike_adaptive import finite_differences

    w = nn.Parameter(torch.randn(2, 3, 1, 2, dtype=torch.float64))
    before = w.detach().clone()
    assert torch.allclose(finite_differences(w, lambda: (w**2).sum()), 2 * before) and torch.equal(w, before)


# TrSG


def with_threshold(theta, **options):
    return build_neuron("trsg", v_threshold=theta, **options).double()


def test_golden_trsg():
    neuron, h = with_threshold(1.5), torch.tensor([0.6, 1.2, 1.5, 1.8, 2.4], dtype=torch.float64)
    with torch.no_grad():
        neuron.z.copy_(torch.tensor(math.log(math.expm1(1.5)), dtype=torch.float64))
    h.requires_grad_()
    outputs = neuron.fire(h)
    assert outputs.tolist() == pytest.approx([0, 0, 0, 1.5, 1.5])
    assert torch.autograd.grad(outputs.sum(), h, retain_graph=True)[0].tolist() == pytest.approx([0, 1, 1, 1, 0])
    by_z = [torch.autograd.grad(o, neuron.z, retain_graph=True)[0].item() for o in outputs]
    slope = 1 - math.exp(-1.5)  # d softplus(z) / dz
    assert [g / slope for g in by_z] == pytest.approx([0, -0.8, -1, -0.2, 1], abs=1e-9)
    neuron.eval()
    assert neuron.fire(h.detach()).tolist() == pytest.approx([0, 0, 1.5, 1.5, 1.5])


@pytest.mark.parametrize("detach", [False, True])
def test_trsg_over_time_with_its_gradients(detach):
    """Against the recurrence and its chain rule written out by hand."""
    torch.manual_seed(0)
    neuron, x = with_threshold(0.8, tau=3.0, detach_reset=detach), torch.rand(5, 7, dtype=torch.float64) * 3
    weights = torch.randn(5, 7, dtype=torch.float64)
    theta, leak = neuron.v_threshold.item(), neuron.w.sigmoid().item()
    assert theta == pytest.approx(0.8) and leak == pytest.approx(1 / 3)
    y = neuron(x.unsqueeze(1).requires_grad_()).squeeze(1)
    (y * weights).sum().backward()
    v, dv, d_theta, d_leak, total = *torch.zeros(4, 7, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(5):  # forward sensitivities of v to theta (dv) and to the leak (d_leak)
        h = v + (x[t] - v) * leak
        h_theta, h_leak = dv * (1 - leak), d_leak * (1 - leak) + x[t] - v
        fired, phi = (h / theta > 1).double(), ((h / theta - 1).abs() <= 0.5).double()
        o_theta, o_leak = fired - phi * h / theta + phi * h_theta, phi * h_leak
        assert torch.allclose(y[t].detach(), theta * fired)
        total += torch.stack([(weights[t] * o_theta).sum(), (weights[t] * o_leak).sum(), (weights[t] * d_theta).sum()])
        v = h - theta * fired
        dv, d_leak = (h_theta, h_leak) if detach else (h_theta - o_theta, h_leak - o_leak)
    assert neuron.z.grad.item() == pytest.approx(total[0].item() * (1 - math.exp(-theta)))
    assert neuron.w.grad.item() == pytest.approx(total[1].item() * leak * (1 - leak))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(reset="hard"), "neuron.reset='hard' is not one of soft"),
        (dict(fire_at="gt"), "neuron.fire_at='gt' is not one of ge"),
        (dict(surrogate="atan"), "neuron.surrogate='atan' is not one of rectangle"),
        (dict(surrogate_width=2.0), "neuron.surrogate_width=2.0 must"),
        (dict(tau=1.0), "neuron.tau=1.0 must be above 1"),
        (dict(backend="cpu"), "neuron.backend=cpu has no kernel for 'trsg'"),
    ],
)
def test_what_trsg_has_not_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_neuron("trsg", **options)


def test_trsg_in_a_network():
    """It learns threshold and leak, decays both, and counts its spikes as spikes."""
    recipe = load_config(["recipe.weight_decay=0.1", "recipe.lr=0.05"]).recipe
    torch.manual_seed(0)
    model = build_model("small", num_classes=5, input_shape=(1, 8, 8), timesteps=3,
                        neuron={"name": "trsg", "imp": True, "v_threshold": 0.5})  # fmt: skip
    before, x = {n: p.detach().clone() for n, p in model.named_parameters()}, torch.rand(4, 1, 8, 8)
    nn.functional.cross_entropy(model(x).mean(0), torch.arange(4)).backward()
    build_optimizer(model, recipe).step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    decayed = {id(p) for p in next(g for g in parameter_groups(model, recipe) if g["kind"] == "decay")["params"]}
    assert {id(model.sn1.z), id(model.sn1.w)} <= decayed and id(model.sn1.imp) not in decayed
    outputs = []
    with firing_rates(model) as rates:
        model.sn1.register_forward_hook(lambda m, args, out: outputs.append(out))
        model(x)
    assert rates["sn1"] == pytest.approx((outputs[0] != 0).double().mean().item()) and 0 < rates["sn1"] < 1
