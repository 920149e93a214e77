"""Dspike (Li et al., NeurIPS 2021) as published: its temperature follows the finite differences of the loss. Slow."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.neurons.surrogates.dspike import dspike
from snn_repro.neurons.surrogates.spike import register_surrogate

# not held against the paper's text or code
EPSILON = 0.01  # of the finite differences
STEP = 0.2  # between temperatures
LOWEST = 0.2


def finite_differences(weight: nn.Parameter, loss: Callable[[], Tensor]) -> Tensor:
    """(loss at w + EPSILON - loss at w - EPSILON) / (2 EPSILON) for each value w of a weight: two forward passes a value."""
    found = torch.zeros_like(weight)
    for index in product(*map(range, weight.shape)):
        value = weight.data[index].clone()
        ends = []
        for sign in (1, -1):
            weight.data[index] = value + sign * EPSILON
            ends.append(loss().detach())
        weight.data[index] = value
        found[index] = (ends[0] - ends[1]) / (2 * EPSILON)
    return found


def adapt(model: nn.Module, spikes: list[Any], loss: Callable[[], Tensor]) -> None:
    """Of the present temperature, one step more and one less, take for all layers the one whose gradient of the first layer's
    weight points most nearly where its finite differences do."""
    weight = next(p for p in model.parameters() if p.dim() > 1)
    truth, now = finite_differences(weight, loss).flatten(), float(spikes[0].width)
    best = now, -2.0
    for b in (now, now + STEP, max(now - STEP, LOWEST)):
        for spike in spikes:
            spike.width.fill_(b)
        (gradient,) = torch.autograd.grad(loss(), weight)
        near = F.cosine_similarity(gradient.flatten(), truth, dim=0).item()
        if near > best[1]:
            best = b, near
    for spike in spikes:
        spike.width.fill_(best[0])


@register_surrogate("dspike_adaptive", width=3.0, adapt=adapt)
def dspike_adaptive(z: Tensor, b: Tensor) -> Tensor:
    """Dspike at the temperature b that `adapt` found."""
    return dspike(z, float(b))
