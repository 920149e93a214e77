"""From each run's metrics.jsonl: mean over seeds with a band of one standard deviation, over the epochs that all seeds have reached.
Seeds that are further go on alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from snn_repro.registry import SECTIONS
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


@SECTIONS.register("learning_curves")
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
        shown = _thinned(common)
        values = np.array([[curve[epoch] for epoch in shown] for _, curve in curves])
        lines.append({"x": shown, "y": values.mean(0).tolist()})
        if len(curves) > 1:
            lines[0]["sd"] = values.std(0, ddof=1).tolist()
    for seed, curve in curves:
        beyond = [epoch for epoch in curve if not common or epoch >= common[-1]]
        if len(beyond) > bool(common):
            shown = _thinned(beyond)
            lines.append({"x": shown, "y": [curve[epoch] for epoch in shown], "seed": seed})
    return [line | {"mode": "lines+markers"} for line in lines]


def _thinned(epochs: list[int]) -> list[int]:
    every = -(-len(epochs) // MOST)
    return epochs[::every] + epochs[-1:] * bool((len(epochs) - 1) % every)


def _value(line: dict[str, Any], key: str) -> Any:
    return line["acc_step"][0 if key == "first" else -1] if key in ("first", "final") else line.get(key)
