"""Own data: `image_folder` and `event_folder` find classes, sizes and parts by themselves, and say what is wrong in one sentence."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fixtures import encode_aedat2, encode_aedat3, encode_atis, random_recording
from fixtures import make_cache as prepare
from PIL import Image
from scripts_of_ours import script

from snn_repro.config import ConfigError, config_hash, load_config
from snn_repro.data import build_data
from snn_repro.data.event_tables import read_recording
from snn_repro.data.events import integrate
from snn_repro.data.formats import FormatError
from snn_repro.data.image_files import decode
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError
from snn_repro.runs.folder import fingerprint
from snn_repro.runs.sweeps import _lacks
from snn_repro.train import run
from snn_repro.trained import load_run

CLASSES = ("cat", "dog", "owl")
QUICK = ["logger.mode=disabled", "recipe.epochs=1", "debug.max_steps=2", "debug.max_eval_batches=1", "timesteps=2"]


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


def events(k: int, i: int, n=300, size=(20, 24)):
    return random_recording(np.random.default_rng([k, i]), n, size)


def save_npz(path: Path, e, **more):
    np.savez(path, t=e.t, x=e.x, y=e.y, p=e.p, **more)


def recordings(root: Path, n=5, parts=("",), write=save_npz, suffix=".npz") -> Path:
    for part in parts:
        for k, c in enumerate(CLASSES):
            (root / part / c).mkdir(parents=True)
            for i in range(n):
                write(root / part / c / f"{i}{suffix}", events(k, i))
    return root


def config(dataset: str, root: Path, *overrides: str):
    return load_config([f"dataset={dataset}", f"data_dir={root}", *overrides])


def prepared(root: Path, cache: Path, *overrides: str):
    """The configuration of a run on recordings that were prepared now."""
    cfg = config("event_folder", root, f"cache_dir={cache}", "timesteps=2", *overrides)
    d = cfg.dataset
    prepare(SETS["event_folder"].of(cfg), root, cache, 2, d.integrate_by, d.frame_size, workers=0, say=lambda _: None)
    return cfg


# ------------------------------------------------------------------ images


def test_classes_size_and_statistics_of_images_are_found(tmp_path):
    cfg = config("image_folder", images(tmp_path / "data"), "dataset.split_seed=3", "dataset.validation=0.25")
    data = build_data(cfg)
    assert (data.input_shape, data.num_classes) == ((3, 12, 12), 3)
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (9, 3, 3)
    assert data.split.id == "image_folder/stratified,test=0.2,seed=3,val=0.25,seed=3"
    assert len(data.split.sha256_test) == 64
    found = SETS["image_folder"].of(cfg)
    train, test = found.parts(cfg)
    assert sorted(test.labels.tolist()) == [0, 1, 2] and not {*train.names} & {*test.names}
    pixels = np.concatenate([np.asarray(decode(i)).reshape(-1, 3) for i in train.images])
    mean, std = found.statistics
    assert np.allclose(mean, pixels.mean(0)) and np.allclose(std, pixels.std(0))
    x = next(iter(data.test.epoch(0)))[0]
    wanted = (np.asarray(decode(test.images[0])).transpose(2, 0, 1) - np.reshape(mean, (3, 1, 1))) / np.reshape(
        std, (3, 1, 1)
    )
    assert np.allclose(x[0], wanted, atol=1e-5)  # images of one size are used as they are


def test_another_seed_draws_another_test_part(tmp_path):
    root = images(tmp_path / "data", n=10)
    splits = [build_data(config("image_folder", root, f"dataset.split_seed={s}")).split for s in (0, 0, 1)]
    assert splits[0] == splits[1] and splits[0].sha256_test != splits[2].sha256_test
    more = build_data(config("image_folder", root, "dataset.test_share=0.5"))
    assert more.split.n_test == 15


def test_images_of_many_sizes_are_resized_and_cut(tmp_path):
    root = images(tmp_path / "data", size=(30, 20))
    image(root / "cat" / "more.png", (18, 40))
    assert build_data(config("image_folder", root)).input_shape == (3, 64, 64)
    data = build_data(config("image_folder", root, "dataset.frame_size=16"))
    assert next(iter(data.train.epoch(0)))[0].shape[1:] == (3, 16, 16)


def test_grey_images_have_one_channel(tmp_path):
    cfg = config("image_folder", images(tmp_path / "data", mode="L"), "augment.crop_padding=1")
    data = build_data(cfg)
    assert data.input_shape == (1, 12, 12)
    assert next(iter(data.train.epoch(0)))[0].shape[1:] == (1, 12, 12)
    with pytest.raises(ConfigError, match="dataset.channel_order=bgr has no effect"):
        config("image_folder", tmp_path / "data", "dataset.channel_order=bgr")


def test_folders_of_parts_are_the_split(tmp_path):
    root = images(tmp_path / "data", parts=("Train", "test", "val"))
    data = build_data(config("image_folder", root))
    assert data.split.id == "image_folder/folders,val=folder"
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (15, 15, 15)
    assert data.val.n_samples == 15
    for override, sentence in {
        "dataset.validation=0.1": "dataset.validation=0.1 would take more",
        "dataset.test_share=0.1": "dataset.test_share=0.1 draws nothing",
    }.items():
        with pytest.raises(UserError, match=sentence):
            build_data(config("image_folder", root, override))


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda r: (r / "empty").mkdir(), "empty holds no image"),
        (lambda r: [(r / c).rename(r / f".{c}") for c in CLASSES[1:]], "holds only the class cat"),
        (lambda r: (r / "dog/2.png").write_bytes(b"no image"), "dog/2.png cannot be read as an image"),
        (lambda r: (r / "dog/2.png").write_bytes((r / "dog/2.png").read_bytes()[:-30]), "dog/2.png cannot be read"),
        (lambda r: r.rename(r.parent / "gone"), "data_dir=.*data does not exist"),
        (
            lambda r: [(r / "train").mkdir(), [(r / c).rename(r / "train" / c) for c in CLASSES]],
            "holds train/ but no test/",
        ),
        (lambda r: Image.fromarray(np.zeros((12, 12), np.uint16)).save(r / "cat/x.png"), "more than 8 bits"),
        (lambda r: [(r / f"dog/{i}.png").unlink() for i in range(4)], "the class of dog/4.png has this one file alone"),
    ],
)
def test_what_is_wrong_with_images_is_one_sentence(tmp_path, damage, sentence):
    damage(images(tmp_path / "data"))
    with pytest.raises(DataError, match=sentence) as raised:
        build_data(config("image_folder", tmp_path / "data"))
    assert "\n" not in str(raised.value)


def test_parts_need_the_same_classes(tmp_path):
    root = images(tmp_path / "data", parts=("train", "test"))
    image(root / "train" / "fox" / "0.png")
    with pytest.raises(DataError, match="class fox is missing in test/"):
        build_data(config("image_folder", root))
    (root / "train" / "fox" / "0.png").unlink()
    (root / "train" / "fox").rmdir()
    (root / "extra").mkdir()
    with pytest.raises(DataError, match="extra/ beside test and train: it is no part of its own"):
        build_data(config("image_folder", root))


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
    cfg = config("image_folder", root, "dataset.test_share=0.5", "augment.flip=0")
    found = SETS["image_folder"].of(cfg)
    assert np.allclose(found.statistics[0], 127.5)
    data, (_, test) = found.build(cfg), found.parts(cfg)
    x, wanted = next(iter(data.test.epoch(0)))[0], np.where(np.arange(12) < 6, -1.0, 1.0)
    assert torch.allclose(x, torch.tensor(wanted, dtype=torch.float32).expand_as(x))
    for row, image_file in enumerate(test.images):
        assert torch.equal(found.sample(cfg, str(image_file), lambda _: None)[0], x[row])


def test_files_that_are_not_read_are_counted(tmp_path):
    root = images(tmp_path / "data", n=4)
    for i in range(8):
        (root / "cat" / f"{i}.gif").write_bytes(b"GIF89a")
    with pytest.warns(
        UserWarning, match=r"image_folder: 8 of 20 files in data_dir=.* are not read, .*cat/0.gif among them"
    ):
        build_data(config("image_folder", root))


def test_a_pixel_that_is_no_number_is_refused(monkeypatch):
    cfg, digits = load_config(["dataset=digits"]), SETS["digits"]
    (train, labels, *names), test = digits.read()
    broken = np.array(train)
    broken[3, 0, 2, 2] = np.nan
    monkeypatch.setattr(type(digits), "read", lambda self: ((broken, labels, *names), test))
    with pytest.raises(DataError, match=f"^digits: image 3 of {len(broken)} holds a pixel that is NaN or infinite"):
        build_data(cfg)
    with pytest.raises(DataError, match="^the image: image 0 of 1 holds a pixel that is NaN"):
        digits.sample(cfg, broken[3], lambda _: None)


def test_every_changed_file_changes_the_fingerprint(tmp_path):
    root = images(tmp_path / "data")
    seen = [fingerprint(cfg := config("image_folder", root))]
    image(root / "cat" / "more.png")
    seen.append(fingerprint(cfg))
    (root / "cat" / "more.png").unlink()
    assert fingerprint(cfg) == seen[0]
    content = bytearray((root / "dog" / "3.png").read_bytes())
    content[-20] ^= 1
    (root / "dog" / "3.png").write_bytes(content)
    seen.append(fingerprint(cfg))
    assert len({str(s) for s in seen}) == 3
    moved = root.rename(tmp_path / "moved")
    assert fingerprint(config("image_folder", moved)) == seen[2]


def test_the_configuration_is_checked_with_what_is_found(tmp_path):
    root = images(tmp_path / "data")
    with pytest.raises(ConfigError, match="vgg48 is wired for 48x48 pixels and dataset=image_folder gives 12x12"):
        config("image_folder", root, "model=vgg48", "neuron=leaky_imp")
    away = load_config(["dataset=image_folder"])  # shown, listed and compared without the images
    assert config_hash(away) == config_hash(config("image_folder", root))
    assert "data_dir is not set" in str(_lacks(away))
    assert _lacks(config("image_folder", root)) is None
    assert SETS["image_folder"].state(away)[0] == "missing"


# ------------------------------------------------------------------ recordings


WRITERS = {
    ".npz": save_npz,
    ".aedat": lambda path, e: path.write_bytes(encode_aedat2(e)),
    ".bin": lambda path, e: path.write_bytes(encode_atis(e)),
}


@pytest.mark.parametrize("suffix, shape", [(".npz", (20, 24)), (".aedat", (128, 128)), (".bin", (20, 24))])
def test_recordings_are_found_prepared_and_split(tmp_path, suffix, shape):
    root = recordings(tmp_path / "mine", write=WRITERS[suffix], suffix=suffix)
    cfg = prepared(root, tmp_path / "cache")
    assert (tmp_path / "cache/event_folder/mine/T2-number/frames.npy").is_file()
    data = build_data(cfg)
    assert (data.input_shape, data.num_classes, data.split.id) == (
        (2, *shape),
        3,
        "event_folder/stratified,test=0.2,seed=0",
    )
    assert (data.split.n_train, data.split.n_test) == (12, 3)
    found = SETS["event_folder"].of(cfg)
    (test,) = {n for n in data_names(cfg) if n.startswith("dog")}
    x, label = next(iter(data.test.epoch(0)))
    wanted = integrate(events(1, int(Path(test).stem)), 2, shape)
    assert np.array_equal(x[:, label.tolist().index(1)], wanted)
    assert found.num_classes == 3


def data_names(cfg):
    """Names of the test samples."""
    from snn_repro.data.cache import open_cache

    found = SETS["event_folder"].of(cfg)
    cache = open_cache(found.cache_settings(cfg), cfg.cache_dir, cfg.data_dir)
    return [cache.names[i] for i in found.split(cfg, cache)[2]]


def test_aedat_3_takes_the_sensor_from_its_header(tmp_path):
    root = recordings(tmp_path / "mine", 2, write=lambda p, e: p.write_bytes(encode_aedat3(e)), suffix=".aedat")
    assert build_data(prepared(root, tmp_path / "cache")).input_shape == (2, 128, 128)


def test_folders_of_parts_of_recordings_and_folders_in_classes(tmp_path):
    root = recordings(tmp_path / "mine", 2, ("train", "valid", "test"))
    (root / "train/cat/day1").mkdir()
    save_npz(root / "train/cat/day1/x.npz", events(0, 9))
    data = build_data(prepared(root, tmp_path / "cache"))
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (7, 6, 6)
    assert data.split.id == "event_folder/folders,val=folder"


def test_a_given_sensor_is_taken_and_kept(tmp_path):
    root = recordings(tmp_path / "mine", 2)
    cfg = prepared(root, tmp_path / "cache", "dataset.sensor=[32,40]")
    assert build_data(cfg).input_shape == (2, 32, 40)
    with pytest.raises(DataError, match=r"was made with sensor=\[32, 40\], not sensor=\[24, 24\]"):
        build_data(
            config("event_folder", root, f"cache_dir={tmp_path / 'cache'}", "timesteps=2", "dataset.sensor=[24,24]")
        )
    with pytest.raises(DataError, match="are bad.*sensor of 8 x 8"):
        prepared(root, tmp_path / "other", "dataset.sensor=[8,8]")


def test_a_cache_notices_every_changed_file(tmp_path):
    root = recordings(tmp_path / "mine")
    cfg = prepared(root, tmp_path / "cache")
    before = fingerprint(cfg)
    save_npz(root / "cat/new.npz", events(0, 8))
    with pytest.raises(DataError, match="cat/new.npz is in data_dir=.*rebuild it with `python scripts/prepare_data.py"):
        build_data(cfg)
    with pytest.raises(DataError, match="stale"):
        prepared(root, tmp_path / "cache")
    (root / "cat/new.npz").rename(root / "cat/0.npz")
    with pytest.raises(DataError, match="stale: cat/0.npz had"):
        save_npz(root / "cat/0.npz", events(0, 8, n=301))
        build_data(cfg)
    prepare(SETS["event_folder"].of(cfg), root, cfg.cache_dir, 2, workers=0, rebuild=True, say=lambda _: None)
    assert fingerprint(cfg) != before
    (root / "fox").mkdir()
    save_npz(root / "fox/0.npz", events(3, 0))
    with pytest.raises(DataError, match=r"made with classes=\['cat', 'dog', 'owl'\], not classes="):
        build_data(cfg)


def test_folders_of_one_name_share_a_cache_only_if_they_are_the_same_data(tmp_path):
    cfg = prepared(recordings(tmp_path / "a/mine", 2), tmp_path / "cache")
    same, other = recordings(tmp_path / "b/mine", 2), recordings(tmp_path / "c/mine", 2)
    save_npz(other / "owl/1.npz", events(9, 9))  # of the same length
    assert fingerprint(prepared(same, tmp_path / "cache")) == fingerprint(cfg)
    with pytest.raises(DataError, match="stale: owl/1.npz has changed: its CRC-32 was .* or give the data_dir"):
        prepared(other, tmp_path / "cache")
    with pytest.raises(DataError, match="stale: owl/1.npz has changed"):
        build_data(config("event_folder", other, f"cache_dir={tmp_path / 'cache'}", "timesteps=2"))


def test_a_stray_event_makes_no_sensor(tmp_path):
    root, e = recordings(tmp_path / "mine", 2), events(2, 2)
    e.x[7] = 3000
    save_npz(root / "owl/0.npz", e)
    with pytest.raises(DataError, match="^owl/0.npz: x reaches 3000 and half of the recordings stay below 24; remove"):
        prepared(root, tmp_path / "cache")


def test_a_cache_serves_without_the_recordings(tmp_path):
    root = recordings(tmp_path / "mine", 2)
    cfg = prepared(root, tmp_path / "cache")
    root.rename(tmp_path / "away")
    assert build_data(cfg).num_classes == 3
    assert SETS["event_folder"].state(cfg) == ("ready", None)


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda r: (r / "empty").mkdir(), "empty holds no recording"),
        (lambda r: [(r / c).rename(r / f".{c}") for c in CLASSES[1:]], "holds only the class cat"),
        (lambda r: (r / "dog/0.npz").write_bytes(b"PK no"), "1 of 6 recordings of event_folder are bad .*dog/0.npz"),
        (lambda r: (r / "dog/0.npz").rename(r / "dog/a,b.npz"), "holds a comma"),
        (
            lambda r: [np.savez(f, ts=[0], x=[0], y=[0], p=[0]) for f in r.rglob("*.npz")],
            "not one recording .* can be read: cat/0.npz: it lacks t: the columns t .microseconds.*holds: p, ts, x, y",
        ),
        (lambda r: r.rename(r.parent / "gone"), "does not exist"),
        (
            lambda r: [(r / "train").mkdir(), [(r / c).rename(r / "train" / c) for c in CLASSES]],
            "holds train/ but no test/",
        ),
    ],
)
def test_what_is_wrong_with_recordings_is_one_sentence(tmp_path, damage, sentence):
    damage(recordings(tmp_path / "mine", 2))
    with pytest.raises(DataError, match=sentence) as raised:
        prepared(tmp_path / "mine", tmp_path / "cache")
    assert "\n" not in str(raised.value)


def test_without_frames_the_command_that_makes_them(tmp_path, capsys):
    root = recordings(tmp_path / "mine", 2)
    with pytest.raises(UserError, match="no prepared frames .*prepare_data.py dataset=event_folder data_dir=.*mine"):
        build_data(config("event_folder", root, f"cache_dir={tmp_path}"))
    assert script("prepare_data").main(["dataset=event_folder", f"data_dir={root}", f"cache_dir={root}"]) == 2
    assert "inside of the data set's own folder" in capsys.readouterr().err


def test_a_bad_recording_that_is_left_out_moves_no_other(tmp_path):
    root = recordings(tmp_path / "mine", 10)
    whole = data_names(prepared(root, tmp_path / "one"))
    bad = next(n for n in ("dog/4.npz", "dog/5.npz") if n not in whole)
    (root / bad).write_bytes(b"bad")
    cfg = config("event_folder", root, f"cache_dir={tmp_path / 'two'}", "timesteps=2")
    prepare(SETS["event_folder"].of(cfg), root, cfg.cache_dir, 2, workers=0, allow_bad=True, say=lambda _: None)
    assert data_names(cfg) == whole
    assert build_data(cfg).split.id == "event_folder/stratified,test=0.2,seed=0,dropped=1"


# ------------------------------------------------------------------ tables of events


def test_columns_apart_in_a_group_and_as_a_structured_array(tmp_path):
    e = events(0, 0, 50)
    table = np.zeros(50, [("t", "i8"), ("x", "u2"), ("y", "u2"), ("p", "?")])
    for key, values in zip("txyp", e, strict=True):
        table[key] = values
    np.savez_compressed(tmp_path / "a.npz", t=e.t.astype(float), x=e.x, y=e.y, p=2 * e.p.astype(int) - 1)
    np.savez(tmp_path / "b.npz", events=table, height=20, width=24.0)
    with h5py.File(tmp_path / "a.h5", "w") as f:
        for key, values in zip("txyp", e, strict=True):
            f[f"events/{key}"] = values
    with h5py.File(tmp_path / "b.hdf5", "w") as f:
        f["events"] = table
        f["height"], f.attrs["width"] = 20, 24
    for name, size in {"a.npz": None, "b.npz": (20, 24), "a.h5": None, "b.hdf5": (20, 24)}.items():
        found = read_recording((tmp_path / name).read_bytes(), name)
        assert found.size == size
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found.events, e, strict=True)), name


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(t=None, p=None), r"lacks t, p: the columns t \(microseconds\), x, y and p .* are wanted.*it holds: x, y"),
        (dict(events=np.zeros((2, 4))), "lacks t, x, y, p.*it holds: no names"),
        (dict(t=np.array([0.5, 1.5])), "t holds fractions, 0.5 at event 0; times are microseconds"),
        (dict(t=np.array([0, 2**63], np.uint64)), "t is 9223372036854775808 at event 1, which is not from"),
        (dict(t=np.array([0, 1e300])), r"t is 1e\+300 at event 1, which is not from"),
        (dict(t=np.array([0, np.nan])), "t is nan at event 1; every event needs a number"),
        (dict(t=np.array([0, np.inf])), "t is inf at event 1; every event needs a number"),
        (dict(t=np.array([5, 0])), "t falls from 5 to 0 at event 1; sort the events by t"),
        (dict(p=np.array([0, 7])), "p is 7 at event 1"),
        (dict(p=np.array([0, -1])), "p holds -1, 0 and 1; polarities are 0 and 1, or -1 and 1"),
        (dict(x=np.array([0, 30_000])), "x is 30000 at event 1, which is not from 0 to 4095"),
        (dict(x=np.array([0])), r"one value an event and have \[2, 1, 2, 2\]"),
        (dict(t=np.array([None, 1], object)), "t cannot be read .*[Oo]bject arrays"),
        (dict(y=np.array(["a", "b"])), r"y is <U1 \[2\], not one number an event"),
        (dict(height=np.array([]), width=24), r"height is \[\]; a number of pixels"),
        (dict(height=20, width=np.array("wide")), r"width is \['wide'\]; a number of pixels"),
        (dict(height=20, width=0), r"width is \[0\]; a number of pixels"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(tmp_path, change, sentence):
    columns = {k: np.array([0, 1]) for k in "txyp"} | change
    np.savez_compressed(tmp_path / "a.npz", **{k: v for k, v in columns.items() if v is not None})
    with pytest.raises(FormatError, match=f"^a.npz: .*{sentence}") as raised:
        read_recording((tmp_path / "a.npz").read_bytes(), "a.npz")
    assert "\n" not in str(raised.value)


def test_a_file_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("snn_repro.data.event_tables.LARGEST", 100_000)
    np.savez_compressed(tmp_path / "a.npz", **dict.fromkeys("txyp", np.zeros(6_000, np.int64)))
    with h5py.File(tmp_path / "a.h5", "w") as f:
        for key in "txyp":
            f.create_dataset(key, data=np.zeros(6_000, np.int64), compression="gzip")
    monkeypatch.setattr(np, "asarray", None)  # no column is read
    for name in ("a.npz", "a.h5"):
        with pytest.raises(FormatError, match=r"holds 19\d,\d+ bytes and 100,000 are read at most; cut it"):
            read_recording((tmp_path / name).read_bytes(), name)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_file_that_breaks_off_is_an_error(tmp_path, suffix):
    e = events(0, 0)
    if suffix == ".npz":
        save_npz(tmp_path / "a.npz", e)
    else:
        with h5py.File(tmp_path / "a.h5", "w") as f:
            for key, values in zip("txyp", e, strict=True):
                f[key] = values
    whole = (tmp_path / f"a{suffix}").read_bytes()
    for end in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        with pytest.raises(FormatError):
            read_recording(whole[:end], f"a{suffix}")


@pytest.mark.parametrize(
    "suffix, version", [(".aedat4", None), (".raw", "evt2"), (".raw", "evt3"), (".dat", None), (".es", None)]
)
def test_faery_reads_what_it_wrote(tmp_path, suffix, version):
    faery = pytest.importorskip("faery")
    e = events(0, 0)
    table = np.zeros(len(e.t), faery.EVENTS_DTYPE)
    for key, values in zip("txyp", e, strict=True):
        table[key] = values
    faery.events_stream_from_array(table, (24, 20)).to_file(tmp_path / f"a{suffix}", version=version)
    found, size = read_recording((tmp_path / f"a{suffix}").read_bytes(), f"a{suffix}")
    assert size == (20, 24)
    assert np.array_equal(found.t - found.t[0], e.t - e.t[0])  # .es begins at 0
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found[1:], e[1:], strict=True))
    with pytest.raises(FormatError, match="faery cannot read it"):
        read_recording(b"nothing of the kind", "a.aedat4")


def test_faery_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faery", None)
    with pytest.raises(UserError, match="a.raw is read by faery, which is not installed: pip install faery"):
        read_recording(b"", "a.raw")


# ------------------------------------------------------------------ runs


def test_runs_train_resume_and_refuse_other_data(tmp_path):
    root = images(tmp_path / "data", n=4)
    cfg = config("image_folder", root, *QUICK, f"hydra.run.dir={tmp_path / 'run'}", "neuron=if_imp")
    result = run(cfg)
    assert (result.num_classes, result.input_size) == (3, [3, 12, 12])
    assert run(cfg).acc_last == result.acc_last
    trained = load_run(tmp_path / "run")
    assert trained.class_names == list(CLASSES) and trained.input_shape == (3, 12, 12)
    data, (_, test) = build_data(cfg), SETS["image_folder"].of(cfg).parts(cfg)
    x = next(iter(data.test.epoch(0)))[0]
    assert torch.equal(trained.transform(str(test.images[1])), x[1:2])  # as its test gives it
    image(root / "cat" / "more.png")
    with pytest.raises(UserError, match="other data"):
        run(cfg)
    root.rename(tmp_path / "away")
    assert load_run(tmp_path / "run").class_names == list(CLASSES)


def test_a_run_on_recordings(tmp_path):
    root = recordings(tmp_path / "mine", 3)
    prepared(root, tmp_path / "cache")
    folders = [f"cache_dir={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"]
    cfg = config("event_folder", root, *QUICK, *folders, "neuron=lif_imp")
    result = run(cfg)
    assert (result.num_classes, result.input_size, result.timesteps) == (3, [2, 20, 24], 2)
    trained = load_run(tmp_path / "run")
    x = next(iter(build_data(cfg).test.epoch(0)))[0]
    assert trained.class_names == list(CLASSES)
    assert torch.equal(trained.transform(root / data_names(cfg)[0]), x[:, :1])
    with pytest.raises(DataError, match="no recording that can be read"):
        trained.transform(__file__)
