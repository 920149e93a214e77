"""Test accuracy of each time step's own output for every initial state, one panel per loss.

Mean and standard deviation over seeds."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.figures import SERIES, WIDE, MissingData, footnote, seeds, title
from snn_repro.paper.results import Group
from snn_repro.registry import FIGURES
from studies import initial_state as study


@FIGURES.register("initial_state_steps")
def draw(results: Path) -> Figure:
    try:
        groups, _ = study.collected(results)
    except UserError as error:
        raise MissingData(str(error)) from None
    parts = {name: part for name, part in study.ran(groups).items() if part.states is study.STATES}
    of = {name: study.cells(groups, part.dataset) for name, part in parts.items()}
    shown = list(parts)
    if not shown:
        raise MissingData("no run of the parts static and events was collected")
    figure = Figure(figsize=(WIDE, 0.8 + 1.7 * len(shown)))
    grid = figure.subplots(len(shown), 3, squeeze=False, sharey="row")
    looks = dict(zip(study.STATES, [*SERIES, dict(color="0.45", marker="P", linestyle="--")], strict=True))
    drawn: list[Group] = []
    for row, name in zip(grid, shown, strict=True):
        for axes, loss in zip(row, parts[name].losses, strict=True):
            for state, look in looks.items():
                if (group := of[name].get((state, loss))) is None:
                    continue
                values = 100 * np.array([run["acc_step"] for run in group.runs])
                t, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
                axes.plot(t, mean, label=state, **look)
                if len(values) > 1:
                    sd = values.std(0, ddof=1)
                    axes.fill_between(t, mean - sd, mean + sd, color=look["color"], alpha=0.15, linewidth=0)
                drawn.append(group)
                axes.set_xticks(t)
            n = seeds((state, len(of[name][state, loss].runs)) for state in looks if (state, loss) in of[name])
            axes.set_title(f"{title(loss)}, {n}")
            axes.set_xlabel("time step t")
        row[0].set_ylabel(f"{parts[name].dataset}\naccuracy, %")
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid.flat), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside upper center", ncols=-(-len(labels) // 2))
    what = "accuracy of the output of step t alone; mean, band: ± 1 standard deviation over n seeds"
    footnote(figure, what, runs=(run for group in drawn for run in group.runs))
    return figure
