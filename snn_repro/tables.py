"""From results to tables: runs are grouped, averaged over seeds, and written as text, Markdown, CSV, LaTeX and HTML."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro.config import differing, hashed
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.statistics import Summary, mcnemar, paired, summary
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
    fidelity = result["config"].get("fidelity")
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
        {k: v for k, v in hashed(r["config"]).items() if k != "seed"}
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


class Column(NamedTuple):
    """kind: text | number (two decimals) | summary (mean and spread) | steps (accuracy at t = 1..T)."""

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


def to_csv(table: Table) -> str:
    """One line a row, numbers bare: a summary becomes its mean, sd and n; steps become one column each."""
    longest = {
        c.key: max((len(row.get(c.key) or []) for row in table.rows), default=0)
        for c in table.columns
        if c.kind == "steps"
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = []
    for c in table.columns:
        if c.kind == "summary":
            header += [f"{c.key}_mean", f"{c.key}_sd", f"{c.key}_n"]
        elif c.kind == "steps":
            header += [f"{c.key}_t{t + 1}" for t in range(longest[c.key])]
        else:
            header.append(c.key)
    writer.writerow(header)
    for row in table.rows:
        fields = []
        for c in table.columns:
            value = row.get(c.key)
            if c.kind == "summary":
                fields += [_bare(v) for v in ((value.mean, value.sd, value.n) if value else (None, None, None))]
            elif c.kind == "steps":
                fields += [_bare(v) for v in [*(value or []), *[None] * longest[c.key]][: longest[c.key]]]
            else:
                fields.append(_bare(value))
        writer.writerow(fields)
    return out.getvalue()


def _bare(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def to_text(table: Table, width: int | None = None) -> str:
    """A rich table for the terminal; `width` None makes it as wide as it needs to be."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(title=escape(table.title), title_justify="left")
    for c in table.columns:
        shown.add_column(escape(c.header), justify="left" if c.kind == "text" else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(escape(cell(row.get(c.key))) for c in table.columns))
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
