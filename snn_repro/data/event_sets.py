"""The three event data sets: where their files lie, which samples they hold, and how they become `Data`.

Files are read in place, from the folder or from the archives as published (zip, tar.gz, or one inside of the
other); nothing is ever extracted, downloaded, deleted or written there. `scripts/prepare_data.py` (prepare.py)
turns the recordings into cached frames once; the builders at the end of this file serve them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

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
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar", ".zip")


class Entry(NamedTuple):
    """One file of a data set, on disk or inside an archive."""

    kind: str  # "file" | "zip" | "spool" (in a zip that is itself compressed in a zip) | "tar"
    path: str  # the file, or the archive
    member: str  # name inside the (innermost) archive, "" for a plain file
    size: int  # bytes, unpacked
    crc32: str = ""  # eight hexadecimal digits, where an archive tells without unpacking
    inner: tuple[str, ...] = ()  # archives inside of `path`, outermost first, the last of which holds `member`


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
    folders: tuple[str, ...]  # names of the folder, or of one archive, that holds all of it; the usual one first
    inside: tuple[str, ...]  # names of the folders or archives in it that hold the recordings
    depth: int  # parts of a recording's name: class folder and file, or the file alone
    expected: str  # which files, for messages
    published: str  # where its authors publish it
    find: Callable[[dict[str, Path]], list[Path]]  # the places in a folder, of its {lower-case name: path}
    listing: Callable[[dict[str, Entry]], tuple[list[Sample], dict[str, str]]]
    decode: Callable[[bytes, str], Events]


class SlowToList(Exception):
    """Only a pass through all of an archive would tell which files it holds."""


# ------------------------------------------------------------------ names


def _plain(name: str) -> str:
    """A name without its archive suffix, in lower case, letters and digits alone: CIFAR10-DVS.zip -> cifar10dvs."""
    return re.sub(r"[^a-z0-9]", "", _stem(name).lower())


def _stem(name: str) -> str:
    suffix = _archive_suffix(name)
    return name[: len(name) - len(suffix)] if suffix else name


def _archive_suffix(name: str) -> str:
    return next((s for s in _ARCHIVES if name.lower().endswith(s)), "")


def _means(name: str, known: Iterable[str]) -> bool:
    """Whether a folder or archive of this name is one of the known ones, however they are spelt."""
    return _plain(name) in map(_plain, known)


def is_own_folder(dataset: str, name: str) -> bool:
    """Whether a folder of this name is one that people give to this data set alone."""
    return _means(name, (*EVENT_SETS[dataset].folders, *EVENT_SETS[dataset].inside))


# ------------------------------------------------------------------ files in folders and archives


def _entries(place: Path, dataset: str, quick: bool = False) -> Iterator[tuple[str, Entry]]:
    """Yield (name inside `place`, Entry) of a folder, a zip or a tar file and of the data set's archives in these.

    quick: raise SlowToList where that would take a pass through all of an archive. Raises DataError for unsafe
    or broken archives.
    """
    if place.is_dir():
        yield from _folder_entries(place, 1 if dataset == "dvs_gesture" else 3)
    else:
        yield from _archive_entries(place, (), dataset, quick, "zip")


def _folder_entries(place: Path, depth: int) -> Iterator[tuple[str, Entry]]:
    """Links are followed, wherever they point, but never into a folder that the way there has been through."""

    def walk(folder: str, inner: str, above: frozenset) -> Iterator[tuple[str, Entry]]:
        try:
            here = os.stat(folder)
            found = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None
        if (here.st_dev, here.st_ino) in above:
            return
        above = above | {(here.st_dev, here.st_ino)}
        for entry in found:
            name = inner + entry.name
            try:
                if entry.is_dir():
                    if len(above) < depth:
                        yield from walk(entry.path, name + "/", above)
                    continue
                regular = entry.is_file()
                size = entry.stat().st_size if regular else 0
            except OSError:  # a link to itself
                regular, size = False, 0
            yield name, Entry("file" if regular else "odd", entry.path, "", size)

    yield from walk(str(place), "", frozenset())


def _archive_entries(
    path: Path, inner: tuple[str, ...], dataset: str, quick: bool, kind: str
) -> Iterator[tuple[str, Entry]]:
    called = " in ".join([*reversed(inner), str(path)])
    facts = EVENT_SETS[dataset]
    try:
        if inner and _archive_suffix(inner[-1]) == ".zip" or not inner and zipfile.is_zipfile(path):
            if quick and kind == "spool":
                raise SlowToList
            archive = _zip(str(path), inner, os.getpid())
            members = [
                (i.filename, i.file_size, f"{i.CRC:08x}", _stored(i)) for i in archive.infolist() if not i.is_dir()
            ]
        else:
            if quick:
                raise SlowToList
            kind = "tar"
            with _open_tar(str(path), inner) as archive:
                members = [(m.name, m.size, "", False) for m in archive if m.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{called} is not a readable archive ({error}); download it again") from None
    except (SlowToList, DataError):
        raise
    except Exception as error:  # zlib.error, lzma.LZMAError
        raise DataError(f"{called} cannot be unpacked ({error}); download it again") from None
    for name, size, crc32, stored in members:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise DataError(
                f"{called} holds a file named '{name}', outside of the archive's own folder; it is not read"
            )
        nested = bool(_archive_suffix(pure.name)) and _means(pure.name, (*facts.folders, *facts.inside))
        if nested and kind != "tar" and len(inner) < 2:
            deeper = "zip" if stored and kind == "zip" else "spool"
            for below, entry in _archive_entries(path, (*inner, name), dataset, quick, deeper):
                yield f"{_stem(str(pure))}/{below}", entry
        else:
            yield pure.as_posix(), Entry(kind, str(path), name, size, crc32, inner)


def _stored(info: zipfile.ZipInfo) -> bool:
    """Whether a member of a zip lies there as it is, neither compressed nor encrypted."""
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


class _Part(io.RawIOBase):
    """`size` bytes of an open file from `start` on, as a file: an archive that lies uncompressed in another."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self._file = file if not isinstance(file, _Part) else file._file  # kept, so that it stays open
        self._start = start + (file._start if isinstance(file, _Part) else 0)
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._file.fileno(), wanted, self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _zip(path: str, inner: tuple[str, ...], process: int) -> zipfile.ZipFile:
    """The open zip at `path`, or the one that lies in it, a chain of names."""
    if not inner:
        return _zip_in_place(path, (), process)
    info = _zip(path, inner[:-1], process).getinfo(inner[-1])
    return (_zip_in_place if _stored(info) else _zip_unpacked)(path, inner, process)


@functools.lru_cache(maxsize=16)
def _zip_in_place(path: str, inner: tuple[str, ...], process: int) -> zipfile.ZipFile:
    if not inner:
        return zipfile.ZipFile(path)
    outer = _zip(path, inner[:-1], process)
    info = outer.getinfo(inner[-1])
    header = _Part(outer.fp, info.header_offset, 30).read()
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no file begins where {inner[-1]} should")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    return zipfile.ZipFile(_Part(outer.fp, start, info.file_size))


@functools.lru_cache(maxsize=2)  # each can be as large as a data set
def _zip_unpacked(path: str, inner: tuple[str, ...], process: int) -> zipfile.ZipFile:
    """A zip that is itself compressed in another: its reader jumps about, so it goes to a temporary file first."""
    outer = _zip(path, inner[:-1], process)
    info = outer.getinfo(inner[-1])
    folder = tempfile.gettempdir()
    needs = f"{inner[-1]} in {path} is compressed and needs {info.file_size:,} bytes in {folder} for a while"
    advice = "set TMPDIR to another folder, or unpack it yourself"
    if shutil.disk_usage(folder).free < info.file_size:
        raise DataError(f"{needs}, which has not so much room: {advice}")
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (it has no name: gone with the process, however that ends)
    try:
        with outer.open(info) as source:
            shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        return zipfile.ZipFile(copy)
    except OSError as error:
        raise DataError(f"{needs}: {error}; {advice}") from None


def close_archives() -> None:
    """Give back what open archives hold: files, and the room of those unpacked."""
    _zip_in_place.cache_clear()
    _zip_unpacked.cache_clear()


@contextlib.contextmanager
def _open_tar(path: str, inner: tuple[str, ...]) -> Iterator[tarfile.TarFile]:
    """A tar file, to be read from front to back once."""
    with contextlib.ExitStack() as stack:
        source = None
        if inner:
            source = stack.enter_context(_zip(path, inner[:-1], os.getpid()).open(inner[-1]))
        yield stack.enter_context(tarfile.open(None if inner else path, "r|*", fileobj=source))


def read_entry(entry: Entry, name: str) -> bytes:
    """The bytes of a file on disk or in a zip. Raises DataError naming it."""
    if entry.size > LARGEST_FILE:
        raise DataError(f"{name} has {entry.size} bytes, more than any recording of this data set")
    try:
        if entry.kind == "odd":
            raise DataError(f"{name} is no file but a link to nothing, a pipe or a device")
        if entry.kind in ("zip", "spool"):
            return _zip(entry.path, entry.inner, os.getpid()).read(entry.member)
        return Path(entry.path).read_bytes()
    except DataError:
        raise
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{name} cannot be read: {error}") from None
    except Exception as error:  # zlib.error has no useful base class
        raise DataError(f"{name} cannot be unpacked: {error}") from None


def stream_tar(
    path: str, wanted: dict[str, str], inner: tuple[str, ...] = ()
) -> Iterator[tuple[str, bytes | DataError]]:
    """Yield (name, content) of the members {member: name} that are wanted, in the archive's order, in one pass."""
    called = " in ".join([*reversed(inner), path])
    try:
        with _open_tar(path, inner) as archive:
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
        raise DataError(f"{called} breaks off ({error}); download it again") from None
    except DataError:
        raise
    except Exception as error:  # zlib.error
        raise DataError(f"{called} cannot be unpacked ({error}); download it again") from None


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


# ------------------------------------------------------------------ what each data set holds


def _either(children: dict[str, Path], name: str) -> Path | None:
    """The folder of this name, or else the archive of it, in capitals or not."""
    folder = children.get(name.lower())
    if folder is not None and folder.is_dir():
        return folder
    archives = (children.get(name.lower() + suffix) for suffix in _ARCHIVES)
    return next((a for a in archives if a is not None and a.is_file()), None)


def _find_cifar10_dvs(children: dict[str, Path]) -> list[Path]:
    return [place for name in CIFAR10_CLASSES if (place := _either(children, name))]


def _list_cifar10_dvs(files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
    samples = []
    for name in files:
        match = re.fullmatch(r"(\w+)/cifar10_(\w+)_\d+\.aedat", name)
        if match and match[1] == match[2] in CIFAR10_CLASSES:
            samples.append(Sample(name, name, CIFAR10_CLASSES.index(match[1]), ""))
    return samples, {}


def _find_ncaltech101(children: dict[str, Path]) -> list[Path]:
    place = _either(children, "Caltech101")
    if place is not None and (not place.is_dir() or _class_folders(_children(place))):
        return [place]
    classes = _class_folders(children)
    return classes if len(classes) > 1 else []  # one could be anybody's folder called "camera"


def _class_folders(children: dict[str, Path]) -> list[Path]:
    found = [children[c.lower()] for c in ncaltech101_classes() if c.lower() in children]
    return [c for c in found if c.is_dir()]


@functools.cache
def ncaltech101_counts() -> dict[str, int]:
    """{class: recordings} of the 101 folders, sorted as strings (capitals first): BACKGROUND_Google, ..., yin_yang."""
    lines = (_DATA / "ncaltech101_counts.txt").read_text().splitlines()
    return {name: int(count) for name, count in map(str.split, lines)}


def ncaltech101_classes() -> list[str]:
    """The class names in the order of their labels: BACKGROUND_Google is 0, yin_yang 100."""
    return list(ncaltech101_counts())


def _list_ncaltech101(files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
    number = {name: k for k, name in enumerate(ncaltech101_classes())}
    samples = []
    for name in files:
        match = re.fullmatch(r"([^/]+)/image_\d+\.bin", name)
        if match and match[1] in number:
            samples.append(Sample(name, name, number[match[1]], ""))
    return samples, {}


def _find_dvs_gesture(children: dict[str, Path]) -> list[Path]:
    if "trials_to_train.txt" in children:
        return [children["trials_to_train.txt"].parent]
    place = _either(children, "DvsGesture")
    if place is not None and place.is_dir():
        return [place] if (place / "trials_to_train.txt").is_file() else []
    return [place] if place else []


def _list_dvs_gesture(files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
    tables = _small_files(files)
    samples, problems, part_of = [], {}, {}
    for part in ("train", "test"):
        trials = f"trials_to_{part}.txt"
        if trials not in tables:
            raise DataError(f"{trials} is missing: it belongs to the DvsGesture folder or archive and holds the split")
        if isinstance(tables[trials], DataError):
            raise tables[trials]
        for file in dict.fromkeys(tables[trials].decode("utf-8", "replace").split()):
            if part_of.setdefault(file, part) != part:
                raise DataError(f"{file} stands in trials_to_train.txt and in {trials}; a trial is in one of them")
            labels = file.removesuffix(".aedat") + "_labels.csv"
            if not re.fullmatch(r"[\w.-]+", file):  # the index of the cache could not hold it
                problems[repr(file)] = f"{trials} lists {file!r}, which is no name of a trial"
                continue
            if file not in files or labels not in tables:
                absent = file if file not in files else labels
                problems[file] = f"{absent} is missing, though {trials} lists it"
                continue
            try:
                if isinstance(tables[labels], DataError):
                    raise tables[labels]
                rows = formats.read_gesture_labels(tables[labels], labels)
            except DataError as error:
                problems[file] = str(error)
                continue
            samples += [
                Sample(f"{file}:{i:02d}", file, gesture - 1, part, start, stop)
                for i, (gesture, start, stop) in enumerate(rows)
            ]
    return samples, problems


def _small_files(files: dict[str, Entry]) -> dict[str, bytes | DataError]:
    """The contents of the split lists and label tables, or why one cannot be read."""

    def read(name: str, entry: Entry) -> bytes | DataError:
        try:
            return read_entry(entry, name)
        except DataError as error:
            return error

    wanted = {
        n: e for n, e in files.items() if n.endswith(("_labels.csv", "trials_to_train.txt", "trials_to_test.txt"))
    }
    content = {n: read(n, e) for n, e in wanted.items() if e.kind != "tar"}
    for (path, inner), members in in_tars(wanted).items():
        content |= dict(stream_tar(path, members, inner))
    return content


def in_tars(files: dict[str, Entry]) -> dict[tuple[str, tuple[str, ...]], dict[str, str]]:
    """{(path, inner): {member: name}} of the files that lie in tar files."""
    found: dict = {}
    for name, entry in files.items():
        if entry.kind == "tar":
            found.setdefault((entry.path, entry.inner), {})[entry.member] = name
    return found


EVENT_SETS: dict[str, EventSet] = {
    "cifar10_dvs": EventSet(
        size=(128, 128),
        samples=10_000,
        folders=("cifar10_dvs", "CIFAR10-DVS", "4724671"),
        inside=CIFAR10_CLASSES,
        depth=2,
        expected="airplane.zip ... truck.zip, or the ten folders that they unpack to",
        published="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        find=_find_cifar10_dvs,
        listing=_list_cifar10_dvs,
        decode=formats.read_aedat2,
    ),
    "dvs_gesture": EventSet(
        size=(128, 128),
        samples=1_464,
        folders=("dvs_gesture", "DVS128Gesture"),
        inside=("DvsGesture",),
        depth=1,
        expected="DvsGesture.tar.gz, or the folder DvsGesture that it unpacks to",
        published="https://research.ibm.com/interactive/dvsgesture",
        find=_find_dvs_gesture,
        listing=_list_dvs_gesture,
        decode=formats.read_aedat3,
    ),
    "ncaltech101": EventSet(
        size=(180, 240),
        samples=8_709,
        folders=("ncaltech101", "N-Caltech101", "N-Caltech101-archive"),
        inside=("Caltech101",),
        depth=2,
        expected="Caltech101.zip, or the folder Caltech101 that it unpacks to",
        published="https://www.garrickorchard.com/datasets/n-caltech101",
        find=_find_ncaltech101,
        listing=_list_ncaltech101,
        decode=formats.read_atis_bin,
    ),
}


def _children(folder: Path) -> dict[str, Path]:
    """{lower-case name: path} of what lies in a folder."""
    try:
        names = sorted(os.listdir(folder), reverse=True)  # of two that differ in capitals the later one counts
    except NotADirectoryError:
        return {}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None
    return {name.lower(): folder / name for name in names if not name.startswith(".")}


def find_places(dataset: str, data_dir: str | Path | None) -> list[Path]:
    """The folders or archives below `data_dir` that hold the data set, by their names, whatever their capitals.

    Raises UserError if data_dir is not set, DataError saying what was looked for and where, and where the
    authors publish it.
    """
    facts = EVENT_SETS[dataset]
    if not data_dir:
        raise UserError(f"data_dir is not set: pass data_dir=DIR, the folder that holds {facts.expected}")
    root = Path(data_dir)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data_dir={data_dir} {found}: pass the folder that holds {facts.expected}")
    bases, known = [root], (*facts.folders, *facts.inside)
    for base in bases:  # grows: the folders named after the data set, and those that its readers make in them
        depth = len(base.relative_to(root).parts)
        children = _children(base)
        if found := facts.find(children):
            return found
        folders = [p for n, p in children.items() if depth < 3 and p.is_dir() and not _archive_suffix(n)]
        bases += [p for p in folders if _means(p.name, known) or p.name.lower() in ("extract", "extracted", "download")]
    for base in bases:
        children = _children(base)
        if whole := [p for n, p in sorted(children.items()) if _archive_suffix(n) and _means(n, known) and p.is_file()]:
            return whole[:1]
    suffixes = ", ".join(_ARCHIVES)
    raise DataError(
        f"{dataset} was not found in {root}: expected {facts.expected} there or in a folder {root / facts.folders[0]};"
        f" looked for the names {', '.join((*facts.folders, *facts.inside))} in capitals or not, as folders and with"
        f" {suffixes}; its authors publish it at {facts.published}"
    )


def find_recordings(dataset: str, data_dir: str | Path | None, quick: bool = False) -> Recordings:
    """List the files and samples of a data set below `data_dir`; archives count as much as folders.

    Raises UserError and DataError as `find_places` does, and DataError for archives that cannot be read. quick:
    raises SlowToList where a whole archive would have to be unpacked for its names.
    """
    close_archives()  # one that was opened before may have been replaced since
    facts, places = EVENT_SETS[dataset], find_places(dataset, data_dir)
    files, ignored = {}, 0
    level: dict[str, int] = {}  # of two files of the same name the less deeply nested one counts
    spelling = {c.lower(): c for c in (ncaltech101_classes() if dataset == "ncaltech101" else CIFAR10_CLASSES)}
    for place in places:
        for inner, entry in _entries(place, dataset, quick):
            if _hidden(inner):
                ignored += 1
                continue
            *above, file = [_stem(place.name), *inner.split("/")][-facts.depth :]
            if dataset != "dvs_gesture":  # those are named in the lists of trials as they are
                above, file = [spelling.get(a.lower(), a) for a in above], file.lower()
            name, depth = "/".join([*above, file]), inner.count("/")
            if name in files and level[name] <= depth:
                ignored += 1
                continue
            ignored += name in files
            files[name], level[name] = entry, depth
    samples, problems = facts.listing(files)
    samples.sort()
    used = {s.file for s in samples}
    if not samples and not problems:
        raise DataError(f"{places[0]} holds no recording of {dataset}; expected {facts.expected}")
    ignored += len([n for n in files if n not in used and n.endswith((".aedat", ".bin"))])
    return Recordings({n: files[n] for n in used}, samples, problems, ignored)


def all_names(dataset: str, names: Sequence[str], labels: Sequence[int], excluded: Iterable[str]) -> dict[str, int]:
    """{name: label} of the complete data set: the published one, of which `names` and `excluded` are a part.

    A copy with recordings that the published set has not has no list but its own: `names` and `excluded`.
    """
    classes = CIFAR10_CLASSES if dataset == "cifar10_dvs" else ncaltech101_classes()
    if dataset == "cifar10_dvs":
        published = {f"{c}/cifar10_{c}_{i}.aedat": k for k, c in enumerate(classes) for i in range(1000)}
    else:
        published = {
            f"{c}/image_{i:04d}.bin": k
            for k, (c, count) in enumerate(ncaltech101_counts().items())
            for i in range(1, count + 1)
        }
    mine = {n: int(k) for n, k in zip(names, labels, strict=True)}
    mine |= {n: classes.index(n.split("/")[0]) for n in excluded if n not in mine}
    return published if published.keys() >= mine.keys() else mine


def person(name: str) -> str:
    """Who is seen in a sample of DVS128 Gesture: "user07" of "user07_led.aedat:03"."""
    return name.partition("_")[0]


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
        if any(e.kind in ("tar", "spool") for e in recordings.files.values()):
            raise UserError(
                "augment.eventdrop=true reads single recordings, which a tar.gz or a compressed zip in a zip cannot give"
                " quickly: unpack the archive into data_dir yourself, or set augment.eventdrop=false"
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file was told when the frames were prepared
            events = self.facts.decode(data, sample.file)
        events = event_drop(cut(events, sample), self.facts.size)
        frames = to_frames(events, self.facts.size, *self.settings)
        return torch.from_numpy(frames.astype(np.float32)), sample.label


def _build(cfg: Config) -> Data:
    from snn_repro.data.prepare import RowCheck, open_cache  # prepare.py needs this module's lists

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
    dropped, people = EVENT_SETS[name].samples - len(cache.names), None
    if name == "dvs_gesture":
        train, test = (np.flatnonzero(cache.parts == part) for part in ("train", "test"))
        people = [person(n) for n in cache.names]
    else:
        everything = all_names(name, cache.names, cache.labels, [p["name"] for p in cache.manifest["excluded"]])
        train, test = named_split(name, cfg.dataset.split, cache.names, cache.labels, everything)
        dropped = len(everything) - len(cache.names)
        if len(everything) != EVENT_SETS[name].samples:
            warnings.warn(
                f"{name}: the cache holds recordings that the published data set has not, so dataset.split="
                f"{cfg.dataset.split} is drawn on its own list of {len(everything)} names",
                stacklevel=2,
            )
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
        dropped=max(dropped, 0),
        people=people,
    )
    check = RowCheck(cache) if cfg.dataset.verify == "first_read" and cache.checksums is not None else None
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
        batches = MemoryBatches(
            cache.frames, cache.labels, cfg.recipe.batch_size, indices=train, check=check, **training
        )

    def evaluation(indices):
        return MemoryBatches(cache.frames, cache.labels, cfg.recipe.eval_batch_size, indices=indices, check=check)

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
