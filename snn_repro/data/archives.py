"""Files of a data set, in folders or in the archives as published (zip, tar.gz, or one inside of the other).

They are read in place; nothing is ever extracted, downloaded, deleted or written there.
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
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from snn_repro.errors import DataError

LARGEST_FILE = 512 * 2**20  # bytes; the largest recording of the published sets has about 100 MB
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar", ".zip")


class Entry(NamedTuple):
    """One file of a data set, on disk or inside an archive."""

    kind: str  # "file" | "zip" | "spool" (in a zip that is itself compressed in a zip) | "tar"
    path: str  # the file, or the archive
    member: str  # name inside the (innermost) archive, "" for a plain file
    size: int  # bytes, unpacked
    crc32: str = ""  # eight hexadecimal digits, where an archive tells without unpacking
    inner: tuple[str, ...] = ()  # archives inside of `path`, outermost first, the last of which holds `member`


class SlowToList(Exception):
    """Only a pass through all of an archive would tell which files it holds."""


# ------------------------------------------------------------------ names


def _plain(name: str) -> str:
    """A name without its archive suffix, in lower case, letters and digits alone: CIFAR10-DVS.zip -> cifar10dvs."""
    return re.sub(r"[^a-z0-9]", "", stem(name).lower())


def stem(name: str) -> str:
    suffix = archive_suffix(name)
    return name[: len(name) - len(suffix)] if suffix else name


def archive_suffix(name: str) -> str:
    return next((s for s in ARCHIVES if name.lower().endswith(s)), "")


def means(name: str, known: Iterable[str]) -> bool:
    """Whether a folder or archive of this name is one of the known ones, however they are spelt."""
    return _plain(name) in map(_plain, known)


def either(children: dict[str, Path], name: str) -> Path | None:
    """The folder of this name, or else the archive of it, in capitals or not."""
    folder = children.get(name.lower())
    if folder is not None and folder.is_dir():
        return folder
    archives = (children.get(name.lower() + suffix) for suffix in ARCHIVES)
    return next((a for a in archives if a is not None and a.is_file()), None)


def children_of(folder: Path) -> dict[str, Path]:
    """{lower-case name: path} of what lies in a folder."""
    try:
        names = sorted(os.listdir(folder), reverse=True)  # of two that differ in capitals the later one counts
    except NotADirectoryError:
        return {}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None
    return {name.lower(): folder / name for name in names if not name.startswith(".")}


# ------------------------------------------------------------------ files in folders and archives


def entries(source: Path, known: Sequence[str], depth: int, quick: bool = False) -> Iterator[tuple[str, Entry]]:
    """Yield (name inside `source`, Entry) of a folder, a zip or a tar file and of archives named as in `known` in these.

    depth: of folders in a folder. quick: raise SlowToList where that would take a pass through all of an archive.
    Raises DataError for unsafe or broken archives.
    """
    if source.is_dir():
        yield from _folder_entries(source, depth)
    else:
        yield from _archive_entries(source, (), known, quick, "zip")


def _folder_entries(source: Path, depth: int) -> Iterator[tuple[str, Entry]]:
    """Links are followed, wherever they point, but never into a folder that the way there has been through."""

    def walk(folder: str, inner: str, above: frozenset) -> Iterator[tuple[str, Entry]]:
        try:
            status = os.stat(folder)
            listed = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None
        if (status.st_dev, status.st_ino) in above:
            return
        above = above | {(status.st_dev, status.st_ino)}
        for entry in listed:
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

    yield from walk(str(source), "", frozenset())


def _archive_entries(
    path: Path, inner: tuple[str, ...], known: Sequence[str], quick: bool, kind: str
) -> Iterator[tuple[str, Entry]]:
    called = " in ".join([*reversed(inner), str(path)])
    with _told(called, "is not a readable archive ({}); download it again"):
        if inner and archive_suffix(inner[-1]) == ".zip" or not inner and zipfile.is_zipfile(path):
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
            with _open_tar(str(path), inner) as tar:
                members = [(m.name, m.size, "", False) for m in tar if m.isfile()]
    for name, size, crc32, stored in members:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise DataError(
                f"{called} holds a file named '{name}', outside of the archive's own folder; it is not read"
            )
        nested = bool(archive_suffix(pure.name)) and means(pure.name, known)
        if nested and kind != "tar" and len(inner) < 2:
            deeper = "zip" if stored and kind == "zip" else "spool"
            for below, entry in _archive_entries(path, (*inner, name), known, quick, deeper):
                yield f"{stem(str(pure))}/{below}", entry
        else:
            yield pure.as_posix(), Entry(kind, str(path), name, size, crc32, inner)


def _stored(info: zipfile.ZipInfo) -> bool:
    """Whether a member of a zip lies there as it is, neither compressed nor encrypted."""
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


class Section(io.RawIOBase):
    """`size` bytes of an open file from `start` on, as a file: what lies uncompressed in an archive. close: so does that file."""

    def __init__(self, file: Any, start: int, size: int, close: bool = False):
        self._file: BinaryIO = file._file if isinstance(file, Section) else file  # kept, so that it stays open
        self._start: int = start + (file._start if isinstance(file, Section) else 0)
        self._size, self._at, self._close = size, 0, close

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

    def close(self) -> None:
        if self._close:
            self._file.close()
        super().close()


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
    header = Section(outer.fp, info.header_offset, 30).read()
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no file begins where {inner[-1]} should")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    return zipfile.ZipFile(Section(outer.fp, start, info.file_size))


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
        raise _too_large(name, entry.size)
    with _told(name, "cannot be read: {}"):
        if entry.kind == "odd":
            raise DataError(f"{name} is no file but a link to nothing, a pipe or a device")
        if entry.kind in ("zip", "spool"):
            return _zip(entry.path, entry.inner, os.getpid()).read(entry.member)
        return Path(entry.path).read_bytes()


def stream_tar(
    path: str, wanted: dict[str, str], inner: tuple[str, ...] = ()
) -> Iterator[tuple[str, bytes | DataError]]:
    """Yield (name, content) of the members {member: name} that are wanted, in the archive's order, in one pass."""
    called = " in ".join([*reversed(inner), path])
    with _told(called, "breaks off ({}); download it again"), _open_tar(path, inner) as archive:
        for member in archive:
            if member.isfile() and member.name in wanted:
                name, size = wanted[member.name], member.size
                yield name, _too_large(name, size) if size > LARGEST_FILE else archive.extractfile(member).read()  # type: ignore[union-attr]


def read_or_error(entry: Entry, name: str) -> bytes | DataError:
    """As `read_entry`; the error is returned."""
    try:
        return read_entry(entry, name)
    except DataError as error:
        return error


def read_all(files: dict[str, Entry]) -> dict[str, bytes | DataError]:
    """The contents of small files, or why one cannot be read."""
    content = {n: read_or_error(e, n) for n, e in files.items() if e.kind != "tar"}
    for (path, inner), members in in_tars(files).items():
        content |= dict(stream_tar(path, members, inner))
    return content


def _too_large(name: str, size: int) -> DataError:
    return DataError(f"{name} has {size} bytes, more than any recording of this data set")


@contextlib.contextmanager
def _told(name: str, why: str) -> Iterator[None]:
    """Turn what archives and disks raise into a DataError: the name, and why, with the error in its braces."""
    try:
        yield
    except (DataError, SlowToList):
        raise
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{name} {why.format(error)}") from None
    except Exception as error:  # zlib.error, lzma.LZMAError
        raise DataError(f"{name} cannot be unpacked ({error}); get it again") from None


def hidden(name: str) -> bool:
    """Whether a file is one that operating systems leave in folders."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def in_tars(files: dict[str, Entry]) -> dict[tuple[str, tuple[str, ...]], dict[str, str]]:
    """{(path, inner): {member: name}} of the files that lie in tar files."""
    listed: dict = {}
    for name, entry in files.items():
        if entry.kind == "tar":
            listed.setdefault((entry.path, entry.inner), {})[entry.member] = name
    return listed
