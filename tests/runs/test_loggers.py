"""Where a run is logged is a choice; what a logger does never ends a run, and a resumed one has every step once."""

import json
import sys
from pathlib import Path

import pytest

from snn_repro.config import ConfigError, choices, load_config
from snn_repro.errors import Interrupted, UserError
from snn_repro.registry import LOGGERS
from snn_repro.runs.loggers import Loggers, group_of
from snn_repro.settings import Setting
from snn_repro.train import run


def test_the_choice():
    def to(*overrides: str) -> dict[str, bool]:
        return load_config(list(overrides)).logger.to

    assert to() == to("logger.mode=disabled") == {"wandb": True} and to("logger=none") == {}
    assert to("logger=[wandb,tensorboard]", "logger.project=p") == {"wandb": True, "tensorboard": True}
    assert set(choices("logger")) == {*LOGGERS, "none"}
    with pytest.raises(ConfigError, match="logger=tensorbord.*tensorboard"):
        load_config(["logger=tensorbord"])
    with pytest.raises(ConfigError, match="logger.mode=online has no effect with logger.to=.*; it needs logger=wandb"):
        load_config(["logger=tensorboard", "logger.mode=online"])


class Mine:
    settings = {"address": Setting("here", "where it logs")}

    def __init__(self, config, folder, say, address):
        say(address)


def test_a_logger_has_settings(quick, tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "mine", Mine)
    monkeypatch.setitem(LOGGERS._owners, "mine", __name__)
    config, said = quick(), []
    for value in (True, {"address": "there"}, False):
        config.logger.to = {"mine": value}
        Loggers(config, tmp_path, said.append)
    assert said == ["here", "there"]
    for to, sentence in (
        ({"mine": {"adress": "x"}}, "logger.to.mine.adress is not a setting of 'mine', which has: address"),
        ({"mine": {"address": 3}}, "logger.to.mine.address=3 must be a word"),
        ({"tensorbord": True}, "logger.name='tensorbord' is not one of .*did you mean 'tensorboard'"),
    ):
        config.logger.to = to
        with pytest.raises(UserError, match=sentence):
            Loggers(config, tmp_path, print)


class Broken:
    """Raises in one method."""

    failing, calls = "", []

    def __init__(self, config, folder, say):
        pass

    def __getattr__(self, name):
        def call(content):
            self.calls.append(name)
            if name == self.failing:
                raise (SystemExit if name == "epoch" else OSError)("no space\nleft")

        return call


@pytest.mark.parametrize("failing", ["start", "epoch", "finish"])
def test_a_logger_that_fails_costs_one_warning(quick, tmp_path, monkeypatch, failing):
    monkeypatch.setitem(LOGGERS, "tensorboard", Broken)
    monkeypatch.setattr(Broken, "failing", failing)
    monkeypatch.setattr(Broken, "calls", [])
    said = []
    loggers = Loggers(quick("logger=tensorboard"), tmp_path, said.append)
    loggers.start([])
    loggers.epoch({})
    loggers.finish({})
    (line,) = said
    error = "SystemExit" if failing == "epoch" else "OSError"
    assert line == (
        f"warning: tensorboard stopped logging this run ({error}: no space left); metrics.jsonl has every epoch"
    )
    calls = ["start", "epoch", "finish"]
    assert Broken.calls == calls[: calls.index(failing) + 1]


def test_a_run_that_fails_before_it_is_logged_has_its_own_error_alone(quick, monkeypatch, caplog):
    def fails(config):
        raise UserError("no data")

    monkeypatch.setattr("snn_repro.train.build_data", fails)
    with pytest.raises(UserError, match="no data"):
        run(quick("logger=[wandb,tensorboard]", "logger.mode=offline"))
    assert not [r for r in caplog.records if "warning:" in r.getMessage()]


def test_a_package_that_is_missing_costs_a_run_one_warning_each(quick, tmp_path, monkeypatch):
    for package in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    said = []
    Loggers(quick("logger=[tensorboard,wandb]", "logger.mode=offline"), tmp_path, said.append).start([])
    assert len(said) == 2 and all("stopped logging this run (ModuleNotFoundError" in line for line in said)


def test_rows_that_differ_in_an_override_have_groups_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def group(*overrides: str) -> str:
        config = load_config(list(overrides))
        return group_of(config, Path(config.run_dir))

    assert group("seed=1") == group("seed=2", "logger=none") == "digits-small-if_imp-lts"
    assert group("recipe.epochs=30") == "digits-small-if_imp-lts/recipe.epochs=30" != group("recipe.epochs=40")
    own = [group("hydra.run.dir=mine", f"seed={k}", f"recipe.epochs={n}") for k, n in ((1, 3), (2, 3), (2, 4))]
    assert own[0] == own[1] != own[2] and own[2].startswith("digits-small-if_imp-lts/")
    long = [group("name=" + 120 * "a", f"recipe.epochs={n}") for n in (30, 40)]
    assert len(set(long)) == 2 and all(len(text) <= 110 for text in long)


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    return EventAccumulator(str(file.parent), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def scalars(read, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)]


def test_tensorboard_of_a_stopped_and_resumed_run_has_every_epoch_once_and_the_result(quick, tmp_path, monkeypatch):
    epoch = Loggers.epoch

    def stop(self, line):
        epoch(self, line)
        if line["epoch"] == 2:
            raise Interrupted(2, "stopped")

    config = quick("logger=tensorboard", "recipe.epochs=3", "dataset.validation=0.1")
    with monkeypatch.context() as patch:
        patch.setattr(Loggers, "epoch", stop)
        with pytest.raises(Interrupted):
            run(config)
    assert [e for e, _ in scalars(events(tmp_path / "run"), "acc")] == [1, 2]
    result = run(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    read = events(tmp_path / "run")
    for name in ("train_loss", "loss", "acc", "val_acc", "lr", "samples_per_s"):
        assert [(line["epoch"], line[name]) for line in lines] == scalars(read, name)
    assert [(line["epoch"], line["acc_step"][3]) for line in lines] == scalars(read, "acc_step/t4")
    assert [(line["epoch"], line["firing_rates"]["sn1"]) for line in lines] == scalars(read, "firing_rate/sn1")
    assert list(enumerate(result.acc_step, 1)) == scalars(read, "final/acc_step against time step")
    assert [(3, result.acc_last)] == scalars(read, "final/acc_last")
    (layout,) = read.Tensors("custom_scalars__config__")
    assert all(
        f"^acc_{kind}/t{t}$".encode() in layout.tensor_proto.string_val[0] for kind in ("step", "cum") for t in (1, 4)
    )
    assert b"batch_size" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    hparams = {name for name, m in read.summary_metadata.items() if m.plugin_data.plugin_name == "hparams"}
    assert hparams == {f"_hparams_/{part}" for part in ("experiment", "session_start_info", "session_end_info")}


def test_trackio_of_a_run_that_is_trained_again_has_every_step_once(quick, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trackio", reason="pip install 'snn_repro[trackio]'")
    import sqlite3

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    for more in ([], ["force=true"]):
        result = run(quick("logger=trackio", *more))
    with sqlite3.connect(tmp_path / "snn_repro.db") as db:
        rows = db.execute("select step, metrics from metrics order by step")
        logged = [(step, json.loads(text)) for step, text in rows]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(step, item.get("acc")) for step, item in logged[:2]] == [(n, lines[n - 1]["acc"]) for n in (1, 2)]
    assert [item["final/acc_step"] for _, item in logged[2:]] == result.acc_step
    assert "Trackio" not in capsys.readouterr().out
