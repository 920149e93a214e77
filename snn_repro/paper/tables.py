"""The tables: runs beside each other, and the paper's tables with ours beside."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from snn_repro.config import ADDED, conf_files, hashed
from snn_repro.errors import UserError
from snn_repro.paper.differences import debug_keys, gain, is_older, mark, recipe_difference, remarks
from snn_repro.paper.formats import Column, Table, to_csv, to_latex, to_markdown
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.paper.rows import PaperRow, configs
from snn_repro.paper.statistics import Interval, wilson
from snn_repro.runs.folder import result_files

OPTIMISTIC = "best epoch on the test set (optimistic)"
BY_STEP = Column("acc_step", "accuracy at t=1..T %", "steps")
STEP_BY_STEP = "accuracy at t: the output of that time step alone, last epoch, mean over seeds"

# ---------------------------------------------------------------- comparing runs


def compare(roots: Sequence[str | Path], debug_runs: bool = False) -> Table:
    """One line a group of runs under `roots`: mean ± sd over seeds of each accuracy, and accuracy at each time step.

    Rows that differ in more than their names say are marked, and notes name the keys. Runs that a debug key cut short
    are left out unless `debug_runs`; raises UserError where nothing else is there.
    """
    results, left_out = load(roots), []
    if not debug_runs and (cut := [keys for result in results if (keys := debug_keys(result))]):
        said = f"{len(cut)} debug run{'s' * (len(cut) > 1)} ({', '.join(sorted({*chain(*cut)}))})"
        if len(cut) == len(results):
            raise UserError(f"{', '.join(map(str, roots))}: only {said}; show them with --debug-runs")
        left_out = [f"left out: {said}; shown with --debug-runs"]
        results = [result for result in results if not debug_keys(result)]
    groups, notes = group_runs(results)
    marked = mark(groups)
    labels = [f"{g.first['name']} {letter}".strip() for g, (letter, _) in zip(groups, marked, strict=True)]
    # of one name and one letter are those that differ in what one of them did not record: their own labels say it
    groups = [Group(la if labels.count(la) == 1 else g.label, g.runs) for la, g in zip(labels, groups, strict=True)]
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
        for g, (_, values) in zip(groups, marked, strict=True)
    ]  # fmt: skip
    explained = [
        "mean ± sample standard deviation over seeds, test set; acc_last: last epoch at the readout; acc_valsel: test "
        "accuracy at the epoch that the validation part chose",
        f"acc_best_test*: {OPTIMISTIC}",
        STEP_BY_STEP,
    ]
    if any(letter for letter, _ in marked):
        explained.append("rows of different letters differ in more than their names say:")
        explained += [f"{m} {v}" for m, v in dict(marked).items()]
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
ENERGY_NOTE = (
    "synops (accumulations that spikes drive), MACs and energy: where runs counted them (`energy`), mean over seeds; "
    "4.6 pJ a MAC, 0.9 pJ a synaptic operation"
)
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
    columns = [*measured_columns([*PAPER_COLUMNS, *OUR_COLUMNS], shown), Column("note", "note")]
    numbered = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return Table(TITLES[number], columns, shown, [*PAPER_NOTES, *_energy(columns), *remarks(used), *numbered])


def measured_columns(columns: Iterable[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns that these rows need, and one for each of the most gains that a row has."""
    deepest = max((int(key[5:]) for row in rows for key in row if key.startswith("gain_")), default=0)
    gains = [Column(f"gain_{i}", "our gain, same recipe" + f" ({i})" * (i > 1), "gain") for i in range(1, deepest + 1)]
    has = {key for row in rows for key, value in row.items() if value is not None}
    return [*(c for c in columns if c.key not in MAY_BE_EMPTY or c.key in has), *gains]


def _energy(columns: Sequence[Column]) -> list[str]:
    return [ENERGY_NOTE] if any(c.key == "energy" for c in columns) else []


def runs_table(groups: Sequence[Group], left_out: Sequence[str]) -> Table:
    """Every group that is no row of the paper: partners without one part, and runs of our own."""
    notes: list[str] = []
    beside = [g for g in groups if g.first["paper_row"] is None]
    rows = [dict(row=g.label, readout=g.first["readout"], acc_step=g.steps()) | ours(g, groups, notes) for g in beside]
    first = [Column("row", "row"), Column("T", "T", "number"), Column("readout", "readout")]
    columns = [*first, *measured_columns(OUR_COLUMNS, rows), BY_STEP]
    said = [*PAPER_NOTES[1:-1], STEP_BY_STEP, *_energy(columns), *remarks(beside), *notes, *left_out]
    return Table("Runs beside the paper's rows", columns, rows, said)


def ours(group: Group, groups: Sequence[Group], notes: list[str]) -> dict[str, Any]:
    """The measured part of a line: accuracies, interval, sizes, split, and gain_1, ... over the baselines of the run.

    Why there is no gain goes to `notes`.
    """
    first, last = group.first, group.last
    interval = Interval(last.low, last.high, "t")
    if last.n == 1:
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
    config, name = group.first["config"], group.first["name"]
    if name not in conf_files("experiment"):
        return f"{name} is no experiment" if group.first["paper_row"] else None
    row = ADDED | hashed(configs([name], "described" if config.get("fidelity") == "described" else None)[name])
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
        f"table{n}" if isinstance(n, int) else n: paper_table(n, [r for r in rows if r.table == n], groups)
        for n in TITLES
    }
    tables["runs"] = runs_table(groups, [note.replace(f"{runs}/", "") for note in left_out])
    formats = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    return {f"{name}.{end}": write(table) for name, table in tables.items() for end, write in formats.items()}
