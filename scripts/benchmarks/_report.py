"""The report of a subject: tables of numbers, written once as JSON and once to be read."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

from benchmarks._harness import seconds

# key of a row -> heading and way to write it; of other keys the key is the heading
COLUMNS = {
    "over_first": ("time / the first's", "{:.2f}"),
    "over_floor": ("time / floor", "{:.2f}"),
    "wall_over_first": ("wall time / the first's", "{:.2f}"),
    "saved_bytes": ("saved bytes a neuron-step", "{:.1f}"),
    "equal_spikes": ("equal spikes", "{:.3%}"),
}


@dataclass
class Table:
    """case -> {key: number, or a list of them}; `unit` is "ms" or "s", in which seconds are written."""

    title: str
    rows: dict[str, dict]
    note: str = ""
    unit: str = "ms"

    def text(self) -> list[str]:
        keys = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        heads = [COLUMNS.get(key, (key.replace("seconds", self.unit).replace("_", " "),))[0] for key in keys]
        lines = [f"## {self.title}", "", "| " + " | ".join(["case", *heads]) + " |"]
        lines.append("| " + " | ".join(["---"] * (len(keys) + 1)) + " |")
        for case, row in self.rows.items():
            lines.append("| " + " | ".join([case, *(self._cell(key, row.get(key)) for key in keys)]) + " |")
        return [*lines, "", *([self.note, ""] if self.note else [])]

    def _cell(self, key: str, value) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, list):
            return "-".join(self._cell(key, v) for v in value)
        if "seconds" in key or key == "quartiles":
            return f"{value * {'s': 1, 'ms': 1e3}[self.unit]:.2f}"
        if key in COLUMNS:
            return COLUMNS[key][1].format(value)
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass
class Report:
    """What a subject measured; `extra` goes into the JSON alone, by these names."""

    title: str
    how: str  # how it was measured, beside what holds for every subject
    tables: list[Table]
    packages: tuple[str, ...]  # whose versions matter
    absent: dict[str, str] = field(default_factory=dict)  # what could not be compared with, and why
    extra: dict = field(default_factory=dict)
    gpu: dict[str, str] = field(default_factory=dict)  # facts about the GPU that was measured


def rated(rows: dict[str, dict], per_call: int, unit: str) -> dict[str, dict]:
    """The rows with the number of units a second of CPU or GPU, of which a call does `per_call`."""
    return {case: {**row, f"{unit}/s": per_call / seconds(row)} for case, row in rows.items()}


def write(report: Report, asked: str, facts: dict[str, str], out: Path | None, name: str) -> str:
    """The report to be read; with `out`, also as out/<name>.md and with all digits as out/<name>.json."""
    facts = facts | report.gpu | {f"{library} is absent": reason for library, reason in report.absent.items()}
    clock = "Time between two events on a GPU with an empty queue" if report.gpu else "One thread, CPU time"
    name += "_cuda" if report.gpu else ""
    how = (
        f"Made by `python scripts/benchmark.py {asked}`. {clock}, shuffled order, medians; `again` times"
        f" the first function twice (A/A control). {report.how}"
    )
    lines = [
        f"# {report.title}",
        "",
        fill(how, 120),
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        *(line for table in report.tables for line in table.text()),
    ]
    text = "\n".join(lines)
    if out:
        tables = [{"title": t.title, "rows": t.rows, "note": t.note} for t in report.tables]
        content = {"machine": facts, "command": asked, "tables": tables, **report.extra}
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        (out / f"{name}.md").write_text(text)
    return text
