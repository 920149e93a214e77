"""The tables: runs beside each other, the paper's tables with ours beside, and the measured numbers in a text."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from snn_repro.config import ADDED, conf_files, hashed, load_config
from snn_repro.errors import UserError
from snn_repro.paper.differences import debug_keys, gain, is_older, mark, recipe_difference, remarks
from snn_repro.paper.formats import Column, Table, cell, to_csv, to_latex, to_markdown
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.paper.rows import PaperRow
from snn_repro.paper.statistics import Interval, wilson
from snn_repro.runs.folder import find_results, result_files

OPTIMISTIC = "best epoch on the test set (optimistic)"
BY_STEP = Column("acc_step", "accuracy at t=1..T %", "steps")
STEP_BY_STEP = "accuracy at t: the output of that time step alone, last epoch, mean over seeds"

# ---------------------------------------------------------------- comparing runs


def compare(roots: Sequence[str | Path], debug_runs: bool = False) -> Table:
    """One line a group of runs under `roots`: mean ± sd over seeds of each accuracy, and accuracy at each time step.

    Rows that differ in more than their names say are marked, and notes name the keys. Runs that a debug key cut short
    are left out unless `debug_runs`; raises UserError where nothing else is there.
    """
    results = load(roots)
    cut = {key: None for result in results for key in debug_keys(result)}
    whole = [result for result in results if not debug_keys(result)]
    left_out = []
    if cut and not debug_runs:
        n = len(results) - len(whole)
        said = f"{n} debug run{'s' if n > 1 else ''} ({', '.join(sorted(cut))})"
        if not whole:
            raise UserError(f"{', '.join(map(str, roots))}: only {said}; show them with --debug-runs")
        left_out = [f"left out: {said}; shown with --debug-runs"]
        results = whole
    groups, notes = group_runs(results)
    marked = mark(groups)
    groups = [Group(f"{g.first['name']} {m}".strip(), g.runs) for g, m in zip(groups, marked.marks, strict=True)]
    columns = [
        Column("row", "row"), Column("n", "seeds", "number"), Column("readout", "readout"),
        Column("acc_last", "acc_last %", "summary"), Column("acc_valsel", "acc_valsel %", "summary"),
        Column("acc_best_test", "acc_best_test* %", "summary"), BY_STEP, Column("differs", "differs in", "csv"),
    ]  # fmt: skip
    rows = [
        dict(
            row=g.label, n=len(g.runs), readout=g.first["readout"], acc_last=g.last, acc_valsel=g.percent("acc_valsel"),
            acc_best_test=g.percent("acc_best_test"), acc_step=g.steps(), differs=values,
        )
        for g, values in zip(groups, marked.values, strict=True)
    ]  # fmt: skip
    explained = [
        "mean ± sample standard deviation over seeds, test set; acc_last: last epoch at the readout; acc_valsel: test "
        "accuracy at the epoch that the validation part chose",
        f"acc_best_test*: {OPTIMISTIC}",
        STEP_BY_STEP,
    ]
    if marked.keys:
        explained.append("rows of different letters differ in more than their names say:")
        explained += [f"{m} {v}" for m, v in dict(zip(marked.marks, marked.values, strict=True)).items()]
    return Table("Runs by row", columns, rows, [*explained, *remarks(groups), *left_out, *notes])


# ---------------------------------------------------------------- the paper's tables, with ours beside

TITLES: dict[int | str, str] = {
    1: "Table 1: SDT and TET without IMP",
    2: "Table 2: event data",
    3: "Table 3: ImageNet-1k",
    "code": "Numbers in the released code that no table prints",
    "rivals": "Rivals of IMP and LTS that the paper does not compare with",
}
PAPER_COLUMNS = [
    Column("dataset", "data set"), Column("size", "pixels", "number"), Column("method", "method"),
    Column("network", "network"), Column("T", "T", "number"), Column("accuracy", "paper % (best on test)", "number"),
    Column("corrected", "corrected %", "number"), Column("gain", "paper's gain", "number"),
    Column("params_M", "paper's params M", "number"),
]  # fmt: skip
# columns that a table without such numbers does not have
MAY_BE_EMPTY = ("corrected", "gain", "params_M", "synops", "macs", "energy", "caveats", "departs", "numbers")
OUR_COLUMNS = [
    Column("acc_best_test", "ours, best on test* %", "summary"), Column("acc_last", "ours, last epoch %", "summary"),
    Column("acc_valsel", "ours, chosen on validation %", "summary"), Column("interval", "95 % interval of last", "interval"),
    Column("n", "seeds", "number"), Column("params", "weights + IMP"),
    Column("synops", "synops a sample, k", "number"), Column("macs", "MACs a sample, k", "number"),
    Column("energy", "energy a sample, nJ", "number"), Column("split", "split"), Column("fidelity", "fidelity"),
    Column("caveats", "caveat"), Column("departs", "departs from the row in"), Column("numbers", "numbers"),
]  # fmt: skip
PAPER_NOTES = [
    "paper: one run, best epoch on the test set, as printed; rows marked (quoted) are other papers' numbers",
    f"best on test*: {OPTIMISTIC}; last epoch and validation: no choice by the test set; mean ± sample standard deviation over seeds",
    "95 % interval: Student's t over seeds; (sample): one seed, Wilson's interval of the test sample alone",
    "our gain: last epoch, against runs of the same recipe, paired over seeds, or by McNemar's test for one seed; the paper's "
    "gain is over another paper's recipe",
    "an empty cell: nothing ran",
]


def paper_table(number: int | str, rows: Iterable[PaperRow], groups: Sequence[Group]) -> Table:
    """The paper's numbers of one table and, joined by `paper_row`, ours: one line a group of runs, or an empty one."""
    notes: list[str] = []
    shown: list[dict[str, Any]] = []
    used: list[Group] = []
    for row in rows:
        base: dict[str, Any] = dict(
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
    columns = [*needed([*PAPER_COLUMNS, *OUR_COLUMNS], shown), *gain_columns(shown), Column("note", "note")]
    numbered = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return Table(TITLES[number], columns, shown, [*PAPER_NOTES, *said_of_energy(shown), *remarks(used), *numbered])


def needed(columns: Iterable[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    return [c for c in columns if c.key not in MAY_BE_EMPTY or any(row.get(c.key) is not None for row in rows)]


def said_of_energy(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the columns of operations and energy are, where a table has them."""
    said = (
        "synops (accumulations that spikes drive), MACs and energy: where runs counted them (`energy`), mean over seeds; "
        "4.6 pJ a MAC, 0.9 pJ a synaptic operation"
    )
    return [said] if any(row.get("energy") is not None for row in rows) else []


def gain_columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """A column for each of the most gains that a row has."""
    deepest = max((int(key[5:]) for row in rows for key in row if key.startswith("gain_")), default=0)
    names = ["our gain, same recipe", *(f"our gain, same recipe ({i})" for i in range(2, deepest + 1))]
    return [Column(f"gain_{i}", names[i - 1], "gain") for i in range(1, deepest + 1)]


def runs_table(groups: Sequence[Group], left_out: Sequence[str]) -> Table:
    """Every group that is no row of the paper: partners without one part, and runs of our own."""
    notes: list[str] = []
    beside = [g for g in groups if g.first["paper_row"] is None]
    rows = [dict(row=g.label, readout=g.first["readout"], acc_step=g.steps()) | ours(g, groups, notes) for g in beside]
    columns = [
        Column("row", "row"), Column("T", "T", "number"), Column("readout", "readout"), *needed(OUR_COLUMNS, rows),
        *gain_columns(rows), BY_STEP,
    ]  # fmt: skip
    said = [*PAPER_NOTES[1:-1], STEP_BY_STEP, *said_of_energy(rows), *remarks(beside), *notes, *left_out]
    return Table("Runs beside the paper's rows", columns, rows, said)


def ours(group: Group, groups: Sequence[Group], notes: list[str]) -> dict[str, Any]:
    """The measured part of a line: accuracies, interval, sizes, split, and gain_1, ... over the baselines of the run.

    Why there is no gain goes to `notes`.
    """
    first, last = group.first, group.last
    if last.n > 1:
        interval = Interval(last.low, last.high, "t")
    else:
        low, high = wilson(first["correct"], first["n_test"])
        interval = Interval(100 * low, 100 * high, "Wilson")
    gains: dict[str, Any] = {}
    for i, name in enumerate(first["config"].get("baselines", []), 1):
        try:
            gains[f"gain_{i}"] = gain(group, baseline_of(group, name, groups))
        except UserError as error:
            gains[f"gain_{i}"] = None
            notes.append(f"{group.label}: no gain over {name} is shown: {error}")
    return gains | dict(
        T=first["timesteps"], acc_best_test=group.percent("acc_best_test"), acc_last=last, acc_valsel=group.percent("acc_valsel"),
        interval=interval, n=last.n, params=f"{first['params_weights']:,} + {first['params_imp']:,}", **group.operations(),
        split=f"{first['split_id']} ({first['split_sha256'][:8]})", fidelity=first["config"].get("fidelity"),
        caveats="; ".join(first["config"].get("caveats", [])) or None, departs=departures(group),
        numbers="older" if any(map(is_older, group.runs)) else None,
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


def baseline_of(group: Group, name: str, groups: Sequence[Group]) -> Group:
    """The group called `name` that has the same recipe as `group`; raises UserError where there is none."""
    called = [g for g in groups if g.first["name"] == name]
    if not called:
        raise UserError("it has no run")
    return next((g for g in called if not recipe_difference(g.first, group.first)), called[0])


def generate(results: Path, rows: Iterable[PaperRow]) -> dict[str, str]:
    """{file name: content} of everything in results/tables, from results/runs and the paper's rows."""
    runs, rows = results / "runs", list(rows)
    groups, left_out = group_runs(load([runs])) if result_files(runs) else ([], [])
    tables = {
        f"table{number}" if isinstance(number, int) else number: paper_table(
            number, [r for r in rows if r.table == number], groups
        )
        for number in TITLES
    }
    tables["runs"] = runs_table(groups, [note.replace(f"{runs}/", "") for note in left_out])
    formats = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    return {f"{name}.{end}": write(table) for name, table in tables.items() for end, write in formats.items()}


# ---------------------------------------------------------------- numbers in a text


MEASURED = re.compile(r"(<!-- (accuracy|steps) ([^\s>]+) -->).*?(<!-- / -->)", re.DOTALL)


def fill_in(text: str, runs: Path) -> str:
    """`text` with its measured numbers from the finished runs under `runs`.

    `<!-- accuracy FOLDER -->...<!-- / -->` becomes mean ± sd % of the last epoch and the number of seeds of the runs in
    that folder of `runs`, `<!-- steps FOLDER -->...<!-- / -->` their accuracy at each time step; where no such folder
    is, what stands there stays. Raises UserError where a folder holds runs of several configurations.
    """

    results = find_results(runs) if result_files(runs) else []

    def number(match: re.Match[str]) -> str:
        start, kind, folder, end = match.groups()
        groups, _ = group_runs(r for r in results if Path(str(r.folder)).is_relative_to(runs / folder))
        if not groups:
            return match.group()
        if len(groups) > 1:
            labels = ", ".join(g.label for g in groups)
            raise UserError(f"{runs / folder} holds runs of several configurations: {labels}")
        last = groups[0].last
        if kind == "steps":
            return start + cell(groups[0].steps()) + end
        said = f"{last.mean:.2f} % (n=1)" if last.n == 1 else f"{last} % ({last.n} seeds)"
        return start + said + end

    return MEASURED.sub(number, text)
