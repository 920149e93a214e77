"""`image_folder` finds classes, sizes, statistics and parts by itself, and says what is wrong in one sentence."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snn_repro.config import ConfigError, config_hash, load_config
from snn_repro.data import build_data
from snn_repro.data.image_files import decode
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError
from snn_repro.runs.folder import fingerprint
from snn_repro.runs.sweeps import _lacks
from snn_repro.train import run
from snn_repro.trained import load_run

CLASSES = ("cat", "dog", "owl")


def image(path: Path, size=(12, 12), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    values = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, shape, np.uint8)
    Image.fromarray(values).convert(mode).save(path)


def images(root: Path, n=5, parts=("",), **more) -> Path:
    for part in parts:
        for k, c in enumerate(CLASSES):
            for i in range(n):
                image(root / part / c / f"{i}.png", seed=k, **more)
    return root


without_data = cache(lambda: load_config(["dataset=image_folder"]))


def config(root: Path, *overrides: str):
    return load_config(["dataset=image_folder", f"data_dir={root}", *overrides])


def test_classes_size_and_statistics_are_found(tmp_path):
    cfg = config(images(tmp_path / "data"), "dataset.split_seed=3", "dataset.validation=0.25")
    data = build_data(cfg)
    assert (data.input_shape, data.num_classes) == ((3, 12, 12), 3)
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (9, 3, 3)
    assert data.split.id == "image_folder/stratified,test=0.2,seed=3,val=0.25,seed=3"
    found = SETS["image_folder"].of(cfg)
    train, test = found.parts(cfg)
    assert sorted(test.labels.tolist()) == [0, 1, 2] and not {*train.names} & {*test.names}
    pixels = np.concatenate([np.asarray(decode(i)).reshape(-1, 3) for i in train.images])
    mean, std = found.statistics
    assert np.allclose(mean, pixels.mean(0)) and np.allclose(std, pixels.std(0))
    x = next(iter(data.test.epoch(0)))[0]
    channels = np.asarray(decode(test.images[0])).transpose(2, 0, 1)
    assert np.allclose(x[0], (channels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)), atol=1e-5)


def test_another_seed_draws_another_test_part(tmp_path):
    root = images(tmp_path / "data", n=10)
    splits = []
    for cfg in (config(root), config(root, "dataset.split_seed=1"), config(root, "dataset.test_share=0.5")):
        found = SETS["image_folder"].of(cfg)
        splits.append(found.split(cfg, *found.parts(cfg))[2])
    assert splits[0].sha256_test != splits[1].sha256_test and splits[2].n_test == 15


def test_images_of_many_sizes_are_resized_and_cut_and_grey_ones_have_one_channel(tmp_path):
    root = images(tmp_path / "data", 2, mode="L", size=(30, 20))
    image(root / "cat" / "more.png", (18, 40), "L")
    assert SETS["image_folder"].of(config(root)).shape == (1, 64, 64)
    data = build_data(config(root, "dataset.frame_size=16", "augment.crop_padding=1"))
    assert next(iter(data.train.epoch(0)))[0].shape[1:] == data.input_shape == (1, 16, 16)
    with pytest.raises(ConfigError, match="dataset.channel_order=bgr has no effect"):
        config(root, "dataset.channel_order=bgr")


def test_folders_of_parts_are_the_split(tmp_path):
    root = images(tmp_path / "data", 2, parts=("Train", "test", "val"))
    data = build_data(config(root))
    assert data.split.id == "image_folder/folders,val=folder" and data.val.n_samples == 6
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (6, 6, 6)
    for override, sentence in {"validation": "0.1 is not used", "test_share": "0.1 has no effect"}.items():
        with pytest.raises(UserError, match=f"dataset.{override}={sentence}"):
            build_data(config(root, f"dataset.{override}=0.1"))


def into(root: Path, part: str):
    (root / part).mkdir()
    for c in CLASSES:
        (root / c).rename(root / part / c)


def in_parts(root: Path, more: str):
    into(root, "train")
    images(root, 1, parts=("test",))
    (root / more).mkdir()


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda r: (r / "empty").mkdir(), "empty holds no image"),
        (lambda r: [(r / c).rename(r / f".{c}") for c in CLASSES[1:]], "holds only the class cat"),
        (lambda r: (r / "dog/2.png").write_bytes(b"no image"), "dog/2.png cannot be read as an image"),
        (lambda r: (r / "dog/2.png").write_bytes((r / "dog/2.png").read_bytes()[:-30]), "dog/2.png cannot be read"),
        (lambda r: r.rename(r.parent / "gone"), "data_dir=.*data does not exist"),
        (lambda r: into(r, "train"), "holds train/ but no test/"),
        (lambda r: in_parts(r, "train/fox"), "class fox is missing in test/"),
        (lambda r: in_parts(r, "extra"), "extra/ beside test and train: it is not a part"),
        (lambda r: Image.fromarray(np.zeros((12, 12), np.uint16)).save(r / "cat/x.png"), "more than 8 bits"),
        (lambda r: [(r / f"dog/{i}.png").unlink() for i in range(4)], "the class of dog/4.png has this file only"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, damage, sentence):
    damage(images(tmp_path / "data"))
    cfg = copy.deepcopy(without_data())
    cfg.data_dir = str(tmp_path / "data")
    with pytest.raises(DataError, match=sentence) as raised:
        build_data(cfg)
    assert "\n" not in str(raised.value)


def test_images_are_read_as_viewers_show_them(tmp_path):
    """Turned as EXIF says, and on white where they are transparent; in the test and as a raw sample."""
    root, drawn = tmp_path / "data", np.full((12, 12, 4), (0, 0, 0, 255), np.uint8)
    drawn[:, 6:, 3] = 0  # black strokes on nothing
    held = Image.Exif()
    held[0x0112] = 6  # the camera was turned a quarter
    for c in "ab":
        (root / c).mkdir(parents=True)
        Image.fromarray(drawn).save(root / c / "0.png")
        Image.fromarray(np.rot90(drawn[..., :3] + 255 - drawn[..., 3:])).save(root / c / "1.png", exif=held)
    cfg = config(root, "dataset.test_share=0.5", "augment.flip=0")
    found = SETS["image_folder"].of(cfg)
    assert np.allclose(found.statistics[0], 127.5)
    data, (_, test) = found.build(cfg), found.parts(cfg)
    x, wanted = next(iter(data.test.epoch(0)))[0], np.where(np.arange(12) < 6, -1.0, 1.0)
    assert torch.allclose(x, torch.tensor(wanted, dtype=torch.float32).expand_as(x))
    for row, file in enumerate(test.images):
        assert torch.equal(found.sample(cfg, file, lambda _: None)[0], x[row])


def test_files_that_are_not_read_are_counted(tmp_path):
    root = images(tmp_path / "data", n=4)
    (root / "cat" / "0.gif").write_bytes(b"GIF89a")
    with pytest.warns(UserWarning, match=r"image_folder: 1 of 13 files in data_dir=.* are not read, .*cat/0.gif among"):
        build_data(config(root))


def test_every_changed_file_changes_the_fingerprint(tmp_path):
    root = images(tmp_path / "data", 2)
    seen = [fingerprint(cfg := config(root))]
    image(root / "cat" / "more.png")
    seen.append(fingerprint(cfg))
    (root / "cat" / "more.png").unlink()
    assert fingerprint(cfg) == seen[0]
    content = bytearray((root / "dog" / "1.png").read_bytes())
    content[-20] ^= 1
    (root / "dog" / "1.png").write_bytes(content)
    seen.append(fingerprint(cfg))
    assert len({str(s) for s in seen}) == 3
    cfg.data_dir = str(root.rename(tmp_path / "moved"))
    assert fingerprint(cfg) == seen[2]


def test_the_configuration_is_checked_with_what_is_found(tmp_path):
    root = images(tmp_path / "data", 2)
    with pytest.raises(ConfigError, match="vgg48 needs 48x48 pixels and dataset=image_folder gives 12x12"):
        config(root, "model=vgg48", "neuron=leaky_imp")
    away = without_data()  # shown, listed and compared without the images
    assert config_hash(away) == config_hash(config(root))
    assert "data_dir is not set" in str(_lacks(away)) and not _lacks(config(root))
    assert SETS["image_folder"].state(away)[0] == "missing"


def test_runs_train_and_refuse_other_data(quick, tmp_path):
    root = images(tmp_path / "data", n=2)
    short = ["recipe.epochs=1", "debug.max_steps=1", "timesteps=1", "kernels=off"]
    cfg = quick("dataset=image_folder", f"data_dir={root}", *short, "neuron=if_imp")
    result = run(cfg)
    assert (result.num_classes, result.input_size) == (3, [3, 12, 12])
    trained = load_run(tmp_path / "run")
    assert trained.class_names == list(CLASSES) and trained.input_shape == (3, 12, 12)
    data, (_, test) = build_data(cfg), SETS["image_folder"].of(cfg).parts(cfg)
    x = next(iter(data.test.epoch(0)))[0]
    assert torch.equal(trained.transform(test.images[1]), x[1:2])  # as its test gives it
    image(root / "cat" / "more.png")
    with pytest.raises(UserError, match="other data"):
        run(cfg)
    root.rename(tmp_path / "away")
    assert load_run(tmp_path / "run").class_names == list(CLASSES)
