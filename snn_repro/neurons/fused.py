"""The fused layer as one PyTorch operator: autograd, autocast, checkpointing and torch.compile see a single call.

`snn_repro::neuron` runs `cpu.py` or `cuda.py`; both see memory as [T, B, M] with the M neurons of a sample side by
side, in whatever order x has them (so channels-last stays channels-last), and any stride over T and B (so an input
repeated over T by `expand` is never copied). For the backward pass x alone is saved, beside one initial potential.
"""

import torch
from torch import Tensor

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
    return torch.ops.snn_repro.neuron(
        x,
        v0,
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


# ---------------------------------------------------------------- memory


def _order(x: Tensor) -> list[int] | None:
    """The axes of one sample, slowest first, if its values lie side by side in memory; else None."""
    axes = sorted(range(2, x.dim()), key=lambda i: -x.stride(i))  # stable: axes of size 1 keep their place
    expected = 1
    for i in reversed(axes):
        if x.shape[i] != 1:
            if x.stride(i) != expected:
                return None
            expected *= x.shape[i]
    return axes


def _strides(shape, order: list[int]) -> list[int]:
    """Strides of a dense tensor of this shape whose trailing axes lie in the given order."""
    strides, step = [0] * len(shape), 1
    for i in (*reversed(order), *reversed(range(len(shape) - len(order)))):
        strides[i] = step
        step *= shape[i]
    return strides


def _in_order(x: Tensor, order: list[int]) -> Tensor:
    """x itself if one sample's values lie side by side in this order, else a copy that does."""
    wanted = _strides(x.shape, order)
    if all(n == 1 or x.stride(i) == wanted[i] for i, n in enumerate(x.shape) if i >= 2):
        return x
    return torch.empty_strided(x.shape, wanted, dtype=x.dtype, device=x.device).copy_(x)


def arrange(x: Tensor) -> tuple[Tensor, list[int]]:
    """x, copied only if its samples are not dense, and the order of its axes in memory."""
    order = _order(x)
    if order is None:
        return x.contiguous(), list(range(2, x.dim()))
    return x, order


def like(x: Tensor, order: list[int], drop_steps: bool = False, dtype=None) -> Tensor:
    """An uninitialised dense tensor [T, B, ...] (or [B, ...]) whose samples lie in memory in x's order."""
    shape = x.shape[1:] if drop_steps else x.shape
    axes = [i - 1 for i in order] if drop_steps else order
    return torch.empty_strided(shape, _strides(shape, axes), dtype=dtype or x.dtype, device=x.device)


def initial(v0: Tensor | None, x: Tensor, order: list[int]) -> tuple[Tensor | None, int]:
    """The initial potential in x's order, and its stride over samples: 0 if they share it, -1 if there is none."""
    if v0 is None:
        return None, -1
    lead = x.dim() - v0.dim()
    axes = [i - lead for i in order]
    wanted = _strides(v0.shape, axes)
    if any(n != 1 and v0.stride(i) != wanted[i] for i, n in enumerate(v0.shape)):
        v0 = torch.empty_strided(v0.shape, wanted, dtype=v0.dtype, device=v0.device).copy_(v0)
    return v0, 0 if lead == 2 else v0[:1].numel()


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


@torch.library.impl("snn_repro::neuron", ("cpu", "cuda"))
def _neuron(x, v0, backend, family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak):
    """x [T, B, ...], v0 [...] or [B, ...] float32 -> spikes [T, B, ...], last potential [B, ...] float32."""
    x, order = arrange(x.detach())
    s, v_last = like(x, order), like(x, order, drop_steps=True, dtype=torch.float32)
    if x.numel():
        v0, v0_stride = initial(v0, x, order)
        run = _cpu_forward if backend == "cpu" else _triton().forward
        run(x, v0, v0_stride, s, v_last, family, strict, v_threshold, v_reset, leak)
    return s, v_last


@torch.library.register_fake("snn_repro::neuron")
def _(x, v0, *settings):
    x, order = arrange(x)
    return like(x, order), like(x, order, drop_steps=True, dtype=torch.float32)


@torch.library.impl("snn_repro::neuron_backward", ("cpu", "cuda"))
def _neuron_backward(
    gs, gv_last, needs_v0, x, v0, backend, family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak
):
    """Gradients of the spikes and of the last potential -> gradients of x and of v0 (empty unless needs_v0)."""
    x, order = arrange(x.detach())
    gs = _in_order(gs.detach().to(x.dtype), order)
    if gv_last is not None:
        gv_last, _ = initial(gv_last.detach(), x, order)
    gx = like(x, order)
    gv0 = _like_v0(x, v0, order, needs_v0)
    if not x.numel():
        return gx, gv0.zero_()
    v0, v0_stride = initial(v0, x, order)
    run = _cpu_backward if backend == "cpu" else _triton().backward
    run(
        gs, gv_last, x, v0, v0_stride, gx, gv0,
        family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
    )  # fmt: skip
    return gx, gv0


@torch.library.register_fake("snn_repro::neuron_backward")
def _(gs, gv_last, needs_v0, x, v0, *settings):
    x, order = arrange(x)
    return like(x, order), _like_v0(x, v0, order, needs_v0)


def _like_v0(x, v0, order, needs_v0):
    if not needs_v0:
        return x.new_empty(0, dtype=torch.float32)
    lead = x.dim() - v0.dim()
    return torch.empty_strided(
        v0.shape, _strides(v0.shape, [i - lead for i in order]), dtype=torch.float32, device=x.device
    )


def _setup(ctx, inputs, output) -> None:
    x, v0, *ctx.settings = inputs
    ctx.save_for_backward(x, v0)
    ctx.set_materialize_grads(False)  # the last potential rarely has a gradient


def _differentiate(ctx, gs, gv_last):
    x, v0 = ctx.saved_tensors
    if gs is None:
        gs = torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)
    needs_v0 = ctx.needs_input_grad[1]
    gx, gv0 = torch.ops.snn_repro.neuron_backward(gs, gv_last, needs_v0, x, v0, *ctx.settings)
    return gx, gv0 if needs_v0 else None, *(None for _ in ctx.settings)


torch.library.register_autograd("snn_repro::neuron", _differentiate, setup_context=_setup)


# ---------------------------------------------------------------- the CPU


def _flat(x: Tensor, steps: int, batch: int, size: int):
    """The memory that x [T, B, ...] covers, as one NumPy array (bfloat16 as its bits); no copy."""
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    span = (steps - 1) * x.stride(0) + (batch - 1) * x.stride(1) + size
    return x.as_strided((span,), (1,)).numpy()


def _dense(x: Tensor):
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    return x.as_strided((x.numel(),), (1,)).numpy()


def _shape(x: Tensor) -> tuple[int, int, int]:
    steps, batch = x.shape[:2]
    return steps, batch, x.numel() // (steps * batch)


def _merged(shape, v0_stride: int, *tensors: Tensor) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """Without a shared v0, samples that follow one another in memory are one long sample: fewer, longer loops."""
    steps, batch, size = shape
    strides = [(x.stride(0), x.stride(1)) for x in tensors]
    if v0_stride != 0 and all(b == size or batch == 1 for _, b in strides):
        return (steps, 1, batch * size), strides
    return shape, strides


def _cpu_forward(x, v0, v0_stride, s, v_last, family, strict, v_threshold, v_reset, leak) -> None:
    from snn_repro.neurons import cpu

    shape = _shape(x)
    flat = _flat(x, *shape)
    shape, (strides,) = _merged(shape, v0_stride, x)
    kind = cpu.Kind(family, v_reset is not None, strict, x.dtype == torch.bfloat16)
    cpu.forward(
        kind, flat, strides, None if v0 is None else _dense(v0.detach()), v0_stride, _dense(s), _dense(v_last), shape,
        (v_threshold, v_reset or 0.0, leak), torch.get_num_threads(),
    )  # fmt: skip


def _cpu_backward(
    gs, gv_last, x, v0, v0_stride, gx, gv0, family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak
) -> None:
    from snn_repro.neurons import cpu

    shape = _shape(x)
    flat, flat_gs = _flat(x, *shape), _flat(gs, *shape)
    shape, (strides, gs_strides) = _merged(shape, v0_stride, x, gs)
    kind = cpu.Kind(family, v_reset is not None, strict, x.dtype == torch.bfloat16)
    sums = None
    if gv0.numel():
        groups = cpu.plan(*shape).groups if v0_stride == 0 else 1
        sums = _dense(gv0) if groups == 1 else torch.empty(groups * gv0.numel()).numpy()
    cpu.backward(
        kind, detach_reset, surrogate, flat, strides, None if v0 is None else _dense(v0.detach()), v0_stride,
        flat_gs, gs_strides, None if gv_last is None else _dense(gv_last), _dense(gx), sums, shape,
        (v_threshold, v_reset or 0.0, leak, width), torch.get_num_threads(),
    )  # fmt: skip
    if sums is not None and sums.size != gv0.numel():
        _as_flat(gv0).copy_(torch.from_numpy(sums).view(-1, gv0.numel()).sum(0))


def _as_flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def _triton():
    from snn_repro.neurons import cuda

    return cuda
