"""The fused layer, a spiking layer with or without the norm before it, as one PyTorch operator: autograd, autocast,
checkpointing and torch.compile see a single call.

`snn_repro::neuron` runs `neuron_cpu.py` or `neuron_triton.py` (outside of torch.compile and the like without the dispatcher's
detour through Python, which takes longer than a small layer); both see memory as [T, B, M] with the M neurons of a sample side
by side, in whatever order x has them (so channels-last stays channels-last), and any stride over T and B (so an input
repeated over T by `expand` is never copied). For the backward pass x alone is saved, beside one initial potential and the
norm's numbers by channel: norm and neuron apart save two tensors of x's size.
"""

import ctypes
import math
from functools import cache, lru_cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from snn_repro.errors import UserError
from snn_repro.kernels import Affine, Law

NO_NORM = (None,) * 5


def update(
    x: Tensor, v0: Tensor | None, law: Law, backend: str, norm: Affine | None = None, timesteps: int | None = None,
    plus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """All time steps in one pass: spikes [T, B, ...] in x's dtype, last potential [B, ...] in float32.

    x [T, B, ...] float32 or bfloat16 (triton: float16 as well), with `norm` what `choose` lets through, then perhaps [1, B, ...]
    for an input that is the same at all `timesteps`; v0 broadcastable to [B, ...] or None for 0; backend "cpu" or "triton".
    plus (triton): of the spikes' shape, is added to them, in the wider of both dtypes.
    Raises UserError where the norm's te has another number of time steps.
    """
    if v0 is not None:
        v0 = v0.to(torch.float32)
        if v0.shape != x.shape[2:]:
            v0 = v0.expand(x.shape[1:])
    timesteps, numbers, eps, learn, together = timesteps or x.shape[0], NO_NORM, 0.0, None, False
    if plus is not None and plus.dtype != x.dtype:
        s, v = update(x, v0, law, backend, norm, timesteps)
        return plus + s, v
    if norm is not None:
        *numbers, eps, learn, together = norm
        if norm.te is not None and norm.te.numel() != timesteps:
            raise UserError(
                f"The norm has factors for {norm.te.numel()} time steps and its input {timesteps}; "
                "use the same timesteps or model.norm=bn."
            )
    settings = (eps, together, timesteps, backend, law)
    if not _eager(x):
        s, v, *moments = torch.ops.snn_repro.neuron(x, v0, *numbers, *settings[:4], *law, plus)
    elif torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in (x, v0, plus, *numbers)):
        s, v, *moments = _Layer.apply(x, v0, settings, plus, *numbers)
    else:
        s, v, *moments = _neuron(x, v0, settings, plus, *numbers)
    if learn is not None:
        learn(*moments[:2], moments[2] if together else x.numel() // x.shape[2])
    return s, v


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
    results = layout(x.shape, x.stride())
    if results is None:
        x = x.contiguous()
        results = layout(x.shape, x.stride())
    return x, results


def empty_as(x: Tensor, layout: Layout, lead: int = 0, dtype=None) -> Tensor:
    """An uninitialised dense tensor of x's axes from `lead` on, whose samples lie in memory in x's order."""
    return torch.empty_strided(x.shape[lead:], layout.strides[lead:], dtype=dtype or x.dtype, device=x.device)


def in_order(x: Tensor, layout: Layout) -> Tensor:
    """x [T, B, ...] itself if its samples lie in memory in the layout's order, else a copy that does."""
    if _agree(x.shape[2:], x.stride()[2:], layout.strides[2:]):
        return x
    return empty_as(x, layout).copy_(x)


def _repeated(x: Tensor, timesteps: int) -> Tensor:
    return x.expand(timesteps, *x.shape[1:]) if x.shape[0] < timesteps else x


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


HUGE_PAGE, MADV_HUGEPAGE = 2**21, 14
SMALLEST = 2 * HUGE_PAGE  # bytes of a block: wherever it begins, a whole huge page fits in

fresh = (
    True  # whether large blocks are: asked before the call. A run keeps its memory, and then there is nothing to gain
)


@cache
def _madvise():
    """The C library's function; None where there is none."""
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def on_huge_pages(*outputs: Tensor | None) -> None:
    """Ask for huge pages for what is about to be written; a system without them goes on as before.

    A fresh block handed out 4 KiB at a time takes longer than the layer itself. Only the block at hand is advised about: it is
    torch's as before, and given back when torch gives it back.
    """
    if fresh and (madvise := _madvise()) is not None:
        for x in outputs:
            if x is not None and x.nbytes >= SMALLEST:
                first, last = -(-x.data_ptr() // HUGE_PAGE), (x.data_ptr() + x.nbytes) // HUGE_PAGE
                madvise(first * HUGE_PAGE, (last - first) * HUGE_PAGE, MADV_HUGEPAGE)


# ---------------------------------------------------------------- the operator

# Defined by schema and not by the decorator `custom_op`, which imports torch's compiler at the first call: a second.
_ARGUMENTS = (
    "Tensor x, Tensor? v0, Tensor? weight, Tensor? bias, Tensor? te, Tensor? mean, Tensor? var, float eps, bool together, "
    "int timesteps, str backend, str charge, float leak, str slope, float width, bool strict, float v_threshold, "
    "float? v_reset, bool detach"
)
_COUNT = 19  # of these; the forward operator has `plus` behind them
torch.library.define("snn_repro::neuron", f"({_ARGUMENTS}, Tensor? plus) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "snn_repro::neuron_backward",
    f"(Tensor gs, Tensor? gv_last, bool needs_v0, bool of_input, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _neuron(x, v0, settings, plus, weight, bias, te, mean, var):
    """x [T, B, ...], v0 [...] or [B, ...] float32 -> spikes [T, B, ...], last potential [B, ...] float32; and with a norm its
    mean and var [C], those of x where none were given; of all processes' x, then also how many values a channel they are of.
    """
    eps, together, timesteps, backend, law = settings
    x, layout = arrange(_repeated(x, timesteps))
    s, v_last = empty_as(x, layout), empty_as(x, layout, 1, torch.float32)
    if backend == "cpu":
        on_huge_pages(s, v_last)
    norm = None
    if weight is not None:
        if mean is not None:
            mean, var = mean.clone(), var.clone()  # an operator must not hand its inputs back
        norm = _kernels(backend).norm(x, weight, bias, te, mean, var, eps, together)
    if x.numel():
        plus = None if plus is None else in_order(plus, layout)
        _kernels(backend).forward(x, *initial(v0, layout), s, v_last, layout.shape, law, norm, plus)
    return tuple(a for a in (s, v_last, *((norm.mean, norm.var, norm.count) if norm else ())) if a is not None)


def _neuron_backward(gs, gv_last, needs_v0, of_input, x, v0, settings, weight, bias, te, mean, var):
    """Gradients of x and v0, and with a norm of weight, bias and te, from those of the spikes and of the last potential.

    None where there is none. of_input: mean and var were those of x, and their gradients reach it.
    """
    eps, together, timesteps, backend, law = settings
    one, (x, layout) = x, arrange(_repeated(x, timesteps))
    gs = in_order(gs.to(x.dtype), layout)
    if gv_last is not None:
        gv_last, _ = initial(gv_last, layout)
    gx, gv0 = empty_as(one, layout), empty_as(x, layout, x.dim() - v0.dim(), torch.float32) if needs_v0 else None
    if backend == "cpu":
        on_huge_pages(gx, gv0)
    norm, gnorm = None, [None] * 3
    if weight is not None:
        norm = _kernels(backend).norm(x, weight, bias, te, mean, var, eps, together)
        gnorm = [None if a is None else torch.empty_like(a) for a in (weight, bias, te)]
    if not x.numel():
        return gx, None if gv0 is None else gv0.zero_(), *gnorm
    v0, v0_stride = initial(v0, layout)
    if norm is not None and v0_stride != 0 and gs.stride(1) != layout.shape[2]:
        gs = empty_as(gs, layout).copy_(gs)  # sums by channel take all samples of a step as one long one
    _kernels(backend).backward(gs, gv_last, x, v0, v0_stride, gx, gv0, layout.shape, law, norm, of_input, gnorm)
    return gx, gv0, *gnorm


def _filled(x: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """The five results of an operator, which cannot be None: empty tensors there."""
    return tuple(x.new_empty(0, dtype=torch.float32) if a is None else a for a in (*results, *NO_NORM)[:5])


@torch.library.impl("snn_repro::neuron", ("cpu", "cuda"))
def _(x, v0, *rest):
    *rest, plus = rest
    settings = (*rest[5:9], Law(*rest[9:]))
    return _filled(x, *_neuron(x.detach(), v0, settings, plus, *rest[:5]))


@torch.library.impl("snn_repro::neuron_backward", ("cpu", "cuda"))
def _(gs, gv_last, needs_v0, of_input, x, v0, *rest):
    settings = (*rest[5:9], Law(*rest[9:]))
    return _filled(gs, *_neuron_backward(gs.detach(), gv_last, needs_v0, of_input, x, v0, settings, *rest[:5]))


@torch.library.register_fake("snn_repro::neuron")
def _(x, v0, weight, bias, te, mean, var, eps, together, timesteps, *settings):
    x, layout = arrange(_repeated(x, timesteps), _layout)
    moments = [] if weight is None else [torch.empty_like(weight) for _ in range(2)]
    if together and mean is None:
        moments.append(weight.new_empty(1))
    return _filled(x, empty_as(x, layout), empty_as(x, layout, 1, torch.float32), *moments)


@torch.library.register_fake("snn_repro::neuron_backward")
def _(gs, gv_last, needs_v0, of_input, x, v0, weight, bias, te, *settings):
    x, layout = arrange(x, _layout)
    gv0 = empty_as(x, layout, x.dim() - v0.dim(), torch.float32) if needs_v0 else None
    return _filled(
        x, empty_as(x, layout), gv0, *(None if a is None else torch.empty_like(a) for a in (weight, bias, te))
    )


def _setup(ctx, inputs, output) -> None:
    """Of the operator, which has its law among its arguments."""
    _remember(ctx, *inputs[:2], (*inputs[7:11], Law(*inputs[11:_COUNT])), inputs[2:7], output)


def _remember(ctx, x, v0, settings, numbers, output) -> None:
    normed = numbers[0] is not None
    ctx.settings, ctx.of_input = settings, normed and numbers[3] is None
    ctx.save_for_backward(x, v0, *numbers[:3], *(output[2:4] if normed else NO_NORM[:2]))
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # the last potential rarely has a gradient


def _differentiate(ctx, gs, gv_last, *_):
    return *_gradients(ctx, gs, gv_last), *[None] * (_COUNT - 5), gs if ctx.needs_input_grad[_COUNT] else None


def _gradients(ctx, gs, gv_last) -> tuple[Tensor | None, ...]:
    """Those of x, v0, weight, bias and te."""
    x, v0, *numbers = ctx.saved_tensors
    if gs is None:
        gs = torch.zeros((), dtype=x.dtype, device=x.device).expand(ctx.settings[2], *x.shape[1:])
    needs_v0 = ctx.needs_input_grad[1]
    before = gs, gv_last, needs_v0, ctx.of_input, x, v0
    if _eager(gs) and not torch.is_grad_enabled():  # enabled: someone may ask for a second derivative
        return _neuron_backward(*before, ctx.settings, *numbers)
    results = torch.ops.snn_repro.neuron_backward(*before, *numbers, *ctx.settings[:4], *ctx.settings[4])
    there = True, needs_v0, *(a is not None for a in numbers[:3])
    return tuple(g if is_there else None for g, is_there in zip(results, there, strict=True))


def _differentiate_twice(ctx, *grads):
    raise UserError("The fused spiking layer has no second derivative; use kernels=off, or backend=torch, for one.")


torch.library.register_autograd("snn_repro::neuron", _differentiate, setup_context=_setup)
torch.library.register_autograd("snn_repro::neuron_backward", _differentiate_twice)


class _Layer(torch.autograd.Function):
    """The operator with its gradient, for `_eager` tensors."""

    @staticmethod
    def forward(ctx, x, v0, settings, plus, *numbers):
        output = _neuron(x, v0, settings, plus, *numbers)
        _remember(ctx, x, v0, settings, numbers, output)
        return output

    @staticmethod
    def backward(ctx, gs, gv_last, *_):
        gx, gv0, *gnorm = _gradients(ctx, gs, gv_last)
        return gx, gv0, None, gs if ctx.needs_input_grad[3] else None, *gnorm, None, None


# ---------------------------------------------------------------- the backends


def rehearse(*case) -> None:
    """Run the loops of a case (a law, dtype, whether normed, whether backward too) once, on as many neurons as they take at a time."""
    *law, dtype, normed, backward = case
    x = torch.zeros(1, 1, 1, 1, 64, dtype=dtype)
    numbers = (torch.ones(1), torch.ones(1), None) if normed else NO_NORM[:3]
    settings = (1.0, False, 1, "cpu", Law(*law))
    with torch.no_grad():
        s, v, *moments = _neuron(x, None, settings, None, *numbers, None, None)
        if backward:
            _neuron_backward(s, v, False, True, x, None, settings, *numbers, *(moments or NO_NORM[:2]))


@cache
def _kernels(backend: str):
    """The module that runs a layer by `norm`, `forward` and `backward`."""
    return import_module(f"snn_repro.kernels.neuron_{backend}")
