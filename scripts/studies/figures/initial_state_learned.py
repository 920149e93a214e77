"""Learned initial potentials (IMP) after training, by layer and loss.

Median, quartiles, and 5th to 95th percentile over neurons."""

from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from snn_repro.paper.differences import older_note
from snn_repro.paper.figures import MissingData, footnote, line, title
from snn_repro.registry import FIGURES
from studies import initial_state as study

STARTS = {"imp": (0.4, 0.6), "imp_from_zero": (0.0, 0.0)}


@FIGURES.register("initial_state_learned")
def draw(results: Path) -> Figure:
    found = [e for e in study.probes(results) if e.get("layers")]
    if not found:
        raise MissingData(
            "no learned potentials were measured; `python scripts/study.py initial_state measure` does that"
        )
    panels = sorted({(e["dataset"], e["state"]) for e in found})
    figure = Figure(figsize=(0.6 + 2.6 * len(panels), 3.0))
    for axes, (dataset, state) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        mine = [e for e in found if (e["dataset"], e["state"]) == (dataset, state)]
        losses, layers = sorted({e["loss"] for e in mine}), list(mine[0]["layers"])
        axes.axhspan(*STARTS[state], color="0.9")
        for i, loss in enumerate(losses):
            runs = [e["layers"] for e in mine if e["loss"] == loss]
            for k, layer in enumerate(layers):
                low, q1, median, q3, high = (fmean(run[layer][p // 5] for run in runs) for p in (5, 25, 50, 75, 95))
                x, look = k + 0.22 * (i - (len(losses) - 1) / 2), line(loss)
                axes.vlines(x, low, high, color=look["color"], linewidth=0.8)
                axes.vlines(x, q1, q3, color=look["color"], linewidth=3)
                label = title(loss) if k == 0 else None
                axes.plot(x, median, marker=look["marker"], color=look["color"], linestyle="none", label=label)
        axes.set_xticks(range(len(layers)), layers)
        axes.set_title(f"{dataset}, {state}", fontsize=7)
        axes.legend(fontsize=6)
    figure.axes[0].set_ylabel("learned initial membrane potential")
    n = sorted(
        {
            sum((e["dataset"], e["state"], e["loss"]) == key for e in found)
            for key in {(e["dataset"], e["state"], e["loss"]) for e in found}
        }
    )
    footnote(
        figure,
        f"percentiles averaged over n = {', '.join(map(str, n))} seeds; grey: range at the start; threshold 1",
        older_note(found, "networks"),
    )
    return figure
