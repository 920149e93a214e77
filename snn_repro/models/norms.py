"""Norm layers over [T, B, C, H, W], registered by name.

A norm is one class, built by Norm(channels, timesteps). Batch statistics run over T, B, H and W together unless it says
otherwise. `affine_form` describes it to a fused spiking layer, `parameter_kind` classifies its parameters for the
optimiser, `wired` means that it accepts one T only, and `causal` that in evaluation no output depends on later steps.
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
NORM = Setting("bn", "norm after each convolution; null: bn", choices=NORMS)


def norms(name: Any, timesteps: int, neuron: Any) -> Callable[..., nn.Module]:
    """Return a builder build(channels, summands=1) of norms.

    name: one of NORMS, or a builder name(channels, timesteps) with its settings bound. neuron: builder of the neurons
    that follow (blocks.Neurons). summands: number of norms that are summed into the neurons' input, 2 with a shortcut.
    A norm whose initial weights depend on the threshold has a method `begin(v_threshold, summands)`.
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
    """Give x [1, C, H, W] and its gradient the first stride of a dense tensor.

    Views such as flatten may leave any stride on an axis of size 1. With stride C, say, on a channels-last tensor,
    torch's CPU batch norm treats it as channels last in one place and as contiguous in another, and its backward pass
    mixes up values (seen in torch 2.13; docs/notebook.md).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.as_strided(x.shape, (x[0].numel(), *x.stride()[1:]))

    backward = forward


def one_sample_too(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return norm(x) of x [N, C, H, W], correct for N = 1 too."""
    # without gradients N is not read, so an exported graph accepts any
    if not torch.is_grad_enabled() or len(x) > 1:
        return norm(x)
    return _OneSample.apply(norm(_OneSample.apply(x)))


@register_norm("bn")
class BN(nn.BatchNorm2d):
    """Batch normalisation that treats each time step as a sample."""

    wired = False  # whether it accepts one number of time steps only
    together = False  # whether statistics cover all processes, see `synchronise`

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "forward" in vars(cls) and "affine_form" not in vars(cls):
            cls.affine_form = lambda self: None  # the inherited one describes another forward

    def __init__(self, channels: int, timesteps: int | None = None):
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return one_sample_too(super().forward, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def affine_form(self) -> Affine | None:
        """What a fused spiking layer needs to compute this norm; None if it cannot."""
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        if hooked or self.momentum is None or not self.track_running_stats:
            return None
        te = self._parameters.get("te")
        if self.training:
            return Affine(self.weight, self.bias, te, None, None, self.eps, partial(learn, self), self.together)
        return Affine(self.weight, self.bias, te, self.running_mean, self.running_var, self.eps)

    def parameter_kind(self, name: str) -> str:
        """Kind of a parameter for the optimiser: "te" or "norm"."""
        return "te" if name == "te" else "norm"


@torch.no_grad()
def learn(norm: Any, mean: Tensor, var: Tensor, n: int | Tensor) -> None:
    """Update running statistics with a batch's mean [C] and biased variance [C] of n values."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)


@register_norm("tebn")
class TEBN(BN):
    """Temporal effective batch norm (Duan et al., NeurIPS 2022): BN(x)[t] * te[t].

    te [T], one learned factor per time step, starts at 1; the norm accepts only T steps, or one that is repeated:
    [1, B, C, H, W] -> [T, B, C, H, W].
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
    """TEBN of the published DVS128 Gesture code: BN(x)[t] * (x[t] * te[t]), x unnormalised."""

    def forward(self, x: Tensor) -> Tensor:
        return BN.forward(self, x) * (x * self.te.view(-1, 1, 1, 1, 1))


@register_norm("tab")
class TAB(nn.Module):
    """Temporal accumulated batch norm (Jiang et al., ICLR 2024): y[t] = p[t]^2 BN_t(x)[t].

    BN_t takes its statistics over steps 1 to t. Each step has its own statistics, weight, bias and p (initially 1, with
    weight decay), so the norm accepts only T steps, or one that is repeated: [1, B, C, H, W] -> [T, B, C, H, W].
    In training, step t is normalised with all steps before it: (T + 1) / 2 times the work of BN.
    """

    wired = True

    def __init__(self, channels: int, timesteps: int):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(timesteps))
        self.p = nn.Parameter(torch.ones(timesteps))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.bn), *x.shape[1:]) if len(x) == 1 else x
        batch, outputs = x.shape[1], []
        for t, bn in enumerate(self.bn):
            seen = x[: t + 1] if self.training else x[t : t + 1]
            outputs.append(one_sample_too(bn, seen.flatten(0, 1))[-batch:])
        return torch.cat(outputs).unflatten(0, (-1, batch)) * self.p.view(-1, 1, 1, 1, 1) ** 2

    def parameter_kind(self, name: str) -> str:
        """Kind of every parameter for the optimiser: "te"."""
        return "te"


@register_norm("tdbn")
class TDBN(BN):
    """Threshold-dependent batch norm (Zheng et al., AAAI 2021, arXiv:2011.05280).

    BN whose weight starts at alpha V_th, alpha = 1/sqrt(summands): 1, or 1/sqrt(2) with a shortcut.
    """

    def begin(self, v_threshold: float, summands: int) -> None:
        """Set the initial weight for a threshold and a number of summed norms."""
        nn.init.constant_(self.weight, v_threshold / math.sqrt(summands))


# ---------------------------------------------------------------- over several processes


class _Normalise(torch.autograd.Function):
    """Batch norm of x [N, C, ...] with mean and variance over all processes.

    Weight and bias get the gradient of this process's samples only, as everywhere before gradients are averaged.
    Processes exchange the same values as in the fused layer, so each process may use either.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the result in x's type, and the mean [C], variance [C] and count [1] used."""
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
    """A batch norm whose training statistics cover the samples of all processes.

    torch's SyncBatchNorm rejects CPU tensors, and its conversion would replace BN and TEBN by a plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...] -> the same shape and type; N may differ between processes."""
        if not self.training:
            return super().forward(x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        learn(self, mean, var, count)
        return out


def synchronise(model: nn.Module) -> None:
    """Make every batch norm of `model` use statistics over all processes.

    Parameters, buffers and their names stay. Needs a process group.
    """
    for module in model.modules():
        kind = type(module)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(module, _Together):
            # method resolution: BN or its subclass first, then the synchronised layer instead of torch's
            module.__class__ = type(f"Sync{kind.__name__}", (kind, _Together), {"together": True})
