"""NeuroBench's metrics: by hand, and against the package itself."""

import json

import pytest
import torch
from torch import nn

from snn_repro.energy import neurobench
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.train import run
from snn_repro.trained.neurobench import main

CPU = torch.device("cpu")


def last(logits):
    return logits[-1]


class Linear(nn.Module):
    """A linear layer of its own weights at every step of frames [T, B, 2]."""

    def __init__(self, weight):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.fc.weight.data = torch.tensor(weight)

    def forward(self, x):
        return self.fc(x)


def test_by_hand():
    """W = ((1, 0), (2, 3)) meets (1, 0) in two weights and (1, 1) in three."""
    model = Linear([[1.0, 0.0], [2.0, 3.0]])
    x, labels = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.tensor([1, 1])
    found = neurobench(model, [(x, labels)], last, CPU)
    assert found["SynapticOperations"] == {"Effective_MACs": 0, "Effective_ACs": 2.5, "Dense": 4}
    assert found["ConnectionSparsity"] == 0.25 and found["ParameterCount"] == 6 and found["Footprint"] == 24
    x[0, 1, 1] = 2  # one number that is no spike makes the whole call multiply
    found = neurobench(model, [(x, labels)], last, CPU)
    assert found["SynapticOperations"] == {"Effective_MACs": 2.5, "Effective_ACs": 0, "Dense": 4}
    x[0, 1, 1] = -1
    assert neurobench(model, [(x, labels)], last, CPU)["SynapticOperations"]["Effective_ACs"] == 2.5
    assert not model.fc._forward_pre_hooks and model.training


def test_what_is_not_counted_is_refused():
    with pytest.raises(UserError, match=r"operations of 0 \(GRU\) are not supported"):
        neurobench(nn.Sequential(nn.GRU(2, 2)), [], last, CPU)


class BatchFirst(nn.Module):
    """NeuroBench takes the batch first, and predictions."""

    def __init__(self, network, readout):
        super().__init__()
        self.network, self.readout = network, readout

    def forward(self, x):
        return self.readout(self.network(x.transpose(0, 1) if x.dim() == 5 else x)).argmax(-1)


def network(name, shape=(2, 8, 8), neuron="lif", **options):
    torch.manual_seed(0)
    model = build_model(
        name, num_classes=5, input_shape=shape, timesteps=3, neuron={"name": neuron, "imp": True}, **options
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that neurons behind it fire
            nn.init.uniform_(module.bias, 0.2, 1)
    return model


def pruned():
    model = network("small")
    model.conv2.weight.data[::3] = 0
    return model


@pytest.mark.parametrize("make, static", [
    (lambda: network("small", (1, 8, 8)), True), (pruned, False),
    # sums, a pool, and equal names in all blocks; sigmoids
    pytest.param(lambda: network("sew_resnet18", (2, 32, 32), "if"), False, marks=pytest.mark.slow),
    pytest.param(lambda: network("tcja", (2, 32, 32)), False, marks=pytest.mark.slow),
], ids=["static", "pruned", "sew", "tcja"])  # fmt: skip
def test_as_the_package_counts(make, static):
    pytest.importorskip("neurobench")
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics import static as of_model
    from neurobench.metrics import workload
    from neurobench.models import TorchModel
    from torch.utils.data import DataLoader, TensorDataset

    from snn_repro.neurons import Neuron

    model = make()
    generator = torch.Generator().manual_seed(1)
    shape = model.input_shape if static else (3, *model.input_shape)
    x = torch.randint(-1, 3, (5, *shape), generator=generator).float()
    labels = torch.randint(5, (5,), generator=generator)
    loader = DataLoader(TensorDataset(x, labels), batch_size=2)  # an odd last batch
    batches = [(x if static else x.transpose(0, 1), target) for x, target in loader]
    found = neurobench(model, batches, last, CPU)

    theirs = TorchModel(BatchFirst(model, last))
    theirs.add_activation_module(Neuron)
    kinds = "ActivationSparsity", "ActivationSparsityByLayer", "SynapticOperations", "ClassificationAccuracy"
    of_weights = [of_model.Footprint, of_model.ParameterCount, of_model.ConnectionSparsity]
    metrics = [of_weights, [getattr(workload, kind) for kind in kinds]]
    with torch.no_grad():
        expected = Benchmark(theirs, loader, [], [], metrics).run(quiet=True)
    assert list(found) == list(expected)
    assert found["SynapticOperations"] == expected["SynapticOperations"]
    assert found["SynapticOperations"]["Effective_ACs"] > 0 < found["SynapticOperations"]["Effective_MACs"]
    for key in ("Footprint", "ParameterCount", "ConnectionSparsity", "ActivationSparsityByLayer"):
        assert found[key] == expected[key], key
    for key in ("ActivationSparsity", "ClassificationAccuracy"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6), key  # theirs is a mean of means of batches
    assert 0 < found["ActivationSparsity"] < 1


def test_a_run_writes_it_when_asked_and_the_command_afterwards(quick, tmp_path, capsys):
    result = run(quick("neurobench=true", "debug.max_eval_batches=0"))
    file = tmp_path / "run" / "neurobench.json"
    content = json.loads(file.read_text())
    assert content["ClassificationAccuracy"] == result.acc_last
    assert content["ActivationSparsityByLayer"] == pytest.approx(
        {k: 1 - v for k, v in result.firing_rates.items()}, abs=1e-6
    )
    file.unlink()
    assert run(quick("neurobench=true", "debug.max_eval_batches=0")).config_hash == result.config_hash
    assert json.loads(file.read_text()) == content
    file.unlink()
    assert main([str(tmp_path / "run"), f"data_dir={tmp_path}"]) == 0
    assert json.loads(file.read_text()) == content and str(file) in capsys.readouterr().out
    assert main(["data_dir=DIR"]) == 2 and "names no run" in capsys.readouterr().err
