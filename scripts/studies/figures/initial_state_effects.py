"""Difference of each initial state from zero, by loss.

Mean over seeds with its 95 % interval. Differences within the grey band are below the margin: too small to matter."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.figures import WIDE, MissingData, footnote, line, seeds, title
from snn_repro.registry import FIGURES
from studies import initial_state as study

SHOWN = ("readout", "first", "area")


@FIGURES.register("initial_state_effects")
def draw(results: Path) -> Figure:
    try:
        groups, _ = study.collected(results)
    except UserError as error:
        raise MissingData(str(error)) from None
    by_part: dict[str, list[study.Comparison]] = {}
    parts = study.ran(groups)
    for name, part in parts.items():
        judged = study.compare(name, part, study.cells(groups, part.dataset, part.model))
        shown = [c for c in judged if c.other == "zero" and c.measure in SHOWN]
        enough = [c for c in shown if c.kind != "too few seeds"]
        if shown:
            by_part[name] = enough or shown  # intervals of two seeds would hide the others
    if not by_part:
        raise MissingData("no state ran beside zero with two seeds")
    states = {
        name: [s for s in parts[name].states if any(c.state == s for c in rows)] for name, rows in by_part.items()
    }
    heights = [1.5 + len(those) for those in states.values()]
    figure = Figure(figsize=(WIDE, 0.9 + 0.29 * sum(heights)))
    grid = figure.subplots(len(states), len(SHOWN), sharey="row", squeeze=False, height_ratios=heights)
    for panels, (name, rows) in zip(grid, by_part.items(), strict=True):
        losses = parts[name].losses
        for axes, key in zip(panels, SHOWN, strict=True):
            measure = study.MEASURES[key]
            axes.axvspan(-measure.margin, measure.margin, color="0.9")
            axes.axvline(0, color="0.5", linewidth=0.6)
            for c in rows:
                if c.measure == key:
                    at = states[name].index(c.state) + 0.22 * (losses.index(c.loss) - (len(losses) - 1) / 2)
                    look = line(c.loss) | dict(linestyle="none")
                    axes.errorbar(c.mean, at, xerr=[[c.mean - c.low], [c.high - c.mean]], elinewidth=1, **look)
            axes.locator_params(axis="x", nbins=4)
            axes.set_yticks(range(len(states[name])), states[name])
            axes.set_ylim(len(states[name]) - 0.5, -0.5)
        n = seeds((title(c.loss), c.n) for c in rows)
        panels[0].set_title(f"{name}: {parts[name].dataset}, {n}", loc="left")
    for axes, key in zip(grid[-1], SHOWN, strict=True):
        axes.set_xlabel(textwrap.fill(f"{study.MEASURES[key].title}, {study.MEASURES[key].unit}", 24))
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), map(title, handles), loc="outside upper center", ncols=len(handles))
    drawn = {
        (parts[name].dataset, parts[name].model, s, c.loss)
        for name, rows in by_part.items()
        for c in rows
        for s in (c.state, "zero")
    }
    runs = (r for d, model, s, loss in drawn for r in study.cells(groups, d, model)[s, loss].runs)
    what = "state minus zero, mean and 95 % interval, paired over n seeds; grey band: smaller than the margin"
    footnote(figure, what, runs=runs)
    return figure
