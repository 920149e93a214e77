"""The door to all kernels: `choose` picks the backend of a layer; PyTorch is the fallback.

A layer hands over its law (the state equation by name), the affine form of the norm before it, and the backend that was asked
for; the door knows nothing else of neurons, norms and networks. Where numba cannot be imported or cannot compile, forward or
backward, `auto` says so once and stays with PyTorch; so it does where Triton is missing or older than 3.3, and where its
kernels do not pass their check on this GPU (`selfcheck.py`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn

from snn_repro.errors import UserError, nearest
from snn_repro.kernels import CONV_BACKENDS, KERNELS, Affine, Law, neuron, selfcheck
from snn_repro.kernels.compiled import broken, ready
from snn_repro.kernels.conv import Conv2d

MOST_STEPS = 64  # of the Triton kernels, whose potentials stay in registers
CPU_TYPES = (torch.float32, torch.bfloat16)
TRITON_TYPES = (*CPU_TYPES, torch.float16)


# ---------------------------------------------------------------- one layer


class Plan(NamedTuple):
    """Which backend runs a layer; `torch` (without a law) is the layer's own class. norm: that the kernel runs before it."""

    backend: str
    law: Law | None = None
    norm: Affine | None = None
    timesteps: int | None = None


TORCH = Plan("torch")


def choose(backend: str, law: Law | None, x: Tensor, norm: Affine | None = None, timesteps: int | None = None) -> Plan:
    """The plan of a spiking layer for input x [T, B, ...]; backend is what was asked for.

    With `norm`, x is the norm's input, perhaps [1, B, C, H, W] for `timesteps` equal steps; the plan holds the norm where one
    kernel runs both. Raises UserError where a backend asked for by name cannot run.
    """
    chosen = resolve_backend(backend, x.device.type, x.dtype)
    if chosen == "torch" or law is None:
        return TORCH
    steps = timesteps or x.shape[0]
    if norm is not None and not _takes_norm(chosen, x, norm, steps):
        norm = None
    if chosen == "triton" and backend == "auto" and not _right(law, x.dtype, steps, x.device):
        return TORCH
    if chosen == "cpu":
        case = *law, x.dtype, norm is not None, torch.is_grad_enabled()
        if not ready(backend == "cpu", neuron.rehearse, *case):
            return TORCH
    return Plan(chosen, law, norm, steps)


def run(
    plan: Plan, x: Tensor, v0: Tensor | None, plus: Tensor | None, store_v_seq: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer by its plan's kernel: spikes (+ plus) [T, B, ...], last potential [B, ...], all potentials if wanted and known."""
    assert plan.law is not None
    if plan.backend == "spikingjelly":
        return _by_spikingjelly(x, v0, plan.law, store_v_seq)
    return *neuron.update(x, v0, plan.law, plan.backend, plan.norm, plan.timesteps, plus), None


def _by_spikingjelly(x: Tensor, v0: Tensor | None, law: Law, store_v_seq: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """By spikingjelly's own multi-step functions: spikes [T, B, ...] in x's dtype, the last potential [B, ...], and all after each reset [T, B, ...] if wanted."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    v = torch.zeros((), dtype=dtype, device=x.device) if v0 is None else v0.to(dtype)
    step = {
        "atan": surrogate.ATan,
        "sigmoid": surrogate.Sigmoid,
        "triangle": lambda gamma: surrogate.PiecewiseQuadratic(1 / gamma),
    }[law.slope](law.width)
    settings = (law.v_threshold, law.v_reset, step, law.detach, store_v_seq)
    inputs = (x.to(dtype), v.expand(x.shape[1:]).contiguous())
    if law.charge == "if" or (law.charge == "leaky" and law.leak == 1):
        spikes, v, v_seq = functional.if_multi_step(*inputs, *settings)
    elif law.charge == "leaky":  # its lif with an undecayed input
        spikes, v, v_seq = functional.lif_multi_step(*inputs, 1 / (1 - law.leak), False, *settings)
    else:
        spikes, v, v_seq = functional.lif_multi_step(*inputs, law.leak, True, *settings)
    return spikes.to(x.dtype), v, v_seq


def _takes_norm(chosen: str, x: Tensor, norm: Affine, timesteps: int) -> bool:
    """Whether a backend takes a norm and its input x [T, B, C, H, W].

    The loops: float32 on the CPU, all in channels-last order without gaps. Triton's kernels: samples without gaps, channels last,
    or channels first where their planes begin at whole vectors, and potentials that fit into registers.
    """
    if x.dim() != 5 or x.numel() <= x.shape[2]:
        return False
    _, batch, c, h, w = x.shape
    orders = [(1, w * c, c)]
    if chosen == "triton" and h * w % 16 == 0:
        orders.append((h * w, w, 1))
    lies = any(
        all(n == 1 or a == b for n, a, b in zip(x.shape[2:], x.stride()[2:], order, strict=True)) for order in orders
    )
    if chosen == "triton":
        return lies and norm.weight.dtype == torch.float32 and timesteps <= MOST_STEPS
    own = x.dtype == torch.float32 and not norm.together and not torch.is_autocast_enabled("cpu")
    dense = all(n == 1 or a == b for n, a, b in zip(x.shape, x.stride(), (batch * c * h * w, c * h * w), strict=False))
    return chosen == "cpu" and lies and own and dense


def resolve_backend(backend: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """What `backend` comes to for spiking layers and inputs of this device type ("cpu", "cuda", ...) and dtype.

    Raises UserError where a backend asked for by name cannot run there.
    """
    if backend == "auto":
        if device == "cuda" and dtype in TRITON_TYPES and _triton_there():
            return "triton"  # once `choose` has had them checked
        return "cpu" if device == "cpu" and dtype in CPU_TYPES and broken() is None else "torch"
    named = f"{str(dtype).removeprefix('torch.')} on {device}"
    if backend == "cpu" and (device != "cpu" or dtype not in CPU_TYPES):
        raise UserError(f"neuron.backend=cpu computes float32 and bfloat16 on the CPU, not {named}; use auto")
    if backend == "triton":
        if lacks := _triton_lacks():
            raise UserError(f"neuron.backend=triton {lacks}, or use auto")
        from snn_repro.kernels.neuron_triton import DEVICES

        if dtype not in TRITON_TYPES or device not in DEVICES:
            raise UserError(
                f"neuron.backend=triton computes float32, bfloat16 and float16 on a CUDA device, not {named}; use auto"
            )
    return backend


def check(layer: Any, name: str) -> None:
    """Raise UserError where a spiking layer named `name` has no kernel of the backend that was asked for by name."""
    law, backend = layer.law(), layer.backend
    if backend in ("cpu", "triton", "spikingjelly") and law is None:
        raise UserError(f"neuron.backend={backend} has no kernel for '{name}' with these settings; use auto")
    if backend == "spikingjelly" and law.strict:
        raise UserError("neuron.backend=spikingjelly fires at h >= V_th only; use neuron.fire_at=ge or another backend")
    if backend == "spikingjelly" and law.charge != "if" and law.v_reset:
        raise UserError(
            f"neuron.backend=spikingjelly leaks towards v_reset, ours towards 0: v_reset={law.v_reset} must be 0 there"
        )


# ---------------------------------------------------------------- whether Triton's kernels may be used

_checked: dict[tuple, bool] = {}


def _triton_lacks() -> str | None:
    """What keeps the Triton kernels from running here, in words; None: nothing."""
    try:
        import triton
    except ImportError:
        return "needs the package triton; install it"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        return f"needs triton 3.3 or newer, which torch 2.7 brings, and this is {triton.__version__}; update torch"
    return None


@cache
def _say(sentence: str) -> None:
    """Warn, once in a process."""
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def _triton_there() -> bool:
    """For `auto` on CUDA: whether its kernels may be tried; one line says why not."""
    lacks = _triton_lacks()
    if lacks is not None:
        _say(f"the fused spiking layers on CUDA: this {lacks}; PyTorch computes instead: same results, slower")
    return lacks is None


def _right(law: Law, dtype: torch.dtype, timesteps: int, device: torch.device) -> bool:
    """Whether the Triton kernels of this case are known to be right on `device`; found out at the first call."""
    case = law, dtype, timesteps, device
    if case not in _checked:
        fits = timesteps <= MOST_STEPS
        reason = selfcheck.refusal(*case) if fits else f"{timesteps} time steps do not fit into registers"
        _checked[case] = reason is None
        if reason is not None:
            where = selfcheck.machine(device)
            _say(f"the fused spiking layers are not used on {where}: {reason}; PyTorch computes instead")
    return _checked[case]


# torch.compile calls these and takes the answer; the decorator for that would import the compiler.
_right._dynamo_marked_constant = True
_triton_there._dynamo_marked_constant = _triton_lacks._dynamo_marked_constant = True


# ---------------------------------------------------------------- a whole network


def _spiking(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "law")}


def prepare(model: nn.Module, device: torch.device, dtypes: tuple[torch.dtype, ...], timesteps: int) -> str:
    """Have all checked that the spiking layers of `model` will ask for; returns their backends, in words."""
    found = {}
    for module in _spiking(model).values():
        for dtype in dtypes:
            chosen, law = resolve_backend(module.backend, device.type, dtype), module.law()
            if law is None or (
                chosen == "triton" and module.backend == "auto" and not _right(law, dtype, timesteps, device)
            ):
                chosen = "torch"
            found[chosen] = None
    return " and ".join(found) or "torch"


def use(model: nn.Module, kernels: str) -> None:
    """Set the backends of all layers of `model`. Raises UserError for another word than KERNELS."""
    if kernels not in KERNELS:
        raise UserError(f"kernels={kernels!r} is not one of {', '.join(KERNELS)}{nearest(kernels, KERNELS)}")
    backend, of_convolutions = KERNELS[kernels]
    set_backend(model, of_convolutions)
    for name, module in _spiking(model).items():
        module.backend = backend
        check(module, name)


def set_backend(model: nn.Module, backend: str) -> None:
    """Set the backend of every convolution of `model`; "torch" is torch's own operator.

    Raises UserError for another name than that and CONV_BACKENDS.
    """
    if backend not in (*CONV_BACKENDS, "torch"):
        allowed = ", ".join(CONV_BACKENDS)
        raise UserError(f"model.conv_backend={backend!r} is not one of {allowed}{nearest(backend, CONV_BACKENDS)}")
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.backend = backend


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Within, every layer of `model` is torch's own operations, which counters know."""
    before: dict[Any, str] = {m: m.backend for m in model.modules() if hasattr(m, "law") or isinstance(m, Conv2d)}
    use(model, "off")
    try:
        yield
    finally:
        for module, backend in before.items():
            module.backend = backend
