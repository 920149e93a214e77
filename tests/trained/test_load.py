"""A run's folder gives its network back."""

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures import make_cache as prepare
from PIL import Image

from snn_repro.config import config_hash, load_config, to_dict
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.train import run
from snn_repro.trained import load_run
from snn_repro.trained.evaluate import evaluate_run
from snn_repro.trained.export import export
from snn_repro.trained.predict import predict

SHORT = ["recipe.epochs=1", "debug.max_steps=2", "logger.mode=disabled"]


def test_what_is_no_run_is_said_in_a_sentence(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="is not a run: it has no config.yaml; give the folder"):
            load_run(folder)
    (tmp_path / "result.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="checkpoint_last.pt does not exist"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="weights=first must be one of: last, best"):
        load_run(tmp_path, weights="first")


CONFIG = to_dict(load_config())
FORGED = [
    {"config": 3}, {"config": {**CONFIG, "neuron": 3}}, {"config": {**CONFIG, "dataset": {"name": [1]}}}, {"epoch": "x"},
    {"ema": [1]}, {"model": {"a": 1}}, {"model": {"fc.weight": torch.eye(2).to_sparse()}},
]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED, ids=[str([*f]) for f in FORGED])
def test_a_forged_checkpoint_is_one_sentence(tmp_path, forged):
    torch.save({"config": CONFIG, "model": {}, "epoch": 1} | forged, tmp_path / "checkpoint_last.pt")
    with pytest.raises(UserError) as error:
        load_run(tmp_path)
    assert "\n" not in str(error.value)


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(40 * seed, 40 * seed + 90, (12, 12, 3), np.uint8)).save(path)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run on images of one's own, whose data_dir was typed relative to its folder: (run, the images)."""
    for k, name in enumerate(("b", "${c}", "d_1|")):
        for i in range(4):
            picture(tmp_path / "data" / name / f"{i}.png", k + 1)
    monkeypatch.chdir(tmp_path)
    run(load_config([*SHORT, "dataset=image_folder", "data_dir=data", "name=mine", "hydra.run.dir=run"]))
    return tmp_path / "run", tmp_path / "data"


def test_what_was_found_in_own_data_is_kept_whatever_becomes_of_them(own, tmp_path, monkeypatch):
    folder, data = own
    monkeypatch.chdir("/")  # data_dir is kept absolute
    before, sample = load_run(folder), data / "b" / "0.png"
    x, (was,) = before.transform(sample), predict(folder, [sample])
    assert before.class_names == ["${c}", "b", "d_1|"] and before.config.data_dir == str(data)
    for k in range(9):  # other statistics, another size, a class before all others
        picture(data / "b" / f"more{k}.png", 4)
    Image.new("RGB", (20, 30)).save(data / "b" / "large.png")
    assert torch.equal(load_run(folder).transform(sample), x) and predict(folder, [sample])[0].name == was.name
    assert evaluate_run(folder).remarks[0].startswith("warning: the data differ from the run's")
    picture(data / "a" / "0.png", 0)
    with pytest.raises(
        UserError, match=r"holds the class a, which the run was not trained on \(its classes: \$\{c\}, b, d_1"
    ):
        evaluate_run(folder, ["dataset=image_folder"])
    shutil.move(sample, tmp_path / "sample.png")
    shutil.rmtree(data)
    exported = export(folder, "safetensors", output=tmp_path / "out")
    for place in (folder, exported):
        trained = load_run(place)
        assert trained.class_names == before.class_names and torch.equal(trained.transform(tmp_path / "sample.png"), x)
    mean = ", ".join(f"{v:.6g}" for v in before.facts().statistics[0])
    for said in ("| classes, by label | ${c}, b, d_1\\| |", "| 0 to 255 |", f"mean {mean}, std"):
        assert said in (exported / "README.md").read_text()
    (folder / "result.json").unlink()  # as before it has finished
    assert load_run(folder).num_classes == 3


def test_an_older_run_on_own_data_is_refused_with_what_to_do(own):
    folder, data = own
    hash_ = config_hash(load_run(folder).config)
    content = torch.load(folder / "checkpoint_last.pt")
    assert config_hash(content["config"]) == hash_ and content["config"]["dataset"].pop("found")
    torch.save(content, folder / "checkpoint_last.pt")
    assert config_hash(load_run(folder).config) == hash_
    for use in (lambda: load_run(folder).transform(data / "b" / "0.png"), lambda: evaluate_run(folder)):
        with pytest.raises(
            UserError, match="by an earlier version, which did not store classes and statistics.*train it again"
        ):
            use()


def test_recordings_are_read_without_the_training_data(tmp_path):
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            t, xy, p = np.arange(200), random.integers(0, 20, (2, 200)), random.integers(0, 2, 200)
            np.savez(tmp_path / "data" / name / f"{i}.npz", t=t, x=xy[0], y=xy[1], p=p)
    words = ["dataset=event_folder", f"data_dir={tmp_path / 'data'}", f"cache_dir={tmp_path / 'cache'}", "timesteps=2"]
    config = load_config([*SHORT, *words, f"hydra.run.dir={tmp_path / 'run'}"])
    prepare(SETS["event_folder"].of(config), config.data_dir, config.cache_dir, 2)
    run(config)
    x = load_run(tmp_path / "run").transform(tmp_path / "data" / "left" / "0.npz")
    shutil.move(tmp_path / "data" / "left" / "0.npz", tmp_path / "mine.npz")
    (tmp_path / "data" / "right").rename(tmp_path / "data" / "a_new_name")
    for gone in (None, tmp_path / "data", tmp_path / "cache"):
        shutil.rmtree(gone or tmp_path / "nothing", ignore_errors=True)
        trained = load_run(export(tmp_path / "run", "safetensors", output=tmp_path / f"out{gone and gone.name}"))
        assert trained.class_names == ["left", "right"] and torch.equal(trained.transform(tmp_path / "mine.npz"), x)
