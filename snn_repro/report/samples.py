"""Section with the input, spikes and outputs of a few test samples over time."""

import base64
import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor

from snn_repro.config import Config, hashed
from snn_repro.data import build_data
from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.report._page import NothingToShow, Section, register_section, text
from snn_repro.report._read import Found, Run
from snn_repro.trained import TrainedRun
from snn_repro.trained.evaluate import running_scores

FIRST = 64  # samples to choose from
RIGHT, WRONG = 3, 3  # samples shown that the first network classifies correctly, and wrongly
NEURONS, LAYERS = 24, 8  # in the raster: neurons per layer and layers per network, evenly spaced
CLASSES = 10  # classes whose outputs are shown: the label and the largest
PIXELS = 64  # longer side of a frame; larger frames are averaged


@register_section("samples", "Samples over time", 8)
def samples(found: Found) -> Section:
    """Input, spikes of some neurons, and outputs over time for a few test samples.

    Only for runs with a checkpoint whose data are on this machine.
    """
    rows: dict[int, dict[str, Any]] = {}
    frames: dict[str, dict[str, Any]] = {}
    inputs: dict[str, tuple[Tensor, Tensor, bool]] = {}
    chosen: dict[str, list[int]] = {}
    notes = []
    for row, run, network in found.trained():
        if isinstance(network, str):
            notes.append(network)
            continue
        data = _data_of(network.config)
        try:
            network.facts()
            seen = _look(run, network, *(inputs.get(data) or inputs.setdefault(data, _inputs(network.config))))
        except UserError as error:
            notes.append(f"{row.label}: {' '.join(str(error).split())}")
            continue
        places = chosen.setdefault(data, _choose(seen))
        prefix = f"{[*inputs].index(data)}/"
        for i in places:
            frames.setdefault(f"{prefix}{i}", _picture(seen["x"], i, seen["static"]))
        several = [_sample(seen, i, f"{prefix}{i}") for i in places]
        rows[row.id] = dict(seed=run.seed, readout=seen["readout"], samples=several)
    if not rows:
        raise NothingToShow("; ".join(notes) or "no run has a checkpoint here (collected results have none)")
    return Section(html=text(notes), data={"rows": rows, "frames": frames})


def _choose(seen: dict[str, Any]) -> list[int]:
    """Indices of some misclassified and some correctly classified samples."""
    is_right = seen["so_far"][-1] == seen["labels"]
    right, wrong = is_right.nonzero()[0].tolist(), (~is_right).nonzero()[0].tolist()
    return wrong[: WRONG + max(0, RIGHT - len(right))] + right[: RIGHT + max(0, WRONG - len(wrong))]


def _look(run: Run, network: TrainedRun, x: Tensor, labels: Tensor, static: bool) -> dict[str, Any]:
    """Run the network on the first test samples.

    Returns x [N, T or 1, C, H, W], logits [T, N, K], labels [N], spikes {layer: [T, N, n]}, readout (its name), and
    so_far [T, N], the prediction from the outputs up to each step.
    """
    spikes: dict[str, Tensor] = {}

    def keep(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        counts = module.counts(output) if hasattr(module, "counts") else output
        flat = counts.detach().flatten(2)  # [T, N, neurons]
        spikes[name] = flat[:, :, torch.linspace(0, flat.shape[2] - 1, min(NEURONS, flat.shape[2])).long()]

    layers = [(name, m) for name, m in network.model.named_modules() if isinstance(m, BaseNode)]
    with ExitStack() as stack, torch.no_grad():
        for i in torch.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).long().tolist():
            stack.enter_context(layers[i][1].register_forward_hook(partial(keep, layers[i][0])))
        logits = network.model(x).float()
    loss = build_loss(**run.config["loss"])
    return dict(
        static=static, x=(x[None] if static else x).transpose(0, 1).numpy(), logits=logits.numpy(),
        labels=labels.numpy(), spikes={name: s.numpy() for name, s in spikes.items()}, readout=loss.readout_name,
        so_far=running_scores(loss, logits).argmax(-1).numpy(),
    )  # fmt: skip


def _data_of(config: Config) -> str:
    """Key of the data: networks with the same key are shown the same samples."""
    mine = {k: v for k, v in hashed(config).items() if k.startswith("dataset.")}
    return repr((sorted(mine.items()), config.timesteps, config.data_dir, config.cache_dir))


def _inputs(config: Config) -> tuple[Tensor, Tensor, bool]:
    """Return the first test samples as network input, their labels, and whether they are static images."""
    config = copy.deepcopy(config)
    config.recipe.eval_batch_size, config.dataset.workers = FIRST, 0
    data = build_data(config)
    return *next(iter(data.test.epoch(0))), data.static


def _sample(seen: dict[str, Any], i: int, frames: str) -> dict[str, Any]:
    logits, label = seen["logits"][:, i], int(seen["labels"][i])
    largest = [int(k) for k in logits.max(0).argsort()[::-1] if k != label][: CLASSES - 1]
    classes = sorted([label, *largest])
    return dict(
        index=i, label=label, classes=classes, logits=logits[:, classes].tolist(), frames=frames,
        so_far=seen["so_far"][:, i].tolist(),
        spikes=[
            dict(layer=name, neurons=["".join(str(min(9, int(n))) for n in neuron) for neuron in s[:, i].T])
            for name, s in seen["spikes"].items()
        ],
    )  # fmt: skip


def _picture(x: np.ndarray, i: int, static: bool) -> dict[str, Any]:
    """Encode a sample [T, C, H, W] as bytes: images from their minimum to maximum, event counts from 0 to maximum."""
    frames = x[i].astype(np.float32)
    if (factor := -(-max(frames.shape[-2:]) // PIXELS)) > 1:
        t, c, h, w = frames.shape
        h, w = h // factor * factor, w // factor * factor
        frames = frames[:, :, :h, :w].reshape(t, c, h // factor, factor, w // factor, factor).mean((3, 5))
    low = frames.min((0, 2, 3), keepdims=True) if static else 0
    high = (frames - low).max((0, 2, 3) if static else None, keepdims=True)
    scaled = np.round(255 * (frames - low) / np.where(high > 0, high, 1)).astype(np.uint8)
    return dict(shape=list(scaled.shape), bytes=base64.b64encode(scaled.tobytes()).decode(), events=not static)
