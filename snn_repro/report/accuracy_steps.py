"""Test accuracy against time step, mean over seeds with a band of one standard deviation. The output of a step alone is what the
paper's curves show; the mean of the outputs so far is what an inference that ends there would answer."""

from typing import Any

from snn_repro.paper.statistics import summary
from snn_repro.registry import SECTIONS
from snn_repro.report._page import Chart, NothingToShow, Section, text
from snn_repro.report._read import Found, Row

TITLE = "Accuracy by time step"
ORDER = 2

KINDS = {"acc_step": "output of the step alone", "acc_cum": "mean of the outputs so far"}


@SECTIONS.register("accuracy_steps")
def content(found: Found) -> Section:
    shown = [row for row in found.rows if row.sees_future is False and row.counted]
    ahead = [row.label for row in found.rows if row.sees_future]
    unknown = [row.label for row in found.rows if row.sees_future is None]
    notes = [f"left out, since every step sees the later ones: {', '.join(ahead)}"] if ahead else []
    notes += [f"left out, since their network cannot be built here: {', '.join(unknown)}"] if unknown else []
    if not shown:
        raise NothingToShow("; ".join(notes) or "no run was tested yet")
    charts = [
        Chart(name, "time step", "test accuracy %", {row.id: [trace] for row in shown if (trace := _trace(row, key))},
              {"xaxis": {"dtick": 1 if max(row.config["timesteps"] for row in shown) < 17 else None}})
        for key, name in KINDS.items()
    ]  # fmt: skip
    return Section(charts, text(notes))


def _trace(row: Row, key: str) -> dict[str, Any] | None:
    curves: list[Any] = [run.measured.get(key) for run in row.counted]
    if None in curves or len({len(curve) for curve in curves}) != 1:
        return None
    steps = [summary([100 * value for value in step]) for step in zip(*curves, strict=True)]
    sd = {"sd": [s.sd for s in steps]} if len(curves) > 1 else {}
    return {"x": list(range(1, len(steps) + 1)), "y": [s.mean for s in steps], "mode": "lines+markers", **sd}
