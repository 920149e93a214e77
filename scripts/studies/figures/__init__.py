"""Draws the paper's figures and those of the studies from the files under results/; importing this registers them."""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib

from snn_repro.files import replace_atomically, write_text
from snn_repro.paper.figures import MissingData, render
from snn_repro.registry import FIGURES, import_all

PROGRAM = "python scripts/make_figures.py"


def names() -> list[str]:
    return sorted(FIGURES)


def figure(name: str) -> ModuleType:
    """The module of a figure."""
    return sys.modules[FIGURES[name].__module__]


def make(chosen: Iterable[str], results: Path) -> list[str]:
    """Draw figures into results/figures and write its README; returns a sentence for each figure whose data are missing."""
    folder, missing = results / "figures", []
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        try:
            for path, content in render(name, results).items():
                with replace_atomically(path) as temporary:
                    temporary.write_bytes(content)
            print(f"{folder / name}.svg, .pdf")
        except MissingData as error:
            missing.append(f"{name} skipped: {error}")
    write_text(folder / "README.md", index(folder))
    return missing


def stale(chosen: Iterable[str], results: Path) -> Iterator[Path]:
    """The committed drawings that differ from what this matplotlib draws from their data."""
    for name in chosen:
        with contextlib.suppress(MissingData):
            for path, content in render(name, results).items():
                if not path.exists() or path.read_bytes() != content:
                    yield path


def index(folder: Path) -> str:
    """The README of results/figures: captions, and the commands that draw each figure."""
    lines = [
        "# Figures",
        "",
        f"Drawn by `{PROGRAM}` from the files in this folder and in `../runs`, with matplotlib {matplotlib.__version__};",
        "another version may give different bytes for the same numbers. Each figure is there as SVG and as PDF, 5.5 inches wide for a",
        "page of NeurIPS, with text of at least 7 pt. Its metadata and the line below it name the runs (`recipe_hash`), the version of the",
        "numbers and the commits.",
        "",
    ]
    for name in names():
        if (folder / f"{name}.svg").exists():
            caption = " ".join((figure(name).__doc__ or "").split())
            lines += [f"## {name}", "", f"![{name}]({name}.svg)", "", caption, "", *_source(folder / f"{name}.svg")]
            lines += [f"    {PROGRAM} figure={name}"]
            data = folder / f"{name}.json"
            lines += [f"    {read(data)['command']}    # its data", ""] if data.exists() else [""]
    return "\n".join(lines)


def _source(svg: Path) -> list[str]:
    """The line on the runs of a figure, from its metadata."""
    found = re.search("<dc:description>(.*?)</dc:description>", svg.read_text("utf-8"), re.DOTALL)
    return [f"Made from {found[1]}.", ""] if found else []


def measured(results: Path, name: str, hint: str = "") -> dict[str, Any]:
    """The data that `measure` wrote for a figure; `hint`: further arguments of that command."""
    path = results / "figures" / f"{name}.json"
    if not path.exists():
        raise MissingData(f"{path} does not exist; make it with `{PROGRAM} measure={name}{hint}`")
    return read(path)


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MissingData(f"{path} is damaged ({' '.join(str(error).split())[:80]}); make it again") from None


def write_data(target: Path, content: dict[str, Any]) -> None:
    """Write a figure's data as JSON, one line per top-level entry or curve, for readable diffs."""
    lines = []
    for k, v in content.items():
        listed = isinstance(v, list) and v and isinstance(v[0], dict)
        text = "[\n  " + ",\n  ".join(map(json.dumps, v)) + "\n ]" if listed else json.dumps(v)
        lines.append(f" {json.dumps(k)}: {text}")
    write_text(target, "{\n" + ",\n".join(lines) + "\n}\n")


import_all(__name__, __path__)
