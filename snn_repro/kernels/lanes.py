"""What numba's Python cannot say: LANES float32 in vector registers as a type, prefetching, stores around the cache.

Loops written for one number (`v + x`) run on `lanes` as they are, without fused multiply-add. Importing this module imports
numba.
"""

import operator

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core.cgutils import alloca_once, get_or_insert_function
from numba.core.typeconv import Conversion
from numba.core.typing import signature as typing_signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

WIDE = binding.get_host_cpu_features().get("avx512f", False)
LANES = 64 if WIDE else 32  # numbers in registers at a time: four registers; a multiple of 32

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
BYTES = I8.as_pointer()

# ---------------------------------------------------------------- what numba lacks


def external(builder, name: str, result, *arguments):
    """An LLVM function of this name, declared once a module."""
    return get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def memcpy(builder, to, source, size) -> None:
    """Copy `size` bytes from one address to another; both are integers or pointers to bytes."""
    function = external(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), BYTES, BYTES, I64, I1)
    to, source = (a if a.type == BYTES else builder.inttoptr(a, BYTES) for a in (to, source))
    builder.call(function, [to, source, size, ir.Constant(I1, 0)])


def _prefetching(write: int):
    def generate(context, builder, signature, args):
        function = external(builder, "llvm.prefetch.p0", ir.VoidType(), BYTES, I32, I32, I32)
        builder.call(function, [builder.inttoptr(args[0], BYTES), *(ir.Constant(I32, n) for n in (write, 3, 1))])
        return context.get_dummy_value()

    return generate


@intrinsic
def prefetch(typing, address):
    """Start to load a cache line; any address is allowed."""
    return types.void(types.intp), _prefetching(0)


@intrinsic
def prefetch_to_write(typing, address):
    """The same for a line that will be written."""
    return types.void(types.intp), _prefetching(1)


@intrinsic
def keep(typing, array):
    """Use an array of which only the address was taken: numba frees it behind what it sees as the last use."""
    return types.void(array), lambda context, builder, signature, args: context.get_dummy_value()


@intrinsic
def fence(typing):
    """Make what was written around the cache visible to other threads."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# ---------------------------------------------------------------- vectors of neurons

# LANES float32 in registers, as a type of numba's: what is written for one number works on them too.


class _Lanes(types.Type):
    """LANES float32; a single float32 becomes LANES equal ones."""

    def can_convert_from(self, typing, other):
        return Conversion.safe if other == types.float32 else None


class _Mask(types.Type):
    """LANES truth values."""


lanes, mask = _Lanes("Lanes"), _Mask("Mask")
_FLOATS, _INTS, _HALVES = (ir.VectorType(t, LANES) for t in (ir.FloatType(), I32, I16))
_VECTORS = {_Lanes: _FLOATS, _Mask: ir.VectorType(ir.IntType(1), LANES)}


@register_model(_Lanes)
@register_model(_Mask)
class _Registers(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTORS[type(kind)])


def splat(value, vector: ir.VectorType):
    return ir.Constant(vector, [value] * vector.count)


@lower_cast(types.float32, _Lanes)
def _repeat(context, builder, from_type, to_type, value):
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, splat(0, _INTS))


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
def select(typing, condition, yes, no):
    """yes where the condition holds, else no."""
    kind = lanes if condition == mask else types.float32
    return kind(condition, kind, kind), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def _power_of_two(typing, n):
    """2**n for whole n in -126..127."""

    def generate(context, builder, signature, args):
        number, whole = (_FLOATS, _INTS) if n == lanes else (ir.FloatType(), I32)
        constant = (lambda c: splat(c, whole)) if n == lanes else (lambda c: ir.Constant(whole, c))
        exponent = builder.add(builder.fptosi(args[0], whole), constant(127))
        return builder.bitcast(builder.shl(exponent, constant(23)), number)

    return n(n), generate


def _address(builder, address, vector: ir.VectorType):
    return builder.inttoptr(address, vector.as_pointer())


def _copy(builder, to, source, count, vector: ir.VectorType) -> None:
    """memcpy of `count` elements between pointers."""
    size = builder.mul(count, ir.Constant(I64, 2 if vector == _HALVES else 4))
    memcpy(builder, builder.bitcast(to, BYTES), builder.bitcast(source, BYTES), size)


def _load_vector(builder, address, count, vector: ir.VectorType):
    """The first `count` elements of a vector in memory, then zeros; the usual case, all of them, is one load."""
    padded = alloca_once(builder, vector)
    full = builder.icmp_signed("==", count, ir.Constant(count.type, LANES))
    with builder.if_else(full, likely=True) as (then, otherwise):
        with then:
            whole, whole_block = builder.load(_address(builder, address, vector), align=2), builder.block
        with otherwise:
            builder.store(splat(0, vector), padded)
            _copy(builder, padded, _address(builder, address, vector), count, vector)
            part, part_block = builder.load(padded), builder.block
    value = builder.phi(vector)
    value.add_incoming(whole, whole_block)
    value.add_incoming(part, part_block)
    return value


def _store_vector(builder, address, value, count, around) -> None:
    """Write the first `count` elements; around the cache (the address then is a multiple of 64) if wanted."""
    i32, vector = I32, value.type
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
        return builder.bitcast(builder.shl(bits, splat(16, _INTS)), _FLOATS)

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
        odd = builder.and_(builder.lshr(bits, splat(16, _INTS)), splat(1, _INTS))
        bits = builder.add(builder.add(bits, splat(0x7FFF, _INTS)), odd)  # round to nearest even
        _store_vector(builder, address, builder.trunc(builder.lshr(bits, splat(16, _INTS)), _HALVES), *rest)
        return context.get_dummy_value()

    return types.void(types.intp, lanes, types.intp, types.boolean), generate


@intrinsic
def zeros(typing):
    return lanes(), lambda context, builder, signature, args: splat(0.0, _FLOATS)


# ---------------------------------------------------------------- pieces of loops

helper = njit(error_model="numpy", nogil=True)  # of a function that compiled loops call


@helper
def load(address, count, half):
    """`count` values from an address, 0 in the other lanes."""
    if half:
        return _load_halves(address, count)
    return _load_floats(address, count)


@helper
def store(address, value, count, half, around):
    if half:
        _store_halves(address, value, count, around)
    else:
        _store_floats(address, value, count, around)


@helper
def fetch(address, half):
    """Start to load LANES values that will be read."""
    for line in range(0, (2 if half else 4) * LANES, 64):
        prefetch(address + line)


@helper
def fetch_to_write(address, half):
    """Start to load what LANES values will be written to."""
    for line in range(0, (2 if half else 4) * LANES, 64):
        prefetch_to_write(address + line)


@helper
def larger(a, b):
    """The larger one; a if a is not a number."""
    return select(b > a, b, a)


@helper
def exp_of_negative(y):
    """exp(y) for y <= 0 to 2e-7: 2**n from the exponent's bits, times a polynomial (libm's would not vectorise)."""
    shift = np.float32(12582912)  # 1.5 * 2**23: adding it rounds to an integer
    n = (larger(y * np.float32(1.44269504), np.float32(-126)) + shift) - shift
    f = larger(y, np.float32(-87.3)) - n * np.float32(0.693145752)  # log 2, in two parts
    f = f - n * np.float32(1.42860677e-6)
    p = np.float32(1 / 5040) * f + np.float32(1 / 720)
    p = p * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + np.float32(1 / 2)
    p = (p * f + np.float32(1)) * f + np.float32(1)
    return p * _power_of_two(n)
