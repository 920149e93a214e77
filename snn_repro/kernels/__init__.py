"""All that is only speed, behind one door: `choose` says who computes a layer, and without a kernel PyTorch does, rightly.

A layer says what it computes (`law`: a spiking layer's state equation by name; a norm's affine form) and which backend was
wished for it (`backend`). The kernels know nothing else of neurons, norms and networks.

    torch         the reference: what the layer's own class computes, every dtype and device
    cpu           compiled loops (numba): spiking layers in float32 and bfloat16, with the norm before them in float32
    triton        spiking layers on CUDA, with the norm before them and the sum with a shortcut, float32, bfloat16 and float16
    spikingjelly  spikingjelly's multi-step functions, where they mean the same as ours
    auto          cpu or triton where they apply, else torch

All give the spikes that torch gives on a CPU for the same input; gradients and potentials agree to rounding. On CUDA torch
itself does not: it multiplies by 1 / tau, so a LIF neuron whose tau is no power of two may fire otherwise there. With a norm
in the same pass its output is not rounded in between, so a potential within rounding of the threshold may fire otherwise too.

Where numba cannot be imported or cannot compile, forward or backward, `auto` says so once and stays with PyTorch; so it does
where Triton is missing or older than 3.3, and where its kernels do not pass their check on this GPU (`selfcheck.py`).
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


# ---------------------------------------------------------------- who computes a layer


def choose(
    layer: nn.Module, x: Tensor, norm: Affine | None = None, law: Law | None = None, timesteps: int | None = None
) -> str:
    """Who computes `layer` for this input: a backend of the spiking layers; for a convolution "torch" or "cpu".

    With `norm`, whether the spiking layer computes the norm before it in the same pass: "cpu" or "triton", or "torch" for the
    two apart; x [T, B, C, H, W] then is the norm's input, or [1, B, C, H, W] for `timesteps` equal steps. law is the layer's, if
    the caller has it already. Raises UserError where a backend asked for by name cannot run.
    """
    import torch

    if not hasattr(layer, "law"):
        wanted = layer.backend != "torch" and layer.fits(x)
        return "cpu" if wanted and _ready(layer.backend == "sparse", "conv", layer.backend, x.dtype) else "torch"
    chosen, law = resolve_backend(layer.backend, x.device.type, x.dtype), law or layer.law()
    if chosen == "torch" or law is None or (layer.store_v_seq and (norm is not None or chosen != "spikingjelly")):
        return "torch"
    if norm is not None and not (chosen == "cpu" and not norm.together and _takes_norm(x)):
        if chosen != "triton" or not _takes_norm_there(x, norm, timesteps or x.shape[0]):
            return "torch"
    if chosen == "triton" and layer.backend == "auto" and not _right(law, x.dtype, timesteps or x.shape[0], x.device):
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


def _takes_norm_there(x: Tensor, norm: Affine, timesteps: int) -> bool:
    """Whether the Triton kernels take a norm and its input x: samples without gaps, channels last, or channels first where
    their planes begin at whole vectors, and potentials that fit into registers."""
    import torch

    if x.dim() != 5 or norm.weight.dtype != torch.float32 or timesteps > 64 or x.numel() <= x.shape[2]:
        return False
    _, _, c, h, w = x.shape
    orders = ((1, w * c, c), (h * w, w, 1)) if h * w % 16 == 0 else ((1, w * c, c),)
    own = tuple(zip(x.shape[2:], x.stride()[2:], strict=True))
    return any(all(n == 1 or a == b for (n, a), b in zip(own, order, strict=True)) for order in orders)


def of_norms(layer: nn.Module, x: Tensor) -> str:
    """Who computes a spiking layer together with the norm before it, where `choose` said that somebody does."""
    return "triton" if x.is_cuda or layer.backend == "triton" else "cpu"


def sums(layer: nn.Module) -> bool:
    """Whether a spiking layer that Triton computes may add a shortcut to its spikes: nobody wants to see these alone."""
    from torch.nn.modules import module

    return not (layer._forward_hooks or layer._backward_hooks or module._global_forward_hooks) and layer._plain


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _triton_lacks() -> str | None:
    """What keeps the Triton kernels from running here, in words; None: nothing."""
    if not _installed("triton"):
        return "needs the package triton; install it"
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        return f"needs triton 3.3 or newer, which torch 2.7 brings, and this is {triton.__version__}; update torch"
    return None


_said: set[str] = set()


def _say(sentence: str) -> None:
    """Warn, once in a process."""
    if sentence not in _said:
        _said.add(sentence)
        warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def _triton_there() -> bool:
    """For `auto` on CUDA: whether its kernels may be tried; one line says why not."""
    lacks = _triton_lacks()
    if lacks is not None:
        _say(f"the fused spiking layers on CUDA: this {lacks}; PyTorch computes instead: same results, slower")
    return lacks is None


_checked: dict[tuple, bool] = {}


def _right(law: Law, dtype: torch.dtype, timesteps: int, device: torch.device) -> bool:
    """Whether the Triton kernels of this case are known to be right on `device`; found out at the first call, see `selfcheck.py`."""
    case = law, dtype, timesteps, device
    if case not in _checked:
        from snn_repro.kernels import selfcheck

        reason = selfcheck.refusal(*case) if timesteps <= 64 else f"{timesteps} time steps do not fit into registers"
        _checked[case] = reason is None
        if reason is not None:
            _say(
                f"the fused spiking layers are not used on {selfcheck.machine(device)}: {reason}; PyTorch computes instead"
            )
    return _checked[case]


# torch.compile calls these and takes the answer; the decorator for that would import the compiler.
_right._dynamo_marked_constant = True
_triton_there._dynamo_marked_constant = _triton_lacks._dynamo_marked_constant = True


def resolve_backend(backend: str, device: str, dtype: torch.dtype | None = None) -> str:
    """What `backend` comes to for spiking layers and inputs of this device type ("cpu", "cuda", ...) and dtype (float32).

    Raises UserError where a backend asked for by name cannot run there.
    """
    import torch

    dtype = torch.float32 if dtype is None else dtype
    if backend == "auto":
        if device == "cuda" and dtype in (torch.float32, torch.bfloat16, torch.float16) and _triton_there():
            return "triton"  # once `choose` has had them checked
        fits = device == "cpu" and dtype in (torch.float32, torch.bfloat16) and broken() is None
        return "cpu" if fits else "torch"
    named = f"{str(dtype).removeprefix('torch.')} on {device}"
    if backend == "cpu":
        if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            raise UserError(f"neuron.backend=cpu computes float32 and bfloat16 on the CPU, not {named}; use auto")
    if backend == "triton":
        if lacks := _triton_lacks():
            raise UserError(f"neuron.backend=triton {lacks}, or use auto")
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


def prepare(model: nn.Module, device: torch.device, dtypes: tuple[torch.dtype, ...], timesteps: int) -> str:
    """Have all checked that the spiking layers of `model` will ask for; returns who computes them, in words."""
    found = {}
    for module in model.modules():
        if hasattr(module, "law"):
            for dtype in dtypes:
                chosen, law = resolve_backend(module.backend, device.type, dtype), module.law()
                if chosen != "torch" and law is None:
                    chosen = "torch"
                if chosen == "triton" and module.backend == "auto" and not _right(law, dtype, timesteps, device):
                    chosen = "torch"
                found[chosen] = None
    return " and ".join(found) or "torch"


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
