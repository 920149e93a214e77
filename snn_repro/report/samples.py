"""What a trained network answers as time goes on, for a few test samples: its input, the spikes of some neurons of each layer, and
the output of every step. Of runs without a checkpoint or data here, the outputs alone, as predictions.npz holds them."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from snn_repro.errors import UserError
from snn_repro.registry import SECTIONS
from snn_repro.report._networks import trained
from snn_repro.report._page import NothingToShow, Section, text
from snn_repro.report._read import Found, Run
from snn_repro.runs.folder import PREDICTIONS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from snn_repro.config import Config
    from snn_repro.trained import TrainedRun

TITLE = "Samples over time"
ORDER = 8

FIRST = 64  # samples that are chosen from: three that the first network gets wrong, three that it gets right
RIGHT, WRONG = 3, 3
NEURONS, LAYERS = 24, 8  # in the raster: of a layer, of a network, spread evenly
CLASSES = 10  # whose outputs are kept: the label's and the largest
PIXELS = 64  # of a frame's longer side: larger frames are averaged
ROWS, LARGEST = 40, 50_000_000  # whose predictions are read, and bytes of such a file, which must be read whole


@SECTIONS.register("samples")
def content(found: Found) -> Section:
    rows: dict[int, dict[str, Any]] = {}
    frames: dict[str, dict[str, Any]] = {}
    chosen: dict[str, list[int]] = {}
    notes = []
    for row, run, network in trained(found, lambda row: True):
        if isinstance(network, str):
            continue
        try:
            seen = _look(run, network)
        except UserError as error:
            notes.append(f"{row.label}, without input and spikes: {' '.join(str(error).split())}")
            continue
        places = chosen.setdefault(seen["data"], _choose(seen))
        for i in places:
            frames.setdefault(f"{seen['data']}/{i}", _picture(seen["x"], i, seen["static"]))
        rows[row.id] = _row(run, seen, places, f"{seen['data']}/")
    for row in found.rows:
        with_answers = next((r for r in row.runs if (r.folder / PREDICTIONS).exists()), None)
        if row.id in rows or with_answers is None or len(rows) >= ROWS:
            continue
        file = with_answers.folder / PREDICTIONS
        if file.stat().st_size > LARGEST:
            notes.append(f"{file} is larger than {LARGEST // 10**6} MB and was not read")
            continue
        try:
            seen = _predictions(with_answers)
        except UserError as error:
            notes.append(f"{row.label}: {' '.join(str(error).split())}")
            continue
        except Exception as error:  # zip, shapes, keys: whatever a foreign file can be
            why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            notes.append(f"{file} is damaged ({why}); run it again with force=true")
            continue
        rows[row.id] = _row(with_answers, seen, _choose(seen))
    if not rows:
        raise NothingToShow(
            "; ".join(notes) or "no run has a checkpoint or predictions here (collected results are without)"
        )
    return Section(html=text(notes), data={"rows": rows, "frames": frames})


def _predictions(run: Run) -> dict[str, Any]:
    """Logits [T, N, K], labels [N] and answers of the first samples."""
    import numpy as np

    with np.load(run.folder / PREDICTIONS, allow_pickle=False) as file:
        logits, labels = file["logits"][:FIRST].astype(np.float32).transpose(1, 0, 2), file["label"][:FIRST]
    return dict(logits=logits, labels=labels, spikes={}) | _answers(run, logits)


def _answers(run: Run, logits: np.ndarray) -> dict[str, Any]:
    """`readout`, the name of what the loss reads, and `so_far` [T, N], its answer at every step."""
    import torch

    from snn_repro.losses import build_loss
    from snn_repro.trained.evaluate import running_scores

    loss = build_loss(**run.config["loss"])
    return dict(readout=loss.readout_name, so_far=running_scores(loss, torch.from_numpy(logits)).argmax(-1).numpy())


def _choose(seen: dict[str, Any]) -> list[int]:
    """Places of some samples that are answered wrongly, and of some that are answered rightly."""
    is_right = seen["so_far"][-1] == seen["labels"]
    right, wrong = is_right.nonzero()[0].tolist(), (~is_right).nonzero()[0].tolist()
    return wrong[: WRONG + max(0, RIGHT - len(right))] + right[: RIGHT + max(0, WRONG - len(wrong))]


def _row(run: Run, seen: dict[str, Any], places: list[int], frames: str | None = None) -> dict[str, Any]:
    samples = [_sample(seen, i, frames and f"{frames}{i}") for i in places]
    return dict(seed=run.seed, readout=seen["readout"], samples=samples)


def _look(run: Run, network: TrainedRun) -> dict[str, Any]:
    """Answers and spikes of the first test samples: `x` [N, T or 1, C, H, W], `logits` [T, N, K], `labels` [N], `spikes` {layer: [T, N, n]}."""
    import torch
    from spikingjelly.activation_based.neuron import BaseNode

    config = network.config
    network.facts()
    x, labels, static = _inputs(_data_key(config), _Unhashed(config))
    spikes: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            counts = module.counts(output) if hasattr(module, "counts") else output
            flat = counts.detach().flatten(2)  # [T, N, neurons]
            spikes[name] = flat[:, :, torch.linspace(0, flat.shape[2] - 1, min(NEURONS, flat.shape[2])).long()]

        return hook

    layers = [(name, m) for name, m in network.model.named_modules() if isinstance(m, BaseNode)]
    shown = [layers[i] for i in torch.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).long().tolist()]
    hooks = [module.register_forward_hook(keep(name)) for name, module in shown]
    try:
        with torch.no_grad():
            logits = network.model(x).float().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return dict(data=_data_key(config), static=static, x=(x[None] if static else x).transpose(0, 1).numpy(), logits=logits,
                labels=labels.numpy(), spikes={name: s.numpy() for name, s in spikes.items()}) | _answers(run, logits)  # fmt: skip


def _data_key(config: Config) -> str:
    from snn_repro.config import hashed

    mine = {k: v for k, v in hashed(config).items() if k.startswith("dataset.")}
    said = repr((sorted(mine.items()), config.timesteps, config.data_dir, config.cache_dir))
    return hashlib.sha256(said.encode()).hexdigest()[:8]


class _Unhashed:
    """A configuration as an argument that does not count for the cache: `_data_key` says what matters."""

    def __init__(self, config: Config):
        self.config = config

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)


@lru_cache(maxsize=8)
def _inputs(key: str, unhashed: _Unhashed) -> tuple[Tensor, Tensor, bool]:
    """The first test samples as the network is given them, their labels, and whether they are images."""
    import copy

    from snn_repro.data import build_data

    config = copy.deepcopy(unhashed.config)
    config.recipe.eval_batch_size, config.dataset.workers = FIRST, 0
    data = build_data(config)
    x, labels = next(iter(data.test.epoch(0)))
    return x, labels, data.static


def _sample(seen: dict[str, Any], i: int, frames: str | None) -> dict[str, Any]:
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
    """A sample [T, C, H, W] as bytes: images from their darkest to their brightest value, event counts from none to most."""
    import numpy as np

    frames = x[i].astype(np.float32)
    factor = -(-max(frames.shape[-2:]) // PIXELS)
    if factor > 1:
        t, c, h, w = frames.shape
        h, w = h // factor * factor, w // factor * factor
        frames = frames[:, :, :h, :w].reshape(t, c, h // factor, factor, w // factor, factor).mean((3, 5))
    low = frames.min((0, 2, 3), keepdims=True) if static else 0
    high = (frames - low).max((0, 2, 3) if static else None, keepdims=True)
    scaled = np.round(255 * (frames - low) / np.where(high > 0, high, 1)).astype(np.uint8)
    return dict(shape=list(scaled.shape), bytes=base64.b64encode(scaled.tobytes()).decode(), events=not static)
