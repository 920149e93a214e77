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


def render(paths: Iterable[str | Path], networks: int = 8, refresh: float | None = None) -> tuple[str, Found]:
    """The page of all runs under `paths`, and what was found there.

    networks: of so many rows, the latest, checkpoints are read (learned IMP, spikes and input of samples); 0 needs no torch.
    refresh: seconds after which an open page loads itself again. Raises UserError as `find` does, and where plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError('the report draws with plotly, which is missing: pip install "snn_repro[report]"') from None
    found = find(paths, networks)
    parts, missing = [], []
    for module in sections():
        try:
            parts.append((module, module.content(found)))
        except NothingToShow as why:
            missing.append(f"{module.TITLE}: {why}")
    return page(found, parts, missing, get_plotlyjs(), refresh), found


import_all(__name__, __path__)
