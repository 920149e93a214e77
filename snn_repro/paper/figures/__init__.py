"""The figures: a file each in this folder, or in a package from outside.

Such a file has its caption as its docstring, `draw(results) -> Figure` under `@FIGURES.register("name")`, and `measure(target, runs)` where its data are measured
for it. A drawing depends on the committed files under results/ and on this code alone: fixed fonts, fixed ids, no dates.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import matplotlib
from matplotlib.figure import Figure

from snn_repro.files import replace_atomically, write_text
from snn_repro.paper.figures._data import PROGRAM, MissingData, read
from snn_repro.paper.figures._style import STYLE
from snn_repro.registry import FIGURES, import_all


def names() -> list[str]:
    return sorted(FIGURES)


def figure(name: str) -> ModuleType:
    """The module of a figure."""
    return sys.modules[FIGURES[name].__module__]


def render(draw: Callable[[Path], Figure], results: Path) -> dict[str, bytes]:
    """{"svg": ..., "png": ...} of one figure; the same bytes for the same data, code and matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn = draw(results)
        files = {}
        for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            out = io.BytesIO()
            drawn.savefig(out, format=suffix, metadata=metadata)
            files[suffix] = out.getvalue()
        return files


def _drawings(chosen: Iterable[str], results: Path) -> Iterator[tuple[str, dict[Path, bytes] | MissingData]]:
    """(name, {file: its content}) of each figure, or what it lacks."""
    for name in chosen:
        try:
            files = render(figure(name).draw, results)
            yield name, {results / "figures" / f"{name}.{suffix}": content for suffix, content in files.items()}
        except MissingData as error:
            yield name, error


def make(chosen: Iterable[str], results: Path, say: Callable[[str], None] = print) -> list[str]:
    """Draw figures into results/figures and write its README; returns the sentences of those that lack their data."""
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for name, drawn in _drawings(chosen, results):
        if isinstance(drawn, MissingData):
            missing.append(f"{name} skipped: {drawn}")
            continue
        for path, content in drawn.items():
            with replace_atomically(path) as temporary:
                temporary.write_bytes(content)
        say(f"{folder / name}.svg, .png")
    write_text(folder / "README.md", index(folder))
    return missing


def stale(chosen: Iterable[str], results: Path) -> list[Path]:
    """The committed drawings that are not what their data give, by this matplotlib."""
    files = {path: c for _, drawn in _drawings(chosen, results) if isinstance(drawn, dict) for path, c in drawn.items()}
    return [path for path, content in files.items() if not path.exists() or path.read_bytes() != content]


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


import_all(__name__, __path__)
