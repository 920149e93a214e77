"""Batch norm over [T, B, C, H, W]."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.kernels import Affine
from snn_repro.models.norms.norm import register_norm


class _OneSample(torch.autograd.Function):
    """x [1, C, H, W] and its gradient with the first stride that a dense tensor has.

    A view such as flatten or unflatten may give an axis of size 1 any stride. With C or so on a channels-last tensor,
    torch's batch norm on a CPU takes it for channels last in one place and for rows in another, and its backward pass
    mixes the values up (seen in 2.13; docs/notebook.md).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.as_strided(x.shape, (x[0].numel(), *x.stride()[1:]))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.as_strided(grad.shape, (grad[0].numel(), *grad.stride()[1:]))


def one_sample_too(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """norm(x) of x [N, C, H, W], right for N = 1 as well. Without a backward pass it does not look at N: an exported graph takes any."""
    if not torch.is_grad_enabled() or len(x) > 1:
        return norm(x)
    return _OneSample.apply(norm(_OneSample.apply(x)))


@register_norm("bn")
class BN(nn.BatchNorm2d):
    """Batch normalisation, every time step counted as one more sample."""

    wired = False  # whether the number of time steps is wired in
    causal = True
    together = False  # whether statistics are those of all processes, see sync.py

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "forward" in vars(cls) and "affine_form" not in vars(cls):
            cls.affine_form = lambda self: None  # its forward is no longer what `affine_form` says

    def __init__(self, channels: int, timesteps: int | None = None):
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return one_sample_too(super().forward, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def affine_form(self) -> Affine | None:
        """What a spiking layer needs to compute this norm itself; None where only the norm's own forward is right."""
        if self.momentum is None or not self.track_running_stats:
            return None
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
            return None
        te = self._parameters.get("te")
        if self.training:
            return Affine(self.weight, self.bias, te, None, None, self.eps, partial(learn, self), self.together)
        return Affine(self.weight, self.bias, te, self.running_mean, self.running_var, self.eps)

    def parameter_kind(self, name: str) -> str:
        return "te" if name == "te" else "norm"


@torch.no_grad()
def learn(norm: Any, mean: Tensor, var: Tensor, n: int | Tensor) -> None:
    """Update the running statistics by those of a batch of n values a channel, var over n."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)
