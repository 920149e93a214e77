"""What a run is: its configuration, its data and the conditions it ran under; a repeat must match or say how it differs."""

import json
import logging
import re
import shutil

import pytest
import torch
from fixtures import make_cache as prepare
from fixtures.event_sets import write_cifar10_dvs
from fixtures.image_sets import write_cifar10

from snn_repro import runtime, train
from snn_repro.config import ConfigError, load_config
from snn_repro.data.sets import digits
from snn_repro.errors import UserError, in_one_sentence
from snn_repro.files import write_json
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import fingerprint
from snn_repro.train import TrainingError, run

TINY = "logger.mode=disabled recipe.epochs=1 debug.max_steps=1 debug.max_eval_batches=1 recipe.batch_size=8".split()


@pytest.fixture
def other_digits(monkeypatch):
    """Makes the embedded digits other ones from here on."""

    def change():
        table = digits._table().copy()
        table[0, :3] = 7
        monkeypatch.setattr(digits, "_table", lambda: table)

    return change


@pytest.fixture
def broken_off(monkeypatch):
    """Runs a configuration up to its last checkpoint."""

    def start(config):
        with monkeypatch.context() as broken:
            broken.setattr(train, "build_result", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(config)

    return start


def test_a_finished_run_is_done_whether_or_not_its_data_are_at_hand_but_not_on_other_data(
    quick, other_digits, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    first = run(quick("threads=2"))
    assert (first.threads, first.processes, first.images_per_statistic, first.changed_on_resume) == (2, 1, 32, [])
    assert set(first.data) == {"digits"} and run(quick("threads=1")) == first
    assert "already done" in caplog.text and "it ran with threads=2, here 1" in caplog.text
    with monkeypatch.context() as gone:
        gone.setattr(digits, "_table", lambda: (_ for _ in ()).throw(UserError("the digits are gone")))
        assert run(quick()) == first and "its data were not compared: the digits are gone" in caplog.text
    other_digits()
    with pytest.raises(UserError, match=r"other data \(digits: [0-9a-f]{12}... -> [0-9a-f]{12}.*force=true"):
        run(quick())
    again = run(quick("force=true"))
    assert again.data != first.data and again.config_hash == first.config_hash


def test_a_stopped_run_goes_on_under_other_conditions_which_are_named_but_not_with_other_data(
    quick, other_digits, broken_off, caplog, tmp_path
):
    broken_off(quick("threads=2"))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    result = run(quick("threads=1"))
    assert result.threads == 1 and result.changed_on_resume == ["threads: 2 -> 1 from epoch 2, step 0"]
    assert "conditions changed since the run was stopped (threads: 2 -> 1" in caplog.text
    other_digits()
    with pytest.raises(UserError, match=r"checkpoint_last.pt was trained on other data \(digits: .*resume=never"):
        run(quick(f"hydra.run.dir={tmp_path / 'copy'}"))


def test_images_are_known_by_their_contents_wherever_they_lie(tmp_path):
    write_cifar10(tmp_path / "a", per_batch=6)
    write_cifar10(tmp_path / "packed", per_batch=6, archive=True)
    write_cifar10(tmp_path / "other", per_batch=6, seed=1)
    a, packed, other = (
        fingerprint(load_config(["dataset=cifar10", f"data_dir={tmp_path / name}"]))
        for name in ("a", "packed", "other")
    )
    assert a == packed and checkpoint.changes(a, other)
    assert not checkpoint.changes(a, None) and not checkpoint.changes(None, a)


def test_prepared_frames_are_known_by_their_index(tmp_path):
    found = []
    for seed in (0, 1):
        write_cifar10_dvs(tmp_path / "raw", seed=seed)
        cache = tmp_path / f"cache{seed}"
        prepare("cifar10_dvs", tmp_path / "raw", cache, 4, workers=0, say=lambda _: None)
        found.append(fingerprint(load_config(["dataset=cifar10_dvs", "timesteps=4", f"cache_dir={cache}"])))
    assert checkpoint.changes(*found)


ROW = ["experiment=table3_sew_r34_imp_lts"]


def test_processes_share_the_parts_of_a_batch_or_it_is_refused():
    """The released ImageNet runs normalise over 128 images on each of four GPUs."""
    config = load_config(ROW)
    for processes, parts in ((1, 4), (2, 2), (4, 1)):
        assert runtime.parts_of_a_batch(config, processes) == parts
        assert runtime.images_per_statistic(config, processes) == 128
    config.recipe.sync_bn = True  # its norms keep the parts
    assert (runtime.parts_of_a_batch(config, 4), runtime.images_per_statistic(config, 4)) == (4, 128)
    for words, processes, sentence in (
        (ROW, 3, "recipe.batch_size=512 .* multiple of 3"),
        ([*ROW, "recipe.batch_size=510"], 3, "recipe.accumulate=4 parts .* 3 processes"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            runtime.parts_of_a_batch(load_config(words), processes)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_loss_that_is_not_finite_fails_the_run(quick, monkeypatch, tmp_path, part):
    evaluate, calls = train.evaluate, []

    def broken(*args, **more):
        outcome = evaluate(*args, **more)
        calls.append(0)
        return outcome | ({"loss": float("nan")} if len(calls) == (4 if part == "test" else 3) else {})

    monkeypatch.setattr(train, "evaluate", broken)
    with pytest.raises(TrainingError, match=rf"the {part} loss is nan after epoch 2; .*\(epoch 1, step 0\)"):
        run(quick("dataset.validation=0.1"))
    folder = tmp_path / "run"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "result.json").exists() and len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_energy_is_added_to_a_finished_run(quick, tmp_path):
    words = ["recipe.ema_decay=0.5", "recipe.epochs=1"]
    first = run(quick(*words))
    assert "energy" not in first
    added = run(quick(*words, "energy=true"))
    assert added["energy"] and {k: v for k, v in added.items() if k != "energy"} == first
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == added
    for name in checkpoint.FILES:
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert run(quick(*words, "energy=true")) == added
    write_json(tmp_path / "run" / "result.json", dict(first))
    with pytest.raises(UserError, match="energy=true needs .*checkpoint_last.pt.*force=true"):
        run(quick(*words, "energy=true"))


OUT_OF_MEMORY = "out of memory .*recipe.accumulate.*model.checkpointing.*recipe.batch_size"


def test_out_of_memory_names_what_helps(quick, monkeypatch):
    monkeypatch.setattr(train.Training, "train_step", lambda *_: torch.empty(2**55))
    with pytest.raises(UserError, match=OUT_OF_MEMORY):
        run(quick())
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.")):
        assert re.search(OUT_OF_MEMORY, str(in_one_sentence(error)))
    # of several processes the one that is left guesses why the other went; that is no lack of memory here
    told = UserError("another process of this run ended without an error message (killed, or out of memory?)")
    assert in_one_sentence(told) is told


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, typed):
    (tmp_path / "f").write_text("")  # a file stands where a folder is needed
    code, _, err = typed(*TINY, f"hydra.run.dir={tmp_path / 'f' / 'g'}")
    assert code == 2 and err.count("\n") == 1 and "cannot write" in err and "hydra.run.dir" in err
