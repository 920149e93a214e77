"""Accuracy under early exit against mean synaptic operations per sample, for each initial state, one panel per loss.

A sample stops where the highest probability of the loss's readout reaches a threshold, from 0 (all stop at step 1) to 1.
Mean over seeds; black dots: the Pareto front of all states."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.figures import SERIES, WIDE, MissingData, footnote, title
from snn_repro.registry import FIGURES
from snn_repro.report.anytime import front
from studies import anytime as study


@FIGURES.register("anytime")
def draw(results: Path) -> Figure:
    try:
        found = study.cells(results)
    except UserError as error:
        raise MissingData(str(error)) from None
    parts = [name for name in ("static", "events") if any(name == part for part, _, _ in found)]
    if not parts:
        raise MissingData("no run of the parts static and events was collected")
    figure = Figure(figsize=(WIDE, 0.8 + 1.8 * len(parts)))
    grid, drawn, counts = figure.subplots(len(parts), 3, squeeze=False), [], set()
    for row, part in zip(grid, parts, strict=True):
        for axes, loss in zip(row, study.LOSSES, strict=True):
            points = []
            for state, look in zip(study.STATES, SERIES, strict=False):
                runs = list(found.get((part, loss, state), {}).values())
                if not runs:
                    continue
                acc, _, operations = np.mean([study.front(run) for _, run in runs], 0)
                operations = operations / 1e3
                axes.plot(operations, acc, label=state, markevery=10, **look)
                if len(runs) > 1:
                    sd = np.std([study.front(run)[0] for _, run in runs], 0, ddof=1)
                    axes.fill_between(operations, acc - sd, acc + sd, color=look["color"], alpha=0.15, linewidth=0)
                points += [(*point, state) for point in zip(operations, acc, strict=True)]
                drawn += [result for result, _ in runs]
                counts.add(len(runs))
            if points:
                cost, best, _ = zip(*front(points), strict=True)
                axes.plot(cost, best, ".", color="black", markersize=2, label="Pareto front")
            axes.set_title(f"{title(loss)}, {study.PARTS[part].dataset}")
            axes.set_xlabel("operations a sample, thousand")
        row[0].set_ylabel("test accuracy, %")
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid.flat), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    n = " to ".join(str(k) for k in sorted({min(counts), max(counts)}))
    footnote(figure, f"line: mean, band: ± 1 standard deviation over seeds (n = {n}), at 101 thresholds", runs=drawn)
    return figure
