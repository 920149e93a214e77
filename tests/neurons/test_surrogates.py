"""Surrogates by their equations, and TrSG, whose surrogate follows a learned threshold."""

import math

import pytest
import torch
from torch import nn

from snn_repro.build import adapt_surrogates
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.neurons import SURROGATES, build_neuron, firing_rates, surrogates
from snn_repro.neurons.surrogates import Spike, finite_differences


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


def test_the_adaptive_dspike_takes_the_temperature_nearest_to_finite_differences(monkeypatch):
    """Of three; statistics, generators and weights stay."""
    torch.manual_seed(0)
    neuron = {"name": "if", "surrogate": "dspike_adaptive"}
    model = build_model("small", num_classes=10, input_shape=(1, 4, 4), timesteps=2, neuron=neuron)
    x, target, loss_fn = torch.rand(5, 1, 4, 4), torch.arange(5), build_loss("sdt")
    spikes = [m for m in model.modules() if isinstance(m, Spike)]
    found = {}
    for b in (3.2, 2.8, 3.0):
        for spike in spikes:
            spike.width.fill_(b)
        found[b] = torch.autograd.grad(loss_fn(model(x), target), model.conv1.weight)[0]
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith("function.width")}
    draw = torch.random.get_rng_state()
    for b, gradient in found.items():
        for spike in spikes:
            spike.width.fill_(3.0)
        monkeypatch.setattr(surrogates, "finite_differences", lambda *_, gradient=gradient: gradient)
        adapt_surrogates(model, loss_fn, x, target)
        assert all(float(spike.width) == pytest.approx(b) for spike in spikes)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
    assert torch.equal(draw, torch.random.get_rng_state())


def test_finite_differences_of_a_quadratic():
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
    x = torch.full((3, 1, 2), 4.0, dtype=torch.float64)
    with firing_rates(torch.nn.Sequential(neuron)) as rates:
        neuron(x)
    assert rates == {"0": 1.0} and neuron.parameter_kind("z") == "weight"  # spikes count 1, whatever their height
