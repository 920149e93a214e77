"""A batch norm and the spiking layer behind it in one pass over memory, on the CPU; channels-last memory.

`cpu.py` explains how the loops are laid out. Here the input of the neuron is z[t] = scale[t, c] * x[t] + shift[t, c],
with the channels c side by side in memory: tables of whole pixels, `piece` values long, stand beside each piece of x.

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
    _NOTHING,
    _SURROGATES,
    Kind,
    _charge,
    _compile,
    _fence,
    _fires,
    _prefetch,
    _reset,
    _run,
    _slope,
    _stream,
    _streams,
    plan,
)

PIECE = 256  # values of a piece, about: whole pixels
PARTS = 16  # sums of their own
CHUNK = 8192  # values of which a mean is taken at a time: they stay in the cache for the variance


def piece_of(channels: int) -> int:
    """Values of a piece: whole pixels, and whole 64 bytes where that can be."""
    pixels = max(1, PIECE // channels)
    return channels * pixels


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
        x, x_t, x_b, scale, shift, table_t, v0, v0_b, s, v_last,
        steps, batch, size, first, last, block, piece, group, v_threshold, v_reset, leak, stream,
    ):  # fmt: skip
        v = np.empty(block, np.float32)
        scratch = np.empty(piece, np.float32)
        groups = (batch + group - 1) // group
        for unit in range(first, last):
            m = unit // groups * block
            n = min(block, size - m)
            b0 = unit % groups * group
            for b in range(b0, min(b0 + group, batch)):
                start = v0[b * v0_b + m :] if v0_b >= 0 else v0
                for i in range(n):
                    v[i] = start[i] if v0_b >= 0 else np.float32(0)
                after = (b + 1) * x_b + m if b + 1 < min(b0 + group, batch) else b0 * x_b + m + block
                for t in range(steps):
                    at = t * x_t + b * x_b + m
                    ahead = x.ctypes.data + 4 * (at + x_t if t + 1 < steps else after)
                    to = (t * batch + b) * size + m
                    scale_t, shift_t = scale[t * table_t :], shift[t * table_t :]
                    for j in range(0, n, piece):
                        k = min(piece, n - j)
                        for i in range(4 * j, 4 * (j + k), 64):
                            _prefetch(ahead + i)
                        x_j, v_j = x[at + j : at + j + k], v[j : j + k]
                        s_j = scratch[:k] if stream else s[to + j : to + j + k]
                        for i in range(k):
                            h = _charge(v_j[i], scale_t[i] * x_j[i] + shift_t[i], leak, family)
                            fires = _fires(h, v_threshold, strict)
                            v_j[i] = _reset(h, fires, v_threshold, v_reset, hard)
                            s_j[i] = np.float32(1) if fires else np.float32(0)
                        if stream:
                            _stream(s.ctypes.data + 4 * (to + j), scratch.ctypes.data, 4 * k)
                end = v_last[b * size + m :]
                for i in range(n):
                    end[i] = v[i]
        _fence()

    return _compile(normed_forward)


@lru_cache
def _backward(kind: Kind, detach: bool, surrogate_name: str):
    family, hard, strict = _FAMILIES.index(kind.family), kind.hard, kind.strict
    surrogate = _SURROGATES.index(surrogate_name)

    def normed_backward(
        x, x_t, x_b, scale, shift, table_t, factor, mean, v0, v0_b, gs, gs_t, gs_b, gv_last, gz, gz_t, gv0, sums,
        steps, batch, size, first, last, parts, block, piece, group, v_threshold, v_reset, leak, width,
    ):  # fmt: skip
        v = np.empty(block, np.float32)  # potentials forward, their gradients backward
        kept = np.empty(block * steps, np.float32)
        total = np.empty(block, np.float32)
        found = np.empty(piece, np.float32)
        rows = sums.shape[2]  # time steps with a table of their own, or 1
        along, across = np.empty(rows * piece, np.float32), np.empty(rows * piece, np.float32)
        groups = (batch + group - 1) // group
        units = (size + block - 1) // block * groups
        for part in range(first, last):
            for unit in range(units * part // parts, units * (part + 1) // parts):
                along[:] = np.float32(0)
                across[:] = np.float32(0)
                m = unit // groups * block
                n = min(block, size - m)
                b0 = unit % groups * group
                for i in range(n):
                    total[i] = np.float32(0)
                for b in range(b0, min(b0 + group, batch)):
                    start = v0[b * v0_b + m :] if v0_b >= 0 else v0
                    for i in range(n):
                        v[i] = start[i] if v0_b >= 0 else np.float32(0)
                    for t in range(steps):
                        at = t * x_t + b * x_b + m
                        ahead = (
                            x.ctypes.data + 4 * (at + x_t)
                            if t + 1 < steps
                            else gs.ctypes.data + 4 * (t * gs_t + b * gs_b + m)
                        )
                        scale_t, shift_t = scale[t * table_t :], shift[t * table_t :]
                        for j in range(0, n, piece):
                            k = min(piece, n - j)
                            for i in range(4 * j, 4 * (j + k), 64):
                                _prefetch(ahead + i)
                            x_j, v_j, h_j = (
                                x[at + j : at + j + k],
                                v[j : j + k],
                                kept[t * block + j : t * block + j + k],
                            )
                            for i in range(k):
                                h = _charge(v_j[i], scale_t[i] * x_j[i] + shift_t[i], leak, family)
                                v_j[i] = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                                h_j[i] = h
                    after = (b + 1) * x_b + m if b + 1 < min(b0 + group, batch) else b0 * x_b + m + block
                    given = gv_last.size > 0
                    start = gv_last[b * size + m :] if given else gv_last
                    for i in range(n):
                        v[i] = start[i] if given else np.float32(0)
                    for t in range(steps - 1, -1, -1):
                        at, of_x = t * gs_t + b * gs_b + m, t * x_t + b * x_b + m
                        ahead = gs.ctypes.data + 4 * (at - gs_t) if t > 0 else x.ctypes.data + 4 * after
                        to = t * gz_t + b * size + m
                        row = t if rows > 1 else 0
                        along_t, across_t = (
                            along[row * piece : (row + 1) * piece],
                            across[row * piece : (row + 1) * piece],
                        )
                        first_sum = gz_t != 0 or t == steps - 1
                        for j in range(0, n, piece):
                            k = min(piece, n - j)
                            for i in range(4 * j, 4 * (j + k), 64):
                                _prefetch(ahead + i)
                            gs_j, v_j = gs[at + j : at + j + k], v[j : j + k]
                            h_j = kept[t * block + j : t * block + j + k]
                            for i in range(k):
                                h, gv, g = h_j[i], v_j[i], gs_j[i]
                                if hard:
                                    if not detach:
                                        g = g + gv * (v_reset - h)
                                    gv = _reset(gv, _fires(h, v_threshold, strict), v_threshold, np.float32(0), hard)
                                elif not detach:
                                    g = g - v_threshold * gv
                                gh = gv + g * _slope(h - v_threshold, width, surrogate)
                                gi = gh / leak if family == 1 else gh
                                if family == 0:
                                    v_j[i] = gh
                                elif family == 1:
                                    v_j[i] = gh - gi
                                else:
                                    v_j[i] = leak * gh
                                found[i] = gi
                            x_j, gz_j = x[of_x + j : of_x + j + k], gz[to + j : to + j + k]
                            for i in range(k):
                                along_t[i] += found[i]
                            for i in range(k):
                                across_t[i] += found[i] * (x_j[i] - mean[i])
                            if first_sum:
                                for i in range(k):
                                    gz_j[i] = factor[t] * found[i]
                            else:
                                for i in range(k):
                                    gz_j[i] += factor[t] * found[i]
                    if gv0.size:
                        if v0_b > 0:
                            end = gv0[b * size + m :]
                            for i in range(n):
                                end[i] = v[i]
                        else:
                            for i in range(n):
                                total[i] += v[i]
                if gv0.size and v0_b == 0:
                    end = gv0[unit % groups * size + m :]
                    for i in range(n):
                        end[i] = total[i]
                for row in range(rows):
                    for i in range(piece):
                        sums[part, 0, row, i] += np.float64(along[row * piece + i])
                        sums[part, 1, row, i] += np.float64(across[row * piece + i])
        _fence()

    return _compile(normed_backward)


@_compile
def _combine(x, gz, of_gz, of_x, constant, size, first, last, block, piece):
    """gz = of_gz * gz + of_x * x + constant, in place; the three are tables of a piece."""
    for unit in range(first, last):
        for at in range(unit * block, min((unit + 1) * block, size), piece):
            k = min(piece, size - at)
            x_j, g_j = x[at : at + k], gz[at : at + k]
            for i in range(k):
                g_j[i] = of_gz[i] * g_j[i] + of_x[i] * x_j[i] + constant[i]


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
def _affine(weight, bias, te, mean, var, eps, piece):
    """scale and shift [T or 1, piece] and the mean [piece], repeated for the pixels of a piece, float32 and flat."""
    channels, rows = len(weight), max(1, len(te))
    scale, shift, middle = (
        np.empty(rows * piece, np.float32),
        np.empty(rows * piece, np.float32),
        np.empty(piece, np.float32),
    )
    for c in range(channels):
        a = np.float64(weight[c]) * (1 / np.sqrt(np.float64(var[c]) + eps))
        b = np.float64(bias[c]) - np.float64(mean[c]) * a
        for row in range(rows):
            factor = np.float64(te[row]) if len(te) else 1.0
            for i in range(row * piece + c, (row + 1) * piece, channels):
                scale[i], shift[i] = factor * a, factor * b
        for i in range(c, piece, channels):
            middle[i] = mean[c]
    return scale, shift, middle


@_compile
def _parameters(sums, weight, bias, te, mean, var, eps, n, of_input, gweight, gbias, gte):
    """Gradients of the norm's parameters from the sums of `backward`, and the tables of `combine`."""
    parts, _, rows, piece = sums.shape
    channels = len(weight)
    of_gz, of_x, constant = np.empty(piece, np.float32), np.empty(piece, np.float32), np.empty(piece, np.float32)
    for row in range(len(gte)):
        gte[row] = 0
    for c in range(channels):
        inverse = 1 / np.sqrt(np.float64(var[c]) + eps)
        along, across = 0.0, 0.0  # sums of the gradient of the norm's output, and of it times the normalised x
        for row in range(rows):
            of_step, of_step_x = 0.0, 0.0
            for part in range(parts):
                for i in range(c, piece, channels):
                    of_step += sums[part, 0, row, i]
                    of_step_x += sums[part, 1, row, i]
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
        for i in range(c, piece, channels):
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


def _cut(steps: int, batch: int, size: int, piece: int) -> tuple[int, int, int]:
    """(block, group, units) as of `plan`, with blocks of whole pieces."""
    cut = plan(steps, batch, size)
    block = max(1, cut.block // piece) * piece
    return block, cut.group, -(-size // block) * cut.groups


def moments(x: np.ndarray, mean: np.ndarray, var: np.ndarray, threads: int) -> None:
    """Fill mean and var (over n, not n - 1) [channels] from x [rows, channels], flat."""
    channels = len(mean)
    rows = len(x) // channels
    parts = max(1, min(PARTS, rows // 64))
    means, squares = np.zeros((parts, channels)), np.zeros((parts, channels))
    _run(_moments, (x, channels, rows), (parts, means, squares), parts, len(x), threads)
    _merge(means, squares, rows, mean, var)


def forward(kind: Kind, x, x_t: int, norm: Parameters, v0, v0_stride: int, s, v_last, shape, constants, threads: int):
    """Fill s [T, B, M] and v_last [B, M] from x [T or 1, B, M], all flat and dense (x_t 0: one x for all steps).

    shape (T, B, M); constants (v_threshold, v_reset, leak); v0 as in `cpu.forward`.
    """
    steps, batch, size = shape
    piece = piece_of(len(norm.weight))
    block, group, units = _cut(1, batch, size, piece)
    scale, shift, _ = _affine(*norm, piece)
    stream = _streams(size, s) and piece % 16 == 0
    before = (
        x, x_t, size, scale, shift, piece if len(norm.te) else 0, _NOTHING if v0 is None else v0, v0_stride, s, v_last,
        steps, batch, size,
    )  # fmt: skip
    after = (block, piece, group, *(np.float32(c) for c in constants), stream)
    _run(_forward(kind), before, after, units, steps * batch * size, threads)


def backward(
    kind: Kind, detach: bool, surrogate: str, x, x_t: int, norm: Parameters, of_input: bool, v0, v0_stride: int, gs, gs_strides,
    gv_last, gx, gv0, gweight, gbias, gte, shape, constants, threads: int,
) -> None:  # fmt: skip
    """Fill gx (as x), gweight, gbias [channels], gte [T or 0], and gv0 as `cpu.backward` does.

    of_input: mean and var were those of x, and their gradients reach it; constants (v_threshold, v_reset, leak, width).
    """
    steps, batch, size = shape
    channels = len(norm.weight)
    piece = piece_of(channels)
    block, group, units = _cut(steps, batch, size, piece)
    parts, rows = min(PARTS, units), max(1, len(norm.te))
    scale, shift, mean = _affine(*norm, piece)
    sums = np.zeros((parts, 2, rows, piece))
    factor = norm.te if len(norm.te) else np.ones(steps, np.float32)
    v0, gv_last, gv0 = (_NOTHING if a is None else a for a in (v0, gv_last, gv0))
    before = (
        x, x_t, size, scale, shift, piece if rows > 1 else 0, factor, mean, v0, v0_stride, gs, *gs_strides, gv_last,
        gx, x_t, gv0, sums, steps, batch, size,
    )  # fmt: skip
    after = (parts, block, piece, group, *(np.float32(c) for c in constants))
    _run(_backward(kind, detach, surrogate), before, after, parts, steps * batch * size, threads)
    tables = _parameters(sums, *norm, len(x) // channels, of_input, gweight, gbias, gte)
    block = piece * max(1, 16384 // piece)
    _run(_combine, (x, gx, *tables, len(x)), (block, piece), -(-len(x) // block), len(x), threads)
