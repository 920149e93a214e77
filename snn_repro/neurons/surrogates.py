"""Spike functions: an exact threshold comparison forward, a smooth surrogate derivative backward.

With z = h - v_threshold, the forward value is the Heaviside step of z. Its derivative is replaced by one of the functions
below. Each integrates to 1 over z, so the width alone sets how far from the threshold a neuron still learns.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snn_repro.registry import SURROGATES


class Surrogate(NamedTuple):
    """derivative(z, width), the default width, and by name the compiled one that is the same (see kernels), if there is one."""

    derivative: Callable[[Tensor, float], Tensor]
    width: float
    kernel: str | None = None


def register_surrogate(name: str, width: float, kernel: str | None = None):
    """A decorator that makes derivative(z, width) known under a name; without `kernel` the reference computes it."""

    def add(derivative):
        SURROGATES.add(name, Surrogate(derivative, width, kernel), derivative)
        return derivative

    return add


@register_surrogate("atan", width=2.0, kernel="atan")
def atan(z: Tensor, alpha: float) -> Tensor:
    """alpha/2 / (1 + (pi/2 * alpha * z)^2)"""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)


@register_surrogate("sigmoid", width=4.0, kernel="sigmoid")
def sigmoid(z: Tensor, alpha: float) -> Tensor:
    """alpha * s(alpha z) * (1 - s(alpha z)), s = logistic function"""
    s = torch.sigmoid(alpha * z)
    return alpha * s * (1 - s)


@register_surrogate("triangle", width=1.0, kernel="triangle")
def triangle(z: Tensor, gamma: float) -> Tensor:
    """max(0, gamma - |z|) / gamma^2"""
    return (gamma - z.abs()).clamp(min=0) / gamma**2


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, surrogate: str, width: float, strict: bool) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate, ctx.width = surrogate, width
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (z,) = ctx.saved_tensors
        return grad * SURROGATES[ctx.surrogate].derivative(z, ctx.width), None, None, None


class Spike(nn.Module):
    """Spikes of a distance to the threshold: z of any shape -> {0, 1} of the same shape and dtype.

    fire_at "ge" fires at z >= 0, "gt" at z > 0; width None takes the surrogate's default.
    """

    def __init__(self, surrogate: str = "atan", width: float | None = None, fire_at: str = "ge"):
        super().__init__()
        self.surrogate = surrogate
        self.width = SURROGATES[surrogate].width if width is None else float(width)
        self.fire_at = fire_at

    def forward(self, z: Tensor) -> Tensor:
        return _Spike.apply(z, self.surrogate, self.width, self.fire_at == "gt")

    def extra_repr(self) -> str:
        return f"{self.surrogate}, width={self.width}, fire_at={self.fire_at}"
