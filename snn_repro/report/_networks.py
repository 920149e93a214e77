"""Trained networks of the runs that have a checkpoint, for the sections that look into them. Imports torch when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from snn_repro.errors import UserError
from snn_repro.report._read import Found, Row, Run

if TYPE_CHECKING:
    from snn_repro.trained import TrainedRun

CHECKPOINT = "checkpoint_last.pt"  # runs.checkpoint.LAST, which is behind torch


def trained(found: Found, wanted: Callable[[Row], bool]) -> Iterator[tuple[Row, Run, TrainedRun | str]]:
    """One run with a checkpoint of each of the latest `found.networks` rows, of those `wanted`, and its network, or why it
    cannot be loaded."""
    rows = filter(wanted, found.rows)
    have = [(row, next((r for r in row.runs if (r.folder / CHECKPOINT).exists()), None)) for row in rows]
    dated = [(_stamp(run.folder), row, run) for row, run in have if run]
    latest = sorted(dated, key=lambda item: -item[0])[: found.networks]
    for stamp, row, run in sorted(latest, key=lambda item: item[1].id):
        yield row, run, _load(run.folder, stamp, run.result is not None)


def _stamp(folder: Path) -> int:
    try:
        return (folder / CHECKPOINT).stat().st_mtime_ns
    except FileNotFoundError:  # a run under way moves it
        return 0


@lru_cache(maxsize=32)
def _load(folder: Path, stamp: int, finished: bool) -> TrainedRun | str:
    from snn_repro.trained import load_run

    try:
        return load_run(folder)
    except (UserError, OSError) as error:
        return " ".join(str(error).split())
