"""The paper's tables with our results beside them, and a table of all other runs."""

from collections.abc import Iterable, Sequence
from typing import Any

from snn_repro.config import ADDED, conf_files, hashed
from snn_repro.errors import UserError
from snn_repro.paper.differences import gain, is_older, recipe_difference, remarks
from snn_repro.paper.formats import Column, Table
from snn_repro.paper.results import Group
from snn_repro.paper.rows import PaperRow, configs
from snn_repro.paper.statistics import Interval, wilson

OPTIMISTIC = "best epoch on the test set (optimistic)"
BY_STEP = Column("acc_step", "accuracy at t=1..T %", "steps")
STEP_BY_STEP = "accuracy at t: the output of that time step alone, last epoch, mean over seeds"

# ---------------------------------------------------------------- the paper's tables with our results

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
# columns that a table omits if all their cells are empty
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
    "synops (accumulations driven by spikes), MACs and energy: mean over the seeds that counted them (`energy`); "
    "4.6 pJ per MAC, 0.9 pJ per synaptic operation"
)
PAPER_NOTES: dict[str, tuple[str, ...]] = {  # note: the columns that it explains
    "paper: as printed, one run, best epoch on the test set; (quoted): numbers from other papers": ("accuracy",),
    f"best on test*: {OPTIMISTIC}; last epoch, validation: not selected on the test set; mean ± sample sd over seeds": (
        "acc_last",
    ),
    "95 % interval: Student's t over seeds; (sample): one seed, Wilson's interval over test samples": ("interval",),
    "our gain: last epoch, over runs of the same recipe, paired t-test over seeds or McNemar's test for one seed; the "
    "paper's gain: over another paper's recipe": ("gain_1", "gain"),
    "empty cell: no run": ("acc_last",),
}


def paper_table(number: int | str, rows: Iterable[PaperRow], groups: Sequence[Group]) -> Table:
    """The paper's table `number`: each row joined by `paper_row` with our groups, if any."""
    notes: list[str] = []
    shown: list[dict[str, Any]] = []
    used: list[Group] = []
    for row in rows:
        base: dict[str, Any] = dict(
            dataset=row.dataset, size=row.size, method=row.method if row.own else f"{row.method} (quoted)",
            network=row.network, T=row.T, accuracy=row.accuracy, corrected=row.corrected, gain=row.gain, params_M=row.params_M,
        )  # fmt: skip
        if row.notes:
            notes += [] if row.notes in notes else [row.notes]
            base["note"] = f"[{notes.index(row.notes) + 1}]"
        mine = [g for g in groups if g.first["paper_row"] == row.id]
        mine.sort(key=lambda g: (g.first["config"].get("fidelity") == "described", g.label))
        used += mine
        shown += [base | ours(group, groups, notes) for group in mine] or [base]
    columns = [*measured_columns([*PAPER_COLUMNS, *OUR_COLUMNS], shown), Column("note", "note")]
    below = [*PAPER_NOTES, *_energy(columns), *remarks(used), *(f"[{i}] {note}" for i, note in enumerate(notes, 1))]
    return Table(TITLES[number], columns, shown, below, ("dataset", "size", "method", "network", "T"), PAPER_NOTES)


def measured_columns(columns: Iterable[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns that the rows fill, and as many gain columns as needed."""
    most = max((int(key[5:]) for row in rows for key in row if key.startswith("gain_")), default=0)
    gains = [Column(f"gain_{i}", "our gain, same recipe" + f" ({i})" * (i > 1), "gain") for i in range(1, most + 1)]
    has = {key for row in rows for key, value in row.items() if value is not None}
    return [*(c for c in columns if c.key not in MAY_BE_EMPTY or c.key in has), *gains]


def _energy(columns: Sequence[Column]) -> list[str]:
    return [ENERGY_NOTE] if any(c.key == "energy" for c in columns) else []


def runs_table(groups: Sequence[Group], left_out: Sequence[str]) -> Table:
    """All groups that are no row of the paper: baselines, ablations and our own runs."""
    notes: list[str] = []
    beside = [g for g in groups if g.first["paper_row"] is None]
    rows = [dict(row=g.label, readout=g.first["readout"], acc_step=g.steps()) | ours(g, groups, notes) for g in beside]
    first = [Column("row", "row"), Column("T", "T", "number"), Column("readout", "readout")]
    columns = [*first, *measured_columns(OUR_COLUMNS, rows), BY_STEP]
    below = [*list(PAPER_NOTES)[1:-1], STEP_BY_STEP, *_energy(columns), *remarks(beside), *notes, *left_out]
    return Table("Runs beside the paper's rows", columns, rows, below)


def ours(group: Group, groups: Sequence[Group], notes: list[str]) -> dict[str, Any]:
    """The measured cells of a row: accuracies, interval, sizes, split and gains.

    `gain_1`, ... are over the run's baselines; the reason for a missing gain is added to `notes`.
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
            notes.append(f"{group.label}: no gain over {name}: {error}")
    return gains | dict(
        T=first["timesteps"], acc_best_test=group.percent("acc_best_test"), acc_last=last, acc_valsel=group.percent("acc_valsel"),
        interval=interval, n=last.n, params=f"{first['params_weights']:,} + {first['params_imp']:,}", **group.operations(),
        split=f"{first['split_id']} ({first['split_sha256'][:8]})", fidelity=first["config"].get("fidelity"),
        caveats="; ".join(first["config"].get("caveats", [])) or None, departs=departures(group),
        numbers="older" if any(map(is_older, group.runs)) else None,
    )  # fmt: skip


def departures(group: Group) -> str | None:
    """`key=value` wherever these runs differ from the experiment of their name; None if nowhere.

    Keys that did not exist when the runs were made are left out.
    """
    config, name = group.first["config"], group.first["name"]
    if name not in conf_files("experiment"):
        return f"{name} is no experiment" if group.first["paper_row"] else None
    row = ADDED | hashed(configs([name], "described" if config.get("fidelity") == "described" else None)[name])
    mine = ADDED | hashed(config)
    differing = [f"{k}={mine[k]}" for k in sorted(mine.keys() & row.keys() - {"seed"}) if mine[k] != row[k]]
    return ", ".join(differing) or None


def baseline_of(group: Group, name: str, groups: Sequence[Group]) -> Group:
    """The group `name`, preferably with the recipe of `group`. Raises UserError if there is none."""
    if not (called := [g for g in groups if g.first["name"] == name]):
        raise UserError("it has no run")
    return next((g for g in called if not recipe_difference(g.first, group.first)), called[0])
