"""The figures: what all share. Each is a file, in this folder, in scripts/studies/figures/, or in a package from outside.

It has its caption as its docstring, `draw(results) -> Figure` under `@FIGURES.register("name")`, and `measure(target, runs)` where its
data are measured for it. A drawing depends on the committed files under results/ and on this code alone: fixed fonts, fixed ids, no dates. Lines differ
in colour (Okabe and Ito's palette), marker and dash: in print too, and for everyone.
"""

import contextlib
import io
import json
import sys
import textwrap
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.files import replace_atomically, write_text
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.registry import FIGURES, import_all
from snn_repro.runs.folder import result_files

PROGRAM = "python scripts/make_figures.py"
OWN_PAGE = {"methods", "initial_state"}  # studies of some hundred lines, with a page and figures of their own


class MissingData(UserError):
    """A figure's data are not there (yet): the sentence says how to get them."""


def names() -> list[str]:
    return sorted(FIGURES)


def figure(name: str) -> ModuleType:
    """The module of a figure."""
    return sys.modules[FIGURES[name].__module__]


# ---------------------------------------------------------------- files


def render(name: str, results: Path) -> dict[Path, bytes]:
    """{file: its content} of one figure; the same bytes for the same data, code and matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn, files = FIGURES[name](results), {}
        for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            out = io.BytesIO()
            drawn.savefig(out, format=suffix, metadata=metadata)
            files[results / "figures" / f"{name}.{suffix}"] = out.getvalue()
        return files


def make(chosen: Iterable[str], results: Path) -> list[str]:
    """Draw figures into results/figures and write its README; returns the sentences of those that lack their data."""
    folder, missing = results / "figures", []
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        try:
            for path, content in render(name, results).items():
                with replace_atomically(path) as temporary:
                    temporary.write_bytes(content)
            print(f"{folder / name}.svg, .png")
        except MissingData as error:
            missing.append(f"{name} skipped: {error}")
    write_text(folder / "README.md", index(folder))
    return missing


def stale(chosen: Iterable[str], results: Path) -> Iterator[Path]:
    """The committed drawings that are not what their data give, by this matplotlib."""
    for name in chosen:
        with contextlib.suppress(MissingData):
            for path, content in render(name, results).items():
                if not path.exists() or path.read_bytes() != content:
                    yield path


def index(folder: Path) -> str:
    """The README of the figures' folder: what each one shows, and the commands that made it."""
    lines = [
        "# Figures",
        "",
        f"Drawn by `{PROGRAM}` from the files of this folder and of `../runs`, with matplotlib {matplotlib.__version__};",
        "another version of matplotlib may draw the same numbers with other bytes.",
        "",
    ]
    for name in names():
        if (folder / f"{name}.svg").exists():
            caption = " ".join((figure(name).__doc__ or "").split())
            lines += [f"## {name}", "", f"![{name}]({name}.svg)", "", caption, "", f"    {PROGRAM} figure={name}"]
            data = folder / f"{name}.json"
            lines += [f"    {read(data)['command']}    # its data", ""] if data.exists() else [""]
    return "\n".join(lines)


# ---------------------------------------------------------------- data


def measured(results: Path, name: str, hint: str = "") -> dict[str, Any]:
    """What `measure` of this figure wrote; `hint` is what its command needs beside."""
    path = results / "figures" / f"{name}.json"
    if not path.exists():
        raise MissingData(f"{path} does not exist; make it with `{PROGRAM} measure={name}{hint}`")
    return read(path)


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MissingData(f"{path} is damaged ({' '.join(str(error).split())[:80]}); make it again") from None


def finished_runs(results: Path) -> list[Group]:
    runs = results / "runs"
    if not result_files(runs):
        raise MissingData(
            f"{runs} holds no finished run; collect some with `python scripts/make_tables.py --collect runs`"
        )
    ours = [r for r in load([runs]) if not OWN_PAGE & {*Path(r["folder"]).relative_to(runs).parts}]
    return group_runs(ours)[0]


def write_data(target: Path, content: dict[str, Any]) -> None:
    """Write a data file of a figure, one line a top-level entry or curve, so that a change is readable."""
    lines = []
    for k, v in content.items():
        listed = isinstance(v, list) and v and isinstance(v[0], dict)
        text = "[\n  " + ",\n  ".join(map(json.dumps, v)) + "\n ]" if listed else json.dumps(v)
        lines.append(f" {json.dumps(k)}: {text}")
    write_text(target, "{\n" + ",\n".join(lines) + "\n}\n")


# ---------------------------------------------------------------- looks

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


def footnote(figure: Figure, *sentences: str | None) -> None:
    """Small lines below a figure: its n, and what a reader must know; None is left out."""
    width = int(figure.get_figwidth() * 17)
    lines = [part for sentence in sentences if sentence for part in textwrap.wrap(sentence, width)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color="0.3")


import_all(__name__, __path__)
