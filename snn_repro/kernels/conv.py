"""Convolution that visits only nonzero inputs where that is faster: spikes are mostly zeros. CPU; elsewhere dense.

    layer = Conv2d(64, 128, 3, padding=1)      # torch's nn.Conv2d with `backend` "auto", "dense", "sparse" or "torch"

The result and the weight gradient are those of torch's convolution up to the order of the additions; the gradient of
the input is torch's (it is dense whatever the spikes). Inputs may be any numbers: spikes, their sums, averages of a pool.
"dense" is torch's own arithmetic and keeps spikes as bytes for the backward pass, "torch" its operator alone.

"auto" compares, in every call, a sample of the input's density with the density up to which the sparse kernel was
measured to be faster for this layer's sizes. That is measured when a size is first met (0.2 to 1 s), once for the
forward and once for the weight gradient, and kept in the user's cache. The loops are in `conv_cpu.py`.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn_repro.kernels.compiled import fingerprint, kept, ready

LEAST_CHANNELS = 8  # a stem's images and event counts are left to the dense kernel without a look,
LEAST_WORK = 2**25  # and so are convolutions of fewer multiplications (some 0.2 ms): a look costs as much
LEAST_IMAGE_WORK = 2**18  # and of fewer an image: small maps of few channels, whose lists are too short to gain
SAMPLE = 2**13  # inputs looked at for the density: its error is below 0.01
TRIAL = 2**19  # inputs of a trial
TRIAL_DENSITIES = (0.05, 0.25, 0.4, 0.6, 0.8)
MARGIN = 0.95  # the sparse kernel must be this much faster than the dense one


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose `backend` chooses the kernel; on the CPU it returns channels-last memory."""

    backend = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, outputs, H', W']."""
        if x.device.type != "cpu" or x.dim() != 4:
            return super().forward(x)
        x = channels_last(x)
        if self.backend == "torch" or not self.fits(x):
            return super().forward(x)
        if not ready(self.backend == "sparse", rehearse, self.backend):
            return super().forward(x)
        return torch.ops.snn_repro.conv(x, self.weight, self.bias, self.stride[0], self.padding[0], self.backend)

    def fits(self, x: Tensor) -> bool:
        """Whether the operator below takes this layer and input [N, C, H, W], and may gain by it."""
        fits = (
            x.dtype == self.weight.dtype == torch.float32
            and len({*self.kernel_size}) == len({*self.stride}) == len({*self.padding}) == 1
            and (*self.dilation, self.groups) == (1, 1, 1) and self.padding_mode == "zeros"
            and not torch.is_autocast_enabled("cpu") and x.numel() > 0
        )  # fmt: skip
        if not fits or (self.backend != "sparse" and self._is_small(x)):
            return False
        # without a weight gradient the dense one has nothing to save
        return self.backend != "dense" or (torch.is_grad_enabled() and self.weight.requires_grad)

    def _is_small(self, x: Tensor) -> bool:
        work = x.numel() // len(x) * self.weight[:, 0].numel() // self.stride[0] ** 2  # multiplications of an image
        return self.in_channels < LEAST_CHANNELS or work < LEAST_IMAGE_WORK or work * len(x) < LEAST_WORK


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with its channels side by side in memory, copied if need be."""
    n, c, h, w = x.shape
    strides = (c * h * w, 1, w * c, c)
    if x.stride() == strides:
        return x
    if x.is_contiguous(memory_format=torch.channels_last):  # some sizes are 1 and their strides arbitrary
        return x.as_strided(x.shape, strides)
    return x.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- operators


# Defined by schema and not by the decorator `custom_op`, which imports torch's compiler at the first call: a second.
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
    """x [N, C, H, W], w [outputs, C, k, k] -> [N, outputs, H', W'], channels last."""
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
    """Gradients of x, channels last, and of w; empty where not asked for. x may be bytes worth `quantum` each."""
    gy, x = channels_last(gy), channels_last(x)
    gw = w.new_empty(0)
    if for_w and _is_sparse(x, w, stride, padding, backend, 1):
        gw = _kernels().weight_gradient(
            x, gy, w, _shape(x, w, stride, padding), torch.get_num_threads(), density(x), quantum
        )
        for_w = False
    if x.dtype != w.dtype:  # the input's gradient needs no more than x's sizes
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
    """x [N, C, H, W] float32 as bytes, channels last, and what one is worth (1 or 1/4); worth 0 if x does not fit."""
    return _kernels().to_bytes(channels_last(x), torch.get_num_threads())


@torch.library.register_fake("snn_repro::to_bytes")
def _(x):
    return torch.empty_like(channels_last(x), dtype=torch.uint8), 0.0  # no values: torch.compile saves x


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
    gx = gw = gbias = None
    if for_x or for_w:
        gx, gw = torch.ops.snn_repro.conv_backward(gy, x, ctx.quantum, w, *ctx.settings, for_x, for_w)
    if for_bias:
        gbias = gy.sum((0, 2, 3))
    return gx if for_x else None, gw if for_w else None, gbias, None, None, None


torch.library.register_autograd("snn_repro::conv", _differentiate, setup_context=_setup)


def _dense_backward(gy, x, w, stride, padding, for_x, for_w):
    if not (for_x or for_w):
        return None, None
    pair = [stride, stride], [padding, padding], [1, 1]
    return torch.ops.aten.convolution_backward(gy, x, w, None, *pair, False, [0, 0], 1, [for_x, for_w, False])[:2]


def _is_sparse(x, w, stride, padding, backend, which: int) -> bool:
    """Whether the sparse kernel is to run, which: forward (0) or weight gradient (1)."""
    return backend == "sparse" or (backend == "auto" and density(x) < limits(x, w, stride, padding)[which])


def _kernels():
    from snn_repro.kernels import conv_cpu

    return conv_cpu


def _shape(x: Tensor, w: Tensor, stride: int, padding: int):
    n, c, height, width = x.shape
    return _kernels().Shape(n, height, width, c, w.shape[0], w.shape[-1], stride, padding)


# ---------------------------------------------------------------- the choice


def density(x: Tensor) -> float:
    """Part of x [N, C, H, W], channels last, that is not zero, from evenly spaced pixels."""
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    apart = max(1, len(pixels) * x.shape[1] // SAMPLE) | 1  # odd: not always the same column
    pixels = pixels[apart // 2 :: apart]
    return int(pixels.count_nonzero()) / max(1, pixels.numel())


def limits(x: Tensor, w: Tensor, stride: int, padding: int) -> tuple[float, float]:
    """Densities below which the sparse forward and weight gradient are faster for these sizes on this machine."""
    n, c, height, width = x.shape
    images = min(n, max(1, TRIAL // (c * height * width)))
    images, threads = 1 << images.bit_length() - 1, torch.get_num_threads()  # few sizes are told apart
    sizes = images, c, height, width, w.shape[0], w.shape[-1], stride, padding, threads
    file = f"limits-torch{torch.__version__}-{fingerprint()}.json"
    return kept("conv {}x{}x{}x{} {}x{} stride {} padding {} threads {}".format(*sizes), lambda: _measure(*sizes), file)


def _measure(n, c, height, width, outputs, kernel, stride, padding, threads) -> list[float]:
    """Densities at which the sparse kernels take MARGIN of the dense ones' time."""
    loops = _kernels()
    shape = loops.Shape(n, height, width, c, outputs, kernel, stride, padding)
    random = torch.Generator().manual_seed(0)  # the run's own draws stay as they are
    dice = torch.rand(n, height, width, c, generator=random).permute(0, 3, 1, 2)
    w = channels_last(torch.rand(outputs, c, kernel, kernel, generator=random))
    inputs = {d: (dice < d).float() for d in TRIAL_DENSITIES}
    some = inputs[TRIAL_DENSITIES[1]]
    with torch.no_grad():
        gy = channels_last(F.conv2d(some, w, None, stride, padding))
        pairs = (
            (lambda: F.conv2d(some, w, None, stride, padding), lambda x, d: loops.forward(x, w, None, shape, threads, d)),
            (
                lambda: _dense_backward(gy, some, w, stride, padding, False, True),
                lambda x, d: loops.weight_gradient(x, gy, w, shape, threads, d),
            ),
        )  # fmt: skip
        crossings = []
        for by_dense, by_sparse in pairs:
            limit = MARGIN * seconds(by_dense, threads)
            times = [(d, seconds(lambda: by_sparse(x, d), threads)) for d, x in inputs.items()]  # noqa: B023
            crossings.append(crossing(times, limit))
    return crossings


def seconds(function: Callable[[], object], threads: int) -> float:
    """The shortest of some calls: CPU time of one thread, which other work does not lengthen; else wall time."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times = []
    for _ in range(5):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times[1:])


def crossing(times: list[tuple[float, float]], limit: float) -> float:
    """Where a cost reaches `limit`: seconds at some places, straight lines between."""
    before, least = 0.0, 0.0
    for density, after in times:
        if after >= limit:
            return before + (density - before) * max(0.0, limit - least) / (after - least) if before else 0.0
        before, least = density, after
    return before


def rehearse(backend: str) -> None:
    """Run once, on a small input, every loop that a convolution of this backend may need."""
    x = torch.ones(1, 1, 1, 1)
    loops, shape = _kernels(), _shape(x, x, 1, 0)
    packed, quantum = loops.to_bytes(x, 1)
    if backend != "dense":
        loops.forward(x, x, None, shape, 1, 1.0)
        loops.weight_gradient(packed, x, x, shape, 1, 1.0, quantum)
        loops.weight_gradient(x, x, x, shape, 1, 1.0)
