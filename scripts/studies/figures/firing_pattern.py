"""Spikes of seven IF neurons under varied input and under varied initial potential.

In float32, as here, twelve additions of 1/12 stay below 1, so panel 2 fires one step later than in exact arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from snn_repro.neurons import build_neuron
from snn_repro.paper.figures import WIDE, footnote
from snn_repro.registry import FIGURES

TIMESTEPS = 32


def panels(dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Seven IF neurons, soft reset, T = 32: first the input varies, then the initial potential.

    Panel 1: no IMP, constant input 1/12 .. 1/6, less 1e-7. Panel 2: input 1/12, IMP 0/12 .. 6/12.
    Returns two dicts: spikes [T, 7], v [T, 7] after each reset, labels [7].
    """
    rising = torch.tensor([1 / (12 - k) - 1e-7 for k in range(7)], dtype=dtype)
    imps = torch.tensor([k / 12 for k in range(7)], dtype=dtype)
    same = torch.full((7,), 1 / 12, dtype=dtype)
    return [
        simulate(rising, None) | dict(labels=[f"1/{12 - k}" for k in range(7)]),
        simulate(same, imps) | dict(labels=[f"{k}/12" for k in range(7)]),
    ]


def simulate(current: Tensor, imp: Tensor | None) -> dict[str, np.ndarray]:
    """Spikes and potentials [T, n] of IF neurons under constant currents [n] from initial potentials [n]."""
    neuron: Any = build_neuron("if", imp=imp is not None, state_shape=tuple(current.shape)).to(current.dtype)
    neuron.store_v_seq = True
    with torch.no_grad():
        if imp is not None:
            neuron.imp.copy_(imp)
        spikes = neuron(current.expand(TIMESTEPS, 1, *current.shape))
    return dict(spikes=spikes[:, 0].numpy(), v=neuron.v_seq[:, 0].numpy())


@FIGURES.register("firing_pattern")
def draw(results: Path) -> Figure:
    """Heat maps of the potential after each step, a mark where a spike was fired."""
    figure = Figure(figsize=(WIDE, 3.8))
    titles = ("no IMP, constant input (less 1e-7)", "constant input 1/12, initial membrane potential (IMP)")
    what = ("input", "IMP")
    for axes, panel, title, label in zip(figure.subplots(2, 1, sharex=True), panels(), titles, what, strict=True):
        image = axes.imshow(panel["v"].T, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        t, k = np.nonzero(panel["spikes"])
        axes.scatter(t, k, marker="o", s=16, facecolor="white", edgecolor="black", linewidth=0.8)
        axes.set_yticks(range(7), panel["labels"])
        axes.set_title(title)
        axes.set_ylabel(label)
        figure.colorbar(image, ax=axes, label="v after step", pad=0.02)
    axes.set_xlabel("time step (from 0); circles: spikes")
    footnote(figure, "n = 7 neurons a panel, computed step by step: nothing is drawn at random")
    return figure
