"""Writing files whole or not at all."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from snn_repro.errors import UserError


@contextlib.contextmanager
def replace_atomically(target: Path) -> Iterator[Path]:
    """Yield a new temporary file beside `target`; on success it is flushed to disk and renamed, else removed.

    A link stays and its file is replaced; a device or a pipe is written to as it is. Raises UserError when the disk is full
    or the folder cannot be written.
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


def unguessable(target: Path) -> Path:
    """A new temporary name beside `target`, so that nobody can put a link there first."""
    return target.with_name(f"{target.name[:200]}.{secrets.token_hex(8)}.tmp")


def write_error(target: Path, error: Exception, key: str = "hydra.run.dir=...") -> UserError:
    """The sentence for a failed write of `target`, whose folder `key` chooses."""
    number = getattr(error, "errno", None) or 0  # 0 is no error's number
    why = {
        errno.ENOSPC: "the disk is full; free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and start the same command again",
        errno.EACCES: f"no permission; choose another folder with {key}",
        errno.EROFS: f"the file system is read-only; choose another folder with {key}",
        errno.EEXIST: f"a file stands where a folder is needed; choose another folder with {key}",
        errno.ENOTDIR: f"a file stands where a folder is needed; choose another folder with {key}",
        errno.EIO: "the disk failed (I/O error); nothing was lost, start the same command again once it works",
    }.get(number, f"{' '.join(str(error).split())[:200]}; choose another place with {key}")
    return UserError(f"cannot write {target}: {why}")


def write_text(target: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replace_atomically(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Write strict JSON whole or not at all (floats at full precision). Raises ValueError for NaN and infinity."""
    write_text(target, json.dumps(content, indent=2, allow_nan=False) + "\n")


def hold(path: Path, patience: float = 0.2) -> FileLock | None:
    """Hold the lock file `path` until `release()` or this process's end, its forks not counted; None if another has it.

    patience: seconds to wait, since another may only look whether it is held. On a file system without flock filelock warns, and notes the holder's process in the file. Raises OSError where the
    file cannot be made.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return None
    return lock
