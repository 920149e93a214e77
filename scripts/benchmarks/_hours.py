"""Estimate training hours from one step of the network on random data."""

import dataclasses
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from snn_repro.build import build_network
from snn_repro.config import Config, frame_shape
from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.losses import build_loss
from snn_repro.optim import build_optimizer
from snn_repro.registry import SETS
from snn_repro.runtime import Precision, channels_last, pick_device

REPEATS = 0.5  # seconds to measure a step for
ON_A_GPU = 16  # samples per step on a GPU


class TooLarge(UserError):
    """A step does not fit the memory."""


_measured: dict[str, tuple[float, float]] = {}


def network_key(config: Config) -> str:
    """Key of rows with equal step times; IMP, loss and classes are ignored."""
    shape = "x".join(map(str, frame_shape(config)))
    neuron = " ".join(str(getattr(config.neuron, key, None)) for key in ("name", "reset", "surrogate"))
    norm = getattr(config.model, "norm", None)
    return f"{config.model.name} norm {norm} {shape} T {config.timesteps} {neuron} {config.recipe.optimizer}"


def hours_of_training(config: Config, say: Callable[[str], None] = lambda _: None) -> tuple[float, str, float]:
    """(hours, "cpu" or "cuda", samples per second) of a run's training on this machine.

    Without data loading and evaluation. Raises TooLarge, or UserError where the device or network is unavailable.
    """
    device = pick_device(config)
    key = f"{network_key(config)} on {device.type}"
    if key not in _measured:
        say(f"timing a step of {key}")
        _measured[key] = measure(config, device)
    sample, step = _measured[key]
    speed, facts = 1 / (sample + step / config.recipe.batch_size), SETS[config.dataset.name].of(config)
    n_train = config.dataset.train_subset or facts.samples[0] or facts.about or 0
    return config.recipe.epochs * n_train / speed / 3600, device.type, speed


def _median(work: Callable[[], Any]) -> float:
    """Median seconds of a call, the first call excluded."""
    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < REPEATS:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times[1:])


def measure(config: Config, device: torch.device) -> tuple[float, float]:
    """(seconds per sample, seconds per optimiser step) of the row's untrained network."""
    gpu, (_, height, width) = device.type == "cuda", frame_shape(config)
    if gpu:
        steps, batch = config.timesteps, min(ON_A_GPU, config.recipe.batch_size)
    else:  # time is proportional to pixels, samples and steps, so one step of few samples is enough
        steps, batch = 1, min(32, max(2, 224 * 224 // (height * width)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        facts, shape = SETS[config.dataset.name].of(config), frame_shape(config)
        network = build_network(dataclasses.replace(config, timesteps=steps), facts.num_classes, shape)
        if not gpu:
            door.set_backend(network, "dense")  # the sparsity of the trained network is unknown
        model: Any = channels_last(network, device)
        x = torch.randn(batch, *shape) if facts.static else torch.poisson(torch.full((steps, batch, *shape), 0.3))
        x, target = x.to(device), torch.randint(facts.num_classes, (batch,)).to(device)
        loss_fn, optimizer, amp = build_loss("sdt"), build_optimizer(model, config.recipe), Precision(config, device)

        def compute() -> None:
            with amp.autocast():
                logits = model(x).float()
            amp.scaler.scale(loss_fn(logits, target)).backward()
            torch.cuda.synchronize() if gpu else None

        def step() -> None:
            amp.scaler.step(optimizer)
            amp.scaler.update()
            torch.cuda.synchronize() if gpu else None

        try:
            computing, stepping = (_median(work) for work in (compute, step))
        except torch.OutOfMemoryError:
            raise TooLarge(f"a step of {batch} samples does not fit the memory of {device}") from None
    return computing / batch * config.timesteps / steps, stepping
