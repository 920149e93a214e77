"""Preparation: every event arrives, a killed run goes on, bad files are told, stale and foreign caches refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import encode_aedat2, open_cache, verify_cache, write_cifar10_dvs, write_dvs_gesture, write_ncaltech101
from fixtures import make_cache as prepare
from torchvision.transforms.functional import resize

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data import prepare as module
from snn_repro.data.events import Events, integrate
from snn_repro.data.recordings import find_recordings
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "prepare_data.py"
PLAIN = ["augment.mixup=0", "augment.cutmix=0", "augment.label_smoothing=0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
WRITERS = {
    "cifar10_dvs": write_cifar10_dvs,
    "dvs_gesture": write_dvs_gesture,
    "ncaltech101": write_ncaltech101,
}
SIZES = {"cifar10_dvs": (128, 128), "dvs_gesture": (128, 128), "ncaltech101": (180, 240)}


def quiet(*_):
    pass


def run(dataset, raw, cache, timesteps=4, **options):
    return prepare(dataset, raw, cache, timesteps, **{"workers": 0, "say": quiet, **options})


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


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("dataset", list(WRITERS))
def test_cache_holds_every_event_of_every_sample(tmp_path, dataset, archive):
    written = WRITERS[dataset](tmp_path / "raw", archive=archive)
    samples = expected_samples(dataset, written)
    before = tree(tmp_path / "raw")
    report = run(dataset, tmp_path / "raw", tmp_path / "cache", workers=0 if archive else 2)
    assert report.samples == report.read == len(samples) and not report.problems
    assert tree(tmp_path / "raw") == before
    cache = open_cache(dataset, tmp_path / "cache", 4, data_dir=tmp_path / "raw")
    assert cache.names == sorted(samples) and isinstance(cache.frames, np.memmap)
    assert cache.frames.dtype == np.uint8
    for i, name in enumerate(cache.names):
        assert np.array_equal(cache.frames[i], integrate(samples[name], 4, SIZES[dataset])), name
        assert cache.events[i] == len(samples[name].t)
    if dataset == "dvs_gesture":
        rows = {f"{f}:{i:02d}": (row[0] - 1, t.part) for f, t in written.items() for i, row in enumerate(t.rows)}
        assert [(k, p) for k, p in zip(cache.labels, cache.parts, strict=True)] == [rows[n] for n in cache.names]
    elif dataset == "cifar10_dvs":
        classes = sorted({n.split("/")[0] for n in cache.names})
        assert [classes[k] for k in cache.labels] == [n.split("/")[0] for n in cache.names]
    else:
        assert set(cache.labels) == {0, 1, 4, 100}
    again = run(dataset, tmp_path / "raw", tmp_path / "cache")
    assert again.read == 0 and again.samples == len(samples)


def test_folder_and_archive_give_the_same_cache(tmp_path):
    for name, archive in (("a", False), ("b", True)):
        write_ncaltech101(tmp_path / name, archive=archive)
        run("ncaltech101", tmp_path / name, tmp_path / f"cache_{name}")
    files = [tree(tmp_path / f"cache_{n}/ncaltech101") for n in "ab"]
    assert [c for c, _ in files[0].values()] == [c for c, _ in files[1].values()]


def test_resized_frames_are_torchvisions(tmp_path):
    written = write_ncaltech101(tmp_path / "raw", classes=("accordion",))
    run("ncaltech101", tmp_path / "raw", tmp_path / "cache", frame_size=48, by="time")
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


@pytest.mark.parametrize("most, dtype", [(1 / 16, np.uint8), (0, np.uint32), (1.5 / 2**18, np.uint32)])
def test_large_counts_stand_in_a_table_or_widen_the_cache_and_lose_nothing(tmp_path, monkeypatch, most, dtype):
    monkeypatch.setattr("snn_repro.data.prepare._MOST_OVER", most)  # the last: two counts are too many, one is not
    written = write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    for number, (n, count) in {1: (900, 255), 2: (900, 256), 5: (70_000, 66_000), 7: (300, 20)}.items():
        name = f"cat/cifar10_cat_{number}.aedat"
        written[name] = hot(n, count)
        (tmp_path / "raw" / name).write_bytes(encode_aedat2(written[name]))
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", timesteps=1)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 1)
    assert cache.frames.dtype == dtype and max(frames.max() for frames in cache.frames) == 66_000
    assert (cache.folder / "overflow.npy").exists() == (dtype == np.uint8)
    for i, name in enumerate(cache.names):
        assert np.array_equal(cache.frames[i], integrate(written[name], 1, (128, 128)))
    assert verify_cache("cifar10_dvs", tmp_path / "cache", 1)[1] == []
    if most != 1 / 16:
        return
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", timesteps=1, frame_size=128)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 1, frame_size=128)
    assert cache.frames.dtype == np.float32 and cache.frames.max() == 66_000


def test_a_table_that_is_not_the_caches_is_refused(tmp_path):
    write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    (tmp_path / "raw/cat/cifar10_cat_1.aedat").write_bytes(encode_aedat2(hot(900, 256)))
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", timesteps=1)
    table = tmp_path / "cache/cifar10_dvs/T1-number/overflow.npy"
    assert np.load(table)["count"].tolist() == [256]
    changed = np.load(table)
    changed["count"] += 1
    np.save(table, changed)
    with pytest.raises(DataError, match="overflow.npy is not the one that belongs to manifest.json; rebuild it with"):
        open_cache("cifar10_dvs", tmp_path / "cache", 1)
    table.unlink()
    with pytest.raises(DataError, match="cannot be read .*overflow.npy.*; rebuild it with"):
        open_cache("cifar10_dvs", tmp_path / "cache", 1)


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
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", say=said.append)
    told = sorted(line for line in said if line.startswith("bad: "))
    assert [line.split()[1].strip(",:") for line in told] == bad
    assert "byte" in told[0] and "breaks off" in told[0] and "no events" in told[2]
    with pytest.raises(UserError, match="unfinished one is there"):
        open_cache("cifar10_dvs", tmp_path / "cache", 4)
    for name in bad[:2]:
        (tmp_path / "raw" / name).write_bytes(good[name])
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", allow_bad=True)
    assert (report.read, report.samples) == (2, 39)
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 4)
    assert [p["name"] for p in cache.manifest["excluded"]] == [bad[2]]
    assert cache.names == sorted(set(written) - {bad[2]})
    for i, name in enumerate(cache.names):
        assert np.array_equal(cache.frames[i], integrate(written[name], 4, (128, 128)))


def test_a_gesture_row_without_events_and_a_missing_trial(tmp_path):
    trials = write_dvs_gesture(tmp_path / "raw", train_users=3)
    root = tmp_path / "raw" / "DvsGesture"
    first, second = sorted(trials)[:2]
    (root / second).unlink()
    with open(root / first.replace(".aedat", "_labels.csv"), "a") as table:
        table.write("3,1,2\n")
    report = run("dvs_gesture", tmp_path / "raw", tmp_path / "cache", allow_bad=True)
    assert report.samples == 36 and {p.name for p in report.problems} == {second, f"{first}:12"}
    assert "is missing, though trials_to_train.txt lists it" in report.problems[0].reason


def test_a_damaged_member_of_a_zip_is_one_bad_file(tmp_path):
    write_ncaltech101(tmp_path / "raw", archive=True)
    archive = tmp_path / "raw" / "Caltech101.zip"
    with zipfile.ZipFile(archive) as z:
        info = z.getinfo("Caltech101/accordion/image_0002.bin")
    data = bytearray(archive.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + 3] ^= 0xFF
    archive.write_bytes(data)
    report = run("ncaltech101", tmp_path / "raw", tmp_path / "cache", allow_bad=True)
    assert report.samples == 11 and [p.name for p in report.problems] == ["accordion/image_0002.bin"]


@pytest.mark.parametrize("name", ["../accordion/image_0001.bin", "/accordion/image_0001.bin", "a/../../../x.bin"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_do_not_reach_outside(tmp_path, kind, name):
    (tmp_path / "raw").mkdir()
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "raw/Caltech101.zip", "w") as z:
            z.writestr(name, b"12345")
    else:
        with tarfile.open(tmp_path / "raw/DvsGesture.tar.gz", "w:gz") as t:
            t.addfile(tarfile.TarInfo(name))
    with contextlib.suppress(DataError):
        find_recordings(SETS["ncaltech101" if kind == "zip" else "dvs_gesture"], tmp_path / "raw", tmp_path / "cache")
    written = [p for p in tmp_path.rglob("*") if p.is_file() and not p.match("*.lock")]
    inside = next((tmp_path / "cache/unpacked").glob("*/"), tmp_path / "none")
    assert [p for p in written if not p.is_relative_to(inside)] == [next((tmp_path / "raw").iterdir())]
    assert not Path("/accordion").exists()


def test_broken_archive_is_one_sentence(tmp_path):
    write_dvs_gesture(tmp_path, archive=True)
    archive = tmp_path / "DvsGesture.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match="DvsGesture.tar.gz .*download it again"):
        run("dvs_gesture", tmp_path, tmp_path / "cache")


# ------------------------------------------------------------------ stopping and going on


def test_an_interrupted_run_reads_only_the_rest(tmp_path, monkeypatch):
    written = write_cifar10_dvs(tmp_path / "raw")
    count = 0

    def stop_after_15(line):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", say=stop_after_15)
    read = []
    original = module.decode_file
    monkeypatch.setattr(module, "decode_file", lambda data, file, *a: read.append(file) or original(data, file, *a))
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache")
    assert 0 < report.read == len(read) < 40 and report.samples == 40
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 4)
    for i, name in enumerate(cache.names):
        assert np.array_equal(cache.frames[i], integrate(written[name], 4, (128, 128)))


@pytest.mark.parametrize("damage", ["a byte", "its end", "no npz", "its place"])
def test_a_recording_damaged_in_an_unfinished_cache_is_read_again(tmp_path, damage):
    write_cifar10_dvs(tmp_path / "raw")
    (tmp_path / "raw/cat/cifar10_cat_0.aedat").write_bytes(b"bad")
    with pytest.raises(DataError):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache")
    one, other, *_ = sorted(
        (tmp_path / "cache/cifar10_dvs/T4-number.partial").glob("*.npz"), key=lambda p: p.stat().st_size
    )[2:]
    data = bytearray(one.read_bytes())
    data[len(data) // 2] ^= 255
    contents = {"a byte": data, "its end": data[:-99], "no npz": b"7", "its place": other.read_bytes()}
    one.write_bytes(contents[damage])
    shutil.copy(tmp_path / "raw/cat/cifar10_cat_333.aedat", tmp_path / "raw/cat/cifar10_cat_0.aedat")
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache")
    assert (report.read, report.samples) == (2, 40)


def descendants(pid):
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            children += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return children


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_runs_leave_no_process_and_end_in_the_same_cache(tmp_path, kills):
    """SIGKILL at some line of progress, with worker processes; the end is that of an undisturbed run."""
    write_cifar10_dvs(tmp_path / "raw", per_class=30, events=60)
    command = [
        sys.executable,
        str(SCRIPT),
        "dataset=cifar10_dvs",
        f"data_dir={tmp_path / 'raw'}",
        "timesteps=2",
    ]
    command += ["workers=1", f"cache_dir={tmp_path / 'a'}"]
    for attempt in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(1 + attempt % 3):
            process.stdout.readline()
        helpers = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
        end = time.monotonic() + 20
        while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in helpers):
            time.sleep(0.05)
        assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists()]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "files were read before" in done.stdout or "prepared before" in done.stdout
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "b", timesteps=2)
    contents = [{p.name: c for p, (c, _) in tree(tmp_path / n).items()} for n in "ab"]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("step", ["write_text", "_replace", "rename"])
def test_stopped_while_finishing(tmp_path, monkeypatch, step, bad):
    """At each step of finishing: what was read is not read again, and the cache comes out whole."""
    written = write_cifar10_dvs(tmp_path / "raw")
    if bad:
        (tmp_path / "raw/cat/cifar10_cat_333.aedat").write_bytes(b"bad")
        del written["cat/cifar10_cat_333.aedat"]

    def stop(*_):
        raise KeyboardInterrupt

    target, name = (Path, "rename") if step == "rename" else (module, step)
    monkeypatch.setattr(target, name, stop)
    with pytest.raises(KeyboardInterrupt):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", allow_bad=bad)
    monkeypatch.undo()
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", allow_bad=bad)
    assert (report.read, report.samples) == (0, len(written))
    cache = open_cache("cifar10_dvs", tmp_path / "cache", 4)
    assert cache.names == sorted(written)
    for i, name in enumerate(cache.names):
        assert np.array_equal(cache.frames[i], integrate(written[name], 4, (128, 128)))
    assert {f.name for f in (tmp_path / "cache/cifar10_dvs/T4-number").iterdir()} == {
        "frames.npy", "index.csv", "manifest.json",
    }  # fmt: skip


def test_two_runs_at_once_and_a_full_disk(tmp_path, monkeypatch):
    write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    inner = []

    def second(line):
        with pytest.raises(UserError, match="another run is preparing"):
            run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache")
        inner.append(line)

    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", say=second)
    assert inner

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match="No space left on device.*make room and run again"):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "other")
    monkeypatch.undo()
    assert run("cifar10_dvs", tmp_path / "raw", tmp_path / "other").samples == 4


# ------------------------------------------------------------------ refusing caches


@pytest.fixture
def prepared(tmp_path):
    write_ncaltech101(tmp_path / "raw")
    run("ncaltech101", tmp_path / "raw", tmp_path / "cache")
    return tmp_path, tmp_path / "cache/ncaltech101/T4-number"


def opened(folder, **options):
    return open_cache("ncaltech101", folder / "cache", 4, **options)


def test_no_cache_tells_the_command(prepared):
    folder, _ = prepared
    with pytest.raises(UserError, match="cache_dir is not set.*prepare_data.py dataset=ncaltech101"):
        open_cache("ncaltech101", None, 10)
    with pytest.raises(UserError, match="no prepared frames.*timesteps=10 integrate_by=time frame_size=48` once"):
        open_cache("ncaltech101", folder / "cache", 10, "time", 48)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 0}, "has cache format 0, this version reads 3; rebuild it with `python"),
        ({"timesteps": 9}, "was made with timesteps=9, not timesteps=4"),
        ({"dataset": "cifar10_dvs"}, "was made with dataset=cifar10_dvs"),
        ({"index_sha256": "0"}, "index.csv is not the one that belongs"),
        ({"dtype": "uint16"}, "frames.npy holds"),
    ],
)
def test_foreign_manifest(prepared, change, sentence):
    folder, cache = prepared
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=sentence):
        opened(folder)


@pytest.mark.parametrize("name", ["manifest.json", "index.csv", "frames.npy"])
def test_damaged_cache_files(prepared, name):
    folder, cache = prepared
    (cache / name).write_bytes((cache / name).read_bytes()[:-40])
    with pytest.raises(DataError, match="rebuild it with"):
        opened(folder)


def test_stale_cache(prepared):
    folder, _ = prepared
    opened(folder, data_dir=folder / "raw")
    opened(folder, data_dir=folder / "elsewhere")  # a cache may outlive its source
    file = folder / "raw/Caltech101/accordion/image_0001.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.raises(DataError, match=r"is stale: accordion/image_0001.bin had 1\d+ bytes"):
        opened(folder, data_dir=folder / "raw")
    file.write_bytes(content)
    (folder / "raw/Caltech101/accordion/image_0009.bin").write_bytes(content)
    with pytest.raises(DataError, match="stale: 1 recordings .*image_0009"):
        run("ncaltech101", folder / "raw", folder / "cache")
    assert run("ncaltech101", folder / "raw", folder / "cache", rebuild=True).samples == 13
    opened(folder, data_dir=folder / "raw")


def test_an_archive_is_unpacked_once_and_again_when_it_changed(tmp_path, caplog):
    write_ncaltech101(tmp_path / "raw", archive=True)
    with caplog.at_level("INFO", "snn_repro"):
        for timesteps in (4, 2):
            run("ncaltech101", tmp_path / "raw", tmp_path / "cache", timesteps)
        opened(tmp_path, data_dir=tmp_path / "raw")
        assert caplog.text.count("unpacking") == 1
        write_ncaltech101(tmp_path / "raw", archive=True, per_class=2)
        opened(tmp_path, data_dir=tmp_path / "raw")  # not unpacked yet
        run("ncaltech101", tmp_path / "raw", tmp_path / "cache", 3)
        assert caplog.text.count("unpacking") == 2
    with pytest.raises(DataError, match="is stale: .* is in it, but no longer in data_dir"):
        opened(tmp_path, data_dir=tmp_path / "raw")
    with pytest.raises(UserError, match="cache_dir is not set: pass cache_dir=DIR, a folder that .*Caltech101.zip is"):
        find_recordings(SETS["ncaltech101"], tmp_path / "raw")


def test_missing_data_is_one_sentence_with_its_source(tmp_path):
    with pytest.raises(DataError, match=r"cifar10_dvs was not found .* airplane.zip .*figshare"):
        find_recordings(SETS["cifar10_dvs"], tmp_path)
    with pytest.raises(UserError, match="data_dir is not set"):
        find_recordings(SETS["dvs_gesture"], None)
    with pytest.raises(UserError, match="dataset=cifar10 needs no preparation.*did you mean 'cifar10_dvs'"):
        run("cifar10", tmp_path, tmp_path / "cache")
    write_ncaltech101(tmp_path)
    with pytest.raises(UserError, match="inside of the data set's own folder"):
        run("ncaltech101", tmp_path, tmp_path / "Caltech101/accordion/cache")


def test_script(tmp_path):
    write_cifar10_dvs(tmp_path / "raw")
    command = [sys.executable, str(SCRIPT), "dataset=cifar10_dvs", f"data_dir={tmp_path / 'raw'}"]
    bad = subprocess.run([*command, "frame_sizes=48"], capture_output=True, text=True, env=ENVIRONMENT)
    assert bad.returncode == 2 and "frame_sizes" in bad.stderr and "Traceback" not in bad.stderr
    command += [
        f"cache_dir={tmp_path / 'cache'}",
        "timesteps=5",
        "integrate_by=time",
        "frame_size=48",
        "workers=0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "40 recordings, 40 of them read now" in done.stdout and "complete data set has 10000" in done.stdout
    assert open_cache("cifar10_dvs", tmp_path / "cache", 5, "time", 48).frames.shape == (40, 5, 2, 48, 48)


# ------------------------------------------------------------------ from the cache to batches


@pytest.mark.parametrize(("dataset", "n_train"), [("cifar10_dvs", 30), ("dvs_gesture", 24), ("ncaltech101", 10)])
def test_builders(tmp_path, dataset, n_train):
    written = WRITERS[dataset](tmp_path / "raw")
    run(dataset, tmp_path / "raw", tmp_path / "cache")
    options = [f"dataset={dataset}", "timesteps=4", f"cache_dir={tmp_path / 'cache'}", "recipe.batch_size=8"]
    options += PLAIN
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = build_data(load_config(options))
    assert any("do not compare" in str(w.message) for w in caught)
    assert data.split.n_train == n_train == data.train.n_samples
    assert data.split.n_train + data.split.n_test == len(expected_samples(dataset, written))
    assert data.input_shape == (2, *SIZES[dataset]) and not data.static and data.val is None
    x, target = next(data.train.epoch(0))
    assert x.shape == (4, 8, *data.input_shape) and x.dtype == torch.float32 and target.dtype == torch.int64


def test_validation_never_touches_the_test_set(tmp_path):
    write_cifar10_dvs(tmp_path / "raw", per_class=11)
    run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache")
    options = [
        "dataset=cifar10_dvs",
        "timesteps=4",
        f"cache_dir={tmp_path / 'cache'}",
        "recipe.batch_size=1000",
    ]
    plain, with_val = (build_data(load_config([*options, f"dataset.validation={v}"])) for v in (0, 0.2))
    assert with_val.split.sha256_test == plain.split.sha256_test
    assert (with_val.split.n_val, with_val.split.n_train) == (20, 70)
    seen = {
        x.numpy().tobytes() for part in (with_val.train, with_val.val) for b, _ in part.epoch(0) for x in b.unbind(1)
    }
    tested = {x.numpy().tobytes() for b, _ in with_val.test.epoch(0) for x in b.unbind(1)}
    assert len(seen) == 90 and not seen & tested


@pytest.mark.parametrize("dataset", list(WRITERS))
def test_eventdrop_reads_recordings_and_workers_change_nothing(tmp_path, dataset):
    WRITERS[dataset](tmp_path / "raw", archive=dataset == "dvs_gesture")
    run(dataset, tmp_path / "raw", tmp_path / "cache")
    options = [
        f"dataset={dataset}",
        "timesteps=4",
        f"cache_dir={tmp_path / 'cache'}",
        f"data_dir={tmp_path / 'raw'}",
    ]
    options += ["recipe.batch_size=8", "recipe.class_balanced=true", "augment.eventdrop=true", *PLAIN]
    batches = [next(build_data(load_config([*options, f"dataset.workers={n}"])).train.epoch(0)) for n in (0, 2)]
    assert torch.equal(batches[0][0], batches[1][0]) and torch.equal(batches[0][1], batches[1][1])
    full = next(build_data(load_config([*options, "augment.eventdrop=false"])).train.epoch(0))
    assert torch.equal(full[1], batches[0][1])
    assert batches[0][0].sum() < full[0].sum()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", list(WRITERS))
def test_one_epoch_of_the_data_sets_own_recipe(tmp_path, dataset):
    from snn_repro.train import run as train

    WRITERS[dataset](tmp_path / "raw")
    options = [f"dataset={dataset}", f"data_dir={tmp_path / 'raw'}", f"cache_dir={tmp_path / 'cache'}"]
    options += [
        "debug=smoke",
        "debug.max_steps=0",
        "debug.max_eval_batches=0",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    config = load_config([*options, "recipe.epochs=1", "logger.mode=disabled"])
    run(dataset, tmp_path / "raw", tmp_path / "cache", config.timesteps, frame_size=config.dataset.frame_size)
    result = train(config)
    assert result.epochs == 1 and 0 <= result.acc_last <= 100
    assert len(result.split_sha256) == 64
