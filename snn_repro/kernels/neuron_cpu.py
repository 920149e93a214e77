"""A whole spiking layer over all time steps in one pass over memory, on the CPU: `forward` and `backward`.

numba compiles the two loops below for one kind of layer at its first use. They take LANES neurons at a time through all
steps: potentials stay in registers, and the backward pass recomputes them from the inputs, so nothing but the input has to
be saved. What is read next, and what is written to the cache, is fetched ahead; outputs too large for the cache are
written around it.

With a norm before the neuron the input is z[t] = scale[t, c] * x[t] + shift[t, c]. The channels c lie side by side in memory, so
the numbers of LANES neighbours are a piece of a table of the channels that begins again behind the last one.
The backward pass then writes the gradient of z times the step's factor, and its sums by channel, float32 within a block and
float64 beyond, cut by shape alone: the number of threads changes no number.

The norm's own passes over memory, channels-last, stand behind the two loops; their sums are float32 within a chunk and float64 beyond:
    moments    mean and variance of x over all but the channels               reads x
    tables     of scale and shift for the loops
    gradients  of x, weight, bias and the steps' factors, from the sums of the backward loop:
               gx = a[c] * gz + b[c] * x + d[c], in place of gz               reads gz and x, writes gx

Arithmetic and its order are those of the reference, without fused multiply-add: the spikes are the same bits.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from snn_repro.kernels import CHARGES, SLOPES
from snn_repro.kernels.compiled import compiled
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
    select,
    store,
    zeros,
)
from snn_repro.kernels.threads import cuts, in_parallel

AHEAD = 256  # bytes between what is read and what is fetched
PIECE = 256  # blocks are a multiple of this
LEAST, MOST = 1024, 16384  # neurons in a block
MANY, RUN = 8, 32  # steps at a time where there are as many, and groups of LANES neurons
PARTS = 16  # sums of their own, of a norm's gradients
CHUNK = 8192  # values of which a mean is taken at a time: they stay in the cache for the variance
STREAM_BYTES = 6 * 2**20  # outputs this large are written around the cache
SHARE = 65536  # neuron-steps that are worth a thread


class Kind(NamedTuple):
    """What a compiled loop is specialised for; half means bfloat16 inputs and outputs, normed a norm before the neuron."""

    charge: str
    hard: bool
    strict: bool
    half: bool
    normed: bool


class Tables(NamedTuple):
    """Of a norm before the neuron: scale, shift [T or 1, channels + LANES] and mean, flat; the factor of each step; the
    number of channels; and how far the table of one step lies behind that of the step before."""

    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    factor: np.ndarray
    channels: int
    step: int


class Parameters(NamedTuple):
    """Of a norm, float32 arrays [channels]; te [T] or empty."""

    weight: np.ndarray
    bias: np.ndarray
    te: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


_EMPTY = np.empty(0, np.float32)
NO_TABLES = Tables(_EMPTY, _EMPTY, _EMPTY, _EMPTY, 1, 0)
NO_SUMS = np.empty((1, 2, 1, 1))


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
    """The surrogate derivative (see neurons/surrogates.py)."""
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
    """One step backward: gradients of the input and of the potential before, from those of the spike and of the potential."""
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


# ---------------------------------------------------------------- the two loops
#
# Both see memory as [steps, batch, size] and take addresses (0: absent): x[t, b, m] lies x_t * t + x_b * b + m values behind
# x, outputs are dense (gx_t 0: one gradient for all steps, of an input that stands for all). LANES neurons at a time live in
# registers through all steps. A unit of work is a block of neurons (m) for a group of samples (b). v0_b is -1 without an
# initial potential, 0 for one that all samples share, else its stride.


@lru_cache
def _forward(kind: Kind, whole: bool):
    """whole: samples are multiples of LANES."""
    charge, hard, strict, half, normed = CHARGES.index(kind.charge), *kind[1:]

    def neuron_forward(
        x, x_t, x_b, scale, shift, table_t, channels, v0, v0_b, s, v_last,
        steps, batch, size, first, last, block, group, v_threshold, v_reset, leak, stream,
    ):  # fmt: skip
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        wide = 2 if half else 4
        groups = (batch + group - 1) // group
        for unit in range(first, last):
            m = unit // groups * block
            n = min(block, size - m)
            b0 = unit % groups * group
            for b in range(b0, min(b0 + group, batch)):
                for i in range(0, n, LANES):
                    count = LANES if whole else min(LANES, n - i)
                    at = b * size + m + i
                    table = 4 * ((m + i) % channels) if normed else 0
                    v = load(v0 + 4 * (b * v0_b + m + i), count, False) if v0_b >= 0 else zeros()
                    x_at, s_at = x + wide * (b * x_b + m + i), s + wide * at
                    skip = AHEAD if i + AHEAD // wide < n else AHEAD + wide * (x_b - n)
                    for _ in range(steps):
                        fetch(x_at + skip, half)
                        z = load(x_at, count, half)
                        if normed:
                            z = load(scale.ctypes.data + table, LANES, False) * z
                            z = z + load(shift.ctypes.data + table, LANES, False)
                        h = _charge(v, z, leak, charge)
                        fires = _fires(h, v_threshold, strict)
                        v = _reset(h, fires, v_threshold, v_reset, hard)
                        store(s_at, select(fires, np.float32(1), np.float32(0)), count, half, stream)
                        if not stream:
                            fetch_to_write(s_at + AHEAD, half)
                        x_at += wide * x_t
                        s_at += wide * batch * size
                        table += 4 * table_t
                    store(v_last + 4 * at, v, count, False, stream)
        fence()

    return compiled(neuron_forward)


@lru_cache
def _backward(kind: Kind, detach: bool, slope: str):
    charge, hard, strict, half, normed = CHARGES.index(kind.charge), *kind[1:]
    surrogate = SLOPES.index(slope)

    def neuron_backward(
        x, x_t, x_b, scale, shift, table_t, channels, mean, factor, v0, v0_b, gs, gs_t, gs_b, gv_last, gx, gx_t, gv0, sums,
        steps, batch, size, first, last, parts, block, group, v_threshold, v_reset, leak, width, stream,
    ):  # fmt: skip
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        width = np.float32(width)
        potentials = np.empty((steps + 1) * LANES, np.float32)  # of all steps, before the reset
        kept = (potentials.ctypes.data + 63) // 64 * 64
        wide = 2 if half else 4
        rows = sums.shape[2]  # time steps with a table of their own, or 1
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
                n = min(block, size - m)
                b0 = unit % groups * group
                for b in range(b0, min(b0 + group, batch)):
                    for i in range(0, n, LANES):
                        count = min(LANES, n - i)
                        at = b * size + m + i
                        channel = 4 * ((m + i) % channels) if normed else 0
                        v = load(v0 + 4 * (b * v0_b + m + i), count, False) if v0_b >= 0 else zeros()
                        x_at, gs_at = x + wide * (b * x_b + m + i), gs + wide * (b * gs_b + m + i)
                        beyond = i + AHEAD // wide >= n
                        x_skip = AHEAD + wide * (x_b - n) if beyond else AHEAD
                        gs_skip = AHEAD + wide * (gs_b - n) if beyond else AHEAD
                        table = channel
                        for t in range(steps):
                            fetch(x_at + x_skip, half)
                            fetch(gs_at + gs_skip, half)
                            z = load(x_at, count, half)
                            if normed:
                                z = load(scale.ctypes.data + table, LANES, False) * z
                                z = z + load(shift.ctypes.data + table, LANES, False)
                            h = _charge(v, z, leak, charge)
                            v = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                            store(kept + 4 * LANES * t, h, LANES, False, False)
                            x_at += wide * x_t
                            gs_at += wide * gs_t
                            table += 4 * table_t
                        gv = load(gv_last + 4 * at, count, False) if gv_last else zeros()
                        gx_at = gx + wide * (steps * gx_t + at)
                        middle = load(mean.ctypes.data + channel, LANES, False) if normed else zeros()
                        together = zeros()
                        for t in range(steps - 1, -1, -1):
                            gs_at -= wide * gs_t
                            gx_at -= wide * gx_t
                            h, g = load(kept + 4 * LANES * t, LANES, False), load(gs_at, count, half)
                            cut = detach or (gv_last == 0 and t == steps - 1)  # else 0 x infinity
                            gi, gv = _back(
                                h, g, gv, v_threshold, v_reset, leak, width, charge, hard, strict, cut, surrogate
                            )  # fmt: skip
                            if normed:
                                x_at -= 4 * x_t
                                row = 4 * (t if rows > 1 else 0) * length + channel
                                to = sums_g.ctypes.data + row
                                store(to, load(to, LANES, False) + gi, LANES, False, False)
                                to = sums_gx.ctypes.data + row
                                far = gi * (load(x_at, count, False) - middle)
                                store(to, load(to, LANES, False) + far, LANES, False, False)
                                gi = factor[t] * gi
                            if gx_t or not normed:
                                store(gx_at, gi, count, half, stream and not normed)
                                if normed or not stream:
                                    fetch_to_write(gx_at + AHEAD, half)
                            else:
                                together = together + gi
                        if normed and not gx_t:
                            store(gx_at, together, count, False, False)
                        if gv0:
                            if v0_b > 0:
                                store(gv0 + 4 * at, gv, count, False, False)
                            else:  # summed over the samples
                                to = gv0 + 4 * (m + i)
                                if b > 0:
                                    gv = gv + load(to, count, False)
                                store(to, gv, count, False, False)
                if normed:
                    for row in range(rows):
                        for i in range(length):
                            sums[part, 0, row, i % channels] += np.float64(sums_g[row, i])
                            sums[part, 1, row, i % channels] += np.float64(sums_gx[row, i])
        keep(potentials)
        fence()

    return compiled(neuron_backward)


@lru_cache
def _backward_of_many(kind: Kind, detach: bool, slope: str):
    """`_backward` without a norm, of samples that are multiples of LANES and gradients of each step's own input.

    1.6 times as fast at T = 16: `_backward` would read at more places in memory than processors foresee. Here potentials of RUN x LANES neurons
    come first, which stay in the cache, then their gradients, and of both MANY steps at a time.
    """
    charge, hard, strict, half, _ = CHARGES.index(kind.charge), *kind[1:]
    surrogate = SLOPES.index(slope)

    def neuron_backward_of_many(
        x, x_t, x_b, v0, v0_b, gs, gs_t, gs_b, gv_last, gx, gx_t, gv0,
        steps, batch, size, first, last, parts, block, group, v_threshold, v_reset, leak, width, stream,
    ):  # fmt: skip
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        width = np.float32(width)
        room = np.empty((steps + 1) * RUN * LANES + 16, np.float32)
        carried = (room.ctypes.data + 63) // 64 * 64  # from MANY steps to the next
        kept = carried + 4 * RUN * LANES  # potentials before the reset
        wide = 2 if half else 4
        groups = (batch + group - 1) // group
        units = (size + block - 1) // block * groups
        for unit in range(units * first // parts, units * last // parts):
            m = unit // groups * block
            end = min(size, m + block)
            b0 = unit % groups * group
            for b in range(b0, min(b0 + group, batch)):
                for start in range(m, end, RUN * LANES):
                    stop = min(end, start + RUN * LANES)
                    for t0 in range(0, steps, MANY):
                        t1 = min(steps, t0 + MANY)
                        for i in range(start, stop, LANES):
                            to = carried + 4 * (i - start)
                            if t0:
                                v = load(to, LANES, False)
                            else:
                                v = load(v0 + 4 * (b * v0_b + i), LANES, False) if v0_b >= 0 else zeros()
                            x_at = x + wide * (t0 * x_t + b * x_b + i)
                            h_at = kept + 4 * ((i - start) * steps + LANES * t0)
                            for _ in range(t0, t1):
                                fetch(x_at + AHEAD, half)
                                h = _charge(v, load(x_at, LANES, half), leak, charge)
                                v = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                                store(h_at, h, LANES, False, False)
                                x_at += wide * x_t
                                h_at += 4 * LANES
                            store(to, v, LANES, False, False)
                    for t1 in range(steps, 0, -MANY):
                        t0 = max(0, t1 - MANY)
                        for i in range(start, stop, LANES):
                            to, at = carried + 4 * (i - start), b * size + i
                            if t1 < steps:
                                gv = load(to, LANES, False)
                            else:
                                gv = load(gv_last + 4 * at, LANES, False) if gv_last else zeros()
                            gs_at = gs + wide * ((t1 - 1) * gs_t + b * gs_b + i)
                            gx_at = gx + wide * ((t1 - 1) * gx_t + at)
                            h_at = kept + 4 * ((i - start) * steps + LANES * (t1 - 1))
                            for t in range(t1 - 1, t0 - 1, -1):
                                fetch(gs_at + AHEAD, half)
                                h, g = load(h_at, LANES, False), load(gs_at, LANES, half)
                                cut = detach or (gv_last == 0 and t == steps - 1)  # else 0 x infinity
                                gi, gv = _back(
                                    h, g, gv, v_threshold, v_reset, leak, width, charge, hard, strict, cut, surrogate
                                )  # fmt: skip
                                store(gx_at, gi, LANES, half, stream)
                                if not stream:
                                    fetch_to_write(gx_at + AHEAD, half)
                                gs_at -= wide * gs_t
                                gx_at -= wide * gx_t
                                h_at -= 4 * LANES
                            if t0:
                                store(to, gv, LANES, False, False)
                            elif gv0 and v0_b > 0:
                                store(gv0 + 4 * at, gv, LANES, False, False)
                            elif gv0:  # summed over the samples
                                if b > 0:
                                    gv = gv + load(gv0 + 4 * i, LANES, False)
                                store(gv0 + 4 * i, gv, LANES, False, False)
        keep(room)
        fence()

    return compiled(neuron_backward_of_many)


# ---------------------------------------------------------------- the norm's passes


@compiled
def _moments(x, channels, rows, first, last, parts, means, squares):
    """Of each part's rows [rows, channels]: their mean and sum of squared distances from it (Chan et al. 1979)."""
    chunk = max(1, CHUNK // channels)
    near = np.empty(channels, np.float32)  # the chunk's mean, nearly
    off, square = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for part in range(first, last):
        begin, end = rows * part // parts, rows * (part + 1) // parts
        mean, total = means[part], squares[part]
        seen = 0
        for row in range(begin, end, chunk):
            n = min(chunk, end - row)
            near[:] = np.float32(0)
            _add_up(x, row * channels, n, channels, near)
            for c in range(channels):
                near[c] /= np.float32(n)
            _add_distances(x, row * channels, n, channels, near, off, square)
            for c in range(channels):
                rest = np.float64(off[c]) / n
                far = np.float64(near[c]) + rest - mean[c]
                mean[c] += far * n / (n + seen)
                total[c] += np.float64(square[c]) - rest * rest * n + far * far * n * seen / (n + seen)
            seen += n


@compiled
def _add_up(x, at, n, channels, total):
    for i in range(n // 4):
        a = x[at + 4 * i * channels : at + (4 * i + 1) * channels]
        b = x[at + (4 * i + 1) * channels : at + (4 * i + 2) * channels]
        d = x[at + (4 * i + 2) * channels : at + (4 * i + 3) * channels]
        e = x[at + (4 * i + 3) * channels : at + (4 * i + 4) * channels]
        for c in range(channels):
            total[c] += (a[c] + b[c]) + (d[c] + e[c])
    for i in range(n // 4 * 4, n):
        a = x[at + i * channels : at + (i + 1) * channels]
        for c in range(channels):
            total[c] += a[c]


@compiled
def _add_distances(x, at, n, channels, near, off, square):
    """Sums of x - near and of its square."""
    off[:] = np.float32(0)
    square[:] = np.float32(0)
    for i in range(n // 2):
        a = x[at + 2 * i * channels : at + (2 * i + 1) * channels]
        b = x[at + (2 * i + 1) * channels : at + (2 * i + 2) * channels]
        for c in range(channels):
            p, q = a[c] - near[c], b[c] - near[c]
            off[c] += p + q
            square[c] += p * p + q * q
    if n % 2:
        a = x[at + (n - 1) * channels : at + n * channels]
        for c in range(channels):
            p = a[c] - near[c]
            off[c] += p
            square[c] += p * p


@compiled
def _combine(x, gz, size, of_gz, of_x, constant, channels, first, last, block):
    """gz = of_gz * gz + of_x * x + constant, in place; the three are tables of the channels."""
    for at in range(first * block, min(last * block, size), LANES):
        count = min(LANES, size - at)
        table, to = 4 * (at % channels), gz + 4 * at
        g = load(of_gz.ctypes.data + table, LANES, False) * load(to, count, False)
        g = g + load(of_x.ctypes.data + table, LANES, False) * load(x + 4 * at, count, False)
        store(to, g + load(constant.ctypes.data + table, LANES, False), count, False, False)


# ---------------------------------------------------------------- a channel's numbers, in double precision


@compiled
def _merge(means, squares, rows, mean, var):
    """Mean and variance (over n, not n - 1) of all parts together, by channel."""
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
    scale, shift, middle = (
        np.empty(rows * length, np.float32),
        np.empty(rows * length, np.float32),
        np.empty(length, np.float32),
    )
    for c in range(channels):
        a = np.float64(weight[c]) * (1 / np.sqrt(np.float64(var[c]) + eps))
        b = np.float64(bias[c]) - np.float64(mean[c]) * a
        for row in range(rows):
            factor = np.float64(te[row]) if len(te) else 1.0
            for i in range(c, length, channels):
                scale[row * length + i], shift[row * length + i] = factor * a, factor * b
        for i in range(c, length, channels):
            middle[i] = mean[c]
    return scale, shift, middle


@compiled
def _parameters(sums, weight, bias, te, mean, var, eps, n, of_input, gweight, gbias, gte):
    """Gradients of the norm's parameters from the sums of `backward`, and the tables of `combine`."""
    parts, _, rows, channels = sums.shape
    length = channels + LANES
    of_gz, of_x, constant = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    gte[:] = np.float32(0)
    for c in range(channels):
        inverse = 1 / np.sqrt(np.float64(var[c]) + eps)
        sums_g, sums_gx = 0.0, 0.0  # sums of the gradient of the norm's output, and of it times the normalised x
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


# ---------------------------------------------------------------- running them


class Plan(NamedTuple):
    """How the work is cut into units: blocks of neurons for groups of samples."""

    block: int
    group: int
    groups: int
    units: int


def cut(batch: int, size: int, together: bool, threads: int) -> Plan:
    """For the two loops above: two units a thread, rows in memory as long as possible.

    together: one unit has all samples of its neurons and adds up their gradients in order. So the cut changes no number.
    """
    units = 2 * threads if threads > 1 else 1
    if batch == 1:
        return _divide(batch, size, -(-size // units), 1)
    if together:
        return _divide(batch, size, min(MOST, -(-size // units)), 1)
    return _divide(batch, size, min(MOST, size), units)


def _divide(batch: int, size: int, block: int, units: int) -> Plan:
    block = -(-block // PIECE) * PIECE
    blocks = -(-size // block)
    group = -(-batch // min(batch, -(-units // blocks)))
    groups = -(-batch // group)
    return Plan(block, group, groups, blocks * groups)


def run(function, before: tuple, after: tuple, units: int, work: int, threads: int) -> None:
    """Call function(*before, first, last, *after) over all units, on up to `threads` threads where the work is worth it."""
    threads = min(threads, units, -(-work // SHARE))
    if threads <= 1:
        return function(*before, 0, units, *after)
    in_parallel(
        lambda first, last: function(*before, first, last, *after), cuts(units, min(units, 4 * threads)), threads
    )


def _streams(shape, half: bool, *outputs: int) -> bool:
    """Whether to write around the cache: large outputs (at these addresses) whose rows all start at 64 bytes."""
    steps, batch, size = shape
    wide = 2 if half else 4
    aligned = size * wide % 64 == 0 and not any(address % 64 for address in outputs)
    return aligned and steps * batch * size * wide >= STREAM_BYTES


def forward(
    kind: Kind, x: int, strides, tables: Tables, v0: int, v0_stride: int, s: int, v_last: int, shape, constants, threads: int
) -> None:  # fmt: skip
    """Fill s [T, B, M] and v_last [B, M]. Arrays are addresses (v0 may be 0: none), outputs dense.

    shape (T, B, M); strides of T and B in x (of T 0: one x for all steps); constants (v_threshold, v_reset, leak).
    """
    work = math.prod(shape)
    block, group, _, units = cut(*shape[1:], False, min(threads, -(-work // SHARE)))
    before = (x, *strides, tables.scale, tables.shift, tables.step, tables.channels, v0, v0_stride, s, v_last, *shape)
    after = (block, group, *constants, _streams(shape, kind.half, s, v_last))
    run(_forward(kind, shape[2] % LANES == 0), before, after, units, work, threads)


def backward(
    kind: Kind, detach: bool, slope: str, x: int, strides, tables: Tables, v0: int, v0_stride: int, gs: int, gs_strides,
    gv_last: int, gx: int, gx_t: int, gv0: int, shape, constants, threads: int,
) -> np.ndarray:  # fmt: skip
    """Fill gx [T, B, M], or [1, B, M] with gx_t 0, and, if given, gv0: [B, M], or [M] where samples share v0.

    gv_last [B, M], or 0, is the gradient of the last potential; constants (v_threshold, v_reset, leak, width). With a norm
    gx is the gradient of its output times the step's factor; returned are the sums [parts, 2, T or 1, channels] of the
    gradient of the norm's output before that factor, and of it times x - mean.
    """
    steps, batch, size = shape
    work = math.prod(shape)
    if kind.normed:  # by the shape alone
        block, group, _, units = _divide(batch, size, max(LEAST, min(MOST, -(-size // PARTS))), 1)
        parts = min(PARTS, units)
        sums = np.zeros((parts, 2, steps if tables.step else 1, tables.channels))
        stream = False
    else:
        together = gv0 and v0_stride == 0
        block, group, _, parts = cut(batch, size, together, min(threads, -(-work // SHARE)))
        sums, stream = NO_SUMS, _streams(shape, kind.half, gx)
    if not kind.normed and gx_t and steps >= MANY and size % LANES == 0:
        before = (x, *strides, v0, v0_stride, gs, *gs_strides, gv_last, gx, gx_t, gv0, *shape)
        run(
            _backward_of_many(kind, detach, slope),
            before,
            (parts, block, group, *constants, stream),
            parts,
            work,
            threads,
        )
        return sums
    before = (
        x, *strides, *tables[:2], tables.step, tables.channels, tables.mean, tables.factor, v0, v0_stride, gs, *gs_strides,
        gv_last, gx, gx_t, gv0, sums, *shape,
    )  # fmt: skip
    run(_backward(kind, detach, slope), before, (parts, block, group, *constants, stream), parts, work, threads)
    return sums


def moments(x: np.ndarray, mean: np.ndarray, var: np.ndarray, threads: int) -> None:
    """Fill mean and var (over n, not n - 1) [channels] from x [rows, channels], flat."""
    channels = len(mean)
    rows = len(x) // channels
    parts = max(1, min(PARTS, rows // 64))
    means, squares = np.zeros((parts, channels)), np.zeros((parts, channels))
    run(_moments, (x, channels, rows), (parts, means, squares), parts, len(x), threads)
    _merge(means, squares, rows, mean, var)


@lru_cache
def _ones(n: int) -> np.ndarray:
    return np.ones(n, np.float32)


def tables(norm: Parameters, timesteps: int) -> Tables:
    """What the loops need of a norm."""
    channels, factors = len(norm.weight), len(norm.te)
    scale, shift, mean = _affine(*norm)
    factor = norm.te if factors else _ones(timesteps)
    return Tables(scale, shift, mean, factor, channels, channels + LANES if factors > 1 else 0)


def gradients(
    sums: np.ndarray, norm: Parameters, of_input: bool, x: int, gx: int, values: int, gweight, gbias, gte, threads: int
) -> None:
    """Turn what the backward loop left at gx into the gradient of x, and fill gweight, gbias [channels], gte [T or 0].

    of_input: mean and var were those of x, and their gradients reach it; values: of x. Arrays x and gx are addresses.
    """
    channels = len(norm.weight)
    of_z = _parameters(sums, *norm, values // channels, of_input, gweight, gbias, gte)
    block = 256 * LANES
    run(_combine, (x, gx, values, *of_z, channels), (block,), -(-values // block), values, threads)
