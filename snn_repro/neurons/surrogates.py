"""Spike functions: an exact threshold comparison forward, a smooth surrogate derivative backward.

With z = h - v_threshold, the forward value is the Heaviside step of z. Its derivative is replaced by that of a function here.
Each integrates to 1 over z, so the width alone sets how far from the threshold a neuron still learns.
"""

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.registry import SURROGATES
from snn_repro.settings import Setting


class Surrogate(NamedTuple):
    """derivative(z, width, and by name its own settings), the default width, and by name the compiled one that is the same.

    adapt(model, its spikes with this surrogate, loss): called before the first step of each epoch with that step's loss() as a
    function. It may change `width`, which then is a buffer of each Spike, and nothing else.
    """

    derivative: Callable[..., Tensor]
    width: float
    kernel: str | None = None
    adapt: Callable[[nn.Module, list["Spike"], Callable[[], Tensor]], None] | None = None
    settings: Mapping[str, Setting] = {}


def register_surrogate(name: str, width: float, kernel: str | None = None, adapt=None, **settings: Setting):
    """A decorator that makes derivative(z, width, **settings) known under a name; without `kernel` the reference computes it."""
    return SURROGATES.register(name, lambda derivative: Surrogate(derivative, width, kernel, adapt, settings))


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, surrogate: str, width: float, strict: bool, own: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate, ctx.width, ctx.own = surrogate, width, own
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (z,) = ctx.saved_tensors
        return grad * SURROGATES[ctx.surrogate].derivative(z, ctx.width, **ctx.own), None, None, None, None


class Spike(nn.Module):
    """Spikes of a distance to the threshold: z of any shape -> {0, 1} of the same shape and dtype.

    fire_at "ge" fires at z >= 0, "gt" at z > 0; width None takes the surrogate's default.
    """

    def __init__(self, surrogate: str = "atan", width: float | None = None, fire_at: str = "ge", **own: Any):
        super().__init__()
        self.surrogate, self.own = surrogate, own
        width = SURROGATES[surrogate].width if width is None else float(width)
        if SURROGATES[surrogate].adapt is None:
            self.width = width
        else:
            self.register_buffer("width", torch.tensor(width))
        self.fire_at = fire_at

    def forward(self, z: Tensor) -> Tensor:
        return _Spike.apply(z, self.surrogate, self.width, self.fire_at == "gt", self.own)


# The derivative of an arc tangent (Fang et al., ICCV 2021).
@register_surrogate("atan", width=2.0, kernel="atan")
def atan(z: Tensor, alpha: float) -> Tensor:
    """alpha/2 / (1 + (pi/2 * alpha * z)^2)"""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)


# Li et al., NeurIPS 2021; its temperature fixed.
@register_surrogate("dspike", width=3.0)
def dspike(z: Tensor, b: float) -> Tensor:
    """b / (2 tanh(b / 2)) / cosh(b z)^2 where |z| <= 1/2: a rectangle for small temperatures b, a spike for large ones"""
    return b / (2 * math.tanh(b / 2)) * (1 - (b * z).tanh() ** 2) * (z.abs() <= 0.5)


# The derivative of a logistic function.
@register_surrogate("sigmoid", width=4.0, kernel="sigmoid")
def sigmoid(z: Tensor, alpha: float) -> Tensor:
    """alpha * s(alpha z) * (1 - s(alpha z)), s = logistic function"""
    s = torch.sigmoid(alpha * z)
    return alpha * s * (1 - s)


@register_surrogate("triangle", width=1.0, kernel="triangle")
def triangle(z: Tensor, gamma: float) -> Tensor:
    """max(0, gamma - |z|) / gamma^2"""
    return (gamma - z.abs()).clamp(min=0) / gamma**2


# Wu et al., 2018, arXiv:1706.02609.
@register_surrogate("rectangle", width=1.0)
def rectangle(z: Tensor, width: float) -> Tensor:
    """1 / width where |z| < width / 2"""
    return (z.abs() < width / 2).to(z.dtype) / width


# Dspike as published: its temperature follows the finite differences of the loss, slowly. The three numbers are not held
# against the paper's text or code.
EPSILON = 0.01  # of the finite differences
STEP = 0.2  # between temperatures
LOWEST = 0.2


def finite_differences(weight: nn.Parameter, loss: Callable[[], Tensor]) -> Tensor:
    """(loss at w + EPSILON - loss at w - EPSILON) / (2 EPSILON) for each value w of a weight: two forward passes a value."""
    found = torch.zeros_like(weight)
    for index in product(*map(range, weight.shape)):
        value = weight.data[index].clone()
        for sign in (1, -1):
            weight.data[index] = value + sign * EPSILON
            found[index] += sign * loss().detach()
        weight.data[index] = value
    return found / (2 * EPSILON)


def adapt(model: nn.Module, spikes: list[Any], loss: Callable[[], Tensor]) -> None:
    """Of the present temperature, one step more and one less, take for all layers the one whose gradient of the first layer's
    weight points most nearly where its finite differences do."""
    weight = next(p for p in model.parameters() if p.dim() > 1)
    truth, now = finite_differences(weight, loss).flatten(), float(spikes[0].width)
    near = {}
    for b in (now, now + STEP, max(now - STEP, LOWEST)):
        for spike in spikes:
            spike.width.fill_(b)
        (gradient,) = torch.autograd.grad(loss(), weight)
        near[b] = F.cosine_similarity(gradient.flatten(), truth, dim=0).item()
    for spike in spikes:
        spike.width.fill_(max(near, key=near.__getitem__))


@register_surrogate("dspike_adaptive", width=3.0, adapt=adapt)
def dspike_adaptive(z: Tensor, b: Tensor) -> Tensor:
    """Dspike at the temperature b that `adapt` found."""
    return dspike(z, float(b))


# With its edges: Huang et al., ICML 2024, arXiv:2402.04663.
@register_surrogate("rectangle_closed", width=1.0)
def rectangle_closed(z: Tensor, width: float) -> Tensor:
    """1 / width where |z| <= width / 2"""
    return (z.abs() <= width / 2).to(z.dtype) / width
