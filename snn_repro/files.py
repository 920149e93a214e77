"""Writing files whole or not at all."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snn_repro.errors import UserError

if TYPE_CHECKING:
    from filelock import FileLock


@contextlib.contextmanager
def replace_atomically(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed to disk and renamed, else removed.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    temporary = target.with_name(target.name + ".tmp")
    try:
        try:
            yield temporary
            with open(temporary, "rb+") as f:
                os.fsync(f.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(target, error) from error


def write_error(target: Path, error: Exception) -> UserError:
    """The sentence for a failed write of `target`."""
    number = getattr(error, "errno", None) or 0  # 0 is no error's number
    why = {
        errno.ENOSPC: "the disk is full; free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and start the same command again",
        errno.EACCES: "no permission; choose another folder with hydra.run.dir=...",
        errno.EROFS: "the file system is read-only; choose another folder with hydra.run.dir=...",
        errno.EEXIST: "a file stands where a folder is needed; choose another folder with hydra.run.dir=...",
        errno.ENOTDIR: "a file stands where a folder is needed; choose another folder with hydra.run.dir=...",
        errno.EIO: "the disk failed (I/O error); nothing was lost, start the same command again once it works",
    }.get(number, f"{' '.join(str(error).split())[:200]}; choose another place for it")
    return UserError(f"cannot write {target}: {why}")


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replace_atomically(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Write strict JSON whole or not at all (floats at full precision). Raises ValueError for NaN and infinity."""
    write_text(target, json.dumps(content, indent=2, allow_nan=False) + "\n")


def hold(path: Path) -> "FileLock | None":
    """Hold the lock file `path` until `release()` or this process's end, its forks not counted; None if another has it.

    On a file system without flock filelock warns, and notes the holder's process in the file. Raises OSError where the
    file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
