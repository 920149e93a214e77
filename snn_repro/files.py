"""Atomic file writing, lock files, and the hash of a file."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from snn_repro.errors import UserError, brief


@contextlib.contextmanager
def replace_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary file beside `target`, renamed to it on success, else removed.

    The file is flushed to disk first. A link's target is replaced; a device or pipe is written directly. Raises
    UserError when the disk is full or the folder cannot be written.
    """
    if target.is_char_device() or target.is_fifo():
        yield target
        return
    place = Path(os.path.realpath(target))
    temporary = unguessable(place)
    try:
        if place.exists() and not (place.is_file() or place.is_dir()):
            raise OSError(errno.EINVAL, "it is a block device or a socket")
        temporary.touch(exist_ok=False)  # follows no link
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, place)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def unguessable(target: Path) -> Path:
    """A new random temporary name beside `target`, safe from links placed there first."""
    return target.with_name(f"{target.name[:200]}.{secrets.token_hex(8)}.tmp")


def write_error(target: Path, error: Exception, key: str = "hydra.run.dir=...") -> UserError:
    """The UserError for a failed write of `target`, whose folder `key` sets."""
    why = {
        errno.ENOSPC: "the disk is full; free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and start the same command again",
        errno.EACCES: f"no permission; choose another folder with {key}",
        errno.EROFS: f"the file system is read-only; choose another folder with {key}",
        errno.EEXIST: f"a file is where a folder is needed; choose another folder with {key}",
        errno.ENOTDIR: f"a file is where a folder is needed; choose another folder with {key}",
        errno.EIO: "the disk failed (I/O error); nothing was lost, start the same command again once it works",
    }.get(getattr(error, "errno", None) or 0, f"{brief(error)}; choose another place with {key}")
    return UserError(f"cannot write {target}: {why}")


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with replace_atomically(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Write strict JSON atomically, floats in full precision; raises ValueError for NaN and infinity."""
    write_text(target, json.dumps(content, indent=2, allow_nan=False) + "\n")


def hold(path: Path, patience: float = 0.2) -> FileLock | None:
    """Lock the file `path` until `release()` or process exit; None if another process has it.

    patience: seconds to wait, since others may hold the lock only to test it. Forks do not inherit the lock. Without
    flock on the file system, filelock warns and writes the holder's process id into the file. Raises OSError where the
    file cannot be created.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return None
    return lock
