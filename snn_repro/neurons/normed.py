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
    spikes, v, mean, var = torch.ops.snn_repro.norm_neuron(
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


def _affine(weight, bias, te, mean, var, eps):
    """NumPy float64: scale, shift [T or 1, C] and 1 / sqrt(var + eps), weight, bias [C], te [T] or None."""
    weight, bias, mean, var = (a.detach().double().numpy() for a in (weight, bias, mean, var))
    te = None if te is None else te.detach().double().numpy()
    inverse = (var + eps) ** -0.5
    scale, shift = (weight * inverse)[None], (bias - mean * weight * inverse)[None]
    if te is not None:
        scale, shift = te[:, None] * scale, te[:, None] * shift
    return scale, shift, inverse, weight, bias, te


def _shapes(x: Tensor, timesteps: int, v0_stride: int):
    """(T, B, M) and x's stride over T; without a shared v0 all samples of a step are one long sample."""
    steps, batch, *rest = x.shape
    size = x.numel() // (steps * batch)
    x_t = batch * size if steps > 1 or timesteps == 1 else 0
    return ((timesteps, 1, batch * size) if v0_stride != 0 else (timesteps, batch, size)), x_t


def _kind(family, strict, v_reset):
    from snn_repro.neurons import cpu

    return cpu.Kind(family, v_reset is not None, strict, False)


@torch.library.impl("snn_repro::norm_neuron", "cpu")
def _norm_neuron(
    x, weight, bias, te, v0, mean, var, eps, timesteps,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
):  # fmt: skip
    from snn_repro.neurons import normed_cpu

    flat, channels, threads = _dense(x.detach()), x.shape[2], torch.get_num_threads()
    if mean is None:
        mean, var = (torch.from_numpy(a).float() for a in normed_cpu.moments(flat, channels, threads))
    else:
        mean, var = mean.clone(), var.clone()  # an operator must not hand its inputs back
    scale, shift, *_ = _affine(weight, bias, te, mean, var, eps)
    s = like(x.expand(timesteps, *x.shape[1:]), _ORDER)
    v_last = like(x, _ORDER, drop_steps=True)
    v0, v0_stride = initial(None if v0 is None else v0.detach().float(), x, _ORDER)
    shape, x_t = _shapes(x, timesteps, v0_stride)
    normed_cpu.forward(
        _kind(family, strict, v_reset), flat, x_t, scale, shift, None if v0 is None else _dense(v0), v0_stride,
        _dense(s), _dense(v_last), shape, channels, (v_threshold, v_reset or 0.0, leak), threads,
    )  # fmt: skip
    return s, v_last, mean, var


@torch.library.register_fake("snn_repro::norm_neuron")
def _(x, weight, bias, te, v0, mean, var, eps, timesteps, *settings):
    s = like(x.expand(timesteps, *x.shape[1:]), _ORDER)
    return s, like(x, _ORDER, drop_steps=True), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.impl("snn_repro::norm_neuron_backward", "cpu")
def _norm_neuron_backward(
    gs, gv_last, needs_v0, of_input, x, weight, bias, te, v0, mean, var, eps, timesteps,
    family, surrogate, width, strict, v_threshold, v_reset, detach_reset, leak,
):  # fmt: skip
    """Gradients of x, weight, bias, te (empty without it) and v0 (empty unless needs_v0).

    of_input: mean and variance were those of x, and their gradients reach it.
    """
    from snn_repro.neurons import cpu, normed_cpu

    flat, channels, threads = _dense(x.detach()), x.shape[2], torch.get_num_threads()
    scale, shift, inverse, w, b, factor = _affine(weight, bias, te, mean, var, eps)
    gs = _in_order(gs.detach(), _ORDER)
    if gv_last is not None:
        gv_last = _dense(initial(gv_last.detach(), x, _ORDER)[0])
    gx, gv0 = like(x, _ORDER), _like_v0(x, v0, _ORDER, needs_v0)
    v0, v0_stride = initial(None if v0 is None else v0.detach().float(), x, _ORDER)
    shape, x_t = _shapes(x, timesteps, v0_stride)
    gs_strides = gs.stride(0), gs.stride(1)
    if shape[1] == 1 and x.shape[1] > 1 and gs.stride(1) != shape[2] // x.shape[1]:
        gs = torch.empty_strided(gs.shape, _strides(gs.shape, _ORDER)).copy_(gs)
        gs_strides = gs.stride(0), gs.stride(1)
    span = (timesteps - 1) * gs_strides[0] + (shape[1] - 1) * gs_strides[1] + shape[2]
    sums = None
    if gv0.numel():
        groups = cpu.plan(*shape).groups if v0_stride == 0 else 1
        sums = _dense(gv0) if groups == 1 else torch.empty(groups * gv0.numel()).numpy()
    along, across = normed_cpu.backward(
        _kind(family, strict, v_reset), detach_reset, surrogate, flat, x_t, scale, shift,
        torch.ones(timesteps).numpy() if factor is None else factor, mean.numpy(),
        None if v0 is None else _dense(v0), v0_stride, gs.as_strided((span,), (1,)).numpy(), gs_strides, gv_last,
        _dense(gx), sums, shape, channels, (v_threshold, v_reset or 0.0, leak, width), threads,
    )  # fmt: skip
    if sums is not None and sums.size != gv0.numel():
        gv0.as_strided((gv0.numel(),), (1,)).copy_(torch.from_numpy(sums).view(-1, gv0.numel()).sum(0))

    across = across * inverse  # sums of gz and of gz * (x - mean) / sqrt(var + eps), for each step with a factor
    gte = torch.empty(0)
    if factor is not None:
        gte = torch.from_numpy(((w * across).sum(1) + (b * along).sum(1)).astype("float32"))
        along, across = factor[:, None] * along, factor[:, None] * across
    along, across = along.sum(0), across.sum(0)
    a, n = w * inverse, flat.size // channels
    of_x, constant = (-a * inverse * across / n, -a * along / n) if of_input else (0 * a, 0 * a)
    constant = constant - of_x * mean.double().numpy()
    normed_cpu.combine(flat, _dense(gx), a, of_x, constant, channels, threads)
    return gx, torch.from_numpy(across.astype("float32")), torch.from_numpy(along.astype("float32")), gte, gv0


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


def _differentiate(ctx, gs, gv_last, *_):
    x, weight, bias, te, v0, mean, var = ctx.saved_tensors
    timesteps = ctx.settings[1]
    if gs is None:
        gs = x.new_zeros(()).expand(timesteps, *x.shape[1:])
    needs_v0 = ctx.needs_input_grad[4]
    gx, gweight, gbias, gte, gv0 = torch.ops.snn_repro.norm_neuron_backward(
        gs, gv_last, needs_v0, ctx.of_input, x, weight, bias, te, v0, mean, var, *ctx.settings
    )
    found = gx, gweight, gbias, gte if te is not None else None, gv0 if needs_v0 else None
    return *found, None, None, *(None for _ in ctx.settings)


torch.library.register_autograd("snn_repro::norm_neuron", _differentiate, setup_context=_setup)
