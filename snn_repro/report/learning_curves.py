"""From each run's metrics.jsonl: mean over seeds with a band of one standard deviation, over the epochs that all seeds have reached.
Seeds that are further go on alone."""

from collections.abc import Sequence
from typing import Any

from snn_repro.paper.statistics import summary
from snn_repro.report._page import Chart, NothingToShow, Section
from snn_repro.report._read import Found

TITLE = "Learning curves"
ORDER = 3

MOST = 150  # points of a line: more are thinned out, the first and the last stay
MEASURES: dict[str, tuple[str, float, str]] = {
    "acc": ("test accuracy, at the readout", 100, "%"), "val_acc": ("validation accuracy, at the readout", 100, "%"),
    "train_acc": ("training accuracy", 100, "%"), "train_loss": ("training loss", 1, "loss"), "loss": ("test loss", 1, "loss"),
    "first": ("test accuracy, at step 1", 100, "%"), "final": ("test accuracy, at step T", 100, "%"), "lr": ("learning rate", 1, "lr"),
    "samples_per_s": ("speed", 1, "samples/s"),
}  # fmt: skip


def content(found: Found) -> Section:
    charts = []
    for key, (name, factor, unit) in MEASURES.items():
        traces: dict[int, list[dict[str, Any]]] = {}
        for row in found.rows:
            if key in ("first", "final") and row.sees_future is not False:
                continue
            curves = [{line["epoch"]: _value(line, key) for line in run.history} for run in row.runs]
            numbers = [
                {epoch: factor * v for epoch, v in curve.items() if isinstance(v, int | float)} for curve in curves
            ]
            if lines := _lines([(run.seed, curve) for run, curve in zip(row.runs, numbers, strict=True) if curve]):
                traces[row.id] = lines
        if traces:
            charts.append(Chart(name, "epoch", f"{name.split(',')[0]} {unit}" if unit == "%" else unit, traces))
    if not charts:
        raise NothingToShow("no run has a metrics.jsonl (collected results are without)")
    return Section(charts)


def _lines(curves: Sequence[tuple[int, dict[int, float]]]) -> list[dict[str, Any]]:
    """Traces of one row from (seed, {epoch: value}) of its runs."""
    common = sorted(set.intersection(*(set(curve) for _, curve in curves))) if curves else []
    lines = []
    if common:
        spread = [summary([curve[epoch] for _, curve in curves]) for epoch in common]
        mean = {epoch: s.mean for epoch, s in zip(common, spread, strict=True)}
        lines.append(
            _trace(mean, {epoch: s.sd for epoch, s in zip(common, spread, strict=True)} if len(curves) > 1 else None)
        )
    for seed, curve in curves:
        beyond = {epoch: value for epoch, value in curve.items() if not common or epoch >= common[-1]}
        if len(beyond) > bool(common):
            lines.append(_trace(beyond) | {"seed": seed})
    return lines


def _trace(curve: dict[int, float], sd: dict[int, float | None] | None = None) -> dict[str, Any]:
    epochs = list(curve)
    every = -(-len(epochs) // MOST)
    epochs = epochs[::every] + epochs[-1:] * bool((len(epochs) - 1) % every)
    trace = {"x": epochs, "y": [curve[e] for e in epochs], "mode": "lines+markers"}
    return trace | ({"sd": [sd[e] for e in epochs]} if sd else {})


def _value(line: dict[str, Any], key: str) -> Any:
    return line["acc_step"][0 if key == "first" else -1] if key in ("first", "final") else line.get(key)
