"""Convolution over nonzero inputs, used where it is faster than dense convolution (CPU).

    layer = Conv2d(64, 128, 3, padding=1)      # nn.Conv2d with `backend` "auto", "dense", "sparse" or "torch"

Output and weight gradient equal torch's up to the order of additions; the dense input gradient is torch's. Inputs may
be any numbers: spikes, their sums, pooled averages. "dense" is torch's arithmetic with spikes saved as bytes for the
backward pass; "torch" is its plain operator. "auto" estimates the input's density in every call and runs the sparse
kernel (`conv_cpu.py`) below the density up to which it was faster for these sizes. This is measured once per size, in
0.2 to 1 s, separately for forward and weight gradient, and stored in the user's cache.
"""

import time
import timeit
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_repro.kernels.compiled import fingerprint, measured_once, ready

# Below these "auto" runs dense without estimating the density:
LEAST_CHANNELS = 8  # input channels (a stem's images or event counts)
LEAST_WORK = 2**25  # multiplications (about 0.2 ms); the estimate would cost as much
LEAST_IMAGE_WORK = 2**18  # multiplications per image: small maps of few channels, with lists too short to gain
SAMPLE = 2**13  # inputs for estimating the density: its error is below 0.01
TRIAL = 2**19  # inputs of a timing
TRIAL_DENSITIES = (0.05, 0.25, 0.4, 0.6, 0.8)
MARGIN = 0.95  # the sparse kernel must be this much faster than the dense one


class Convolution(nn.modules.conv._ConvNd):
    """Mixin: a convolution with a choice of kernel (`backend`), also over [T, B, C, ...]."""

    backend = "auto"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > self.weight.dim():
            return self.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        fits = x.device.type == "cpu" and self.backend != "torch" and self.fits(x)
        if not fits or not ready(self.backend == "sparse", rehearse, self.backend):
            return super().forward(x)
        settings = self.bias, self.stride[0], self.padding[0], self.backend
        if x.dim() == 4:
            return torch.ops.snn_repro.conv(x, self.weight, *settings)
        return torch.ops.snn_repro.conv(x.unsqueeze(2), self.weight.unsqueeze(2), *settings).squeeze(2)

    def fits(self, x: Tensor) -> bool:
        """Whether the operator supports this layer and input [N, C, H, W] and may gain."""
        fits = (
            x.dtype == self.weight.dtype == torch.float32 and x.dim() == self.weight.dim()
            and len({*self.kernel_size}) == len({*self.stride}) == len({*self.padding}) == 1
            and {*self.dilation} == {self.groups} == {1} and self.padding_mode == "zeros" and x.numel() > 0
            and (x.dim() == 4 or (*self.kernel_size, *self.padding) == (1, 0)) and not torch.is_autocast_enabled("cpu")
        )  # fmt: skip
        if not fits or (self.backend != "sparse" and self._is_small(x)):
            return False
        # "dense" differs from torch only in what it saves for the weight gradient
        return self.backend != "dense" or (torch.is_grad_enabled() and self.weight.requires_grad)

    def _is_small(self, x: Tensor) -> bool:
        work = x.numel() // len(x) * self.weight[:, 0].numel() // self.stride[0] ** 2  # multiplications per image
        return self.in_channels < LEAST_CHANNELS or work < LEAST_IMAGE_WORK or work * len(x) < LEAST_WORK


class Conv2d(Convolution, nn.Conv2d):
    """nn.Conv2d with a choice of kernel; on the CPU the output is channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(channels_last(x) if x.device.type == "cpu" and x.dim() == 4 else x)


class StepConv1d(Convolution, nn.Conv1d):
    """nn.Conv1d over tokens [N, C, L] or [T, B, C, L]; sparse at kernel 1."""


class StepConv2d(Convolution, nn.Conv2d):
    """nn.Conv2d that leaves the memory format to torch where torch runs."""


def channels_last(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] in channels-last memory; copy only if needed."""
    n, c, h, w = x.shape
    strides = (c * h * w, 1, w * c, c)
    if x.stride() == strides:
        return x
    if x.is_contiguous(memory_format=torch.channels_last):  # strides of axes of size 1 are arbitrary
        return x.as_strided(x.shape, strides)
    return x.contiguous(memory_format=torch.channels_last)


# Defined by schema: the decorator `custom_op` imports torch's compiler at the first call, which takes 1 s.
torch.library.define(
    "snn_repro::conv", "(Tensor x, Tensor w, Tensor? bias, int stride, int padding, str backend) -> Tensor"
)
torch.library.define(
    "snn_repro::conv_backward",
    "(Tensor gy, Tensor x, float quantum, Tensor w, int stride, int padding, str backend, bool for_x, bool for_w) "
    "-> (Tensor, Tensor)",
)
torch.library.define("snn_repro::to_bytes", "(Tensor x) -> (Tensor, float)")


@torch.library.impl("snn_repro::conv", "cpu")
def conv(x: Tensor, w: Tensor, bias: Tensor | None, stride: int, padding: int, backend: str) -> Tensor:
    """Convolve x [N, C, H, W] with w [outputs, C, k, k]; output: channels last."""
    x = channels_last(x)
    if _is_sparse(x, w, stride, padding, backend, 0):
        return _kernels().forward(x, w, bias, _shape(x, w, stride, padding), torch.get_num_threads(), density(x))
    return channels_last(F.conv2d(x, w, bias, stride, padding))


@torch.library.register_fake("snn_repro::conv")
def _(x, w, bias, stride, padding, backend):
    h, w_out = ((n + 2 * padding - w.shape[-1]) // stride + 1 for n in x.shape[2:])
    return x.new_empty(x.shape[0], h, w_out, w.shape[0]).permute(0, 3, 1, 2)


@torch.library.impl("snn_repro::conv_backward", "cpu")
def conv_backward(
    gy: Tensor, x: Tensor, quantum: float, w: Tensor, stride: int, padding: int, backend: str, for_x: bool, for_w: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and w, empty where not requested; x may be bytes worth `quantum`."""
    gy, x, gw = channels_last(gy), channels_last(x), w.new_empty(0)
    if for_w and _is_sparse(x, w, stride, padding, backend, 1):
        gw = _kernels().weight_gradient(
            x, gy, w, _shape(x, w, stride, padding), torch.get_num_threads(), density(x), quantum
        )
        for_w = False
    if x.dtype != w.dtype:  # the input gradient needs only x's sizes
        x = x.to(w.dtype).mul_(quantum) if for_w else torch.empty_like(x, dtype=w.dtype)
    gx, dense_gw = _dense_backward(gy, x, w, stride, padding, for_x, for_w)
    if for_w:
        gw = dense_gw if dense_gw.stride() == w.stride() else torch.empty_like(w).copy_(dense_gw)
    return channels_last(gx) if for_x else w.new_empty(0), gw


@torch.library.register_fake("snn_repro::conv_backward")
def _(gy, x, quantum, w, stride, padding, backend, for_x, for_w):
    n, c, height, width = x.shape
    gx = w.new_empty(n, height, width, c).permute(0, 3, 1, 2) if for_x else w.new_empty(0)
    return gx, torch.empty_like(w) if for_w else w.new_empty(0)


@torch.library.impl("snn_repro::to_bytes", "cpu")
def to_bytes(x: Tensor) -> tuple[Tensor, float]:
    """Pack x [N, C, H, W] float32 into bytes, with their unit (see `conv_cpu.to_bytes`)."""
    return _kernels().to_bytes(channels_last(x), torch.get_num_threads())


@torch.library.register_fake("snn_repro::to_bytes")
def _(x):
    return torch.empty_like(channels_last(x), dtype=torch.uint8), 0.0  # unit 0: torch.compile saves x itself


def _setup(ctx, inputs, output) -> None:
    x, w, bias, *ctx.settings = inputs
    ctx.quantum = 1.0
    if ctx.needs_input_grad[1] and x.device.type == "cpu":
        packed, quantum = torch.ops.snn_repro.to_bytes(x)
        if quantum:  # spikes, their sums and averages
            x, ctx.quantum = packed, quantum
    ctx.save_for_backward(x, w)


def _differentiate(ctx, gy):
    x, w = ctx.saved_tensors
    for_x, for_w, for_bias = ctx.needs_input_grad[:3]
    gx = gw = None
    if for_x or for_w:
        gx, gw = torch.ops.snn_repro.conv_backward(gy, x, ctx.quantum, w, *ctx.settings, for_x, for_w)
    gbias = gy.sum((0, 2, 3)) if for_bias else None
    return gx if for_x else None, gw if for_w else None, gbias, None, None, None


torch.library.register_autograd("snn_repro::conv", _differentiate, setup_context=_setup)


def _dense_backward(gy, x, w, stride, padding, for_x, for_w):
    if not (for_x or for_w):
        return None, None
    pair = [stride, stride], [padding, padding], [1, 1]
    return torch.ops.aten.convolution_backward(gy, x, w, None, *pair, False, [0, 0], 1, [for_x, for_w, False])[:2]


def _is_sparse(x, w, stride, padding, backend, which: int) -> bool:
    """Whether to run the sparse kernel; which: forward (0) or weight gradient (1)."""
    return backend == "sparse" or (backend == "auto" and density(x) < limits(x, w, stride, padding)[which])


def _kernels():
    from snn_repro.kernels import conv_cpu

    return conv_cpu


def _shape(x: Tensor, w: Tensor, stride: int, padding: int):
    n, c, height, width = x.shape
    return _kernels().Shape(n, height, width, c, w.shape[0], w.shape[-1], stride, padding)


def density(x: Tensor) -> float:
    """Estimate the nonzero fraction of x [N, C, H, W], channels last, from spaced pixels."""
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    apart = max(1, len(pixels) * x.shape[1] // SAMPLE) | 1  # odd, to vary the column
    pixels = pixels[apart // 2 :: apart]
    return int(pixels.count_nonzero()) / max(1, pixels.numel())


def limits(x: Tensor, w: Tensor, stride: int, padding: int) -> tuple[float, float]:
    """Densities below which sparse forward and weight gradient are faster here, for these sizes."""
    n, c, height, width = x.shape
    images = min(n, max(1, TRIAL // (c * height * width)))
    images, threads = 1 << images.bit_length() - 1, torch.get_num_threads()  # a power of 2: fewer distinct sizes
    sizes = images, c, height, width, w.shape[0], w.shape[-1], stride, padding, threads
    file = f"limits-torch{torch.__version__}-{fingerprint()}.json"
    return measured_once(
        "conv {}x{}x{}x{} {}x{} stride {} padding {} threads {}".format(*sizes), lambda: _measure(*sizes), file
    )


def _measure(n, c, height, width, outputs, kernel, stride, padding, threads) -> list[float]:
    """Densities at which the sparse kernels take MARGIN of the dense ones' time, interpolated linearly."""
    loops = _kernels()
    shape = loops.Shape(n, height, width, c, outputs, kernel, stride, padding)
    random = torch.Generator().manual_seed(0)  # leaves torch's global generator unchanged
    dice = torch.rand(n, height, width, c, generator=random).permute(0, 3, 1, 2)
    w = channels_last(torch.rand(outputs, c, kernel, kernel, generator=random))
    inputs = [(d, (dice < d).float()) for d in TRIAL_DENSITIES]
    some = inputs[1][1]
    with torch.no_grad():
        gy = channels_last(F.conv2d(some, w, None, stride, padding))
        dense = [
            seconds(lambda: F.conv2d(some, w, None, stride, padding), threads),
            seconds(lambda: _dense_backward(gy, some, w, stride, padding, False, True), threads),
        ]
        sparse = [
            [seconds(lambda: loops.forward(x, w, None, shape, threads, d), threads) for d, x in inputs],  # noqa: B023
            [seconds(lambda: loops.weight_gradient(x, gy, w, shape, threads, d), threads) for d, x in inputs],  # noqa: B023
        ]
    return [
        float(np.interp(MARGIN * limit, np.maximum.accumulate(times), TRIAL_DENSITIES, left=0))
        for limit, times in zip(dense, sparse, strict=True)
    ]


def seconds(function: Callable[[], object], threads: int) -> float:
    """Shortest time of a few calls: CPU time for one thread, else wall time."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    function()
    return min(timeit.repeat(function, timer=clock, number=1, repeat=4))


def rehearse(backend: str) -> None:
    """Run every loop that this backend may need once, on a small input."""
    x = torch.ones(1, 1, 1, 1)
    loops, shape = _kernels(), _shape(x, x, 1, 0)
    packed, quantum = loops.to_bytes(x, 1)
    if backend != "dense":
        loops.forward(x, x, None, shape, 1, 1.0)
        loops.weight_gradient(packed, x, x, shape, 1, 1.0, quantum)
        loops.weight_gradient(x, x, x, shape, 1, 1.0)
