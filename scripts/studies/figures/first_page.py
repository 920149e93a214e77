"""Test accuracy at each time step on Fashion-MNIST, trained with LTS (loss of the last step).

Zero, constant and learned (IMP) initial potential; mean and standard deviation over seeds."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.figures import SERIES, WIDE, MissingData, footnote
from snn_repro.registry import FIGURES
from studies import initial_state as study

STATES = {"zero": "zero", "constant": "constant", "imp": "learned (IMP)"}


@FIGURES.register("first_page")
def draw(results: Path) -> Figure:
    try:
        groups, _ = study.collected(results)
    except UserError as error:
        raise MissingData(str(error)) from None
    cells = study.cells(groups, "fashion_mnist")
    if missing := [state for state in STATES if (state, "lts") not in cells]:
        raise MissingData(f"no LTS run of the initial states {', '.join(missing)} was collected")
    figure, seeds = Figure(figsize=(WIDE, 2.7)), set()
    axes = figure.subplots()
    for (state, words), look in zip(STATES.items(), SERIES, strict=False):
        values = 100 * np.array([run["acc_step"] for run in cells[state, "lts"].runs])
        t, mean, sd = np.arange(1, values.shape[1] + 1), values.mean(0), values.std(0, ddof=1)
        axes.plot(t, mean, label=words, **look)
        axes.fill_between(t, mean - sd, mean + sd, color=look["color"], alpha=0.15, linewidth=0)
        seeds.add(len(values))
    axes.set(xticks=t, xlabel="time step t", ylabel="test accuracy of step t, %")
    axes.legend(title="initial potential", loc="lower right")
    n = ", ".join(map(str, sorted(seeds)))
    what = f"Fashion-MNIST, LTS, T = 4; mean, band: ± 1 standard deviation over n = {n} seeds"
    footnote(figure, what, runs=(run for state in STATES for run in cells[state, "lts"].runs))
    return figure
