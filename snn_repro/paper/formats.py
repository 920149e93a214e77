"""Tables of results, written as Markdown or CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from snn_repro.console import markdown


class Column(NamedTuple):
    """A column of a table: the key of its cells, its header and its kind.

    kind: text | number (two decimals) | summary (mean, sd) | interval | gain | steps (t = 1..T) | csv (only in CSV).
    """

    key: str
    header: str
    kind: str = "text"


@dataclass
class Table:
    """A titled table: each row is `{column key: value}`; notes are printed below it."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str] = field(default_factory=list)
    named_by: Sequence[str] = ("row",)  # keys of the columns that name a row
    about: Mapping[str, Sequence[str]] = field(default_factory=dict)  # note: the columns that it explains

    @property
    def shown(self) -> list[Column]:
        """The columns shown in every format except CSV."""
        return [c for c in self.columns if c.kind != "csv"]

    def lines(self, write: Callable[[str], str] = str) -> list[list[str]]:
        """The header and the rows as text; `write` escapes each cell."""
        cells = [[cell(row.get(c.key)) for c in self.shown] for row in self.rows]
        return [[write(text) for text in line] for line in [[c.header for c in self.shown], *cells]]


def cell(value: Any) -> str:
    """A value as text: empty for None, two decimals for floats, one in lists."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(f"{v:.1f}" for v in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown; no heading if it has no title."""
    head, *rows = ("| " + " | ".join(line) + " |" for line in table.lines(markdown))
    rule = "|" + "|".join("---" if c.kind == "text" else "---:" for c in table.shown) + "|"
    notes = ["", *(f"- {markdown(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([*([f"### {markdown(table.title)}", ""] if table.title else []), head, rule, *rows, *notes]) + "\n"


PARTS = {
    "summary": ("mean", "sd", "n"),
    "interval": ("low", "high", "kind"),
    "gain": ("value", "low", "high", "p", "test", "n", "baseline"),
}  # kind of a cell: its columns in CSV


def spreadsheet(value: Any) -> Any:
    """A CSV cell; text that a spreadsheet would run as a formula is quoted (OWASP)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def to_csv(table: Table) -> str:
    """The table as CSV; parts of a summary, interval, gain or steps are columns."""
    lines: list[list[Any]] = [[] for _ in range(1 + len(table.rows))]  # the header first
    for c in table.columns:
        values = [row.get(c.key) for row in table.rows]
        if c.kind == "steps":
            parts = [f"{c.key}_t{t + 1}" for t in range(max((len(v or []) for v in values), default=0))]
            cells = [(v or []) + [None] * (len(parts) - len(v or [])) for v in values]
        elif c.kind in PARTS:
            parts = [f"{c.key}_{part}" for part in PARTS[c.kind]]
            cells = [[getattr(v, part, None) for part in PARTS[c.kind]] for v in values]
        else:
            parts, cells = [c.key], [[v] for v in values]
        for line, more in zip(lines, [parts, *cells], strict=True):
            line += [f"{v:.4f}" if isinstance(v, float) else spreadsheet(v) for v in more]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
