"""Initial weights: their variances, and the potentials that the fluctuation-driven ones give."""

import math

import pytest
import torch
from torch import nn

from snn_repro.config import ConfigError, load_config
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.models.init import fluctuation, response
from snn_repro.neurons import build_neuron


def built(neuron="lif", **options):
    torch.manual_seed(0)
    given = dict(num_classes=10, input_shape=(2, 16, 16), timesteps=4, neuron={"name": neuron})
    return build_model("vgg128", **given, **options).state_dict()


def test_what_each_draws():
    plain, kaiming, nda = (built(init=name) for name in ("torch", "kaiming", "nda"))
    assert all(torch.equal(value, plain[key]) for key, value in built().items())
    for key, w in plain.items():
        if w.dim() == 4:
            for drawn, fan in ((kaiming, w.shape[1]), (nda, w.shape[0])):
                assert drawn[key].std().item() == pytest.approx(math.sqrt(2 / (9 * fan)), rel=0.1)
    assert torch.equal(nda["classifier.weight"], plain["classifier.weight"]) and not kaiming["classifier.bias"].any()
    with pytest.raises(UserError, match="model.init=fluctuation needs a potential over time, which neuron=psn lacks"):
        built("psn", init="fluctuation")
    with pytest.raises(ConfigError, match="has no effect with model.init=nda"):
        load_config(["model=vgg128", "model.init=nda", "model.conv_init=fan_out"])


@pytest.mark.parametrize("name", ["if", "lif", "leaky"])
def test_potentials_fluctuate_as_far_as_asked_for(name):
    """Inputs that fire at the rate give potentials of standard deviation v_th / xi at the last step, without spikes."""
    torch.manual_seed(0)
    neuron, classifier = build_neuron(name, timesteps=6, state_shape=(500,)), nn.Linear(500, 3)
    network, kernel = nn.Sequential(nn.Linear(800, 500), neuron, classifier), response(neuron)
    before = classifier.weight.clone()
    fluctuation(network, init_xi=2.0, init_rate=0.05)
    x = network[0](torch.rand(6, 200, 800).lt(0.05).float())
    v = sum(kernel[5 - t] * x[t] for t in range(6))
    assert v.var(0).mean().sqrt().item() == pytest.approx(1 / 2, rel=0.06)
    assert torch.equal(classifier.weight, before)
