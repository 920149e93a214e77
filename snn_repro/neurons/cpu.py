"""A whole spiking layer over all time steps in one pass over memory, on the CPU: `forward` and `backward`.

numba compiles the two loops below for one kind of neuron at its first use and keeps the result on disk. They take a
few vectors of neurons at a time through all steps: potentials stay in registers, and the backward pass recomputes
them from the inputs, so nothing but the input has to be saved.

What is read next, and what is written to the cache, is fetched ahead (`_fetch`); outputs too large for the cache are
written around it. numba has no type for a vector register, so this module adds one, on which the state equation's
pieces (`_charge` and so on) work as on single numbers.

Arithmetic and its order are those of `dynamics.py`, without fused multiply-add: the spikes are the same bits.
Importing this module imports numba; `fused.py` does so when the first layer runs.
"""

import math
import operator
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core.cgutils import alloca_once
from numba.core.typeconv import Conversion
from numba.core.typing import signature as typing_signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

WIDE = binding.get_host_cpu_features().get("avx512f", False)
LANES = 64 if WIDE else 32  # neurons whose steps run in registers at a time: four registers; a multiple of 32
AHEAD = 256  # bytes between what is read and what is fetched
PIECE = 256  # blocks are a multiple of this
LEAST, MOST = 1024, 16384  # neurons in a block
STREAM_BYTES = 6 * 2**20  # outputs this large are written around the cache
SHARE = 65536  # neuron-steps that are worth a thread


class Kind(NamedTuple):
    """What a compiled loop is specialised for; half means bfloat16 inputs and outputs."""

    family: str
    hard: bool
    strict: bool
    half: bool


# ---------------------------------------------------------------- what numba lacks


def _prefetching(write: int):
    def generate(context, builder, signature, args):
        i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [builder.inttoptr(args[0], i8), *(ir.Constant(i32, n) for n in (write, 3, 1))])
        return context.get_dummy_value()

    return generate


@intrinsic
def _prefetch(typing, address):
    """Start to load a cache line; any address is allowed."""
    return types.void(types.intp), _prefetching(0)


@intrinsic
def _prefetch_to_write(typing, address):
    """The same for a line that will be written."""
    return types.void(types.intp), _prefetching(1)


@intrinsic
def _keep(typing, array):
    """Use an array of which only the address was taken: numba frees it behind what it sees as the last use."""
    return types.void(array), lambda context, builder, signature, args: context.get_dummy_value()


@intrinsic
def _fence(typing):
    """Make what was written around the cache visible to other threads."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# ---------------------------------------------------------------- vectors of neurons

# LANES float32 in registers, as a type of numba's: `_charge` and the others below work on one number or on these.
# numba keeps compiled loops by the date of the file they stand in: one that uses these pieces from another file has to
# be compiled anew (its cache deleted) when they change.


class _Lanes(types.Type):
    """LANES float32; a single float32 becomes LANES equal ones."""

    def can_convert_from(self, typing, other):
        return Conversion.safe if other == types.float32 else None


class _Mask(types.Type):
    """LANES truth values."""


lanes, mask = _Lanes("Lanes"), _Mask("Mask")
_FLOATS, _INTS, _HALVES = (ir.VectorType(t, LANES) for t in (ir.FloatType(), ir.IntType(32), ir.IntType(16)))
_VECTORS = {_Lanes: _FLOATS, _Mask: ir.VectorType(ir.IntType(1), LANES)}


@register_model(_Lanes)
@register_model(_Mask)
class _Registers(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTORS[type(kind)])


def _splat(value, vector: ir.VectorType):
    return ir.Constant(vector, [value] * vector.count)


@lower_cast(types.float32, _Lanes)
def _repeat(context, builder, from_type, to_type, value):
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, _splat(0, _INTS))


def _define(operation, result, generate) -> None:
    @infer_global(operation)
    class Template(AbstractTemplate):
        def generic(self, args, keywords):
            if lanes in args and all(a in (lanes, types.float32) for a in args):
                return typing_signature(result, *(lanes for _ in args))

    @lower_builtin(operation, *[lanes] * 2)
    def lower(context, builder, signature, args):
        return generate(builder, *args)


_define(operator.add, lanes, lambda builder, a, b: builder.fadd(a, b))
_define(operator.sub, lanes, lambda builder, a, b: builder.fsub(a, b))
_define(operator.mul, lanes, lambda builder, a, b: builder.fmul(a, b))
_define(operator.truediv, lanes, lambda builder, a, b: builder.fdiv(a, b))
_define(operator.gt, mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define(operator.ge, mask, lambda builder, a, b: builder.fcmp_ordered(">=", a, b))


@intrinsic
def _select(typing, condition, yes, no):
    """yes where the condition holds, else no."""
    kind = lanes if condition == mask else types.float32
    return kind(condition, kind, kind), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def _power_of_two(typing, n):
    """2**n for whole n in -126..127."""

    def generate(context, builder, signature, args):
        number, whole = (_FLOATS, _INTS) if n == lanes else (ir.FloatType(), ir.IntType(32))
        constant = (lambda c: _splat(c, whole)) if n == lanes else (lambda c: ir.Constant(whole, c))
        exponent = builder.add(builder.fptosi(args[0], whole), constant(127))
        return builder.bitcast(builder.shl(exponent, constant(23)), number)

    return n(n), generate


def _address(builder, address, vector: ir.VectorType):
    return builder.inttoptr(address, vector.as_pointer())


def _copy(builder, to, source, count, vector: ir.VectorType) -> None:
    """memcpy of `count` elements."""
    i8, i64 = ir.IntType(8).as_pointer(), ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [i8, i8, i64, ir.IntType(1)])
    name = "llvm.memcpy.p0.p0.i64"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    size = builder.mul(count, ir.Constant(i64, 2 if vector == _HALVES else 4))
    builder.call(function, [builder.bitcast(to, i8), builder.bitcast(source, i8), size, ir.Constant(ir.IntType(1), 0)])


def _load_vector(builder, address, count, vector: ir.VectorType):
    """The first `count` elements of a vector in memory, then zeros; the usual case, all of them, is one load."""
    padded = alloca_once(builder, vector)
    full = builder.icmp_signed("==", count, ir.Constant(count.type, LANES))
    with builder.if_else(full, likely=True) as (then, otherwise):
        with then:
            whole, whole_block = builder.load(_address(builder, address, vector), align=2), builder.block
        with otherwise:
            builder.store(_splat(0, vector), padded)
            _copy(builder, padded, _address(builder, address, vector), count, vector)
            part, part_block = builder.load(padded), builder.block
    value = builder.phi(vector)
    value.add_incoming(whole, whole_block)
    value.add_incoming(part, part_block)
    return value


def _store_vector(builder, address, value, count, around) -> None:
    """Write the first `count` elements; around the cache (the address then is a multiple of 64) if wanted."""
    i32, vector = ir.IntType(32), value.type
    padded = alloca_once(builder, vector)
    full = builder.icmp_signed("==", count, ir.Constant(count.type, LANES))
    with builder.if_else(full, likely=True) as (then, otherwise):
        with then, builder.if_else(around) as (past, into):
            with past:
                store = builder.store(value, _address(builder, address, vector), align=64)
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(i32, 1)]))
            with into:
                builder.store(value, _address(builder, address, vector), align=2)
        with otherwise:
            builder.store(value, padded)
            _copy(builder, _address(builder, address, vector), padded, count, vector)


@intrinsic
def _load_floats(typing, address, count):
    def generate(context, builder, signature, args):
        return _load_vector(builder, *args, _FLOATS)

    return lanes(types.intp, types.intp), generate


@intrinsic
def _load_halves(typing, address, count):
    def generate(context, builder, signature, args):
        bits = builder.zext(_load_vector(builder, *args, _HALVES), _INTS)
        return builder.bitcast(builder.shl(bits, _splat(16, _INTS)), _FLOATS)

    return lanes(types.intp, types.intp), generate


@intrinsic
def _store_floats(typing, address, value, count, around):
    def generate(context, builder, signature, args):
        _store_vector(builder, *args)
        return context.get_dummy_value()

    return types.void(types.intp, lanes, types.intp, types.boolean), generate


@intrinsic
def _store_halves(typing, address, value, count, around):
    def generate(context, builder, signature, args):
        address, value, *rest = args
        bits = builder.bitcast(value, _INTS)
        odd = builder.and_(builder.lshr(bits, _splat(16, _INTS)), _splat(1, _INTS))
        bits = builder.add(builder.add(bits, _splat(0x7FFF, _INTS)), odd)  # round to nearest even
        _store_vector(builder, address, builder.trunc(builder.lshr(bits, _splat(16, _INTS)), _HALVES), *rest)
        return context.get_dummy_value()

    return types.void(types.intp, lanes, types.intp, types.boolean), generate


@intrinsic
def _zeros(typing):
    return lanes(), lambda context, builder, signature, args: _splat(0.0, _FLOATS)


# ---------------------------------------------------------------- pieces of the two loops

_helper = njit(error_model="numpy", nogil=True)


@_helper
def _load(address, count, half):
    """`count` values from an address, 0 in the other lanes."""
    if half:
        return _load_halves(address, count)
    return _load_floats(address, count)


@_helper
def _store(address, value, count, half, around):
    if half:
        _store_halves(address, value, count, around)
    else:
        _store_floats(address, value, count, around)


@_helper
def _fetch(address, half):
    """Start to load LANES values that will be read."""
    for line in range(0, (2 if half else 4) * LANES, 64):
        _prefetch(address + line)


@_helper
def _fetch_to_write(address, half):
    """Start to load what LANES values will be written to."""
    for line in range(0, (2 if half else 4) * LANES, 64):
        _prefetch_to_write(address + line)


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
    s = _select(fires, np.float32(1), np.float32(0))
    if hard:
        return h * (np.float32(1) - s) + v_reset * s
    return h - v_threshold * s


@_helper
def _larger(a, b):
    """The larger one; a if a is not a number."""
    return _select(b > a, b, a)


@_helper
def _exp_of_negative(y):
    """exp(y) for y <= 0 to 2e-7: 2**n from the exponent's bits, times a polynomial (libm's would not vectorise)."""
    shift = np.float32(12582912)  # 1.5 * 2**23: adding it rounds to an integer
    n = (_larger(y * np.float32(1.44269504), np.float32(-126)) + shift) - shift
    f = _larger(y, np.float32(-87.3)) - n * np.float32(0.693145752)  # log 2, in two parts
    f = f - n * np.float32(1.42860677e-6)
    p = np.float32(1 / 5040) * f + np.float32(1 / 720)
    p = p * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + np.float32(1 / 2)
    p = (p * f + np.float32(1)) * f + np.float32(1)
    return p * _power_of_two(n)


@_helper
def _slope(z, width, surrogate):
    """The surrogate derivative (see surrogate.py)."""
    if surrogate == 0:
        c = np.float32(math.pi / 2) * width * z
        return width / np.float32(2) / (np.float32(1) + c * c)
    size = _larger(z, np.float32(0) - z)
    if surrogate == 1:
        e = _exp_of_negative(np.float32(0) - width * size)
        return width * e / ((np.float32(1) + e) * (np.float32(1) + e))
    return _larger(width - size, np.float32(0)) / (width * width)


@_helper
def _back(h, g, gv, v_threshold, v_reset, leak, width, family, hard, strict, detach, surrogate):
    """One step backward: gradients of the input and of the potential before, from those of the spike and of the potential."""
    carried = gv
    if hard:
        if not detach:
            g = g + gv * (v_reset - h)
        carried = _reset(gv, _fires(h, v_threshold, strict), v_threshold, np.float32(0), hard)
    elif not detach:
        g = g - v_threshold * gv
    gh = carried + g * _slope(h - v_threshold, width, surrogate)
    if family == 1:
        gi = gh / leak
        return gi, gh - gi
    if family == 2:
        return gh, leak * gh
    return gh, gh


def _compile(function):
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(function, **options)


_FAMILIES = ("if", "lif", "leaky")
_SURROGATES = ("atan", "sigmoid", "triangle")

# Both loops see memory as [steps, batch, size] and take addresses (0: absent): x[t, b, m] lies x_t * t + x_b * b + m
# values behind x, outputs are dense. LANES neurons at a time live in registers through all steps. A unit of work is a
# block of neurons (m) for a group of samples (b). v0_b is -1 without an initial potential, 0 for one that all samples
# share, else its stride.


@lru_cache
def _forward(kind: Kind):
    family, hard, strict, half = _FAMILIES.index(kind.family), *kind[1:]

    def neuron_forward(
        x, x_t, x_b, v0, v0_b, s, v_last,
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
                    count = min(LANES, n - i)
                    at = b * size + m + i
                    v = _load(v0 + 4 * (b * v0_b + m + i), count, False) if v0_b >= 0 else _zeros()
                    x_at, s_at = x + wide * (b * x_b + m + i), s + wide * at
                    skip = AHEAD if i + AHEAD // wide < n else AHEAD + wide * (x_b - n)
                    for _ in range(steps):
                        _fetch(x_at + skip, half)
                        h = _charge(v, _load(x_at, count, half), leak, family)
                        fires = _fires(h, v_threshold, strict)
                        v = _reset(h, fires, v_threshold, v_reset, hard)
                        _store(s_at, _select(fires, np.float32(1), np.float32(0)), count, half, stream)
                        if not stream:
                            _fetch_to_write(s_at + AHEAD, half)
                        x_at += wide * x_t
                        s_at += wide * batch * size
                    _store(v_last + 4 * at, v, count, False, stream)
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
        v_threshold, v_reset, leak = np.float32(v_threshold), np.float32(v_reset), np.float32(leak)
        width = np.float32(width)
        potentials = np.empty((steps + 1) * LANES, np.float32)  # of all steps, before the reset
        kept = (potentials.ctypes.data + 63) // 64 * 64
        wide = 2 if half else 4
        groups = (batch + group - 1) // group
        for unit in range(first, last):
            m = unit // groups * block
            n = min(block, size - m)
            b0 = unit % groups * group
            for b in range(b0, min(b0 + group, batch)):
                for i in range(0, n, LANES):
                    count = min(LANES, n - i)
                    at = b * size + m + i
                    v = _load(v0 + 4 * (b * v0_b + m + i), count, False) if v0_b >= 0 else _zeros()
                    x_at, gs_at = x + wide * (b * x_b + m + i), gs + wide * (b * gs_b + m + i)
                    beyond = i + AHEAD // wide >= n
                    x_skip = AHEAD + wide * (x_b - n) if beyond else AHEAD
                    gs_skip = AHEAD + wide * (gs_b - n) if beyond else AHEAD
                    for t in range(steps):
                        _fetch(x_at + x_skip, half)
                        _fetch(gs_at + gs_skip, half)
                        h = _charge(v, _load(x_at, count, half), leak, family)
                        v = _reset(h, _fires(h, v_threshold, strict), v_threshold, v_reset, hard)
                        _store(kept + 4 * LANES * t, h, LANES, False, False)
                        x_at += wide * x_t
                        gs_at += wide * gs_t
                    gv = _load(gv_last + 4 * at, count, False) if gv_last else _zeros()
                    gx_at = gx + wide * (steps * batch * size + at)
                    for t in range(steps - 1, -1, -1):
                        gs_at -= wide * gs_t
                        gx_at -= wide * batch * size
                        h, g = _load(kept + 4 * LANES * t, LANES, False), _load(gs_at, count, half)
                        gi, gv = _back(
                            h, g, gv, v_threshold, v_reset, leak, width, family, hard, strict, detach, surrogate
                        )  # fmt: skip
                        _store(gx_at, gi, count, half, stream)
                        if not stream:
                            _fetch_to_write(gx_at + AHEAD, half)
                    if gv0:
                        if v0_b > 0:
                            _store(gv0 + 4 * at, gv, count, False, False)
                        else:  # summed over the samples
                            to = gv0 + 4 * (m + i)
                            if b > 0:
                                gv = gv + _load(to, count, False)
                            _store(to, gv, count, False, False)
        _keep(potentials)
        _fence()

    return _compile(neuron_backward)


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


def _streams(shape, half: bool, *outputs: int) -> bool:
    """Whether to write around the cache: large outputs (at these addresses) whose rows all start at 64 bytes."""
    steps, batch, size = shape
    wide = 2 if half else 4
    aligned = size * wide % 64 == 0 and not any(address % 64 for address in outputs)
    return aligned and steps * batch * size * wide >= STREAM_BYTES


def forward(
    kind: Kind, x: int, strides, v0: int, v0_stride: int, s: int, v_last: int, shape, constants, threads: int
) -> None:
    """Fill s [T, B, M] and v_last [B, M]. Arrays are addresses (v0 may be 0: none), outputs dense.

    shape (T, B, M); strides of T and B in x; constants (v_threshold, v_reset, leak).
    """
    before = (x, *strides, v0, v0_stride, s, v_last, *shape)
    after = (*constants, _streams(shape, kind.half, s, v_last))
    _cut_and_run(_forward(kind), before, after, shape, False, threads)


def backward(
    kind: Kind, detach: bool, surrogate: str, x: int, strides, v0: int, v0_stride: int, gs: int, gs_strides,
    gv_last: int, gx: int, gv0: int, shape, constants, threads: int,
) -> None:  # fmt: skip
    """Fill gx [T, B, M] and, if given, gv0: [B, M], or [M] where samples share v0.

    gv_last [B, M], or 0, is the gradient of the last potential; constants (v_threshold, v_reset, leak, width).
    """
    before = (x, *strides, v0, v0_stride, gs, *gs_strides, gv_last, gx, gv0, *shape)
    after = (*constants, _streams(shape, kind.half, gx))
    _cut_and_run(_backward(kind, detach, surrogate), before, after, shape, gv0 and v0_stride == 0, threads)


def _cut_and_run(function, before: tuple, after: tuple, shape, together: bool, threads: int) -> None:
    work = math.prod(shape)
    block, group, _, units = cut(*shape[1:], together, min(threads, -(-work // SHARE)))
    _run(function, before, (block, group, *after), units, work, threads)
