"""Preparation: every event arrives, a killed run goes on, bad files are told, damaged, stale and foreign caches refused."""

import contextlib
import hashlib
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fixtures import (
    encode_aedat2,
    encode_aedat3,
    open_cache,
    verify_cache,
    write_cifar10_dvs,
    write_dvs_gesture,
    write_ncaltech101,
)
from fixtures import make_cache as run
from scripts_of_ours import script
from torchvision.transforms.functional import resize

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data import cache as module
from snn_repro.data.batches import RowCheck
from snn_repro.data.events import Events, integrate
from snn_repro.data.sets import SETS
from snn_repro.data.splits import named_split
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
ROOT = Path(__file__).parents[2]
PLAIN = ["augment.mixup=0", "augment.cutmix=0", "augment.label_smoothing=0"]
SETS_OF = {  # writer, sensor, training samples
    "cifar10_dvs": (write_cifar10_dvs, (128, 128), 30),
    "dvs_gesture": (write_dvs_gesture, (128, 128), 24),
    "ncaltech101": (write_ncaltech101, (180, 240), 10),
}


def expected_samples(dataset, written):
    """{sample name: its events} from what a fixture wrote."""
    if dataset != "dvs_gesture":
        return written
    samples = {}
    for file, trial in written.items():
        for i, (_, start, stop) in enumerate(trial.rows):
            inside = (trial.events.t >= start) & (trial.events.t < stop)
            samples[f"{file}:{i:02d}"] = Events(*(a[inside] for a in trial.events))
    return samples


def tree(folder):
    """Every file below a folder with its content and time: what must not change."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_frames(cache, samples, size=(128, 128), timesteps=4):
    assert cache.names == sorted(samples)
    for name, frames in zip(cache.names, cache.frames, strict=True):
        np.testing.assert_array_equal(frames, integrate(samples[name], timesteps, size), err_msg=name)


def built(cache_dir, *options, dataset="cifar10_dvs"):
    words = [f"dataset={dataset}", "timesteps=4", f"cache_dir={cache_dir}", "recipe.batch_size=5", *PLAIN, *options]
    return build_data(load_config(words))


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """{data set: (folder with raw and cache, what was written)}."""
    made = {}
    for dataset, (write, *_) in SETS_OF.items():
        folder = tmp_path_factory.mktemp(dataset)
        written = write(folder / "raw", archive=dataset == "dvs_gesture")
        before = tree(folder / "raw")
        report = run(dataset, folder / "raw", folder / "cache", 4, workers=2)
        assert report.samples == report.read and not report.problems and tree(folder / "raw") == before
        made[dataset] = folder, expected_samples(dataset, written), written
    return made


@pytest.fixture(scope="module")
def made(raws):
    return raws["cifar10_dvs"][0]


@pytest.fixture
def cached(made, tmp_path):
    """(cache_dir, the cache's folder): one that may be damaged."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    return tmp_path / "cache", tmp_path / "cache/cifar10_dvs/T4-number"


def rot(folder, row):
    """Other bytes in the middle of a row."""
    frames = np.load(folder / "frames.npy", mmap_mode="r+")
    frames[row].reshape(-1)[300:400] += 1
    frames.flush()


# ------------------------------------------------------------------ what a cache holds


@pytest.mark.parametrize("dataset", SETS_OF)
def test_a_cache_holds_every_event_of_every_sample(raws, dataset):
    folder, samples, written = raws[dataset]
    cache = open_cache(dataset, folder / "cache", 4, data_dir=folder / "raw")
    assert isinstance(cache.frames, np.memmap) and cache.frames.dtype == np.uint8
    assert_frames(cache, samples, SETS_OF[dataset][1])
    assert cache.checksums == [zlib.crc32(frames.tobytes()) for frames in cache.frames]
    if dataset == "dvs_gesture":
        rows = {f"{f}:{i:02d}": (row[0] - 1, t.part) for f, t in written.items() for i, row in enumerate(t.rows)}
        assert [*zip(cache.labels, cache.parts, strict=True)] == [rows[n] for n in cache.names]
    else:
        assert [SETS[dataset].class_names[k] for k in cache.labels] == [n.split("/")[0] for n in cache.names]
    again = run(dataset, folder / "raw", folder / "cache", 4)
    assert (again.read, again.samples) == (0, len(samples))


def test_resized_frames_are_torchvisions(tmp_path):
    written = write_ncaltech101(tmp_path / "raw", classes=("accordion",))
    run("ncaltech101", tmp_path / "raw", tmp_path / "cache", 4, "time", 48)
    cache = open_cache("ncaltech101", tmp_path / "cache", 4, "time", 48)
    assert cache.frames.dtype == np.float16 and cache.frames.shape == (3, 4, 2, 48, 48)
    for i, name in enumerate(cache.names):
        counts = torch.from_numpy(integrate(written[name], 4, (180, 240), by="time").astype(np.float32))
        assert np.array_equal(cache.frames[i], resize(counts, [48, 48], antialias=True).numpy().astype(np.float16))


def hot(n, pixel_count):
    """n events, `pixel_count` of them at one pixel, in one frame's worth of time."""
    t = np.arange(n, dtype=np.int64)
    x = np.where(t < pixel_count, 7, t % 100 + 10).astype(np.int16)
    return Events(t, x, (t * 7 % 128).astype(np.int16) * (t >= pixel_count), np.ones(n, np.uint8))


def test_large_counts_stand_in_a_table_and_lose_nothing(tmp_path):
    written = write_cifar10_dvs(tmp_path / "raw", per_class=1, classes=("cat",))
    (tmp_path / "raw/cat/cifar10_cat_0.aedat").write_bytes(b"bad")  # what comes before a gap, and behind it
    written.clear()
    for number, (n, count) in {1: (900, 255), 2: (900, 256), 5: (70_000, 66_000), 7: (300, 20)}.items():
        name = f"cat/cifar10_cat_{number}.aedat"
        written[name] = hot(n, count)
        (tmp_path / "raw" / name).write_bytes(encode_aedat2(written[name]))
    for size, dtype in ((None, np.uint8), (128, np.float32)):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 1, frame_size=size, allow_bad=True)
        cache = open_cache("cifar10_dvs", tmp_path / "cache", 1, frame_size=size)
        assert cache.frames.dtype == dtype and max(frames.max() for frames in cache.frames) == 66_000
        assert_frames(cache, written, timesteps=1)
        assert verify_cache("cifar10_dvs", tmp_path / "cache", 1, size)[1] == []
    table = tmp_path / "cache/cifar10_dvs/T1-number/overflow.npy"
    changed = np.load(table)
    assert changed["count"].tolist() == [256, 66_000]
    changed["count"] += 1
    np.save(table, changed)
    with pytest.raises(DataError, match="overflow.npy does not belong to manifest.json.*; rebuild it with"):
        open_cache("cifar10_dvs", tmp_path / "cache", 1)


# ------------------------------------------------------------------ bad files


def test_bad_files_are_all_listed_and_only_those_are_read_again(tmp_path):
    written = write_cifar10_dvs(tmp_path / "raw")
    bad = ["cat/cifar10_cat_333.aedat", "dog/cifar10_dog_0.aedat", "frog/cifar10_frog_999.aedat"]
    good = {name: (tmp_path / "raw" / name).read_bytes() for name in bad}
    damages = good[bad[0]][:-3], b"not a recording", good[bad[2]][: good[bad[2]].index(b"2015") + 6]
    for name, content in zip(bad, damages, strict=True):
        (tmp_path / "raw" / name).write_bytes(content)
    said = []
    with pytest.raises(DataError, match="3 of 40 recordings of cifar10_dvs are bad .*allow_bad=true"):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4, say=said.append)
    told = sorted(line for line in said if line.startswith("bad: "))
    assert [line.split()[1].strip(",:") for line in told] == bad
    assert "byte" in told[0] and "truncated" in told[0] and "no events" in told[2]
    with pytest.raises(UserError, match="unfinished one is there"):
        open_cache("cifar10_dvs", tmp_path / "cache", 4)
    for name in bad[:2]:
        (tmp_path / "raw" / name).write_bytes(good[name])
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4, allow_bad=True)
    assert (report.read, report.samples) == (2, 39)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 4)
    assert [p["name"] for p in cache.manifest["excluded"]] == [bad[2]] == [*cache.excluded]
    del written[bad[2]]
    assert_frames(cache, written)


def test_a_gesture_row_without_events_a_missing_trial_and_notes_of_a_reader(tmp_path):
    trials = write_dvs_gesture(tmp_path / "raw", train_users=3)
    root = tmp_path / "raw" / "DvsGesture"
    first, second = sorted(trials)[:2]
    (root / second).unlink()
    with open(root / first.replace(".aedat", "_labels.csv"), "a") as table:
        table.write("3,1,2\n")
    data = bytearray(encode_aedat3(trials[first].events, others=False))
    data[data.index(b"#!END-HEADER\r\n") + 14 + 28] &= 0xFE
    (root / first).write_bytes(data)
    said = []
    for _ in range(2):  # the file with the bad row is not taken as read
        with pytest.raises(DataError, match="2 of 38 recordings"):
            run("dvs_gesture", tmp_path / "raw", tmp_path / "cache", 4, say=said.append)
    assert "2 of 3 files were read before" in said
    assert len([line for line in said if line.startswith("note: ") and "disagree about 1 of" in line]) == 2
    report = run("dvs_gesture", tmp_path / "raw", tmp_path / "cache", 4, allow_bad=True)
    assert (report.samples, report.read) == (36, 12) and {*report.problems} == {second, f"{first}:12"}
    assert "is missing, though trials_to_train.txt lists it" in report.problems[second]


# ------------------------------------------------------------------ stopping and going on


def test_an_interrupted_run_reads_only_the_rest_and_damaged_parts(tmp_path, monkeypatch):
    written = write_cifar10_dvs(tmp_path / "raw", per_class=6, events=60)
    told = []

    def stop(line):
        told.append(line)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4, say=stop, workers=1)
    parts = sorted((tmp_path / "cache/cifar10_dvs/T4-number.partial").glob("*.npz"))
    assert 20 < len(parts) <= 60
    for part, damage in zip(parts, (lambda d: d[:-99], lambda d: b"7", lambda d: d[:9000] + b"!!" + d[9002:])):  # noqa: B905
        part.write_bytes(damage(part.read_bytes()))
    (tmp_path / "raw/cat/cifar10_cat_0.aedat").touch()  # changed since
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4)
    assert (report.read, report.samples) in ((60 - len(parts) + 3, 60), (60 - len(parts) + 4, 60))
    assert_frames(open_cache("cifar10_dvs", tmp_path / "cache", 4), written)


@pytest.mark.parametrize("step", ["_join", "write_text", "rename"])
def test_stopped_while_finishing(tmp_path, made, raws, monkeypatch, step):
    """At each step of finishing: what was read is not read again, and the cache comes out whole."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((Path, "rename") if step == "rename" else (module, step)), stop)
    with pytest.raises(KeyboardInterrupt):
        run("cifar10_dvs", made / "raw", tmp_path / "cache", 4)
    monkeypatch.undo()
    report = run("cifar10_dvs", made / "raw", tmp_path / "cache", 4)
    assert (report.read, report.samples) == (0, 40)
    assert_frames(open_cache("cifar10_dvs", tmp_path / "cache", 4), raws["cifar10_dvs"][1])
    assert {f.name for f in report.folder.iterdir()} == {"frames.npy", "index.csv", "manifest.json"}
    assert [*report.folder.parent.iterdir()] == [report.folder]


def test_two_runs_at_once_a_full_disk_and_folders_that_are_no_cache(tmp_path, made, monkeypatch):
    inner = []

    def second(line):
        with pytest.raises(UserError, match="another run is preparing"):
            run("cifar10_dvs", made / "raw", tmp_path / "cache", 4)
        inner.append(line)

    run("cifar10_dvs", made / "raw", tmp_path / "cache", 4, say=second)
    assert inner

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="cannot write .*T4-number.partial: the disk is"),
    ):
        patch.setattr(np, "savez", full)
        run("cifar10_dvs", made / "raw", tmp_path / "other", 4)
    (tmp_path / "third/cifar10_dvs/T4-number").mkdir(parents=True)
    with pytest.raises(UserError, match="no prepared frames at .*T4-number.*rebuild=true"):
        run("cifar10_dvs", made / "raw", tmp_path / "third", 4)
    assert run("cifar10_dvs", made / "raw", tmp_path / "third", 4, rebuild=True).read == 40


def test_no_cache_tells_the_command(tmp_path):
    with pytest.raises(UserError, match="cache_dir is not set.*prepare_data.py dataset=ncaltech101"):
        open_cache("ncaltech101", None, 10)
    with pytest.raises(UserError, match="no prepared frames.*timesteps=10 integrate_by=time frame_size=48` once"):
        open_cache("ncaltech101", tmp_path / "cache", 10, "time", 48)
    with pytest.raises(UserError, match="dataset=cifar10 needs no preparation.*did you mean 'cifar10_dvs'"):
        run("cifar10", tmp_path, tmp_path / "cache", 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 1}, "it has cache format 1, this version reads 3.; rebuild it with `python"),
        ({"timesteps": 9}, "it was made with timesteps=9, not timesteps=4"),
        ({"dataset": "dvs_gesture"}, "it was made with dataset=dvs_gesture"),
        ({"index_sha256": "0"}, "index.csv does not belong to"),
        ({"dtype": "uint16"}, "frames.npy holds"),
        ({"excluded": [1]}, "cannot be read"),
        ([], "cannot be read"),
    ],
)
def test_a_foreign_manifest(cached, change, sentence):
    manifest = json.loads((cached[1] / "manifest.json").read_text())
    (cached[1] / "manifest.json").write_text(json.dumps(manifest | change if change else change))
    with pytest.raises(DataError, match=sentence):
        open_cache("cifar10_dvs", cached[0], 4)


def test_damaged_files_of_a_cache_and_one_of_version_2(cached):
    manifest = (cached[1] / "manifest.json").read_text()
    (cached[1] / "manifest.json").write_text(manifest.replace('"format_version": 3', '"format_version": 2'))
    assert len(open_cache("cifar10_dvs", cached[0], 4).names) == 40
    for name in ("manifest.json", "index.csv", "frames.npy"):
        content = (cached[1] / name).read_bytes()
        (cached[1] / name).write_bytes(content[:-40])
        with pytest.raises(DataError, match="rebuild it with"):
            open_cache("cifar10_dvs", cached[0], 4)
        (cached[1] / name).write_bytes(content)


# ------------------------------------------------------------------ checksums of rows


def test_rot_in_a_row_is_an_error_at_its_first_read(cached):
    """The sentence names the cache, the recording and the command; off takes what is there."""
    cache_dir, folder = cached
    data = built(cache_dir)
    list(data.test.epoch(0))
    row = int(data.test.rows[3])
    rot(folder, row)
    list(data.test.epoch(1))  # only the first read of a run is checked
    list(built(cache_dir, "dataset.verify=off").test.epoch(0))
    name = open_cache("cifar10_dvs", cache_dir, 4).names[row]
    with pytest.raises(DataError, match="rebuild=true.*dataset.verify=off") as caught:
        list(built(cache_dir).test.epoch(0))
    assert f"{folder}/frames.npy is damaged: the frames of {name} (row {row})" in str(caught.value)
    assert "prepare_data.py dataset=cifar10_dvs" in str(caught.value)


def test_each_row_is_checked_once_and_a_bad_one_stays_bad(cached, monkeypatch):
    cache, computed = open_cache("cifar10_dvs", cached[0], 4), []
    rot(cached[1], 17)
    check, original = RowCheck(cache), RowCheck.intact
    monkeypatch.setattr(RowCheck, "intact", lambda self, row, f: computed.append(row) or original(self, row, f))
    for _ in range(2):
        for row in range(40):
            with contextlib.nullcontext() if row != 17 else pytest.raises(DataError):
                check(row, cache.frames[row])
    assert sorted(computed) == sorted([*range(40), 17])


def test_the_program_prepares_verifies_and_refuses(tmp_path, made, capsys):
    main = script("prepare_data").main
    words = f"dataset=cifar10_dvs cache_dir={tmp_path / 'cache'} timesteps=5 integrate_by=time frame_size=48".split()
    raw = f"data_dir={made / 'raw'}"
    assert main([*words, raw, "frame_sizes=48"]) == 2 and "frame_sizes" in capsys.readouterr().err
    assert main([*words, raw, "workers=2"]) == 0
    said = capsys.readouterr().out
    speed = r"40 recordings, 40 of them read now \([\d,]+ events, [\d,]+ per second\)"
    assert re.search(speed, said) and "complete data set has 10000" in said
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 5, "time", 48)
    assert cache.frames.shape == (40, 5, 2, 48, 48)
    assert main([*words, "verify=true"]) == 0
    assert "all 40 rows match their checksums" in capsys.readouterr().out
    for row in (3, 39):
        rot(cache.folder, row)
    assert main([*words, "verify=true"]) == 2
    told = capsys.readouterr()
    bad = [cache.names[3], cache.names[39]]
    assert f"2 of 40 rows do not match their checksums: {', '.join(bad)}; rebuild the cache with" in told.err
    assert [line.split()[1] for line in told.out.splitlines() if line.startswith("bad: ")] == bad
    assert main([*words, "verify=true", "rebuild=true"]) == 2
    assert "verify=true only reads a finished cache; leave out rebuild=true" in capsys.readouterr().err


# ------------------------------------------------------------------ from the cache to batches


@pytest.mark.parametrize("dataset", SETS_OF)
def test_builders_and_eventdrop_which_reads_recordings(raws, dataset):
    (folder, samples, _), (_, size, n_train) = raws[dataset], SETS_OF[dataset]
    options = [f"data_dir={folder / 'raw'}", "recipe.batch_size=8", "recipe.class_balanced=true"]
    with pytest.warns(UserWarning, match="do not compare"):
        data = built(folder / "cache", *options, dataset=dataset)
    assert data.split.n_train == n_train == data.train.n_samples
    assert data.split.n_train + data.split.n_test == len(samples)
    assert data.input_shape == (2, *size) and not data.static and data.val is None
    x, target = next(data.train.epoch(0))
    assert x.shape == (4, 8, *data.input_shape) and x.dtype == torch.float32 and target.dtype == torch.int64
    dropped = next(built(folder / "cache", *options, "augment.eventdrop=true", dataset=dataset).train.epoch(0))
    assert torch.equal(dropped[1], target) and 0 < dropped[0].sum() < x.sum()


class Opened(NamedTuple):
    """What a split asks of a cache."""

    names: list
    labels: np.ndarray
    parts: np.ndarray
    excluded: dict


def split_of(names, label, parts=(), excluded=(), dataset="cifar10_dvs", *options):
    """(training names, validation names, test names, the Split) of a cache that holds `names`."""
    cfg = load_config([f"dataset={dataset}", "recipe=digits", *options])
    cache = Opened(names, np.array([*map(label, names)]), np.array(parts), dict.fromkeys(excluded, "bad"))
    *rows, split = SETS[dataset].split(cfg, cache)
    return *([names[i] for i in part] for part in rows), split


def class_of(name):
    return SETS["cifar10_dvs"].class_names.index(name.split("/")[0])


@pytest.mark.parametrize("split", ["random", "front90", "tebn"])
def test_an_excluded_recording_leaves_the_published_test_set(split):
    """Without airplane_0 the split is the published one less that file, and says so."""
    complete = sorted(f"{c}/cifar10_{c}_{i}.aedat" for c in SETS["cifar10_dvs"].class_names for i in range(1000))
    there = [n for n in complete if n.split("/")[0] in ("airplane", "cat") and n != "airplane/cifar10_airplane_0.aedat"]
    options = f"dataset.split={split}", "dataset.validation=0"
    train, _, test, found = split_of(
        there, class_of, [], ["airplane/cifar10_airplane_0.aedat"], "cifar10_dvs", *options
    )
    _, published = named_split(SETS["cifar10_dvs"], split, complete, [*map(class_of, complete)])
    expected = {complete[i] for i in published} & {*there}
    assert {*test} == expected and {*train} == {*there} - expected
    names = "".join(f"{n}\n" for n in sorted(expected))
    assert found.sha256_test == hashlib.sha256(names.encode()).hexdigest() and found.n_test == len(expected)
    assert found.id == f"cifar10_dvs/{split},dropped=8001"


def test_a_recording_that_the_published_set_has_not_is_told():
    names = sorted(f"cat/cifar10_cat_{i}.aedat" for i in (*range(0, 1000, 25), 1000))
    with pytest.warns(UserWarning, match="dataset.split=tebn is drawn on its own list of 41 names"):
        assert split_of(names, class_of)[-1].id == "cifar10_dvs/tebn"


def test_gesture_validation_holds_out_people():
    names = [f"user{u:02d}_led.aedat:{i:02d}" for u in (1, 2, 3, 4, 5, 24) for i in range(12)]
    parts = ["train"] * 60 + ["test"] * 12
    *found, split = split_of(names, lambda n: int(n[-2:]) % 11, parts, [], "dvs_gesture", "dataset.validation=0.2")
    people = [{name.split("_")[0] for name in part} for part in found]
    assert [len(p) for p in people] == [4, 1, 1] and not people[0] & people[1]
    assert (split.n_train, split.n_val) == (48, 12)
    assert split.id == "dvs_gesture/official,dropped=1392,val=0.2,by=person,seed=0"
