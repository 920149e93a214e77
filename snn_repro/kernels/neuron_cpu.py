"""A spiking layer over all time steps in one pass over memory, compiled by numba.

`_forward` and `_backward` are compiled for one kind of layer at first use. They process LANES neurons at a time through
all steps: potentials stay in registers, and the backward pass recomputes them, so only the input is saved. Reads, and
writes to the cache, are prefetched; outputs too large for the cache bypass it.

With a norm the input is z[t] = scale[t, c] * x[t] + shift[t, c]. Channels c are adjacent in memory, so LANES neighbours
need a slice of a table over channels that wraps around. The backward pass then writes the gradient of z times the
step's factor, and its sums per channel. These are split by the shape alone: the number of threads changes no result.

The norm's own passes, channels-last; all sums are float32 within a block or chunk and float64 beyond:
    moments    mean and variance of x over all axes but the channels                reads x
    combine    gx = a[c] * gz + b[c] * x + d[c], in place of gz                     reads gz and x, writes gx

Arithmetic and its order are those of the reference, without fused multiply-add, so the spikes are bit-identical.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_repro.kernels import CHARGES, SLOPES, Law
from snn_repro.kernels.compiled import compiled, cuts, in_parallel
from snn_repro.kernels.lanes import (
    LANES,
    exp_of_negative,
    fence,
    fetch,
    fetch_to_write,
    helper,
    keep,
    larger,
    load,
    read,
    select,
    store,
    write,
    zeros,
)

AHEAD = 256  # prefetch distance in bytes
PIECE = 256  # block sizes are multiples of this
LEAST, MOST = 1024, 16384  # neurons per block
MANY, RUN = 8, 32  # from T = MANY on: steps at a time, and groups of LANES neurons
PARTS = 16  # partial sums of a norm's gradients
CHUNK = 8192  # values per partial mean: they stay in the cache for the variance
STREAM_BYTES = 6 * 2**20  # outputs of this size bypass the cache
SHARE = 65536  # neuron-steps worth one thread


class Norm(NamedTuple):
    """A norm before the neuron."""

    mean: Tensor
    var: Tensor
    numbers: tuple  # weight, bias, te (or empty), mean, var, float32 arrays; eps
    # for the loops: scale and shift, flat [T or 1, C + LANES], their stride over steps, and C
    tables: tuple
    middle: np.ndarray  # the mean [C + LANES]
    factor: np.ndarray  # per step
    count: None = None  # norms over all processes are not fused here


_EMPTY = np.empty(0, np.float32)
NO_TABLES = _EMPTY, _EMPTY, 0, 1
NO_SUMS = np.empty((1, 2, 1, 1))


@lru_cache
def _ones(n: int) -> np.ndarray:
    return np.ones(n, np.float32)


# ---------------------------------------------------------------- the state equation, for one number or for lanes


@helper
def _charge(v, x, leak, charge):
    if charge == 0:
        return v + x
    if charge == 1:
        return v + (x - v) / leak
    return leak * v + x


@helper
def _fires(h, v_threshold, strict):
    z = h - v_threshold
    return z > np.float32(0) if strict else z >= np.float32(0)


@helper
def _reset(h, fires, v_threshold, v_reset, hard):
    s = select(fires, np.float32(1), np.float32(0))
    if hard:
        return h * (np.float32(1) - s) + v_reset * s
    return h - v_threshold * s


@helper
def _slope(z, width, surrogate):
    """Surrogate derivative (see neurons/surrogates.py)."""
    if surrogate == 0:
        c = np.float32(math.pi / 2) * width * z
        return width / np.float32(2) / (np.float32(1) + c * c)
    size = larger(z, np.float32(0) - z)
    if surrogate == 1:
        e = exp_of_negative(np.float32(0) - width * size)
        return width * e / ((np.float32(1) + e) * (np.float32(1) + e))
    return larger(width - size, np.float32(0)) / (width * width)


@helper
def _back(h, g, gv, v_threshold, v_reset, leak, width, charge, hard, strict, detach, surrogate):
    """One step backward: gradients of the input and the previous potential from those of spike and potential."""
    carried = gv
    if hard:
        if not detach:
            g = g + gv * (v_reset - h)
        carried = _reset(gv, _fires(h, v_threshold, strict), v_threshold, np.float32(0), hard)
    elif not detach:
        g = g - v_threshold * gv
    gh = carried + g * _slope(h - v_threshold, width, surrogate)
    if charge == 1:
        gi = gh / leak
        return gi, gh - gi
    if charge == 2:
        return gh, leak * gh
    return gh, gh


@helper
def _input(at, count, half, scale, shift, table, normed):
    """LANES inputs, after the norm if there is one."""
    z = read(at, count, half)
    if normed:
        z = load(scale.ctypes.data + table, LANES) * z
        z = z + load(shift.ctypes.data + table, LANES)
    return z


@helper
def _add_to(sums, at, value):
    store(sums.ctypes.data + at, load(sums.ctypes.data + at, LANES) + value, LANES, False)


# ---------------------------------------------------------------- the two loops
#
# Memory is [steps, batch, size] and arguments are addresses (0: absent): x[t, b, m] is at x + x_t * t + x_b * b + m.
# Outputs are dense (gx_t 0: one gradient for an input shared by all steps). A unit of work is a block of neurons (m) for
# a group of samples (b). v0_b: stride of the initial potential over samples, 0 if shared, -1 if absent.


@lru_cache
def _forward(charge: int, hard: bool, strict: bool, normed: bool, half: bool):
    """half: inputs and outputs are bfloat16."""
    wide = 2 if half else 4

    def neuron_forward(
        x, x_t, x_b, scale, shift, table_t, channels, v0, v0_b, s, v_last,
        steps, batch, size, first, last, block, group, v_threshold, v_reset, leak, stream,
    ):  # fmt: skip
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        groups = (batch + group - 1) // group
        for unit in range(first, last):
            m = unit // groups * block
            end = min(size, m + block)
            b0 = unit % groups * group
            for b in range(b0, min(b0 + group, batch)):
                for i in range(m, end, LANES):
                    count = min(LANES, end - i)
                    at = b * size + i
                    table = 4 * (i % channels) if normed else 0
                    v = load(v0 + 4 * (b * v0_b + i), count) if v0_b >= 0 else zeros()
                    x_at, s_at = x + wide * (b * x_b + i), s + wide * at
                    for _ in range(steps):
                        fetch(x_at + AHEAD)
                        h = _charge(v, _input(x_at, count, half, scale, shift, table, normed), leak, charge)
                        fires = _fires(h, v_threshold, strict)
                        v = _reset(h, fires, v_threshold, v_reset, hard)
                        write(s_at, select(fires, np.float32(1), np.float32(0)), count, half, stream)
                        if not stream:
                            fetch_to_write(s_at + AHEAD)
                        x_at += wide * x_t
                        s_at += wide * batch * size
                        table += 4 * table_t
                    store(v_last + 4 * at, v, count, stream)
        fence()

    return compiled(neuron_forward)


@lru_cache
def _backward(charge: int, hard: bool, strict: bool, normed: bool, half: bool, detach: bool, surrogate: int):
    """run, many: neurons and steps processed at a time; LANES and all steps where there are few.

    At T = 16 more neurons and fewer steps are 1.6 times faster, as hardware prefetches only a few streams. First come
    the potentials of the run, which stay in the cache, then their gradients.
    """
    wide = 2 if half else 4

    def neuron_backward(
        x, x_t, x_b, scale, shift, table_t, channels, mean, factor, v0, v0_b, gs, gs_t, gs_b, gv_last, gx, gx_t, gv0, sums,
        steps, batch, size, first, last, parts, block, group, run, many, v_threshold, v_reset, leak, width, stream,
    ):  # fmt: skip
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        width = np.float32(width)
        room = np.empty((steps + 1) * run + 16, np.float32)
        carried = (room.ctypes.data + 63) // 64 * 64  # potentials between groups of `many` steps
        kept = carried + 4 * run  # potentials of all steps, before the reset
        rows = sums.shape[2]  # T if tables are per step, else 1
        length = channels + LANES if normed else 0
        sums_g, sums_gx = np.empty((rows, length), np.float32), np.empty((rows, length), np.float32)
        groups = (batch + group - 1) // group
        units = (size + block - 1) // block * groups
        for part in range(first, last):
            for unit in range(units * part // parts, units * (part + 1) // parts):
                if normed:
                    sums_g[:] = np.float32(0)
                    sums_gx[:] = np.float32(0)
                m = unit // groups * block
                end = min(size, m + block)
                b0 = unit % groups * group
                for b in range(b0, min(b0 + group, batch)):
                    for start in range(m, end, run):
                        stop = min(end, start + run)
                        for t0 in range(0, steps, many):
                            for i in range(start, stop, LANES):
                                count = min(LANES, stop - i)
                                to = carried + 4 * (i - start)
                                if t0:
                                    v = load(to, LANES)
                                else:
                                    v = load(v0 + 4 * (b * v0_b + i), count) if v0_b >= 0 else zeros()
                                x_at = x + wide * (t0 * x_t + b * x_b + i)
                                h_at = kept + 4 * ((i - start) * steps + LANES * t0)
                                table = 4 * (i % channels) if normed else 0
                                for _ in range(t0, min(steps, t0 + many)):
                                    fetch(x_at + AHEAD)
                                    z = _input(x_at, count, half, scale, shift, table, normed)
                                    h = _charge(v, z, leak, charge)
                                    v = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                                    store(h_at, h, LANES, False)
                                    x_at += wide * x_t
                                    h_at += 4 * LANES
                                    table += 4 * table_t
                                store(to, v, LANES, False)
                        for t1 in range(steps, 0, -many):
                            t0 = max(0, t1 - many)
                            for i in range(start, stop, LANES):
                                count = min(LANES, stop - i)
                                to, at = carried + 4 * (i - start), b * size + i
                                channel = 4 * (i % channels) if normed else 0
                                if t1 < steps:
                                    gv = load(to, LANES)
                                else:
                                    gv = load(gv_last + 4 * at, count) if gv_last else zeros()
                                x_at, gs_at = x + 4 * (t1 * x_t + b * x_b + i), gs + wide * (t1 * gs_t + b * gs_b + i)
                                gx_at = gx + wide * (t1 * gx_t + at)
                                h_at = kept + 4 * ((i - start) * steps + LANES * t1)
                                middle = load(mean.ctypes.data + channel, LANES) if normed else zeros()
                                together = zeros()
                                for t in range(t1 - 1, t0 - 1, -1):
                                    gs_at -= wide * gs_t
                                    gx_at -= wide * gx_t
                                    h_at -= 4 * LANES
                                    fetch(gs_at + AHEAD)
                                    h, g = load(h_at, LANES), read(gs_at, count, half)
                                    cut = detach or (gv_last == 0 and t == steps - 1)  # else 0 x infinity
                                    gi, gv = _back(
                                        h, g, gv, v_threshold, v_reset, leak, width, charge, hard, strict, cut, surrogate
                                    )  # fmt: skip
                                    if normed:
                                        x_at -= 4 * x_t
                                        row = 4 * (t if rows > 1 else 0) * length + channel
                                        _add_to(sums_g, row, gi)
                                        _add_to(sums_gx, row, gi * (load(x_at, count) - middle))
                                        gi = factor[t] * gi
                                    if gx_t or not normed:
                                        write(gx_at, gi, count, half, stream)
                                        if not stream:
                                            fetch_to_write(gx_at + AHEAD)
                                    else:
                                        together = together + gi
                                if normed and not gx_t:
                                    store(gx_at, together, count, False)
                                if t0:
                                    store(to, gv, LANES, False)
                                elif gv0 and v0_b > 0:
                                    store(gv0 + 4 * at, gv, count, False)
                                elif gv0:  # summed over the samples
                                    if b > 0:
                                        gv = gv + load(gv0 + 4 * i, count)
                                    store(gv0 + 4 * i, gv, count, False)
                if normed:
                    for row in range(rows):
                        for i in range(length):
                            sums[part, 0, row, i % channels] += np.float64(sums_g[row, i])
                            sums[part, 1, row, i % channels] += np.float64(sums_gx[row, i])
        keep(room)
        fence()

    return compiled(neuron_backward)


# ---------------------------------------------------------------- the norm's passes


@compiled
def _moments(x, first, last, parts, means, squares):
    """Mean of each part's rows of x [rows, channels], and sum of squared distances from it (Chan et al. 1979)."""
    rows, channels = x.shape
    chunk = max(1, CHUNK // channels)
    near = np.empty(channels, np.float32)  # the chunk's mean, approximately
    off, square = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for part in range(first, last):
        begin, end = rows * part // parts, rows * (part + 1) // parts
        mean, total = means[part], squares[part]
        seen = 0
        for row in range(begin, end, chunk):
            n = min(chunk, end - row)
            _add_up(x[row : row + n], near)
            for c in range(channels):
                near[c] /= np.float32(n)
            _add_distances(x[row : row + n], near, off, square)
            for c in range(channels):
                rest = np.float64(off[c]) / n
                far = np.float64(near[c]) + rest - mean[c]
                mean[c] += far * n / (n + seen)
                total[c] += np.float64(square[c]) - rest * rest * n + far * far * n * seen / (n + seen)
            seen += n


@compiled
def _add_up(x, total):
    total[:] = np.float32(0)
    many = len(x) // 4 * 4
    for i in range(0, many, 4):
        a, b, d, e = x[i], x[i + 1], x[i + 2], x[i + 3]
        for c in range(len(total)):
            total[c] += (a[c] + b[c]) + (d[c] + e[c])
    for a in x[many:]:
        for c in range(len(total)):
            total[c] += a[c]


@compiled
def _add_distances(x, near, off, square):
    """Sums of x - near and of its square."""
    off[:] = np.float32(0)
    square[:] = np.float32(0)
    many = len(x) // 2 * 2
    for i in range(0, many, 2):
        a, b = x[i], x[i + 1]
        for c in range(len(near)):
            p, q = a[c] - near[c], b[c] - near[c]
            off[c] += p + q
            square[c] += p * p + q * q
    for a in x[many:]:
        for c in range(len(near)):
            p = a[c] - near[c]
            off[c] += p
            square[c] += p * p


@compiled
def _combine(x, gz, size, of_gz, of_x, constant, channels, first, last, block):
    """gz = of_gz * gz + of_x * x + constant, in place, with tables over channels."""
    for at in range(first * block, min(last * block, size), LANES):
        count = min(LANES, size - at)
        table, to = 4 * (at % channels), gz + 4 * at
        g = load(of_gz.ctypes.data + table, LANES) * load(to, count)
        g = g + load(of_x.ctypes.data + table, LANES) * load(x + 4 * at, count)
        store(to, g + load(constant.ctypes.data + table, LANES), count, False)


# ---------------------------------------------------------------- per-channel values, in float64


@compiled
def _merge(means, squares, rows, mean, var):
    """Merge the parts' moments into mean and variance (over n, not n - 1) per channel."""
    parts, channels = means.shape
    for c in range(channels):
        seen, total, square = 0, 0.0, 0.0
        for part in range(parts):
            n = rows * (part + 1) // parts - rows * part // parts
            far = means[part, c] - total
            total += far * n / (n + seen)
            square += squares[part, c] + far * far * n * seen / (n + seen)
            seen += n
        mean[c], var[c] = total, square / rows


@compiled
def _affine(weight, bias, te, mean, var, eps):
    """Tables of scale and shift [T or 1, channels + LANES] and of the mean, float32 and flat."""
    channels, rows = len(weight), max(1, len(te))
    length = channels + LANES
    tables = np.empty((2, rows * length), np.float32)
    middle = np.empty(length, np.float32)
    for c in range(channels):
        a = np.float64(weight[c]) * (1 / np.sqrt(np.float64(var[c]) + eps))
        b = np.float64(bias[c]) - np.float64(mean[c]) * a
        for i in range(c, length, channels):
            middle[i] = mean[c]
            for row in range(rows):
                factor = np.float64(te[row]) if len(te) else 1.0
                tables[0, row * length + i], tables[1, row * length + i] = factor * a, factor * b
    return tables[0], tables[1], middle


@compiled
def _parameters(sums, weight, bias, te, mean, var, eps, n, of_input, gweight, gbias, gte):
    """Gradients of the norm's parameters from the sums of `backward`, and the tables of `combine`."""
    parts, _, rows, channels = sums.shape
    length = channels + LANES
    of_gz, of_x, constant = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    gte[:] = np.float32(0)
    for c in range(channels):
        inverse = 1 / np.sqrt(np.float64(var[c]) + eps)
        sums_g, sums_gx = 0.0, 0.0  # of the norm's output gradient, and of its product with the normalised x
        for row in range(rows):
            of_step, of_step_x = 0.0, 0.0
            for part in range(parts):
                of_step += sums[part, 0, row, c]
                of_step_x += sums[part, 1, row, c]
            of_step_x *= inverse
            factor = np.float64(te[row]) if len(te) else 1.0
            sums_g += factor * of_step
            sums_gx += factor * of_step_x
            if len(gte):
                gte[row] += weight[c] * of_step_x + bias[c] * of_step
        gweight[c], gbias[c] = sums_gx, sums_g
        a = np.float64(weight[c]) * inverse
        b = -a * inverse * sums_gx / n if of_input else 0.0
        d = -a * sums_g / n - b * np.float64(mean[c]) if of_input else 0.0
        for i in range(c, length, channels):
            of_gz[i], of_x[i], constant[i] = a, b, d
    return of_gz, of_x, constant


# ---------------------------------------------------------------- calls


def _divide(batch: int, size: int, block: int, units: int) -> tuple[int, int, int]:
    """Return (neurons per block, samples per group, units of work), with about `units` units."""
    block = -(-block // PIECE) * PIECE
    blocks = -(-size // block)
    group = -(-batch // min(batch, -(-units // blocks)))
    return block, group, blocks * -(-batch // group)


def _cut(shape, together: bool, threads: int) -> tuple[int, int, int]:
    """`_divide` for the two loops: two units per thread, contiguous rows as long as possible.

    together: a unit has all samples of its neurons and sums their gradients in order, so the cut changes no result.
    """
    steps, batch, size = shape
    threads = min(threads, -(-steps * batch * size // SHARE))
    units = 2 * threads if threads > 1 else 1
    if batch == 1 or together:
        block = -(-size // units)
        return _divide(batch, size, block if batch == 1 else min(MOST, block), 1)
    return _divide(batch, size, min(MOST, size), units)


def _run(function, before: tuple, after: tuple, units: int, work: int) -> None:
    """Call function(*before, first, last, *after) over all units, in up to torch's number of threads."""
    threads = min(torch.get_num_threads(), units, -(-work // SHARE))
    if threads <= 1:
        return function(*before, 0, units, *after)
    in_parallel(
        lambda first, last: function(*before, first, last, *after), cuts(units, min(units, 4 * threads)), threads
    )


def _streams(shape, *outputs: Tensor) -> bool:
    """Whether to bypass the cache: large outputs whose rows all are 64-byte aligned."""
    wide = outputs[0].itemsize
    aligned = shape[2] * wide % 64 == 0 and not any(x.data_ptr() % 64 for x in outputs)
    return aligned and wide * math.prod(shape) >= STREAM_BYTES


def _merged(shape, v0_stride: int, *tensors: Tensor) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    """Without a shared v0, merge adjacent samples into one long sample: fewer, longer loops."""
    steps, batch, size = shape
    strides = [x.stride()[:2] for x in tensors]
    if v0_stride != 0 and all(b == size or batch == 1 for _, b in strides):
        return (steps, 1, batch * size), strides
    return shape, strides


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _kind(x: Tensor, law: Law, norm: Norm | None) -> tuple[int, bool, bool, bool, bool]:
    """What a compiled loop is specialised for."""
    half = x.dtype == torch.bfloat16
    return CHARGES.index(law.charge), law.v_reset is not None, law.strict, norm is not None, half


def norm(x: Tensor, weight, bias, te, mean, var, eps: float, together: bool = False) -> Norm:
    """Prepare a norm for input x; mean None: use x's statistics.

    x: [T, B, C, H, W], channels last, possibly one step expanded to T. The variance is over n, not n - 1.
    """
    steps, channels = x.shape[0], weight.numel()
    weight, bias, te = (_EMPTY if a is None else a.detach().numpy() for a in (weight, bias, te))
    if mean is None:
        x = x.detach()[:1] if x.stride(0) == 0 else x.detach()
        mean, var = torch.empty(channels), torch.empty(channels)
        moments(x.as_strided((x.numel() // channels, channels), (channels, 1)).numpy(), mean.numpy(), var.numpy())
    mean, var = mean.detach(), var.detach()
    numbers = weight, bias, te, mean.numpy(), var.numpy(), eps
    scale, shift, middle = _affine(*numbers)
    tables = scale, shift, len(middle) if len(te) > 1 else 0, channels
    return Norm(mean, var, numbers, tables, middle, te if len(te) else _ones(steps))


def moments(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> None:
    """Fill mean and var [channels] from x [rows, channels]."""
    rows, channels = x.shape
    parts = max(1, min(PARTS, rows // 64))
    means, squares = np.zeros((parts, channels)), np.zeros((parts, channels))
    _run(_moments, (x,), (parts, means, squares), parts, x.size)
    _merge(means, squares, rows, mean, var)


def forward(x, v0, v0_stride: int, s, v_last, shape, law: Law, norm: Norm | None, plus: None = None) -> None:
    """Fill s [T, B, ...] and v_last [B, ...]; arguments as in `neuron.py`, without plus."""
    shape, (strides,) = _merged(shape, v0_stride, x)
    block, group, units = _cut(shape, False, torch.get_num_threads())
    tables = norm.tables if norm else NO_TABLES
    before = (x.data_ptr(), *strides, *tables, _pointer(v0), v0_stride, s.data_ptr(), v_last.data_ptr(), *shape)
    after = (block, group, law.v_threshold, law.v_reset or 0.0, law.leak, _streams(shape, s, v_last))
    _run(_forward(*_kind(x, law, norm)), before, after, units, math.prod(shape))


def backward(gs, gv_last, x, v0, v0_stride: int, gx, gv0, shape, law: Law, norm: Norm | None, of_input, gnorm) -> None:
    """Fill gx [T or 1, B, ...], gv0 unless None and, with a norm, gnorm.

    With a norm the loop writes the gradient of its output times the step's factor to gx, and to sums [parts, 2, T or 1,
    channels] the sums of that output's gradient before the factor and of its product with x - mean.
    """
    shape, (strides, gs_strides) = _merged(shape, v0_stride, x, gs)
    steps, batch, size = shape
    run, many, stream, sums, tables, middle, factor = LANES, steps, False, NO_SUMS, NO_TABLES, _EMPTY, _EMPTY
    if norm is not None:  # blocks depend on the shape alone
        block, group, units = _divide(batch, size, max(LEAST, min(MOST, -(-size // PARTS))), 1)
        parts, tables, middle, factor = min(PARTS, units), norm.tables, norm.middle, norm.factor
        sums = np.zeros((parts, 2, len(tables[0]) // len(middle), tables[3]))
    else:
        block, group, parts = _cut(shape, gv0 is not None and v0_stride == 0, torch.get_num_threads())
        stream = _streams(shape, gx)
        if steps >= MANY:
            run, many = RUN * LANES, MANY
    before = (
        x.data_ptr(), *strides, *tables, middle, factor, _pointer(v0), v0_stride, gs.data_ptr(), *gs_strides,
        _pointer(gv_last), gx.data_ptr(), batch * size if len(gx) == steps else 0, _pointer(gv0), sums, *shape,
    )  # fmt: skip
    after = (parts, block, group, run, many, law.v_threshold, law.v_reset or 0.0, law.leak, law.width, stream)
    loop = _backward(*_kind(x, law, norm), law.detach, SLOPES.index(law.slope))
    _run(loop, before, after, parts, math.prod(shape))
    if norm is not None:
        gweight, gbias, gte = (_EMPTY if a is None else a.numpy() for a in gnorm)
        channels, values = tables[3], gx.numel()
        of_z = _parameters(sums, *norm.numbers, values // channels, of_input, gweight, gbias, gte)
        block = 256 * LANES
        _run(_combine, (x.data_ptr(), gx.data_ptr(), values, *of_z, channels), (block,), -(-values // block), values)
