"""What a run logs, read back from W&B's own file; a server that is not there costs time, never a run; no key is left behind."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
from scripts_of_ours import script

from snn_repro.config import config_hash, load_config, to_dict
from snn_repro.errors import UserError
from snn_repro.runs.loggers import group_of
from snn_repro.runs.loggers import wandb as ours
from snn_repro.runs.loggers.wandb import GROWTH, Log, checked_mode
from snn_repro.train import run

FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"
SHORT = ["recipe.epochs=2", "debug.max_steps=3", "debug.max_eval_batches=1"]


def inspect(folder, *options) -> str:
    """W&B's reader on the one run below `folder`."""
    (file,) = folder.rglob("run-*.wandb")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", str(file), "--json", *options],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """One offline run of a row's shape: its configuration, result, folder, and W&B's records by type."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    config = load_config(
        ["neuron=if_imp", "loss=tet_s", *SHORT, "seed=3", "paper_row=table1_cifar10_tet", "name=table1_cifar10_tet",
         "logger.tags=[mine]", f"hydra.run.dir={folder}"]
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("WANDB_MODE", raising=False)
        environment.setenv("WANDB_API_KEY", FAKE_KEY)
        result = run(config)
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    kinds = ("run", "history", "metric", "exit")
    return config, result, folder, {kind: [r[kind] for r in records if kind in r] for kind in kinds}


def offline_runs(folder) -> list:
    return sorted((folder / "wandb").glob("offline-run-*"))


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_name_group_tags_configuration_every_epoch_and_the_result(logged):
    """Accuracy against time step has an axis that runs share: after parts of the epochs, and the final one."""
    config, result, folder, records = logged
    summary = json.loads(inspect(folder, "--summary"))
    assert summary["name"] == f"{group_of(config, folder)}/seed3" and summary["run_id"] == f"{config_hash(config)}-3"
    assert set(summary["tags"]) == {"table1", "digits", "small", "if_imp", "tet_s", "mine"}
    assert records["run"][0]["run_group"] == group_of(config, folder) and records["run"][0]["job_type"] == "train"
    assert summary["config"] == to_dict(config) and records["exit"][0].get("exit_code", 0) == 0
    history, lines = [h["item"] for h in records["history"]], metrics(folder)
    for line, item in zip(lines, history, strict=False):
        for name in ("epoch", "acc", "loss", "train_loss", "val_acc", "lr"):
            assert item[name] == line[name]
        assert [item[f"acc_step_t{t}"] for t in range(1, 5)] == line["acc_step"]
        assert item["firing_rate/sn1"] == line["firing_rates"]["sn1"]
    final = {k: [item[k] for item in history[len(lines) :]] for k in history[-1] if "/" in k}
    assert final == {
        "final/time_step": [1, 2, 3, 4], "final/acc_step": result.acc_step, "final/acc_cum": result.acc_cum,
        "time_steps/acc_step_25": lines[0]["acc_step"], "time_steps/acc_step_50": lines[0]["acc_step"],
        "time_steps/acc_step_75": lines[1]["acc_step"],
    }  # fmt: skip
    axes = {r.get("name") or r["glob_name"]: r["step_metric"] for r in records["metric"] if "step_metric" in r}
    assert axes["time_steps/*"] == axes["final/acc_step"] == "final/time_step"
    shown = summary["summary"]
    assert shown["acc_last"] == result.acc_last and shown["loss"] == lines[-1]["loss"]
    (place,) = offline_runs(folder)
    assert not (place / "files" / "media").exists()  # no table that is uploaded beside
    assert holding_the_key(folder) == []


def holding_the_key(folder) -> list:
    return [p for p in folder.rglob("*") if p.is_file() and FAKE_KEY.encode() in p.read_bytes()]


@pytest.mark.slow
def test_no_server_means_offline_and_the_key_is_nowhere(tmp_path):
    """A dead address: the run says so in one line, goes on offline, and stays well under a minute."""
    folder = tmp_path / "run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {
        "WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "5",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "snn_repro.train", "logger.mode=online", *SHORT, f"hydra.run.dir={folder}"],
        capture_output=True, text=True, timeout=150, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "W&B could not be reached" in line]
    assert len(said) == 1 and "logging offline instead" in said[0]
    assert list((folder / "wandb").glob("offline-run-*")) and (folder / "result.json").exists()
    assert holding_the_key(folder) == [] and FAKE_KEY not in done.stdout + done.stderr


# ---------------------------------------------------------------- nothing that W&B does ends or delays a run


def steps(folder) -> list:
    """(step, epoch) of every epoch that W&B has, in order."""
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    items = [r["history"]["item"] for r in records if "history" in r]
    return [(item["_step"], item["epoch"]) for item in items if "train_loss" in item]


def cores() -> set[int]:
    """The process ids of W&B's own processes."""
    found = {int(p) for file in Path("/proc/self/task").glob("*/children") for p in file.read_text().split()}
    return {p for p in found if "wandb-core" in Path(f"/proc/{p}/cmdline").read_text()}


def test_a_hanging_wandb_costs_one_warning(quick, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ours, "FINISH_SECONDS", 2)
    log, before = Log._log, cores()

    def then(tracker, line):
        log(tracker, line)
        if line["epoch"] == 1:
            os.kill(*cores() - before, signal.SIGSTOP)

    monkeypatch.setattr(Log, "_log", then)
    result = run(quick("logger.mode=offline", *SHORT))
    (said,) = [r.getMessage() for r in caplog.records if r.name == "snn_repro" and "warning" in r.getMessage()]
    assert "wandb stopped logging this run" in said and "metrics.jsonl has every epoch" in said
    assert result.epochs == 2 and len(metrics(tmp_path / "run")) == 2


@pytest.fixture
def fake(monkeypatch):
    """A wandb that keeps the steps that it is told in `logged`."""
    fake = types.SimpleNamespace(logged=[], id="x", dir="x", starting_step=0, summary={})
    for name in ("init", "finish", "define_metric", "Settings", "teardown"):
        setattr(fake, name, lambda *_, **__: fake)
    fake.log = lambda *_, step, **__: fake.logged.append(step)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


# ---------------------------------------------------------------- a resume

LINES = [dict(epoch=n, train_loss=1 / n, acc_step=[0.1, 0.1 * n], acc_cum=[0.1, 0.2]) for n in range(1, 6)]


def resumed(config, folder) -> None:
    """A run of five epochs that goes on after the third."""
    log = Log(config, folder)
    log.start(LINES[:3])
    for line in LINES[3:]:
        log.epoch(line)
    log.finish({"acc_last": 0.5, "acc_step": [0.1, 0.5], "acc_cum": [0.1, 0.2]})


def test_a_resumed_offline_run_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    config = load_config([])
    before = tmp_path / "wandb" / f"offline-run-20260101_000000-{config_hash(config)}-0"
    before.mkdir(parents=True)
    resumed(config, tmp_path)
    (after,) = offline_runs(tmp_path)
    assert after != before and after.name.endswith(f"-{config_hash(config)}-0")
    assert steps(tmp_path) == [(n, n) for n in range(1, 6)]
    assert json.loads(inspect(tmp_path, "--summary"))["summary"]["acc_last"] == 0.5


def test_a_run_that_goes_on_tells_a_server_what_it_lacks(tmp_path, monkeypatch, fake):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setattr(ours, "has_key", lambda: True)
    fake.starting_step = 3  # it has two of three epochs
    resumed(load_config(["logger.mode=online"]), tmp_path)
    assert fake.logged == [3, 4, 5, 6, 7]  # and accuracy against time step


# ---------------------------------------------------------------- WANDB_*


@pytest.mark.parametrize(
    ("asked", "mode"), [("disabled", "disabled"), ("offline", "offline"), ("dryrun", "offline"), ("online", "online")]
)
def test_the_environment_may_ask_for_less(monkeypatch, asked, mode):
    monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.setattr(ours, "has_key", lambda: True)
    assert checked_mode("online") == mode and checked_mode("disabled") == "disabled"
    assert checked_mode("offline") == ("disabled" if asked == "disabled" else "offline")
    monkeypatch.setattr(ours, "has_key", lambda: False)
    with pytest.raises(UserError, match="logger.mode=online needs a W&B key") if mode == "online" else nullcontext():
        checked_mode("online")


@pytest.mark.slow
def test_a_run_of_wandb_agent_keeps_the_agents_id(tmp_path, monkeypatch):
    (tmp_path / "parameters.yaml").write_text("wandb_version: 1\nrecipe.lr:\n  value: 0.05\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agents0wn")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "parameters.yaml"))
    resumed(load_config(["logger.mode=offline", "recipe.lr=0.05"]), tmp_path / "run")
    summary = json.loads(inspect(tmp_path / "run", "--summary"))
    assert summary["run_id"] == "agents0wn" and summary["config"]["recipe"]["lr"] == 0.05


# ---------------------------------------------------------------- scripts


def copied(folder, target, *without):
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("wandb", *without))


@pytest.mark.slow
def test_import_makes_the_run_that_was_logged_live(logged, tmp_path, capsys):
    main, (*_, folder, _), runs = script("wandb_import").main, logged, tmp_path / "runs"
    copied(folder, runs / "row" / "seed3")
    copied(folder, runs / "row" / "unfinished", "result.json")
    (copied(folder, runs / "cut") / "metrics.jsonl").write_text('{"epoch": 1, "ac')
    with open(copied(folder, runs / "used") / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([str(runs)]) == 0
    out, err = capsys.readouterr()
    assert "2 of 4 runs imported" in out and "used: skipped, in use by a run" in err
    assert [line.split(":")[0] for line in err.splitlines()] == [str(runs / n) for n in ("cut", "used")]
    first, again = (json.loads(inspect(place, "--summary")) for place in (folder, runs / "row" / "seed3"))
    for key in ("name", "run_id", "tags", "config"):
        assert first[key] == again[key]
    clocks = ("_runtime", "_timestamp", "_wandb")
    shown = [{k: v for k, v in one["summary"].items() if not k.startswith(clocks)} for one in (first, again)]
    assert shown[0] == shown[1]
    for name in ("seed3", "unfinished"):
        assert steps(runs / "row" / name) == [(1, 1), (2, 2)]
    assert json.loads(inspect(runs / "row" / "unfinished", "--summary"))["exit_code"] == 1


def test_import_says_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "row").mkdir()
    (tmp_path / "row" / "metrics.jsonl").touch()
    for folder, mode, sentence in (("none", "", "none does not exist"), ("row", "disabled", "WANDB_MODE=disabled")):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert script("wandb_import").main([str(tmp_path / folder)]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and sentence in err


def test_the_saved_view(capsys):
    """The view is built without a server and shows what runs log."""
    pytest.importorskip("wandb_workspaces", reason="pip install 'snn_repro[dashboard]'")
    assert script("wandb_workspace").main(["--entity", "lab", "--table", "1", "--print"]) == 0
    sections = json.loads(capsys.readouterr().out)["spec"]["section"]["panelBankConfig"]["sections"]
    plots = [panel["config"] for section in sections for panel in section["panels"]]
    assert [plots[0][k] for k in ("xAxis", "metrics")] == ["final/time_step", ["final/acc_step"]]
    assert {p["groupBy"] for p in plots if p.get("aggregate")} == {"group"}  # rows, never data sets
    markdown = next(p["value"] for p in plots if p.get("value"))
    assert "| table1_cifar10_sdt | 94.56 |" in markdown and "table2" not in markdown
    assert {m for p in plots for m in p.get("metrics") or []} == {
        "final/acc_step", "final/acc_cum", *(f"time_steps/acc_step_{percent}" for percent in GROWTH), "acc_last",
        "acc_best_test", "acc", "val_acc", "train_loss", "lr",
    }  # fmt: skip
