"""The report: runs as one page of HTML that needs no network. A section is a file of this folder, or of a package from outside.

Such a file has what its readers are told as its docstring, TITLE, ORDER (its place on the page) and, under
`@SECTIONS.register("name")`, `content(found) -> Section`, which raises `NothingToShow` with the reason where no run has what it shows. A chart is data: its
lines by row, in Plotly's words. `NAME.js` beside `NAME.py` is for a section that is more than text and charts.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from snn_repro.errors import UserError
from snn_repro.registry import SECTIONS, import_all
from snn_repro.report._page import Chart, NothingToShow, Section, page
from snn_repro.report._read import Found, NoRuns, find, snapshot

__all__ = ["Chart", "Found", "NoRuns", "NothingToShow", "Section", "find", "render", "sections", "snapshot"]


def sections() -> list[ModuleType]:
    """The modules of all sections, in the order of the page."""
    return sorted((sys.modules[content.__module__] for content in SECTIONS.values()), key=lambda module: module.ORDER)


def _contents(found: Found) -> tuple[list[tuple[ModuleType, Section]], list[str]]:
    """The sections that have something to show, and why the others have not."""
    parts, missing = [], []
    for module in sections():
        try:
            parts.append((module, module.content(found)))
        except NothingToShow as why:
            missing.append(f"{module.TITLE}: {why}")
    return parts, missing


def _damage(folder: Path, networks: int) -> str:
    """What keeps a run from the page, in words; empty where nothing does."""
    try:
        _contents(find([folder], networks))
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return ""


def render(paths: Iterable[str | Path], networks: int = 8, refresh: float | None = None) -> tuple[str, Found]:
    """The page of all runs under `paths`, and what was found there.

    networks: of so many rows, the latest, checkpoints are read (learned IMP, spikes and input of samples); 0 needs no torch.
    refresh: seconds after which an open page loads itself again. Raises UserError as `find` does, and where plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError('the report draws with plotly, which is missing: pip install "snn_repro[report]"') from None
    paths = [*paths]
    found = find(paths, networks)
    try:
        parts, missing = _contents(found)
    except Exception:  # of a run that reads well and holds what no section can show
        if not (damaged := {run.folder: why for run in found.runs if (why := _damage(run.folder, networks))}):
            raise
        found = find(paths, networks, damaged)
        parts, missing = _contents(found)
    return page(found, parts, missing, get_plotlyjs(), refresh), found


import_all(__name__, __path__)
