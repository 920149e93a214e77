"""Names of data set folders and archives, and unpacking archives once into cache_dir/unpacked."""

import json
import logging
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from snn_repro.errors import DataError, UserError, brief

ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar", ".zip")
STAMP = ".unpacked.json"  # in an unpacked archive: which one it is, and the files that could not be unpacked
DAMAGES = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError, zlib.error)


@contextmanager
def reading() -> Iterator[None]:
    """Decorator or context for listing and reading files: OSError becomes DataError naming the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from None


def archive_suffix(name: str) -> str:
    """The archive suffix of a file name; "" if it has none."""
    return next((s for s in ARCHIVES if name.lower().endswith(s)), "")


def stem(name: str) -> str:
    """The file name without its archive suffix."""
    return name[: len(name) - len(archive_suffix(name))]


def name_matches(name: str, known: Iterable[str]) -> bool:
    """Whether a name is one of `known`, comparing letters and digits only (CIFAR10-DVS.zip: cifar10dvs)."""
    plain, *others = (re.sub(r"[^a-z0-9]", "", stem(n).lower()) for n in (name, *known))
    return plain in others


@reading()
def find_entry(folder: Path, *names: str) -> Path | None:
    """Path of the first of `names` ("a/b" is nested) in a folder, in any case."""
    for name in names:
        place = folder
        for part in name.split("/"):
            if not (place / part).exists() and place.is_dir():
                part = next((there for there in sorted(os.listdir(place)) if there.lower() == part.lower()), part)
            place /= part
        if place.exists():
            return place
    return None


class Packed(UserError):
    """Raised for an archive that is not unpacked yet."""


def unpacked(
    archive: Path, cache_dir: str | Path | None, inner: Callable[[str], bool], unpack: bool = True
) -> tuple[Path, dict[str, str]]:
    """The folder of an unpacked archive, and {file: error}; unpacks it on the first call.

    inner: whether an archive of this name inside it is unpacked too. Raises DataError for a broken archive, UserError
    if cache_dir is missing or not writable, Packed if it is not unpacked yet and `unpack` is False.
    """
    if not cache_dir:
        raise Packed(
            f"cache_dir is not set: pass cache_dir=DIR, a folder that {archive} is unpacked into, or unpack it"
        )
    folder = Path(
        cache_dir, "unpacked", f"{stem(archive.name)}-{zlib.crc32(os.fsencode(os.path.realpath(archive))):08x}"
    )
    state = [archive.stat().st_size, archive.stat().st_mtime_ns]
    if (problems := _unpacked_before(state, folder)) is not None:
        return folder, problems
    if not unpack:
        raise Packed(f"{archive} is not unpacked in {cache_dir}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (problems := _unpacked_before(state, folder)) is None:
                logging.getLogger("snn_repro").info(f"unpacking {archive} into {folder}, once")
                partial = folder.with_name(folder.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                problems = _unpack(archive, partial, inner, str(archive))
                (partial / STAMP).write_text(json.dumps({"state": state, "problems": problems}))
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
    except OSError as error:
        raise UserError(f"cache_dir={cache_dir} cannot be written: {error}") from None
    return folder, problems


def _unpacked_before(state: list[int], folder: Path) -> dict[str, str] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        made = json.loads((folder / STAMP).read_text())
        return made["problems"] if made["state"] == state else None
    return None


def _unpack(archive: Path, target: Path, inner: Callable[[str], bool], called: str) -> dict[str, str]:
    """Unpack an archive and those in it within `target`; returns {name: error}."""
    problems: dict[str, str] = {}
    target.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for info in packed.infolist():
                    try:
                        packed.extract(info, target)
                    except DAMAGES as error:
                        if getattr(error, "errno", None):  # an error of writing
                            raise
                        problems[info.filename] = str(error)
                        target.joinpath(info.filename).unlink(missing_ok=True)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(target, (member for member in tar if member.isfile()), filter="data")
                tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
                if len(tar.fileobj.read(512)) < 512:  # type: ignore[union-attr]  # tarfile takes a cut header for the end
                    raise tarfile.ReadError("unexpected end of data")
    except tarfile.FilterError as error:
        raise DataError(f"{called} holds a file outside its own folder and is not unpacked: {error}") from None
    except DAMAGES as error:
        if getattr(error, "errno", None):
            raise
        raise DataError(f"{called} is not a readable archive ({brief(error)}); download it again") from None
    for path in [p for p in sorted(target.rglob("*")) if archive_suffix(p.name) and inner(p.name) and p.is_file()]:
        folder = path.with_name(stem(path.name))
        folder = folder.with_name(f"{folder.name}.unpacked") if folder.exists() else folder
        below = _unpack(path, folder, inner, f"{path.name} in {called}")
        problems |= {f"{folder.relative_to(target).as_posix()}/{name}": why for name, why in below.items()}
        path.unlink()
    return problems
