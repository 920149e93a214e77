"""From results to tables: runs are grouped, averaged over seeds, and written as text, Markdown, CSV, LaTeX and HTML."""

import csv
import hashlib
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro.config import ADDED, choices, conf_files, differing, hashed, load_config
from snn_repro.console import plain
from snn_repro.errors import DataError, UserError
from snn_repro.files import write_json
from snn_repro.paper.rows import PaperRow
from snn_repro.paper.statistics import Summary, mcnemar, paired, summary, wilson
from snn_repro.provenance import same_code
from snn_repro.runs.folder import PREDICTIONS, RESULT, RunResult, find_results, skipped

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
        """Mean accuracy at each time step in percent, [T]; [] where a step sees the future, so that it says nothing."""
        if not all(run.get("causal", True) for run in self.runs):
            return []
        return [100 * sum(column) / len(column) for column in zip(*(run[key] for run in self.runs), strict=True)]


def load(roots: Iterable[str | Path]) -> list[RunResult]:
    """Every finished run under `roots`; damaged ones are left out with a line on stderr.

    Raises UserError for a missing path, a folder without runs, and where no run can be read.
    """
    roots = [Path(root) for root in roots]
    for root in roots:
        if root.is_dir() and next(root.rglob(RESULT), None) is None:
            raise UserError(f"{root} holds no finished run (no {RESULT}); train first, or give another folder")
    return list({Path(result["folder"]).resolve(): result for result in find_results(*roots)}.values())


def identity(result: RunResult) -> tuple:
    """What must agree before two runs may be averaged.

    Row, configuration without the seed, test list, arithmetic, images per batch statistic and the data themselves.
    """
    fidelity = hashed(result["config"]).get("fidelity")  # extended counts as published, which it was called before
    return (
        result["name"], result["recipe_hash"], result["split_sha256"], str(fidelity), result["precision"],
        str(result.get("images_per_statistic")), data_id(result),
    )  # fmt: skip


def data_id(result: RunResult) -> str:
    """Eight hex digits for the fingerprint of the data; "unknown" where the run did not record it."""
    data = result.get("data")
    if data is None:
        return "unknown"
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


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
    flats = [facts(result) for result in results]
    apart = [k for k in sorted(set().union(*flats)) if len({repr(flat.get(k)) for flat in flats}) > 1]
    return ", ".join(f"{k}={flats[mine].get(k)}" for k in apart) or results[mine]["recipe_hash"]


def facts(result: RunResult) -> dict[str, Any]:
    """Flat `{"recipe.lr": 0.1, ..., "split": ...}` of all that makes a run what it is, but for its seed."""
    return ADDED | {k: v for k, v in hashed(result["config"]).items() if k != "seed"} | dict(
        split=result["split_sha256"][:8], precision=result["precision"],
        images_per_statistic=result.get("images_per_statistic"), data=data_id(result),
    )  # fmt: skip


# ---------------------------------------------------------------- what a reader must know of the runs of a table

MACHINE = ("threads", "processes")  # no key of a configuration, yet sums are added in another order


def remarks(groups: Iterable[Group], common: int = 6) -> list[str]:
    """Notes for below a table: numbers of threads or processes that differ, keys changed on resume, older code.

    A value that more than `common` groups share is not followed by their names.
    """
    groups = list(groups)
    notes = []
    for key in MACHINE:
        who: dict[Any, list[str]] = {}
        for group in groups:
            values = {run.get(key) for run in group.runs}
            for value in sorted(values, key=lambda v: (v is None, v)):
                seeds = [run["seed"] for run in group.runs if run.get(key) == value]
                who.setdefault(value, []).append(group.label + (_seeds(seeds) if len(values) > 1 else ""))
        if len(who) > 1:
            said = [
                f"{'not recorded' if value is None else value} in "
                + (", ".join(names) if len(names) <= common else f"{len(names)} rows")
                for value, names in sorted(who.items(), key=lambda item: -len(item[1]))
            ]
            notes.append(f"{key} differ, which changes sums in their last digits, and so numbers: {'; '.join(said)}")
    for group in groups:
        for run in group.runs:
            if run.get("changed_on_resume"):
                changed = ", ".join(map(str, run["changed_on_resume"]))
                notes.append(f"{group.label}{_seeds([run['seed']])} was continued under other conditions: {changed}")
    ahead = [group.label for group in groups if not all(run.get("causal", True) for run in group.runs)]
    if ahead:
        notes.append(f"no accuracy at single steps: every step sees the later ones in {', '.join(ahead)}")
    older = older_note([run for group in groups for run in group.runs])
    return notes + ([older] if older else [])


def _seeds(seeds: list[int]) -> str:
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def is_older(made: dict) -> bool:
    """Whether a result (or other measured data) was made before the last change of what computes it, or may have been."""
    return (made.get("code") or {}).get("sha256") not in same_code()


def older_note(made: Sequence[dict], what: str = "runs") -> str | None:
    """A sentence on how many of the results were made by older code; None where none was."""
    older = sum(map(is_older, made))
    if not older:
        return None
    return (
        f"older code: {older} of {len(made)} {what} made before the last change of what computes them, or without a record "
        "of their code"
    )


def debug_keys(result: RunResult) -> list[str]:
    """`["debug.max_steps=2", ...]`: the keys that cut a run short; empty for a real run."""
    return [f"{k}={v}" for k, v in hashed(result["config"]).items() if k.startswith("debug.") and v]


class Marks(NamedTuple):
    """Of each group its mark ("[a]", or "" where no group needs one) and the values of the keys in which they differ."""

    marks: list[str]
    values: list[str]
    keys: list[str]


def mark(groups: Sequence[Group]) -> Marks:
    """Tell apart groups that differ in more than their names say; groups of one mark are alike in all else.

    A name `dataset-model-neuron-loss` says what its four choices set, any other name the loss and all of IMP.
    """
    flats = []
    for group in groups:
        flat = facts(group.first)
        if flat["images_per_statistic"] is None:
            del flat["images_per_statistic"]  # not recorded: nothing to compare
        for key in MACHINE:
            values = sorted({run[key] for run in group.runs if run.get(key) is not None})
            flat |= {key: " and ".join(map(str, values))} if values else {}
        flats.append(flat)
    found = _mark(groups, flats)
    if len({(g.first["name"], m) for g, m in zip(groups, found.marks, strict=True)}) < len(groups):
        for group, flat in zip(groups, flats, strict=True):  # of one name, and apart in what one of them did not record
            flat.setdefault("images_per_statistic", "not recorded")
            flat["recipe_hash"] = group.first["recipe_hash"]
        found = _mark(groups, flats)
    return found


def _mark(groups: Sequence[Group], flats: list[dict[str, Any]]) -> Marks:
    keys = []
    for key in sorted(set().union(*flats)):
        have = [(group.first, flat[key]) for group, flat in zip(groups, flats, strict=True) if key in flat]
        if len({repr(value) for _, value in have}) > 1 and _unsaid(key, have):
            keys.append(key)
    labels: dict[tuple, str] = {}
    marks, values = [], []
    for flat in flats:
        mine = tuple(repr(flat.get(key)) for key in keys)
        marks.append(labels.setdefault(mine, f"[{_letters(len(labels))}]"))
        values.append(", ".join(f"{key}={flat[key]}" for key in keys if key in flat))
    return Marks(marks if keys else [""] * len(groups), values, keys)


def _unsaid(key: str, have: list[tuple[RunResult, Any]]) -> bool:
    """Whether the names of some of these runs leave open that `key` has the value that it has."""
    same_name: dict[str, set[str]] = {}
    for result, value in have:
        same_name.setdefault(result["name"], set()).add(repr(value))
    if any(len(values) > 1 for values in same_name.values()):
        return True
    if key in ("split", "data"):  # of another data set they are other ones
        of_set: dict[str, set[str]] = {}
        for result, value in have:
            if value != "unknown":
                of_set.setdefault(result["dataset"], set()).add(value)
        return any(len(values) > 1 for values in of_set.values())
    return not all(_said(key, result["name"], value) for result, value in have)


def _said(key: str, name: str, value: Any) -> bool:
    if key in ("name", "paper_row"):
        return True
    words = name.split("-")
    if len(words) != len(CHOICES) or any(w not in choices(c) for w, c in zip(words, CHOICES, strict=True)):
        return key.startswith(WHAT_A_METHOD_CHANGES)
    group = "dataset" if key == "timesteps" else key.split(".")[0]
    if group not in CHOICES:
        return False
    means = _what_a_choice_means(group, words[CHOICES.index(group)], words[0] if group == "model" else "")
    return key in means and means[key] == value


CHOICES = ("dataset", "model", "neuron", "loss")


@cache
def _what_a_choice_means(group: str, choice: str, dataset: str) -> dict[str, Any]:
    try:
        return hashed(load_config([f"dataset={dataset}"] * bool(dataset) + [f"{group}={choice}"]))
    except UserError:
        return {}


def _letters(i: int) -> str:
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


# ---------------------------------------------------------------- one group against another

WHAT_A_METHOD_CHANGES = ("name", "paper_row", "seed", "neuron.imp", "recipe.imp_", "loss.")


def recipe_difference(a: RunResult, b: RunResult) -> list[str]:
    """`["recipe.epochs: 150 -> 200", ...]`: where two runs differ beyond IMP and the loss; empty for the same recipe."""
    found = differing(a["config"], b["config"])
    found = [d for d in found if not d.startswith(WHAT_A_METHOD_CHANGES)]
    for key in ("split_sha256", "precision"):
        if a[key] != b[key]:
            found.append(f"{key}: {a[key][:16]} -> {b[key][:16]}")
    statistics = a.get("images_per_statistic"), b.get("images_per_statistic")
    if None not in statistics and statistics[0] != statistics[1]:
        found.append(f"images_per_statistic: {statistics[0]} -> {statistics[1]}")
    data = data_id(a), data_id(b)
    if "unknown" not in data and data[0] != data[1]:
        found.append(f"data: {data[0]} -> {data[1]}")
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
        right = _right_or_none(a), _right_or_none(b)
        if right[0] is None or right[1] is None:
            return Gain(value, None, None, None, "no predictions", 1, baseline.label)
        return Gain(value, None, None, mcnemar(*right).p, "McNemar", 1, baseline.label)
    test = paired(*([100 * side[s]["acc_last"] for s in seeds] for side in (theirs, ours)))
    return Gain(test.mean, test.low, test.high, test.p, "paired t", test.n, baseline.label)


RIGHT = "right.json"  # the right answers of a collected run: a bit a test sample, in the order of the test list


def right_answers(result: RunResult) -> np.ndarray | None:
    """bool [N]: which test samples the final network answers rightly at its readout; None where no file says so.

    Raises DataError where the file is damaged or does not belong to the result.
    """
    folder = Path(result["folder"])
    try:
        readout = _readout(result) if not (folder / RIGHT).exists() and (folder / PREDICTIONS).exists() else None
    except UserError as error:
        raise DataError(f"{folder / PREDICTIONS} cannot be read out: {error}") from None
    try:
        if (folder / RIGHT).exists():
            path = folder / RIGHT
            content = json.loads(path.read_text("utf-8"))
            bits = np.frombuffer(bytes.fromhex(content["bits"]), np.uint8)
            right = np.unpackbits(bits, count=content["n_test"]).astype(bool)
        elif readout is not None:
            path = folder / PREDICTIONS
            with np.load(path, allow_pickle=False) as file:
                logits, label = file["logits"].astype(np.float32), file["label"]
            right = readout(logits).argmax(-1) == label
        else:
            return None
        hits, n = int(right.sum()), len(right)
    except Exception as error:  # zip, JSON, shapes, keys: whatever a foreign file can be
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"{path} is damaged ({why}); remove it, or run it again with force=true") from None
    if abs(hits - result["correct"]) > 1e-3 * n + 1 or n != result["n_test"]:
        raise DataError(
            f"{path} has {hits} of {n} right and {RESULT} says {result['correct']} of {result['n_test']}; "
            "they are not of one run, so run it again with force=true"
        )
    return right


def _readout(result: RunResult) -> Callable[[np.ndarray], np.ndarray]:
    """logits [N, T, K] -> scores [N, K] as the result's loss reads them; by the readout's name where there is no such loss.

    Raises UserError where neither is known.
    """
    import torch

    from snn_repro.losses import LOSSES, build_loss

    written = result["config"].get("loss") or {}
    name = written.get("name", result["loss"])
    if name in LOSSES:
        options = {k: v for k, v in written.items() if k in LOSSES[name].settings and v is not None}
        loss = build_loss(name, **options)
        return lambda logits: loss.readout(torch.from_numpy(logits).transpose(0, 1)).numpy()
    if result["readout"] not in ("mean", "last"):
        raise UserError(
            f"its loss '{name}' reads by '{result['readout']}' and is not installed here; install the package that has it"
        )
    return lambda logits: logits[:, -1] if result["readout"] == "last" else logits.mean(1)


def _right_or_none(result: RunResult) -> np.ndarray | None:
    """`right_answers`, or None after a line on stderr where they cannot be used."""
    try:
        return right_answers(result)
    except DataError as error:
        skipped(str(error))
        return None


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
            right = _right_or_none(result)
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
    """kind: text | number (two decimals) | summary (mean and spread) | interval | gain | steps (accuracy at t = 1..T).

    A column of kind csv is a text that only CSV has: the other forms say it in a note.
    """

    key: str
    header: str
    kind: str = "text"


@dataclass
class Table:
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def shown(self) -> list[Column]:
        """The columns of every form but CSV."""
        return [c for c in self.columns if c.kind != "csv"]


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
    right = {c.key for c in table.shown if c.kind != "text"}
    lines = [
        f"### {table.title}",
        "",
        "| " + " | ".join(_md(c.header) for c in table.shown) + " |",
        "|" + "|".join("---:" if c.key in right else "---" for c in table.shown) + "|",
        *("| " + " | ".join(_md(cell(row.get(c.key))) for c in table.shown) + " |" for row in table.rows),
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
    align = "".join("l" if c.kind == "text" else "r" for c in table.shown)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(_tex(c.header) for c in table.shown) + r" \\",
        r"\midrule",
        *(" & ".join(_tex(cell(row.get(c.key))) for c in table.shown) + r" \\" for row in table.rows),
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
        side = {c.key: "" if c.kind == "text" else ' class="r"' for c in table.shown}
        lines += [
            f"<h2>{escape(table.title)}</h2>",
            '<div class="wide"><table><thead><tr>',
            *(f"<th{side[c.key]}>{escape(c.header)}</th>" for c in table.shown),
            "</tr></thead><tbody>",
            *(
                "<tr>" + "".join(f"<td{side[c.key]}>{escape(cell(row.get(c.key)))}</td>" for c in table.shown) + "</tr>"
                for row in table.rows
            ),
            "</tbody></table></div>",
            *(["<ul>", *(f"<li>{escape(note)}</li>" for note in table.notes), "</ul>"] if table.notes else []),
        ]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def to_text(table: Table, width: int | None = None, ascii_only: bool = False) -> str:
    """A table for the terminal; `width` None makes it as wide as it needs to be.

    Where the table does not fit into `width` characters, each row takes several lines, and no line is longer.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    def safe(text: str) -> str:
        return _printable(plain(text) if ascii_only else text)

    shown = RichTable(
        title=Text(safe(table.title)), title_justify="left", box=box.ASCII2 if ascii_only else box.HEAVY_HEAD
    )
    for c in table.shown:
        shown.add_column(Text(safe(c.header)), justify="left" if c.kind == "text" else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(safe(cell(row.get(c.key)))) for c in table.shown))
    out = io.StringIO()
    needs = max(40, Console(file=out, width=10_000).measure(shown).maximum)
    if width is not None and needs > width:
        return _stacked(table, width, safe)
    Console(file=out, width=needs, force_terminal=False).print(shown)
    for note in table.notes:
        out.write(_wrapped(safe(note), width, "- ") if width else f"- {safe(note)}\n")
    return out.getvalue()


def _stacked(table: Table, width: int, safe: Callable[[str], str]) -> str:
    """The first column on a line of its own, the numbers below it in columns, long texts and steps below those."""
    first, *others = table.shown
    narrow = [c for c in others if c.kind != "steps" and _widest(table, c, safe) <= width // 3]
    lines: list[list[Column]] = [[]]  # columns, as many a line as fit
    for c in narrow:
        if lines[-1] and 1 + sum(2 + _widest(table, k, safe) for k in [*lines[-1], c]) > width:
            lines.append([])
        lines[-1].append(c)

    def aligned(text: Callable[[Column], str]) -> list[str]:
        return [
            " "
            + "".join(f"  {safe(text(c)):{'<' if c.kind == 'text' else '>'}{_widest(table, c, safe)}}" for c in line)
            for line in lines
            if line
        ]

    out = [safe(table.title), "", first.header, *aligned(lambda c: c.header), "-" * width]
    for row in table.rows:
        out += _wrapped(safe(cell(row.get(first.key))), width, "").splitlines()
        out += [line.rstrip() for line in aligned(lambda c, row=row: cell(row.get(c.key))) if line.strip()]
        for c in others:
            if c not in narrow and row.get(c.key):
                text = safe(f"{c.header}: {cell(row[c.key])}")
                out += _wrapped(text, width, "   ").splitlines()
    out += ["-" * width, *(line for note in table.notes for line in _wrapped(safe(note), width, "- ").splitlines())]
    return "\n".join(line.rstrip() for line in out) + "\n"


def _widest(table: Table, c: Column, safe: Callable[[str], str]) -> int:
    return max(len(safe(text)) for text in [c.header, *(cell(row.get(c.key)) for row in table.rows)])


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else "?" for ch in text)


def _wrapped(text: str, width: int, start: str) -> str:
    """Lines of at most `width` characters; the later ones are indented by as much as `start` and two more."""
    indent = " " * (len(start) or 2)
    lines = textwrap.wrap(text, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
    return "".join(f"{line}\n" for line in lines)


# ---------------------------------------------------------------- comparing runs


def compare(roots: Iterable[str | Path], debug_runs: bool = False) -> Table:
    """One line a group of runs under `roots`: mean ± sd over seeds of each accuracy, and accuracy at each time step.

    Rows that differ in more than their names say are marked, and notes name the keys. Runs that a debug key cut short
    are left out unless `debug_runs`; raises UserError where nothing else is there.
    """
    roots = list(roots)
    results = load(roots)
    cut = [result for result in results if debug_keys(result)]
    left_out = []
    if cut and not debug_runs:
        keys = ", ".join(sorted({key for result in cut for key in debug_keys(result)}))
        said = f"{len(cut)} debug run{'s' if len(cut) > 1 else ''} ({keys})"
        if len(cut) == len(results):
            raise UserError(f"{', '.join(map(str, roots))}: only {said}; show them with --debug-runs")
        results = [result for result in results if not debug_keys(result)]
        left_out = [f"left out: {said}; shown with --debug-runs"]
    groups, notes = group_runs(results)
    marked = mark(groups)
    groups = [replace(g, label=f"{g.first['name']} {m}".strip()) for g, m in zip(groups, marked.marks, strict=True)]
    columns = [
        Column("row", "row"),
        Column("n", "seeds", "number"),
        Column("readout", "readout"),
        Column("acc_last", "acc_last %", "summary"),
        Column("acc_valsel", "acc_valsel %", "summary"),
        Column("acc_best_test", "acc_best_test* %", "summary"),
        Column("acc_step", "accuracy at t=1..T %", "steps"),
        Column("differs", "differs in", "csv"),
    ]
    rows = [
        dict(
            row=g.label, n=len(g.runs), readout=g.first["readout"], acc_last=g.percent("acc_last"),
            acc_valsel=g.percent("acc_valsel"), acc_best_test=g.percent("acc_best_test"), acc_step=g.steps(),
            differs=values,
        )
        for g, values in zip(groups, marked.values, strict=True)
    ]  # fmt: skip
    explained = [
        "mean ± sample standard deviation over seeds, test set; acc_last: last epoch at the readout; acc_valsel: test "
        "accuracy at the epoch that the validation part chose",
        f"acc_best_test*: {OPTIMISTIC}",
        "accuracy at t: the output of that time step alone, last epoch, mean over seeds",
    ]
    if marked.keys:
        explained.append("rows of different letters differ in more than their names say:")
        explained += [f"{m} {v}" for m, v in dict(zip(marked.marks, marked.values, strict=True)).items()]
    return Table("Runs by row", columns, rows, [*explained, *remarks(groups), *left_out, *notes])


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
MAY_BE_EMPTY = (
    "corrected",
    "gain",
    "params_M",
    "caveats",
    "departs",
    "code",
)  # columns that a table without such numbers does not have
OUR_COLUMNS = [
    Column("acc_best_test", "ours, best on test* %", "summary"), Column("acc_last", "ours, last epoch %", "summary"),
    Column("acc_valsel", "ours, chosen on validation %", "summary"), Column("interval", "95 % interval of last", "interval"),
    Column("n", "seeds", "number"), Column("params", "weights + IMP"), Column("split", "split"), Column("fidelity", "fidelity"),
    Column("caveats", "caveat"), Column("departs", "departs from the row in"), Column("code", "code"),
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
    used: list[Group] = []
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
        used += mine
        shown += [base | ours(group, groups, notes) for group in mine] or [base]
    gains = gain_columns(shown)
    columns = [
        c for c in PAPER_COLUMNS if c.key not in MAY_BE_EMPTY or any(row.get(c.key) is not None for row in shown)
    ]
    ours_here = [c for c in OUR_COLUMNS if c.key not in ("caveats", "code") or any(row.get(c.key) for row in shown)]
    columns += [*ours_here, *gains, Column("note", "note")]
    numbered = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return Table(TITLES[number], columns, shown, [*PAPER_NOTES, *remarks(used), *numbered])


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
    beside = [g for g in groups if g.first["paper_row"] is None]
    shown = [
        dict(row=g.label, readout=g.first["readout"], acc_step=g.steps(), **ours(g, groups, notes)) for g in beside
    ]
    gains = gain_columns(shown)
    columns = [
        Column("row", "row"), Column("T", "T", "number"), Column("readout", "readout"), *needed(OUR_COLUMNS, shown), *gains,
        Column("acc_step", "accuracy at t=1..T %", "steps"),
    ]  # fmt: skip
    steps = "accuracy at t: the output of that time step alone, last epoch, mean over seeds"
    return Table(
        "Runs beside the paper's rows", columns, shown, [*PAPER_NOTES[1:-1], steps, *remarks(beside), *notes, *left_out]
    )


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
        code="older" if any(map(is_older, group.runs)) else None,
    )  # fmt: skip


def departures(group: Group) -> str | None:
    """The keys in which these runs differ from the experiment of their name, with the values; None where in none.

    Keys that did not exist when the runs were made are left out.
    """
    config = group.first["config"]
    name = group.first["name"]
    if name not in conf_files("experiment"):
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


# ---------------------------------------------------------------- numbers in a text


MEASURED = re.compile(r"(<!-- (accuracy|steps) ([^\s>]+) -->).*?(<!-- / -->)", re.DOTALL)


def fill_in(text: str, runs: Path) -> str:
    """`text` with its measured numbers from the finished runs under `runs`.

    `<!-- accuracy FOLDER -->...<!-- / -->` becomes mean ± sd % of the last epoch and the number of seeds of the runs in
    that folder of `runs`, `<!-- steps FOLDER -->...<!-- / -->` their accuracy at each time step; where no such folder
    is, what stands there stays. Raises UserError where a folder holds runs of several configurations.
    """

    def number(match: re.Match) -> str:
        start, kind, folder, end = match.groups()
        if not (runs / folder).is_dir():
            return match.group()
        groups, _ = group_runs(load([runs / folder]))
        if len(groups) > 1:
            raise UserError(
                f"{runs / folder} holds runs of several configurations: {', '.join(g.label for g in groups)}"
            )
        accuracy = groups[0].percent("acc_last")
        if kind == "steps":
            return start + cell(groups[0].steps()) + end
        if accuracy.n == 1:
            return f"{start}{accuracy.mean:.2f} % (n=1){end}"
        return f"{start}{accuracy.mean:.2f} ± {accuracy.sd:.2f} % ({accuracy.n} seeds){end}"

    return MEASURED.sub(number, text)
