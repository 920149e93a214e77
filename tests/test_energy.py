"""Operation counts against counts by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snn_repro.config import load_config
from snn_repro.energy import E_AC_PJ, E_MAC_PJ, energy_report
from snn_repro.models import build_model, count_parameters
from snn_repro.neurons import build_neuron
from snn_repro.trained import load as finished


class Tiny(nn.Module):
    """static image -> conv -> IF over T steps -> conv -> IF -> linear."""

    def __init__(self, imp: bool, timesteps: int = 3):
        super().__init__()
        self.timesteps = timesteps
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.sn1 = build_neuron("if", imp=imp, state_shape=(4, 6, 6))
        self.conv2 = nn.Conv2d(4, 5, 3, stride=2, bias=False)
        self.sn2 = build_neuron("if", imp=imp, state_shape=(5, 2, 2))
        self.fc = nn.Linear(20, 7)

    def forward(self, x):
        self.s1 = self.sn1(self.conv1(x).expand(self.timesteps, -1, -1, -1, -1))
        self.s2 = self.sn2(self.conv2(self.s1.flatten(0, 1)).unflatten(0, self.s1.shape[:2]))
        return self.fc(self.s2.flatten(2))


@pytest.mark.parametrize("imp", [False, True])
def test_counts_by_hand(imp):
    torch.manual_seed(0)
    model, x = Tiny(imp), 3 * torch.rand(2, 1, 6, 6)
    report = energy_report(model, x)
    # every spike meets each weight of each output position whose window holds it
    met = F.conv2d(model.s1.flatten(0, 1), torch.ones(1, 4, 3, 3), stride=2).sum().item()
    assert met > 0
    assert report["layers"] == {
        "conv1": {"macs": 4 * 9 * 36, "synops": 0},
        "conv2": {"macs": 0, "synops": 5 * met / 2},
        "fc": {"macs": 0, "synops": 7 * model.s2.sum().item() / 2},
    }
    assert all(report[k] == sum(layer[k] for layer in report["layers"].values()) for k in ("macs", "synops"))
    assert report["energy_pj"] == pytest.approx(E_MAC_PJ * report["macs"] + E_AC_PJ * report["synops"])
    assert report["with_memory_pj"] > report["energy_pj"] and report["samples"] == 2
    read = {"parameters": 164, "bytes": 656, "read_pj": pytest.approx(656 * 24.96)}
    assert report["imp"] == (read if imp else dict.fromkeys(read, 0))  # memory, and no operation
    assert report["constants_pj"] == {"mac": 4.6, "ac": 0.9, "memory_byte": 24.96}


def test_the_small_network_on_frames_and_its_mode_stays():
    neuron = {"name": "lif", "imp": True}
    model = build_model("small", num_classes=10, input_shape=(2, 8, 8), timesteps=4, neuron=neuron).train()
    frames = torch.randint(0, 3, (4, 2, 2, 8, 8)).float()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = energy_report(model, frames)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert report["layers"]["conv1"] == {"macs": 4 * 24 * 2 * 9 * 64, "synops": 0}  # event counts are no spikes
    assert report["layers"]["conv2"]["macs"] == 0
    assert set(report["layers"]) == {"conv1", "conv2", "conv3", "fc"}
    assert report["imp"]["parameters"] == count_parameters(model)[1] > 0


@pytest.mark.parametrize("samples, epochs, max_steps, counted", [
    ((60_000, 0, 10_000), 5, 0, True), ((1211, 136, 450), 30, 0, False), ((60_000, 0, 10_000), 5, 2, False),
])  # fmt: skip
def test_energy_is_counted_where_asked_or_where_it_costs_less_than_2_percent(samples, epochs, max_steps, counted):
    """Of forward passes, a training step as three: counting 256 samples takes as long as some 3,000."""
    config = load_config([f"recipe.epochs={epochs}", f"debug.max_steps={max_steps}"])
    split = SimpleNamespace(**dict(zip(("n_train", "n_val", "n_test"), samples, strict=True)))
    test = SimpleNamespace(all_samples=lambda batch: 256, epoch=lambda epoch: iter([(torch.rand(2, 1, 6, 6), None)]))
    data, model, found = SimpleNamespace(split=split, test=test), Tiny(False), {}
    for energy in (None, True, False):
        result = SimpleNamespace(energy=None)
        finished.count_operations(None, replace(config, energy=energy), result, model, data)
        found[energy] = result.energy is not None
    assert found == {None: counted, True: True, False: False}
