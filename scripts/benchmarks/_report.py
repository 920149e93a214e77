"""Report of a benchmark: tables of numbers as JSON and Markdown."""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

from benchmarks._harness import seconds
from snn_repro.files import write_json, write_text

# key of a row -> heading and number format; other keys are their own heading
COLUMNS = {
    "over_first": ("time / the first's", "{:.2f}"),
    "over_floor": ("time / floor", "{:.2f}"),
    "wall_over_first": ("wall time / the first's", "{:.2f}"),
    "saved_bytes": ("saved bytes a neuron-step", "{:.1f}"),
    "equal_spikes": ("equal spikes", "{:.3%}"),
}


@dataclass
class Table:
    """case -> {key: number or numbers}; seconds are written in `unit`, "ms" or "s"."""

    title: str
    rows: dict[str, dict]
    note: str = ""
    unit: str = "ms"
    wrong: list[str] = field(default_factory=list)  # what failed, in sentences

    def text(self) -> list[str]:
        """The table as Markdown lines."""
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
    """Measurements of a subject; `extra` is written to the JSON only."""

    title: str
    how: str  # method, beyond what holds for every subject
    tables: list[Table]
    packages: tuple[str, ...]  # packages whose versions are recorded
    absent: dict[str, str] = field(default_factory=dict)  # libraries that were not compared, with the reason
    extra: dict = field(default_factory=dict)
    gpu: dict[str, str] = field(default_factory=dict)  # facts about the measured GPU
    wrong: list[str] = field(default_factory=list)  # what failed and is in no table
    name: str = ""  # name of the files, if not the subject's


def rated(rows: dict[str, dict], per_call: int, unit: str) -> dict[str, dict]:
    """Add the rate in units per second, where one call processes `per_call` units."""
    return {case: {**row, f"{unit}/s": per_call / seconds(row)} for case, row in rows.items()}


def write(report: Report, asked: str, facts: dict[str, str], out: Path | None, name: str) -> str:
    """The report as Markdown; with `out` also written as out/NAME.md and out/NAME.json."""
    facts = facts | report.gpu | {f"{library} is absent": reason for library, reason in report.absent.items()}
    clock = "Time between two events on a GPU with an empty queue" if report.gpu else "One thread, CPU time"
    name = report.name or name + "_cuda" * bool(report.gpu)
    wrong = [*report.wrong, *(sentence for table in report.tables for sentence in table.wrong)]
    how = (
        f"Made by `python scripts/benchmark.py {asked}`. {clock}, shuffled order, medians; `again` times"
        f" the first function twice (A/A control). {report.how}"
    )
    lines = [
        f"# {report.title}",
        "",
        fill(how, 120),
        "",
        *(
            ["## Not right", "", *(f"- {line}" for line in wrong or ["nothing"]), "", "## Machine", ""]
            if report.gpu
            else []
        ),
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        *(line for table in report.tables for line in table.text()),
    ]
    text = "\n".join(lines)
    if out:
        tables = [{"title": t.title, "rows": t.rows, "note": t.note} for t in report.tables]
        content = {"machine": facts, "command": asked, "tables": tables, **report.extra}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", content | ({"not_right": wrong} if report.gpu else {}))
        write_text(out / f"{name}.md", text)
    return text
