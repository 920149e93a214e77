"""An image set and an event set from files outside of the package: one Python file and one yaml each, and everything knows them."""

import importlib
import struct
import sys
import zipfile

import numpy as np
import pytest
from fixtures import make_cache as prepare
from fixtures import open_cache, verify_cache

from snn_repro import train
from snn_repro.config import ConfigError, help_text, load_config, to_dict
from snn_repro.data import build_data
from snn_repro.data.batches import LoaderBatches
from snn_repro.data.events import Events, integrate
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError
from snn_repro.paper.rows import Row
from snn_repro.runs.fingerprint import fingerprint
from snn_repro.train import run

IMAGES = '''
from snn_repro.data.sets import ImageSet, register


@register("blobs")
class Blobs(ImageSet):
    """Three classes of grey squares."""

    shape, num_classes = (1, 8, 8), 3
    samples = 60, 30
    statistics = [127.5], [60.0]
    files = (("blobs.npz",),)
    expected = "blobs.npz"
    published = "https://example.org/blobs"

    def read(self, file):
        import numpy as np

        with np.load(file) as f:
            return (f["x_train"], f["y_train"]), (f["x_test"], f["y_test"])
'''
EVENTS = '''
import struct

from snn_repro.data.sets import EventSet, register
from snn_repro.errors import DataError


@register("sparks")
class Sparks(EventSet):
    """Two classes of sparks; a file is its number of events, then x, y, polarity and time of each."""

    shape, num_classes = (2, 12, 16), 2
    samples = 18, 2
    class_names = ("left", "right")
    pattern = r"{c}_\\d+\\.spk"
    expected = "the folders left and right, or left.zip and right.zip"

    def decode(self, data, name):
        import numpy as np

        from snn_repro.data.events import Events

        (n,) = struct.unpack_from("<I", data)
        if len(data) != 4 + 7 * n:
            raise DataError(f"{name} should have {n} events and has {len(data)} bytes")
        x, y, p, t = (np.array(v) for v in zip(*struct.iter_unpack("<BBBI", data[4:])))
        return Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))
'''
SHORT = ["logger.mode=disabled", "recipe=digits", "recipe.batch_size=8", "recipe.epochs=2", "threads=1"]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Both registered, their yamls in a folder; forgotten behind the test. -> overrides(name, *others)."""
    (tmp_path / "blobs_set.py").write_text(IMAGES)
    (tmp_path / "sparks_set.py").write_text(EVENTS)
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/blobs.yaml").write_text("# three classes of grey squares\nname: blobs\ntimesteps: 3\n")
    (tmp_path / "conf/dataset/sparks.yaml").write_text(
        "# two classes of sparks\nname: sparks\ntimesteps: 3\nsplit: random\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = dict(SETS), dict(SETS._owners)
    for module in ("blobs_set", "sparks_set"):
        importlib.import_module(module)

    def overrides(name, *others):
        places = [f"hydra.searchpath=[file://{tmp_path}/conf]", f"dataset={name}", f"data_dir={tmp_path}/data"]
        return [*places, f"cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run-{name}", *SHORT, *others]

    yield overrides
    for module in ("blobs_set", "sparks_set"):
        sys.modules.pop(module, None)
    for there, before in zip((SETS, SETS._owners), kept, strict=True):
        there.clear()
        there.update(before)


def write_blobs(root, seed=0):
    rng = np.random.default_rng(seed)
    parts = {}
    for part, n in (("train", 60), ("test", 30)):
        labels = np.arange(n) % 3
        parts[f"y_{part}"] = labels
        parts[f"x_{part}"] = rng.integers(0, 60, (n, 1, 8, 8), np.uint8) + (80 * labels[:, None, None, None]).astype(
            np.uint8
        )
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "blobs.npz", **parts)
    return parts


def spark(rng, k, n=40):
    x = rng.integers(0, 8, n) + 8 * k
    return Events(np.sort(rng.integers(0, 9000, n)), x, rng.integers(0, 12, n), rng.integers(0, 2, n))


def write_sparks(root, archive=False):
    rng, written = np.random.default_rng(0), {}
    for k, c in enumerate(("left", "right")):
        for i in range(10):
            events = written[f"{c}/{c}_{i}.spk"] = spark(rng, k)
            rows = zip(events.x, events.y, events.p, events.t, strict=True)
            data = struct.pack("<I", 40) + b"".join(struct.pack("<BBBI", *map(int, row)) for row in rows)
            (root / c).mkdir(parents=True, exist_ok=True)
            (root / c / f"{c}_{i}.spk").write_bytes(data)
        if archive:
            with zipfile.ZipFile(root / f"{c}.zip", "w") as packed:
                for file in sorted((root / c).iterdir()):
                    packed.write(file, f"{c}/{file.name}")
                    file.unlink()
            (root / c).rmdir()
    return written


def resumed(words, monkeypatch):
    """The result of a run that was stopped after its first epoch and went on, and of one that was not."""
    whole = run(load_config([*words, "force=true"]))
    epoch = train.Training.train_epoch
    with monkeypatch.context() as broken:

        def stops(self, number, *args):
            if number:
                raise KeyError("stopped")
            return epoch(self, number, *args)

        broken.setattr(train.Training, "train_epoch", stops)
        with pytest.raises(KeyError):
            run(load_config([*words, "force=true"]))
    epochs = []
    with monkeypatch.context() as watched:
        watched.setattr(
            train.Training,
            "train_epoch",
            lambda self, number, *args: epochs.append(number) or epoch(self, number, *args),
        )
        again = run(load_config(words))
    assert epochs == [1]
    return again, whole


def test_an_image_set_trains_resumes_and_has_a_fingerprint(sets, tmp_path, monkeypatch):
    written = write_blobs(tmp_path / "data")
    words = sets("blobs", "dataset.validation=0.1", "augment.crop_padding=1")
    config = load_config(words)
    data = build_data(config)
    assert data.split.id == "blobs/official,val=0.1,seed=0" and data.split.n_test == 30 and data.static
    x, y = next(data.test.epoch(0))
    assert (
        np.allclose(x.numpy() * 60 + 127.5, written["x_test"], atol=1e-3) and y.tolist() == written["y_test"].tolist()
    )
    again, whole = resumed(words, monkeypatch)
    assert again["loss_last"] == whole["loss_last"] and again["split_id"] == "blobs/official,val=0.1,seed=0"
    found = fingerprint(config)
    assert set(found) == {"files"} and whole["data"] == found
    write_blobs(tmp_path / "data", seed=1)
    assert fingerprint(config) != found
    pil = build_data(load_config(sets("blobs", "augment.randaugment_ops=1")))
    assert isinstance(pil.train, LoaderBatches) and next(pil.train.epoch(0))[0].shape == (8, 1, 8, 8)
    smaller = build_data(load_config(sets("blobs", "dataset.frame_size=6")))
    assert smaller.input_shape == (1, 6, 6)


def test_an_event_set_is_prepared_trains_resumes_and_has_a_fingerprint(sets, tmp_path, monkeypatch):
    written = write_sparks(tmp_path / "data/Sparks", archive=True)
    words = sets("sparks", "dataset.validation=0.2", "augment.nda=true")
    config = load_config(words)
    assert SETS["sparks"].state(config)[0] == "not prepared"
    with pytest.raises(UserError, match="prepare_data.py dataset=sparks"):
        build_data(config)
    report = prepare("sparks", config.data_dir, config.cache_dir, 3, workers=2, say=lambda _: None)
    assert (report.samples, report.expected) == (20, 20) and SETS["sparks"].state(config) == ("ready", None)
    cache = open_cache("sparks", config.cache_dir, 3, data_dir=config.data_dir)
    assert verify_cache("sparks", config.cache_dir, 3, say=lambda _: None)[1] == []
    for name, frames in zip(cache.names, cache.frames, strict=True):
        np.testing.assert_array_equal(frames, integrate(written[name], 3, (12, 16)))
    data = build_data(config)
    assert data.split.id == "sparks/random,val=0.2,seed=0" and (data.split.n_test, data.input_shape) == (2, (2, 12, 16))
    again, whole = resumed(words, monkeypatch)
    assert again["loss_last"] == whole["loss_last"] and whole["split_id"] == data.split.id
    assert set(fingerprint(config)) == {"prepared frames"} and whole["data"] == fingerprint(config)
    dropped = build_data(load_config(sets("sparks", "augment.eventdrop=true")))
    assert next(dropped.train.epoch(0))[0].shape == (3, 8, 2, 12, 16)
    assert "cache_dir=" in Row(to_dict(config)).command()


def test_what_is_wrong_is_told_in_their_names(sets, tmp_path):
    assert "blobs" in help_text() and "sparks" in help_text()
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="blobs was not found in data_dir=.*: expected blobs.npz.*example.org/blobs"):
        build_data(load_config(sets("blobs")))
    with pytest.raises(UserError, match="needs no preparation; these do: .*sparks"):
        prepare("blobs", tmp_path / "data", tmp_path / "cache", 3)
    with pytest.raises(ConfigError, match="augment.nda=true works on event frames and dataset=blobs has images"):
        load_config(sets("blobs", "augment.nda=true"))
    with pytest.raises(ConfigError, match="dataset.split=tail is unknown for sparks; choose one of: random"):
        load_config(sets("sparks", "dataset.split=tail"))
    write_sparks(tmp_path / "data")
    spoilt = tmp_path / "data/left/left_3.spk"
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    said = []
    with pytest.raises(DataError, match="1 of 20 recordings of sparks are bad"):
        prepare("sparks", tmp_path / "data", tmp_path / "cache", 3, workers=0, say=said.append)
    assert "bad: left/left_3.spk should have 40 events and has 283 bytes" in said
    np.savez(tmp_path / "data/blobs.npz", **(write_blobs(tmp_path / "data") | {"y_test": np.full(30, 3)}))
    with pytest.raises(DataError, match="blobs was read with labels 3 to 3, and its file in data/sets/ says 3 classes"):
        build_data(load_config(sets("blobs")))


def test_a_name_is_taken_once(sets):
    from snn_repro.data.sets import ImageSet, register

    with pytest.raises(UserError, match="there is a data set 'digits' already"):
        register("digits")(type("Other", (ImageSet,), {}))
