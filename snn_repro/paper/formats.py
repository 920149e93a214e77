"""A table, and how it is written: text for the terminal, Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from snn_repro.console import harmless, markdown


class Column(NamedTuple):
    """kind: text | number (two decimals) | summary (mean and spread) | interval | gain | steps (accuracy at t = 1..T).

    A column of kind csv is a text that only CSV has: the other formats say it in a note.
    """

    key: str
    header: str
    kind: str = "text"


@dataclass
class Table:
    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def shown(self) -> list[Column]:
        """The columns of every format but CSV."""
        return [c for c in self.columns if c.kind != "csv"]

    def lines(self, write: Callable[[str], str] = str) -> list[list[str]]:
        """The header and each row as people read them, each cell passed through `write`."""
        cells = [[cell(row.get(c.key)) for c in self.shown] for row in self.rows]
        return [[write(text) for text in line] for line in [[c.header for c in self.shown], *cells]]


def cell(value: Any) -> str:
    """A value as people read it; nothing is an empty cell. Accuracies have two decimals, those of time steps one."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(f"{v:.1f}" for v in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_markdown(table: Table) -> str:
    """GitHub's Markdown; without a heading where there is no title."""
    lines = table.lines(markdown)
    head, *rows = ("| " + " | ".join(line) + " |" for line in lines)
    rule = "|" + "|".join("---" if c.kind == "text" else "---:" for c in table.shown) + "|"
    notes = ["", *(f"- {markdown(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([*([f"### {markdown(table.title)}", ""] if table.title else []), head, rule, *rows, *notes]) + "\n"


PARTS = {
    "summary": ("mean", "sd", "n"),
    "interval": ("low", "high", "kind"),
    "gain": ("value", "low", "high", "p", "test", "n", "baseline"),
}  # what a cell of this kind becomes in CSV


def spreadsheet(value: Any) -> Any:
    """A cell of CSV: a text that a spreadsheet would take for a formula stands behind a quote, as OWASP advises."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def to_csv(table: Table) -> str:
    """One line a row, numbers bare; a summary, interval or gain takes one column a part, steps one column a time step."""
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


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "<": "$<$", ">": "$>$",
    "≥": r"$\ge$",
}  # fmt: skip


def _tex(text: str) -> str:
    start = "{}" if text.startswith(("[", "*")) else ""  # else the line break before it would take it as its argument
    return start + "".join(LATEX.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """A booktabs table, as wide as the line; needs \\usepackage{booktabs,graphicx}."""
    head, *rows = (" & ".join(line) + r" \\" for line in table.lines(_tex))
    align = "".join("l" if c.kind == "text" else "r" for c in table.shown)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{{align}}}",
        *(r"\toprule", head, r"\midrule", *rows, r"\bottomrule"),
        r"\end{tabular}}",
        *(rf"\par\footnotesize {_tex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_text(table: Table, width: int | None = None) -> str:
    """A table for the terminal; `width` None makes it as wide as it needs to be.

    Where the table does not fit into `width` characters, each row takes several lines, and no line is longer: the first
    column on a line of its own, the numbers below it in columns, long texts and steps below those.
    """

    def safe(text: str) -> str:
        return harmless(text).replace("\n", "?")

    lines = table.lines(safe)
    whole = Grid(title=Text(safe(table.title)), title_justify="left", box=box.HEAVY_HEAD)
    for c, text in zip(table.shown, lines[0], strict=True):
        whole.add_column(Text(text), justify="left" if c.kind == "text" else "right", overflow="fold")
    for row in lines[1:]:
        whole.add_row(*map(Text, row))
    out = io.StringIO()
    needs = max(40, Console(file=out, width=10_000).measure(whole).maximum)
    console = Console(file=out, width=width or 10_000, force_terminal=False)
    if width is None or needs <= width:
        console.print(whole, width=needs)
    else:
        _stacked(console, table, Text(safe(table.title) + "\n"), lines)
    notes = Grid.grid()
    for note in table.notes:
        notes.add_row("- ", Text(safe(note), overflow="fold"))
    console.print(notes)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _stacked(console: Console, table: Table, title: Text, lines: list[list[str]]) -> None:
    """A row on several lines, none longer than the console is wide."""
    head, width = lines[0], console.width
    widest = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [i for i, c in enumerate(table.shown) if i and c.kind != "steps" and widest[i] <= width // 3]
    console.print(title)
    for line in lines:
        texts = [Text(f"{line[i]:{'<' if table.shown[i].kind == 'text' else '>'}{widest[i]}}") for i in numbers]
        console.print(Text(line[0]), Padding(Columns(texts, padding=(0, 2)), (0, 0, 0, 3)))
        below = [i for i in range(1, len(line)) if line is not head and i not in numbers and line[i]]
        for i in below:
            console.print(Padding(Text(f"{head[i]}: {line[i]}"), (0, 0, 0, 3)))
        if line is head:
            console.print(Text("-" * width))
    console.print(Text("-" * width))


FORMATS: dict[str, Callable[[Table], str]] = {"text": to_text, "markdown": to_markdown, "csv": to_csv}
