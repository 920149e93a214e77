"""Training loss on a synthetic task: random inputs with random labels.

Each curve is the loss that the network minimises. Read LTS at its last step: its earlier steps are near chance (`acc_step` in
the data)."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.neurons import build_neuron
from snn_repro.paper.differences import older_note
from snn_repro.paper.figures import WIDE, footnote, line
from snn_repro.provenance import code_version
from snn_repro.registry import FIGURES
from studies.figures import PROGRAM, measured, write_data

TIMESTEPS = (1, 2, 4, 6)
LOSSES = ("sdt", "tet", "lts")
KEEP_EVERY = 5  # epochs between two committed points of a curve
SEED = 2024


def train(timesteps: int, loss: str, epochs: int = 1000, samples: int = 1024) -> dict[str, Any]:
    """Train the MLP 16-256-256-256-16 of IF neurons on random labels of random inputs, full batch, and follow its loss.

    No bias, soft reset, Sigmoid(4), Adam at 1e-3; the input [samples, 16] uniform in 0..1, seen at every step; 16
    classes. All curves share weights and data. Returns the loss every KEEP_EVERY epochs, the first epoch (from 0) with
    a loss of at most 1.0, 0.5 and 0.1, the last loss, and the training accuracy at each time step in the end.
    """
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for inputs in (16, 256, 256):
        layers += [nn.Linear(inputs, 256, bias=False), build_neuron("if", surrogate="sigmoid")]
    model = nn.Sequential(*layers, nn.Linear(256, 16, bias=False))
    x, labels = torch.rand(samples, 16), torch.randint(16, (samples,))
    x = x.expand(timesteps, samples, 16)
    objective = build_loss(loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(epochs):
        value = objective(model(x), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    with torch.no_grad():
        right = (model(x).argmax(-1) == labels).float().mean(1)
    below = {str(level): next((e for e, v in enumerate(losses) if v <= level), None) for level in (1.0, 0.5, 0.1)}
    return dict(
        timesteps=timesteps, loss=loss, epochs=epochs, first_at_most=below, last=round(losses[-1], 4),
        acc_step=[round(a, 4) for a in right.tolist()], every=KEEP_EVERY, values=[round(v, 4) for v in losses[::KEEP_EVERY]],
    )  # fmt: skip


def measure(target: Path, runs: Sequence[Path] = (), epochs: int = 1000, say: Callable[[str], None] = print) -> None:
    """Train all curves on one thread (minutes) and write them to `target`; at T = 1 the three losses are one."""
    if runs:
        raise UserError("measure=convergence trains networks of its own; leave run= out")
    torch.set_num_threads(1)
    curves: list[dict[str, Any]] = []
    started = time.process_time()
    for steps in TIMESTEPS:
        for loss in LOSSES:
            if steps == 1 and curves:
                curves.append({**curves[0], "loss": loss})
                continue
            curves.append(train(steps, loss, epochs))
            say(f"T={steps} {loss}: {curves[-1]['first_at_most']}, {time.process_time() - started:.0f} s")
    write_data(target, dict(
        what="loss on 1024 random inputs with random labels; MLP 16-256-256-256-16 of IF neurons, full batch, Adam 1e-3",
        command=f"{PROGRAM} measure=convergence", neuron="if", model="mlp", seed=SEED,
        torch=torch.__version__.split("+")[0], code=code_version(), cpu_seconds=round(time.process_time() - started), curves=curves,
    ))  # fmt: skip


@FIGURES.register("convergence")
def draw(results: Path) -> Figure:
    return draw_curves(measured(results, "convergence"))


def draw_curves(data: dict[str, Any]) -> Figure:
    """One panel a T: each curve is the loss that this training minimises. Where curves meet, the lower one is wider."""
    figure = Figure(figsize=(WIDE, 4.2))
    for axes, steps in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, TIMESTEPS, strict=True):
        for i, curve in enumerate(c for c in data["curves"] if c["timesteps"] == steps):
            epochs = np.arange(len(curve["values"])) * curve["every"]
            apart = len(epochs) // 9 or 1
            look = line(curve["loss"]) | dict(linewidth=(4.2, 2.4, 1.1)[i % 3], linestyle="-", markersize=5)
            axes.plot(
                epochs, curve["values"], markevery=(apart * (i % 3) // 3, apart), alpha=(0.45, 0.7, 1)[i % 3],
                markeredgecolor="white", markeredgewidth=0.6, **look,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(f"T = {steps}" + (" (the three losses are one)" if steps == 1 else ""))
    for axes in figure.axes[2:]:
        axes.set_xlabel("epoch")
    for axes in figure.axes[::2]:
        axes.set_ylabel("training loss, random labels")
    figure.axes[1].legend()
    what = "random inputs with random labels: the network can only memorise; n = 1 training a curve; all share initial weights "
    what += "and data; where curves meet, the one beneath is wider"
    footnote(figure, what, older_note([data] * len(data["curves"]), "curves"), runs=[data])
    return figure
