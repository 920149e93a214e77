"""The network as one graph over all its time steps, by torch.export."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.registry import SETS
from snn_repro.trained.load import TrainedRun

SAMPLES, TOLERANCE = 64, 1e-5  # random inputs on which a graph is compared with its network


def unrolled(run: TrainedRun) -> torch.export.ExportedProgram:
    """The network in evaluation, every layer by PyTorch's own operations: (x,) -> logits [T, B, K], where x is static images
    [B, C, H, W] or frames [T, B, C, H, W] of the run's T time steps. B is free.

    Raises UserError where torch.export cannot follow the network.
    """
    model, x = copy.deepcopy(run.model), inputs(run, 2)
    batch = {x.dim() - 4: torch.export.Dim("batch", min=1)}
    with warnings.catch_warnings(), torch.no_grad(), door.off(model):
        warnings.simplefilter("ignore")  # that neurons show their last potential in `v`: the graph need not
        try:
            return torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=False)
        except Exception as error:  # of many classes, for whatever it cannot follow
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"torch.export cannot follow model={run.config.model.name} with neuron={run.config.neuron.name}: "
                f"{type(error).__name__}: {why}; --to safetensors takes every network"
            ) from None


def inputs(run: TrainedRun, samples: int, seed: int = 0) -> Tensor:
    """Random inputs like those of the run's data: normalised images [B, C, H, W], or counts of events [T, B, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    if SETS[run.config.dataset.name].static:
        return torch.randn(samples, *run.input_shape, generator=generator)
    rate = torch.full((run.config.timesteps, samples, *run.input_shape), 0.3)
    return torch.poisson(rate, generator=generator)


def differences(run: TrainedRun, graph: Any) -> str:
    """In words, how graph(x) -> logits [T, B, K] differs from the network on SAMPLES random inputs: by rounding, and where that moves
    a potential over a threshold, by a spike and all that follows from it.

    Raises UserError where it differs by more than that.
    """
    x = inputs(run, SAMPLES, seed=1)
    with torch.no_grad(), door.off(run.model):
        expected, found = run.model(x), graph(x)
    apart = (found - expected).abs().amax((0, 2))
    if not float((found - expected).abs().mean()) <= 0.1 * float(expected.std()):
        raise UserError(
            f"the graph of model={run.config.model.name} gives other logits than the network, by up to {float(apart.max()):.2g}; "
            "--to safetensors takes every network"
        )
    near = apart[apart <= TOLERANCE]
    within = f" within {float(near.max()):.1e}" if len(near) else ""
    share = 1 - len(near) / SAMPLES
    return f"On {SAMPLES} random inputs its logits are those of the network{within}" + (
        f" but for {share:.1%} of them, where rounding moved a potential over a threshold and so a spike."
        if share
        else "."
    )


def takes(run: TrainedRun) -> str:
    """What the graph takes and gives, in a few words."""
    shape = ", ".join(map(str, run.input_shape))
    static, T = SETS[run.config.dataset.name].static, run.config.timesteps
    return (
        f"{f'images [B, {shape}]' if static else f'frames [{T}, B, {shape}]'} in float32 -> [{T}, B, {run.num_classes}]"
    )
