"""What a run logs, read back from W&B's own file; a server that is not there costs time, never a run; no key is left behind."""

import json
import os
import subprocess
import sys
import time

import pytest

from snn_repro.config import config_hash, to_dict
from snn_repro.errors import UserError
from snn_repro.train import run

FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"


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
    from snn_repro.config import load_config

    folder = tmp_path_factory.mktemp("logged") / "run"
    config = load_config(
        ["neuron=if_imp", "loss=tet_s", "recipe.epochs=2", "debug.max_steps=3", "debug.max_eval_batches=1", "seed=3",
         "paper_row=table1_cifar10_tet", "name=table1_cifar10_tet", "logger.tags=[mine]", f"hydra.run.dir={folder}"]
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("WANDB_MODE", raising=False)
        environment.setenv("WANDB_API_KEY", FAKE_KEY)
        result = run(config)
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    return config, result, folder, {kind: [r[kind] for r in records if kind in r] for kind in ("run", "history", "exit")}


def test_name_group_tags_and_configuration(logged):
    config, _, folder, records = logged
    summary = json.loads(inspect(folder, "--summary"))
    assert summary["name"] == "table1_cifar10_tet/seed3" and summary["run_id"] == f"{config_hash(config)}-3"
    assert set(summary["tags"]) == {"table1", "digits", "small", "if_imp", "tet_s", "mine"}
    assert records["run"][0]["run_group"] == "table1_cifar10_tet" and records["run"][0]["job_type"] == "train"
    assert summary["config"] == to_dict(config)
    assert records["exit"][0].get("exit_code", 0) == 0


def test_every_epoch_and_the_result(logged):
    _, result, folder, records = logged
    history = [h["item"] for h in records["history"]]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line, item in zip(lines, history, strict=False):
        for name in ("epoch", "acc", "loss", "train_loss", "val_acc", "lr"):
            assert item[name] == line[name]
        assert [item[f"acc_step_t{t}"] for t in range(1, 5)] == line["acc_step"]
        assert item["firing_rate/sn1"] == line["firing_rates"]["sn1"]
    final = [item for item in history if "final/time_step" in item]
    assert [item["final/time_step"] for item in final] == [1, 2, 3, 4]
    assert [item["final/acc_step"] for item in final] == result.acc_step
    assert [item["final/acc_cum"] for item in final] == result.acc_cum
    summary = json.loads(inspect(folder, "--summary"))["summary"]
    assert summary["acc_last"] == result.acc_last and summary["loss"] == lines[-1]["loss"]


def test_a_table_of_accuracy_against_time_step_each_epoch(logged):
    _, _, folder, _ = logged
    tables = [json.loads(p.read_text()) for p in sorted(folder.rglob("time_steps_*.table.json"))]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(tables) == len(lines) == 2
    for table, line in zip(tables, lines, strict=True):
        assert table["columns"] == ["epoch", "time step", "acc_step", "acc_cum"]
        assert [row[:2] for row in table["data"]] == [[line["epoch"], t] for t in range(1, 5)]
        assert [row[2] for row in table["data"]] == line["acc_step"]


def holding_the_key(folder) -> list:
    return [p for p in folder.rglob("*") if p.is_file() and FAKE_KEY.encode() in p.read_bytes()]


def test_a_key_in_the_environment_reaches_no_file(logged):
    _, _, folder, _ = logged
    assert len([p for p in folder.rglob("*") if p.is_file()]) > 10
    assert holding_the_key(folder) == []


def test_online_without_a_key_is_one_sentence(quick, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("snn_repro.tracking._has_key", lambda wandb: False)
    with pytest.raises(UserError, match="logger.mode=online needs a W&B key"):
        run(quick("logger.mode=online"))


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
        [sys.executable, "scripts/wandb_workspace.py", "--entity", "lab", "--table", "1", "--json"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Accuracy against time step", "Reproduced against paper", "Convergence"]
    plots = [p["config"] for panels in sections.values() for p in panels]
    first = plots[0]
    assert (first["xAxis"], first["metrics"], first["groupBy"]) == ("final/time_step", ["final/acc_step"], "loss.value.name")
    markdown = next(p["value"] for p in plots if p.get("value"))
    assert "| table1_cifar10_sdt | 94.56 |" in markdown and "table2" not in markdown
    metrics = {m for p in plots for m in p.get("metrics") or []}
    assert metrics == {"final/acc_step", "final/acc_cum", "acc_last", "acc_best_test", "acc", "val_acc", "train_loss", "lr"}
    filters = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert [(f["key"]["name"], f["value"]) for f in filters] == [("tags", "table1")]
