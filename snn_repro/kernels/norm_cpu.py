"""A batch norm's numbers by channel on the CPU: moments before the loops of `neuron_cpu.py`, gradients behind them.

    moments    mean and variance of x over all but the channels               reads x
    affine     tables of scale and shift for the loops
    gradients  of x, weight, bias and the steps' factors, from the sums of the backward loop:
               gx = a[c] * gz + b[c] * x + d[c], in place of gz               reads gz and x, writes gx

Memory is channels-last. Sums are float32 within a chunk and float64 beyond, cut by shape alone.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from snn_repro.kernels.compiled import compiled
from snn_repro.kernels.lanes import LANES, load, store
from snn_repro.kernels.neuron_cpu import PARTS, Tables, run

CHUNK = 8192  # values of which a mean is taken at a time: they stay in the cache for the variance


class Parameters(NamedTuple):
    """Of a norm, float32 arrays [channels]; te [T] or empty."""

    weight: np.ndarray
    bias: np.ndarray
    te: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float


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
