"""Preparation: every event arrives, a killed run goes on, bad files are told, damaged, stale and foreign caches refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

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

from snn_repro.config import config_hash, load_config
from snn_repro.data import build_data
from snn_repro.data import prepare as module
from snn_repro.data.batches import MemoryBatches, RowCheck
from snn_repro.data.events import Events, integrate
from snn_repro.data.sets import SETS
from snn_repro.data.splits import named_split, sha256_of_names
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


def rot(folder, row, size=100):
    """Other bytes in the middle of a row; done twice, it is whole again."""
    cache = np.load(folder / "frames.npy", mmap_mode="r")
    with open(folder / "frames.npy", "r+b") as file:
        file.seek(128 + row * cache[0].nbytes + 300)
        was = file.read(size)
        file.seek(-size, 1)
        file.write(bytes(255 - b for b in was))


# ------------------------------------------------------------------ what a cache holds


@pytest.mark.parametrize("dataset", SETS_OF)
def test_a_cache_holds_every_event_of_every_sample(raws, dataset):
    folder, samples, written = raws[dataset]
    cache = open_cache(dataset, folder / "cache", 4, data_dir=folder / "raw")
    assert isinstance(cache.frames, np.memmap) and cache.frames.dtype == np.uint8
    assert_frames(cache, samples, SETS_OF[dataset][1])
    assert cache.events.tolist() == [len(samples[n].t) for n in cache.names]
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
    written = write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    (tmp_path / "raw/cat/cifar10_cat_0.aedat").write_bytes(b"bad")  # what comes before a gap, and behind it
    del written["cat/cifar10_cat_0.aedat"]
    for number, (n, count) in {1: (900, 255), 2: (900, 256), 5: (70_000, 66_000), 7: (300, 20)}.items():
        name = f"cat/cifar10_cat_{number}.aedat"
        written[name] = hot(n, count)
        (tmp_path / "raw" / name).write_bytes(encode_aedat2(written[name]))
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 1, allow_bad=True)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 1)
    assert cache.frames.dtype == np.uint8 and max(frames.max() for frames in cache.frames) == 66_000
    assert_frames(cache, written, timesteps=1)
    assert verify_cache("cifar10_dvs", tmp_path / "cache", 1)[1] == []
    table = cache.folder / "overflow.npy"
    assert np.load(table)["count"].tolist() == [256, 66_000]
    changed = np.load(table)
    changed["count"] += 1
    np.save(table, changed)
    with pytest.raises(DataError, match="overflow.npy is not the one that belongs to manifest.json.*; rebuild it with"):
        open_cache("cifar10_dvs", tmp_path / "cache", 1)
    table.unlink()
    with pytest.raises(DataError, match="cannot be read .*overflow.npy.*; rebuild it with"):
        open_cache("cifar10_dvs", tmp_path / "cache", 1)
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 1, frame_size=128, allow_bad=True)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 1, frame_size=128)
    assert cache.frames.dtype == np.float32 and cache.frames.max() == 66_000
    assert cache.checksums == [zlib.crc32(frames.tobytes()) for frames in cache.frames]


# ------------------------------------------------------------------ bad files


def test_bad_files_are_all_listed_and_only_those_are_read_again(tmp_path):
    written = write_cifar10_dvs(tmp_path / "raw")
    bad = ["cat/cifar10_cat_333.aedat", "dog/cifar10_dog_0.aedat", "frog/cifar10_frog_999.aedat"]
    good = {name: (tmp_path / "raw" / name).read_bytes() for name in bad}
    (tmp_path / "raw" / bad[0]).write_bytes(good[bad[0]][:-3])
    (tmp_path / "raw" / bad[1]).write_bytes(b"not a recording")
    (tmp_path / "raw" / bad[2]).write_bytes(good[bad[2]][: good[bad[2]].index(b"2015") + 6])
    said = []
    with pytest.raises(DataError, match="3 of 40 recordings of cifar10_dvs are bad .*allow_bad=true"):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4, say=said.append)
    told = sorted(line for line in said if line.startswith("bad: "))
    assert [line.split()[1].strip(",:") for line in told] == bad
    assert "byte" in told[0] and "breaks off" in told[0] and "no events" in told[2]
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
    for read in (36, 12):  # the file with the bad row is not taken as read
        with pytest.raises(DataError, match="2 of 38 recordings"):
            run("dvs_gesture", tmp_path / "raw", tmp_path / "cache", 4, say=said.append)
        said += [f"{len(list((tmp_path / 'cache/dvs_gesture/T4-number.partial').glob('*.npz')))} parts, {read}"]
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
    assert 20 < len(parts) < 40
    for part, damage in zip(parts, (lambda d: d[:-99], lambda d: b"7", lambda d: d[:900] + b"!!" + d[902:])):  # noqa: B905
        part.write_bytes(damage(part.read_bytes()))
    (tmp_path / "raw/cat/cifar10_cat_0.aedat").touch()  # changed since
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4)
    assert (report.read, report.samples) in ((60 - len(parts) + 3, 60), (60 - len(parts) + 4, 60))
    assert_frames(open_cache("cifar10_dvs", tmp_path / "cache", 4), written)


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_same_cache(tmp_path, kills):
    """SIGKILL at some line of progress; the end is that of an undisturbed run."""
    write_cifar10_dvs(tmp_path / "raw", per_class=30, events=60)
    words = ["dataset=cifar10_dvs", f"data_dir={tmp_path / 'raw'}", "timesteps=2", f"cache_dir={tmp_path / 'a'}"]
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), *words]
    for attempt in range(kills):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as process:
            for _ in range(1 + attempt % 3):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "a", 2)
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "b", 2)
    contents = [{p.name: c for p, (c, _) in tree(tmp_path / n).items()} for n in "ab"]
    assert contents[0] == contents[1]


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

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(
        UserError, match="cannot write .*T4-number.partial: the disk is full.*start the same command again"
    ):
        run("cifar10_dvs", made / "raw", tmp_path / "other", 4)
    monkeypatch.undo()
    (tmp_path / "other/cifar10_dvs/T4-number.partial/frames.npy").write_bytes(b"of an earlier version")
    assert run("cifar10_dvs", made / "raw", tmp_path / "other", 4).samples == 40
    (tmp_path / "third/cifar10_dvs/T4-number").mkdir(parents=True)
    with pytest.raises(UserError, match="no prepared frames at .*T4-number.*rebuild=true"):
        run("cifar10_dvs", made / "raw", tmp_path / "third", 4)
    assert run("cifar10_dvs", made / "raw", tmp_path / "third", 4, rebuild=True).read == 40
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot write"):
        run("cifar10_dvs", made / "raw", tmp_path / "loop", 4)


# ------------------------------------------------------------------ refusing caches


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
        ({"index_sha256": "0"}, "index.csv is not the one that belongs"),
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


def test_a_stale_cache(tmp_path):
    write_ncaltech101(tmp_path / "raw", classes=("accordion", "yin_yang"))

    def opened(raw="raw"):
        return open_cache("ncaltech101", tmp_path / "cache", 4, data_dir=tmp_path / raw)

    run("ncaltech101", tmp_path / "raw", tmp_path / "cache", 4)
    assert opened().names == opened("elsewhere").names  # a cache may outlive its source
    file = tmp_path / "raw/Caltech101/accordion/image_0001.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.raises(DataError, match=r"is stale: accordion/image_0001.bin had 1\d+ bytes"):
        opened()
    file.rename(file.with_name("image_0009.bin"))
    with pytest.raises(DataError, match="is stale: accordion/image_0001.bin is in it, but no longer"):
        opened()
    file.write_bytes(content)
    with pytest.raises(DataError, match="is stale: accordion/image_0009.bin is in data_dir=.*, but not in it"):
        run("ncaltech101", tmp_path / "raw", tmp_path / "cache", 4)
    assert run("ncaltech101", tmp_path / "raw", tmp_path / "cache", 4, rebuild=True).samples == 7
    opened()


# ------------------------------------------------------------------ checksums of rows


def test_rot_in_a_row_is_an_error_at_its_first_read(cached):
    """In any part of the data; the sentence names the cache, the recording and the command; off takes what is there."""
    cache_dir, folder = cached
    data = built(cache_dir, "dataset.validation=0.2")
    for part in ("train", "val", "test"):
        batches = getattr(data, part)
        list(batches.epoch(0))
        row = int(batches.rows[len(batches.rows) // 2])
        rot(folder, row)
        list(batches.epoch(1))  # only the first read of a run is checked
        name = open_cache("cifar10_dvs", cache_dir, 4).names[row]
        with pytest.raises(DataError) as caught:
            list(getattr(built(cache_dir, "dataset.validation=0.2"), part).epoch(0))
        assert f"{folder}/frames.npy is damaged: the frames of {name} (row {row})" in str(caught.value)
        assert "prepare_data.py dataset=cifar10_dvs" in str(caught.value) and "rebuild=true" in str(caught.value)
        assert "dataset.verify=off" in str(caught.value)
        rot(folder, row)  # back again
    rot(folder, row)
    list(built(cache_dir, "dataset.validation=0.2", "dataset.verify=off").test.epoch(0))


def test_row_checks_change_no_batch_and_no_hash(cached):
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


# ------------------------------------------------------------------ the program


def test_the_program_prepares_verifies_and_refuses(tmp_path, made, capsys):
    main = script("prepare_data").main
    words = [
        "dataset=cifar10_dvs",
        f"cache_dir={tmp_path / 'cache'}",
        "timesteps=5",
        "integrate_by=time",
        "frame_size=48",
    ]
    assert (
        main([*words, f"data_dir={made / 'raw'}", "frame_sizes=48"]) == 2 and "frame_sizes" in capsys.readouterr().err
    )
    assert main([*words, f"data_dir={made / 'raw'}", "workers=2"]) == 0
    said = capsys.readouterr().out
    assert "40 recordings, 40 of them read now" in said and "complete data set has 10000" in said
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 5, "time", 48)
    assert cache.frames.shape == (40, 5, 2, 48, 48)
    assert main([*words, "verify=true"]) == 0
    assert "all 40 rows are as they were stored" in capsys.readouterr().out
    for row in (3, 39):
        rot(cache.folder, row)
    assert main([*words, "verify=true"]) == 2
    told = capsys.readouterr()
    assert f"2 of 40 rows are not what was stored: {cache.names[3]}, {cache.names[39]}; rebuild it with" in told.err
    assert [line.split()[1] for line in told.out.splitlines() if line.startswith("bad: ")] == [
        cache.names[3], cache.names[39],
    ]  # fmt: skip
    assert main([*words, "verify=true", "rebuild=true"]) == 2
    assert "verify=true only reads a finished cache: leave out rebuild=true" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["| head -1", pytest.param(">&-", marks=pytest.mark.slow)])
def test_a_closed_stdout_is_no_unwritable_cache(made, tmp_path, how):
    """The work is finished in silence."""
    words = f"dataset=cifar10_dvs data_dir={made / 'raw'} cache_dir={tmp_path / 'cache'} timesteps=2"
    command = f"set -o pipefail; {sys.executable} {ROOT / 'scripts/prepare_data.py'} {words} {how}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert verify_cache("cifar10_dvs", tmp_path / "cache", 2, say=lambda _: None)[1] == []


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
    with contextlib.suppress(UserWarning):
        dropped = [
            next(built(folder / "cache", *options, "augment.eventdrop=true", f"dataset.workers={n}", dataset=dataset).train.epoch(0))
            for n in ((0, 2) if dataset == "cifar10_dvs" else (0,))
        ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(dropped[0], dropped[-1], strict=True))
    assert torch.equal(dropped[0][1], target) and 0 < dropped[0][0].sum() < x.sum()


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
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4, frame_size=4, allow_bad=True)
    complete = sorted(f"{c}/cifar10_{c}_{i}.aedat" for c in SETS["cifar10_dvs"].class_names for i in range(1000))
    labels = [SETS["cifar10_dvs"].class_names.index(n.split("/")[0]) for n in complete]
    for split in ("random", "front90", "tebn"):
        data = built(tmp_path / "cache", "dataset.frame_size=4", f"dataset.split={split}", "dataset.validation=0")
        _, test = named_split(SETS["cifar10_dvs"], split, complete, labels)
        expected = {complete[i] for i in test} & set(names[1:])
        assert data.split.sha256_test == sha256_of_names(sorted(expected)) and data.split.n_test == len(expected)
        assert data.split.id == f"cifar10_dvs/{split},dropped=8001"


def test_a_recording_that_the_published_set_has_not_is_told(tmp_path, made):
    shutil.copytree(made / "raw", tmp_path / "raw")
    shutil.copy(tmp_path / "raw/cat/cifar10_cat_333.aedat", tmp_path / "raw/cat/cifar10_cat_1000.aedat")
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", 4)
    with pytest.warns(UserWarning, match="dataset.split=tebn is drawn on its own list of 41 names"):
        data = built(tmp_path / "cache")
    assert data.split.id == "cifar10_dvs/tebn"


def test_gesture_validation_holds_out_people(tmp_path):
    write_dvs_gesture(tmp_path / "raw", train_users=5)
    run("dvs_gesture", tmp_path / "raw", tmp_path / "cache", 4)
    data = built(tmp_path / "cache", "dataset.validation=0.2", dataset="dvs_gesture")
    names = open_cache("dvs_gesture", tmp_path / "cache", 4).names
    people = [{names[i].split("_")[0] for i in part.rows.tolist()} for part in (data.train, data.val, data.test)]
    assert [len(p) for p in people] == [4, 1, 1] and not people[0] & people[1]
    assert (data.split.n_train, data.split.n_val) == (48, 12)
    assert data.split.id == "dvs_gesture/official,dropped=1392,val=0.2,by=person,seed=0"
