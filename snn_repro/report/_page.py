"""The page around the sections: one self-contained file, with all text escaped."""

import base64
import gzip
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from time import strftime
from typing import Any, NamedTuple

from snn_repro.paper.formats import Table
from snn_repro.registry import SECTIONS
from snn_repro.report._read import Found

HERE = Path(__file__).parent
LONG = 24  # characters of a cell that may wrap
FEW = 4  # notes that are not folded
DIGITS = 5  # significant digits: enough for a chart, and the file stays small


class NothingToShow(Exception):
    """Why a section is not on the page."""


@dataclass
class Chart:
    """One chart of a section; a menu selects among several.

    traces: {row id: Plotly traces}. A trace may have `sd` (half the height of a band around `y`) and `mark` (a symbol
    for each point instead of the row's). panels: {row id: title}, for one panel for each title.
    """

    name: str
    x: str
    y: str
    traces: Mapping[int, Sequence[dict[str, Any]]]
    layout: dict[str, Any] = field(default_factory=dict)
    panels: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Section:
    """Content of a section below its title."""

    charts: Sequence[Chart] = ()
    html: str = ""  # made by `text` and `table`, which escape
    data: Any = None  # for NAME.js


class Part(NamedTuple):
    """A registered section."""

    name: str
    title: str
    order: float
    content: Callable[[Found], Section]


def register_section(name: str, title: str, order: float) -> Callable:
    """Decorator that registers `content(found) -> Section`; readers see its docstring."""
    return SECTIONS.register(name, lambda content: Part(name, title, order, content))


def text(sentences: Sequence[str]) -> str:
    """Format sentences as an HTML list, folded if long."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    listed = f'<ul class="notes">{items}</ul>' if items else ""
    return f"<details><summary>{len(sentences)} notes</summary>{listed}</details>" if len(sentences) > FEW else listed


def table(given: Table, opened: bool = False) -> str:
    """Format a table with its notes as foldable HTML.

    A column that is equal in all rows becomes a note, an empty one is left out.
    """
    several, columns = len(given.rows) > 1, list(zip(*given.lines(), strict=True))  # (header, cells...)
    equal = [i > 0 and len({*cells}) <= several for i, (_, *cells) in enumerate(columns)]
    empty = [i > 0 and not any(cells) for i, (_, *cells) in enumerate(columns)]
    same = [f"{head} {cells[0]}" for (head, *cells), e, x in zip(columns, equal, empty, strict=True) if e and not x]
    notes = [f"Same in all rows: {', '.join(same)}"] if same else []
    shown = [i for i in range(len(columns)) if not equal[i] and not empty[i]]
    head, *rows = zip(*(columns[i] for i in shown), strict=True)
    numbers = [given.shown[i].kind not in ("text", "steps") for i in shown]

    def cells(tag: str, line: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{"number" if n else "long" * (len(cell) > LONG)}">{escape(cell)}</{tag.split()[0]}>'
            for n, cell in zip(numbers, line, strict=True)
        )

    title, body = escape(given.title), "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f"<details{' open' * opened}><summary>{title}</summary>"
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>'
        + cells('th scope="col"', head)
        + f"</tr></thead><tbody>{body}</tbody></table></div>"
        + f"{text([*notes, *given.notes])}</details>"
    )


@lru_cache(maxsize=2)
def packed(content: str) -> str:
    """Compress by gzip and encode in base64, which is safe in HTML; deterministic."""
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()


def as_json(content: Any) -> str:
    """Encode as strict JSON: numbers with five digits, null for NaN and infinity."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {str(k): short(v) for k, v in value.items()}
        return [short(v) for v in value] if isinstance(value, list | tuple) else value

    return json.dumps(short(content), allow_nan=False, separators=(",", ":"))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">{reload}
<title>{runs} · snn_repro</title>
<style>
{style}</style></head>
<body><a class="skip" href="#runs">Skip to the runs</a>
<header><h1>Spiking network runs</h1>
<p>{runs} in {rows}{under_way}, from {places};
created {made}.{watching}</p>{problems}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main><noscript><p>This page needs JavaScript to show its data.</p></noscript>
{body}{left_out}</main>
<script type="text/plain" id="data">{data}</script>
<script type="text/plain" id="plotly">{plotly}</script>
<script>
{scripts}start();
</script></body></html>
"""
SECTION = """<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>\
<p class="about">{about}</p><div class="place"></div>{html}</section>
"""


def page(
    found: Found, shown: Sequence[tuple[Part, Section]], missing: Sequence[str], plotly: str, refresh: float | None
) -> str:
    """Assemble the HTML file."""

    def several(n: int, what: str) -> str:
        return f"{n} {what}{'s' * (n > 1)}"

    data = {
        "rows": [row.label for row in found.rows],
        "sections": {part.name: {"charts": [vars(c) for c in s.charts], "data": s.data} for part, s in shown},
    }
    finished = sum(run.result is not None for run in found.runs)
    unread = f"<summary>{len(found.problems)} could not be read</summary>{text(found.problems)}"
    own = [Path(inspect.getfile(part.content)).with_name(f"{part.name}.js") for part, _ in shown]
    scripts = [HERE / "_page.js", *filter(Path.exists, own)]
    return PAGE.format(
        runs=several(len(found.runs), "run"), rows=several(len(found.rows), "row"), made=strftime("%Y-%m-%d %H:%M"),
        under_way=f", {finished} finished" if finished < len(found.runs) else "",
        places=escape(", ".join(map(str, found.paths))), style=(HERE / "_page.css").read_text("utf-8"),
        reload=f'<meta http-equiv="refresh" content="{math.ceil(refresh)}">' if refresh else "",
        watching=f" Reloads every {math.ceil(refresh)} s." if refresh else "",
        problems=f'<details class="problems">{unread}</details>' if found.problems else "",
        links="".join(f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part, _ in shown),
        body="".join(
            SECTION.format(
                name=part.name, title=escape(part.title), html=section.html,
                about=escape(" ".join((part.content.__doc__ or "").split())),
            )
            for part, section in shown
        ),
        left_out=f"<section><h2>Not shown</h2>{text(missing)}</section>" if missing else "",
        data=packed(as_json(data)), plotly=packed(plotly), scripts="".join(path.read_text("utf-8") for path in scripts),
    )  # fmt: skip
