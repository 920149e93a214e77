"""What each initial state changes against starting at zero: mean difference over seeds with its 95 % interval, by loss; the grey
band holds the differences that are too small to matter."""

from pathlib import Path

from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.figures._data import MissingData
from snn_repro.paper.figures._style import footnote, line, new_figure, title
from snn_repro.paper.studies import initial_state as study

SHOWN = ("readout", "first", "area")


def draw(results: Path) -> Figure:
    try:
        groups, _ = study.collected(results)
    except UserError as error:
        raise MissingData(str(error)) from None
    rows = []
    for name, part in study.PARTS.items():
        judged = study.compare(name, part, study.cells(groups, part.dataset))
        rows += [(name, c) for c in judged if c.other == "zero" and c.measure in SHOWN]
    if not rows:
        raise MissingData("no state ran beside zero with two seeds")
    names = list(dict.fromkeys((name, c.state) for name, c in rows))
    figure = new_figure(8.2, 1.0 + 0.27 * len(names))
    for axes, key in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        measure = study.MEASURES[key]
        axes.axvspan(-measure.margin, measure.margin, color="0.9")
        axes.axvline(0, color="0.5", linewidth=0.6)
        for name, c in rows:
            if c.measure == key:
                losses = study.PARTS[name].losses
                at = names.index((name, c.state)) + 0.22 * (losses.index(c.loss) - (len(losses) - 1) / 2)
                look = line(c.loss) | dict(linestyle="none")
                axes.errorbar(c.mean, at, xerr=[[c.mean - c.low], [c.high - c.mean]], elinewidth=1, **look)
        axes.set_xlabel(f"{measure.title},\ndifference in {measure.unit}")
        axes.set_yticks(range(len(names)), [f"{state} ({name})" for name, state in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), map(title, handles), loc="outside upper center", ncols=len(handles))
    n = sorted({c.n for _, c in rows})
    footnote(figure, f"state minus zero, paired over n = {', '.join(map(str, n))} seeds; grey: within the margin")
    return figure
