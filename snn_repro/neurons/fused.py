"""The fused layer as one PyTorch operator: autograd, autocast, checkpointing and torch.compile see a single call.

`snn_repro::neuron` runs `cpu.py` or `cuda.py` (outside of torch.compile and the like without the dispatcher's detour
through Python, which takes longer than a small layer); both see memory as [T, B, M] with the M neurons of a sample side by
side, in whatever order x has them (so channels-last stays channels-last), and any stride over T and B (so an input
repeated over T by `expand` is never copied). For the backward pass x alone is saved, beside one initial potential.
"""

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from snn_repro.errors import UserError
from snn_repro.neurons.dynamics import Dynamics


def update(x: Tensor, v0: Tensor | None, dynamics: Dynamics, backend: str) -> tuple[Tensor, Tensor]:
    """`dynamics.update` in one fused pass: (spikes [T, B, ...] in x's dtype, last potential [B, ...] in float32).

    x [T, B, ...] float32 or bfloat16 (triton: float16 as well); v0 as there; backend "cpu" or "triton".
    """
    if v0 is not None:
        v0 = v0.to(torch.float32)
        if v0.shape != x.shape[2:]:
            v0 = v0.expand(x.shape[1:])
    spike = dynamics.spike
    settings = (
        backend,
        dynamics.family,
        spike.surrogate,
        spike.width,
        spike.fire_at == "gt",
        dynamics.v_threshold,
        dynamics.v_reset,
        dynamics.detach_reset,
        dynamics.tau if dynamics.family == "lif" else dynamics.retain,
    )
    if not _eager(x):
        return torch.ops.snn_repro.neuron(x, v0, *settings)
    if torch.is_grad_enabled() and (x.requires_grad or (v0 is not None and v0.requires_grad)):
        return _Layer.apply(x, v0, settings)
    return _neuron(x, v0, *settings)


def _eager(x: Tensor) -> bool:
    """Whether x is an ordinary tensor that nobody traces or counts, and its memory holds its values."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return False
    return type(x) in (Tensor, nn.Parameter) and not x.is_neg()


# ---------------------------------------------------------------- memory


class Layout(NamedTuple):
    """How an input [T, B, ...] lies in memory, and with it what is computed from it."""

    strides: list[int]  # of a dense tensor [T, B, ...] whose samples have the input's order
    shape: tuple[int, int, int]  # T, B and the neurons of a sample


def _layout(shape, stride) -> Layout | None:
    """None if one sample's values do not lie side by side."""
    order = sorted(range(2, len(shape)), key=lambda i: -stride[i])  # stable: axes of size 1 keep their place
    strides = _strides(shape, order)
    if not _agree(shape[2:], stride[2:], strides[2:]):
        return None
    return Layout(strides, (shape[0], shape[1], math.prod(shape[2:])))


_cached_layout = lru_cache(1024)(_layout)


def _strides(shape, order: list[int]) -> list[int]:
    """Strides of a dense tensor of this shape whose trailing axes lie in the given order."""
    strides, step = [0] * len(shape), 1
    for i in (*reversed(order), *reversed(range(len(shape) - len(order)))):
        strides[i] = step
        step *= shape[i]
    return strides


def _agree(shape, stride, wanted) -> bool:
    """Whether two strides name the same addresses: that of an axis of size 1 has no meaning."""
    return all(n == 1 or a == b for n, a, b in zip(shape, stride, wanted, strict=True))


def arrange(x: Tensor, layout=_cached_layout) -> tuple[Tensor, Layout]:
    """x, copied only if its samples are not dense, and its layout."""
    found = layout(x.shape, x.stride())
    if found is None:
        x = x.contiguous()
        found = layout(x.shape, x.stride())
    return x, found


def like(x: Tensor, layout: Layout, drop_steps: bool = False, dtype=None) -> Tensor:
    """An uninitialised dense tensor [T, B, ...] (or [B, ...]) whose samples lie in memory in x's order."""
    lead = 1 if drop_steps else 0
    return torch.empty_strided(x.shape[lead:], layout.strides[lead:], dtype=dtype or x.dtype, device=x.device)


def in_order(x: Tensor, layout: Layout) -> Tensor:
    """x [T, B, ...] itself if its samples lie in memory in the layout's order, else a copy that does."""
    if _agree(x.shape[2:], x.stride()[2:], layout.strides[2:]):
        return x
    return torch.empty_strided(x.shape, layout.strides, dtype=x.dtype, device=x.device).copy_(x)


def initial(v0: Tensor | None, layout: Layout) -> tuple[Tensor | None, int]:
    """The initial potential in the layout's order, and its stride over samples: 0 shared by all, -1 if there is none."""
    if v0 is None:
        return None, -1
    lead = len(layout.strides) - v0.dim()
    if _agree(v0.shape, v0.stride(), layout.strides[lead:]):
        dense = v0
    else:
        dense = torch.empty_strided(v0.shape, layout.strides[lead:], dtype=v0.dtype, device=v0.device).copy_(v0)
    return dense, 0 if lead == 2 else layout.shape[2]


# ---------------------------------------------------------------- the operator

# Defined by schema and not by the decorator `custom_op`, which imports torch's compiler at the first call: a second.
_SETTINGS = (
    "Tensor x, Tensor? v0, str backend, str family, str surrogate, float width, bool strict, float v_threshold, "
    "float? v_reset, bool detach_reset, float leak"
)
torch.library.define("snn_repro::neuron", f"({_SETTINGS}) -> (Tensor, Tensor)")
torch.library.define(
    "snn_repro::neuron_backward",
    f"(Tensor gs, Tensor? gv_last, bool needs_v0, {_SETTINGS}) -> (Tensor, Tensor)",
)


def _neuron(x, v0, backend, family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak):
    """x [T, B, ...], v0 [...] or [B, ...] float32 -> spikes [T, B, ...], last potential [B, ...] float32."""
    x, layout = arrange(x)
    s, v_last = like(x, layout), like(x, layout, drop_steps=True, dtype=torch.float32)
    if x.numel():
        v0, v0_stride = initial(v0, layout)
        run = _cpu_forward if backend == "cpu" else _triton().forward
        run(x, v0, v0_stride, s, v_last, layout.shape, family, strict, v_threshold, v_reset, leak)
    return s, v_last


def _neuron_backward(
    gs, gv_last, needs_v0, x, v0, backend, family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak
):
    """Gradients of the spikes and of the last potential -> gradients of x and of v0 (empty unless needs_v0)."""
    x, layout = arrange(x)
    gs = in_order(gs.to(x.dtype), layout)
    if gv_last is not None:
        gv_last, _ = initial(gv_last, layout)
    gx, gv0 = like(x, layout), _like_v0(x, v0, layout, needs_v0)
    if not x.numel():
        return gx, gv0.zero_()
    v0, v0_stride = initial(v0, layout)
    run = _cpu_backward if backend == "cpu" else _triton().backward
    run(
        gs, gv_last, x, v0, v0_stride, gx, gv0, layout.shape,
        family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
    )  # fmt: skip
    return gx, gv0


torch.library.impl("snn_repro::neuron", ("cpu", "cuda"), lambda x, *rest: _neuron(x.detach(), *rest))
torch.library.impl(
    "snn_repro::neuron_backward", ("cpu", "cuda"), lambda gs, *rest: _neuron_backward(gs.detach(), *rest)
)


@torch.library.register_fake("snn_repro::neuron")
def _(x, v0, *settings):
    x, layout = arrange(x, _layout)
    return like(x, layout), like(x, layout, drop_steps=True, dtype=torch.float32)


@torch.library.register_fake("snn_repro::neuron_backward")
def _(gs, gv_last, needs_v0, x, v0, *settings):
    x, layout = arrange(x, _layout)
    return like(x, layout), _like_v0(x, v0, layout, needs_v0)


def _like_v0(x, v0, layout, needs_v0):
    if not needs_v0:
        return x.new_empty(0, dtype=torch.float32)
    lead = x.dim() - v0.dim()
    return torch.empty_strided(v0.shape, layout.strides[lead:], dtype=torch.float32, device=x.device)


def _setup(ctx, inputs, output) -> None:
    x, v0, *settings = inputs
    _remember(ctx, x, v0, settings)


def _remember(ctx, x, v0, settings) -> None:
    ctx.save_for_backward(x, v0)
    ctx.settings = settings
    ctx.set_materialize_grads(False)  # the last potential rarely has a gradient


def _differentiate(ctx, gs, gv_last):
    return *_gradients(ctx, gs, gv_last), *(None for _ in ctx.settings)


def _gradients(ctx, gs, gv_last) -> tuple[Tensor, Tensor | None]:
    """Those of x and of v0."""
    x, v0 = ctx.saved_tensors
    if gs is None:
        gs = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)
    needs_v0 = ctx.needs_input_grad[1]
    ordinary = _eager(gs) and not torch.is_grad_enabled()  # enabled: someone may ask for a second derivative
    run = _neuron_backward if ordinary else torch.ops.snn_repro.neuron_backward
    gx, gv0 = run(gs, gv_last, needs_v0, x, v0, *ctx.settings)
    return gx, gv0 if needs_v0 else None


def _differentiate_twice(ctx, *grads):
    raise UserError("The fused spiking layer has no second derivative; use neuron.backend=torch for one.")


torch.library.register_autograd("snn_repro::neuron", _differentiate, setup_context=_setup)
torch.library.register_autograd("snn_repro::neuron_backward", _differentiate_twice)


class _Layer(torch.autograd.Function):
    """The operator with its gradient, for `_eager` tensors."""

    @staticmethod
    def forward(ctx, x, v0, settings):
        _remember(ctx, x, v0, settings)
        return _neuron(x, v0, *settings)

    @staticmethod
    def backward(ctx, gs, gv_last):
        return *_gradients(ctx, gs, gv_last), None


# ---------------------------------------------------------------- the CPU


def _merged(shape, v0_stride: int, *tensors: Tensor) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """Without a shared v0, samples that follow one another in memory are one long sample: fewer, longer loops."""
    steps, batch, size = shape
    strides = [x.stride()[:2] for x in tensors]
    if v0_stride != 0 and all(b == size or batch == 1 for _, b in strides):
        return (steps, 1, batch * size), strides
    return shape, strides


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _cpu_forward(x, v0, v0_stride, s, v_last, shape, family, strict, v_threshold, v_reset, leak) -> None:
    shape, (strides,) = _merged(shape, v0_stride, x)
    cpu = _cpu()
    kind = cpu.Kind(family, v_reset is not None, strict, x.dtype == torch.bfloat16)
    cpu.forward(
        kind, x.data_ptr(), strides, _pointer(v0), v0_stride, s.data_ptr(), v_last.data_ptr(), shape,
        (v_threshold, v_reset or 0.0, leak), torch.get_num_threads(),
    )  # fmt: skip


def _cpu_backward(
    gs, gv_last, x, v0, v0_stride, gx, gv0, shape,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
) -> None:  # fmt: skip
    shape, (strides, gs_strides) = _merged(shape, v0_stride, x, gs)
    cpu = _cpu()
    kind = cpu.Kind(family, v_reset is not None, strict, x.dtype == torch.bfloat16)
    cpu.backward(
        kind, detach_reset, surrogate, x.data_ptr(), strides, _pointer(v0), v0_stride, gs.data_ptr(), gs_strides,
        _pointer(gv_last), gx.data_ptr(), gv0.data_ptr() if gv0.numel() else 0, shape,
        (v_threshold, v_reset or 0.0, leak, width), torch.get_num_threads(),
    )  # fmt: skip


@cache
def _cpu():
    from snn_repro.neurons import cpu

    return cpu


@cache
def _triton():
    from snn_repro.neurons import cuda

    return cuda
