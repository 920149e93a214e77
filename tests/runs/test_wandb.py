"""What a run logs, read back from W&B's own file; a server that is not there costs time, never a run; no key is left behind."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from scripts_of_ours import script

from snn_repro.config import config_hash, load_config, to_dict
from snn_repro.errors import UserError
from snn_repro.runs.loggers import Loggers
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
    assert summary["name"] == "table1_cifar10_tet/seed3" and summary["run_id"] == f"{config_hash(config)}-3"
    assert set(summary["tags"]) == {"table1", "digits", "small", "if_imp", "tet_s", "mine"}
    assert records["run"][0]["run_group"] == "table1_cifar10_tet" and records["run"][0]["job_type"] == "train"
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


def holding_the_key(folder) -> list:
    return [p for p in folder.rglob("*") if p.is_file() and FAKE_KEY.encode() in p.read_bytes()]


def test_a_key_in_the_environment_reaches_no_file(logged):
    _, _, folder, _ = logged
    assert len([p for p in folder.rglob("*") if p.is_file()]) > 10
    assert holding_the_key(folder) == []


@pytest.mark.slow
def test_no_server_means_offline_and_the_key_is_nowhere(tmp_path):
    """A dead address: the run says so in one line, goes on offline, and stays well under a minute."""
    folder = tmp_path / "run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment["WANDB_INIT_TIMEOUT"] = "5"  # 20 unless set
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "snn_repro.train", "logger.mode=online", *SHORT, f"hydra.run.dir={folder}"],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "W&B could not be reached" in line]
    assert len(said) == 1 and "logging offline instead" in said[0]
    assert seconds < 150, f"{seconds:.0f} s: it hangs"  # 12 s on an idle machine
    assert list((folder / "wandb").glob("offline-run-*")) and (folder / "result.json").exists()
    assert holding_the_key(folder) == [] and FAKE_KEY not in done.stdout + done.stderr


# ---------------------------------------------------------------- nothing that W&B does ends or delays a run


def steps(folder) -> list:
    """(step, epoch) of every epoch that W&B has, in order."""
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    items = [r["history"]["item"] for r in records if "history" in r]
    return [(item["_step"], item["epoch"]) for item in items if "train_loss" in item]


def cores() -> list[int]:
    """The process ids of W&B's own process."""
    found = [int(p) for file in Path("/proc/self/task").glob("*/children") for p in file.read_text().split()]
    return [p for p in found if "wandb-core" in Path(f"/proc/{p}/cmdline").read_text()]


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "snn_repro" and "warning" in r.getMessage()]


@pytest.mark.parametrize("number", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_or_hanging_wandb_costs_one_warning(quick, tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(ours, "FINISH_SECONDS", 2)
    log, before = Log._log, cores()

    def then(tracker, line):
        log(tracker, line)
        if line["epoch"] == 1:
            os.kill(*{*cores()} - {*before}, number)

    monkeypatch.setattr(Log, "_log", then)
    result = run(quick("logger.mode=offline", *SHORT))
    (said,) = warnings(caplog)
    assert "wandb gets nothing more of this run" in said and "metrics.jsonl has every epoch" in said
    assert result.epochs == 2 and len(metrics(tmp_path / "run")) == 2
    caplog.clear()  # the next run of a sweep has a W&B of its own
    monkeypatch.undo()
    run(quick("logger.mode=offline", *SHORT, f"hydra.run.dir={tmp_path / 'next'}"))
    assert not warnings(caplog) and steps(tmp_path / "next") == [(1, 1), (2, 2)]


@pytest.mark.slow
def test_a_process_whose_wandb_hangs_ends(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from snn_repro.config import load_config\n"
        "from snn_repro.runs.loggers import wandb as ours\n"
        f"log = ours.Log(load_config([]), Path({str(tmp_path)!r}))\n"
        "log.start([])\n"
        "for file in Path('/proc/self/task').glob('*/children'):\n"
        "    for pid in file.read_text().split():\n"
        "        os.kill(int(pid), signal.SIGSTOP); print(pid)\n"
        "ours.STOP_SECONDS = 1\n"
        "try:\n"
        "    log.finish(None)\n"
        "except TimeoutError as error:\n"
        "    print(error)\n"
    )
    with open(tmp_path / "said", "w+") as file:  # no pipe, which the stopped process would hold open
        done = subprocess.run([sys.executable, "-c", code], stdout=file, stderr=subprocess.DEVNULL, timeout=100)
    *pids, said = (tmp_path / "said").read_text().splitlines()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    assert said == "it was not done after 1 s" and done.returncode == 0


@pytest.fixture
def fake(monkeypatch):
    """A wandb that raises in the call `failing` and keeps the steps that it is told in `logged`."""
    fake = types.SimpleNamespace(failing="", logged=[], id="x", dir="x", starting_step=0, summary={})

    def call(name):
        def called(*_, **more):
            if name == fake.failing:
                raise SystemExit(f"broken {name}")
            fake.logged += [more["step"]] if name == "log" else []
            return fake

        return called

    for name in ("init", "log", "finish", "define_metric", "Settings", "teardown"):
        setattr(fake, name, call(name))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize("failing", ["import", "init", "log", "finish"])
def test_any_exception_of_wandb_is_one_warning(quick, tmp_path, monkeypatch, fake, failing):
    fake.failing = failing
    if failing == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    loggers = Loggers(quick("logger.mode=offline"), tmp_path, said.append)
    loggers.start([])
    loggers.epoch({"epoch": 1, "acc_step": [0.5]})
    loggers.finish({"acc_step": [0.5], "acc_cum": [0.5]})
    (line,) = said
    assert ("ModuleNotFoundError" if failing == "import" else f"SystemExit: broken {failing}") in line


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
    ("asked", "mode"),
    [("disabled", "disabled"), ("offline", "offline"), ("dryrun", "offline"), ("online", "online"), ("now", "online")],
)
def test_the_environment_may_ask_for_less(monkeypatch, asked, mode):
    monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.setattr(ours, "has_key", lambda: True)
    said = []
    assert checked_mode("online", said.append) == mode and checked_mode("disabled", said.append) == "disabled"
    assert checked_mode("offline", said.append) == ("disabled" if asked == "disabled" else "offline")
    assert [line for line in said if "WANDB_MODE=now is none of online, offline" not in line] == []
    assert bool(said) == (asked == "now")
    monkeypatch.setattr(ours, "has_key", lambda: False)
    if mode == "online":
        with pytest.raises(UserError, match="logger.mode=online needs a W&B key"):
            checked_mode("online", said.append)


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
    broken = {"cut": ("metrics.jsonl", '{"epoch": 1, "ac'), "no": ("config.yaml", "[]"), "bad": ("result.json", "{")}
    for name, (file, text) in broken.items():
        (copied(folder, runs / name) / file).write_text(text)
    with open(copied(folder, runs / "used") / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([str(runs)]) == 0
    out, err = capsys.readouterr()
    assert "2 of 6 runs imported" in out and "used: skipped, in use by a run" in err
    assert [line.split(":")[0] for line in err.splitlines()] == [str(runs / n) for n in sorted([*broken, "used"])]
    first, again = (json.loads(inspect(place, "--summary")) for place in (folder, runs / "row" / "seed3"))
    for key in ("name", "run_id", "tags", "config"):
        assert first[key] == again[key]
    clocks = ("_runtime", "_timestamp", "_wandb")
    shown = [{k: v for k, v in one["summary"].items() if not k.startswith(clocks)} for one in (first, again)]
    assert shown[0] == shown[1] and steps(runs / "row" / "seed3") == steps(runs / "row" / "unfinished") == [
        (1, 1),
        (2, 2),
    ]
    assert json.loads(inspect(runs / "row" / "unfinished", "--summary"))["exit_code"] == 1


def test_import_says_one_sentence(tmp_path, monkeypatch, logged, capsys):
    main, (*_, folder, _) = script("wandb_import").main, logged
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(ours, "has_key", lambda: False)
    for words, mode, sentence in (
        ([tmp_path / "none"], "", "none does not exist"),
        ([tmp_path / "empty"], "", "empty holds no run with an epoch"),
        ([folder], "disabled", "WANDB_MODE=disabled"),
        ([folder, "--mode", "online"], "online", "W&B key"),
    ):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert main([*map(str, words)]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and sentence in err


def test_the_sync_command_finds_every_run(tmp_path):
    """The command of the docs, in bash without globstar, on folders with and without changed keys."""
    (command,) = {line for line in Path("docs/sweeps.md").read_text().splitlines() if line.startswith("find ")}
    assert command in Path("README.md").read_text()
    names = ["row/seed0", "row/recipe.lr=0.1,name=a b/seed1", "mine"]
    runs = [f"runs/{name}/wandb/offline-run-20260101_000000-{i}" for i, name in enumerate(names)]
    for path in (*runs, "runs/row/seed0/wandb/run-20260101_000000-x", "runs/row/seed0/wandb/home/offline"):
        (tmp_path / path / "files").mkdir(parents=True)
    (tmp_path / "wandb").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> called\n')
    (tmp_path / "wandb").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0] == "sync" and sorted(called[1:]) == sorted(runs)


def test_the_saved_view(capsys):
    """The view is built without a server and shows what runs log."""
    pytest.importorskip("wandb_workspaces", reason="pip install 'snn_repro[dashboard]'")
    assert script("wandb_workspace").main(["--entity", "lab", "--table", "1", "--print"]) == 0
    view = json.loads(capsys.readouterr().out)
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Accuracy against time step", "Reproduced against paper", "Convergence"]
    plots = [p["config"] for panels in sections.values() for p in panels]
    over_epochs = next(p for p in plots if p.get("metricRegex"))
    assert over_epochs["xAxis"] == "epoch" and re.search(over_epochs["metricRegex"], "acc_step_t12")
    assert [plots[0][k] for k in ("xAxis", "metrics")] == ["final/time_step", ["final/acc_step"]]
    markdown = next(p["value"] for p in plots if p.get("value"))
    assert "| table1_cifar10_sdt | 94.56 |" in markdown and "table2" not in markdown
    assert {m for p in plots for m in p.get("metrics") or []} == {
        "final/acc_step", "final/acc_cum", *(f"time_steps/acc_step_{percent}" for percent in GROWTH), "acc_last",
        "acc_best_test", "acc", "val_acc", "train_loss", "lr",
    }  # fmt: skip


def test_a_workspace_without_login_or_that_the_server_refuses_is_one_sentence(monkeypatch, capsys):
    workspace = script("wandb_workspace")
    monkeypatch.setattr(workspace, "has_key", lambda: True)

    class View:
        def save(self):
            raise RuntimeError("no such\nentity")

    with pytest.raises(UserError, match=r"W&B did not save the view \(RuntimeError: no such entity\); check --entity"):
        workspace.save(View())
    pytest.importorskip("wandb_workspaces", reason="pip install 'snn_repro[dashboard]'")
    monkeypatch.setattr(workspace, "has_key", lambda: False)
    assert workspace.main(["--entity", "lab"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("wandb_workspace.py: saving the view needs a W&B key") and "--print" in err
