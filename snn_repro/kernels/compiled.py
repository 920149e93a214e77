"""The one way to compile a loop by numba and to run it by several threads; what this machine keeps of both.

They lie in a folder of the user's cache that is named by the sources of all kernels, numba's version and the processor, so that
no loop outlives a change of a piece that it uses. Importing this module costs nothing; the first `compiled` imports numba.
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
    """`function`, compiled at its first call and kept on disk where the user's cache folder can be written.

    options are njit's; the loops hold no lock (nogil) and divide by zero as numpy does unless they say otherwise.
    """
    from numba import njit
    from numba.core import config

    options = {"nogil": True, "error_model": "numpy", **options}
    folder = _folder(inspect.getsourcefile(function), config.CACHE_DIR)
    if folder is None:
        return njit(function, **options)
    with _lock:  # numba's own setting serves these lines alone: what else the user compiles lies where it did
        before, config.CACHE_DIR = config.CACHE_DIR, folder
        try:
            return njit(function, cache=True, **options)
        finally:
            config.CACHE_DIR = before


def tried(function: Callable, *arguments: Any, without: str) -> Callable | None:
    """`function` compiled, after a call; None where numba cannot, and a warning that says what that comes to."""
    try:
        loop = compiled(function)
        loop(*arguments)
    except Exception as error:  # an import, a compiler or a processor that it does not know
        warnings.warn(f"numba cannot compile here ({type(error).__name__}); {without}", stacklevel=2)
        return None
    return loop


def user_cache() -> Path:
    """The user's cache folder of this package. Raises RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_repro"


@cache
def fingerprint(*files: Path) -> str:
    """Of the kernels' sources and `files`, numba's version and the processor."""
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
    """Where the compiled loops of a source file lie, `chosen` (NUMBA_CACHE_DIR) before the user's cache; None: nowhere."""
    path = Path(source)
    try:
        name = fingerprint(*([] if path.parent == Path(__file__).parent else [path]))
        folder = Path(chosen or user_cache()) / f"compiled-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):
        return None
    return str(folder)


# ---------------------------------------------------------------- whether loops can be compiled here

_tried: set[tuple] = set()
_reason: str | None = None


def broken() -> str | None:
    """Why nothing can be compiled here; None as long as everything could."""
    return _reason


def ready(by_name: bool, rehearse: Callable, *case: Any) -> bool:
    """Whether the loops of a case compile, forward and backward: `rehearse(*case)` tries it before the first forward pass.

    by_name: UserError instead of False.
    """
    global _reason
    if _reason is None and (rehearse, case) not in _tried:
        try:
            rehearse(*case)
        except Exception as error:  # an import, a compiler or a processor that it does not know: all end the same way
            _reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            warnings.warn(
                f"numba cannot compile the fast loops here ({_reason}); PyTorch computes instead: same results, slower",
                RuntimeWarning,
                stacklevel=2,
            )
        _tried.add((rehearse, case))
    if _reason is not None and by_name:
        raise UserError(f"this backend needs numba, which fails here ({_reason}); use auto, or mend numba")
    return _reason is None


ready._dynamo_marked_constant = True  # torch.compile calls it and takes the answer


# ---------------------------------------------------------------- the one pool of threads of all CPU kernels

# Python's own: the loops hold no lock, and numba's would be a second OpenMP beside torch's.
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def in_parallel(function: Callable, parts: list[tuple], threads: int) -> list:
    """[function(*part) for part in parts], by up to `threads` threads, of which the caller is one."""
    global _pool
    threads = min(threads, len(parts))
    if threads <= 1:
        return [function(*part) for part in parts]
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "kernel")
    results, left = [None] * len(parts), iter(range(len(parts)))

    def serve():
        for i in left:
            results[i] = function(*parts[i])

    others = [_pool.submit(serve) for _ in range(threads - 1)]
    serve()
    for other in others:
        other.result()
    return results


def cuts(n: int, parts: int) -> list[tuple[int, int]]:
    """range(n) in so many pieces of almost equal length: (first, behind the last) of each."""
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


# ---------------------------------------------------------------- what was measured here once, so that all runs choose alike

_found: dict[str, tuple] = {}  # by this process


def kept(key: str, measure: Callable[[], list], name: str) -> tuple:
    """What `measure` found for `key` when it was first asked for on this machine; in the file `name` of the user's cache."""
    if key not in _found:
        known = _read(name)
        if key not in known:
            known = {key: measure()} | _read(name)  # another process may have been faster: then all follow it
            with contextlib.suppress(
                OSError, UserError, RuntimeError
            ):  # kept in this process alone; the next measures again
                user_cache().mkdir(parents=True, exist_ok=True)
                write_json(user_cache() / name, known)
            known |= _read(name)  # what the next process will find
        _found[key] = tuple(known[key])
    return _found[key]


def _read(name: str) -> dict[str, list]:
    try:
        return json.loads((user_cache() / name).read_text())
    except (OSError, ValueError, RuntimeError):  # none yet, damaged, or no home folder: measure
        return {}
