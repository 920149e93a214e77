"""Numbers that are measured on this machine once and kept, so that all its runs choose alike."""

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.kernels.compiled import fingerprint, user_cache

_found: dict[str, tuple] = {}  # by this process


def kept(key: str, measure: Callable[[], list], name: str | None = None) -> tuple:
    """What `measure` found for `key` when it was first asked for on this machine; in the file `name` (default: `_name`)."""
    if key not in _found:
        known = _read(name)
        if key not in known:
            measured = measure()
            known = _read(name)  # another process may have been faster: then all follow it
            if key not in known:
                known[key] = measured
                _write(known, name)
                known |= _read(name)  # what the next process will find
        _found[key] = tuple(known[key])
    return _found[key]


def seconds(function: Callable[[], object], threads: int) -> float:
    """The shortest of some calls: CPU time of one thread, which other work does not lengthen; else wall time."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times = []
    for _ in range(5):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times[1:])


def crossing(times: list[tuple[float, float]], limit: float) -> float:
    """Where a cost reaches `limit`: seconds at some places, straight lines between."""
    before, least = 0.0, 0.0
    for density, after in times:
        if after >= limit:
            return before + (density - before) * max(0.0, limit - least) / (after - least) if before else 0.0
        before, least = density, after
    return before


@cache
def _name() -> str:
    return f"limits-torch{torch.__version__}-{fingerprint()}.json"


def _file(name: str | None = None) -> Path:
    """One file for each processor and version of what was measured."""
    return user_cache() / (name or _name())


def _read(name: str | None = None) -> dict[str, list]:
    try:
        return json.loads(_file(name).read_text())
    except (OSError, ValueError, RuntimeError):  # none yet, damaged, or no home folder: measure
        return {}


def _write(known: dict[str, list], name: str | None = None) -> None:
    try:
        _file(name).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(name), known)
    except (OSError, UserError, RuntimeError):
        pass  # kept in this process alone; the next one measures again
