"""Who sees the future: what a class says of itself against what a later frame changes in earlier outputs."""

import json
import signal

import pytest
import torch
from fake_runs import fake_run

from compare import compare
from snn_repro import train
from snn_repro.errors import UserError
from snn_repro.metrics import sees_future
from snn_repro.models import MODELS, NORMS, build_model
from snn_repro.neurons import NEURONS, build_neuron
from snn_repro.paper.figures import MissingData, accuracy_steps
from snn_repro.paper.results import group_runs, load
from snn_repro.train import run

T, CHANGED = 4, 2


@torch.no_grad()
def looks_ahead(module, x, later=slice(CHANGED, None)) -> bool:
    """Whether outputs before CHANGED depend on inputs from it on; the later outputs must."""
    other = x.clone()
    other[later] = torch.randn(x[later].shape, generator=torch.Generator().manual_seed(9)) * 2 + 1
    a, b = module(x), module(other)
    assert not torch.equal(a[CHANGED:], b[CHANGED:]), "the change did not arrive"
    return not torch.equal(a[:CHANGED], b[:CHANGED])


@pytest.mark.parametrize("name", NEURONS)
def test_a_neuron_says_whether_it_sees_the_future(name):
    torch.manual_seed(0)
    neuron, x = build_neuron(name, state_shape=(64,), timesteps=T).eval(), 1 + 2 * torch.randn(T, 8, 64)
    assert looks_ahead(neuron, x) == (not neuron.causal) == bool(sees_future(neuron))


def test_masked_psn_sees_the_future_until_its_mask_is_whole():
    torch.manual_seed(0)
    neuron, x = build_neuron("masked_psn", timesteps=T), 1 + 2 * torch.randn(T, 8, 64)
    for epoch, ahead in enumerate((True, True, False, False)):
        neuron.begin_epoch(epoch, 20 if ahead else 4)
        assert looks_ahead(neuron, x) == ahead == (not neuron.causal), epoch


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_says_whether_it_sees_the_future(name):
    norm = NORMS[name](3, T).eval()
    assert looks_ahead(norm, torch.randn(T, 2, 3, 4, 4)) == bool(sees_future(norm))


def one_of_each_class() -> list:
    """A network's name for each class and block that it is built from: deeper ones of these have nothing else in them."""
    found = {}
    for name, model in MODELS.items():
        parts = [part for part in model.build.args if isinstance(part, type)]
        found.setdefault((model.build.func, *parts), name)
    costly = ("vgg16", "vgg48", "vggsnn", "plif_net", "spikformer", "resnet19")
    return [pytest.param(name, marks=pytest.mark.slow) if name in costly else name for name in found.values()]


def network(name: str, neuron: str):
    """At the smallest size that it takes, with the statistics of the input, so that something fires in every layer."""
    for size in (16, 32, 48, 64, 128):
        torch.manual_seed(0)
        try:
            shape = (2, size, size)
            model = build_model(name, num_classes=3, input_shape=shape, timesteps=T, neuron={"name": neuron})
        except UserError as error:
            refused = error
            continue
        x = torch.rand(T, 2, *shape) * 2
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
            if isinstance(module, torch.nn.Linear):  # there is no norm between some of them and their neurons
                module.weight.data.mul_(8)
        with torch.no_grad():
            model.train()(x)
        return model.eval(), x
    raise refused


@pytest.mark.parametrize("name", one_of_each_class())
def test_a_network_says_whether_it_sees_the_future(name):
    model, x = network(name, "if")
    assert looks_ahead(model, x) == bool(sees_future(model))


def test_the_modules_that_see_it_are_named():
    model, x = network("small", "psn")
    assert looks_ahead(model, x) and sees_future(model) == ["sn1", "sn2", "sn3"]
    assert sees_future(model.sn1) == ["PSN"] and sees_future(network("small", "sliding_psn")[0]) == []


def test_a_run_says_it_and_tables_and_figures_leave_single_steps_out(quick, tmp_path):
    result = run(quick("neuron=psn", "loss=sdt", "debug.max_steps=1"), str(tmp_path / "psn"))
    assert result["causal"] is False is json.loads((tmp_path / "psn/result.json").read_text())["causal"]
    made = tmp_path / "made"
    fake_run(made, "neuron=psn", "loss=sdt", extra={"causal": False})
    with pytest.raises(MissingData, match="outputs depend on later steps"):
        accuracy_steps.draw_groups(group_runs(load([made]))[0])
    fake_run(made, "neuron=lif", "loss=sdt")
    table = compare([made])
    steps = {row["row"]: row["acc_step"] for row in table.rows}
    (psn,) = (name for name in steps if "psn" in name)
    assert steps.pop(psn) == [] and all(len(values) == 4 for values in steps.values())
    assert f"no accuracy per time step where outputs depend on later steps: {psn}" in table.notes
    figure = accuracy_steps.draw_groups(group_runs(load([made]))[0])
    assert sum(len(axes.containers) for axes in figure.axes) == 1


def test_a_schedule_over_epochs_is_resumed_in_the_middle_of_an_epoch(quick, tmp_path, monkeypatch):
    """masked_psn's lambda, and its average's: the same numbers as in one go."""
    words = "neuron=masked_psn", "neuron.order=2", "neuron.ramp=1.5", "recipe.epochs=4", "recipe.ema_decay=0.9"
    whole, original = run(quick(*words), str(tmp_path / "whole")), train.Training.train_step

    def stopping(self, *batch):
        if (self.epoch, self.step) == (1, 1):
            self.stop.signum = signal.SIGTERM
        return original(self, *batch)

    with monkeypatch.context() as cut, pytest.raises(train.Interrupted):
        cut.setattr(train.Training, "train_step", stopping)
        run(quick(*words), str(tmp_path / "cut"))
    saved = torch.load(tmp_path / "cut/checkpoint_last.pt", weights_only=True)
    assert saved["model"]["sn1.lambda_"] == saved["ema"]["module.sn1.lambda_"] == 0.5 and saved["step"] == 2
    again = run(quick(*words), str(tmp_path / "cut"))
    assert again["train_loss_last"] == whole["train_loss_last"] and again["acc_step"] == whole["acc_step"]
    assert whole["causal"] is True
