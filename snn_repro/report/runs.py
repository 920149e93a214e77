"""One line a row: mean ± standard deviation over its seeds, test accuracy in percent. Choose rows or runs to compare them and to
see them in the charts below."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from snn_repro.config import ADDED, hashed
from snn_repro.paper.differences import WHAT_A_METHOD_CHANGES, described, remarks
from snn_repro.registry import SECTIONS
from snn_repro.report._page import Section, text
from snn_repro.report._read import Found, Row, Run

TITLE = "Runs"
ORDER = 1

# key, header, kind: text | number | percent
COLUMNS = [
    ("acc", "readout %", "percent"), ("first", "step 1 %", "percent"), ("final", "step T %", "percent"), ("seeds", "seeds", "number"),
    ("dataset", "data set", "text"), ("model", "model", "text"), ("neuron", "neuron", "text"), ("initial", "initial state", "text"),
    ("loss", "loss", "text"), ("T", "T", "number"), ("best", "best on test* %", "percent"), ("valsel", "by validation %", "percent"),
    ("epochs", "epochs", "number"), ("params", "weights + IMP", "number"), ("energy", "energy µJ", "number"), ("state", "state", "text"),
]  # fmt: skip
FACETS = ("dataset", "model", "neuron", "initial", "loss", "T", "state")


@SECTIONS.register("runs")
def content(found: Found) -> Section:
    flats = {row.id: _flat(row) for row in found.rows}
    every = sorted(set().union(*flats.values()))
    varied = [k for k in every if len({repr(flat.get(k)) for flat in flats.values()}) > 1 or k == "name"]
    data = {
        "columns": COLUMNS,
        "facets": FACETS,
        "rows": [dict(id=f"r{row.id}", row=row.id, cells=_line(row, row.runs)) for row in found.rows],
        "runs": [
            dict(id=f"s{row.id}-{i}", row=row.id, seed=run.seed, folder=str(run.folder), cells=_line(row, [run]))
            for row in found.rows
            for i, run in enumerate(row.runs)
        ],
        "facts": {k: [str(flats[r.id][k]) if k in flats[r.id] else None for r in found.rows] for k in varied},
        "method": [key for key in varied if key.startswith(WHAT_A_METHOD_CHANGES)],
        "alike": len(every) - len(varied),
    }
    said = [
        "readout: the output that the loss trains, last epoch; step t: the output of that time step alone, empty where it depends "
        "on later steps; best on test*: the best epoch on the test set (optimistic); by validation: at the epoch that the validation part "
        "chose; energy: of one inference, operations alone",
        *remarks([row.group for row in found.rows if row.group]),
        *found.notes,
    ]
    errors = [f"{run.folder}: {run.error}" for run in found.runs if run.error and not run.result]
    return Section(html=text(said[:1]) + text([*said[1:], *errors]), data=data)


def _flat(row: Row) -> dict[str, Any]:
    """What makes a row what it is; of one that is not finished only what its configuration says."""
    return described(row.group) if row.group else ADDED | {k: v for k, v in hashed(row.config).items() if k != "seed"}


def _line(row: Row, runs: Sequence[Run]) -> dict[str, Any]:
    """{column: [shown, sorted by]} of a row or of one run of it."""
    part = Row(row.id, row.label, list(runs), row.group)
    counted, config, results = part.counted, part.config, [run.result for run in runs if run.result]

    def mean(values: Sequence[float]) -> float | None:
        return fmean(values) if values and None not in values else None

    def accuracy(key: str, at: int | None = None) -> list[Any]:
        said = None if at is not None and row.sees_future is not False else part.percent(key, at)
        return ["", None] if said is None else [str(said).removesuffix(" (n=1)"), said.mean]

    def result(key: str) -> list[Any]:
        value = mean([100 * r[key] for r in results if r.get(key) is not None])
        return ["", None] if value is None or not results else [f"{value:.2f}", value]

    energy = mean([r["energy"]["energy_pj"] / 1e6 for r in results if (r.get("energy") or {}).get("energy_pj")])
    weights, imp = (results[0]["params_weights"], results[0]["params_imp"]) if results else (None, 0)
    epochs = mean([len(r.history) or (r.result["epochs"] if r.result else 0) for r in counted]) or 0
    planned = config.get("recipe", {}).get("epochs", epochs)
    states = list(dict.fromkeys(run.state for run in runs))
    done = sum(run.result is not None for run in runs)
    seeds = f"{done}" if done == len(runs) else f"{done} of {len(runs)}"
    top = [100 * max(line["acc"] for line in run.history) for run in counted if run.history and not results]
    best = result("acc_best_test") if results else [f"{mean(top):.2f}", mean(top)] if top else ["", None]
    neuron = config["neuron"]
    initial = neuron.get("initial", "zero")
    if neuron.get("imp") and initial == "zero":
        initial = "imp"
    return {
        "dataset": _both(config["dataset"]["name"]), "model": _both(config["model"]["name"]), "neuron": _both(neuron["name"]),
        "initial": _both(initial), "loss": _both(config["loss"]["name"]), "T": _both(config["timesteps"]),
        "seeds": [seeds, len(runs)],
        "acc": accuracy("acc"), "first": accuracy("acc_step", 0), "final": accuracy("acc_step", -1), "best": best,
        "valsel": result("acc_valsel"),
        "epochs": [f"{epochs:g}" if epochs == planned else f"{epochs:g} of {planned}", epochs],
        "params": ["", None] if weights is None else [f"{weights:,} + {imp:,}", weights + imp],
        "energy": ["", None] if energy is None else [f"{energy:.{max(0, 2 - math.floor(math.log10(energy)))}f}", energy],
        "state": _both(", ".join(states)),
    }  # fmt: skip


def _both(value: Any) -> list[Any]:
    return [str(value), value]
