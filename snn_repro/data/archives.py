"""How folders and archives of data sets are called, and archives unpacked, each once, into cache_dir/unpacked."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from filelock import FileLock

from snn_repro.errors import DataError, UserError

log = logging.getLogger("snn_repro")
LARGEST_FILE = 512 * 2**20  # bytes; the largest recording of the published sets has about 100 MB
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar", ".zip")
STAMP = ".unpacked.json"  # in an unpacked archive: which one it is, and what could not be unpacked
DAMAGES = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError, zlib.error)


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


def entry(folder: Path, name: str) -> Path | None:
    """The entry `name` ("a/b" for one further down) of a folder, exactly or else in other case; None without."""
    for wanted in name.split("/"):
        part: str | None = wanted
        try:
            if not (folder / wanted).exists():
                part = min((n for n in os.listdir(folder) if n.lower() == wanted.lower()), default=None)
        except OSError:
            return None
        if part is None or not os.path.exists(folder / part):
            return None
        folder = folder / part
    return folder


def first_entry(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of `names` in the first of `folders` that has one."""
    return next((path for f in folders for n in names if (path := entry(f, n)) is not None), None)


def hidden(name: str) -> bool:
    """Whether a file is one that operating systems leave in folders."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class Packed(UserError):
    """An archive that is not unpacked."""


def unpacked(
    archive: Path, cache_dir: str | Path | None, inner: Callable[[str], bool], unpack: bool = True
) -> tuple[Path, dict[str, str]]:
    """The folder that an archive is unpacked in, at the first call, and {file that could not be: why}.

    inner: says by its name whether an archive in it is unpacked too. Raises DataError for a broken archive, UserError
    where cache_dir is missing or cannot be written, Packed where there is something to do and `unpack` is False.
    """
    if not cache_dir:
        raise Packed(f"cache_dir is not set: pass cache_dir=DIR, a folder that {archive} is unpacked in, or unpack it")
    real = os.path.realpath(archive)
    folder = Path(cache_dir, "unpacked", f"{stem(archive.name)}-{zlib.crc32(os.fsencode(real)):08x}")
    if (problems := _unpacked_before(archive, folder)) is not None:
        return folder, problems
    if not unpack:
        raise Packed(f"{archive} is not unpacked in {cache_dir}")
    partial = folder.with_name(folder.name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (problems := _unpacked_before(archive, folder)) is None:
                log.info(f"unpacking {archive} into {folder}, once")
                shutil.rmtree(partial, ignore_errors=True)
                problems, state = _unpack(archive, partial, inner, str(archive)), _state(archive)
                (partial / STAMP).write_text(json.dumps({"state": state, "problems": problems}))
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
    except OSError as error:
        raise UserError(f"cache_dir={cache_dir} cannot be written: {error}") from None
    return folder, problems


def _state(archive: Path) -> list[int]:
    status = archive.stat()
    return [status.st_size, status.st_mtime_ns]


def _unpacked_before(archive: Path, folder: Path) -> dict[str, str] | None:
    try:
        made = json.loads((folder / STAMP).read_text())
        return made["problems"] if made["state"] == _state(archive) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unpack(archive: Path, target: Path, inner: Callable[[str], bool], called: str) -> dict[str, str]:
    """Unpack an archive and those in it; returns {name inside: why}. zipfile and tarfile keep names within `target`."""
    problems: dict[str, str] = {}
    target.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for info in (i for i in packed.infolist() if not i.is_dir()):
                    try:
                        if info.file_size > LARGEST_FILE and not inner(info.filename):
                            raise zipfile.BadZipFile(f"it has {info.file_size} bytes, more than any recording")
                        packed.extract(info, target)
                    except DAMAGES as error:
                        if getattr(error, "errno", None):  # of the disk that is written
                            raise
                        problems[info.filename] = str(error)
        else:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.isfile():
                        tar.extract(member, target, filter="data")
    except tarfile.FilterError as error:
        raise DataError(
            f"{called} holds a file outside of the archive's own folder, so it is not read: {error}"
        ) from None
    except DAMAGES as error:
        if getattr(error, "errno", None):
            raise
        raise DataError(f"{called} is not a readable archive ({error}); download it again") from None
    for name in problems:
        target.joinpath(name).unlink(missing_ok=True)
    for path in [p for p in sorted(target.rglob("*")) if archive_suffix(p.name) and inner(p.name) and p.is_file()]:
        folder = path.with_name(stem(path.name) + ("" if not path.with_name(stem(path.name)).exists() else ".unpacked"))
        below = _unpack(path, folder, inner, f"{path.name} in {called}")
        problems |= {f"{folder.relative_to(target).as_posix()}/{name}": why for name, why in below.items()}
        path.unlink()
    return problems
