"""What all figures share: style, colours and rendering.

A figure is one file: here, in scripts/studies/figures/ or in a plug-in package. Its module docstring is the caption. It
has `draw(results) -> Figure` under `@FIGURES.register("name")`, and `measure(target, runs)` if it needs its own data.
Drawings depend only on this code and the committed files under results/: fonts and ids are fixed, dates left out. They
are WIDE inches wide, as a page of NeurIPS, with text of at least 7 pt. Lines differ in colour
(palette of Okabe and Ito), marker and dash, to be distinct in print and for colour-blind readers.
"""

import io
import textwrap
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.provenance import NUMBERS
from snn_repro.registry import FIGURES, import_all
from snn_repro.runs.folder import result_files

# large studies with a page and figures of their own
OWN_PAGE = {"methods", "methods_tuned", "initial_state", "anytime"}


class MissingData(UserError):
    """The data of a figure are missing; the message says how to get them."""


def render(name: str, results: Path) -> dict[Path, bytes]:
    """`{file: bytes}` of a figure, reproducible for the same data, code and matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn, files = FIGURES[name](results), {}
        source = drawn.get_label() or f"no run; version of the numbers: {NUMBERS}"
        dates = {
            "svg": {"Date": None, "Description": source},
            "pdf": {"CreationDate": None, "Producer": None, "Subject": source},
        }
        for suffix, metadata in dates.items():
            out = io.BytesIO()
            drawn.savefig(out, format=suffix, metadata={"Creator": None, "Title": name} | metadata)
            files[results / "figures" / f"{name}.{suffix}"] = out.getvalue()
        return files


def finished_runs(results: Path) -> list[Group]:
    """Groups of the collected runs outside OWN_PAGE. Raises MissingData if there are none."""
    runs = results / "runs"
    if not result_files(runs):
        raise MissingData(f"{runs} has no finished run; add some: python scripts/make_tables.py --collect runs")
    return group_runs(r for r in load([runs]) if not OWN_PAGE & {*Path(r["folder"]).relative_to(runs).parts})[0]


# ---------------------------------------------------------------- style

WIDE = 5.5  # inches: the width of text on a page of NeurIPS
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
SERIES: list[dict[str, Any]] = [
    dict(color=color, marker=marker, linestyle=dash)
    for color, marker, dash in zip(COLOURS, "os^Dvx", ("-", "--", "-.", ":", "-", "--"), strict=True)
]
PAPERS = ("sdt", "tet", "lts", "tet_s")  # they take the first styles, any other loss one of the rest by its name
STYLE: dict[Any, Any] = {
    "font.size": 7, "axes.titlesize": 7, "legend.handlelength": 2.2, "pdf.fonttype": 42,
    "svg.hashsalt": "snn_repro", "svg.fonttype": "none", "savefig.dpi": 150, "lines.linewidth": 1.2, "lines.markersize": 3.5,
    "axes.grid": False, "grid.color": "0.9", "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def title(loss: str) -> str:
    """A loss as it is written in figures: TET-S for tet_s."""
    return loss.upper().replace("_", "-")


def rank(loss: str) -> int:
    """Index of a loss in SERIES, which is also its order in figures."""
    own = len(PAPERS)
    return PAPERS.index(loss) if loss in PAPERS else own + zlib.crc32(loss.encode()) % (len(SERIES) - own)


def line(loss: str, imp: bool | None = None) -> dict[str, Any]:
    """Plot style and label of a loss: solid, filled with IMP; dashed, open without."""
    style = SERIES[rank(loss)] | dict(label=title(loss))
    if imp is None:
        return style
    inside = style["color"] if imp else "white"
    return style | dict(linestyle="-" if imp else "--", markerfacecolor=inside, label=title(loss) + " + IMP" * imp)


def seeds(n_of: Iterable[tuple[str, int]]) -> str:
    """Numbers of seeds by label, such as `n = 8 (SDT, TET), 5 (TET-S)`."""
    by_n: dict[int, dict[str, None]] = {}
    for label, n in n_of:
        by_n.setdefault(n, {})[label] = None
    return "n = " + ", ".join(str(n) + f" ({', '.join(those)})" * (len(by_n) > 1) for n, those in by_n.items())


def footnote(figure: Figure, *sentences: str | None, runs: Iterable[Mapping[str, Any]] = ()) -> None:
    """Write sentences below a figure, and the hashes of `runs` into its metadata."""
    width = int(figure.get_figwidth() * 19)
    lines = [part for sentence in sentences if sentence for part in textwrap.wrap(sentence, width)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="0.3")
    runs = list(runs)
    codes = [run.get("code") or {} for run in runs]
    known = {
        "runs": {run["recipe_hash"][:8] if run.get("recipe_hash") else str(run.get("run", "")) for run in runs},
        "version of the numbers": {str(code.get("numbers", "not recorded")) for code in codes},
        "commits": {code["commit"][:7] for code in codes if code.get("commit")},
    }
    figure.set_label("; ".join(f"{what}: {', '.join(sorted(s))}" for what, some in known.items() if (s := some - {""})))


import_all(__name__, __path__)
