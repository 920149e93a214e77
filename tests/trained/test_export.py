"""What is handed on is the network: bit by bit, or within 1e-5 of its logits."""

import json
import re
import shutil
import sys
from contextlib import nullcontext

import nir
import nir_interpreter
import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from onnx import load as onnx_model
from scripts_of_ours import script

from snn_repro.config import conf_files, load_config
from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.models.blocks import SpikingNetwork
from snn_repro.models.norms import BN
from snn_repro.neurons import build_neuron
from snn_repro.registry import EXPORTS, NEURONS, NORMS, SETS
from snn_repro.train import build_network, run
from snn_repro.trained import TrainedRun, load_run
from snn_repro.trained.export import export, graphs
from snn_repro.trained.export import nir as to_nir
from snn_repro.trained.export.graphs import inputs

main = script("export").main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    words = ["neuron=if_imp", "loss=tet", "timesteps=2", "recipe.epochs=3", "debug.max_steps=4", "logger.mode=disabled"]
    run(load_config([*words, f"hydra.run.dir={path}", f"cache_dir={path.parent}"]))
    return path


def untrained(*words, shape=None):
    """A run that nobody trained, whose neurons fire."""
    torch.manual_seed(0)
    config = load_config([*words])
    shape = shape or SETS[config.dataset.name].shape
    model = build_network(config, 5, shape).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.bias, 0.2, 1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
        if hasattr(module, "te"):
            torch.nn.init.uniform_(module.te, 0.5, 1.5)
    return TrainedRun(None, config, model, 1, shape, 5, None)


def logits(run, x):
    with torch.no_grad(), door.off(run.model):
        return run.model(x)


EVENTS = ("dataset=digits_dvs", "timesteps=2")
SMALL = dict(shape=(2, 8, 8))

# ---------------------------------------------------------------- safetensors and the card


def test_safetensors_give_the_network_back_bit_by_bit(finished, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([str(finished), "--to", "safetensors", "--output", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n" and [f.name for f in tmp_path.iterdir()] == ["out"]
    files = ["README.md", "config.json", "metrics.jsonl", "model.safetensors", "result.json"]
    assert sorted(f.name for f in folder.iterdir()) == files
    first, again = load_run(finished), load_run(folder)
    state = again.model.state_dict()
    assert state.keys() == first.model.state_dict().keys()
    assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype for k, v in first.model.state_dict().items())
    x = inputs(first, 3)
    assert torch.equal(first.model(x), again.model(x)) and not again.model.training
    assert (again.epoch, again.input_shape, again.num_classes) == (3, (1, 8, 8), 10)
    assert again.result.acc_step == first.result.acc_step
    assert first.config.cache_dir and again.config.cache_dir is None  # no folder of this machine is handed on
    assert str(finished.parent) not in "".join(f.read_text(errors="replace") for f in folder.iterdir())
    assert all(f.stat().st_mode & 0o044 for f in folder.iterdir())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(UserError, match="out is not a complete export: .*; export the run again"):
        load_run(folder)


def test_the_card_is_one_that_model_hubs_read(finished, tmp_path):
    last = load_run(finished).result
    card = ModelCard.load(export(finished, "safetensors", output=tmp_path / "last") / "README.md")
    (evaluated,) = card.data.eval_results
    assert evaluated.metric_value == pytest.approx(100 * last.acc_last, abs=1e-4) and evaluated.dataset_name == "digits"
    assert card.data.license == "mit" and card.data.library_name == "snn_repro"
    steps = [f"| {t} | {100 * acc:.2f} % |" for t, acc in enumerate(last.acc_step, 1)]
    for word in (last.split_sha256, last.split_id, last.config_hash, "from the last epoch", "@inproceed", *steps):
        assert word in card.text

    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    best = load_run(finished, "best").epoch
    text = (export(finished, "safetensors", "best", tmp_path / "best") / "README.md").read_text()
    assert f"| epoch of these weights | {best} of 3 |" in text and "chosen on the validation part" in text
    assert f"| 1 | {100 * lines[best - 1]['acc_step'][0]:.2f} % |" in text
    assert load_run(tmp_path / "best").epoch == best


# ---------------------------------------------------------------- graphs over all time steps


def compare(run, graph, share=0.0):
    """graph(x) against the network, for batches that it was not traced with."""
    for batch, seed in ((1, 2), (7, 3)):
        x = inputs(run, batch, seed)
        apart = (graph(x) - logits(run, x)).abs().amax((0, 2))
        assert float((apart > 1e-5).float().mean()) <= share, apart


def by_torch(run, folder):
    folder.mkdir(exist_ok=True)
    said = graphs.torch_export(run, folder)
    return torch.export.load(folder / "model.pt2").module(), said


def by_onnx(run, folder):
    folder.mkdir(exist_ok=True)
    said = graphs.onnx(run, folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda x: torch.from_numpy(session.run(["logits"], {"input": x.numpy()})[0]), said


class Tiny(SpikingNetwork):
    """convolution, norm, neuron, mean over space, linear: few operations, for torch.export takes some milliseconds for each"""

    def __init__(self, neuron, input_shape, timesteps, imp=True):
        super().__init__(input_shape, timesteps)
        self.conv, self.bn = torch.nn.Conv2d(input_shape[0], 4, 3), BN(4)
        self.sn = build_neuron(neuron, imp=imp, state_shape=(4, 6, 6), timesteps=timesteps)
        self.fc = torch.nn.Linear(4, 5)
        torch.nn.init.uniform_(self.bn.bias, 0.2, 1)

    def forward(self, x):
        x, timesteps = self.steps(x)
        return self.fc(self.spikes(x, self.conv, self.bn, self.sn, timesteps).mean((-2, -1)))


def tiny(neuron, *words):
    torch.manual_seed(0)
    config = load_config(["timesteps=2", *words])
    shape = (SETS[config.dataset.name].shape[0], 8, 8)
    return TrainedRun(None, config, Tiny(neuron, shape, 2).eval(), 1, shape, 5, None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torch_export_of_static_images(tmp_path):
    run = tiny("if", "dataset=digits")
    graph, said = by_torch(run, tmp_path / "out")
    x = inputs(run, 5)
    assert torch.equal(graph(x), logits(run, x)) and logits(run, x).std() > 0.01
    compare(run, graph)
    assert "images [B, 1, 8, 8] in float32 -> [2, B, 5]" in said and "within" in said


def test_onnx_of_frames(tmp_path):
    run = tiny("leaky", "dataset=digits_dvs")
    graph, said = by_onnx(run, tmp_path / "out")
    compare(run, graph)
    assert "frames [2, B, 2, 8, 8]" in said and "within" in said
    fired = {op.op_type for op in onnx_model(tmp_path / "out" / "model.onnx").graph.node}
    assert "Greater" in fired and "GreaterOrEqual" not in fired  # leaky fires above the threshold


PLAIN = [f"neuron={name}" for name in NEURONS]
WORDS = [
    *PLAIN, *(f"model.norm={name}" for name in NORMS), "neuron.initial=mp_init", "neuron.initial=random",
    "neuron.initial=half", "neuron.reset=hard",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("way", [by_torch, by_onnx])
def test_every_neuron_norm_and_initial_state_is_exported(word, way, tmp_path):
    run = untrained(*EVENTS, *(["neuron=lif"] if word not in PLAIN else []), word, **SMALL)
    graph, _ = way(run, tmp_path / "out")
    compare(run, graph)


DEEPER = ("sew_resnet34", "sew_resnet50", "sew_resnet101", "sew_resnet152", "spikformer_6_512", "spikformer_8_512")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in conf_files("model") if name not in DEEPER])
def test_every_network_is_exported(name, tmp_path):
    """Rounding moves a potential over a threshold in some samples of a deep network; torch.export's graph is equal."""
    words = {
        "spike_driven_transformer": ["model.embed_dims=64", "model.depths=1"],
        "qkformer": ["model.embed_dims=96", "model.depths=[1,1,1]"],
    }
    data = ["dataset=cifar10_dvs", "dataset.frame_size=48"] if name == "vgg48" else ["dataset=cifar10"]
    shape = (2, 48, 48) if name == "vgg48" else (3, 64, 64) if name in ("qkformer", "maxformer") else (3, 32, 32)
    run = untrained(*data, "timesteps=2", f"model={name}", "neuron=lif", *words.get(name, []), shape=shape)
    graph, _ = by_torch(run, tmp_path / "torch")
    compare(run, graph)
    graph, said = by_onnx(run, tmp_path / "onnx")
    print(name, said.splitlines()[-1])


# ---------------------------------------------------------------- NIR


def nir_of(run, folder):
    folder.mkdir(exist_ok=True)
    said = to_nir.write(run, folder)
    static = SETS[run.config.dataset.name].static
    T = run.config.timesteps
    return lambda x: nir_interpreter.run(folder / to_nir.FILE, x.expand(T, *x.shape) if static else x), said


class OneNeuron(torch.nn.Module):
    """A 1x1 convolution of weight 1 and a neuron."""

    def __init__(self, name, **neuron):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1, bias=False)
        self.conv.weight.data.fill_(1)
        self.sn = build_neuron(name, imp=True, state_shape=(1, 1, 1), reset="soft", fire_at="ge", **neuron)
        self.sn.imp.data.fill_(0.5)

    def forward(self, x):
        return self.sn(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


@pytest.mark.parametrize(
    "name, neuron, k",
    [("if", {}, 1.0), ("leaky", dict(retain=0.25), 0.25), ("lif", dict(tau=2.0), 1.0), ("lif", dict(tau=4.0), 3.0)],
)
def test_an_initial_potential_is_an_input_of_the_first_step(name, neuron, k, tmp_path):
    """v0 = 0.5, soft reset, inputs around the threshold."""
    model, x = OneNeuron(name, **neuron), 3 * torch.rand(3, 100, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    graph = to_nir.nir_graph(model, x[:, :1])
    assert graph.nodes["sn_initial"].scale == pytest.approx(np.full((1, 1, 1), 0.5 * k))
    assert ("sn_first_step", "sn_initial") in graph.edges and ("sn_initial", "sn") in graph.edges
    nir.write(tmp_path / "g.nir", graph)
    with door.off(model):
        spikes = model(x)
        assert torch.equal(nir_interpreter.run(tmp_path / "g.nir", x), spikes) and 0.05 < spikes.mean() < 0.95


@pytest.mark.parametrize(
    "words",
    [
        [*EVENTS, "neuron=lif_imp"],
        [*EVENTS, "neuron=leaky", "neuron.initial=mp_init", "model.norm=tdbn"],
        [*EVENTS, "neuron=plif", "neuron.initial=imp_channel", "neuron.v_reset=-0.1"],
        ["dataset=digits", "neuron=if", "neuron.initial=half"],
    ],
    ids=["lif_imp", "leaky", "plif", "static"],
)
def test_nir_runs_as_the_network(words, tmp_path):
    run = untrained(*words, shape=(1, 8, 8) if "dataset=digits" in words else (2, 8, 8))
    for module in run.model.modules():
        if hasattr(module, "running_v"):
            module.running_v.fill_(0.3)
    graph, said = nir_of(run, tmp_path / "out")
    x = inputs(run, 64, 5)
    expected = logits(run, x)
    torch.testing.assert_close(graph(x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01 and "first_step" in said
    strict = "neuron=leaky" in words  # hard reset, fires above the threshold: as NIR has it
    assert ("NIR does not define" in said) != strict
    if not strict:
        assert "fire_at=ge" in said


class Joined(torch.nn.Module):
    """A sum of two layers' spikes, a pool over parts of the frame, and a linear layer of the rest."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = (torch.nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4))
        self.sn1, self.sn2 = (build_neuron("if", imp=True, state_shape=(4, 8, 8)) for _ in range(2))
        self.pool, self.fc = torch.nn.AvgPool2d(2), torch.nn.Linear(64, 5)

    def forward(self, x):
        steps = x.shape[:2]
        first = self.sn1(self.conv1(x.flatten(0, 1)).unflatten(0, steps))
        second = self.sn2(self.conv2(first.flatten(0, 1)).unflatten(0, steps))
        return self.fc(self.pool((first + second).flatten(0, 1)).flatten(1)).unflatten(0, steps)


def test_nir_of_sums_and_pools(tmp_path):
    model, x = Joined().eval(), torch.poisson(torch.full((3, 4, 2, 8, 8), 0.5))
    nir.write(tmp_path / "g.nir", to_nir.nir_graph(model, x[:, :1]))
    with torch.no_grad(), door.off(model):
        expected = model(x)
    torch.testing.assert_close(nir_interpreter.run(tmp_path / "g.nir", x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", [*NEURONS])
def test_nir_takes_a_neuron_or_names_it(name):
    with torch.no_grad():
        model = Tiny(name, (2, 8, 8), 2, imp=False).eval()
    x = torch.ones(2, 1, 2, 8, 8)
    try:
        assert "sn" in to_nir.nir_graph(model, x).nodes
    except UserError as error:
        assert name not in ("if", "lif", "leaky", "plif")
        assert re.search(f"NIR has only .*sn \\('{name}'\\) is not one", str(error))


@pytest.mark.parametrize(("change", "said"), [(lambda x: x.mul_(2), "mul"), (torch.relu, "relu"), (torch.clone, "")])
def test_nir_takes_what_does_nothing_and_names_what_changes_a_tensor(change, said):
    class Changed(Tiny):
        def forward(self, x):
            x = self.drop(x)
            return super().forward(change(x))

    model, x = Changed("if", (2, 8, 8), 2), torch.ones(2, 1, 2, 8, 8)
    model.drop = torch.nn.Dropout(0.5)
    with pytest.raises(UserError, match=f"NIR has no {said}, which this Changed") if said else nullcontext():
        assert to_nir.nir_graph(model, x)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["model.norm=tebn"], r"depends on time step or input, as bn1 \(TEBN\)"),
        (["model.norm=tebn_gesture"], r"depends on time step or input, as bn1 \(GestureTEBN\)"),
        (["model.norm=tab"], r"bn1 \(TAB\) is not a batch norm"),
        (["model=plif_net_dvs"], "NIR has no max_pool2d, which this PLIFNet computes"),
    ],
)
def test_what_nir_cannot_say_is_refused(words, sentence, tmp_path):
    run = untrained(*EVENTS, "neuron=lif", *words, shape=(2, 32, 32))
    with pytest.raises(UserError, match=sentence):
        nir_of(run, tmp_path / "out")


# ---------------------------------------------------------------- the folder


def test_an_output_appears_whole_or_not_at_all(finished, tmp_path, monkeypatch, capsys):
    def broken(run, folder):
        (folder / "half").write_text("half")
        raise UserError("NIR has no such thing")

    monkeypatch.setitem(EXPORTS, "nir", broken)
    assert main([str(finished), "--to", "nir", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "export.py: NIR has no such thing\n" and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="already exists; remove it, or choose another folder with --output"):
        export(finished, "safetensors", output=tmp_path)
    with pytest.raises(UserError, match="cannot write .*result.json/x: .*; choose another folder with --output"):
        export(finished, "safetensors", output=finished / "result.json" / "x")


def test_a_format_from_outside(finished, tmp_path, monkeypatch):
    def write(run, folder):
        """the number of classes"""
        (folder / "classes").write_text(str(run.num_classes))
        return "read it"

    assert sorted(EXPORTS) == ["nir", "onnx", "safetensors", "torch_export"]
    monkeypatch.setitem(EXPORTS, "classes", write)
    monkeypatch.setitem(EXPORTS._owners, "classes", "tests")
    assert EXPORTS["classes"].__doc__ == "the number of classes"
    folder = export(finished, "classes", output=tmp_path / "out")
    assert (folder / "classes").read_text() == "10" and "read it" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("place", "to", "weights", "sentence"),
    [
        (".", "onx", "last", "--to onx is not a format; choose one of: nir, onnx, safetensors, torch_export"),
        (".", "safetensors", "first", "weights=first must be one of: last, best"),
        ("export", "safetensors", "last", "export is not a run"),
        (".", "onnx", "last", r"--to onnx needs onnxruntime: pip install 'snn_repro\[export\]'"),
        (".", "nir", "last", r"--to nir needs nir: pip install 'snn_repro\[export\]'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(place, to, weights, sentence, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(to_nir, "nir", None)
    with pytest.raises(UserError, match=sentence):
        export(finished / place, to, weights, tmp_path / "no")
    shutil.copy(finished / "checkpoint_last.pt", tmp_path)
    with pytest.raises(UserError, match="is not finished: it has no result.json"):
        export(tmp_path, "safetensors")
