"""Fast kernels: the words that choose one, and the two forms that they know. `door.py` picks the kernel of a layer.

    torch         the reference: what the layer's own class computes, every dtype and device
    cpu           compiled loops (numba): spiking layers in float32 and bfloat16, with the norm before them in float32
    triton        spiking layers on CUDA, with the norm before them and the sum with a shortcut, float32, bfloat16 and float16
    spikingjelly  spikingjelly's multi-step functions, where they mean the same as ours
    auto          cpu or triton where they apply, else torch

All give the spikes that torch gives on a CPU for the same input; gradients and potentials agree to rounding. On CUDA torch
itself does not: it multiplies by 1 / tau, so a LIF neuron whose tau is no power of two may fire otherwise there. With a norm
in the same pass its output is not rounded in between, so a potential within rounding of the threshold may fire otherwise too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("auto", "torch", "cpu", "triton", "spikingjelly")  # of a spiking layer
CONV_BACKENDS = ("auto", "dense", "sparse")  # of a convolution
CHARGES = ("if", "lif", "leaky")  # v + x; v + (x - v) / leak; leak * v + x
SLOPES = ("atan", "sigmoid", "triangle")  # surrogate derivatives

# One word for a whole network: the backends of its spiking layers and of its convolutions.
KERNELS = {
    "auto": ("auto", "auto"),
    "off": ("torch", "torch"),
    "triton": ("triton", "auto"),
    "spikingjelly": ("spikingjelly", "auto"),
    "dense": ("auto", "dense"),
    "sparse": ("auto", "sparse"),
}


class Law(NamedTuple):
    """The state equation of a spiking layer as the kernels know it; v_reset None means soft reset."""

    charge: str
    leak: float
    slope: str
    width: float
    strict: bool
    v_threshold: float
    v_reset: float | None
    detach: bool


class Affine(NamedTuple):
    """A norm as the kernels know it: z[t] = ((x[t] - mean) / sqrt(var + eps) * weight + bias) * te[t].

    weight, bias, mean, var [C], te [T] or None. mean and var are given in evaluation (the running ones) and None in training
    (those of the input, with `together` of the inputs of all processes); then `learn` is called with both, float32 [C], the
    variance over n, and with n, with `together` a tensor [1].
    """

    weight: Tensor
    bias: Tensor
    te: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    learn: Callable[[Tensor, Tensor, int | Tensor], None] | None = None
    together: bool = False
