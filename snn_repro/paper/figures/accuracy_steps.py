"""Test accuracy at each time step, mean ± standard deviation over seeds.

Each row of panels is a data set and a training length; each panel is one loss, with the row's other losses in grey.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from snn_repro.paper.differences import remarks
from snn_repro.paper.figures import WIDE, MissingData, finished_runs, footnote, line, rank, title
from snn_repro.paper.results import Group
from snn_repro.registry import FIGURES

ROW = ("dataset", "model", "timesteps", "n_train", "epochs", "split_sha256")  # equal within one row of panels


@FIGURES.register("accuracy_steps")
def draw(results: Path) -> Figure:
    """The figure of the collected runs in `results`."""
    return draw_groups(finished_runs(results))


def draw_groups(groups: Sequence[Group]) -> Figure:
    """One row of panels per ROW, one panel per loss, with and without IMP."""
    rows: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        if group.steps():  # empty if outputs are not causal; the remarks say so
            rows.setdefault(tuple(group.first[key] for key in ROW), []).append(group)
    if not rows:
        raise MissingData("no run has accuracy per time step, because in all of them outputs depend on later steps")
    columns = max(len({g.first["loss"] for g in members}) for members in rows.values())
    figure = Figure(figsize=(WIDE, 0.5 + 1.4 * len(rows)))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    names = [key[:2] for key in rows]
    for row, (key, members) in zip(grid, sorted(rows.items()), strict=True):
        dataset, model, steps, n_train, epochs, _ = key
        which = f", {model}" if names.count((dataset, model)) == 1 else f"\n{n_train:,} × {epochs} epochs"
        losses = sorted({g.first["loss"] for g in members}, key=lambda loss: (rank(loss), loss))
        t = np.arange(1, steps + 1)
        for axes, loss in zip(row, losses, strict=False):
            for group in members:
                if group.first["loss"] != loss:
                    axes.plot(t, group.steps(), color="0.85", linewidth=0.8, zorder=0)
            mine = sorted((g for g in members if g.first["loss"] == loss), key=lambda g: g.first["neuron"]["imp"])
            kinds = [g.first["neuron"]["imp"] for g in mine]
            for i, group in enumerate(mine):
                values = 100 * np.array([run["acc_step"] for run in group.runs])
                spread = values.std(0, ddof=1) if len(values) > 1 else None
                style = line(loss, kinds[i])
                if kinds.count(kinds[i]) > 1:
                    style["label"] = textwrap.fill(group.label, 20)
                shift = 0.016 * steps * (2 * i - len(mine) + 1)  # points of equal height lie side by side
                axes.errorbar(t + shift, values.mean(0), spread, capsize=2, elinewidth=0.8, **style)
            axes.set_title(f"{title(loss)}, n = {', '.join(map(str, sorted({len(g.runs) for g in mine})))}")
            axes.set_xticks(t)
            axes.legend()
        for axes in row[len(losses) :]:
            axes.set_axis_off()
        row[0].set_ylabel(f"{dataset}{which}\naccuracy, %")
    for axes in grid[-1]:
        axes.set_xlabel("time step t")
    what = "accuracy of the output of step t alone; mean, bars: ± 1 standard deviation over n seeds; grey: other losses of the row"
    footnote(figure, what, *remarks(groups), runs=(run for members in rows.values() for g in members for run in g.runs))
    return figure
