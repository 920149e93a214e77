"""How figures look. Lines differ in colour (Okabe and Ito's palette), marker and dash: in print too, and for everyone."""

import textwrap
import zlib
from typing import Any

from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
SERIES: list[dict[str, Any]] = [
    dict(color=color, marker=marker, linestyle=dash)
    for color, marker, dash in zip(COLOURS, "os^Dvx", ("-", "--", "-.", ":", "-", "--"), strict=True)
]
PAPERS = ("sdt", "tet", "lts", "tet_s")  # they have the first looks; any other loss one of the rest, by its name
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "snn_repro", "svg.fonttype": "path", "savefig.dpi": 150, "lines.linewidth": 1.3, "lines.markersize": 4,
    "axes.grid": False, "grid.color": "0.9", "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def title(loss: str) -> str:
    return loss.upper().replace("_", "-")


def rank(loss: str) -> int:
    """Which of SERIES a loss has; figures show losses in this order."""
    others = len(SERIES) - len(PAPERS)
    return PAPERS.index(loss) if loss in PAPERS else len(PAPERS) + zlib.crc32(loss.encode()) % others


def line(loss: str, imp: bool | None = None) -> dict[str, Any]:
    """Colour, marker, dash and label of a loss; with `imp` given, solid and filled is IMP, dashed and open is not."""
    look = SERIES[rank(loss)] | dict(label=title(loss))
    if imp is None:
        return look
    inside = look["color"] if imp else "white"
    return look | dict(linestyle="-" if imp else "--", markerfacecolor=inside, label=title(loss) + " + IMP" * imp)


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches; without pyplot, so that no window and no global state come in."""
    return Figure(figsize=(width, height))


def footnote(figure: Figure, *sentences: str | None) -> None:
    """Small lines below a figure: its n, and what a reader must know; None is left out."""
    width = int(figure.get_figwidth() * 17)
    lines = [part for sentence in sentences if sentence for part in textwrap.wrap(sentence, width)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color="0.3")
