"""From each run's metrics.jsonl, epoch by epoch; one line a seed."""

from typing import Any

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
            for run in row.runs:
                values = {line["epoch"]: _value(line, key) for line in run.history}
                points = [(epoch, factor * value) for epoch, value in values.items() if isinstance(value, int | float)]
                every = -(-len(points) // MOST)
                points = points[:: every or 1] + points[-1:] * bool(every > 1 and (len(points) - 1) % every)
                if points:
                    x, y = zip(*points, strict=True)
                    mode = "lines" if len(points) > 1 else "markers"
                    traces.setdefault(row.id, []).append({"x": x, "y": y, "mode": mode, "seed": run.seed})
        if traces:
            charts.append(Chart(name, "epoch", f"{name.split(',')[0]} {unit}" if unit == "%" else unit, traces))
    if not charts:
        raise NothingToShow("no run has a metrics.jsonl (collected results are without)")
    return Section(charts)


def _value(line: dict[str, Any], key: str) -> Any:
    return line["acc_step"][0 if key == "first" else -1] if key in ("first", "final") else line.get(key)
