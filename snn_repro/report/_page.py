"""The page around the sections: one file in which everything lies that it shows, packed, and nothing that a user wrote is HTML."""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from time import strftime
from types import ModuleType
from typing import Any

from snn_repro.paper.formats import Table
from snn_repro.report._read import Found

HERE = Path(__file__).parent
LONG = 40  # signs of a cell that may take several lines
FEW = 4  # notes that stand open
DIGITS = 5  # significant ones: a drawing shows no more, and the file stays small


class NothingToShow(Exception):
    """Why a section is not on the page."""


@dataclass
class Chart:
    """One drawing of a section; where there are several, a menu chooses. traces: {id of a row: Plotly's traces}.

    A trace may have `sd` (half the height of a band around `y`) and `mark` (a sign for each point instead of the row's).
    """

    name: str
    x: str
    y: str
    traces: Mapping[int, Sequence[dict[str, Any]]]
    layout: dict[str, Any] = field(default_factory=dict)


@dataclass
class Section:
    """html: what stands below the title (made by `text` and `table` of this file, which escape). data: for the NAME.js."""

    charts: Sequence[Chart] = ()
    html: str = ""
    data: Any = None


def text(sentences: Sequence[str]) -> str:
    """A list of sentences; a long one opens and closes."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    listed = f'<ul class="notes">{items}</ul>' if items else ""
    return f"<details><summary>{len(sentences)} notes</summary>{listed}</details>" if len(sentences) > FEW else listed


def table(given: Table, opened: bool = False) -> str:
    """A table that opens and closes, with its notes."""
    head, *rows = given.lines()
    numbers = [c.kind != "text" for c in given.shown]

    def cells(tag: str, line: list[str]) -> str:
        return "".join(
            f'<{tag} class="{"number" if n else "long" * (len(cell) > LONG)}">{escape(cell)}</{tag.split()[0]}>'
            for n, cell in zip(numbers, line, strict=True)
        )

    title = escape(given.title)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f"<details{' open' * opened}><summary>{title}</summary>"
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>'
        + cells('th scope="col"', head)
        + f"</tr></thead><tbody>{body}</tbody></table></div>"
        + f"{text(given.notes)}</details>"
    )


@lru_cache(maxsize=2)
def packed(content: str) -> str:
    """gzip in base64, which has no sign that HTML knows; the same bytes for the same content."""
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()


def as_json(content: Any) -> str:
    """Strict JSON: numbers of five digits, null for what is no number."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {str(k): short(v) for k, v in value.items()}
        return [short(v) for v in value] if isinstance(value, list | tuple) else value

    return json.dumps(short(content), allow_nan=False, separators=(",", ":"))


Parts = Sequence[tuple[ModuleType, Section]]


def page(found: Found, parts: Parts, missing: Sequence[str], plotly: str, refresh: float | None) -> str:
    """The whole file."""
    names = [module.__name__.rpartition(".")[2] for module, _ in parts]
    data = {
        "rows": [row.label for row in found.rows],
        "sections": {
            name: {"charts": [vars(c) for c in section.charts], "data": section.data}
            for name, (_, section) in zip(names, parts, strict=True)
        },
    }
    runs, finished = len(found.runs), sum(run.result is not None for run in found.runs)
    under_way = f", {finished} of them finished" if finished < runs else ""
    places = ", ".join(map(str, found.paths))
    unread = f"<summary>{len(found.problems)} could not be read</summary>{text(found.problems)}"
    problems = f'<details class="problems">{unread}</details>' if found.problems else ""
    own = [Path(module.__file__ or "").with_suffix(".js") for module, _ in parts]
    scripts = [HERE / "_page.js", *filter(Path.exists, own)]
    reload = f'<meta http-equiv="refresh" content="{math.ceil(refresh)}">' if refresh else ""
    watching = f" Loads itself again every {math.ceil(refresh)} s." if refresh else ""
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(module.TITLE)}</h2>'
        f'<p class="about">{escape(" ".join((module.__doc__ or "").split()))}</p>'
        f'<div class="place"></div>{section.html}</section>\n'
        for name, (module, section) in zip(names, parts, strict=True)
    )
    links = "".join(
        f'<li><a href="#{name}">{escape(module.TITLE)}</a></li>' for name, (module, _) in zip(names, parts, strict=True)
    )
    left_out = f"<section><h2>Not on this page</h2>{text(missing)}</section>" if missing else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">{reload}
<title>{runs} run{"s" * (runs > 1)} · snn_repro</title>
<style>
{(HERE / "_page.css").read_text("utf-8")}</style></head>
<body><a class="skip" href="#runs">Skip to the runs</a>
<header><h1>Spiking network runs</h1>
<p>{runs} run{"s" * (runs > 1)} in {len(found.rows)} row{"s" * (len(found.rows) > 1)}{under_way}, from {escape(places)};
made {strftime("%Y-%m-%d %H:%M")}.{watching}</p>{problems}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main><noscript><p>This page needs JavaScript to show its data.</p></noscript>
{body}{left_out}</main>
<script type="text/plain" id="data">{packed(as_json(data))}</script>
<script type="text/plain" id="plotly">{packed(plotly)}</script>
<script>
{"".join(path.read_text("utf-8") for path in scripts)}start();
</script></body></html>
"""
