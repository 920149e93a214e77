"""Firing rates of the spiking layers, measured only while asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn


@contextmanager
def firing_rates(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measure spikes a neuron and time step of every spiking layer over the forwards inside the block.

        with firing_rates(model) as rates:
            ...                              # any number of forwards
        rates["layer1.0.sn1"]                # filled when the block ends

    Every neuron-step counts alike, so a short last batch weighs less. A layer that never ran has no entry.
    """
    rates: dict[str, float] = {}
    spikes: dict[str, Tensor] = {}
    neuron_steps: dict[str, int] = {}

    def count(name, module, inputs, output):
        if hasattr(module, "counts"):  # spikes of another height than 1
            output = module.counts(output)
        # of a sample first, where float32 is exact; count_nonzero takes 15 times as long on a CPU
        ones = output.detach().sum(tuple(range(2, output.dim())), dtype=torch.float32)
        spikes[name] = spikes.get(name, 0) + ones.sum(dtype=torch.float64)  # stays on its device
        neuron_steps[name] = neuron_steps.get(name, 0) + output.numel()

    hooks = [
        module.register_forward_hook(partial(count, name))
        for name, module in model.named_modules()
        if isinstance(module, BaseNode)
    ]
    try:
        yield rates
    finally:
        for hook in hooks:
            hook.remove()
        rates.update({name: float(spikes[name]) / neuron_steps[name] for name in spikes})
