"""The three event data sets: where their files lie, which samples they hold, and how they become `Data`.

Files are read in place, from the folder or from the archives as published (zip, tar.gz); nothing is ever
extracted, downloaded, deleted or written there. `scripts/prepare_data.py` (prepare.py) turns the recordings
into cached frames once; the builders at the end of this file serve them.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from snn_repro.config import DATASET_FACTS, Config
from snn_repro.data import formats
from snn_repro.data.augment import event_drop, frame_transforms
from snn_repro.data.batches import Data, LoaderBatches, MemoryBatches, keep_freed_memory
from snn_repro.data.events import Events, integrate
from snn_repro.data.splits import make_split, named_split
from snn_repro.errors import DataError, UserError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
LARGEST_FILE = 512 * 2**20  # bytes; the largest recording of the three sets has about 100 MB
_DATA = Path(__file__).parent


class Entry(NamedTuple):
    """One file of a data set, on disk or inside an archive."""

    kind: str  # "file" | "zip" | "tar"
    path: str  # the file, or the archive
    member: str  # name inside the archive, "" for a plain file
    size: int  # bytes, unpacked
    crc32: str = ""  # eight hexadecimal digits, where an archive tells without unpacking


class Sample(NamedTuple):
    """One labelled recording: a whole file, or the part of it from `start` up to `stop` (microseconds)."""

    name: str  # relative to the data set's root; "user01_led.aedat:3" is row 3 of that file's label table
    file: str
    label: int
    part: str  # "train" | "test" where the split is official, else ""
    start: int = 0
    stop: int = -1  # -1: to the end


class Recordings(NamedTuple):
    """What was found of a data set: its files, and its samples sorted by name."""

    files: dict[str, Entry]
    samples: list[Sample]
    problems: dict[str, str]  # name -> why it cannot be used, found while listing
    ignored: int  # files that do not belong to the data set


class EventSet(NamedTuple):
    """The facts of one event data set."""

    size: tuple[int, int]  # (H, W) of the sensor
    samples: int  # in the complete data set
    folders: tuple[str, ...]  # where below data_dir it may lie
    expected: str  # which files, for messages
    published: str  # where its authors publish it
    find: Callable[[Path], list[Path]]  # the places (folders, archives) that hold it, of one folder
    listing: Callable[[dict[str, Entry]], tuple[list[Sample], dict[str, str]]]
    decode: Callable[[bytes, str], Events]


# ------------------------------------------------------------------ files in folders and archives


def _entries(place: Path) -> dict[str, Entry]:
    """{name inside `place`: Entry} of a folder, a zip or a tar file. Raises DataError for unsafe or broken archives."""
    if place.is_dir():
        found = {}
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                size = path.stat().st_size if path.exists() else 0
                found[path.relative_to(place).as_posix()] = Entry("file", str(path), "", size)
        return found
    try:
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                members = [(i.filename, i.file_size, f"{i.CRC:08x}") for i in archive.infolist() if not i.is_dir()]
            kind = "zip"
        else:
            with tarfile.open(place) as archive:
                members = [(m.name, m.size, "") for m in archive if m.isfile()]
            kind = "tar"
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{place} is not a readable archive ({error}); download it again") from None
    found = {}
    for name, size, crc32 in members:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise DataError(f"{place} holds a file named '{name}', outside of the archive's own folder; it is not read")
        found[pure.as_posix()] = Entry(kind, str(place), name, size, crc32)
    return found


@functools.lru_cache(maxsize=4)
def _zip(path: str, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def read_entry(entry: Entry, name: str) -> bytes:
    """The bytes of a file on disk or in a zip. Raises DataError naming it."""
    if entry.size > LARGEST_FILE:
        raise DataError(f"{name} has {entry.size} bytes, more than any recording of this data set")
    try:
        if entry.kind == "zip":
            return _zip(entry.path, os.getpid()).read(entry.member)
        return Path(entry.path).read_bytes()
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{name} cannot be read: {error}") from None
    except Exception as error:  # zlib.error has no useful base class
        raise DataError(f"{name} cannot be unpacked: {error}") from None


def stream_tar(path: str, wanted: dict[str, str]) -> Iterator[tuple[str, bytes | DataError]]:
    """Yield (name, content) of the members {member: name} that are wanted, in the archive's order, in one pass."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name in wanted:
                    name = wanted[member.name]
                    if member.size > LARGEST_FILE:
                        yield (
                            name,
                            DataError(f"{name} has {member.size} bytes, more than any recording of this data set"),
                        )
                        continue
                    yield name, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} breaks off ({error}); download it again") from None
    except Exception as error:  # zlib.error
        raise DataError(f"{path} cannot be unpacked ({error}); download it again") from None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


# ------------------------------------------------------------------ what each data set holds


def _find_cifar10_dvs(base: Path) -> list[Path]:
    found = []
    for name in CIFAR10_CLASSES:
        folder, archive = base / name, base / f"{name}.zip"
        if folder.is_dir():
            found.append(folder)
        elif archive.is_file():
            found.append(archive)
    return found


def _list_cifar10_dvs(files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
    samples = []
    for name in files:
        match = re.fullmatch(r"(\w+)/cifar10_(\w+)_\d+\.aedat", name)
        if match and match[1] == match[2] in CIFAR10_CLASSES:
            samples.append(Sample(name, name, CIFAR10_CLASSES.index(match[1]), ""))
    return samples, {}


def _find_ncaltech101(base: Path) -> list[Path]:
    candidates = [base / "Caltech101", base / "Caltech101.zip"]
    if base.name == "Caltech101":
        candidates.insert(0, base)
    return [next(p for p in candidates if p.exists())] if any(p.exists() for p in candidates) else []


@functools.cache
def ncaltech101_classes() -> list[str]:
    """The 101 folder names as strings are sorted (capitals first): BACKGROUND_Google is 0, yin_yang 100."""
    return (_DATA / "ncaltech101_classes.txt").read_text().split()


def _list_ncaltech101(files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
    number = {name: k for k, name in enumerate(ncaltech101_classes())}
    samples = []
    for name in files:
        match = re.fullmatch(r"([^/]+)/image_\d+\.bin", name)
        if match and match[1] in number:
            samples.append(Sample(name, name, number[match[1]], ""))
    return samples, {}


def _find_dvs_gesture(base: Path) -> list[Path]:
    for place in (base / "DvsGesture", base):
        if (place / "trials_to_train.txt").is_file():
            return [place]
    archive = base / "DvsGesture.tar.gz"
    return [archive] if archive.is_file() else []


def _list_dvs_gesture(files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
    tables = _small_files(files)
    samples, problems = [], {}
    for part in ("train", "test"):
        trials = f"trials_to_{part}.txt"
        if trials not in tables:
            raise DataError(f"{trials} is missing: it belongs to the DvsGesture folder or archive and holds the split")
        for file in tables[trials].decode("utf-8", "replace").split():
            labels = file.removesuffix(".aedat") + "_labels.csv"
            if file not in files or labels not in tables:
                absent = file if file not in files else labels
                problems[file] = f"{absent} is missing, though {trials} lists it"
                continue
            try:
                rows = formats.read_gesture_labels(tables[labels], labels)
            except DataError as error:
                problems[file] = str(error)
                continue
            samples += [
                Sample(f"{file}:{i:02d}", file, gesture - 1, part, start, stop)
                for i, (gesture, start, stop) in enumerate(rows)
            ]
    return samples, problems


def _small_files(files: dict[str, Entry]) -> dict[str, bytes]:
    """The contents of the split lists and label tables."""
    wanted = {
        n: e for n, e in files.items() if n.endswith(("_labels.csv", "trials_to_train.txt", "trials_to_test.txt"))
    }
    tarred = {e.member: n for n, e in wanted.items() if e.kind == "tar"}
    content = {n: read_entry(e, n) for n, e in wanted.items() if e.kind != "tar"}
    if tarred:
        content |= dict(stream_tar(next(iter(wanted.values())).path, tarred))
    return content


EVENT_SETS: dict[str, EventSet] = {
    "cifar10_dvs": EventSet(
        size=(128, 128),
        samples=10_000,
        folders=("cifar10_dvs", "CIFAR10DVS", "CIFAR10-DVS", "cifar10-dvs"),
        expected="airplane.zip ... truck.zip, or the ten folders that they unpack to",
        published="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        find=_find_cifar10_dvs,
        listing=_list_cifar10_dvs,
        decode=formats.read_aedat2,
    ),
    "dvs_gesture": EventSet(
        size=(128, 128),
        samples=1_464,
        folders=("dvs_gesture", "DVS128Gesture", "dvs-gesture", "DVSGesture"),
        expected="DvsGesture.tar.gz, or the folder DvsGesture that it unpacks to",
        published="https://research.ibm.com/interactive/dvsgesture",
        find=_find_dvs_gesture,
        listing=_list_dvs_gesture,
        decode=formats.read_aedat3,
    ),
    "ncaltech101": EventSet(
        size=(180, 240),
        samples=8_709,
        folders=("ncaltech101", "NCaltech101", "N-Caltech101", "n-caltech101"),
        expected="Caltech101.zip, or the folder Caltech101 that it unpacks to",
        published="https://www.garrickorchard.com/datasets/n-caltech101",
        find=_find_ncaltech101,
        listing=_list_ncaltech101,
        decode=formats.read_atis_bin,
    ),
}


def find_places(dataset: str, data_dir: str | Path | None) -> list[Path]:
    """The folders or archives below `data_dir` that hold the data set.

    Raises UserError if data_dir is not set, DataError saying which file is missing, where it was expected and
    where the authors publish it.
    """
    facts = EVENT_SETS[dataset]
    if not data_dir:
        raise UserError(f"data_dir is not set: pass data_dir=DIR, the folder that holds {facts.expected}")
    root = Path(data_dir)
    bases = [root] + [root / name / inner for name in ("", *facts.folders) for inner in ("", "extract", "download")]
    places: list[Path] = next((found for base in bases if (found := facts.find(base))), [])
    if not places:
        raise DataError(
            f"{dataset} was not found in {root}: expected {facts.expected} there or in {root / facts.folders[0]};"
            f" its authors publish it at {facts.published}"
        )
    return places


def find_recordings(dataset: str, data_dir: str | Path | None) -> Recordings:
    """List the files and samples of a data set below `data_dir`; archives count as much as folders.

    Raises UserError and DataError as `find_places` does, and DataError for archives that cannot be read.
    """
    facts, places = EVENT_SETS[dataset], find_places(dataset, data_dir)
    files, ignored = {}, 0
    depth = 2 if dataset != "dvs_gesture" else 1
    for place in places:
        for inner, entry in _entries(place).items():
            if _hidden(inner):
                ignored += 1
                continue
            parts = inner.split("/")
            if dataset == "cifar10_dvs":
                parts = [place.name.removesuffix(".zip"), *parts]
            files["/".join(parts[-depth:])] = entry
    samples, problems = facts.listing(files)
    samples.sort()
    used = {s.file for s in samples}
    if not samples and not problems:
        raise DataError(f"{places[0]} holds no recording of {dataset}; expected {facts.expected}")
    ignored += len([n for n in files if n not in used and n.endswith((".aedat", ".bin"))])
    return Recordings({n: files[n] for n in used}, samples, problems, ignored)


def cut(events: Events, sample: Sample) -> Events:
    """The events of one sample: those with start <= t < stop, in recorded order."""
    if sample.stop < 0:
        return events
    inside = (events.t >= sample.start) & (events.t < sample.stop)
    return Events(*(a[inside] for a in events))


def to_frames(events: Events, size: tuple[int, int], timesteps: int, by: str, frame_size: int | None) -> np.ndarray:
    """Frames as the cache stores them: counts [T, 2, H, W] in the narrowest of uint8, uint16, uint32 that holds them;
    with `frame_size`, resized to [T, 2, frame_size, frame_size] float16 (float32 where float16 cannot hold a
    count).

    The resize is bilinear with antialiasing, on float32 frames, without keeping the aspect ratio.
    """
    counts = integrate(events, timesteps, size, by, dtype=np.uint8)
    return counts if frame_size is None else resize_frames(counts, frame_size)


def resize_frames(counts: np.ndarray, frame_size: int) -> np.ndarray:
    """See `to_frames`."""
    frames = torch.from_numpy(counts.astype(np.float32))
    size = (frame_size, frame_size)
    small = torch.nn.functional.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
    return small.numpy().astype(np.float16 if counts.max(initial=0) <= 60_000 else np.float32)


# ------------------------------------------------------------------ from the cache to batches


class DroppedRecordings(torch.utils.data.Dataset):
    """Training samples decoded from the raw files, so that EventDrop can drop events before they become frames."""

    def __init__(self, dataset: str, data_dir: str | None, names: list[str], timesteps, by, frame_size):
        recordings = find_recordings(dataset, data_dir)
        if any(e.kind == "tar" for e in recordings.files.values()):
            raise UserError(
                "augment.eventdrop=true reads single recordings, which a tar.gz cannot give quickly: unpack the archive"
                " into data_dir yourself, or set augment.eventdrop=false"
            )
        by_name = {s.name: s for s in recordings.samples}
        missing = [n for n in names if n not in by_name]
        if missing:
            raise DataError(
                f"{missing[0]} is in the cache but not in data_dir={data_dir}; give the folder it was made from"
            )
        self.samples = [by_name[n] for n in names]
        self.files, self.facts = recordings.files, EVENT_SETS[dataset]
        self.settings = (timesteps, by, frame_size)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        sample = self.samples[i]
        data = read_entry(self.files[sample.file], sample.file)
        events = event_drop(cut(self.facts.decode(data, sample.file), sample), self.facts.size)
        frames = to_frames(events, self.facts.size, *self.settings)
        return torch.from_numpy(frames.astype(np.float32)), sample.label


def _build(cfg: Config) -> Data:
    from snn_repro.data.prepare import open_cache  # prepare.py needs this module's lists

    keep_freed_memory()  # a batch of frames has tens of MiB
    name, k = cfg.dataset.name, DATASET_FACTS[cfg.dataset.name].num_classes
    settings = (cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size)
    cache = open_cache(name, cfg.cache_dir, *settings, data_dir=cfg.data_dir)
    if cache.manifest["excluded"] or len(cache.names) < EVENT_SETS[name].samples:
        warnings.warn(
            f"{name}: the cache holds {len(cache.names)} of {EVENT_SETS[name].samples} recordings, so results do not"
            " compare with those on the whole data set",
            stacklevel=2,
        )
    if cache.parts[0]:
        train, test = (np.flatnonzero(cache.parts == part) for part in ("train", "test"))
    else:
        train, test = named_split(name, cfg.dataset.split, cache.names, cache.labels)
    train, val, split = make_split(
        name,
        train,
        test,
        cache.labels,
        [cache.names[i] for i in test],
        split=cfg.dataset.split,
        validation=cfg.dataset.validation,
        subset=cfg.dataset.train_subset,
        seed=cfg.dataset.split_seed,
    )
    training = {
        "seed": cfg.seed,
        "shuffle": True,
        "transforms": frame_transforms(cfg.augment, name, k),
        "drop_last": cfg.recipe.drop_last,
        "repeats": cfg.recipe.repeated_augmentation,
    }
    if cfg.augment.eventdrop:
        raw = DroppedRecordings(name, cfg.data_dir, [cache.names[i] for i in train], *settings)
        batches = LoaderBatches(raw, cfg.recipe.batch_size, workers=cfg.dataset.workers, **training)
    else:
        batches = MemoryBatches(cache.frames, cache.labels, cfg.recipe.batch_size, indices=train, **training)

    def evaluation(indices):
        return MemoryBatches(cache.frames, cache.labels, cfg.recipe.eval_batch_size, indices=indices)

    return Data(
        train=batches,
        val=evaluation(val) if len(val) else None,
        test=evaluation(test),
        input_shape=tuple(cache.frames.shape[2:]),
        num_classes=k,
        split=split,
        static=False,
    )


def build_cifar10_dvs(cfg: Config) -> Data:
    """CIFAR10-DVS (Li et al. 2017) from prepared frames; splits tebn, tail, front90, random (splits.py)."""
    return _build(cfg)


def build_dvs_gesture(cfg: Config) -> Data:
    """DVS128 Gesture (Amir et al. 2017) from prepared frames; the official trial lists, 1,176 / 288."""
    return _build(cfg)


def build_ncaltech101(cfg: Config) -> Data:
    """N-Caltech101 (Orchard et al. 2015) from prepared frames, background class included; split seeded (splits.py)."""
    return _build(cfg)
