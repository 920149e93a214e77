"""The report: runs as one page of HTML that needs no network, made of sections; a package from outside may add some.

A section is a function `content(found) -> Section` under `@register_section("name", "Title", order)`: its docstring is what readers
are told, `order` its place on the page. It raises `NothingToShow` with the reason where no run has what it shows. A chart is data:
its lines by row, in Plotly's words. `NAME.js` beside the file of the section is for one that is more than text and charts.
"""

from collections.abc import Iterable
from pathlib import Path

from snn_repro.errors import UserError
from snn_repro.registry import SECTIONS
from snn_repro.report import charts, samples  # noqa: F401 - they register themselves
from snn_repro.report._page import Chart, NothingToShow, Part, Section, page, register_section, table, text
from snn_repro.report._read import Found, NoRuns, find

__all__ = [
    "Chart", "Found", "NoRuns", "NothingToShow", "Section", "find", "register_section", "render", "sections", "table",
    "text",
]  # fmt: skip


def sections() -> list[Part]:
    """All sections, in the order of the page."""
    return sorted(SECTIONS.values(), key=lambda part: part.order)


def render(paths: Iterable[str | Path], networks: int = 8, refresh: float | None = None) -> tuple[str, Found]:
    """The page of all runs under `paths`, and what was found there.

    networks: of so many rows, the latest, checkpoints are read (learned IMP, spikes and input of samples).
    refresh: seconds after which an open page loads itself again. Raises UserError as `find` does, and where plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError('the report draws with plotly, which is missing: pip install "snn_repro[report]"') from None
    found = find(paths, networks)
    shown, missing = [], []
    for part in sections():
        try:
            shown.append((part, part.content(found)))
        except NothingToShow as why:
            missing.append(f"{part.title}: {why}")
        except Exception as error:  # of a run that reads well and holds what this section cannot show
            said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            found.problems.append(f"{part.title}: a run holds what this section cannot show ({said})")
    return page(found, shown, missing, get_plotlyjs(), refresh), found
