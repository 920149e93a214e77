"""`dry_run=true`: what it prints is what is built and counted; nothing is left behind."""

import sys
import types

import pytest

from snn_repro import cli
from snn_repro import dry_run as module
from snn_repro.config import ConfigError, config_hash, load_config
from snn_repro.data import build_data
from snn_repro.dry_run import dry_run
from snn_repro.errors import UserError
from snn_repro.models import count_parameters
from snn_repro.neurons import Neuron
from snn_repro.runs import gpus
from snn_repro.train import build_network, run

SMALL = ["dataset=digits", "dataset.train_subset=96", "recipe.batch_size=32", "timesteps=3", "debug.max_eval_batches=1"]


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.1)


def command_line(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["snn-train", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return left.value.code, out, err


def test_its_numbers_are_those_of_the_network():
    config = load_config([*SMALL, "neuron=if_imp"])
    report, data = dry_run(config), build_data(config)
    model = build_network(config, 10, data.input_shape)
    assert (report.total("weights"), report.total("imp")) == count_parameters(model)
    assert report.total("neuron_steps") == 3 * report.total("imp")  # IMP is one value a neuron
    assert {n for n, m in model.named_modules() if isinstance(m, Neuron)} == {
        x.name for x in report.layers if x.neuron_steps
    }
    by_name = {layer.name: layer for layer in report.layers}
    conv = model.conv2
    _, c, h, w = by_name["conv2"].shape
    assert by_name["conv2"].macs == 3 * h * w * conv.weight.numel() and c == conv.out_channels
    assert by_name["fc"].shape == (3, 10) and by_name["fc"].macs == 3 * model.fc.weight.numel()
    assert 0 < by_name["sn1"].rate < 1
    assert 0 < by_name["conv2"].synops < by_name["conv2"].macs
    assert report.steps_per_epoch == len(data.train)
    assert report.epoch_seconds >= report.steps_per_epoch * report.step_seconds > 0
    assert report.run_seconds >= config.recipe.epochs * report.epoch_seconds


def test_the_command_line_prints_it_and_leaves_no_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command_line(monkeypatch, capsys, *SMALL, "dry_run=true", "name=a_b")
    assert code == 0
    with pytest.raises(ConfigError, match="dry_run=true does not train"):
        run(config := load_config([*SMALL, "dry_run=true"]))
    assert config_hash(config) == config_hash(load_config(SMALL))
    assert out.rstrip().endswith(f"python -m snn_repro.train {' '.join(SMALL)} name=a_b")
    assert "IMP" in out and "peak memory" in out
    assert not [*tmp_path.iterdir()]


def test_a_sweep_tells_its_hours_and_measures_seeds_once(monkeypatch, capsys, tmp_path):
    measured = []

    def fake(config):
        measured.append((config.neuron.imp, config.seed))
        if config.neuron.imp:
            raise UserError("too large")
        return types.SimpleNamespace(run_seconds=7200.0, device="cuda")

    monkeypatch.setattr(module, "dry_run", fake)
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1"])
    words = ["-m", *SMALL, f"hydra.sweep.dir={tmp_path / 'runs'}", "neuron=if,if_imp", "seed=3,4", "dry_run=true"]
    code, out, _ = command_line(monkeypatch, capsys, *words)
    assert code == 0 and measured == [(False, 3), (True, 3)]
    known, unknown, total = out.splitlines()
    assert known.endswith(": 2 x 2.0 h on cuda") and "seed" not in known
    assert unknown.endswith(": 2 x unknown: too large")
    assert total == "4 of 4 runs are left: 4.0 h run one after another, and 2 runs unknown; no file was written"
    assert not [*tmp_path.iterdir()]
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")  # what launcher=gpus needs
    last = command_line(monkeypatch, capsys, *words, "hydra/launcher=gpus")[1].splitlines()[-1]
    assert last.startswith("4 of 4 runs are left: 4.0 h run one after another, about 2.0 h on 2 GPUs, and")


def test_what_has_no_dry_run_is_told(monkeypatch, capsys, tmp_path):
    code, _, err = command_line(monkeypatch, capsys, "-m", "seed=0,1", "dry_run=true", "hydra/sweeper=list")
    assert code == 2 and "dry_run=true measures configurations known in advance" in err
    monkeypatch.chdir(tmp_path)  # and what a run would refuse is refused
    code, _, err = command_line(monkeypatch, capsys, "dataset=cifar10", "dry_run=true", f"data_dir={tmp_path}")
    assert code == 2 and err.startswith("snn-train: cifar10 was not found")
    assert not [*tmp_path.iterdir()]


def test_a_batch_that_fits_no_memory_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 2.0**20)
    with pytest.raises(UserError, match="recipe.batch_size=32 stores .* GiB .*recipe.accumulate=2"):
        dry_run(load_config(SMALL))


@pytest.mark.parametrize("shape, wanted", [
    ((3, 2, 8, 4, 4), (3, 8, 4, 4)), ((6, 8, 4, 4), (3, 8, 4, 4)), ((2, 8, 4, 4), (1, 8, 4, 4)), ((1, 2, 10), (1, 10)),
])  # fmt: skip
def test_the_shape_of_a_sample(shape, wanted):
    assert module._of_a_sample(shape, 2, 3) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg128", "plif_net_dvs", "spikformer_dvs"])
def test_frames_and_other_networks(monkeypatch, model):
    monkeypatch.setattr(module, "FEWEST", 1)
    words = ["dataset=digits_dvs", f"model={model}", "neuron=lif", "loss=tet", "timesteps=2", "recipe.batch_size=2"]
    few = ["recipe.eval_batch_size=2", "debug.max_eval_batches=1", "dataset.train_subset=20", "dataset.validation=0"]
    report = dry_run(load_config([*words, *few]))
    assert report.total("imp") == 0 < report.total("macs")
