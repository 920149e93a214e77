"""How fast a row would train here: a few steps on random data, timed and scaled. An estimate, for rows that never ran."""

import json
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from snn_repro import __version__
from snn_repro.build import options
from snn_repro.config import Config, frame_shape
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.optim import build_optimizer
from snn_repro.paper.rows import Cost, Row
from snn_repro.runtime import Precision, channels_last, pick_device

SECONDS = 0.5  # of repeats, after the two steps that every measurement takes
ON_A_GPU = 16  # samples in a step there


class TooLarge(UserError):
    """Not even a step of a few samples fits the device."""


def network_key(config: Config) -> str:
    """What a step costs by, IMP, loss and number of classes aside: rows with the same key are measured once."""
    shape = "x".join(map(str, frame_shape(config)))
    neuron = " ".join(str(getattr(config.neuron, key, None)) for key in ("name", "reset", "surrogate"))
    norm = getattr(config.model, "norm", None)
    return f"{config.model.name} norm {norm} {shape} T {config.timesteps} {neuron} {config.recipe.optimizer}"


@cache
def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def estimated_speed(config: Config, say: Callable[[str], None] = lambda _: None) -> tuple[float, str]:
    """(training samples a second, "cpu" or "cuda") of a row's steps here, without loading and evaluation.

    Measured once for each network, device and version, and kept in the user's cache folder, or in this process alone
    where that cannot be written. Raises TooLarge, or UserError where the device or the network cannot be had.
    """
    device = pick_device(config)
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{processor()} {torch.get_num_threads()} threads"
    key = f"{name}; {network_key(config)}"
    known = _read()
    if key not in known:
        say(f"timing a step of {network_key(config)} on {device.type}")
        known = _read() | {key: measure(config, device)}
        _write(known)
    sample, step = known[key]
    return 1 / (sample + step / config.recipe.batch_size), device.type


def estimate_from_a_step(row: Row, say: Callable[[str], None] = lambda _: None) -> Cost | None:
    """As `estimate_cost` for a row without runs: a step on random data, timed here; None where it does not fit the memory."""
    try:
        return Cost(*hours_of_training(row.config, say), "a step here", estimated=True)
    except TooLarge:
        return None


def hours_of_training(config: Config, say: Callable[[str], None] = lambda _: None) -> tuple[float, str, float]:
    """(hours, "cpu" or "cuda", samples a second) of a run's training, without loading and evaluation, by `estimated_speed`."""
    speed, device = estimated_speed(config, say)
    facts = SETS[config.dataset.name].of(config)
    n_train = config.dataset.train_subset or facts.samples[0] or facts.about or 0
    return config.recipe.epochs * n_train / speed / 3600, device, speed


def measure(config: Config, device: torch.device) -> tuple[float, float]:
    """(seconds a sample, forward and backward; seconds an optimiser step), of the row's network from random weights."""
    gpu, (_, height, width) = device.type == "cuda", frame_shape(config)
    if gpu:
        steps, batch = config.timesteps, min(ON_A_GPU, config.recipe.batch_size)
    else:  # its time grows with pixels, samples and steps alike: one step of few samples will do
        steps, batch = 1, min(32, max(2, 224 * 224 // (height * width)))
    wait = torch.cuda.synchronize if gpu else lambda: None
    times: list[tuple[float, float]] = []
    until = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, target = _network(config, device, steps, batch)
        loss_fn, optimizer, amp = build_loss("sdt"), build_optimizer(model, config.recipe), Precision(config, device)
        try:
            while len(times) < 2 or time.perf_counter() < until:
                a = time.perf_counter()
                with amp.autocast():
                    logits = model(x).float()
                amp.scaler.scale(loss_fn(logits, target)).backward()
                wait()
                b = time.perf_counter()
                amp.scaler.step(optimizer)
                amp.scaler.update()
                optimizer.zero_grad(set_to_none=True)
                wait()
                times.append((b - a, time.perf_counter() - b))
                until = until or time.perf_counter() + SECONDS  # the first step makes kernels and memory ready
        except torch.OutOfMemoryError:
            raise TooLarge(f"a step of {batch} samples does not fit the memory of {device}") from None
    computing, stepping = (median(column) for column in zip(*times[1:], strict=True))
    return computing / batch * config.timesteps / steps, stepping


def _network(config: Config, device: torch.device, steps: int, batch: int) -> tuple[Any, Tensor, Tensor]:
    """A row's network without IMP, and random data of `batch` samples and labels."""
    facts, shape = SETS[config.dataset.name].of(config), frame_shape(config)
    neuron = options(config.neuron, "imp_lr", "imp_weight_decay") | {"imp": False, "initial": "zero"}
    of_model = options(config.model, "name", "weights")
    if device.type == "cpu":
        of_model["conv_backend"] = "dense"  # what is sparse in a trained network is not known
    model: Any = build_model(
        config.model.name, num_classes=facts.num_classes, input_shape=shape, timesteps=steps, neuron=neuron, **of_model
    )
    x = torch.randn(batch, *shape) if facts.static else torch.poisson(torch.full((steps, batch, *shape), 0.3))
    target = torch.randint(facts.num_classes, (batch,))
    return channels_last(model, device), x.to(device), target.to(device)


# ---------------------------------------------------------------- what was measured before


def _file() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn_repro"
    return folder / f"steps-{__version__}-torch{torch.__version__}.json"


_measured: dict[str, tuple[float, float]] = {}  # by this process


def _read() -> dict[str, tuple[float, float]]:
    try:
        kept = json.loads(_file().read_text())
        kept = {k: (a, b) for k, (a, b) in kept.items() if a > 0 and b > 0}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # none yet, damaged, or no home folder
        kept = {}
    return kept | _measured


def _write(known: dict[str, tuple[float, float]]) -> None:
    _measured.update(known)
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), known)
    except (OSError, UserError, RuntimeError):
        pass  # kept in this process alone; the next one measures again
