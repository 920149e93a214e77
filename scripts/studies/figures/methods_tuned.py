"""Difference at the readout of each method from the baseline, each with its own learning rate.

Mean over seeds with simultaneous 95 % intervals (Dunnett). Differences within the grey band are below the margin: too small to matter."""

from pathlib import Path

from matplotlib.figure import Figure

from snn_repro.paper.figures import SERIES, WIDE, MissingData, footnote, seeds
from snn_repro.paper.statistics import Against
from snn_repro.registry import FIGURES
from studies import methods_tuned as study
from studies.methods import SIGNS, said

MEASURE = study.MEASURES[0]


@FIGURES.register("methods_tuned")
def draw(results: Path) -> Figure:
    runs = study.collected(results)
    finals = {name: study.final(name, runs) for name in study.PARTS}
    judged = {name: study.judge(found, {}) for name, found in finals.items()}
    shown = {name: (n, of[MEASURE.title]) for name, (n, of) in judged.items() if of}
    if not shown:
        raise MissingData(
            "no method ran beside its baseline with two seeds; use `python scripts/study.py methods_tuned`"
        )
    heights = [1 + len(verdicts) for _, verdicts in shown.values()]
    figure = Figure(figsize=(WIDE, 1.2 + 0.125 * sum(heights)))
    looks = dict(zip(SIGNS, (style | dict(linestyle="none") for style in SERIES), strict=False))
    grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, (name, (common, verdicts)) in zip(grid.flat, shown.items(), strict=True):
        part, rows = study.PARTS[name], sorted(verdicts, key=lambda cell: -verdicts[cell].found.mean)
        axes.axvspan(-MEASURE.margin, MEASURE.margin, color="0.9")
        axes.axvline(0, color="0.5", linewidth=0.6)
        for at, cell in enumerate(rows):
            found, word = verdicts[cell].found, verdicts[cell].word
            assert isinstance(found, Against)
            error = [[found.mean - found.low], [found.high - found.mean]]
            axes.errorbar(found.mean, at, xerr=error, elinewidth=1, label=word, **looks[word])
        axes.set_yticks(range(len(rows)), map(said, rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        interim = "; interim" * part.interim(finals[name], common)
        n = seeds([(name, len(common))])
        axes.set_title(f"{part.dataset}, minus {part.base.neuron} with {part.base.loss}, {n}{interim}", loc="left")
    axes.set_xlabel("difference of the test accuracy at the readout, points")
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    what = "choice minus baseline, mean and 95 % interval, simultaneous over the choices, n seeds as blocks; grey band: smaller than the margin"
    drawn = (
        finals[name][cell][seed] for name, (n, rows) in shown.items() for cell in (study.BASELINE, *rows) for seed in n
    )
    footnote(figure, what, runs=drawn)
    return figure
