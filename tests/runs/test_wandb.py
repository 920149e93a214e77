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
from fake_wandb import Server

from snn_repro.config import config_hash, load_config, to_dict
from snn_repro.errors import UserError
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


def test_name_group_tags_and_configuration(logged):
    config, _, folder, records = logged
    summary = json.loads(inspect(folder, "--summary"))
    assert summary["name"] == "table1_cifar10_tet/seed3" and summary["run_id"] == f"{config_hash(config)}-3"
    assert set(summary["tags"]) == {"table1", "digits", "small", "if_imp", "tet_s", "mine"}
    assert records["run"][0]["run_group"] == "table1_cifar10_tet" and records["run"][0]["job_type"] == "train"
    assert summary["config"] == to_dict(config)
    assert records["exit"][0].get("exit_code", 0) == 0


def test_every_epoch_and_the_result(logged):
    """Accuracy against time step has an axis that runs share: after parts of the epochs, and the final one."""
    _, result, folder, records = logged
    history = [h["item"] for h in records["history"]]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
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
    summary = json.loads(inspect(folder, "--summary"))["summary"]
    assert summary["acc_last"] == result.acc_last and summary["loss"] == lines[-1]["loss"]
    (place,) = offline_runs(folder)
    assert not (place / "files" / "media").exists()  # no table that is uploaded beside


def holding_the_key(folder) -> list:
    return [p for p in folder.rglob("*") if p.is_file() and FAKE_KEY.encode() in p.read_bytes()]


def test_a_key_in_the_environment_reaches_no_file(logged):
    _, _, folder, _ = logged
    assert len([p for p in folder.rglob("*") if p.is_file()]) > 10
    assert holding_the_key(folder) == []


def test_online_without_a_key_is_one_sentence(quick, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("snn_repro.runs.loggers.wandb.has_key", lambda: False)
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UserError, match="logger.mode=online needs a W&B key"):
        run(quick("logger.mode=online"))


@pytest.mark.slow
def test_no_server_means_offline_and_the_key_is_nowhere(tmp_path):
    """A dead address: the run says so in one line, goes on offline, and stays well under a minute."""
    folder = tmp_path / "run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"WANDB_API_KEY": FAKE_KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment["WANDB_INIT_TIMEOUT"] = "5"  # 20 unless set
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "snn_repro.train", "logger.mode=online", "recipe.epochs=1", "debug.max_steps=3",
         "debug.max_eval_batches=1", f"hydra.run.dir={folder}"],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "W&B could not be reached" in line]
    assert len(said) == 1 and "logging offline instead" in said[0]
    assert seconds < 150, f"{seconds:.0f} s: it hangs"  # 12 s on an idle machine
    assert list((folder / "wandb").glob("offline-run-*")) and (folder / "result.json").exists()
    assert holding_the_key(folder) == []
    assert FAKE_KEY not in done.stdout + done.stderr


def test_the_saved_view():
    """The view is built without a server and shows what runs log."""
    pytest.importorskip("wandb_workspaces", reason="pip install 'snn_repro[dashboard]'")
    done = subprocess.run(
        [sys.executable, "scripts/wandb_workspace.py", "--entity", "lab", "--table", "1", "--print"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Accuracy against time step", "Reproduced against paper", "Convergence"]
    plots = [p["config"] for panels in sections.values() for p in panels]
    over_epochs = next(p for p in plots if p.get("metricRegex"))
    assert over_epochs["xAxis"] == "epoch" and re.search(over_epochs["metricRegex"], "acc_step_t12")
    assert not re.search(over_epochs["metricRegex"], "val_acc_step_t1")
    assert [plots[0][k] for k in ("xAxis", "metrics", "groupBy")] == [
        "final/time_step", ["final/acc_step"], "loss.value.name",
    ]  # fmt: skip
    markdown = next(p["value"] for p in plots if p.get("value"))
    assert "| table1_cifar10_sdt | 94.56 |" in markdown and "table2" not in markdown
    assert {m for p in plots for m in p.get("metrics") or []} == {
        "final/acc_step", "final/acc_cum", *(f"time_steps/acc_step_{percent}" for percent in GROWTH), "acc_last",
        "acc_best_test", "acc", "val_acc", "train_loss", "lr",
    }  # fmt: skip
    filters = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert [(f["key"]["name"], f["value"]) for f in filters] == [("tags", "table1")]


# ---------------------------------------------------------------- nothing that W&B does ends or delays a run


def offline_runs(folder) -> list:
    return sorted((folder / "wandb").glob("offline-run-*"))


def steps(folder) -> list:
    """(step, epoch) of every epoch that W&B has, in order."""
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    items = [r["history"]["item"] for r in records if "history" in r]
    return [(item["_step"], item["epoch"]) for item in items if "train_loss" in item]


def cores() -> list[int]:
    """The process ids of W&B's own process, zombies left out."""
    found = [int(p) for file in Path("/proc/self/task").glob("*/children") for p in file.read_text().split()]
    return [p for p in found if "wandb-core" in Path(f"/proc/{p}/cmdline").read_text()]


@pytest.fixture
def no_wandb_settings(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def after_first_epoch(monkeypatch):
    """after_first_epoch(act): call act(process of W&B) when the first epoch has been logged."""
    log = Log._log

    def install(act):
        def then(tracker, line):
            log(tracker, line)
            if line["epoch"] == 1:
                act(*cores())

        monkeypatch.setattr(Log, "_log", then)

    return install


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "W&B" in r.getMessage() or "WANDB" in r.getMessage()]


def test_home_need_not_be_there(quick, tmp_path, monkeypatch, no_wandb_settings, caplog):
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    run(quick("logger.mode=offline"))
    assert warnings(caplog) == []
    assert steps(tmp_path / "run") == [(1, 1), (2, 2)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_hanging_wandb_costs_one_warning(quick, tmp_path, monkeypatch, after_first_epoch, caplog, number):
    monkeypatch.setattr("snn_repro.runs.loggers.wandb.FINISH_SECONDS", 2)
    after_first_epoch(lambda core: os.kill(core, number))
    result = run(quick("logger.mode=offline", "recipe.epochs=4"))
    (said,) = warnings(caplog)
    assert "W&B gets nothing more of this run" in said and "wandb_import.py" in said
    assert result.epochs == 4 and len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    caplog.clear()  # the next run of a sweep has a W&B of its own
    monkeypatch.undo()
    run(quick("logger.mode=offline", f"hydra.run.dir={tmp_path / 'next'}"))
    assert warnings(caplog) == [] and steps(tmp_path / "next") == [(1, 1), (2, 2)] and cores() == []


@pytest.mark.parametrize("failing", ["import", "init", "log", "finish"])
def test_any_exception_of_wandb_is_one_warning(quick, monkeypatch, caplog, failing):
    def call(name):
        def fails(*_, **__):
            if name == failing:
                raise SystemExit(f"broken {name}")
            return fake

        return fails

    fake = types.SimpleNamespace(id="i", dir=".", starting_step=0, summary={})
    for name in ("init", "log", "finish", "define_metric", "Settings", "teardown"):
        setattr(fake, name, call(name))
    monkeypatch.setitem(sys.modules, "wandb", None if failing == "import" else fake)
    assert run(quick("logger.mode=offline")).epochs == 2
    (said,) = warnings(caplog)
    assert ("ModuleNotFoundError" if failing == "import" else f"broken {failing}") in said


@pytest.fixture
def server(monkeypatch, no_wandb_settings):
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield server
    server.close()


def test_finish_on_a_dead_network_is_bounded(quick, monkeypatch, server, after_first_epoch, caplog):
    monkeypatch.setattr("snn_repro.runs.loggers.wandb.FINISH_SECONDS", 2)
    after_first_epoch(lambda core: server.silent.set())
    started = time.monotonic()
    assert run(quick("logger.mode=online")).epochs == 2
    assert time.monotonic() - started < 30
    (said,) = warnings(caplog)
    assert "it was not done 2 s after the run's end" in said
    deadline = time.monotonic() + 20
    while cores():
        assert time.monotonic() < deadline, "wandb-core is still there"
        time.sleep(0.1)


# ---------------------------------------------------------------- a resume

KILLED = """
import os, signal, sys
from snn_repro.config import load_config
from snn_repro.runs.loggers import Loggers
from snn_repro.train import run
epoch = Loggers.epoch
def kill(loggers, line):
    epoch(loggers, line)
    if line["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Loggers.epoch = kill
run(load_config(sys.argv[1:]))
"""
LONGER = ["recipe.epochs=5", *SHORT[1:]]


def killed_run(folder, *more: str) -> None:
    options = [*LONGER, f"hydra.run.dir={folder}", *more]
    assert subprocess.run([sys.executable, "-c", KILLED, *options], timeout=100).returncode == -9


def test_a_killed_offline_run_loses_nothing(quick, tmp_path, server):
    """A resume has the whole history, on disk and for `wandb sync`, also where the part before it was synced already."""
    folder = tmp_path / "run"
    config = quick("logger.mode=offline", *LONGER)
    killed_run(folder)
    before = folder / "wandb" / f"offline-run-20260101_000000-{config_hash(config)}-0"
    before.mkdir(parents=True, exist_ok=True)  # as W&B leaves it, if it had begun
    result = run(config)
    (after,) = offline_runs(folder)  # the first one is contained in it
    assert after != before and after.name.endswith(f"-{config_hash(config)}-0")
    assert steps(folder) == [(n, n) for n in range(1, 6)]
    assert json.loads(inspect(folder, "--summary"))["summary"]["acc_last"] == result.acc_last
    server.history = [{"_step": n, "epoch": n, "train_loss": 0.0} for n in (1, 2)]
    subprocess.run([sys.executable, "-m", "wandb", "sync", str(after)], cwd=tmp_path, check=True, timeout=60)
    epochs = [(h["_step"], h["epoch"]) for h in server.history if h.get("train_loss")]
    assert epochs == [(n, n) for n in range(1, 6)]


@pytest.mark.slow
def test_online_a_resume_sends_what_the_server_lacks(quick, tmp_path, server):
    """The server has two of three epochs: it gets the third once, and those to come."""
    folder = tmp_path / "run"
    killed_run(folder, "logger.mode=disabled")
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    server.history = [{"_step": line["epoch"], **line} for line in history[:2]]
    run(quick("logger.mode=online", *LONGER))
    epochs = [(h["_step"], h["epoch"]) for h in server.history if "train_loss" in h]
    assert epochs == [(n, n) for n in range(1, 6)] and server.complete
    assert [h["_step"] for h in server.history if "final/time_step" in h] == [6, 7, 8, 9]


# ---------------------------------------------------------------- WANDB_*


def test_wandb_mode_disabled_disables(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run(quick("logger.mode=online"))
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_wandb_mode_offline_keeps_offline(quick, tmp_path, monkeypatch, server, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    run(quick("logger.mode=online", "recipe.epochs=1"))
    assert len(offline_runs(tmp_path / "run")) == 1 and server.history == []


def test_wandb_init_timeout_that_is_no_number_warns(quick, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "abc")
    assert run(quick("logger.mode=offline", "recipe.epochs=1")).epochs == 1
    (said,) = warnings(caplog)
    assert "init_timeout" in said


def test_wandb_mode_unknown_warns(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    said = []
    assert checked_mode("offline", said.append) == "offline"
    assert len(said) == 1 and "WANDB_MODE=sometimes is none of online, offline, disabled" in said[0]


def test_a_run_of_wandb_agent_keeps_the_agents_id(quick, tmp_path, monkeypatch):
    (tmp_path / "parameters.yaml").write_text("wandb_version: 1\nrecipe.lr:\n  value: 0.05\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agents0wn")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "parameters.yaml"))
    run(quick("logger.mode=offline", "recipe.lr=0.05"))
    summary = json.loads(inspect(tmp_path / "run", "--summary"))
    assert summary["run_id"] == "agents0wn" and summary["config"]["recipe"]["lr"] == 0.05
    assert steps(tmp_path / "run") == [(1, 1), (2, 2)]


# ---------------------------------------------------------------- scripts


def script(name: str, *arguments: str, **environment: str):
    return subprocess.run(
        [sys.executable, f"scripts/{name}", *map(str, arguments)], capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": ".", **environment},
    )  # fmt: skip


def seen_by_wandb(folder) -> tuple:
    """What makes the page of a run, without clocks and file names."""
    clocks = ("_runtime", "_timestamp", "_wandb")
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    kept = lambda d: {k: v for k, v in d.items() if not k.startswith(clocks)}  # noqa: E731
    summary = json.loads(inspect(folder, "--summary"))
    run_record = next(r["run"] for r in records if "run" in r)
    return (
        [kept(r["history"]["item"]) for r in records if "history" in r], kept(summary["summary"]), summary["config"],
        {k: summary[k] for k in ("name", "run_id", "tags")}, run_record["run_group"], run_record["job_type"],
    )  # fmt: skip


@pytest.mark.slow
def test_import_makes_the_run_that_was_logged_live(logged, tmp_path):
    *_, folder, _ = logged
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs / "row" / "seed3", ignore=shutil.ignore_patterns("wandb"))
    shutil.copytree(folder, runs / "row" / "unfinished", ignore=shutil.ignore_patterns("wandb", "result.json"))
    broken = {"cut": ("metrics.jsonl", '{"epoch": 1, "ac'), "no": ("config.yaml", "[]"), "bad": ("result.json", "{")}
    for name, (file, text) in broken.items():
        shutil.copytree(folder, runs / name, ignore=shutil.ignore_patterns("wandb"))
        (runs / name / file).write_text(text)
    done = script("wandb_import.py", runs)
    assert done.returncode == 0, done.stderr
    assert "2 of 5 runs imported" in done.stdout
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [str(runs / n) for n in sorted(broken)]
    assert all("skipped, " in line for line in done.stderr.splitlines())
    assert seen_by_wandb(runs / "row" / "seed3") == seen_by_wandb(folder)
    assert steps(runs / "row" / "unfinished") == [(1, 1), (2, 2)]
    assert json.loads(inspect(runs / "row" / "unfinished", "--summary"))["exit_code"] == 1


def test_import_online_to_another_project(logged, tmp_path, server):
    *_, folder, _ = logged
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("wandb"))
    done = script("wandb_import.py", tmp_path / "run", "--mode", "online", "--project", "p", "--entity", "e")
    assert done.returncode == 0, done.stderr
    assert server.complete
    assert [(h["_step"], h["epoch"]) for h in server.history if "train_loss" in h] == [(1, 1), (2, 2)]


def test_import_says_one_sentence(tmp_path, monkeypatch, logged):
    *_, folder, _ = logged
    (tmp_path / "empty").mkdir()
    for arguments, environment, sentence in (
        ([tmp_path / "none"], {}, "none does not exist"),
        ([tmp_path / "empty"], {}, "empty holds no run with an epoch"),
        ([folder], {"WANDB_MODE": "disabled"}, "WANDB_MODE=disabled"),
        ([folder, "--mode", "online"], {"WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": ""}, "W&B key"),
    ):
        done = script("wandb_import.py", *arguments, **environment)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and sentence in done.stderr, done


def test_import_leaves_a_run_in_progress_alone(logged, tmp_path):
    *_, folder, _ = logged
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = script("wandb_import.py", folder)
    assert done.returncode == 2 and "in use by a run" in done.stderr
    assert len(offline_runs(folder)) == 1


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


def test_workspace_without_login_is_one_sentence(tmp_path):
    pytest.importorskip("wandb_workspaces", reason="pip install 'snn_repro[dashboard]'")
    done = script("wandb_workspace.py", "--entity", "lab", HOME=str(tmp_path), WANDB_API_KEY="")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("wandb_workspace.py: saving the view needs a W&B key") and "--print" in line


def test_workspace_that_the_server_refuses_is_one_sentence(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    monkeypatch.syspath_prepend("scripts")
    import wandb_workspace

    class View:
        def save(self):
            raise RuntimeError("no such\nentity")

    with pytest.raises(UserError, match=r"W&B did not save the view \(RuntimeError: no such entity\); check --entity"):
        wandb_workspace.save(View())
