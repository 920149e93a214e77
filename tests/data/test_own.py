"""Own data: `event_folder` finds classes, sizes and parts by itself, and says what is wrong in one sentence."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from fixtures import encode_aedat2, encode_aedat3, encode_atis, random_recording
from fixtures import make_cache as prepare

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data.cache import open_cache
from snn_repro.data.events import integrate
from snn_repro.data.formats import FormatError, read_recording
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError
from snn_repro.runs.folder import fingerprint

CLASSES = ("cat", "dog", "owl")


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


def config(root: Path, *overrides: str):
    return load_config(["dataset=event_folder", f"data_dir={root}", "timesteps=2", *overrides])


def prepared(root: Path, cache: Path, *overrides: str):
    """The configuration of a run on recordings that were prepared now."""
    cfg = config(root, f"cache_dir={cache}", *overrides)
    prepare(SETS["event_folder"].of(cfg), root, cache, 2)
    return cfg


WRITERS = {
    ".npz": save_npz,
    ".aedat": lambda path, e: path.write_bytes((encode_aedat2, encode_aedat3)[int(path.stem) % 2](e)),
    ".bin": lambda path, e: path.write_bytes(encode_atis(e)),
}


def data_names(cfg):
    """Names of the test samples."""
    found = SETS["event_folder"].of(cfg)
    cache = open_cache(found.cache_settings(cfg), cfg.cache_dir, cfg.data_dir)
    return [cache.names[i] for i in found.split(cfg, cache)[2]]


@pytest.mark.parametrize("suffix, shape", [(".npz", (20, 24)), (".aedat", (128, 128)), (".bin", (20, 24))])
def test_recordings_are_found_prepared_and_split(tmp_path, suffix, shape):
    cfg = prepared(recordings(tmp_path / "mine", write=WRITERS[suffix], suffix=suffix), tmp_path / "cache")
    assert (tmp_path / "cache/event_folder/mine/T2-number/frames.npy").is_file()
    data = build_data(cfg)
    assert (data.input_shape, data.num_classes) == ((2, *shape), 3)
    assert data.split.id == "event_folder/stratified,test=0.2,seed=0"
    assert (data.split.n_train, data.split.n_test) == (12, 3)
    (test,) = {n for n in data_names(cfg) if n.startswith("dog")}
    x, label = next(iter(data.test.epoch(0)))
    wanted, at = integrate(events(1, int(Path(test).stem)), 2, shape), label.tolist().index(1)
    assert np.array_equal(x[:, at], wanted)
    assert np.array_equal(SETS["event_folder"].sample(cfg, tmp_path / "mine" / test, print)[:, 0], wanted)
    with pytest.raises(DataError, match="no recording that can be read"):
        SETS["event_folder"].sample(cfg, __file__, print)


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
        build_data(config(root, f"cache_dir={tmp_path / 'cache'}", "dataset.sensor=[24,24]"))
    with pytest.raises(DataError, match="are bad.*sensor of 8 x 8"):
        prepared(root, tmp_path / "other", "dataset.sensor=[8,8]")


def test_a_cache_notices_every_changed_file_and_serves_without_any(tmp_path):
    root = recordings(tmp_path / "a/mine", 3)
    cfg = prepared(root, tmp_path / "cache")
    same, other = recordings(tmp_path / "b/mine", 3), recordings(tmp_path / "c/mine", 3)
    save_npz(other / "owl/1.npz", events(9, 9))  # of the same length
    before = fingerprint(cfg)
    assert fingerprint(prepared(same, tmp_path / "cache")) == before
    with pytest.raises(DataError, match="stale: the content of owl/1.npz has changed; .* or give the data_dir"):
        prepared(other, tmp_path / "cache")
    other.rename(tmp_path / "away")
    assert build_data(config(other, f"cache_dir={cfg.cache_dir}")).num_classes == 3
    assert SETS["event_folder"].state(cfg) == ("ready", None)
    save_npz(root / "cat/0.npz", events(0, 8, n=301))
    with pytest.raises(DataError, match="stale: cat/0.npz had"):
        build_data(cfg)
    save_npz(root / "cat/0.npz", events(0, 0))
    save_npz(root / "cat/new.npz", events(0, 8))
    with pytest.raises(DataError, match="cat/new.npz is in data_dir=.*rebuild it with `python scripts/prepare_data.py"):
        build_data(cfg)
    prepare(SETS["event_folder"].of(cfg), root, cfg.cache_dir, 2, rebuild=True)
    assert fingerprint(cfg) != before
    (root / "owl").rename(root / "fox")
    with pytest.raises(DataError, match=r"made with classes=\['cat', 'dog', 'owl'\], not classes="):
        build_data(cfg)


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda r: (r / "empty").mkdir(), "empty holds no recording"),
        (lambda r: [(r / c).rename(r / f".{c}") for c in CLASSES[1:]], "holds only the class cat"),
        (lambda r: (r / "dog/0.npz").write_bytes(b"PK no"), "1 of 6 recordings of event_folder are bad .*dog/0.npz"),
        (lambda r: (r / "dog/0.npz").rename(r / "dog/a,b.npz"), "holds a comma"),
        (
            lambda r: [np.savez(f, ts=[0], x=[0], y=[0], p=[0]) for f in r.rglob("*.npz")],
            "no recording .* can be read: cat/0.npz: it lacks t: the columns t .microseconds.*holds: p, ts, x, y",
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


def test_a_bad_recording_that_is_left_out_moves_no_other(tmp_path):
    root = recordings(tmp_path / "mine", 10)
    whole = data_names(prepared(root, tmp_path / "one"))
    bad = next(n for n in ("dog/4.npz", "dog/5.npz") if n not in whole)
    (root / bad).write_bytes(b"bad")
    cfg = config(root, f"cache_dir={tmp_path / 'two'}")
    prepare(SETS["event_folder"].of(cfg), root, cfg.cache_dir, 2, allow_bad=True)
    assert data_names(cfg) == whole
    assert build_data(cfg).split.id == "event_folder/stratified,test=0.2,seed=0,dropped=1"


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
        whole = (tmp_path / name).read_bytes()
        for end in (0, 1, len(whole) // 2, len(whole) - 1):
            with pytest.raises(FormatError):
                read_recording(whole[:end], name)
        found, said = read_recording(whole, name)
        assert said == size
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found, e, strict=True)), name


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(t=None, p=None), r"lacks t, p: the columns t \(microseconds\), x, y and p .* required.*it holds: x, y"),
        (dict(events=np.zeros((2, 4))), "lacks t, x, y, p.*it holds: no names"),
        (dict(t=np.array([0.5, 1.5])), "t is 0.5 at event 0, not a whole number of microseconds"),
        (dict(t=np.array([0, 2**63], np.uint64)), "t is 9223372036854775808 at event 1, not a whole"),
        (dict(t=np.array([0, np.inf])), "t is inf at event 1"),
        (dict(t=np.array([1005, 4])), "t falls from 1005 to 4 at event 1; sort the events by t"),
        (dict(p=np.array([0, 7])), "p is 7 at event 1"),
        (dict(p=np.array([0, -1])), "p holds -1, 0 and 1; polarities are 0 and 1, or -1 and 1"),
        (dict(x=np.array([0, 30_000])), "x is 30000 at event 1, not a whole number from 0 to 4095"),
        (dict(x=np.array([0])), r"different lengths \[2, 1, 2, 2\]"),
        (dict(t=np.array([None, 1], object)), "it cannot be read .*[Oo]bject arrays"),
        (dict(y=np.array(["a", "b"])), r"y is <U1 \[2\], not one number per event"),
        (dict(height=20, width=np.array("wide")), r"width is <U4 \[1\]"),
        (dict(height=20, width=0), "width is 0, not a whole number from 1 to 4096"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(tmp_path, change, sentence):
    columns = {k: np.array([0, 1]) for k in "txyp"} | change
    np.savez_compressed(tmp_path / "a.npz", **{k: v for k, v in columns.items() if v is not None})
    with pytest.raises(FormatError, match=f"^a.npz: .*{sentence}") as raised:
        read_recording((tmp_path / "a.npz").read_bytes(), "a.npz")
    assert "\n" not in str(raised.value)


# a file, the package that reads it independently, how, and its columns t, x, y, p
READERS = [
    ("a.aedat4", "aedat", lambda m, path: np.concatenate([p["events"] for p in m.Decoder(path) if "events" in p]), "t x y on"),
    ("a.aedat4", "dv_processing", lambda m, path: np.concatenate([
        batch.numpy() for batch in iter(m.io.MonoCameraRecording(path).getNextEventBatch, None)]), "timestamp x y polarity"),
    ("evt2.raw", "expelliarmus", lambda m, path: m.Wizard("evt2", path).read(), "t x y p"),
    ("evt3.raw", "evt3", lambda m, path: m.decode_file(path).to_dict(), "timestamp x y polarity"),
    ("a.dat", "expelliarmus", lambda m, path: m.Wizard("dat", path).read(), "t x y p"),
    ("a.es", "event_stream", lambda m, path: np.concatenate([*m.Decoder(path)]), "t x y on"),
]  # fmt: skip


@pytest.mark.parametrize("file, package, read, columns", READERS)
def test_camera_files_are_read_as_by_an_independent_reader(tmp_path, file, package, read, columns):
    """40 s of 640x480 pixels: EVT 3's clock of 24 bits turns over twice. Times are relative to the first event."""
    faery, n, rng = pytest.importorskip("faery"), 20_000, np.random.default_rng(0)
    written = np.zeros(n, faery.EVENTS_DTYPE)
    written["t"] = 7_000 + 2_000 * np.arange(n) + rng.integers(0, 2_000, n)
    written["x"], written["y"], written["p"] = (rng.integers(0, high, n) for high in (640, 480, 2))
    path, version = tmp_path / file, file[:4] if file.startswith("evt") else None
    faery.events_stream_from_array(written, (640, 480)).to_file(path, version=version)
    ours, size = read_recording(path.read_bytes(), file)
    assert size == (480, 640) and [a.dtype for a in ours] == [np.int64, np.int16, np.int16, np.uint8]

    def equal(t, x, y, p):
        assert np.array_equal(ours.t - ours.t[0], t - t[0])
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:], (x, y, p), strict=True))

    equal(*(written[key].astype(np.int64) for key in "txyp"))
    with pytest.raises(FormatError, match="faery cannot read it"):
        read_recording(b"nothing of the kind", "a.aedat4")
    theirs = read(pytest.importorskip(package), str(path))
    t, x, y, p = (np.asarray(theirs[column]).astype(np.int64) for column in columns.split())
    equal(t, x, 479 - y if file == "a.es" else y, p)  # ES counts rows from below


def test_faery_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faery", None)
    with pytest.raises(UserError, match="a.raw is read by faery, which is not installed: pip install faery"):
        read_recording(b"", "a.raw")


def test_a_file_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("snn_repro.data.formats.LARGEST", 100_000)
    np.savez_compressed(tmp_path / "a.npz", **dict.fromkeys("txyp", np.zeros(6_000, np.int64)))
    with h5py.File(tmp_path / "a.h5", "w") as f:
        for key in "txyp":
            f.create_dataset(key, data=np.zeros(6_000, np.int64), compression="gzip")
    monkeypatch.setattr(np, "asarray", None)  # no column is read
    for name in ("a.npz", "a.h5"):
        with pytest.raises(FormatError, match=r"holds 19\d,\d+ bytes, more than the limit of 100,000; split it"):
            read_recording((tmp_path / name).read_bytes(), name)
