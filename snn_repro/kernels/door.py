"""Entry point to all kernels: `choose` picks a layer's backend; PyTorch is the fallback.

A layer passes its law (state equation), the norm before it in affine form and the requested backend. `auto` warns once
and uses PyTorch where numba cannot be imported or cannot compile (forward or backward), where Triton is missing or
older than 3.3, and where its kernels fail their check on this GPU (`selfcheck.py`).
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn

from snn_repro.errors import UserError, nearest
from snn_repro.kernels import CONV_BACKENDS, KERNELS, Affine, Law, neuron, selfcheck
from snn_repro.kernels.compiled import broken, ready
from snn_repro.kernels.conv import Convolution

MOST_STEPS = 64  # T of the Triton kernels, whose potentials stay in registers
MOST_UNROLLED = 32  # T of compiled steps in `auto`: graphs, and the time to compile them, grow with T
REPAID = 5e9  # neuron-steps, both passes, in which compiled steps save what compiling took (docs/performance.md)
CPU_TYPES = (torch.float32, torch.bfloat16)
TRITON_TYPES = (*CPU_TYPES, torch.float16)


class Plan(NamedTuple):
    """A layer's backend; without a law the layer's own class, with a norm both fused."""

    backend: str
    law: Law | None = None
    norm: Affine | None = None
    timesteps: int | None = None


TORCH = Plan("torch")


def choose(backend: str, law: Law | None, x: Tensor, norm: Affine | None = None, timesteps: int | None = None) -> Plan:
    """Choose the backend of a spiking layer for input x [T, B, ...].

    With `norm`, x is the norm's input, possibly [1, B, C, H, W] for `timesteps` equal steps; the plan has the norm if
    one kernel runs both. Raises UserError where a backend requested by name cannot run.
    """
    steps = timesteps or x.shape[0]
    if (chosen := _chosen(backend, law, x.dtype, steps, x.device)) in ("torch", "compile") or law is None:
        return TORCH
    if norm is not None and not _takes_norm(chosen, x, norm, steps):
        norm = None
    if chosen == "cpu":
        case = *law, x.dtype, norm is not None, torch.is_grad_enabled()
        if not ready(backend == "cpu", neuron.rehearse, *case):
            return TORCH
    return Plan(chosen, law, norm, steps)


def _chosen(backend: str, law: Law | None, dtype: torch.dtype, steps: int, device: torch.device) -> str:
    chosen = resolve_backend(backend, device.type, dtype)
    wrong = chosen == "triton" and backend == "auto" and law is not None and not _is_verified(law, dtype, steps, device)
    return "torch" if law is None or wrong else chosen


def run(
    plan: Plan, x: Tensor, v0: Tensor | None, plus: Tensor | None, store_v_seq: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a plan: (spikes + plus [T, B, ...], last potential [B, ...], all potentials)."""
    assert plan.law is not None
    if plan.backend == "spikingjelly":
        return _by_spikingjelly(x, v0, plan.law, store_v_seq)
    return *neuron.update(x, v0, plan.law, plan.backend, plan.norm, plan.timesteps, plus), None


def steps(layer: Any, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a layer without a kernel: compiled steps where `compiles`, else the reference.

    Raises UserError where steps that were requested by name do not compile; `auto` warns once for each family.
    """
    found, by_name = None, layer.backend == "compile"
    if compiles(layer):
        try:
            found = import_module("snn_repro.kernels.steps").run(layer, x, v0, by_name)
        except Exception as error:  # of tracing, torch.compile or a C++ compiler
            reason = f"the steps of '{layer.family}' are not compiled ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            if by_name:
                raise UserError(f"kernels=compile: {reason}; use kernels=auto") from error
            _warn_once(f"{reason}; using PyTorch: same results, slower")
            layer.repays = False
    return layer.steps(x, v0) if found is None else found


def compiles(layer: Any) -> bool:
    """Whether a layer runs compiled steps: by name, or in a long run."""
    by_name = layer.backend == "compile"
    return (by_name or (layer.backend == "auto" and layer.repays)) and layer.watch is None and not layer.store_v_seq


def compile_if_repaid(model: nn.Module, timesteps: int, samples: int) -> str | None:
    """Let `auto` compile steps without a kernel in a run that repays it.

    samples: training samples of all epochs. Returns the decision as a line; None if all layers have a kernel.
    """
    layers = [m for m in _spiking(model).values() if m.backend == "auto" and m.watch is None and m.law() is None]
    families = ", ".join(dict.fromkeys(layer.family for layer in layers))
    work = samples * timesteps * sum(math.prod(layer.state_shape or ()) for layer in layers)
    pays = work >= REPAID * (families.count(",") + 1) and timesteps <= MOST_UNROLLED
    for layer in layers:
        layer.repays = pays
    how = f"compiles the steps of {families}" if pays else f"runs the steps of {families} by PyTorch"
    why = f"{work:.0e} neuron-steps, T={timesteps}; {REPAID:.0e} for each family with T <= {MOST_UNROLLED} repay it"
    return f"kernels=auto {how} ({why})" if layers else None


def _by_spikingjelly(x: Tensor, v0: Tensor | None, law: Law, store_v_seq: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """`run` with spikingjelly's multi-step functions."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    v = torch.zeros((), dtype=dtype, device=x.device) if v0 is None else v0.to(dtype)
    kinds = dict(atan=surrogate.ATan, sigmoid=surrogate.Sigmoid, triangle=lambda c: surrogate.PiecewiseQuadratic(1 / c))
    step = kinds[law.slope](law.width)
    settings = (law.v_threshold, law.v_reset, step, law.detach, store_v_seq)
    inputs = (x.to(dtype), v.expand(x.shape[1:]).contiguous())
    if law.charge == "if" or (law.charge == "leaky" and law.leak == 1):
        spikes, v, v_seq = functional.if_multi_step(*inputs, *settings)
    else:  # leaky: lif with decay_input=False
        decay = (law.leak, True) if law.charge == "lif" else (1 / (1 - law.leak), False)
        spikes, v, v_seq = functional.lif_multi_step(*inputs, *decay, *settings)
    return spikes.to(x.dtype), v, v_seq


def _takes_norm(chosen: str, x: Tensor, norm: Affine, timesteps: int) -> bool:
    """Whether a backend can fuse a norm with input x [T, B, C, H, W]; cpu: or tokens [T, B, C, L].

    cpu: float32, dense channels-last memory. triton: dense samples, channels last, or channels first with planes of
    whole vectors; potentials must fit the registers.
    """
    x = x.unsqueeze(-1) if x.dim() == 4 and chosen == "cpu" else x
    if x.dim() != 5 or x.numel() <= x.shape[2]:
        return False
    _, batch, c, h, w = x.shape
    last = neuron.strides_agree(x.shape[2:], x.stride()[2:], (1, w * c, c))
    if chosen == "triton":
        first = h * w % 16 == 0 and neuron.strides_agree(x.shape[2:], x.stride()[2:], (h * w, w, 1))
        return (last or first) and norm.weight.dtype == torch.float32 and timesteps <= MOST_STEPS
    dense = last and neuron.strides_agree(x.shape[:2], x.stride()[:2], (batch * c * h * w, c * h * w))
    own = x.dtype == torch.float32 and not norm.together and not torch.is_autocast_enabled("cpu")
    return chosen == "cpu" and dense and own


def resolve_backend(backend: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that `backend` selects for a device type and dtype.

    Raises UserError where a backend requested by name cannot run there.
    """
    if backend == "auto":
        if device == "cuda" and dtype in TRITON_TYPES and _triton_there():
            return "triton"  # `choose` verifies it
        return "cpu" if device == "cpu" and dtype in CPU_TYPES and broken() is None else "torch"
    named = f"{str(dtype).removeprefix('torch.')} on {device}"
    if backend == "cpu" and (device != "cpu" or dtype not in CPU_TYPES):
        raise UserError(f"neuron.backend=cpu supports float32 and bfloat16 on the CPU, not {named}; use auto")
    if backend == "triton":
        if lacks := _triton_lacks():
            raise UserError(f"neuron.backend=triton {lacks}, or use auto")
        from snn_repro.kernels.neuron_triton import DEVICES

        if dtype not in TRITON_TYPES or device not in DEVICES:
            raise UserError(f"neuron.backend=triton supports float32, bfloat16, float16 on CUDA, not {named}; use auto")
    return backend


def check_backend(layer: Any, name: str) -> None:
    """Raise UserError if a spiking layer lacks the kernel that was requested by name."""
    law, backend = layer.law(), layer.backend
    if backend in ("cpu", "triton", "spikingjelly") and law is None:
        raise UserError(f"neuron.backend={backend} has no kernel for '{name}' with these settings; use auto")
    if backend == "spikingjelly" and law.strict:
        raise UserError("neuron.backend=spikingjelly fires at h >= v_th only; use neuron.fire_at=ge or another backend")
    if backend == "spikingjelly" and law.charge != "if" and law.v_reset:
        raise UserError(f"neuron.backend=spikingjelly leaks towards v_reset={law.v_reset}, not 0; use v_reset=0")


def _triton_lacks() -> str | None:
    """Return why the Triton kernels cannot run here; None if they can."""
    try:
        import triton
    except ImportError:
        return "needs the package triton; install it"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        return f"needs triton 3.3 or newer (from torch 2.7), not {triton.__version__}; update torch"
    return None


@cache
def _warn_once(sentence: str) -> None:
    """Warn, once per process."""
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def _triton_there() -> bool:
    """Whether `auto` may try the Triton kernels on CUDA; warns if not."""
    if lacks := _triton_lacks():
        _warn_once(f"the fused spiking layer on CUDA {lacks}; using PyTorch: same results, slower")
    return not lacks


def _is_verified(law: Law, dtype: torch.dtype, timesteps: int, device: torch.device) -> bool:
    """Whether the Triton kernels passed their check on `device`; made at the first call."""
    return _verdict(law, dtype, timesteps, device)


@cache
def _verdict(law: Law, dtype: torch.dtype, timesteps: int, device: torch.device) -> bool:
    reason: str | None = f"{timesteps} time steps do not fit into registers"
    if timesteps <= MOST_STEPS:
        reason = selfcheck.refusal(law, dtype, timesteps, device)
    if reason is not None:
        where = selfcheck.machine(device)
        _warn_once(f"the fused spiking layer is not used on {where}: {reason}; using PyTorch")
    return reason is None


# torch.compile calls these while tracing; the decorator for that would import the compiler.
_is_verified._dynamo_marked_constant = True
_triton_there._dynamo_marked_constant = _triton_lacks._dynamo_marked_constant = True


def _spiking(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "law")}


def prepare(model: nn.Module, device: torch.device, dtypes: tuple[torch.dtype, ...], timesteps: int) -> str:
    """Verify the kernels of all spiking layers of `model`; return their backends as text."""
    layers = [(compiles(module), module.backend, module.law()) for module in _spiking(model).values()]
    found = {
        "compile" if compiled else _chosen(*layer, dtype, timesteps, device): None
        for compiled, *layer in layers
        for dtype in dtypes
    }
    return " and ".join(found) or "torch"


def use(model: nn.Module, kernels: str) -> None:
    """Set the backends of all layers of `model`. Raises UserError unless KERNELS has `kernels`."""
    if kernels not in KERNELS:
        raise UserError(f"kernels={kernels!r} is not one of {', '.join(KERNELS)}{nearest(kernels, KERNELS)}")
    backend, of_convolutions = KERNELS[kernels]
    set_backend(model, of_convolutions)
    for name, module in _spiking(model).items():
        module.backend = backend
        check_backend(module, name)


def set_backend(model: nn.Module, backend: str) -> None:
    """Set the backend of every convolution of `model`.

    Raises UserError unless it is one of CONV_BACKENDS or "torch", torch's own operator.
    """
    if backend not in (*CONV_BACKENDS, "torch"):
        allowed = ", ".join(CONV_BACKENDS)
        raise UserError(f"model.conv_backend={backend!r} is not one of {allowed}{nearest(backend, CONV_BACKENDS)}")
    for module in model.modules():
        if isinstance(module, Convolution):
            module.backend = backend


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Context manager: all layers of `model` use torch's own operations, which counters see."""
    before: dict[Any, str] = {m: m.backend for m in model.modules() if hasattr(m, "law") or isinstance(m, Convolution)}
    use(model, "off")
    try:
        yield
    finally:
        for module, backend in before.items():
            module.backend = backend
