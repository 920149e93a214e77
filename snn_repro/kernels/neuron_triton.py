"""The fused layer in Triton, for CUDA: norm, neuron and shortcut, over all time steps.

    moments    n, mean and sum of squared distances of each program's part of x       reads x
    tables     Chan's merge of these: mean, variance, scale and shift per channel     [C]
    forward    z = fma(x, scale, shift), T steps, spikes (+ shortcut)                 reads x, writes s
    backward   SUMS: recompute h; sums of gz and of gz * (x - mean)                   reads x and gs
    gradients  of weight and bias, and three tables                                   [C]
    backward   else: recompute h; gx = a gz + b (x - mean) + d, IMP's gradient        reads x and gs, writes gx

For statistics over all processes the results of `moments` and `tables` pass through `distributed.moments` and `tables`
again, and the sums of `backward` through `distributed.means`, as an unfused norm's do. Without a norm only `forward`
and the last `backward` run. As in `neuron_cpu.py`, only x is saved. A sample is stored as [positions, C] or [C,
positions]; without a norm C is 1. A program processes a tile of BP positions x BC channels through all steps, with
potentials in registers, for a group of samples. Sums are split by the shape alone and merged in a fixed order, without
atomics, so no result depends on the GPU or the order of programs.

Every pass recomputes the same bits: `enable_fp_fusion` is off (a fused multiply-add rounds once, the reference twice)
and the norm's multiply-add is explicit. LIF divides as the CPU does: exactly, or by the reciprocal where tau is a power
of two. torch's CUDA operation multiplies by 1 / tau, so for other tau its spikes differ from the CPU's; these do not.

Without a GPU the kernels run, slowly, in Triton's interpreter (set TRITON_INTERPRET=1 before the first import).
"""

import contextlib
import math
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from snn_repro import distributed
from snn_repro.kernels import CHARGES, SLOPES, Law

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
PROGRAMS = 1024  # partial sums

# Not specialised: Triton would compile again for values that are 1 or multiples of 16.
_kernel = triton.jit(do_not_specialize=["batch", "group", "samples", "each", "parts", "n"])


@triton.jit
def _charge(v, x, LEAK: tl.constexpr, CHARGE: tl.constexpr):
    if CHARGE == 0:
        h = v + x
    elif CHARGE == 1:
        h = v + tl.div_rn(x - v, tl.full(x.shape, LEAK, tl.float32))
    elif CHARGE == 2:
        h = LEAK * v + x
    else:
        h = v + (x - v) * LEAK
    return h


@triton.jit
def _spike(h, V_THRESHOLD: tl.constexpr, STRICT: tl.constexpr):
    z = h - V_THRESHOLD
    if STRICT:
        s = z > 0
    else:
        s = z >= 0
    return s.to(tl.float32)


@triton.jit
def _reset(h, s, V_THRESHOLD: tl.constexpr, V_RESET: tl.constexpr, HARD: tl.constexpr):
    if HARD:
        v = h * (1 - s) + V_RESET * s
    else:
        v = h - V_THRESHOLD * s
    return v


@triton.jit
def _slope(z, WIDTH: tl.constexpr, SLOPE: tl.constexpr):
    if SLOPE == 0:
        c = 1.5707963267948966 * WIDTH * z
        d = WIDTH / 2 / (1 + c * c)
    elif SLOPE == 1:
        e = tl.exp(-tl.abs(WIDTH * z))
        d = WIDTH * e / ((1 + e) * (1 + e))
    else:
        d = tl.maximum(WIDTH - tl.abs(z), 0) / (WIDTH * WIDTH)
    return d


@triton.jit
def _wide(n):
    """n as 64 bits, which a product with a stride may need."""
    return tl.zeros((), tl.int64) + n


@triton.jit
def _tile(size, C: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, column, row):
    """Offsets of a tile in a sample, their mask, and the tile's channels."""
    c = column * BC + tl.arange(0, BC)
    p = row.to(tl.int64) * BP + tl.arange(0, BP)
    if LAST:
        at = p[:, None] * C + c[None, :]
    else:
        at = c[None, :].to(tl.int64) * size + p[:, None]
    inside = (p < size)[:, None] & (c < C)[None, :]
    return at, inside, c


@triton.jit
def _by_channel(table, c, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    return tl.broadcast_to(tl.load(table + c, mask=c < C, other=0.0)[None, :], (BP, BC))


@triton.jit
def _initial(v0, v0_b, at, inside, b, BP: tl.constexpr, BC: tl.constexpr, HAS_V0: tl.constexpr):
    if HAS_V0:
        v = tl.load(v0 + b * v0_b + at, mask=inside, other=0.0)
    else:
        v = tl.zeros((BP, BC), tl.float32)
    return v


# ---------------------------------------------------------------- the two loops over time
#
# x[t, b] is at x + t * x_t + b * x_b: pointers advance by strides, and products have 64 bits.


@_kernel
def _forward(
    x, x_t, x_b, scale, shift, te, v0, v0_b, plus, plus_t, plus_b, s, v_last, batch, size, group,
    STEPS: tl.constexpr, ONE: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, NORMED: tl.constexpr, TE: tl.constexpr,
    PLUS: tl.constexpr, HAS_V0: tl.constexpr, CHARGE: tl.constexpr, HARD: tl.constexpr, STRICT: tl.constexpr,
    V_THRESHOLD: tl.constexpr, V_RESET: tl.constexpr, LEAK: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = (C + BC - 1) // BC
    program, rows = tl.program_id(0), tl.cdiv(size, BP)
    at, inside, c = _tile(size, C, LAST, BP, BC, program % columns, program // columns % rows)
    whole = _wide(size) * C
    if NORMED:
        a, d = _by_channel(scale, c, C, BP, BC), _by_channel(shift, c, C, BP, BC)
    b0 = (program // columns // rows).to(tl.int64) * group
    for i in range(b0, tl.minimum(b0 + group, batch)):
        b = _wide(i)
        v = _initial(v0, v0_b, at, inside, b, BP, BC, HAS_V0)
        x_at, s_at, plus_at = x + b * x_b, s + b * whole, plus + b * plus_b
        if ONE:
            once = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
        for t in tl.static_range(STEPS):
            if ONE:
                z = once
            else:
                z = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
            if NORMED:
                z = tl.fma(z, a, d)
            if TE:
                z = z * tl.load(te + t)
            h = _charge(v, z, LEAK, CHARGE)
            spike = _spike(h, V_THRESHOLD, STRICT)
            v = _reset(h, spike, V_THRESHOLD, V_RESET, HARD)
            if PLUS:
                spike += tl.load(plus_at + at, mask=inside, other=0.0).to(tl.float32)
                plus_at += plus_t
            tl.store(s_at + at, spike.to(s.dtype.element_ty), mask=inside)
            x_at += x_t
            s_at += batch * whole
        tl.store(v_last + b * whole + at, v, mask=inside)


@_kernel
def _backward(
    x, x_t, x_b, scale, shift, te, mean, tables, v0, v0_b, gs, gs_t, gs_b, gv_last, gx, gv0, sums, sums_te, batch, size, group,
    STEPS: tl.constexpr, ONE: tl.constexpr, TOGETHER: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, NORMED: tl.constexpr,
    TE: tl.constexpr, SUMS: tl.constexpr, HAS_V0: tl.constexpr, HAS_GV_LAST: tl.constexpr, NEEDS_V0: tl.constexpr,
    SHARED_V0: tl.constexpr, CHARGE: tl.constexpr, HARD: tl.constexpr, STRICT: tl.constexpr, DETACH: tl.constexpr,
    SLOPE: tl.constexpr, V_THRESHOLD: tl.constexpr, V_RESET: tl.constexpr, LEAK: tl.constexpr, WIDTH: tl.constexpr,
    STEPS_2: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = (C + BC - 1) // BC
    program, rows = tl.program_id(0), tl.cdiv(size, BP)
    at, inside, c = _tile(size, C, LAST, BP, BC, program % columns, program // columns % rows)
    whole = _wide(size) * C
    if NORMED:
        a, d = _by_channel(scale, c, C, BP, BC), _by_channel(shift, c, C, BP, BC)
        middle = _by_channel(mean, c, C, BP, BC)
        if SUMS:
            sum_g, sum_gx = tl.zeros((BP, BC), tl.float32), tl.zeros((BP, BC), tl.float32)
            sum_te = tl.zeros((STEPS_2,), tl.float32)
        else:
            of_g, of_x = _by_channel(tables, c, C, BP, BC), _by_channel(tables + C, c, C, BP, BC)
            constant = _by_channel(tables + 2 * C, c, C, BP, BC)
    total = tl.zeros((BP, BC), tl.float32)
    part = (program // columns // rows).to(tl.int64)
    b0 = part * group
    for i in range(b0, tl.minimum(b0 + group, batch)):
        b = _wide(i)
        v = _initial(v0, v0_b, at, inside, b, BP, BC, HAS_V0)
        x_at, gs_at, gx_at = x + b * x_b, gs + b * gs_b, gx + (b + (STEPS - 1) * batch) * whole
        if ONE:
            once = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
        potentials = ()  # of all steps, in registers
        for t in tl.static_range(STEPS):
            if ONE:
                z = once
            else:
                z = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
            if NORMED:
                z = tl.fma(z, a, d)
            if TE:
                z = z * tl.load(te + t)
            h = _charge(v, z, LEAK, CHARGE)
            v = _reset(h, _spike(h, V_THRESHOLD, STRICT), V_THRESHOLD, V_RESET, HARD)
            potentials = potentials + (h,)
            x_at += x_t
            gs_at += gs_t
        if HAS_GV_LAST:
            gv = tl.load(gv_last + b * whole + at, mask=inside, other=0.0)
        else:
            gv = tl.zeros((BP, BC), tl.float32)
        together = tl.zeros((BP, BC), tl.float32)
        for back in tl.static_range(STEPS):
            x_at -= x_t
            gs_at -= gs_t
            h = potentials[STEPS - 1 - back]
            g = tl.load(gs_at + at, mask=inside, other=0.0).to(tl.float32)
            slope = _slope(h - V_THRESHOLD, WIDTH, SLOPE)
            if HARD:
                if not DETACH and (back > 0 or HAS_GV_LAST):  # else 0 x infinity
                    g += gv * (V_RESET - h)
                gh = gv * (1 - _spike(h, V_THRESHOLD, STRICT)) + g * slope
            else:
                if not DETACH:
                    g -= V_THRESHOLD * gv
                gh = gv + g * slope
            if CHARGE == 0:
                gi = gh
                gv = gh
            elif CHARGE == 1:
                gi = gh * (1 / LEAK)
                gv = gh - gi
            elif CHARGE == 2:
                gi = gh
                gv = LEAK * gh
            else:
                gi = gh * LEAK
                gv = gh - gi
            if NORMED:
                if ONE:
                    value = once
                else:
                    value = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
                if TE:
                    if SUMS:
                        of_step = tl.sum(tl.sum(gi * tl.fma(value, a, d), 1), 0)
                        sum_te += tl.where(tl.arange(0, STEPS_2) == STEPS - 1 - back, of_step, 0.0)
                    gi = gi * tl.load(te + (STEPS - 1 - back))
                if SUMS:
                    sum_g += gi
                    sum_gx += gi * (value - middle)
            if not SUMS:
                if TOGETHER:
                    together += gi
                else:
                    if NORMED:
                        gi = of_g * gi + (of_x * (value - middle) + constant)
                    tl.store(gx_at + at, gi.to(gx.dtype.element_ty), mask=inside)
                    gx_at -= batch * whole
        if not SUMS:
            if TOGETHER:
                if NORMED:
                    together = of_g * together + (of_x * (once - middle) + constant)
                tl.store(gx + b * whole + at, together.to(gx.dtype.element_ty), mask=inside)
            if NEEDS_V0:
                if SHARED_V0:
                    total += gv
                else:
                    tl.store(gv0 + b * whole + at, gv, mask=inside)
    if SUMS:
        to = sums + (program // columns).to(tl.int64) * 2 * C
        tl.store(to + c, tl.sum(sum_g, 0), mask=c < C)
        tl.store(to + C + c, tl.sum(sum_gx, 0), mask=c < C)
        if TE:
            t = tl.arange(0, STEPS_2)
            tl.store(sums_te + program.to(tl.int64) * STEPS + t, sum_te, mask=t < STEPS)
    elif NEEDS_V0 and SHARED_V0:
        tl.store(gv0 + part * whole + at, total, mask=inside)


# ---------------------------------------------------------------- the norm


@_kernel
def _moments(
    x, x_t, x_b, sums, samples, batch, size, each,
    C: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Moments of each part of `each` tiles, with little cancellation.

    n, the mean of its first tile, the offset of its mean from that, and the sum of squared distances from its mean.
    """
    columns: tl.constexpr = (C + BC - 1) // BC
    program, rows = tl.program_id(0), tl.cdiv(size, BP)
    column, part = program % columns, (program // columns).to(tl.int64)
    first = part * each
    count = tl.zeros((), tl.int64)
    pivot = tl.zeros((BP, BC), tl.float32)
    near, square = tl.zeros((BP, BC), tl.float32), tl.zeros((BP, BC), tl.float32)
    for i in range(first, tl.minimum(first + each, samples * rows)):
        sample, row = _wide(i // rows), i % rows
        at, inside, c = _tile(size, C, LAST, BP, BC, column, row)
        value = tl.load(x + (sample // batch) * x_t + (sample % batch) * x_b + at, mask=inside, other=0.0)
        value = value.to(tl.float32)
        there = tl.minimum(size - row * BP, BP)
        if i == first:
            pivot = tl.broadcast_to((tl.sum(value, 0) / there)[None, :], (BP, BC))
        far = tl.where(inside, value - pivot, 0.0)
        near += far
        square += far * far
        count += there
    c = column * BC + tl.arange(0, BC)
    n = count.to(tl.float32)
    off = tl.sum(near, 0)
    to = sums + part * 4 * C
    tl.store(to + c, tl.zeros((BC,), tl.float32) + n, mask=c < C)
    tl.store(to + C + c, tl.max(pivot, 0), mask=c < C)
    tl.store(to + 2 * C + c, off / n, mask=c < C)
    tl.store(to + 3 * C + c, tl.sum(square, 0) - off * (off / n), mask=c < C)


@triton.jit
def _mean(at, there, C: tl.constexpr):
    near, far = tl.load(at, mask=there, other=0.0), tl.load(at + C, mask=there, other=0.0)
    return near.to(tl.float64) + far.to(tl.float64)


@_kernel
def _tables(
    sums, parts, weight, bias, mean, var, scale, shift,
    EPS: tl.constexpr, GIVEN: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """scale and shift per channel, in float64, from float32 mean and var; unless GIVEN, merged (Chan et al. 1979)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < C
    if GIVEN:
        middle = tl.load(mean + c, mask=inside, other=0.0)
        variance = tl.load(var + c, mask=inside, other=1.0)
    else:
        n, total, square = tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64)
        for i in range(0, parts, ROWS):
            row = i + tl.arange(0, ROWS)
            there = (row < parts)[:, None] & inside[None, :]
            at = row[:, None] * 4 * C + c[None, :]
            count = tl.load(sums + at, mask=there, other=0.0).to(tl.float64)
            n += tl.sum(count, 0)
            total += tl.sum(count * _mean(sums + C + at, there, C), 0)
        n = tl.where(inside, n, 1.0)
        for i in range(0, parts, ROWS):
            row = i + tl.arange(0, ROWS)
            there = (row < parts)[:, None] & inside[None, :]
            at = row[:, None] * 4 * C + c[None, :]
            count = tl.load(sums + at, mask=there, other=0.0).to(tl.float64)
            far = _mean(sums + C + at, there, C) - (total / n)[None, :]
            square += tl.sum(tl.load(sums + 3 * C + at, mask=there, other=0.0).to(tl.float64) + count * far * far, 0)
        middle, variance = (total / n).to(tl.float32), tl.maximum(square / n, 0.0).to(tl.float32)
        tl.store(mean + c, middle, mask=inside)
        tl.store(var + c, variance, mask=inside)
    a = tl.load(weight + c, mask=inside, other=0.0).to(tl.float64) / tl.sqrt(variance.to(tl.float64) + EPS)
    b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float64) - middle.to(tl.float64) * a
    tl.store(scale + c, a.to(tl.float32), mask=inside)
    tl.store(shift + c, b.to(tl.float32), mask=inside)


@_kernel
def _gradients(
    sums, parts, n, weight, var, gweight, gbias, tables,
    EPS: tl.constexpr, OF_INPUT: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of weight, bias; tables a, b, d with gx = a gz + b (x - mean) + d; n values per channel."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < C
    of_g, of_gx = tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64)
    for i in range(0, parts, ROWS):
        row = i + tl.arange(0, ROWS)
        there = (row < parts)[:, None] & inside[None, :]
        at = row[:, None] * 2 * C + c[None, :]
        of_g += tl.sum(tl.load(sums + at, mask=there, other=0.0).to(tl.float64), 0)
        of_gx += tl.sum(tl.load(sums + C + at, mask=there, other=0.0).to(tl.float64), 0)
    inverse = 1.0 / tl.sqrt(tl.load(var + c, mask=inside, other=1.0).to(tl.float64) + EPS)
    a = tl.load(weight + c, mask=inside, other=0.0).to(tl.float64) * inverse
    tl.store(gweight + c, (of_gx * inverse).to(tl.float32), mask=inside)
    tl.store(gbias + c, of_g.to(tl.float32), mask=inside)
    if OF_INPUT:
        count = tl.zeros((), tl.float64) + n
        b, d = -a * inverse * inverse * of_gx / count, -a * of_g / count
    else:
        b, d = tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64)
    tl.store(tables + c, a.to(tl.float32), mask=inside)
    tl.store(tables + C + c, b.to(tl.float32), mask=inside)
    tl.store(tables + 2 * C + c, d.to(tl.float32), mask=inside)


# ---------------------------------------------------------------- launches


_EXACT = {} if INTERPRETED else {"enable_fp_fusion": False}


class Cut(NamedTuple):
    """A sample as channels x positions, split into tiles of positions x channels."""

    channels: int
    positions: int
    last: bool  # channels are adjacent (channels-last)
    bp: int
    bc: int

    @property
    def columns(self) -> int:
        """Number of tiles over the channels."""
        return triton.cdiv(self.channels, self.bc)

    @property
    def rows(self) -> int:
        """Number of tiles over the positions."""
        return triton.cdiv(self.positions, self.bp)


def _cut(x: Tensor, normed: bool, values: int) -> Cut:
    """Split x [T, B, C, H, W] (without a norm [T, B, ...]) into tiles of about `values` values."""
    size = math.prod(x.shape[2:])
    if not normed:
        return Cut(1, size, False, min(values, max(32, triton.next_power_of_2(size))), 1)
    channels = x.shape[2]
    positions, last = size // channels, x.stride(2) == 1 and channels > 1
    if last:
        bc = min(128, triton.next_power_of_2(channels))
        return Cut(channels, positions, last, min(triton.next_power_of_2(positions), max(1, values // bc)), bc)
    bp = min(triton.next_power_of_2(positions), values)
    return Cut(channels, positions, last, bp, min(triton.next_power_of_2(channels), max(1, values // bp)))


def _values(x: Tensor, steps: int) -> int:
    """Values of a tile: 128 threads, each with as many as its registers hold potentials of."""
    wide = 8 if x.element_size() == 2 else 4
    return 128 * (wide if steps <= 4 else 4 if steps <= 16 else 2 if steps <= 32 else 1)


def _groups(batch: int, tiles: int) -> tuple[int, int]:
    """(samples per group, groups) for about PROGRAMS partial sums, by the shape alone."""
    group = triton.cdiv(batch, min(batch, triton.cdiv(PROGRAMS, tiles)))
    return group, triton.cdiv(batch, group)


def _settings(law: Law) -> dict:
    charge, leak = CHARGES.index(law.charge), law.leak
    if law.charge == "lif" and math.frexp(leak)[0] == 0.5:
        charge, leak = 3, 1 / leak  # tau is a power of two: exact
    return dict(
        CHARGE=charge, HARD=law.v_reset is not None, STRICT=law.strict, V_THRESHOLD=law.v_threshold,
        V_RESET=law.v_reset or 0.0, LEAK=leak, **_EXACT,
    )  # fmt: skip


def _on(x: Tensor):
    """Make x's device current: Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _new(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


class Norm(NamedTuple):
    """A norm's values per channel, float32 [C]: (scale * x + shift) * te.

    te: [T] or None. together: mean and var are over all processes; if newly computed, count [1] is the number of values
    per channel.
    """

    weight: Tensor
    te: Tensor | None
    mean: Tensor
    var: Tensor
    scale: Tensor
    shift: Tensor
    eps: float
    together: bool
    count: Tensor | None


def norm(x: Tensor, weight, bias, te, mean, var, eps: float, together: bool = False) -> Norm:
    """Prepare a norm for input x; mean None: use x's statistics (`together`: all processes').

    x: [T, B, C, H, W], possibly one step expanded to T.
    """
    channels, sums, parts, given = weight.numel(), None, 0, mean is not None
    if not given:
        cut = _cut(x, True, 1024)
        steps = 1 if x.stride(0) == 0 else x.shape[0]
        samples, batch = steps * x.shape[1], x.shape[1]
        each = triton.cdiv(samples * cut.rows, triton.cdiv(PROGRAMS, cut.columns))
        parts = triton.cdiv(samples * cut.rows, each)
        mean, var, sums = _new(x, channels), _new(x, channels), _new(x, parts, 4, channels)
    scale, shift, count = _new(x, channels), _new(x, channels), None

    def tables(sums, parts):
        _tables[(triton.cdiv(channels, 8),)](
            sums, parts, weight, bias, mean, var, scale, shift,
            EPS=eps, GIVEN=given, C=channels, ROWS=128, BC=8, **_EXACT,
        )  # fmt: skip

    with _on(x):
        if not given:
            _moments[(cut.columns * parts,)](
                x, x.stride(0), x.stride(1), sums, samples, batch, cut.positions, each,
                C=channels, LAST=cut.last, BP=cut.bp, BC=cut.bc, **_EXACT,
            )  # fmt: skip
        tables(sums, parts)
        if together and not given:
            sums = distributed.moments(mean, var, samples * cut.positions)
            count = sums[:, 0, :1].sum(0)
            tables(sums, len(sums))
    return Norm(weight, te, mean, var, scale, shift, eps, together, count)


def forward(x, v0, v0_stride, s, v_last, shape, law: Law, norm: Norm | None, plus: Tensor | None = None) -> None:
    """Fill s [T, B, ...] (spikes + plus) and v_last [B, ...]; arguments: see `neuron.py`."""
    steps, batch, _ = shape
    cut = _cut(x, norm is not None, _values(x, 4))
    with _on(x):
        _forward[(cut.columns * cut.rows * batch,)](
            x, x.stride(0), x.stride(1), norm and norm.scale, norm and norm.shift, norm and norm.te, v0, max(v0_stride, 0),
            x if plus is None else plus, *((0, 0) if plus is None else plus.stride()[:2]), s, v_last, batch, cut.positions, 1,
            STEPS=steps, ONE=x.stride(0) == 0, C=cut.channels, LAST=cut.last, NORMED=norm is not None,
            TE=norm is not None and norm.te is not None, PLUS=plus is not None, HAS_V0=v0 is not None, BP=cut.bp, BC=cut.bc,
            **_settings(law),
        )  # fmt: skip


def backward(gs, gv_last, x, v0, v0_stride, gx, gv0, shape, law: Law, norm: Norm | None, of_input, gnorm) -> None:
    """Fill gx [T or 1, B, ...], gv0 unless None and, with a norm, gnorm."""
    steps, batch, size = shape
    normed, te = norm is not None, norm is not None and norm.te is not None
    needs_v0, shared = gv0 is not None, v0_stride == 0
    cut, tables = _cut(x, normed, _values(x, steps)), None
    tiles, together = cut.columns * cut.rows, gx.shape[0] < steps

    def run(sums, sums_te, gv0, group, groups, needs_v0):
        _backward[(tiles * groups,)](
            x, x.stride(0), x.stride(1), norm and norm.scale, norm and norm.shift, norm and norm.te, norm and norm.mean, tables,
            v0, max(v0_stride, 0), gs, gs.stride(0), gs.stride(1), gv_last, gx, gv0, sums, sums_te, batch, cut.positions, group,
            STEPS=steps, ONE=x.stride(0) == 0, TOGETHER=together, C=cut.channels, LAST=cut.last, NORMED=normed, TE=te,
            SUMS=sums is not None, HAS_V0=v0 is not None, HAS_GV_LAST=gv_last is not None, NEEDS_V0=needs_v0, SHARED_V0=shared,
            DETACH=law.detach, SLOPE=SLOPES.index(law.slope), WIDTH=law.width, STEPS_2=triton.next_power_of_2(steps),
            BP=cut.bp, BC=cut.bc, **_settings(law),
        )  # fmt: skip

    with _on(x):
        if norm is not None:
            group, groups = _groups(batch, tiles)
            sums, tables = _new(x, cut.rows * groups, 2, cut.channels), _new(x, 3, cut.channels)
            sums_te = _new(x, tiles * groups, steps) if te else None
            n = gx.numel() // cut.channels

            def gradients(sums, n, gweight, gbias):
                _gradients[(triton.cdiv(cut.channels, 8),)](
                    sums, len(sums), n, norm.weight, norm.var, gweight, gbias, tables,
                    EPS=norm.eps, OF_INPUT=of_input, C=cut.channels, ROWS=128, BC=8, **_EXACT,
                )  # fmt: skip

            run(sums, sums_te, None, group, groups, False)
            gradients(sums, n, *gnorm[:2])
            if norm.together and of_input:  # gradients of weight and bias remain local and are averaged later
                of_all = distributed.means(sums.sum(0, dtype=torch.float64).float(), n)
                gradients(of_all[None], 1, *torch.empty_like(of_all))
            if te:
                gnorm[2].copy_(sums_te.sum(0, dtype=torch.float64))
        group, groups = _groups(batch, tiles) if needs_v0 and shared else (1, batch)
        apart = needs_v0 and shared and groups > 1
        parts = _new(x, groups, size) if apart else gv0
        run(None, None, parts, group, groups, needs_v0)
        if apart:
            gv0.as_strided((size,), (1,)).copy_(parts.sum(0))
