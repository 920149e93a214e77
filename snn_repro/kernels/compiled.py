"""Compile loops with numba, run them in threads, and cache measurements per machine.

Compiled loops are cached in a folder of the user's cache that is named by a hash of all kernel sources, numba's version
and the processor. Importing this module is cheap; the first `compiled` imports numba.
"""

import contextlib
import hashlib
import inspect
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from snn_repro.errors import UserError
from snn_repro.files import write_json

_lock = threading.Lock()


def compiled(function, **options):
    """Compile `function` at its first call; cache it on disk if possible.

    options are njit's; by default the loops release the GIL and divide by zero as numpy does.
    """
    from numba import njit
    from numba.core import config

    options = {"nogil": True, "error_model": "numpy", **options}
    if (folder := _folder(inspect.getsourcefile(function), config.CACHE_DIR)) is None:
        return njit(function, **options)
    with _lock:  # changes numba's global setting for these lines only, not for the user's own loops
        before, config.CACHE_DIR = config.CACHE_DIR, folder
        try:
            return njit(function, cache=True, **options)
        finally:
            config.CACHE_DIR = before


def tried(function: Callable, *arguments: Any, without: str) -> Callable | None:
    """Compile `function` and call it; where numba fails, warn (`without`: the fallback) and return None."""
    try:
        loop = compiled(function)
        loop(*arguments)
    except Exception as error:  # import, compiler or unknown processor
        warnings.warn(f"numba cannot compile here ({type(error).__name__}); {without}", stacklevel=2)
        return None
    return loop


def user_cache() -> Path:
    """Return this package's folder in the user's cache. Raises RuntimeError without a home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_repro"


@cache
def fingerprint(*files: Path) -> str:
    """Return a hash of the kernels' sources, `files`, numba's version and the processor."""
    import llvmlite
    import numba
    from llvmlite import binding

    processor = binding.get_host_cpu_name() + binding.get_host_cpu_features().flatten()
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {processor}".encode())
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _folder(source: str, chosen: str) -> str | None:
    """The folder of a file's compiled loops, in `chosen` (NUMBA_CACHE_DIR) or the user's cache; None if read-only."""
    path = Path(source)
    try:
        name = fingerprint(*([] if path.parent == Path(__file__).parent else [path]))
        folder = Path(chosen or user_cache()) / f"compiled-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):
        return None
    return str(folder)


_tried: set[tuple] = set()
_reason: str | None = None


def broken() -> str | None:
    """Return why numba cannot compile here; None if nothing has failed."""
    return _reason


def ready(by_name: bool, rehearse: Callable, *case: Any) -> bool:
    """Whether a case's loops compile; `rehearse(*case)` tests it once, before the first forward.

    by_name: the backend was requested by name; raise UserError instead of returning False.
    """
    global _reason
    if _reason is None and (rehearse, case) not in _tried:
        try:
            rehearse(*case)
        except Exception as error:  # import, compiler or unknown processor
            _reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            sentence = f"numba cannot compile the fast loops here ({_reason}); using PyTorch: same results, slower"
            warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        _tried.add((rehearse, case))
    if _reason is not None and by_name:
        raise UserError(f"this backend needs numba, which fails here ({_reason}); use auto, or repair numba")
    return _reason is None


ready._dynamo_marked_constant = True  # torch.compile calls it while tracing


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool per process (a fork has no threads). The loops release the GIL; numba's pool is a second OpenMP."""
    return ThreadPoolExecutor(os.cpu_count(), "kernel")


def in_parallel(function: Callable, parts: list[tuple], threads: int) -> list:
    """Return [function(*part) for part in parts], by up to `threads` threads, the caller included."""
    results, left = [None] * len(parts), iter(range(len(parts)))

    def serve():
        for i in left:
            results[i] = function(*parts[i])

    others = [_pool(os.getpid()).submit(serve) for _ in range(min(threads, len(parts)) - 1)]
    serve()
    for other in others:
        other.result()
    return results


def cuts(n: int, parts: int) -> list[tuple[int, int]]:
    """Split range(n) into `parts` ranges of nearly equal length: [(start, stop), ...]."""
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


_measured: dict[str, tuple] = {}  # in this process


def measured_once(key: str, measure: Callable[[], list], name: str) -> tuple:
    """Return `measure()` for `key`, run once per machine and cached in file `name`."""
    if key not in _measured:
        known = _read(name)
        if key not in known:
            known = {key: measure()} | _read(name)  # the first process to write decides
            with contextlib.suppress(OSError, UserError, RuntimeError):  # if not written, measured again next time
                user_cache().mkdir(parents=True, exist_ok=True)
                write_json(user_cache() / name, known)
            known |= _read(name)  # as written
        _measured[key] = tuple(known[key])
    return _measured[key]


def _read(name: str) -> dict[str, list]:
    try:
        return json.loads((user_cache() / name).read_text())
    except (OSError, ValueError, RuntimeError):  # missing, damaged or no home folder
        return {}
