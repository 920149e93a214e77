"""From results to tables: runs are grouped, averaged over seeds, and written as text, Markdown, CSV, LaTeX and HTML."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro.config import ADDED, CONF_DIR, differing, hashed, load_config
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.rows import PaperRow
from snn_repro.statistics import Summary, mcnemar, paired, summary, wilson
from snn_repro.store import PREDICTIONS, RESULT, SCHEMA_VERSION, RunResult, find_results

OPTIMISTIC = "best epoch on the test set (optimistic)"


# ---------------------------------------------------------------- runs into groups


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone; `runs` are sorted by seed, one a seed. `label` is unique in its table."""

    label: str
    runs: tuple[RunResult, ...]

    @property
    def first(self) -> RunResult:
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        return [run["seed"] for run in self.runs]

    def percent(self, key: str) -> Summary | None:
        """A fraction of result.json in percent, over seeds; None where the runs do not have it."""
        values = [run[key] for run in self.runs]
        return None if None in values else summary([100 * v for v in values])

    def steps(self, key: str = "acc_step") -> list[float]:
        """Mean accuracy at each time step in percent, [T]."""
        return [100 * sum(column) / len(column) for column in zip(*(run[key] for run in self.runs), strict=True)]


def load(roots: Iterable[str | Path]) -> list[RunResult]:
    """Every finished run under `roots`. Raises UserError for a missing path, a folder without runs, a broken result."""
    found: dict[Path, RunResult] = {}
    for root in roots:
        results = find_results(root)
        if not results:
            raise UserError(f"{root} holds no finished run (no {RESULT}); train first, or give another folder")
        for result in results:
            _check(result)
            found[Path(result["folder"]).resolve()] = result
    return list(found.values())


NEEDED = (
    "name", "seed", "recipe_hash", "split_sha256", "precision", "timesteps", "readout", "acc_last", "acc_valsel",
    "acc_best_test", "acc_step", "n_test", "params_weights", "params_imp", "config",
)  # fmt: skip


def _check(result: RunResult) -> None:
    path = Path(result["folder"], RESULT)
    if result.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version={result.get('schema_version')}; this version reads {SCHEMA_VERSION}, so run it again"
        )
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise UserError(f"{path} lacks the keys {', '.join(missing)}; it is no complete result, so run it again")


def identity(result: RunResult) -> tuple:
    """What must agree before two runs may be averaged: row, configuration without the seed, test list, arithmetic."""
    fidelity = hashed(result["config"]).get("fidelity")  # extended counts as published, which it was called before
    return result["name"], result["recipe_hash"], result["split_sha256"], str(fidelity), result["precision"]


def group_runs(results: Iterable[RunResult]) -> tuple[list[Group], list[str]]:
    """Group runs that differ in the seed alone; returns (groups sorted by label, notes on what was left out)."""
    byid: dict[tuple, dict[int, RunResult]] = {}
    notes = []
    for result in sorted(results, key=lambda r: (identity(r), r["seed"], r["folder"])):
        seeds = byid.setdefault(identity(result), {})
        if result["seed"] in seeds:
            kept = seeds[result["seed"]]["folder"]
            notes.append(f"{result['folder']} repeats seed {result['seed']} of {kept} and is not counted")
        else:
            seeds[result["seed"]] = result
    names = [key[0] for key in byid]
    groups = []
    for key, seeds in byid.items():
        alike = [other for other in byid if other[0] == key[0]]
        apart = _differences([next(iter(byid[k].values())) for k in alike], alike.index(key))
        label = key[0] if names.count(key[0]) == 1 else f"{key[0]} [{apart}]"
        groups.append(Group(label, tuple(seeds.values())))
    return sorted(groups, key=lambda g: g.label), notes


def _differences(results: list[RunResult], mine: int) -> str:
    """What tells one of several configurations of the same name from the others, as `key=value, ...`."""
    flats = [
        ADDED
        | {k: v for k, v in hashed(r["config"]).items() if k != "seed"}
        | {"split": r["split_sha256"][:8], "precision": r["precision"]}
        for r in results
    ]
    keys = sorted({k for flat in flats for k in flat})
    apart = [k for k in keys if len({repr(flat.get(k)) for flat in flats}) > 1]
    return ", ".join(f"{k}={flats[mine].get(k)}" for k in apart) or results[mine]["recipe_hash"]


# ---------------------------------------------------------------- one group against another

WHAT_A_METHOD_CHANGES = ("name", "paper_row", "seed", "neuron.imp", "recipe.imp_", "loss.")


def recipe_difference(a: RunResult, b: RunResult) -> list[str]:
    """`["recipe.epochs: 150 -> 200", ...]`: where two runs differ beyond IMP and the loss; empty for the same recipe."""
    found = differing(a["config"], b["config"])
    found = [d for d in found if not d.startswith(WHAT_A_METHOD_CHANGES)]
    for key in ("split_sha256", "precision"):
        if a[key] != b[key]:
            found.append(f"{key}: {a[key][:16]} -> {b[key][:16]}")
    return found


class Gain(NamedTuple):
    """Accuracy of a group less that of its baseline, last epoch, each at its own readout, in percentage points.

    Over n common seeds: paired t interval and p. For a single common seed: McNemar's exact p over the test set, no
    interval. p is None where neither can be had.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    baseline: str


def gain(group: Group, baseline: Group) -> Gain:
    """Compare over the seeds that both have. Raises UserError when the recipes differ or no seed is common."""
    differences = recipe_difference(baseline.first, group.first)
    if differences:
        raise UserError(f"{baseline.label} has another recipe ({'; '.join(differences)})")
    ours, theirs = ({run["seed"]: run for run in g.runs} for g in (group, baseline))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise UserError(f"{baseline.label} shares no seed with {group.label}")
    if len(seeds) == 1:
        a, b = theirs[seeds[0]], ours[seeds[0]]
        value = 100 * (b["acc_last"] - a["acc_last"])
        right = right_answers(a), right_answers(b)
        if right[0] is None or right[1] is None:
            return Gain(value, None, None, None, "no predictions", 1, baseline.label)
        return Gain(value, None, None, mcnemar(*right).p, "McNemar", 1, baseline.label)
    test = paired(*([100 * side[s]["acc_last"] for s in seeds] for side in (theirs, ours)))
    return Gain(test.mean, test.low, test.high, test.p, "paired t", test.n, baseline.label)


RIGHT = "right.json"  # the right answers of a collected run: a bit a test sample, in the order of the test list


def right_answers(result: RunResult) -> np.ndarray | None:
    """bool [N]: which test samples the final network answers rightly at its readout; None where no file says so.

    Raises UserError where the file does not belong to the result.
    """
    folder = Path(result["folder"])
    if (folder / RIGHT).exists():
        content = json.loads((folder / RIGHT).read_text())
        bits = np.frombuffer(bytes.fromhex(content["bits"]), np.uint8)
        right = np.unpackbits(bits, count=content["n_test"]).astype(bool)
    elif (folder / PREDICTIONS).exists():
        with np.load(folder / PREDICTIONS, allow_pickle=False) as file:
            logits, label = file["logits"].astype(np.float32), file["label"]
        scores = logits[:, -1] if result["readout"] == "last" else logits.mean(1)
        right = scores.argmax(-1) == label
    else:
        return None
    if abs(int(right.sum()) - result["correct"]) > 1e-3 * len(right) + 1 or len(right) != result["n_test"]:
        raise UserError(
            f"{folder}: the predictions have {right.sum()} of {len(right)} right and {RESULT} says {result['correct']} "
            f"of {result['n_test']}; they are not of one run, so run it again with force=true"
        )
    return right


def collect(roots: Iterable[str | Path], into: Path) -> list[Path]:
    """Copy finished runs to `into`, at the same place as under their root, as the two small files that tables need.

    result.json comes without the folders of this machine; predictions.npz becomes right.json, a bit a sample.
    Returns the folders written.
    """
    written = []
    for root in map(Path, roots):
        for result in load([root]):
            source = Path(result["folder"])
            target = into / source.relative_to(root if root.is_dir() else root.parent)
            content = {k: v for k, v in result.items() if k != "folder"}
            content["config"] = {
                k: None if k in ("run_dir", "data_dir", "cache_dir") else v for k, v in result["config"].items()
            }
            right = right_answers(result)
            target.mkdir(parents=True, exist_ok=True)
            write_json(target / RESULT, content)
            if right is not None:
                write_json(target / RIGHT, dict(n_test=len(right), bits=np.packbits(right).tobytes().hex()))
            written.append(target)
    return written


# ---------------------------------------------------------------- tables and their forms


class Interval(NamedTuple):
    """95 % interval in percent: Student's t over seeds, or Wilson's of the test sample where there is one seed."""

    low: float
    high: float
    kind: str


class Column(NamedTuple):
    """kind: text | number (two decimals) | summary (mean and spread) | interval | gain | steps (accuracy at t = 1..T)."""

    key: str
    header: str
    kind: str = "text"


@dataclass
class Table:
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def cell(value: Any) -> str:
    """A value as people read it; nothing is an empty cell. Accuracies have two decimals."""
    if value is None:
        return ""
    if isinstance(value, Summary):
        return f"{value.mean:.2f} ± {value.sd:.2f}" if value.n > 1 else f"{value.mean:.2f} (n=1)"
    if isinstance(value, Interval):
        return f"{value.low:.2f} .. {value.high:.2f}" + (" (sample)" if value.kind == "Wilson" else "")
    if isinstance(value, Gain):
        interval = "" if value.low is None else f" ({value.low:+.2f} .. {value.high:+.2f})"
        p = "" if value.p is None else ", p < 0.001" if value.p < 1e-3 else f", p = {value.p:.3f}"
        return f"{value.value:+.2f}{interval}{p}, {value.test}, n={value.n}, over {value.baseline}"
    if isinstance(value, list):
        return " ".join(f"{v:.1f}" for v in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def to_markdown(table: Table) -> str:
    """GitHub's Markdown."""
    right = {c.key for c in table.columns if c.kind != "text"}
    lines = [
        f"### {table.title}",
        "",
        "| " + " | ".join(_md(c.header) for c in table.columns) + " |",
        "|" + "|".join("---:" if c.key in right else "---" for c in table.columns) + "|",
        *("| " + " | ".join(_md(cell(row.get(c.key))) for c in table.columns) + " |" for row in table.rows),
    ]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PARTS = {
    "summary": ("mean", "sd", "n"),
    "interval": ("low", "high", "kind"),
    "gain": ("value", "low", "high", "p", "test", "n", "baseline"),
}  # what a cell of this kind becomes in CSV


def to_csv(table: Table) -> str:
    """One line a row, numbers bare; a summary, interval or gain takes one column a part, steps one column a time step."""
    longest = {
        c.key: max((len(row.get(c.key) or []) for row in table.rows), default=0)
        for c in table.columns
        if c.kind == "steps"
    }

    def names(c: Column) -> list[str]:
        if c.kind == "steps":
            return [f"{c.key}_t{t + 1}" for t in range(longest[c.key])]
        return [f"{c.key}_{part}" for part in PARTS[c.kind]] if c.kind in PARTS else [c.key]

    def fields(c: Column, value: Any) -> list:
        if c.kind == "steps":
            return [*(value or []), *[None] * longest[c.key]][: longest[c.key]]
        if c.kind in PARTS:
            return [None if value is None else getattr(value, part) for part in PARTS[c.kind]]
        return [value]

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for c in table.columns for name in names(c)])
    for row in table.rows:
        writer.writerow([_bare(v) for c in table.columns for v in fields(c, row.get(c.key))])
    return out.getvalue()


def _bare(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


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
    align = "".join("l" if c.kind == "text" else "r" for c in table.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(_tex(c.header) for c in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(_tex(cell(row.get(c.key))) for c in table.columns) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *(rf"\par\footnotesize {_tex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


CSS = """\
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #111 } h2 { margin-top: 2em }
.wide { overflow-x: auto } table { border-collapse: collapse; white-space: nowrap }
th, td { padding: .2em .6em; text-align: left } .r { text-align: right; font-variant-numeric: tabular-nums }
thead th { border-top: 2px solid; border-bottom: 1px solid } tbody { border-bottom: 2px solid }
tbody tr:nth-child(even) { background: #f4f4f4 } ul { max-width: 60em }
"""


def to_html(title: str, tables: Iterable[Table]) -> str:
    """One page with all tables; nothing is loaded from elsewhere."""
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>\n{CSS}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for table in tables:
        side = {c.key: "" if c.kind == "text" else ' class="r"' for c in table.columns}
        lines += [
            f"<h2>{escape(table.title)}</h2>",
            '<div class="wide"><table><thead><tr>',
            *(f"<th{side[c.key]}>{escape(c.header)}</th>" for c in table.columns),
            "</tr></thead><tbody>",
            *(
                "<tr>"
                + "".join(f"<td{side[c.key]}>{escape(cell(row.get(c.key)))}</td>" for c in table.columns)
                + "</tr>"
                for row in table.rows
            ),
            "</tbody></table></div>",
            *(["<ul>", *(f"<li>{escape(note)}</li>" for note in table.notes), "</ul>"] if table.notes else []),
        ]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def to_text(table: Table, width: int | None = None) -> str:
    """A rich table for the terminal; `width` None makes it as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(table.title), title_justify="left")
    for c in table.columns:
        shown.add_column(Text(c.header), justify="left" if c.kind == "text" else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell(row.get(c.key))) for c in table.columns))
    out = io.StringIO()
    wide = Console(file=out, width=10_000)
    console = Console(file=out, width=width or max(40, wide.measure(shown).maximum))
    console.print(shown)
    for note in table.notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    return out.getvalue()


# ---------------------------------------------------------------- comparing runs


def compare(roots: Iterable[str | Path]) -> Table:
    """One line a group of runs under `roots`: mean ± sd over seeds of each accuracy, and accuracy at each time step."""
    groups, notes = group_runs(load(roots))
    columns = [
        Column("row", "row"),
        Column("n", "seeds", "number"),
        Column("readout", "readout"),
        Column("acc_last", "acc_last %", "summary"),
        Column("acc_valsel", "acc_valsel %", "summary"),
        Column("acc_best_test", "acc_best_test* %", "summary"),
        Column("acc_step", "accuracy at t=1..T %", "steps"),
    ]
    rows = [
        dict(
            row=g.label, n=len(g.runs), readout=g.first["readout"], acc_last=g.percent("acc_last"),
            acc_valsel=g.percent("acc_valsel"), acc_best_test=g.percent("acc_best_test"), acc_step=g.steps(),
        )
        for g in groups
    ]  # fmt: skip
    explained = [
        "mean ± sample standard deviation over seeds, test set; acc_last: last epoch at the readout; acc_valsel: test "
        "accuracy at the epoch that the validation part chose",
        f"acc_best_test*: {OPTIMISTIC}",
        "accuracy at t: the output of that time step alone, last epoch, mean over seeds",
    ]
    return Table("Runs by row", columns, rows, explained + notes)


FORMATS: dict[str, Callable[[Table], str]] = {"text": to_text, "markdown": to_markdown, "csv": to_csv}


# ---------------------------------------------------------------- the paper's tables, with ours beside

TITLES = {
    1: "Table 1: SDT and TET without IMP",
    2: "Table 2: event data",
    3: "Table 3: ImageNet-1k",
    "code": "Numbers in the released code that no table prints",
}
PAPER_COLUMNS = [
    Column("dataset", "data set"), Column("size", "pixels", "number"), Column("method", "method"),
    Column("network", "network"), Column("T", "T", "number"), Column("accuracy", "paper % (best on test)", "number"),
    Column("corrected", "corrected %", "number"), Column("gain", "paper's gain", "number"),
    Column("params_M", "paper's params M", "number"),
]  # fmt: skip
MAY_BE_EMPTY = ("corrected", "gain", "params_M", "caveats", "departs")  # columns that a table without such numbers does not have
OUR_COLUMNS = [
    Column("acc_best_test", "ours, best on test* %", "summary"), Column("acc_last", "ours, last epoch %", "summary"),
    Column("acc_valsel", "ours, chosen on validation %", "summary"), Column("interval", "95 % interval of last", "interval"),
    Column("n", "seeds", "number"), Column("params", "weights + IMP"), Column("split", "split"), Column("fidelity", "fidelity"),
    Column("caveats", "caveat"), Column("departs", "departs from the row in"),
]  # fmt: skip
PAPER_NOTES = [
    "paper: one run, best epoch on the test set, as printed; rows marked (quoted) are other papers' numbers",
    f"best on test*: {OPTIMISTIC}; last epoch and validation: no choice by the test set; mean ± sample standard deviation over seeds",
    "95 % interval: Student's t over seeds; (sample): one seed, Wilson's interval of the test sample alone",
    "our gain: last epoch, against runs of the same recipe, paired over seeds, or by McNemar's test for one seed; the paper's "
    "gain is over another paper's recipe",
    "an empty cell: nothing ran",
]


def paper_table(number: int | str, rows: Iterable[PaperRow], groups: list[Group]) -> Table:
    """The paper's numbers of one table and, joined by `paper_row`, ours: one line a group of runs, or an empty one."""
    notes: list[str] = []
    shown = []
    for row in rows:
        base = dict(
            dataset=row.dataset, size=row.size, method=row.method if row.own else f"{row.method} (quoted)",
            network=row.network, T=row.T, accuracy=row.accuracy, corrected=row.corrected, gain=row.gain, params_M=row.params_M,
        )  # fmt: skip
        if row.notes:
            notes.append(row.notes)
            base["note"] = f"[{len(notes)}]"
        mine = [g for g in groups if g.first["paper_row"] == row.id]
        mine.sort(key=lambda g: (g.first["config"].get("fidelity") == "described", g.label))
        shown += [base | ours(group, groups, notes) for group in mine] or [base]
    gains = gain_columns(shown)
    columns = [
        c for c in PAPER_COLUMNS if c.key not in MAY_BE_EMPTY or any(row.get(c.key) is not None for row in shown)
    ]
    caveat = any(row.get("caveats") for row in shown)
    columns += [*(c for c in OUR_COLUMNS if c.key != "caveats" or caveat), *gains, Column("note", "note")]
    numbered = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return Table(TITLES[number], columns, shown, PAPER_NOTES + numbered)


def needed(columns: list[Column], rows: list[dict[str, Any]]) -> list[Column]:
    return [c for c in columns if c.key not in MAY_BE_EMPTY or any(row.get(c.key) is not None for row in rows)]


def gain_columns(rows: list[dict[str, Any]]) -> list[Column]:
    """Spread the list `gains` of each row over columns gain_1, gain_2, ..., which are returned."""
    deepest = 0
    for row in rows:
        gains = row.pop("gains", [])
        row |= {f"gain_{i}": g for i, g in enumerate(gains, 1)}
        deepest = max(deepest, len(gains))
    return [
        Column(f"gain_{i}", "our gain, same recipe" + (f" ({i})" if i > 1 else ""), "gain")
        for i in range(1, deepest + 1)
    ]


def runs_table(groups: list[Group], left_out: list[str]) -> Table:
    """Every group that is no row of the paper: partners without one part, and runs of our own."""
    notes: list[str] = []
    shown = [
        dict(row=g.label, readout=g.first["readout"], acc_step=g.steps(), **ours(g, groups, notes))
        for g in groups
        if g.first["paper_row"] is None
    ]
    gains = gain_columns(shown)
    columns = [
        Column("row", "row"), Column("T", "T", "number"), Column("readout", "readout"), *needed(OUR_COLUMNS, shown), *gains,
        Column("acc_step", "accuracy at t=1..T %", "steps"),
    ]  # fmt: skip
    steps = "accuracy at t: the output of that time step alone, last epoch, mean over seeds"
    return Table("Runs beside the paper's rows", columns, shown, [*PAPER_NOTES[1:-1], steps, *notes, *left_out])


def ours(group: Group, groups: list[Group], notes: list[str]) -> dict[str, Any]:
    """The measured part of a line: accuracies, interval, sizes, split, and the gain over each baseline of the run."""
    first = group.first
    last = group.percent("acc_last")
    if last.n > 1:
        interval = Interval(last.low, last.high, "t")
    else:
        interval = Interval(*(100 * bound for bound in wilson(first["correct"], first["n_test"])), "Wilson")
    gains = []
    for name in first["config"].get("baselines", []):
        try:
            gains.append(gain(group, baseline_of(group, name, groups)))
        except UserError as error:
            gains.append(None)
            notes.append(f"{group.label}: no gain over {name} is shown: {error}")
    return dict(
        T=first["timesteps"], acc_best_test=group.percent("acc_best_test"), acc_last=last, acc_valsel=group.percent("acc_valsel"),
        interval=interval, n=last.n, params=f"{first['params_weights']:,} + {first['params_imp']:,}",
        split=f"{first['split_id']} ({first['split_sha256'][:8]})", fidelity=first["config"].get("fidelity"),
        caveats="; ".join(first["config"].get("caveats", [])) or None, departs=departures(group), gains=gains,
    )  # fmt: skip


def departures(group: Group) -> str | None:
    """The keys in which these runs differ from the experiment of their name, with the values; None where in none.

    Keys that did not exist when the runs were made are left out.
    """
    config = group.first["config"]
    name = group.first["name"]
    if not (CONF_DIR / "experiment" / f"{name}.yaml").exists():
        return f"{name} is no experiment" if group.first["paper_row"] else None
    row = ADDED | hashed(load_config([f"experiment={name}", f"fidelity={config.get('fidelity', 'published')}"]))
    mine = ADDED | hashed(config)
    apart = [f"{k}={mine[k]}" for k in sorted(mine.keys() & row.keys() - {"seed"}) if mine[k] != row[k]]
    return ", ".join(apart) or None


def baseline_of(group: Group, name: str, groups: list[Group]) -> Group:
    """The group called `name` that has the same recipe as `group`; raises UserError where there is none."""
    called = [g for g in groups if g.first["name"] == name]
    if not called:
        raise UserError("it has no run")
    same = [g for g in called if not recipe_difference(g.first, group.first)]
    return (same or called)[0]


def generate(results: Path, rows: Iterable[PaperRow]) -> dict[str, str]:
    """{file name: content} of everything in results/tables, from results/runs and the paper's rows."""
    runs = results / "runs"
    groups, left_out = group_runs(load([runs])) if list(runs.rglob(RESULT)) else ([], [])
    rows = list(rows)
    tables = {
        f"table{number}" if isinstance(number, int) else number: paper_table(
            number, [r for r in rows if r.table == number], groups
        )
        for number in TITLES
    }
    tables["runs"] = runs_table(groups, [note.replace(f"{runs}/", "") for note in left_out])
    files = {}
    for name, table in tables.items():
        files |= {f"{name}.md": to_markdown(table), f"{name}.csv": to_csv(table), f"{name}.tex": to_latex(table)}
    files["index.html"] = to_html(
        "Rethinking the membrane dynamics and optimization objectives of SNNs: paper and ours", tables.values()
    )
    return files
