"""Norm layers over [T, B, C, H, W]; their batch statistics run over T, B, H and W together.

A norm is one class, registered once, built by Norm(channels, timesteps). It says itself by `affine_form` whether a fused
spiking layer may compute it, and by `parameter_kind` what its parameters are to an optimiser.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from snn_repro.kernels import Affine
from snn_repro.registry import NORMS
from snn_repro.settings import Setting

register_norm = NORMS.register
NORM = Setting("bn", "norm behind each convolution", choices=NORMS)


def norms(name: str, timesteps: int, neuron: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """A builder: build(channels, summands=1) makes a norm of that name before neurons as `neuron` says (see build_neuron).

    summands: of how many norms the neurons' input is the sum, 2 where a shortcut is added before they fire.
    """

    def build(channels: int, summands: int = 1) -> nn.Module:
        return NORMS[name](channels, timesteps)

    return build


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


@register_norm("bn")
class BN(nn.BatchNorm2d):
    """Batch normalisation, every time step counted as one more sample."""

    wired = False  # whether the number of time steps is wired in

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "forward" in vars(cls) and "affine_form" not in vars(cls):
            cls.affine_form = lambda self: None  # its forward is no longer what `affine_form` says

    def __init__(self, channels: int, timesteps: int | None = None):
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        steps, x = x.shape[:2], x.flatten(0, 1)
        if len(x) > 1:
            return super().forward(x).unflatten(0, steps)
        return _OneSample.apply(super().forward(_OneSample.apply(x))).unflatten(0, steps)

    def affine_form(self) -> Affine | None:
        """What a spiking layer needs to compute this norm itself; None where only the norm's own forward is right."""
        if self.momentum is None or not self.track_running_stats or isinstance(self, SyncBatchNorm2d):
            return None
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
            return None
        te = self._parameters.get("te")
        if self.training:
            return Affine(self.weight, self.bias, te, None, None, self.eps, partial(_learn, self))
        return Affine(self.weight, self.bias, te, self.running_mean, self.running_var, self.eps)

    def parameter_kind(self, name: str) -> str:
        return "te" if name == "te" else "norm"


@register_norm("tebn")
class TEBN(BN):
    """Temporal effective batch norm (Duan et al., NeurIPS 2022): BN(x)[t] * te[t].

    te [T], one learned factor a time step, starts at 1 and wires the number of time steps in. A single time step
    is taken as the same at all of them: [1, B, C, H, W] -> [T, B, C, H, W].
    """

    wired = True

    def __init__(self, channels: int, timesteps: int):
        super().__init__(channels)
        self.te = nn.Parameter(torch.ones(timesteps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.te.view(-1, 1, 1, 1, 1)

    affine_form = BN.affine_form  # with te


@register_norm("tebn_gesture")
class GestureTEBN(TEBN):
    """TEBN as the published DVS128 Gesture code has it: BN(x)[t] * (x[t] * te[t]), x the raw input."""

    def forward(self, x: Tensor) -> Tensor:
        return BN.forward(self, x) * (x * self.te.view(-1, 1, 1, 1, 1))


@torch.no_grad()
def _learn(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, n: int) -> None:
    """Update the running statistics by those of a batch of n values a channel."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with mean and variance over the samples of all processes; x [N, C, ...]."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised x in float32 at least, and the mean [C], variance [C] and count [1] that it was made with."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        axes, shape = [i for i in range(x.dim()) if i != 1], [1, -1] + [1] * (x.dim() - 2)
        total = torch.cat([values.sum(axes), values.new_full((1,), values.numel() // values.shape[1])])
        dist.all_reduce(total)
        mean, count = total[:-1] / total[-1], total[-1:]
        centred = values - mean.view(shape)
        var = centred.square().sum(axes)
        dist.all_reduce(var)
        var = var / count
        scale = (var + eps).rsqrt()
        normal = centred * scale.view(shape)
        ctx.save_for_backward(normal, scale, count)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(mean, var, count)
        return normal, mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, None]:
        normal, scale, count = ctx.saved_tensors
        axes, shape = [i for i in range(grad.dim()) if i != 1], [1, -1] + [1] * (grad.dim() - 2)
        sums = torch.stack([grad.sum(axes), (grad * normal).sum(axes)])
        dist.all_reduce(sums)
        along, across = (sums / count).unbind()
        grad = (grad - along.view(shape) - normal * across.view(shape)) * scale.view(shape)
        return grad.to(ctx.dtype), None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes' samples together.

    torch's own SyncBatchNorm refuses CPU tensors, and its conversion would replace BN and TEBN by a plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the same shape and type; N may differ between processes."""
        if not self.training:
            return super().forward(x)
        normal, mean, var, count = _Normalise.apply(x, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        shape = [1, -1] + [1] * (x.dim() - 2)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def synchronise(model: nn.Module) -> None:
    """Make every batch norm of `model`, those inside BN and TEBN too, take its statistics over all processes.

    Parameters, buffers and their names stay. Needs a process group.
    """
    for module in model.modules():
        kind = type(module)
        if kind is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
        elif isinstance(module, nn.BatchNorm2d) and not isinstance(module, SyncBatchNorm2d):
            # BN and its kin first, then the synchronised layer where they call nn.BatchNorm2d
            module.__class__ = type(f"Sync{kind.__name__}", (kind, SyncBatchNorm2d), {})
