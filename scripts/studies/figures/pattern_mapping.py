"""Output patterns that each of the 16 input patterns of four steps can produce.

A dark cell: the input can produce the output, at firing for h ≥ V_th; the count for h > V_th is given beside it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from snn_repro.neurons import NEURONS, build_neuron
from snn_repro.paper.differences import older_note
from snn_repro.paper.figures import WIDE, MissingData, footnote, title
from snn_repro.registry import FIGURES
from studies.figures import measured

WEIGHTS = np.linspace(0, 1, 9)
MAPPINGS: dict[str, tuple[Any, np.ndarray]] = {
    "IMP 0": ([0.0], np.linspace(0, 1, 17)),
    "IMP 0.25": ([0.25], np.linspace(0, 1, 17)),
    "IMP −1 .. 1 (9 values)": (np.linspace(-1, 1, 9), WEIGHTS),
}  # title -> (initial potentials, weights)


def reached(imps: Any, weights: Any, name: str = "if", timesteps: int = 4, **overrides: Any) -> np.ndarray:
    """Which output patterns each binary input pattern can produce.

    Every input of `timesteps` bits (first step = most significant bit) times every weight, from every initial
    potential, in float32. Returns bool [2^T outputs, 2^T inputs]; `overrides` are those of `build_neuron`.
    """
    n, powers = 2**timesteps, 2 ** torch.arange(timesteps - 1, -1, -1)
    bits = (torch.arange(n)[None] // powers[:, None]) % 2  # [T, inputs]
    w, v = torch.tensor(weights, dtype=torch.float32), torch.tensor(imps, dtype=torch.float32)
    neuron: Any = build_neuron(name, imp=True, state_shape=(len(v), len(w)), **overrides)
    with torch.no_grad():
        neuron.imp.copy_(v[:, None].expand(len(v), len(w)))
        out = neuron((bits[:, :, None, None] * w).expand(timesteps, n, len(v), len(w)))
    codes = torch.einsum("tbiw,t->biw", out, powers.to(out.dtype)).long().flatten(1)  # [inputs, grid]
    cells = np.zeros((n, n), bool)
    for i, row in enumerate(codes):
        cells[row.unique().numpy(), i] = True
    return cells


def trained(run: dict[str, Any], fire_at: str) -> np.ndarray:
    """The map of a trained network's own neurons: initial potentials from the percentiles of all its layers.

    Weights go up to where one step adds 1 to the potential, as it does for an IF neuron.
    """
    imps = np.concatenate([layer["percentiles"] for layer in run["layers"]])
    name = run["neuron"]["name"]
    others = {"fire_at", "initial"}  # the potentials to start from are given here
    own = {k: run["neuron"][k] for k in NEURONS[name].settings.keys() & run["neuron"].keys() - others}
    neuron: Any = build_neuron(name, **own)
    with torch.no_grad():
        added = float(neuron.charge(torch.zeros(()), torch.ones(())))
    return reached(imps, WEIGHTS / added, name, fire_at=fire_at, **own)


@FIGURES.register("pattern_mapping")
def draw(results: Path) -> Figure:
    """16x16 maps of input to output patterns; one more panel for each trained network."""
    runs: Sequence[dict[str, Any]] = ()
    try:
        runs = measured(results, "learned_imp")["runs"]
    except MissingData:
        pass
    panels: list[tuple[str, str, Callable[..., np.ndarray]]] = [
        (name, "IF, soft reset", partial(reached, *grid)) for name, grid in MAPPINGS.items()
    ]
    for run in runs:
        neuron = f"{run['neuron']['name'].upper()}, {run['neuron']['reset']} reset"
        panels.append((f"{run['dataset']}, {title(run['loss'])}", f"{neuron}, IMP trained", partial(trained, run)))
    columns, rows = 3, -(-len(panels) // 3)
    figure = Figure(figsize=(WIDE, 0.5 + 2.2 * rows))
    patterns = [0, 5, 10, 15], [f"{i:04b}" for i in (0, 5, 10, 15)]
    grid = figure.subplots(rows, columns)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, neuron, mapping) in zip(grid.flat, panels, strict=False):
        cells, strict = mapping(fire_at="ge"), mapping(fire_at="gt")
        axes.imshow(cells, cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest", origin="lower")
        axes.set_xticks(np.arange(17) - 0.5, minor=True)
        axes.set_yticks(np.arange(17) - 0.5, minor=True)
        axes.grid(which="minor", color="0.8", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
        axes.set_xticks(*patterns)
        axes.set_yticks(*patterns)
        axes.set_title(f"{name}\n{neuron}\n{cells.sum()} dark cells (≥), {strict.sum()} (>)")
        axes.set_xlabel("input pattern")
    for axes in grid.flat[::columns]:
        axes.set_ylabel("output pattern")
    trials = [16 * len(imps) * len(weights) for imps, weights in MAPPINGS.values()]
    trials += [16 * len(WEIGHTS) * sum(len(layer["percentiles"]) for layer in run["layers"]) for run in runs]
    what = f"n, by panel: {', '.join(f'{n:,}' for n in trials)} trials (input × weight × IMP), all of them"
    what += "; trained: one network each, the percentiles of its layers' IMP" if runs else ""
    dark = "dark: some trial gives this output pattern for this input pattern; white: none does"
    footnote(figure, dark, what, older_note(runs, "trained networks"), runs=runs)
    return figure
