"""The report: all runs as one self-contained HTML page, made of sections.

A section is a function `content(found) -> Section` under `@register_section("name", "Title", order)`; other packages
may add some. Its docstring is shown to the reader, `order` is its position. It raises `NothingToShow` with the reason
if no run has its data. A chart holds Plotly traces by row. `NAME.js` beside the section's file is for more than text
and charts.
"""

from collections.abc import Iterable
from pathlib import Path

from snn_repro.errors import UserError
from snn_repro.registry import SECTIONS
from snn_repro.report import anytime, charts, comparison, samples  # noqa: F401 - they register themselves
from snn_repro.report._page import Chart, NothingToShow, Part, Section, page, register_section, table, text
from snn_repro.report._read import Found, NoRuns, find

__all__ = [
    "Chart", "Found", "NoRuns", "NothingToShow", "Section", "find", "register_section", "render", "sections", "table",
    "text",
]  # fmt: skip


def sections() -> list[Part]:
    """Return all sections in the order of the page."""
    return sorted(SECTIONS.values(), key=lambda part: part.order)


def render(paths: Iterable[str | Path], networks: int = 8, refresh: float | None = None) -> tuple[str, Found]:
    """Render all runs under `paths`; return the page and the runs found.

    networks: number of latest rows whose checkpoints are read (for IMP and samples). refresh: seconds between reloads
    of an open page. Raises UserError as `find` does, and if plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError('the report needs plotly: pip install "snn_repro[report]"') from None
    found, shown, missing = find(paths, networks), [], []
    for part in sections():
        try:
            shown.append((part, part.content(found)))
        except NothingToShow as nothing:
            missing.append(f"{part.title}: {nothing}")
        except Exception as error:  # unexpected values in a readable run
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            found.problems.append(f"{part.title}: this section cannot show the data of a run ({reason})")
    return page(found, shown, missing, get_plotlyjs(), refresh), found
