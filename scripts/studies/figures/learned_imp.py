"""Learned initial membrane potentials (IMP) after training, by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from snn_repro.errors import UserError
from snn_repro.neurons import is_initial_state
from snn_repro.paper.differences import older_note
from snn_repro.paper.figures import SERIES, WIDE, footnote, title
from snn_repro.paper.results import load
from snn_repro.registry import FIGURES
from snn_repro.runs import checkpoint
from studies.figures import PROGRAM, measured, write_data


def imp_of(run_dir: Path) -> dict[str, Any]:
    """Distribution of the trained IMP of each layer, from a run's last checkpoint: percentiles 0..100 and a histogram.

    Raises UserError where the folder is no finished run, or its network has no IMP.
    """
    result = load([run_dir])[0]
    layers = []
    for key, value in checkpoint.load(run_dir / checkpoint.LAST)["model"].items():
        if is_initial_state(key):
            x = value.double().numpy()
            counts, edges = np.histogram(x, bins=40)
            layers.append(dict(
                layer=key.rpartition(".")[0], shape=list(x.shape), mean=round(float(x.mean()), 5), sd=round(float(x.std()), 5),
                percentiles=np.percentile(x, range(101)).round(4).tolist(),
                histogram=dict(low=round(float(edges[0]), 5), high=round(float(edges[-1]), 5), counts=counts.tolist()),
            ))  # fmt: skip
    if not layers:
        raise UserError(f"{run_dir} has no IMP in its checkpoint; give a run with neuron.imp=true")
    return dict(run=f"{result['name']}/seed{result['seed']}", dataset=result["dataset"], model=result["model"],
                loss=result["loss"], neuron=result["neuron"], acc_last=result["acc_last"],
                recipe_hash=result["recipe_hash"], code=result.get("code"), layers=layers)  # fmt: skip


def measure(target: Path, runs: Sequence[Path]) -> None:
    """Write the IMP distributions of trained runs to `target`."""
    if not runs:
        raise UserError("measure=learned_imp needs run=DIR, the folder of a finished run with IMP and its checkpoint")
    measurements = [imp_of(Path(run)) for run in runs]
    names = " ".join(f"run=runs/{item['run']}" for item in measurements)
    what = "trained IMP by layer: percentiles 0..100 and a histogram of 40 bins"
    write_data(target, dict(what=what, command=f"{PROGRAM} measure=learned_imp {names}", runs=measurements))


@FIGURES.register("learned_imp")
def draw(results: Path) -> Figure:
    """One ridge a layer, one panel a run; the grey band is the range that IMP started in."""
    runs = measured(results, "learned_imp", " run=DIR")["runs"]
    deepest = max(len(run["layers"]) for run in runs)
    figure = Figure(figsize=(WIDE, 1.0 + 0.5 * deepest))
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False).flat, runs, strict=True):
        axes.axvspan(*run["neuron"]["imp_init"], color="0.9")
        for i, layer in enumerate(run["layers"]):
            h = layer["histogram"]
            edges = np.linspace(h["low"], h["high"], len(h["counts"]) + 1)
            height = 0.85 * np.array(h["counts"]) / max(h["counts"])
            base = len(run["layers"]) - 1 - i
            axes.stairs(base + height, edges, baseline=base, fill=True, color=SERIES[0]["color"], alpha=0.55)
            axes.stairs(base + height, edges, baseline=base, color="black", linewidth=0.6)
            axes.plot(layer["percentiles"][50], base, marker="^", color="black", markersize=5, clip_on=False)
        names = [f"{layer['layer']}\n{'×'.join(map(str, layer['shape']))}" for layer in run["layers"]]
        axes.set_yticks(np.arange(len(names))[::-1] + 0.3, names)
        axes.set_xlabel("learned initial potential")
        axes.set_title(f"{run['dataset']}, {run['neuron']['name'].upper()}, {title(run['loss'])}")
        axes.locator_params(axis="x", nbins=6)
        axes.set_ylim(-0.15, len(names))
    neurons = ", ".join(f"{sum(int(np.prod(layer['shape'])) for layer in run['layers']):,}" for run in runs)
    what = f"n = 1 trained network a panel; from the left {neurons} neurons; ▲ median; grey band: range at the start"
    footnote(figure, what, older_note(runs, "networks"), runs=runs)
    return figure
