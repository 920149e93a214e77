"""Frames that decay on the disk are noticed; prepared data with a bad file keep the published split."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from fixtures import encode_aedat2, encode_aedat3, open_cache, verify_cache, write_cifar10_dvs, write_dvs_gesture
from fixtures import make_cache as prepare

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data import prepare as module
from snn_repro.data.batches import MemoryBatches, RowCheck
from snn_repro.data.events import Events
from snn_repro.data.recordings import find_recordings
from snn_repro.data.sets import SETS
from snn_repro.data.splits import named_split, sha256_of_names
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "prepare_data.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PLAIN = ["augment.mixup=0", "augment.cutmix=0", "augment.label_smoothing=0"]


def run(raw, cache, dataset="cifar10_dvs", **options):
    return prepare(dataset, raw, cache, 4, **{"workers": 0, "say": lambda _: None, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_cifar10_dvs(folder / "raw")
    run(folder / "raw", folder / "cache")
    return folder


@pytest.fixture
def cached(made, tmp_path):
    """(cache_dir, the cache's folder): one that may be damaged."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    return tmp_path / "cache", tmp_path / "cache/cifar10_dvs/T4-number"


def rot(folder, row, size=100):
    """Zeros or ones in the middle of a row."""
    cache = np.load(folder / "frames.npy", mmap_mode="r")
    with open(folder / "frames.npy", "r+b") as file:
        file.seek(128 + row * cache[0].nbytes + 300)
        was = file.read(size)
        file.seek(-size, 1)
        file.write(bytes(255 - b for b in was))


def as_version_1(folder):
    """What an earlier version would have written."""
    with open(folder / "index.csv") as file:
        rows = list(csv.reader(file))
    column = rows[0].index("row_crc32")
    text = "".join(",".join(r[:column] + r[column + 1 :]) + "\n" for r in rows)
    (folder / "index.csv").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"format_version": 1, "index_sha256": module.hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def built(cache_dir, *options):
    return build_data(
        load_config(
            ["dataset=cifar10_dvs", "timesteps=4", f"cache_dir={cache_dir}", "recipe.batch_size=5", *PLAIN, *options]
        )
    )


def script(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, **options
    )


# ------------------------------------------------------------------ checksums


@pytest.mark.parametrize("size", [None, 48])
def test_the_index_holds_the_checksum_of_each_row_as_stored(tmp_path, size):
    """One with counts beyond a byte too, rows that were written before the type was widened, and those behind a gap."""
    write_cifar10_dvs(tmp_path / "raw")
    events = Events(
        np.arange(70_000), *(np.full(70_000, v, k) for v, k in ((7, np.int16), (9, np.int16), (1, np.uint8)))
    )
    (tmp_path / "raw/frog/cifar10_frog_999.aedat").write_bytes(encode_aedat2(events))
    (tmp_path / "raw/cat/cifar10_cat_333.aedat").write_bytes(b"bad")
    prepare("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 1, frame_size=size, workers=0, allow_bad=True)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 1, frame_size=size)
    assert cache.frames.dtype == (np.float32 if size else np.uint8) and len(cache.frames) == 39
    assert cache.checksums == [zlib.crc32(frames.tobytes()) for frames in cache.frames]
    assert verify_cache("cifar10_dvs", tmp_path / "cache", 1, frame_size=size)[1] == []


def test_rot_in_a_row_is_an_error_at_its_first_read(cached):
    """In any part of the data; the sentence names the cache, the recording and the command; off takes what is there."""
    cache_dir, folder = cached
    data = built(cache_dir, "dataset.validation=0.2")
    parts = {"train": data.train, "val": data.val, "test": data.test}
    for part, batches in parts.items():
        list(batches.epoch(0))
        row = int(batches.rows[len(batches.rows) // 2])
        rot(folder, row)
        list(batches.epoch(1))  # only the first read of a run is checked
        name = open_cache("cifar10_dvs", cache_dir, 4).names[row]
        fresh = getattr(built(cache_dir, "dataset.validation=0.2"), part)
        with pytest.raises(DataError) as caught:
            list(fresh.epoch(0))
        assert f"{folder}/frames.npy is damaged: the frames of {name} (row {row})" in str(caught.value)
        assert "prepare_data.py dataset=cifar10_dvs" in str(caught.value) and "rebuild=true" in str(caught.value)
        assert "dataset.verify=off" in str(caught.value)
        list(getattr(built(cache_dir, "dataset.validation=0.2", "dataset.verify=off"), part).epoch(0))
        rot(folder, row)  # back again
        list(getattr(built(cache_dir, "dataset.validation=0.2"), part).epoch(0))


def test_row_checks_change_no_batch_and_no_hash(cached):
    from snn_repro.config import config_hash

    checked, unchecked = (built(cached[0], f"dataset.verify={v}") for v in ("first_read", "off"))
    for (x, y), (a, b) in zip(checked.train.epoch(3), unchecked.train.epoch(3), strict=True):
        assert (x == a).all() and (y == b).all()
    hashes = {config_hash(load_config(["dataset=cifar10_dvs", f"dataset.verify={v}"])) for v in ("first_read", "off")}
    assert len(hashes) == 1
    with pytest.raises(UserError, match="dataset.verify='no' is not one of first_read, off"):
        load_config(["dataset=cifar10_dvs", "dataset.verify=no"])


def test_threads_share_a_row_check_and_each_row_is_computed_once(cached, monkeypatch):
    cache = open_cache("cifar10_dvs", cached[0], 4)
    check, computed = RowCheck(cache), []
    original = RowCheck.intact
    monkeypatch.setattr(RowCheck, "intact", lambda self, row, f: computed.append(row) or original(self, row, f))
    batches = MemoryBatches(cache.frames, cache.labels, 7, check=check)
    for _ in range(2):
        list(batches.epoch(0))
    assert sorted(computed) == list(range(40)) and all(check.checked)
    shared, errors = RowCheck(cache), []
    rot(cached[1], 17)

    def read(start):
        for row in np.roll(np.arange(40), start):
            try:
                shared(int(row), cache.frames[row])
            except DataError:
                errors.append(int(row))

    threads = [threading.Thread(target=read, args=(k,)) for k in (0, 11, 29)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert errors == [17, 17, 17] and sum(shared.checked) == 39  # a bad row stays bad


def test_a_version_1_cache_opens_with_one_warning(cached):
    cache_dir, folder = cached
    expected = [x.sum().item() for x, _ in built(cache_dir).train.epoch(0)]
    as_version_1(folder)
    rot(folder, 0)  # goes unseen
    rot(folder, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = built(cache_dir)
    told = [str(w.message) for w in caught if "checksums" in str(w.message)]
    assert len(told) == 1 and "\n" not in told[0] and str(folder) in told[0]
    assert "rebuild it with `python scripts/prepare_data.py dataset=cifar10_dvs" in told[0]
    assert [x.sum().item() for x, _ in data.train.epoch(0)] == expected
    with pytest.raises(DataError, match="has no checksums, as an earlier version made it; rebuild it with"):
        verify_cache("cifar10_dvs", cache_dir, 4)


def test_verify_lists_the_bad_rows_and_exits_with_2(cached):
    cache_dir, folder = cached
    words = ["dataset=cifar10_dvs", "timesteps=4", f"cache_dir={cache_dir}", "verify=true"]
    done = script(*words)
    assert done.returncode == 0 and "all 40 rows are as they were stored" in done.stdout, done.stderr
    names = open_cache("cifar10_dvs", cache_dir, 4).names
    for row in (3, 39):
        rot(folder, row)
    done = script(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"2 of 40 rows are not what was stored: {names[3]}, {names[39]}; rebuild it with" in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("bad: ")] == [names[3], names[39]]
    done = script(*words, "rebuild=true")
    assert done.returncode == 2 and "verify=true only reads a finished cache: leave out rebuild=true" in done.stderr


@pytest.mark.parametrize("content", ["[]", "7", '{"format_version": 2}', '{"format_version": 2, "excluded": [1]}'])
def test_a_manifest_of_another_shape_is_one_sentence(cached, content):
    cache_dir, folder = cached
    known = json.loads((folder / "manifest.json").read_text())
    made = json.loads(content)
    if isinstance(made, dict) and "excluded" in made:
        made = known | made
    (folder / "manifest.json").write_text(json.dumps(made))
    with pytest.raises(DataError, match="rebuild it with"):
        open_cache("cifar10_dvs", cache_dir, 4)


def test_a_folder_that_is_no_cache_is_neither_published_nor_replaced_unasked(tmp_path, made):
    partial = tmp_path / "cache/cifar10_dvs/T4-number.partial"
    partial.mkdir(parents=True)
    (partial / "frames.npy").write_bytes(b"without the rest")
    assert run(made / "raw", tmp_path / "cache").read == 40
    (tmp_path / "other/cifar10_dvs/T4-number").mkdir(parents=True)
    with pytest.raises(
        DataError, match="is there, but is no finished cache: remove it, or replace it with rebuild=true"
    ):
        run(made / "raw", tmp_path / "other")
    assert run(made / "raw", tmp_path / "other", rebuild=True).read == 40


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timesteps": 10**8}, "timesteps=100000000 frames of 128 x 128 pixels would take 13107 GB"),
        ({"frame_size": 10**5}, "frames of 100000 x 100000 pixels would take"),
        ({"workers": 10**6}, "workers=1000000 must be from 0 to 1,024"),
        ({"workers": -1}, "workers=-1 must be from 0"),
    ],
)
def test_sizes_out_of_proportion_are_refused(made, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare("cifar10_dvs", made / "raw", tmp_path / "cache", **{"timesteps": 2, **options})
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot be written"):
        run(made / "raw", tmp_path / "loop")


# ------------------------------------------------------------------ splits


def test_an_excluded_recording_leaves_the_published_test_set(tmp_path):
    """From the cache to the batches: without airplane_0 the split is the published one less that file, and says so."""
    names = [f"{c}/cifar10_{c}_{i}.aedat" for c in ("airplane", "cat") for i in range(1000)]
    recording = encode_aedat2(
        Events(*(np.arange(4).astype(k) for k in (np.int64, np.int16, np.int16)), np.ones(4, np.uint8))
    )
    for name in names:
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(recording)
    (tmp_path / "raw" / names[0]).write_bytes(b"bad")
    prepare("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 1, frame_size=4, workers=0, allow_bad=True)
    complete = sorted(f"{c}/cifar10_{c}_{i}.aedat" for c in SETS["cifar10_dvs"].class_names for i in range(1000))
    labels = [SETS["cifar10_dvs"].class_names.index(n.split("/")[0]) for n in complete]
    for split in ("random", "front90", "tebn"):
        data = build_data(
            load_config(
                [
                    "dataset=cifar10_dvs",
                    "timesteps=1",
                    "dataset.frame_size=4",
                    f"cache_dir={tmp_path / 'cache'}",
                    *PLAIN,
                ]
                + [f"dataset.split={split}", "dataset.validation=0"]
            )
        )
        _, test = named_split(SETS["cifar10_dvs"], split, complete, labels)
        expected = {complete[i] for i in test} & set(names[1:])
        assert data.split.sha256_test == sha256_of_names(sorted(expected)) and data.split.n_test == len(expected)
        assert data.split.id == f"cifar10_dvs/{split},dropped=8001"


def test_a_recording_that_the_published_set_has_not_is_told(tmp_path):
    write_cifar10_dvs(tmp_path / "raw")
    shutil.copy(tmp_path / "raw/cat/cifar10_cat_333.aedat", tmp_path / "raw/cat/cifar10_cat_1000.aedat")
    run(tmp_path / "raw", tmp_path / "cache")
    with pytest.warns(UserWarning, match="dataset.split=tebn is drawn on its own list of 41 names"):
        data = built(tmp_path / "cache")
    assert data.split.id == "cifar10_dvs/tebn"


def test_gesture_validation_holds_out_people(tmp_path):
    write_dvs_gesture(tmp_path / "raw", train_users=5)
    run(tmp_path / "raw", tmp_path / "cache", "dvs_gesture")
    options = ["dataset=dvs_gesture", "timesteps=4", f"cache_dir={tmp_path / 'cache'}", *PLAIN]
    data = build_data(load_config([*options, "dataset.validation=0.2"]))
    names = open_cache("dvs_gesture", tmp_path / "cache", 4).names
    people = [{names[i].split("_")[0] for i in part.rows.tolist()} for part in (data.train, data.val, data.test)]
    assert [len(p) for p in people] == [4, 1, 1] and not people[0] & people[1]
    assert (data.split.n_train, data.split.n_val) == (48, 12)
    assert data.split.id == "dvs_gesture/official,dropped=1392,val=0.2,by=person,seed=0"


# ------------------------------------------------------------------ how the program is called


CALL = """
from snn_repro.data.cache import Settings
from snn_repro.data.prepare import event_set, prepare
print(prepare(Settings(event_set('cifar10_dvs'), 2), {raw!r}, {cache!r}, workers=2).read)
"""


@pytest.mark.parametrize("how", ["stdin", "no main guard", "-c"])
def test_prepare_runs_from_stdin_and_without_a_main_guard(made, tmp_path, how):
    code = CALL.format(raw=str(made / "raw"), cache=str(tmp_path / "cache"))
    (tmp_path / "script.py").write_text(code)
    command = {"stdin": ["-"], "no main guard": [str(tmp_path / "script.py")], "-c": ["-c", code]}[how]
    done = subprocess.run(
        [sys.executable, *command],
        input=code if how == "stdin" else None,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "40", done.stderr
    assert not done.stderr


@pytest.mark.parametrize("how", ["| head -1", ">&-", "| true"])
def test_a_closed_stdout_is_no_unwritable_cache(made, tmp_path, how):
    """The work is finished in silence."""
    words = f"dataset=cifar10_dvs data_dir={made / 'raw'} cache_dir={tmp_path / 'cache'} timesteps=2 workers=1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} {SCRIPT} {words} {how}"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert verify_cache("cifar10_dvs", tmp_path / "cache", 2, say=lambda _: None)[1] == []
    assert not list((tmp_path / "cache/cifar10_dvs").glob("*.partial"))


def test_what_say_raises_is_not_taken_for_a_failed_write(made, tmp_path):
    def broken(line):
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run(made / "raw", tmp_path / "cache", say=broken)
    assert run(made / "raw", tmp_path / "cache").samples == 40


def test_prepare_in_a_daemon_process(made, tmp_path):
    """Such a process may have no children of its own: it reads alone."""
    code = (
        "import multiprocessing as m\nfrom snn_repro.data.cache import Settings\n"
        "from snn_repro.data.prepare import event_set, prepare\nsettings = Settings(event_set('cifar10_dvs'), 2)\n"
        f"p = m.get_context('fork').Process(target=prepare, args=(settings, {str(made / 'raw')!r},"
        f" {str(tmp_path / 'cache')!r}), daemon=True)\np.start()\np.join()\nraise SystemExit(p.exitcode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(open_cache("cifar10_dvs", tmp_path / "cache", 2).names) == 40


def test_notes_of_readers_are_one_line_each(tmp_path):
    """A recording whose headers count events that their own valid bits do not."""
    trials = write_dvs_gesture(tmp_path / "raw", train_users=1)
    file = next(iter(trials))
    data = bytearray(encode_aedat3(trials[file].events, others=False))
    at = data.index(b"#!END-HEADER\r\n") + 14 + 28
    data[at] &= 0xFE
    (tmp_path / "raw/DvsGesture" / file).write_bytes(data)
    words = f"dataset=dvs_gesture data_dir={tmp_path / 'raw'} cache_dir={tmp_path / 'cache'} workers=1".split()
    done = script(*words)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and f"{file}: kept 1 of" in notes[0]
    assert find_recordings(SETS["dvs_gesture"], tmp_path / "raw").problems == {}
