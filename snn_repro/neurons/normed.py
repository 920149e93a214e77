"""A batch norm and the spiking layer behind it as one PyTorch operator, on the CPU.

    z[t] = ((x[t] - mean) / sqrt(var + eps) * weight + bias) * te[t],  then the state equation of `dynamics.py`

`norm_neuron` saves x alone for the backward pass, where the norm and the neuron apart save two tensors of that size.
te [T] is TEBN's factor of each time step. Statistics run over T, B, H and W together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snn_repro.errors import UserError
from snn_repro.neurons.dynamics import Dynamics
from snn_repro.neurons.fused import (
    Layout,
    _differentiate_twice,
    _eager,
    _layout,
    _like_v0,
    _pointer,
    arrange,
    in_order,
    initial,
    like,
)


class Norm(NamedTuple):
    """What the operator needs of a batch norm: weight, bias, mean, var [C], te [T] or None.

    mean and var are given in evaluation (the running ones) and None in training (those of the input); then `learn` is
    called with both, float32 [C], the variance over n, and with n.
    """

    weight: Tensor
    bias: Tensor
    te: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    learn: Callable[[Tensor, Tensor, int], None] | None = None


def fits(x: Tensor) -> bool:
    """Whether `update` takes x [T, B, C, H, W]: float32 on the CPU, all in channels-last order without gaps."""
    return (
        x.dim() == 5
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and _is_channels_last(x)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_channels_last(x: Tensor) -> bool:
    _, batch, c, h, w = x.shape
    strides = (batch * c * h * w, c * h * w, 1, w * c, c)
    return all(n == 1 or a == b for n, a, b in zip(x.shape, x.stride(), strides, strict=True))


def update(x: Tensor, norm: Norm, v0: Tensor | None, dynamics: Dynamics, timesteps: int) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, C, H, W] and the last potential [B, C, H, W].

    x [T, B, C, H, W], or [1, B, C, H, W] for an input that is the same at all `timesteps`; it must satisfy `fits`.
    Raises UserError where te has another number of time steps.
    """
    if norm.te is not None and norm.te.numel() != timesteps:
        raise UserError(
            f"The norm has factors for {norm.te.numel()} time steps and its input {timesteps}; "
            "use the same timesteps or model.norm=bn."
        )
    if v0 is not None and v0.shape != x.shape[2:]:
        v0 = v0.expand(x.shape[1:])
    spike = dynamics.spike
    run = torch.ops.snn_repro.norm_neuron
    if _eager(x):
        run = _Layer.apply if torch.is_grad_enabled() else _forward
    spikes, v, mean, var = run(
        x, norm.weight, norm.bias, norm.te, v0, norm.mean, norm.var, norm.eps, timesteps,
        dynamics.family, spike.surrogate, spike.width, spike.fire_at == "gt", dynamics.v_threshold, dynamics.v_reset,
        dynamics.detach_reset, dynamics.tau if dynamics.family == "lif" else dynamics.retain,
    )  # fmt: skip
    if norm.learn is not None:
        norm.learn(mean, var, x.numel() // x.shape[2])
    return spikes, v


_SETTINGS = (
    "int timesteps, str family, str surrogate, float width, bool strict, float v_threshold, float? v_reset, "
    "bool detach_reset, float leak"
)
torch.library.define(
    "snn_repro::norm_neuron",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? te, Tensor? v0, Tensor? mean, Tensor? var, float eps, "
    f"{_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "snn_repro::norm_neuron_backward",
    "(Tensor gs, Tensor? gv_last, bool needs_v0, bool of_input, Tensor x, Tensor weight, Tensor bias, Tensor? te, "
    f"Tensor? v0, Tensor mean, Tensor var, float eps, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _parameters(weight, bias, te, mean, var, eps):
    from snn_repro.neurons import normed_cpu

    te = weight.new_empty(0) if te is None else te
    return normed_cpu.Parameters(*(a.detach().numpy() for a in (weight, bias, te, mean, var)), eps)


def _shapes(layout: Layout, timesteps: int, v0_stride: int) -> tuple[tuple[int, int, int], int]:
    """(T, B, M) and x's stride over T; without a shared v0 all samples of a step are one long sample."""
    steps, batch, size = layout.shape
    x_t = batch * size if steps > 1 or timesteps == 1 else 0
    return ((timesteps, 1, batch * size) if v0_stride != 0 else (timesteps, batch, size)), x_t


def _spikes(x: Tensor, layout: Layout, timesteps: int) -> Tensor:
    """Uninitialised [T, B, C, H, W] in x's order."""
    return torch.empty_strided((timesteps, *x.shape[1:]), layout.strides, dtype=x.dtype, device=x.device)


def _kind(family, strict, v_reset):
    from snn_repro.neurons import cpu

    return cpu.Kind(family, v_reset is not None, strict, False)


def _forward(
    x, weight, bias, te, v0, mean, var, eps, timesteps,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
):  # fmt: skip
    from snn_repro.neurons import normed_cpu

    x, layout = arrange(x)
    threads = torch.get_num_threads()
    if mean is None:
        mean, var = torch.empty_like(weight), torch.empty_like(weight)
        normed_cpu.moments(x.detach().as_strided((x.numel(),), (1,)).numpy(), mean.numpy(), var.numpy(), threads)
    else:
        mean, var = mean.clone(), var.clone()  # an operator must not hand its inputs back
    s, v_last = _spikes(x, layout, timesteps), like(x, layout, drop_steps=True)
    v0, v0_stride = initial(None if v0 is None else v0.float(), layout)
    shape, x_t = _shapes(layout, timesteps, v0_stride)
    normed_cpu.forward(
        _kind(family, strict, v_reset), x.data_ptr(), x_t, _parameters(weight, bias, te, mean, var, eps), _pointer(v0),
        v0_stride, s.data_ptr(), v_last.data_ptr(), shape, (v_threshold, v_reset or 0.0, leak), threads,
    )  # fmt: skip
    return s, v_last, mean, var


torch.library.impl("snn_repro::norm_neuron", "cpu", _forward)


@torch.library.register_fake("snn_repro::norm_neuron")
def _(x, weight, bias, te, v0, mean, var, eps, timesteps, *settings):
    x, layout = arrange(x, _layout)
    s = _spikes(x, layout, timesteps)
    return s, like(x, layout, drop_steps=True), torch.empty_like(weight), torch.empty_like(weight)


def _backward(
    gs, gv_last, needs_v0, of_input, x, weight, bias, te, v0, mean, var, eps, timesteps,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
):  # fmt: skip
    """Gradients of x, weight, bias, te (empty without it) and v0 (empty unless needs_v0).

    of_input: mean and variance were those of x, and their gradients reach it.
    """
    from snn_repro.neurons import normed_cpu

    x, layout = arrange(x)
    gs = in_order(gs, layout)
    if gv_last is not None:
        gv_last, _ = initial(gv_last, layout)
    gx, gv0 = like(x, layout), _like_v0(x, v0, layout, needs_v0)
    gweight, gbias = torch.empty_like(weight), torch.empty_like(bias)
    gte = weight.new_empty(0) if te is None else torch.empty_like(te)
    v0, v0_stride = initial(None if v0 is None else v0.float(), layout)
    shape, x_t = _shapes(layout, timesteps, v0_stride)
    if shape[1] < x.shape[1] and gs.stride(1) != layout.shape[2]:  # samples taken as one must follow one another
        gs = _spikes(x, layout, timesteps).copy_(gs)
    normed_cpu.backward(
        _kind(family, strict, v_reset), detach_reset, surrogate, x.data_ptr(), x_t,
        _parameters(weight, bias, te, mean, var, eps), of_input, _pointer(v0), v0_stride,
        gs.data_ptr(), gs.stride()[:2], _pointer(gv_last), gx.data_ptr(), gv0.data_ptr() if needs_v0 else 0,
        gweight.numpy(), gbias.numpy(), gte.numpy(), shape, (v_threshold, v_reset or 0.0, leak, width),
        torch.get_num_threads(),
    )  # fmt: skip
    return gx, gweight, gbias, gte, gv0


torch.library.impl("snn_repro::norm_neuron_backward", "cpu", _backward)


@torch.library.register_fake("snn_repro::norm_neuron_backward")
def _(gs, gv_last, needs_v0, of_input, x, weight, bias, te, v0, *settings):
    x, layout = arrange(x, _layout)
    gx, gv0 = like(x, layout), _like_v0(x, v0, layout, needs_v0)
    gte = weight.new_empty(0 if te is None else te.numel())
    return gx, torch.empty_like(weight), torch.empty_like(bias), gte, gv0


def _setup(ctx, inputs, output) -> None:
    x, weight, bias, te, v0, mean, _, *ctx.settings = inputs
    ctx.of_input = mean is None
    ctx.save_for_backward(x, weight, bias, te, v0, *output[2:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gs, gv_last, *_):
    x, weight, bias, te, v0, mean, var = ctx.saved_tensors
    if gs is None:
        gs = x.new_zeros(()).expand(ctx.settings[1], *x.shape[1:])
    needs_v0 = ctx.needs_input_grad[4]
    ordinary = _eager(gs) and not torch.is_grad_enabled()  # enabled: someone may ask for a second derivative
    run = _backward if ordinary else torch.ops.snn_repro.norm_neuron_backward
    gx, gweight, gbias, gte, gv0 = run(
        gs, gv_last, needs_v0, ctx.of_input, x, weight, bias, te, v0, mean, var, *ctx.settings
    )
    found = gx, gweight, gbias, gte if te is not None else None, gv0 if needs_v0 else None
    return *found, None, None, *(None for _ in ctx.settings)


torch.library.register_autograd("snn_repro::norm_neuron", _differentiate, setup_context=_setup)
torch.library.register_autograd("snn_repro::norm_neuron_backward", _differentiate_twice)


class _Layer(torch.autograd.Function):
    """The operator with its gradient, for `_eager` tensors."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        _setup(ctx, inputs, output)
        return output

    backward = staticmethod(_differentiate)
