"""A batch norm and the spiking layer behind it in one pass over memory, on the CPU; channels-last memory.

The loops are those of `cpu.py`, on z[t] = scale[t, c] * x[t] + shift[t, c] in place of x. With the channels c side by side
in memory, the numbers of LANES neighbours are a piece of a table of the channels that begins anew behind the last one.

    moments    mean and variance of x over all but the channels          reads x
    forward    spikes                                                     reads x, writes s
    backward   the gradient of z, times the step's factor, and its sums   reads x and gs, writes gz
    combine    gx = a[c] * gz + b[c] * x + d[c], in place of gz           reads gz and x, writes gx

x may stand for all time steps (a static image): then gz is summed over them. Sums are float32 within a block and
float64 beyond, cut by shape alone, so that the number of threads changes no number.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from snn_repro.neurons.cpu import (
    _FAMILIES,
    _SURROGATES,
    AHEAD,
    LANES,
    LEAST,
    MOST,
    Kind,
    _back,
    _charge,
    _compile,
    _cut_and_run,
    _divide,
    _fence,
    _fetch,
    _fetch_to_write,
    _fires,
    _keep,
    _load,
    _reset,
    _run,
    _select,
    _store,
    _streams,
    _zeros,
)

PARTS = 16  # sums of their own
CHUNK = 8192  # values of which a mean is taken at a time: they stay in the cache for the variance


@_compile
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


@_compile
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


@_compile
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


@lru_cache
def _forward(kind: Kind):
    family, hard, strict = _FAMILIES.index(kind.family), kind.hard, kind.strict

    def normed_forward(
        x, x_t, x_b, scale, shift, table_t, channels, v0, v0_b, s, v_last,
        steps, batch, size, first, last, block, group, v_threshold, v_reset, leak, stream,
    ):  # fmt: skip
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        groups = (batch + group - 1) // group
        for unit in range(first, last):
            m = unit // groups * block
            n = min(block, size - m)
            b0 = unit % groups * group
            for b in range(b0, min(b0 + group, batch)):
                for i in range(0, n, LANES):
                    count = min(LANES, n - i)
                    at = b * size + m + i
                    table = 4 * ((m + i) % channels)
                    v = _load(v0 + 4 * (b * v0_b + m + i), count, False) if v0_b >= 0 else _zeros()
                    x_at, s_at = x + 4 * (b * x_b + m + i), s + 4 * at
                    skip = AHEAD if i + AHEAD // 4 < n else AHEAD + 4 * (x_b - n)
                    for _ in range(steps):
                        _fetch(x_at + skip, False)
                        z = _load(scale.ctypes.data + table, LANES, False) * _load(x_at, count, False)
                        z = z + _load(shift.ctypes.data + table, LANES, False)
                        h = _charge(v, z, leak, family)
                        fires = _fires(h, v_threshold, strict)
                        v = _reset(h, fires, v_threshold, v_reset, hard)
                        _store(s_at, _select(fires, np.float32(1), np.float32(0)), count, False, stream)
                        if not stream:
                            _fetch_to_write(s_at + AHEAD, False)
                        x_at += 4 * x_t
                        s_at += 4 * batch * size
                        table += 4 * table_t
                    _store(v_last + 4 * at, v, count, False, stream)
        _fence()

    return _compile(normed_forward)


@lru_cache
def _backward(kind: Kind, detach: bool, surrogate_name: str):
    family, hard, strict = _FAMILIES.index(kind.family), kind.hard, kind.strict
    surrogate = _SURROGATES.index(surrogate_name)

    def normed_backward(
        x, x_t, x_b, scale, shift, table_t, factor, mean, channels, v0, v0_b, gs, gs_t, gs_b, gv_last, gz, gv0, sums,
        steps, batch, size, first, last, parts, block, group, v_threshold, v_reset, leak, width,
    ):  # fmt: skip
        v_threshold, v_reset, leak, width = np.float32(v_threshold), np.float32(v_reset), np.float32(leak), np.float32(width)
        potentials = np.empty((steps + 1) * LANES, np.float32)  # of all steps, before the reset
        kept = (potentials.ctypes.data + 63) // 64 * 64
        rows = sums.shape[2]  # time steps with a table of their own, or 1
        along, across = np.empty((rows, channels + LANES), np.float32), np.empty((rows, channels + LANES), np.float32)
        groups = (batch + group - 1) // group
        units = (size + block - 1) // block * groups
        for part in range(first, last):
            for unit in range(units * part // parts, units * (part + 1) // parts):
                along[:] = np.float32(0)
                across[:] = np.float32(0)
                m = unit // groups * block
                n = min(block, size - m)
                b0 = unit % groups * group
                for b in range(b0, min(b0 + group, batch)):
                    for i in range(0, n, LANES):
                        count = min(LANES, n - i)
                        at = b * size + m + i
                        channel = 4 * ((m + i) % channels)
                        middle = _load(mean.ctypes.data + channel, LANES, False)
                        v = _load(v0 + 4 * (b * v0_b + m + i), count, False) if v0_b >= 0 else _zeros()
                        x_at, gs_at = x + 4 * (b * x_b + m + i), gs + 4 * (b * gs_b + m + i)
                        beyond = i + AHEAD // 4 >= n
                        x_skip = AHEAD + 4 * (x_b - n) if beyond else AHEAD
                        gs_skip = AHEAD + 4 * (gs_b - n) if beyond else AHEAD
                        table = channel
                        for t in range(steps):
                            _fetch(x_at + x_skip, False)
                            _fetch(gs_at + gs_skip, False)
                            z = _load(scale.ctypes.data + table, LANES, False) * _load(x_at, count, False)
                            z = z + _load(shift.ctypes.data + table, LANES, False)
                            h = _charge(v, z, leak, family)
                            v = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                            _store(kept + 4 * LANES * t, h, LANES, False, False)
                            x_at += 4 * x_t
                            gs_at += 4 * gs_t
                            table += 4 * table_t
                        gv = _load(gv_last + 4 * at, count, False) if gv_last else _zeros()
                        gz_at = gz + 4 * (steps * x_t + at)
                        together = _zeros()
                        for t in range(steps - 1, -1, -1):
                            gs_at -= 4 * gs_t
                            x_at -= 4 * x_t
                            gz_at -= 4 * x_t
                            h, g = _load(kept + 4 * LANES * t, LANES, False), _load(gs_at, count, False)
                            gi, gv = _back(
                                h, g, gv, v_threshold, v_reset, leak, width, family, hard, strict, detach, surrogate
                            )  # fmt: skip
                            row = t if rows > 1 else 0
                            to = along.ctypes.data + 4 * row * (channels + LANES) + channel
                            _store(to, _load(to, LANES, False) + gi, LANES, False, False)
                            to = across.ctypes.data + 4 * row * (channels + LANES) + channel
                            far = gi * (_load(x_at, count, False) - middle)
                            _store(to, _load(to, LANES, False) + far, LANES, False, False)
                            if x_t:
                                _store(gz_at, factor[t] * gi, count, False, False)
                                _fetch_to_write(gz_at + AHEAD, False)
                            else:
                                together = together + factor[t] * gi
                        if not x_t:
                            _store(gz_at, together, count, False, False)
                        if gv0:
                            if v0_b > 0:
                                _store(gv0 + 4 * at, gv, count, False, False)
                            else:  # summed over the samples
                                to = gv0 + 4 * (m + i)
                                if b > 0:
                                    gv = gv + _load(to, count, False)
                                _store(to, gv, count, False, False)
                for row in range(rows):
                    for i in range(channels + LANES):
                        sums[part, 0, row, i % channels] += np.float64(along[row, i])
                        sums[part, 1, row, i % channels] += np.float64(across[row, i])
        _keep(potentials)
        _fence()

    return _compile(normed_backward)


@_compile
def _combine(x, gz, size, of_gz, of_x, constant, channels, first, last, block):
    """gz = of_gz * gz + of_x * x + constant, in place; the three are tables of the channels."""
    for at in range(first * block, min(last * block, size), LANES):
        count = min(LANES, size - at)
        table, to = 4 * (at % channels), gz + 4 * at
        g = _load(of_gz.ctypes.data + table, LANES, False) * _load(to, count, False)
        g = g + _load(of_x.ctypes.data + table, LANES, False) * _load(x + 4 * at, count, False)
        _store(to, g + _load(constant.ctypes.data + table, LANES, False), count, False, False)


# ---------------------------------------------------------------- a channel's numbers, in double precision


@_compile
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


@_compile
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


@_compile
def _parameters(sums, weight, bias, te, mean, var, eps, n, of_input, gweight, gbias, gte):
    """Gradients of the norm's parameters from the sums of `backward`, and the tables of `combine`."""
    parts, _, rows, channels = sums.shape
    length = channels + LANES
    of_gz, of_x, constant = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    gte[:] = np.float32(0)
    for c in range(channels):
        inverse = 1 / np.sqrt(np.float64(var[c]) + eps)
        along, across = 0.0, 0.0  # sums of the gradient of the norm's output, and of it times the normalised x
        for row in range(rows):
            of_step, of_step_x = 0.0, 0.0
            for part in range(parts):
                of_step += sums[part, 0, row, c]
                of_step_x += sums[part, 1, row, c]
            of_step_x *= inverse
            factor = np.float64(te[row]) if len(te) else 1.0
            along += factor * of_step
            across += factor * of_step_x
            if len(gte):
                gte[row] += weight[c] * of_step_x + bias[c] * of_step
        gweight[c], gbias[c] = across, along
        a = np.float64(weight[c]) * inverse
        b = -a * inverse * across / n if of_input else 0.0
        d = -a * along / n - b * np.float64(mean[c]) if of_input else 0.0
        for i in range(c, length, channels):
            of_gz[i], of_x[i], constant[i] = a, b, d
    return of_gz, of_x, constant


# ---------------------------------------------------------------- running them


class Parameters(NamedTuple):
    """Of a norm, float32 arrays [channels]; te [T] or empty."""

    weight: np.ndarray
    bias: np.ndarray
    te: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


def moments(x: np.ndarray, mean: np.ndarray, var: np.ndarray, threads: int) -> None:
    """Fill mean and var (over n, not n - 1) [channels] from x [rows, channels], flat."""
    channels = len(mean)
    rows = len(x) // channels
    parts = max(1, min(PARTS, rows // 64))
    means, squares = np.zeros((parts, channels)), np.zeros((parts, channels))
    _run(_moments, (x, channels, rows), (parts, means, squares), parts, len(x), threads)
    _merge(means, squares, rows, mean, var)


def forward(
    kind: Kind, x: int, x_t: int, norm: Parameters, v0: int, v0_stride: int, s: int, v_last: int, shape, constants, threads: int
) -> None:  # fmt: skip
    """Fill s [T, B, M] and v_last [B, M] from x [T or 1, B, M]; addresses of dense arrays (x_t 0: one x for all steps).

    shape (T, B, M); constants (v_threshold, v_reset, leak); v0 as in `cpu.forward`.
    """
    channels = len(norm.weight)
    scale, shift, _ = _affine(*norm)
    table = channels + LANES if len(norm.te) else 0
    before = (x, x_t, shape[2], scale, shift, table, channels, v0, v0_stride, s, v_last, *shape)
    _cut_and_run(_forward(kind), before, (*constants, _streams(shape, False, s, v_last)), shape, False, threads)


def backward(
    kind: Kind, detach: bool, surrogate: str, x: int, x_t: int, norm: Parameters, of_input: bool, v0: int, v0_stride: int,
    gs: int, gs_strides, gv_last: int, gx: int, gv0: int, gweight, gbias, gte, shape, constants, threads: int,
) -> None:  # fmt: skip
    """Fill gx (as x), gweight, gbias [channels], gte [T or 0], and gv0 as `cpu.backward` does.

    of_input: mean and var were those of x, and their gradients reach it; constants (v_threshold, v_reset, leak, width).
    """
    steps, batch, size = shape
    channels, values = len(norm.weight), (steps if x_t else 1) * batch * size
    cut = _divide(batch, size, max(LEAST, min(MOST, -(-size // PARTS))), 1)  # by the shape alone
    parts, rows = min(PARTS, cut.units), max(1, len(norm.te))
    scale, shift, mean = _affine(*norm)
    sums = np.zeros((parts, 2, rows, channels))
    factor = norm.te if len(norm.te) else np.ones(steps, np.float32)
    before = (
        x, x_t, size, scale, shift, channels + LANES if rows > 1 else 0, factor, mean, channels, v0, v0_stride,
        gs, *gs_strides, gv_last, gx, gv0, sums, *shape,
    )  # fmt: skip
    after = (parts, cut.block, cut.group, *constants)
    _run(_backward(kind, detach, surrogate), before, after, parts, steps * batch * size, threads)
    tables = _parameters(sums, *norm, values // channels, of_input, gweight, gbias, gte)
    block = 256 * LANES
    _run(_combine, (x, gx, values, *tables, channels), (block,), -(-values // block), values, threads)
