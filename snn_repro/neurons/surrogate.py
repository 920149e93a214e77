"""Spike functions: an exact threshold comparison forward, a smooth surrogate derivative backward.

With z = h - v_threshold, the forward value is the Heaviside step of z. Its derivative is replaced by one of
    atan      alpha/2 / (1 + (pi/2 * alpha * z)^2)
    sigmoid   alpha * s(alpha z) * (1 - s(alpha z)),  s = logistic function
    triangle  max(0, gamma - |z|) / gamma^2
Each integrates to 1 over z, so the width alone sets how far from the threshold a neuron still learns.
"""

import math

import torch
from torch import Tensor, nn


def atan_derivative(z: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)


def sigmoid_derivative(z: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * z)
    return alpha * s * (1 - s)


def triangle_derivative(z: Tensor, gamma: float) -> Tensor:
    return (gamma - z.abs()).clamp(min=0) / gamma**2


# name -> (derivative(z, width), default width)
SURROGATES = {
    "atan": (atan_derivative, 2.0),
    "sigmoid": (sigmoid_derivative, 4.0),
    "triangle": (triangle_derivative, 1.0),
}


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, surrogate: str, width: float, strict: bool) -> Tensor:
        ctx.save_for_backward(z)
        ctx.surrogate, ctx.width = surrogate, width
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (z,) = ctx.saved_tensors
        derivative, _ = SURROGATES[ctx.surrogate]
        return grad * derivative(z, ctx.width), None, None, None


class Spike(nn.Module):
    """Spikes of a distance to the threshold: z of any shape -> {0, 1} of the same shape and dtype.

    fire_at "ge" fires at z >= 0, "gt" at z > 0; width None takes the surrogate's default.
    """

    def __init__(self, surrogate: str = "atan", width: float | None = None, fire_at: str = "ge"):
        super().__init__()
        self.surrogate = surrogate
        self.width = SURROGATES[surrogate][1] if width is None else float(width)
        self.fire_at = fire_at

    def forward(self, z: Tensor) -> Tensor:
        return _Spike.apply(z, self.surrogate, self.width, self.fire_at == "gt")

    def extra_repr(self) -> str:
        return f"{self.surrogate}, width={self.width}, fire_at={self.fire_at}"
