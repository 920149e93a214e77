"""Fast kernels for spiking layers and convolutions; `door.py` picks the backend of a layer.

    torch         the reference: the layer's own class, every dtype and device
    cpu           compiled loops (numba): float32 and bfloat16; with a fused norm float32 only
    triton        CUDA: float32, bfloat16 and float16; can fuse the norm before the layer and the shortcut after it
    spikingjelly  spikingjelly's multi-step functions, where equivalent
    compile       every neuron: its reference as graphs for torch.compile; needs a C++ compiler, on CUDA Triton
    auto          cpu or triton where they apply; else compile in a run long enough to repay it; else torch

All give the spikes that torch gives on a CPU for the same input; gradients and potentials agree up to rounding. There
are two exceptions. On CUDA torch multiplies by 1 / tau, so there a LIF neuron may fire differently unless tau is a
power of two. The output of a fused norm is not rounded, so a potential within rounding of the threshold may fire
differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("auto", "torch", "cpu", "triton", "spikingjelly", "compile")  # of a spiking layer
CONV_BACKENDS = ("auto", "dense", "sparse")  # of a convolution
CHARGES = ("if", "lif", "leaky")  # v + x; v + (x - v) / leak; leak * v + x
SLOPES = ("atan", "sigmoid", "triangle")  # surrogate derivatives

# `kernels=NAME` sets the backends of a whole network: (spiking layers, convolutions).
KERNELS = {
    "auto": ("auto", "auto"),
    "off": ("torch", "torch"),
    "triton": ("triton", "auto"),
    "spikingjelly": ("spikingjelly", "auto"),
    "compile": ("compile", "auto"),
    "dense": ("auto", "dense"),
    "sparse": ("auto", "sparse"),
}


class Law(NamedTuple):
    """State equation of a spiking layer as kernel parameters; v_reset None means soft reset."""

    charge: str  # of CHARGES
    leak: float
    slope: str  # of SLOPES
    width: float
    strict: bool  # fire at h > v_threshold
    v_threshold: float
    v_reset: float | None
    detach: bool


class Affine(NamedTuple):
    """A norm as kernel parameters.

        z[t] = ((x[t] - mean) / sqrt(var + eps) * weight + bias) * te[t]

    weight, bias, mean, var are [C], te is [T] or None. In evaluation mean and var are the running statistics. In
    training they are None: those of the input (`together`: of all processes' inputs) are used and passed to `learn` as
    float32 [C], the variance over n, with n (`together`: as a tensor [1]).
    """

    weight: Tensor
    bias: Tensor
    te: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    learn: Callable[[Tensor, Tensor, int | Tensor], None] | None = None
    together: bool = False
