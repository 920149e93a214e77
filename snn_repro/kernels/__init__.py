"""All that is only speed, behind one door: `choose` says who computes a layer, and without a kernel PyTorch does, rightly.

A layer says what it computes (`law`: a spiking layer's state equation by name; a norm's affine form) and which backend was
wished for it (`backend`). The kernels know nothing else of neurons, norms and networks.

    torch         the reference: what the layer's own class computes, every dtype and device
    cpu           compiled loops (numba): spiking layers in float32 and bfloat16, with the norm before them in float32
    triton        spiking layers on CUDA, float32, bfloat16 and float16
    spikingjelly  spikingjelly's multi-step functions, where they mean the same as ours
    auto          cpu where it applies, else torch; triton is untested on a GPU and must be asked for

All give the same spikes for the same input; gradients and potentials agree to rounding. Where numba cannot be imported or
cannot compile, forward or backward, `auto` says so once and stays with PyTorch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from snn_repro.errors import UserError, nearest

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from torch import Tensor, nn

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
    (those of the input); then `learn` is called with both, float32 [C], the variance over n, and with n.
    """

    weight: Tensor
    bias: Tensor
    te: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    learn: Callable[[Tensor, Tensor, int], None] | None = None


# ---------------------------------------------------------------- who computes a layer


def choose(layer: nn.Module, x: Tensor, norm: Affine | None = None, law: Law | None = None) -> str:
    """Who computes `layer` for this input: a backend of the spiking layers; for a convolution "torch" or "cpu".

    With `norm`, whether the spiking layer computes the norm before it in the same pass: "cpu", or "torch" for the two apart;
    x [T, B, C, H, W] then is the norm's input. law is the layer's, if the caller has it already. Raises UserError where a backend asked for by
    name cannot run.
    """
    import torch

    if not hasattr(layer, "law"):
        wanted = layer.backend != "torch" and layer.fits(x)
        return "cpu" if wanted and _ready(layer.backend == "sparse", "conv", layer.backend, x.dtype) else "torch"
    if norm is not None and not _takes_norm(x):
        return "torch"
    chosen, law = resolve_backend(layer.backend, x.device.type, x.dtype), law or layer.law()
    if chosen == "torch" or law is None or (layer.store_v_seq and (norm is not None or chosen != "spikingjelly")):
        return "torch"
    if norm is not None and chosen != "cpu":
        return "torch"
    if chosen == "cpu" and not _ready(
        layer.backend == "cpu", "neuron", *law, x.dtype, norm is not None, torch.is_grad_enabled()
    ):
        return "torch"
    return chosen


def _takes_norm(x: Tensor) -> bool:
    """Whether the loops take a norm's input x: float32 on the CPU, all in channels-last order without gaps."""
    import torch

    if x.dim() != 5 or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    _, batch, c, h, w = x.shape
    strides = (batch * c * h * w, c * h * w, 1, w * c, c)
    return x.numel() > c and all(n == 1 or a == b for n, a, b in zip(x.shape, x.stride(), strides, strict=True))


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


def resolve_backend(backend: str, device: str, dtype: torch.dtype | None = None) -> str:
    """What `backend` comes to for spiking layers and inputs of this device type ("cpu", "cuda", ...) and dtype (float32).

    Raises UserError where a backend asked for by name cannot run there.
    """
    import torch

    dtype = torch.float32 if dtype is None else dtype
    if backend == "auto":
        fits = device == "cpu" and dtype in (torch.float32, torch.bfloat16) and broken() is None
        return "cpu" if fits else "torch"  # on CUDA too: the Triton kernels have not met a GPU yet
    named = f"{str(dtype).removeprefix('torch.')} on {device}"
    if backend == "cpu":
        if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            raise UserError(f"neuron.backend=cpu computes float32 and bfloat16 on the CPU, not {named}; use auto")
    if backend == "triton":
        if not _installed("triton"):
            raise UserError("neuron.backend=triton needs the package triton; install it, or use auto")
        from snn_repro.kernels import neuron_triton

        if dtype not in (torch.float32, torch.bfloat16, torch.float16) or device not in neuron_triton.DEVICES:
            raise UserError(
                f"neuron.backend=triton computes float32, bfloat16 and float16 on a CUDA device, not {named}; use auto"
            )
    return backend


def check(layer: nn.Module, name: str) -> None:
    """Raise UserError where a spiking layer named `name` was wished a backend that does not have it."""
    law = layer.law()
    if layer.backend in ("cpu", "triton", "spikingjelly") and law is None:
        raise UserError(f"neuron.backend={layer.backend} has no kernel for '{name}' with these settings; use auto")
    if layer.backend == "spikingjelly":
        if law.strict:
            raise UserError(
                "neuron.backend=spikingjelly fires at h >= V_th only; use neuron.fire_at=ge or another backend"
            )
        if law.charge != "if" and law.v_reset:
            raise UserError(
                f"neuron.backend=spikingjelly leaks towards v_reset, ours towards 0: v_reset={law.v_reset} must be 0 there"
            )


# ---------------------------------------------------------------- whether the loops can be compiled here

_tried: dict[tuple, bool] = {}
_reason: str | None = None


def broken() -> str | None:
    """Why nothing can be compiled here; None as long as everything could."""
    return _reason


def _ready(by_name: bool, kind: str, *case: Any) -> bool:
    """Whether the loops of a case compile, those of its backward pass too; tried before the first forward pass needs them.

    by_name: UserError instead of False.
    """
    if _reason is None and (kind, case) not in _tried:
        _try(kind, case)
    if _reason is not None and by_name:
        raise UserError(f"this backend needs numba, which fails here ({_reason}); use auto, or mend numba")
    return _reason is None


# torch.compile calls it and takes the answer; the decorator for that would import the compiler.
_ready._dynamo_marked_constant = True


def _try(kind: str, case: tuple) -> None:
    global _reason
    try:
        if kind == "neuron":
            from snn_repro.kernels.neuron import rehearse
        else:
            from snn_repro.kernels.conv import rehearse
        rehearse(*case)
    except Exception as error:  # an import, a compiler or a processor that it does not know: all end the same way
        _reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        warnings.warn(
            f"numba cannot compile the fast loops here ({_reason}); PyTorch computes instead: same results, slower",
            RuntimeWarning,
            stacklevel=2,
        )
    _tried[kind, case] = True


# ---------------------------------------------------------------- a whole network


def use(model: nn.Module, kernels: str) -> None:
    """Choose who computes all layers of `model`. Raises UserError for another word than KERNELS."""
    if kernels not in KERNELS:
        raise UserError(f"kernels={kernels!r} is not one of {', '.join(KERNELS)}{nearest(kernels, KERNELS)}")
    set_backend(model, KERNELS[kernels][1])
    for name, module in model.named_modules():
        if hasattr(module, "law"):
            module.backend = KERNELS[kernels][0]
            check(module, name)


def set_backend(model: nn.Module, backend: str) -> None:
    """Choose the kernel of every convolution of `model`; "torch" is torch's own operator.

    Raises UserError for another name than that and CONV_BACKENDS.
    """
    from snn_repro.kernels.conv import Conv2d

    if backend not in (*CONV_BACKENDS, "torch"):
        allowed = ", ".join(CONV_BACKENDS)
        raise UserError(f"model.conv_backend={backend!r} is not one of {allowed}{nearest(backend, CONV_BACKENDS)}")
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.backend = backend


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Within, every layer of `model` is torch's own operations, which counters know."""
    from snn_repro.kernels.conv import Conv2d

    before = {m: m.backend for m in model.modules() if hasattr(m, "law") or isinstance(m, Conv2d)}
    use(model, "off")
    try:
        yield
    finally:
        for module, backend in before.items():
            module.backend = backend


# ---------------------------------------------------------------- threads

# The one pool of all kernels. Python's own: the loops hold no lock, and numba's would be a second OpenMP beside torch's.
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def in_parallel(function: Callable, parts: list[tuple], threads: int) -> list:
    """[function(*part) for part in parts], by up to `threads` threads, of which the caller is one."""
    global _pool
    threads = min(threads, len(parts))
    if threads <= 1:
        return [function(*part) for part in parts]
    if _pool is None:
        from concurrent.futures import ThreadPoolExecutor

        _pool = ThreadPoolExecutor(os.cpu_count(), "kernel")
    results, left = [None] * len(parts), iter(range(len(parts)))

    def serve():
        for i in left:
            results[i] = function(*parts[i])

    others = [_pool.submit(serve) for _ in range(threads - 1)]
    serve()
    for other in others:
        other.result()
    return results


def cuts(n: int, parts: int) -> list[tuple[int, int]]:
    """range(n) in so many pieces of almost equal length: (first, behind the last) of each."""
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
