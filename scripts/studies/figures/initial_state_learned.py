"""Learned initial potentials (IMP) after training, by layer and loss.

Median, quartiles, and 5th to 95th percentile over neurons."""

import contextlib
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.paper.differences import older_note
from snn_repro.paper.figures import WIDE, MissingData, footnote, line, seeds, title
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
    figure = Figure(figsize=(WIDE, 2.7))
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
        n = seeds((title(loss), sum(e["loss"] == loss for e in mine)) for loss in losses)
        axes.set_title(f"{dataset}\n{state}\n{n}")
    handles = {text: h for axes in figure.axes for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    figure.axes[0].set_ylabel("learned initial membrane potential")
    what = "median, quartiles (thick), 5th to 95th percentile (thin), averaged over n seeds; grey band: range at the start; threshold 1"
    footnote(figure, what, older_note(found, "networks"), runs=[_run(results, e) for e in found])
    return figure


def _run(results: Path, probe: dict[str, Any]) -> dict[str, Any]:
    """The code of a measured network, and the hash of its run if that is collected."""
    with contextlib.suppress(UserError, KeyError):
        group = study.cells(study.collected(results)[0], probe["dataset"])[probe["state"], probe["loss"]]
        return {"code": probe.get("code"), "recipe_hash": group.first["recipe_hash"]}
    return {"code": probe.get("code"), "run": f"{probe['dataset']}/{probe['state']}/{probe['loss']}"}
