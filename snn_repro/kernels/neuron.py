"""The fused spiking layer as one PyTorch operator, with or without the norm before it.

Autograd, autocast, checkpointing and torch.compile see one call. `snn_repro::neuron` runs `neuron_cpu.py` or
`neuron_triton.py`; eager calls bypass the dispatcher, whose detour through Python takes longer than a small layer. Both
see memory as [T, B, M], the M neurons of a sample adjacent in x's own order (channels-last stays so), with any stride
over T and B (an input expanded over T is not copied). For the backward pass only x is saved, with an initial potential
and the norm's values per channel; norm and neuron as separate operators save two tensors of x's size.
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
    """Run all time steps in one pass over memory: (spikes, last potential).

    x: [T, B, ...] float32 or bfloat16 (triton: float16 as well); with `norm`, an input that `choose` accepted, possibly
    [1, B, ...] for `timesteps` equal steps. v0: broadcastable to [B, ...], None for 0. backend: "cpu" or "triton". plus
    (triton): added to the spikes, in the wider dtype. The spikes [T, B, ...] have x's dtype, the potential [B, ...] is
    float32. Raises UserError where the norm's te has another T.
    """
    if v0 is not None:
        v0 = v0.to(torch.float32)
        v0 = v0 if v0.shape == x.shape[2:] else v0.expand(x.shape[1:])
    timesteps, numbers, eps, learn, together = timesteps or x.shape[0], NO_NORM, 0.0, None, False
    if plus is not None and plus.dtype != x.dtype:
        s, v = update(x, v0, law, backend, norm, timesteps)
        return plus + s, v
    if norm is not None:
        *numbers, eps, learn, together = norm
        if norm.te is not None and norm.te.numel() != timesteps:
            raise UserError(
                f"The norm was built for {norm.te.numel()} time steps, but its input has {timesteps}; "
                "use the same timesteps or model.norm=bn."
            )
    settings = (eps, together, timesteps, backend, law)
    if not is_eager(x):
        s, v, *moments = torch.ops.snn_repro.neuron(x, v0, *numbers, *settings[:4], *law, plus)
    elif torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in (x, v0, plus, *numbers)):
        s, v, *moments = _Layer.apply(x, v0, settings, plus, *numbers)
    else:
        s, v, *moments = _neuron(x, v0, settings, plus, *numbers)
    if learn is not None:
        learn(*moments[:2], moments[2] if together else x.numel() // x.shape[2])
    return s, v


def is_eager(x: Tensor) -> bool:
    """Whether x is an ordinary tensor, not traced or counted, whose memory holds its values."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return False
    return type(x) in (Tensor, nn.Parameter) and not x.is_neg()


class Layout(NamedTuple):
    """Memory layout of an input [T, B, ...] and of the results computed from it."""

    strides: list[int]  # of a dense tensor [T, B, ...] with samples in the input's order
    shape: tuple[int, int, int]  # T, B, neurons per sample


def _layout(shape, stride) -> Layout | None:
    """None if the values of one sample are not contiguous."""
    order = sorted(range(2, len(shape)), key=lambda i: -stride[i])  # stable: axes of size 1 keep their place
    strides, step = [0] * len(shape), 1
    for i in (*reversed(order), 1, 0):
        strides[i] = step
        step *= shape[i]
    if not strides_agree(shape[2:], stride[2:], strides[2:]):
        return None
    return Layout(strides, (shape[0], shape[1], math.prod(shape[2:])))


_cached_layout = lru_cache(1024)(_layout)


def strides_agree(shape, stride, wanted) -> bool:
    """Whether two strides give the same addresses; axes of size 1 are ignored."""
    return all(n == 1 or a == b for n, a, b in zip(shape, stride, wanted, strict=True))


def arrange(x: Tensor, layout=_cached_layout) -> tuple[Tensor, Layout]:
    """Return x, copied only if its samples are not dense, and its layout."""
    if (results := layout(x.shape, x.stride())) is None:
        x = x.contiguous()
        results = layout(x.shape, x.stride())
    return x, results


def empty_as(x: Tensor, layout: Layout, lead: int = 0, dtype=None) -> Tensor:
    """Allocate an uninitialised dense tensor with x's axes from `lead` on, in x's memory order."""
    return torch.empty_strided(x.shape[lead:], layout.strides[lead:], dtype=dtype or x.dtype, device=x.device)


def in_order(x: Tensor, layout: Layout) -> Tensor:
    """Return x [T, B, ...] in the layout's order, copied only if needed."""
    same = strides_agree(x.shape[2:], x.stride()[2:], layout.strides[2:])
    return x if same else empty_as(x, layout).copy_(x)


def _repeated(x: Tensor, timesteps: int) -> Tensor:
    return x.expand(timesteps, *x.shape[1:]) if x.shape[0] < timesteps else x


def initial(v0: Tensor | None, layout: Layout) -> tuple[Tensor | None, int]:
    """Return v0 in the layout's order, and its stride over samples (0: shared, -1: none)."""
    if v0 is None:
        return None, -1
    strides = layout.strides[-v0.dim() :] if v0.dim() else []
    if not strides_agree(v0.shape, v0.stride(), strides):
        v0 = torch.empty_strided(v0.shape, strides, dtype=v0.dtype, device=v0.device).copy_(v0)
    return v0, 0 if v0.dim() == len(layout.strides) - 2 else layout.shape[2]


HUGE_PAGE, MADV_HUGEPAGE = 2**21, 14
SMALLEST = 2 * HUGE_PAGE  # bytes: a block of this size contains a whole huge page

fresh = True  # whether large blocks are newly allocated; false in a run, which reuses its memory
_madvise = getattr(ctypes.CDLL(None), "madvise", None) or (lambda *given: -1)  # the C library's, if any


def on_huge_pages(*outputs: Tensor | None) -> None:
    """Request huge pages for outputs about to be written; without support, nothing happens.

    Page faults of 4 KiB in newly allocated memory take longer than the layer itself. The memory remains torch's.
    """
    for x in outputs if fresh else ():
        if x is not None and x.nbytes >= SMALLEST:
            first, last = -(-x.data_ptr() // HUGE_PAGE), (x.data_ptr() + x.nbytes) // HUGE_PAGE
            _madvise(ctypes.c_void_p(first * HUGE_PAGE), ctypes.c_size_t((last - first) * HUGE_PAGE), MADV_HUGEPAGE)


# Defined by schema: the decorator `custom_op` imports torch's compiler at the first call, which takes 1 s.
_ARGUMENTS = (
    "Tensor x, Tensor? v0, Tensor? weight, Tensor? bias, Tensor? te, Tensor? mean, Tensor? var, float eps, bool together, "
    "int timesteps, str backend, str charge, float leak, str slope, float width, bool strict, float v_threshold, "
    "float? v_reset, bool detach"
)
_COUNT = 19  # of these; the forward operator adds `plus`
torch.library.define("snn_repro::neuron", f"({_ARGUMENTS}, Tensor? plus) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "snn_repro::neuron_backward",
    f"(Tensor gs, Tensor? gv_last, bool needs_v0, bool of_input, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _neuron(x, v0, settings, plus, weight, bias, te, mean, var):
    """x [T, B, ...], v0 [...] or [B, ...] float32 -> spikes [T, B, ...], last potential [B, ...] float32.

    With a norm also mean and var [C], those of x unless given, and if `together` their number of values.
    """
    eps, together, timesteps, backend, law = settings
    x, layout = arrange(_repeated(x, timesteps))
    s, v_last = empty_as(x, layout), empty_as(x, layout, 1, torch.float32)
    if backend == "cpu":
        on_huge_pages(s, v_last)
    norm = None
    if weight is not None:
        if mean is not None:
            mean, var = mean.clone(), var.clone()  # an operator must not return its inputs
        norm = _kernels(backend).norm(x, weight, bias, te, mean, var, eps, together)
    if x.numel():
        plus = None if plus is None else in_order(plus, layout)
        _kernels(backend).forward(x, *initial(v0, layout), s, v_last, layout.shape, law, norm, plus)
    return tuple(a for a in (s, v_last, *((norm.mean, norm.var, norm.count) if norm else ())) if a is not None)


def _neuron_backward(gs, gv_last, needs_v0, of_input, x, v0, settings, weight, bias, te, mean, var):
    """Gradients of x, v0 and, with a norm, weight, bias and te, from those of the spikes and the last potential.

    None where there is none. of_input: mean and var are those of x, so gradients pass through them.
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
        gs = empty_as(gs, layout).copy_(gs)  # per-channel sums treat a step's samples as one long sample
    _kernels(backend).backward(gs, gv_last, x, v0, v0_stride, gx, gv0, layout.shape, law, norm, of_input, gnorm)
    return gx, gv0, *gnorm


def _filled(x: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """The five results of an operator: empty tensors instead of None, which it cannot return."""
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
    """Context of the operator, whose arguments include the law."""
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
    """Gradients of x, v0, weight, bias and te."""
    x, v0, *numbers = ctx.saved_tensors
    if gs is None:
        gs = torch.zeros((), dtype=x.dtype, device=x.device).expand(ctx.settings[2], *x.shape[1:])
    needs_v0 = ctx.needs_input_grad[1]
    before = gs, gv_last, needs_v0, ctx.of_input, x, v0
    if is_eager(gs) and not torch.is_grad_enabled():  # enabled for second derivatives
        return _neuron_backward(*before, ctx.settings, *numbers)
    results = torch.ops.snn_repro.neuron_backward(*before, *numbers, *ctx.settings[:4], *ctx.settings[4])
    there = True, needs_v0, *(a is not None for a in numbers[:3])
    return tuple(g if is_there else None for g, is_there in zip(results, there, strict=True))


def _differentiate_twice(ctx, *grads):
    raise UserError("The fused spiking layer has no second derivative; use kernels=off or backend=torch.")


torch.library.register_autograd("snn_repro::neuron", _differentiate, setup_context=_setup)
torch.library.register_autograd("snn_repro::neuron_backward", _differentiate_twice)


class _Layer(torch.autograd.Function):
    """The operator with its gradient, for `is_eager` tensors."""

    @staticmethod
    def forward(ctx, x, v0, settings, plus, *numbers):
        output = _neuron(x, v0, settings, plus, *numbers)
        _remember(ctx, x, v0, settings, numbers, output)
        return output

    @staticmethod
    def backward(ctx, gs, gv_last, *_):
        gx, gv0, *gnorm = _gradients(ctx, gs, gv_last)
        return gx, gv0, None, gs if ctx.needs_input_grad[3] else None, *gnorm, None, None


def rehearse(*case) -> None:
    """Run the loops of a case (law, dtype, normed, backward) once, on few neurons."""
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
    """Return the backend's module, which has `norm`, `forward` and `backward`."""
    return import_module(f"snn_repro.kernels.neuron_{backend}")
