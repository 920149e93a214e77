"""Spike functions: exact threshold forward, surrogate gradient backward.

With z = h - v_threshold, the forward value is the Heaviside step of z; its derivative is replaced by one of the
functions here. Each integrates to 1 over z, so the width alone sets how far from the threshold a neuron still learns.
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
    """A surrogate derivative(z, width, **settings), its default width and its compiled equivalent's name.

    adapt(model, its spikes with this surrogate, loss) is called before the first step of each epoch; loss() is that
    step's loss. It may change only `width`, which then is a buffer of each Spike.
    """

    derivative: Callable[..., Tensor]
    width: float
    kernel: str | None = None
    adapt: Callable[[nn.Module, list["Spike"], Callable[[], Tensor]], None] | None = None
    settings: Mapping[str, Setting] = {}


def register_surrogate(name: str, width: float, kernel: str | None = None, adapt=None, **settings: Setting):
    """Decorator that registers derivative(z, width, **settings); without `kernel`, PyTorch runs it."""
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
    """Spike function of z = h - v_threshold.

    z of any shape -> {0, 1}, same shape and dtype. fire_at: "ge" z >= 0, "gt" z > 0. width None: the surrogate's
    default.
    """

    def __init__(self, surrogate: str = "atan", width: float | None = None, fire_at: str = "ge", **own: Any):
        super().__init__()
        self.surrogate, self.own, self.fire_at = surrogate, own, fire_at
        width = SURROGATES[surrogate].width if width is None else float(width)
        if SURROGATES[surrogate].adapt is None:
            self.width = width
        else:
            self.register_buffer("width", torch.tensor(width))

    def forward(self, z: Tensor) -> Tensor:
        return _Spike.apply(z, self.surrogate, self.width, self.fire_at == "gt", self.own)


@register_surrogate("atan", width=2.0, kernel="atan")
def atan(z: Tensor, alpha: float) -> Tensor:
    """Arc tangent (Fang et al., ICCV 2021): alpha/2 / (1 + (pi/2 alpha z)^2)."""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)


@register_surrogate("dspike", width=3.0)
def dspike(z: Tensor, b: float) -> Tensor:
    """Dspike with fixed temperature b (Li et al., NeurIPS 2021).

        b / (2 tanh(b / 2)) / cosh(b z)^2 for |z| <= 1/2

    It is a rectangle for small b and a peak for large b.
    """
    return b / (2 * math.tanh(b / 2)) * (1 - (b * z).tanh() ** 2) * (z.abs() <= 0.5)


@register_surrogate("sigmoid", width=4.0, kernel="sigmoid")
def sigmoid(z: Tensor, alpha: float) -> Tensor:
    """Derivative of the logistic function s: alpha * s(alpha z) * (1 - s(alpha z))."""
    s = torch.sigmoid(alpha * z)
    return alpha * s * (1 - s)


@register_surrogate("triangle", width=1.0, kernel="triangle")
def triangle(z: Tensor, gamma: float) -> Tensor:
    """Triangle: max(0, gamma - |z|) / gamma^2."""
    return (gamma - z.abs()).clamp(min=0) / gamma**2


@register_surrogate("rectangle", width=1.0)
def rectangle(z: Tensor, width: float) -> Tensor:
    """Rectangle (Wu et al., 2018, arXiv:1706.02609): 1/width for |z| < width/2."""
    return (z.abs() < width / 2).to(z.dtype) / width


# Published Dspike adapts its temperature to finite differences. Values not verified against the paper:
EPSILON = 0.01  # of the finite differences
STEP = 0.2  # between temperatures
LOWEST = 0.2


def finite_differences(weight: nn.Parameter, loss: Callable[[], Tensor]) -> Tensor:
    """(loss(w + EPSILON) - loss(w - EPSILON)) / (2 EPSILON) for each w in `weight`.

    Each takes two forward passes. The shape is that of weight.
    """
    differences = torch.zeros_like(weight)
    for index in product(*map(range, weight.shape)):
        value = weight.data[index].clone()
        for sign in (1, -1):
            weight.data[index] = value + sign * EPSILON
            differences[index] += sign * loss().detach()
        weight.data[index] = value
    return differences / (2 * EPSILON)


def adapt(model: nn.Module, spikes: list[Any], loss: Callable[[], Tensor]) -> None:
    """Set Dspike's temperature b for all layers: keep it or change it by STEP.

    The one kept gives the first layer's weight the gradient closest (cosine) to its finite differences.
    """
    weight = next(p for p in model.parameters() if p.dim() > 1)
    truth, now, similarity = finite_differences(weight, loss).flatten(), float(spikes[0].width), {}
    for b in (now, now + STEP, max(now - STEP, LOWEST)):
        for spike in spikes:
            spike.width.fill_(b)
        (gradient,) = torch.autograd.grad(loss(), weight)
        similarity[b] = F.cosine_similarity(gradient.flatten(), truth, dim=0).item()
    for spike in spikes:
        spike.width.fill_(max(similarity, key=similarity.__getitem__))


@register_surrogate("dspike_adaptive", width=3.0, adapt=adapt)
def dspike_adaptive(z: Tensor, b: Tensor) -> Tensor:
    """Dspike with the temperature b set by `adapt`."""
    return dspike(z, float(b))


@register_surrogate("rectangle_closed", width=1.0)
def rectangle_closed(z: Tensor, width: float) -> Tensor:
    """Closed rectangle (Huang et al., ICML 2024, arXiv:2402.04663): 1/width for |z| <= width/2."""
    return (z.abs() <= width / 2).to(z.dtype) / width
