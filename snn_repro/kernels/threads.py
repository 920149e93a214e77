"""The one pool of threads of all CPU kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
