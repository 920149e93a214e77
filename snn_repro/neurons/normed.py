"""A batch norm and the spiking layer behind it as one PyTorch operator, on the CPU.

    z[t] = ((x[t] - mean) / sqrt(var + eps) * weight + bias) * te[t],  then the state equation of `dynamics.py`

`norm_neuron` saves x alone for the backward pass, where the norm and the neuron apart save two tensors of that size.
te [T] is TEBN's factor of each time step. Statistics run over T, B, H and W together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from snn_repro.neurons.dynamics import Dynamics
from snn_repro.neurons.fused import _dense, _in_order, _like_v0, _strides, initial, like


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
    """
    if v0 is not None and v0.shape != x.shape[2:]:
        v0 = v0.expand(x.shape[1:])
    spike = dynamics.spike
    run = torch.ops.snn_repro.norm_neuron if torch.compiler.is_compiling() else _Eager.apply
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

_ORDER = [3, 4, 2]  # of a sample's axes in memory: rows, columns, channels


def _parameters(weight, bias, te, mean, var, eps):
    from snn_repro.neurons import normed_cpu

    te = weight.new_empty(0) if te is None else te
    return normed_cpu.Parameters(*(a.detach().numpy() for a in (weight, bias, te, mean, var)), eps)


def _shapes(x: Tensor, timesteps: int, v0_stride: int):
    """(T, B, M) and x's stride over T; without a shared v0 all samples of a step are one long sample."""
    steps, batch, *rest = x.shape
    size = x.numel() // (steps * batch)
    x_t = batch * size if steps > 1 or timesteps == 1 else 0
    return ((timesteps, 1, batch * size) if v0_stride != 0 else (timesteps, batch, size)), x_t


def _kind(family, strict, v_reset):
    from snn_repro.neurons import cpu

    return cpu.Kind(family, v_reset is not None, strict, False)


def _forward(
    x, weight, bias, te, v0, mean, var, eps, timesteps,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
):  # fmt: skip
    from snn_repro.neurons import normed_cpu

    flat, threads = _dense(x.detach()), torch.get_num_threads()
    if mean is None:
        mean, var = torch.empty_like(weight), torch.empty_like(weight)
        normed_cpu.moments(flat, mean.numpy(), var.numpy(), threads)
    else:
        mean, var = mean.clone(), var.clone()  # an operator must not hand its inputs back
    s, v_last = like(x.expand(timesteps, *x.shape[1:]), _ORDER), like(x, _ORDER, drop_steps=True)
    v0, v0_stride = initial(None if v0 is None else v0.detach().float(), x, _ORDER)
    shape, x_t = _shapes(x, timesteps, v0_stride)
    normed_cpu.forward(
        _kind(family, strict, v_reset), flat, x_t, _parameters(weight, bias, te, mean, var, eps),
        None if v0 is None else _dense(v0), v0_stride, _dense(s), _dense(v_last), shape,
        (v_threshold, v_reset or 0.0, leak), threads,
    )  # fmt: skip
    return s, v_last, mean, var


torch.library.impl("snn_repro::norm_neuron", "cpu", _forward)


@torch.library.register_fake("snn_repro::norm_neuron")
def _(x, weight, bias, te, v0, mean, var, eps, timesteps, *settings):
    s = like(x.expand(timesteps, *x.shape[1:]), _ORDER)
    return s, like(x, _ORDER, drop_steps=True), torch.empty_like(weight), torch.empty_like(weight)


def _backward(
    gs, gv_last, needs_v0, of_input, x, weight, bias, te, v0, mean, var, eps, timesteps,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
):  # fmt: skip
    """Gradients of x, weight, bias, te (empty without it) and v0 (empty unless needs_v0).

    of_input: mean and variance were those of x, and their gradients reach it.
    """
    from snn_repro.neurons import cpu, normed_cpu

    gs = _in_order(gs.detach(), _ORDER)
    if gv_last is not None:
        gv_last = _dense(initial(gv_last.detach(), x, _ORDER)[0])
    gx, gv0 = like(x, _ORDER), _like_v0(x, v0, _ORDER, needs_v0)
    gweight, gbias = torch.empty_like(weight), torch.empty_like(bias)
    gte = weight.new_empty(0) if te is None else torch.empty_like(te)
    v0, v0_stride = initial(None if v0 is None else v0.detach().float(), x, _ORDER)
    shape, x_t = _shapes(x, timesteps, v0_stride)
    if shape[1] < x.shape[1] and gs.stride(1) != x.stride(1):  # samples that are taken as one must follow one another
        gs = torch.empty_strided(gs.shape, _strides(gs.shape, _ORDER)).copy_(gs)
    gs_strides = gs.stride(0), gs.stride(1)
    span = (timesteps - 1) * gs_strides[0] + (shape[1] - 1) * gs_strides[1] + shape[2]
    sums = None
    if gv0.numel():
        groups = cpu.plan(*shape).groups if v0_stride == 0 else 1
        sums = _dense(gv0) if groups == 1 else torch.empty(groups * gv0.numel()).numpy()
    normed_cpu.backward(
        _kind(family, strict, v_reset), detach_reset, surrogate, _dense(x.detach()), x_t,
        _parameters(weight, bias, te, mean, var, eps), of_input, None if v0 is None else _dense(v0), v0_stride,
        gs.as_strided((span,), (1,)).numpy(), gs_strides, gv_last, _dense(gx), sums, gweight.numpy(), gbias.numpy(),
        gte.numpy(), shape, (v_threshold, v_reset or 0.0, leak, width), torch.get_num_threads(),
    )  # fmt: skip
    if sums is not None and sums.size != gv0.numel():
        gv0.as_strided((gv0.numel(),), (1,)).copy_(torch.from_numpy(sums).view(-1, gv0.numel()).sum(0))
    return gx, gweight, gbias, gte, gv0


torch.library.impl("snn_repro::norm_neuron_backward", "cpu", _backward)


@torch.library.register_fake("snn_repro::norm_neuron_backward")
def _(gs, gv_last, needs_v0, of_input, x, weight, bias, te, v0, *settings):
    gx, gv0 = like(x, _ORDER), _like_v0(x, v0, _ORDER, needs_v0)
    gte = weight.new_empty(0 if te is None else te.numel())
    return gx, torch.empty_like(weight), torch.empty_like(bias), gte, gv0


def _setup(ctx, inputs, output) -> None:
    x, weight, bias, te, v0, mean, _, *ctx.settings = inputs
    ctx.of_input = mean is None
    ctx.save_for_backward(x, weight, bias, te, v0, *output[2:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, gs, gv_last, *_, backward=torch.ops.snn_repro.norm_neuron_backward):
    x, weight, bias, te, v0, mean, var = ctx.saved_tensors
    if gs is None:
        gs = x.new_zeros(()).expand(ctx.settings[1], *x.shape[1:])
    needs_v0 = ctx.needs_input_grad[4]
    gx, gweight, gbias, gte, gv0 = backward(
        gs, gv_last, needs_v0, ctx.of_input, x, weight, bias, te, v0, mean, var, *ctx.settings
    )
    found = gx, gweight, gbias, gte if te is not None else None, gv0 if needs_v0 else None
    return *found, None, None, *(None for _ in ctx.settings)


torch.library.register_autograd("snn_repro::norm_neuron", _differentiate, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same without PyTorch's dispatcher, which costs a small layer more than its arithmetic."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        return _differentiate(ctx, *grads, backward=_backward)
