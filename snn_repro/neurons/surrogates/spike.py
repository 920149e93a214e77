"""What a surrogate is, and the spike that has one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snn_repro.registry import SURROGATES
from snn_repro.settings import Setting


class Surrogate(NamedTuple):
    """derivative(z, width, and by name its own settings), the default width, and by name the compiled one that is the same (see kernels), if there is one.

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

    def add(derivative):
        SURROGATES.add(name, Surrogate(derivative, width, kernel, adapt, settings), derivative)
        return derivative

    return add


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

    def extra_repr(self) -> str:
        return f"{self.surrogate}, width={float(self.width)}, fire_at={self.fire_at}"
