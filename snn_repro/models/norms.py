"""Norm layers over [T, B, C, H, W]; their batch statistics run over T, B, H and W together, if they say nothing else.

A norm is one class, registered once, built by Norm(channels, timesteps). It says itself by `affine_form` whether a fused spiking
layer may compute it, by `parameter_kind` what its parameters are to an optimiser, by `wired` whether it takes one number of time
steps alone, and by `causal` whether in evaluation its output at a step depends on no later one.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro import distributed
from snn_repro.kernels import Affine
from snn_repro.registry import NORMS
from snn_repro.settings import Setting

register_norm = NORMS.register
NORM = Setting("bn", "norm behind each convolution; null is bn", choices=NORMS)


def norms(name: Any, timesteps: int, neuron: Any) -> Callable[..., nn.Module]:
    """A builder: build(channels, summands=1) makes a norm of that name, or as name(channels, timesteps) does where it has
    settings, before neurons that `neuron` builds (see blocks.Neurons).

    summands: of how many norms the neurons' input is the sum, 2 where a shortcut is added before they fire. A norm that starts
    from the threshold has a method `begin(v_threshold, summands)`.
    """
    make = name if callable(name) else NORMS[name or "bn"]

    def build(channels: int, summands: int = 1) -> nn.Module:
        if neuron.norms is not None:
            return neuron.norms()
        norm = make(channels, timesteps)
        if hasattr(norm, "begin"):
            norm.begin(neuron.v_threshold, summands)
        return norm

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


def one_sample_too(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """norm(x) of x [N, C, H, W], right for N = 1 as well. Without a backward pass it does not look at N: an exported graph takes any."""
    if not torch.is_grad_enabled() or len(x) > 1:
        return norm(x)
    return _OneSample.apply(norm(_OneSample.apply(x)))


@register_norm("bn")
class BN(nn.BatchNorm2d):
    """Batch normalisation, every time step counted as one more sample."""

    wired = False  # whether the number of time steps is wired in
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


@register_norm("tab")
class TAB(nn.Module):
    """Temporal accumulated batch norm (Jiang et al., ICLR 2024): y[t] = p[t]^2 BN_t(x)[t], where the batch norm BN_t of
    step t takes its statistics over the steps up to t.

    Each step has statistics, weight, bias and p (which starts at 1 and is decayed) of its own, so the number of time steps is
    wired in. A single time step is taken as the same at all of them: [1, B, C, H, W] -> [T, B, C, H, W]. In training step t
    is normalised together with all before it: (T + 1) / 2 times the work of BN.
    """

    wired = True

    def __init__(self, channels: int, timesteps: int):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(timesteps))
        self.p = nn.Parameter(torch.ones(timesteps))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.bn), *x.shape[1:]) if len(x) == 1 else x
        batch, found = x.shape[1], []
        for t, bn in enumerate(self.bn):
            seen = x[: t + 1] if self.training else x[t : t + 1]
            found.append(one_sample_too(bn, seen.flatten(0, 1))[-batch:])
        return torch.cat(found).unflatten(0, (-1, batch)) * self.p.view(-1, 1, 1, 1, 1) ** 2

    def parameter_kind(self, name: str) -> str:
        return "te"


@register_norm("tdbn")
class TDBN(BN):
    """Threshold-dependent batch norm (Zheng et al., AAAI 2021, arXiv:2011.05280): BN whose factor starts at alpha V_th.

    alpha is 1, and 1/sqrt(2) for each of two norms that are added before a neuron.
    """

    def begin(self, v_threshold: float, summands: int) -> None:
        nn.init.constant_(self.weight, v_threshold / math.sqrt(summands))


# ---------------------------------------------------------------- over several processes


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with mean and variance over the samples of all processes; x [N, C, ...].

    Weight and bias get the gradient of this process's samples alone, as everywhere before gradients are averaged. What the
    processes tell each other is what the fused layer tells: one of them may compute it so and another so.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the result in x's type, and the mean [C], variance [C] and count [1] that it was made with."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(values, [i for i in range(x.dim()) if i != 1], correction=0)
        ctx.n = values.numel() // values.shape[1]
        n, middle, _, square = distributed.moments(mean, var, ctx.n).double().unbind(1)
        count = n.sum(0)
        mean = (n * middle).sum(0) / count
        var = ((square + n * (middle - mean).square()).sum(0) / count).to(values.dtype)
        mean, count = mean.to(values.dtype), count[:1].to(values.dtype)
        ctx.shape, inverse = [1, -1] + [1] * (x.dim() - 2), (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, var, count)
        out = (values - mean.view(ctx.shape)) * (inverse * weight).view(ctx.shape) + bias.view(ctx.shape)
        return out.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        axes = [i for i in range(grad.dim()) if i != 1]
        centred, grad = x.to(mean.dtype) - mean.view(ctx.shape), grad.to(mean.dtype)
        sums = torch.stack([grad.sum(axes), (grad * centred).sum(axes)])
        along, across = distributed.means(sums, ctx.n)
        across = across * inverse.square()
        gx = (grad - along.view(ctx.shape) - centred * across.view(ctx.shape)) * (weight * inverse).view(ctx.shape)
        return gx.to(x.dtype), sums[1] * inverse, sums[0], None


class _Together(nn.modules.batchnorm._BatchNorm):
    """A batch norm whose training statistics are those of all processes' samples together.

    torch's own SyncBatchNorm refuses CPU tensors, and its conversion would replace BN and TEBN by a plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] -> the same shape and type; N may differ between processes."""
        if not self.training:
            return super().forward(x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        learn(self, mean, var, count)
        return out


def synchronise(model: nn.Module) -> None:
    """Make every batch norm of `model`, those inside BN and TEBN too, take its statistics over all processes.

    Parameters, buffers and their names stay. Needs a process group.
    """
    for module in model.modules():
        kind = type(module)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(module, _Together):
            # BN and its kin first, then the synchronised layer where they call torch's
            module.__class__ = type(f"Sync{kind.__name__}", (kind, _Together), {"together": True})
