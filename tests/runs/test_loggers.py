"""Where a run is logged is a choice; what a logger does never ends a run, and a resumed one has every step once."""

import json
import sys

import pytest

from snn_repro.config import ConfigError, config_hash, load_config
from snn_repro.errors import Interrupted, UserError
from snn_repro.registry import LOGGERS
from snn_repro.runs.loggers import Loggers
from snn_repro.runs.loggers.wandb import Log as WandbLog
from snn_repro.settings import Setting
from snn_repro.train import run


def to(*overrides: str) -> dict[str, bool]:
    return load_config(list(overrides)).logger.to


def test_the_choice():
    assert to() == to("logger.mode=disabled") == {"wandb": True}
    assert to("logger=tensorboard") == {"tensorboard": True} and to("logger=none") == {}
    assert to("logger=[wandb,tensorboard]", "logger.project=p") == {"wandb": True, "tensorboard": True}
    with pytest.raises(ConfigError, match="logger=tensorbord.*tensorboard"):
        load_config(["logger=tensorbord"])
    with pytest.raises(ConfigError, match="logger.mode=online has no effect with logger.to=.*; it needs logger=wandb"):
        load_config(["logger=tensorboard", "logger.mode=online"])


def test_the_choice_moves_no_hash_and_no_folder():
    plain = load_config(["seed=1"])
    other = load_config(["seed=1", "logger=[wandb,tensorboard]", "logger.mode=disabled"])
    assert config_hash(plain) == config_hash(other) and plain.run_dir == other.run_dir


def test_every_logger_is_a_choice_of_the_command_line():
    from snn_repro.config import choices

    assert set(choices("logger")) == {*LOGGERS, "none"}


def test_a_name_without_a_file_is_one_sentence(quick, tmp_path):
    config = quick()
    config.logger.to = {"tensorbord": True}
    with pytest.raises(UserError, match="logger=tensorbord is unknown; choose among: .*did you mean 'tensorboard'"):
        Loggers(config, tmp_path, print)


class Mine:
    settings = {"address": Setting("here", "where it logs")}

    def __init__(self, config, folder, say, address):
        say(address)


def test_a_logger_has_settings(quick, tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "mine", Mine)
    config, said = quick(), []
    for value in (True, {"address": "there"}, False):
        config.logger.to = {"mine": value}
        Loggers(config, tmp_path, said.append)
    assert said == ["here", "there"]
    for value, sentence in (
        ({"adress": "x"}, "logger.to.mine.adress is no setting of 'mine', which has: address"),
        ({"address": 3}, "logger.to.mine.address=3 must be a word"),
    ):
        config.logger.to = {"mine": value}
        with pytest.raises(UserError, match=sentence):
            Loggers(config, tmp_path, print)


class Broken:
    """Raises in one method."""

    failing, calls = "", []

    def __init__(self, config, folder, say):
        pass

    def _call(self, name):
        self.calls.append(name)
        if name == self.failing:
            raise OSError("no space\nleft")

    def start(self, history):
        self._call("start")

    def epoch(self, line):
        self._call("epoch")

    def finish(self, result):
        self._call("finish")


@pytest.mark.parametrize("failing", ["start", "epoch", "finish"])
def test_a_logger_that_fails_costs_one_warning(quick, tmp_path, monkeypatch, caplog, failing):
    monkeypatch.setitem(LOGGERS, "tensorboard", Broken)
    monkeypatch.setattr(Broken, "failing", failing)
    monkeypatch.setattr(Broken, "calls", [])
    assert run(quick("logger=tensorboard")).epochs == 2
    (said,) = [r.getMessage() for r in caplog.records if "warning:" in r.getMessage()]
    assert "tensorboard gets nothing more of this run (OSError: no space left); metrics.jsonl has every" in said
    heard = ["start", "epoch", "epoch", "finish"]
    assert Broken.calls == heard[: heard.index(failing) + 1]


def test_a_run_that_fails_before_it_is_logged_has_its_own_error_alone(quick, monkeypatch, caplog):
    def fails(config):
        raise UserError("no data")

    monkeypatch.setattr("snn_repro.train.build_data", fails)
    with pytest.raises(UserError, match="no data"):
        run(quick("logger=[wandb,tensorboard]", "logger.mode=offline"))
    assert not [r for r in caplog.records if "warning:" in r.getMessage()]


def test_a_package_that_is_missing_costs_one_warning(quick, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(quick("logger=tensorboard", "recipe.epochs=1")).epochs == 1
    (said,) = [r.getMessage() for r in caplog.records if "warning:" in r.getMessage()]
    assert "tensorboard gets nothing more of this run (ModuleNotFoundError" in said


# ---------------------------------------------------------------- TensorBoard


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    return EventAccumulator(str(file.parent), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def scalars(read, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in read.Scalars(tag)]


def test_tensorboard_has_every_epoch_and_the_result(quick, tmp_path):
    result = run(quick("logger=tensorboard", "dataset.validation=0.1"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    read = events(tmp_path / "run")
    for name in ("train_loss", "loss", "acc", "val_acc", "lr", "samples_per_s"):
        assert [(line["epoch"], line[name]) for line in lines] == scalars(read, name)
    for t in range(4):
        assert [(line["epoch"], line["acc_step"][t]) for line in lines] == scalars(read, f"acc_step/t{t + 1}")
    assert [(line["epoch"], line["firing_rates"]["sn1"]) for line in lines] == scalars(read, "firing_rate/sn1")
    assert list(enumerate(result.acc_step, 1)) == scalars(read, "final/acc_step against time step")
    assert [(2, result.acc_last)] == scalars(read, "final/acc_last")
    tags = read.Tags()["tensors"]
    assert "config/text_summary" in tags and "custom_scalars__config__" in tags
    assert b"batch_size" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    plugins = read.summary_metadata
    assert {name for name, m in plugins.items() if m.plugin_data.plugin_name == "hparams"} == {
        "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info",
    }  # fmt: skip


def test_tensorboard_of_a_resumed_run_has_every_step_once(quick, tmp_path, monkeypatch):
    """Stopped after the second epoch: it has all epochs then, and after the resume each of them once."""
    epoch = Loggers.epoch

    def stop(self, line):
        epoch(self, line)
        if line["epoch"] == 2:
            raise Interrupted(2, "stopped")

    config = quick("logger=tensorboard", "recipe.epochs=3")
    with monkeypatch.context() as patch:
        patch.setattr(Loggers, "epoch", stop)
        with pytest.raises(Interrupted):
            run(config)
    assert [e for e, _ in scalars(events(tmp_path / "run"), "acc")] == [1, 2]
    run(config)
    assert [e for e, _ in scalars(events(tmp_path / "run"), "acc")] == [1, 2, 3]


def test_a_reader_forgets_what_an_earlier_start_wrote(quick, tmp_path):
    """As where it was killed before it removed the file of the start before it, or a reader is watching."""
    from snn_repro.runs.loggers.tensorboard import Log

    history = [dict(epoch=n, acc=0.1 * n, acc_step=[0.1, 0.2], firing_rates={}) for n in (1, 2)]
    first = Log(quick(), tmp_path, print)
    first.start([])
    first.epoch(history[0])  # on disk with this: nothing is closed
    (file,) = tmp_path.rglob("events.*")
    kept = file.read_bytes()
    second = Log(quick(), tmp_path, print)
    second.start(history)
    assert not file.exists()
    file.write_bytes(kept)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(file.parent)).Reload()
    assert [e for e, _ in scalars(read, "acc")] == [1, 2]


def test_two_loggers_at_once(quick, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(WandbLog, "epoch", lambda self, line: seen.append(line["epoch"]))
    run(quick("logger=[wandb,tensorboard]"))
    assert seen == [1, 2] and [e for e, _ in scalars(events(tmp_path / "run"), "acc")] == [1, 2]


# ---------------------------------------------------------------- trackio


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
