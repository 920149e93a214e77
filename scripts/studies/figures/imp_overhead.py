"""Time of a layer with IMP relative to the same layer without, forward and backward.

Open marks are the control: the same layer measured twice. Ratios within the grey band cannot be distinguished from noise."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from snn_repro.paper.figures import SERIES, WIDE, MissingData, footnote
from snn_repro.registry import FIGURES
from snn_repro.runs.folder import skipped
from studies.figures import read


@FIGURES.register("imp_overhead")
def draw(results: Path) -> Figure:
    reports = []
    for path in sorted((results / "benchmarks").glob("*.json")):
        try:
            reports.append(read(path))
        except MissingData as error:
            skipped(str(error))
    reports = [r for r in reports if isinstance(r, dict) and "imp_overhead" in r]
    if not reports:
        raise MissingData(
            f"{results / 'benchmarks'} holds no timing of IMP; measure it with `python scripts/benchmark.py neuron`"
        )
    return draw_reports(reports)


def draw_reports(reports: Sequence[dict[str, Any]]) -> Figure:
    """Time of forward + backward with IMP over without, against the number of neurons, a line a T; a panel a device.

    A report is a file of results/benchmarks/ with `machine`: {"processor": name, ...}, `rounds` and `imp_overhead`:
    [{"timesteps", "neurons", "seconds_without", "seconds_with", "seconds_without_again"}, ...]. The last one is the
    control, the same measurement twice: its ratios, which are 1 but for noise, are drawn too, and span the grey band.
    """
    figure = Figure(figsize=(WIDE, 3.0))
    for axes, report in zip(figure.subplots(1, len(reports), squeeze=False).flat, reports, strict=True):
        rows = report["imp_overhead"]
        series = sorted({row["timesteps"] for row in rows})
        control = [r["seconds_without_again"] / r["seconds_without"] for r in rows if "seconds_without_again" in r]
        if control:
            axes.axhspan(min(control), max(control), color="0.92", zorder=0, label="control: its range")
        for i, steps in enumerate(series):
            mine = sorted((r for r in rows if r["timesteps"] == steps), key=lambda r: r["neurons"])
            aside = 2 ** (0.06 * (i - (len(series) - 1) / 2))  # so that points of equal height lie side by side
            x = [r["neurons"] * aside for r in mine]
            look = SERIES[i % len(SERIES)]
            axes.plot(x, [r["seconds_with"] / r["seconds_without"] for r in mine], label=f"T = {steps}", **look)
            again = [(a, r["seconds_without_again"] / r["seconds_without"]) for a, r in zip(x, mine, strict=True)
                     if "seconds_without_again" in r]  # fmt: skip
            if again:
                axes.plot(
                    *zip(*again, strict=True), linestyle="none", marker=look["marker"], markerfacecolor="white",
                    markeredgecolor=look["color"], label=f"control, T = {steps}",
                )  # fmt: skip
        axes.axhline(1, color="0.4", linewidth=0.8, zorder=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({r["neurons"] for r in rows}), [f"{n:,}" for n in sorted({r["neurons"] for r in rows})])
        axes.set_xlabel("neurons")
        n = f", n = {2 * report['rounds'] + 1} rounds a point" if "rounds" in report else ""
        axes.set_title(textwrap.fill(f"{report['machine']['processor']}{n}", 60 // len(reports)))
        axes.margins(y=0.15)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.axes[0].set_ylabel("forward + backward, with IMP / without")
    what = "medians of CPU time; control (open): the layer without IMP, measured twice; grey band: the range of the control"
    footnote(figure, what, runs=reports)
    return figure
