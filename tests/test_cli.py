"""The command line: what is typed, what is printed, and what a shell or a notebook sees of it."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from snn_repro import cli, console, distributed, errors, train
from snn_repro.config import config_hash, load_config, to_dict
from snn_repro.errors import UserError
from snn_repro.runs import sweeps

ROOT = Path(__file__).parents[1]
SHORT = ["logger.mode=disabled", "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1"]


@pytest.fixture
def refused(typed):
    """refused("seed=x") returns the one sentence with which the command refuses that."""

    def run(*words: str) -> str:
        code, out, err = typed(*words)
        assert code == 2 and out == "" and err.startswith("snn-train: ") and err.count("\n") == 1, err
        return err.strip()

    return run


@pytest.mark.parametrize("flags", [["--info", "config"], ["--cfg", "job", "--resolve", "-p", "recipe"]])
def test_looking_is_checked_as_a_run_is(flags, refused, monkeypatch):
    monkeypatch.setattr(cli, "call_hydra", lambda _: pytest.fail("Hydra was asked"))
    assert "recipe.momentum=0.8 has no effect" in refused(*flags, "recipe.momentum=0.8")


@pytest.mark.parametrize("flags", ["--cfg foo", "-m --cfg job", "--resolve", "-p recipe", "-sc", "-sc install=foo"])
def test_flags_that_do_not_exist_or_go_together_are_one_sentence(flags, refused):
    assert refused(*flags.split())


def test_a_package_that_does_not_exist_exits_with_2(typed):
    assert typed("--cfg", "job", "-p", "nosuch") == (2, "", "package 'nosuch' not found in config\n")


def test_version_is_ours(typed):
    code, out, _ = typed("--version")
    assert code == 0 and re.fullmatch(r"snn_repro \d[\w.]*( \(commit \w+\))?, torch \d\S+, Python 3\S+\n", out)


def test_shells_get_what_hydra_has(monkeypatch, capsys):
    """bash and fish have scripts of their own; zsh takes bash's, by its bashcompinit; loggers are a choice like all others."""

    def said(words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["snn-train"])
        assert cli._main(["-sc", words]) == 0
        return capsys.readouterr().out

    assert "hydra_bash_completion" in said("install=bash") == said("install=zsh")
    assert "complete -c snn-train -x -a '(hydra_fish_completion)'" in said("install=fish")
    for typed, found in (("loss=st", ["loss=sta", "loss=strong2weak"]), ("logger=te", ["logger=tensorboard"])):
        monkeypatch.setenv("COMP_LINE", f"snn-train {typed}")
        assert said("query=fish").split() == found


@pytest.mark.slow
def test_run_prints_in_a_notebook(tmp_path):
    """Nobody has configured logging: each line appears once, in the second call too. Nothing is imported that is not used."""
    code = f"""
import logging
import sys
from snn_repro.config import load_config
from snn_repro.train import run
for seed in (0, 1):
    run(load_config([*{SHORT!r}, f"seed={{seed}}"]), f"{tmp_path}/{{seed}}")
heavy = {{"sklearn", "pandas", "matplotlib", "timm", "tonic", "wandb"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not logging.getLogger("snn_repro").handlers and not logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch   1/1") for line in lines) == 2 and len(lines) == len(set(lines)) == 6


def test_a_warning_is_one_line_of_one_process(monkeypatch):
    where = (UserWarning, "/some/where.py", 7)
    assert console.one_line("two\n  lines", *where) == "warning: two lines\n"
    monkeypatch.setattr(distributed, "world", lambda: SimpleNamespace(rank=1, size=2))
    assert console.one_line("of another process", *where) == ""


def test_folders_that_are_none_or_of_the_other_kind_are_refused(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert "hydra.sweep.dir= names no folder" in refused("-m", "seed=0,1", "hydra.sweep.dir=")
    for more in ([], ["hydra/sweeper=other"]):
        said = refused("-m", "seed=0,1", f"hydra.run.dir={tmp_path}/x", *more)
        assert "in a sweep use hydra.sweep.dir=DIR" in said
    (tmp_path / "file").write_text("")
    assert "file" in refused(*SHORT, f"hydra.run.dir={tmp_path}/file/run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("acc_val, returned", [(0.0, 0.0), (None, 0.9)])
def test_a_search_is_given_the_validation_accuracy(tmp_path, monkeypatch, acc_val, returned):
    """Not the test accuracy of the epoch that validation chose; without a validation part the last test accuracy."""
    node = OmegaConf.create(to_dict(load_config()))
    result = SimpleNamespace(acc_val=acc_val, acc_valsel=0.8, acc_last=0.9)
    job = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(tmp_path)), overrides=SimpleNamespace(task=[]),
        sweeper=SimpleNamespace(_target_="x.OptunaSweeper"), launcher=SimpleNamespace(_target_="x.BasicLauncher"),
    )  # fmt: skip
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: job))
    monkeypatch.setattr(train, "run", lambda config, overrides: result)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert cli.task(node) == returned


@pytest.mark.parametrize("sweeper, validation, says", [("Optuna", 0.0, 1), ("Optuna", 0.1, 0), ("List", 0.0, 0)])
def test_a_search_without_a_validation_part_says_so(sweeper, validation, says, capsys, monkeypatch):
    node = SimpleNamespace(
        hydra=SimpleNamespace(sweeper=SimpleNamespace(_target_=f"hydra_plugins.x.{sweeper}Sweeper")),
        dataset=SimpleNamespace(validation=validation),
    )
    monkeypatch.setattr(cli.conf, "multirun_config", lambda overrides: contextlib.nullcontext((node, None)))
    monkeypatch.setattr(cli, "call_hydra", lambda argv: 0)
    assert cli._main(["-m", "hydra/sweeper=x"]) == 0
    err = capsys.readouterr().err
    assert err.count("this search selects on the test set, because dataset.validation=0") == says == err.count("\n")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGUSR2])
def test_a_stopped_sweep_reports_as_any_other(tmp_path, monkeypatch, capsys, sig):
    before = signal.getsignal(sig)

    def launch(overrides, jobs, task, flag):
        folder, config = jobs[0].folder, jobs[0].config
        folder.mkdir(parents=True)
        done = {"state": "done", "error": None, "config_hash": config_hash(config)}
        (folder / "status.json").write_text(json.dumps(done))
        signal.raise_signal(sig)

    monkeypatch.setattr(sweeps, "launch", launch)
    words = [*SHORT, "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"]
    assert sweeps.run_sweep(words, ["-m", "seed=0,1,2"], None) == 128 + sig
    out, err = capsys.readouterr()
    assert out == "sweep: 1 of 3 runs done\n" and sig in errors.STOP_SIGNALS
    lines = err.splitlines()
    assert lines[:2] == [f"snn-train: the sweep was stopped by {sig.name}", "2 of 3 runs did not finish:"]
    assert lines[2].startswith("  not started: ") and lines[2].endswith("seed1")
    assert lines[-1] == "  python -m snn_repro.train -m seed=0,1,2"
    assert signal.getsignal(sig) == before


JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.mark.slow
@pytest.mark.parametrize("sig, more", [(signal.SIGTERM, ()), (signal.SIGINT, JOBLIB)])
def test_a_signal_stops_a_sweep_in_the_middle_of_runs_and_saves_them(tmp_path, sig, more):
    if more:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'snn_repro[parallel]'")
    words = [
        "logger.mode=disabled",
        "recipe.epochs=3000",
        "seed=0,1,2",
        "threads=1",
        f"hydra.sweep.dir={tmp_path}/runs",
    ]
    command = [sys.executable, "-m", "snn_repro.train", "-m", *words, *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    under_way = 2 if more else 1
    while len(list((tmp_path / "runs").rglob("metrics.jsonl"))) < under_way:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sig)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 128 + sig and out.splitlines()[-1] == "sweep: 0 of 3 runs done"
    assert f"snn-train: the sweep was stopped by {sig.name}\n3 of 3 runs did not finish:\n" in err
    assert err.count("  interrupted: ") == under_way and err.count("  not started: ") == 3 - under_way
    assert "Traceback" not in err and len(list((tmp_path / "runs").rglob("checkpoint_last.pt"))) == under_way


def test_a_sweep_looks_for_all_its_data_first(tmp_path, typed, monkeypatch):
    """Each folder once; what is missing is listed, and no run starts, not even those whose data are there."""
    seen, lacks = [], sweeps._lacks
    monkeypatch.setattr(sweeps, "_lacks", lambda c: seen.append(c.dataset.name) or lacks(c))
    places = f"data_dir={tmp_path / 'none'}", f"hydra.sweep.dir={tmp_path / 'runs'}"
    code, _, err = typed("-m", *SHORT, "dataset=digits,cifar10,cifar10_dvs", "seed=0,1", *places)
    assert code == 2 and not (tmp_path / "runs").exists() and seen == ["digits", "cifar10", "cifar10_dvs"]
    head, *lines = err.splitlines()
    assert head == "snn-train: 4 of 6 runs lack their data or folder, so none was started:"
    assert len(lines) == 2 and all(" and 1 more: " in line for line in lines)
    assert "cifar10 was not found in data_dir=" in lines[0] and "cache_dir is not set" in lines[1]


def test_initial_weights_are_data_and_a_cluster_may_have_what_this_machine_lacks(tmp_path, capsys):
    jobs = sweeps.plan([*SHORT, "model.weights=nothing.pt", "seed=0,1", f"hydra.sweep.dir={tmp_path}"])
    with pytest.raises(UserError, match="model.weights=nothing.pt was not found"):
        sweeps.check_data(jobs)
    sweeps.check_data(jobs, elsewhere=True)
    assert "2 runs would lack their data or folder on this machine" in capsys.readouterr().err
