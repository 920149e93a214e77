"""A whole spiking layer over all time steps in one pass over memory, on the CPU: `forward` and `backward`.

numba compiles the two loops below for one kind of neuron at its first use and keeps the result on disk. They
work on blocks of neurons whose potentials stay in the cache: the inputs of all steps stream through once, and
the backward pass recomputes the potentials from them, so nothing but the input has to be saved.

Two things make the difference between the processor's and the memory's speed: outputs that would leave the
cache anyway are written around it (`_move64`), in pieces short enough to overlap with the next reads, and the
inputs of the next step are fetched ahead (`_prefetch`).

Arithmetic and its order are those of `dynamics.py`, without fused multiply-add: the spikes are the same bits.
Importing this module imports numba; `fused.py` does so when the first layer runs.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

PIECE = 256  # neurons between two turns from reading to writing
LEAST, MOST = 1024, 16384  # neurons in a block
KEPT = 16384  # potentials that a block keeps for the backward pass, over all steps: 64 KiB
STREAM_BYTES = 4 * 2**20  # outputs this large are written around the cache
SHARE = 65536  # neuron-steps that are worth a thread


class Kind(NamedTuple):
    """What a compiled loop is specialised for; half means bfloat16 inputs and outputs."""

    family: str
    hard: bool
    strict: bool
    half: bool


# ---------------------------------------------------------------- what numba lacks


@intrinsic
def _as_float(typing, bits):
    """The float32 of these bits."""
    return types.float32(types.uint32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


@intrinsic
def _as_bits(typing, value):
    """The bits of this float32."""
    return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def _move64(typing, to, source):
    """Copy 64 bytes to an address that is a multiple of 64, around the cache."""

    def generate(context, builder, signature, args):
        i32 = ir.IntType(32)
        to, source = (builder.inttoptr(a, ir.VectorType(i32, 16).as_pointer()) for a in args)
        store = builder.store(builder.load(source, align=4), to, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(i32, 1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def _prefetch(typing, address):
    """Start to load a cache line; any address is allowed."""

    def generate(context, builder, signature, args):
        i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
        function = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(
            builder.module, kind, "llvm.prefetch.p0"
        )
        builder.call(function, [builder.inttoptr(args[0], i8), *(ir.Constant(i32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def _fence(typing):
    """Make what `_move64` wrote visible to other threads."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# ---------------------------------------------------------------- pieces of the two loops

_helper = njit(error_model="numpy", nogil=True)


@_helper
def _read(value, half):
    if half:
        return _as_float(np.uint32(value) << np.uint32(16))
    return np.float32(value)


@_helper
def _charge(v, x, leak, family):
    if family == 0:
        return v + x
    if family == 1:
        return v + (x - v) / leak
    return leak * v + x


@_helper
def _fires(h, v_threshold, strict):
    z = h - v_threshold
    return z > np.float32(0) if strict else z >= np.float32(0)


@_helper
def _reset(h, fires, v_threshold, v_reset, hard):
    s = np.float32(1) if fires else np.float32(0)
    if hard:
        return h * (np.float32(1) - s) + v_reset * s
    return h - v_threshold * s


@_helper
def _exp_of_negative(y):
    """exp(y) for y <= 0 to 2e-7: 2**n from the exponent's bits, times a polynomial (libm's would not vectorise)."""
    shift = np.float32(12582912)  # 1.5 * 2**23: adding it rounds to an integer
    n = (max(y * np.float32(1.44269504), np.float32(-126)) + shift) - shift
    f = max(y, np.float32(-87.3)) - n * np.float32(0.693145752) - n * np.float32(1.42860677e-6)  # log 2, in two parts
    p = np.float32(1 / 5040)
    p = p * f + np.float32(1 / 720)
    p = p * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + np.float32(1 / 2)
    p = (p * f + np.float32(1)) * f + np.float32(1)
    return p * _as_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@_helper
def _slope(z, width, surrogate):
    """The surrogate derivative (see surrogate.py)."""
    if surrogate == 0:
        c = np.float32(math.pi / 2) * width * z
        return width / np.float32(2) / (np.float32(1) + c * c)
    if surrogate == 1:
        e = _exp_of_negative(-abs(width * z))
        return width * e / ((np.float32(1) + e) * (np.float32(1) + e))
    return max(width - abs(z), np.float32(0)) / (width * width)


@_helper
def _stream(to, source, n):
    for i in range(0, n, 64):
        _move64(to + i, source + i)


def _compile(function):
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(function, **options)


_FAMILIES = ("if", "lif", "leaky")
_SURROGATES = ("atan", "sigmoid", "triangle")

# Both loops see memory as [steps, batch, size] and take flat arrays: x[t * x_t + b * x_b + m], outputs dense. A unit
# of work is a block of neurons (m) for a group of samples (b). v0_b is -1 without an initial potential, 0 for one that
# all samples share, else its stride.


@lru_cache
def _forward(kind: Kind):
    family, hard, strict, half = _FAMILIES.index(kind.family), *kind[1:]

    def neuron_forward(
        x, x_t, x_b, v0, v0_b, s, v_last,
        steps, batch, size, first, last, block, group, v_threshold, v_reset, leak, stream,
    ):  # fmt: skip
        v = np.empty(block, np.float32)
        scratch = np.empty(PIECE, s.dtype)
        wide = x.itemsize
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
                    ahead = x.ctypes.data + wide * (at + x_t if t + 1 < steps else after)
                    to = (t * batch + b) * size + m
                    for j in range(0, n, PIECE):
                        k = min(PIECE, n - j)
                        for i in range(wide * j, wide * (j + k), 64):
                            _prefetch(ahead + i)
                        x_j, v_j = x[at + j : at + j + k], v[j : j + k]
                        s_j = scratch[:k] if stream else s[to + j : to + j + k]
                        for i in range(k):
                            h = _charge(v_j[i], _read(x_j[i], half), leak, family)
                            fires = _fires(h, v_threshold, strict)
                            v_j[i] = _reset(h, fires, v_threshold, v_reset, hard)
                            if half:
                                s_j[i] = np.uint16(0x3F80) if fires else np.uint16(0)
                            else:
                                s_j[i] = np.float32(1) if fires else np.float32(0)
                        if stream:
                            _stream(s.ctypes.data + wide * (to + j), scratch.ctypes.data, wide * k)
                if stream:
                    _stream(v_last.ctypes.data + 4 * (b * size + m), v.ctypes.data, 4 * n)
                else:
                    end = v_last[b * size + m :]
                    for i in range(n):
                        end[i] = v[i]
        _fence()

    return _compile(neuron_forward)


@lru_cache
def _backward(kind: Kind, detach: bool, surrogate_name: str):
    family, hard, strict, half = _FAMILIES.index(kind.family), *kind[1:]
    surrogate = _SURROGATES.index(surrogate_name)

    def neuron_backward(
        x, x_t, x_b, v0, v0_b, gs, gs_t, gs_b, gv_last, gx, gv0,
        steps, batch, size, first, last, block, group, v_threshold, v_reset, leak, width, stream,
    ):  # fmt: skip
        v = np.empty(block, np.float32)  # potentials forward, their gradients backward
        kept = np.empty(block * steps, np.float32)
        total = np.empty(block, np.float32)
        scratch = np.empty(PIECE, gx.dtype)
        wide = x.itemsize
        groups = (batch + group - 1) // group
        for unit in range(first, last):
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
                    if t + 1 < steps:
                        ahead = x.ctypes.data + wide * (at + x_t)
                    else:
                        ahead = gs.ctypes.data + wide * (t * gs_t + b * gs_b + m)
                    for j in range(0, n, PIECE):
                        k = min(PIECE, n - j)
                        for i in range(wide * j, wide * (j + k), 64):
                            _prefetch(ahead + i)
                        x_j, v_j, h_j = x[at + j : at + j + k], v[j : j + k], kept[t * block + j : t * block + j + k]
                        for i in range(k):
                            h = _charge(v_j[i], _read(x_j[i], half), leak, family)
                            v_j[i] = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                            h_j[i] = h
                after = (b + 1) * x_b + m if b + 1 < min(b0 + group, batch) else b0 * x_b + m + block
                given = gv_last.size > 0
                start = gv_last[b * size + m :] if given else gv_last
                for i in range(n):
                    v[i] = start[i] if given else np.float32(0)
                for t in range(steps - 1, -1, -1):
                    at = t * gs_t + b * gs_b + m
                    if t > 0:
                        ahead = gs.ctypes.data + wide * (at - gs_t)
                    else:
                        ahead = x.ctypes.data + wide * after
                    to = (t * batch + b) * size + m
                    for j in range(0, n, PIECE):
                        k = min(PIECE, n - j)
                        for i in range(wide * j, wide * (j + k), 64):
                            _prefetch(ahead + i)
                        gs_j, v_j, h_j = gs[at + j : at + j + k], v[j : j + k], kept[t * block + j : t * block + j + k]
                        gx_j = scratch[:k] if stream else gx[to + j : to + j + k]
                        for i in range(k):
                            h, gv, g = h_j[i], v_j[i], _read(gs_j[i], half)
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
                            if half:  # round to nearest even
                                bits = _as_bits(gi)
                                odd = (bits >> np.uint32(16)) & np.uint32(1)
                                gx_j[i] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
                            else:
                                gx_j[i] = gi
                        if stream:
                            _stream(gx.ctypes.data + wide * (to + j), scratch.ctypes.data, wide * k)
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
        _fence()

    return _compile(neuron_backward)


# ---------------------------------------------------------------- running them


class Plan(NamedTuple):
    """How the work is cut: a function of the shape alone, so that the number of threads changes no number."""

    block: int
    group: int
    groups: int
    units: int


def plan(steps: int, batch: int, size: int) -> Plan:
    """Blocks as large as the cache allows, yet eight or more pieces of work where the layer is large enough."""
    block = max(LEAST, min(MOST, KEPT // steps, -(-size // 8)))
    block = -(-block // PIECE) * PIECE
    blocks = -(-size // block)
    group = -(-batch // min(batch, -(-8 // blocks)))
    groups = -(-batch // group)
    return Plan(block, group, groups, blocks * groups)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of its threads


os.register_at_fork(after_in_child=_forget_pool)


def _run(function, before: tuple, after: tuple, units: int, work: int, threads: int) -> None:
    """Call function(*before, first, last, *after) over all units, on up to `threads` threads (the caller is one).

    Python threads, because the loops hold no lock: numba's own threads would be a second OpenMP beside torch's.
    """
    global _pool
    threads = min(threads, units, -(-work // SHARE))
    if threads <= 1:
        return function(*before, 0, units, *after)
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), "neuron")
    cuts = min(units, 4 * threads)
    parts = iter([(units * i // cuts, units * (i + 1) // cuts) for i in range(cuts)])

    def serve():
        for first, last in parts:
            function(*before, first, last, *after)

    others = [_pool.submit(serve) for _ in range(threads - 1)]
    serve()
    for other in others:
        other.result()


_NOTHING = np.empty(0, np.float32)


def _streams(size: int, out: np.ndarray, *others: np.ndarray) -> bool:
    """Whether to write around the cache: large outputs whose pieces all start and end at 64 bytes."""
    aligned = all(a.ctypes.data % 64 == 0 and size * a.itemsize % 64 == 0 for a in (out, *others))
    return out.nbytes >= STREAM_BYTES and aligned


def forward(kind: Kind, x, strides, v0, v0_stride, s, v_last, shape, constants, threads: int) -> None:
    """Fill s [T, B, M] and v_last [B, M] (flat, dense). shape (T, B, M); constants (v_threshold, v_reset, leak)."""
    steps, batch, size = shape
    cut = plan(1, batch, size)  # forward keeps one potential, however many steps
    numbers = [np.float32(c) for c in constants]
    before = (x, *strides, _NOTHING if v0 is None else v0, v0_stride, s, v_last, steps, batch, size)
    after = (cut.block, cut.group, *numbers, _streams(size, s, v_last))
    _run(_forward(kind), before, after, cut.units, steps * batch * size, threads)


def backward(
    kind: Kind, detach: bool, surrogate: str, x, strides, v0, v0_stride, gs, gs_strides, gv_last, gx, gv0, shape,
    constants, threads: int,
) -> None:  # fmt: skip
    """Fill gx [T, B, M] and, if given, gv0: [B, M], or [plan.groups, M] (to be summed) where samples share v0.

    gv_last [B, M] or None is the gradient of the last potential; constants (v_threshold, v_reset, leak, width).
    """
    steps, batch, size = shape
    cut = plan(*shape)
    numbers = [np.float32(c) for c in constants]
    v0, gv_last, gv0 = (_NOTHING if a is None else a for a in (v0, gv_last, gv0))
    before = (x, *strides, v0, v0_stride, gs, *gs_strides, gv_last, gx, gv0, steps, batch, size)
    after = (cut.block, cut.group, *numbers, _streams(size, gx))
    _run(_backward(kind, detach, surrogate), before, after, cut.units, steps * batch * size, threads)
