"""A vector type for numba: LANES float32 in registers, with prefetching and streaming stores.

Loops written for one number (`v + x`) run on `lanes` unchanged, without fused multiply-add. Importing this module
imports numba.
"""

import operator

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.core.typeconv import Conversion
from numba.core.typing import signature as typing_signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

WIDE = binding.get_host_cpu_features().get("avx512f", False)
LANES = 64 if WIDE else 32  # numbers per vector: four registers; a multiple of 32

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
BYTES = I8.as_pointer()


def external(builder, name: str, result, *arguments):
    """Declare an LLVM function of this name, once per module."""
    return get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def keep(typing, array):
    """Keep an array alive whose address alone is used; numba would free it."""
    return types.void(array), lambda context, builder, signature, args: context.get_dummy_value()


@intrinsic
def fence(typing):
    """Memory fence: make streaming stores visible to other threads."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# ---------------------------------------------------------------- vectors


class _Lanes(types.Type):
    """LANES float32; a single float32 is broadcast."""

    def can_convert_from(self, typing, other):
        return Conversion.safe if other == types.float32 else None


class _Mask(types.Type):
    """LANES booleans."""


lanes, mask = _Lanes("Lanes"), _Mask("Mask")
_FLOATS, _INTS, _HALVES = (ir.VectorType(t, LANES) for t in (ir.FloatType(), I32, ir.IntType(16)))
_VECTORS = {_Lanes: _FLOATS, _Mask: ir.VectorType(ir.IntType(1), LANES)}


@register_model(_Lanes)
@register_model(_Mask)
class _Registers(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTORS[type(kind)])


def splat(value, vector: ir.VectorType):
    """Return a constant vector with `value` in every lane."""
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


for _name, _instruction in dict(add="fadd", sub="fsub", mul="fmul", truediv="fdiv").items():
    _define(getattr(operator, _name), lanes, getattr(ir.IRBuilder, _instruction))
_define(operator.gt, mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define(operator.ge, mask, lambda builder, a, b: builder.fcmp_ordered(">=", a, b))


@intrinsic
def select(typing, condition, yes, no):
    """Return yes where the condition holds, else no."""
    return lanes(mask, lanes, lanes), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def _power_of_two(typing, n):
    """2**n for whole n in -126..127."""

    def generate(context, builder, signature, args):
        exponent = builder.add(builder.fptosi(args[0], _INTS), splat(127, _INTS))
        return builder.bitcast(builder.shl(exponent, splat(23, _INTS)), _FLOATS)

    return lanes(lanes), generate


def _place(builder, address, count, vector: ir.VectorType):
    """A pointer to LANES numbers, a mask of the first `count`, and whether these are all (usual)."""
    first = builder.insert_element(splat(0, _INTS), builder.trunc(count, I32), ir.Constant(I32, 0))
    first = builder.shuffle_vector(first, first, splat(0, _INTS))
    inside = builder.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), first)
    full = builder.icmp_signed("==", count, ir.Constant(count.type, LANES))
    return builder.inttoptr(address, vector.as_pointer()), inside, full


def _load(builder, address, count, vector: ir.VectorType):
    at, inside, full = _place(builder, address, count, vector)
    name = f"llvm.masked.load.v{LANES}{'i16' if vector == _HALVES else 'f32'}.p0"
    masked = external(builder, name, vector, at.type, I32, inside.type, vector)
    with builder.if_else(full, likely=True) as (then, otherwise):
        with then:
            whole, whole_block = builder.load(at, align=2), builder.block
        with otherwise:
            part, part_block = builder.call(masked, [at, ir.Constant(I32, 2), inside, splat(0, vector)]), builder.block
    value = builder.phi(vector)
    value.add_incoming(whole, whole_block)
    value.add_incoming(part, part_block)
    return value


def _store(builder, address, value, count, around) -> None:
    at, inside, full = _place(builder, address, count, value.type)
    name = f"llvm.masked.store.v{LANES}{'i16' if value.type == _HALVES else 'f32'}.p0"
    masked = external(builder, name, ir.VoidType(), value.type, at.type, I32, inside.type)
    with builder.if_else(full, likely=True) as (then, otherwise):
        with then, builder.if_else(around) as (past, into):
            with past:
                instruction = builder.store(value, at, align=64)
                instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
            with into:
                builder.store(value, at, align=2)
        with otherwise:
            builder.call(masked, [value, at, ir.Constant(I32, 2), inside])


@intrinsic
def load(typing, address, count):
    """Load `count` float32 from an address; the other lanes are 0."""
    return lanes(types.intp, types.intp), lambda context, builder, signature, args: _load(builder, *args, _FLOATS)


@intrinsic
def load_half(typing, address, count):
    """Load `count` bfloat16 as `load` does."""

    def generate(context, builder, signature, args):
        bits = builder.zext(_load(builder, *args, _HALVES), _INTS)
        return builder.bitcast(builder.shl(bits, splat(16, _INTS)), _FLOATS)

    return lanes(types.intp, types.intp), generate


@intrinsic
def store(typing, address, value, count, around):
    """Write the first `count` lanes; `around`: past the cache (address a multiple of 64)."""

    def generate(context, builder, signature, args):
        _store(builder, *args)
        return context.get_dummy_value()

    return types.void(types.intp, lanes, types.intp, types.boolean), generate


@intrinsic
def store_half(typing, address, value, count, around):
    """Write as bfloat16 as `store` does."""

    def generate(context, builder, signature, args):
        address, value, *rest = args
        bits = builder.bitcast(value, _INTS)
        odd = builder.and_(builder.lshr(bits, splat(16, _INTS)), splat(1, _INTS))
        bits = builder.add(builder.add(bits, splat(0x7FFF, _INTS)), odd)  # round to nearest even
        _store(builder, address, builder.trunc(builder.lshr(bits, splat(16, _INTS)), _HALVES), *rest)
        return context.get_dummy_value()

    return types.void(types.intp, lanes, types.intp, types.boolean), generate


def _fetching(write: int):
    def generate(context, builder, signature, args):
        function = external(builder, "llvm.prefetch.p0", ir.VoidType(), BYTES, I32, I32, I32)
        for line in range(0, 4 * LANES, 64):
            at = builder.inttoptr(builder.add(args[0], ir.Constant(I64, line)), BYTES)
            builder.call(function, [at, *(ir.Constant(I32, n) for n in (write, 3, 1))])
        return context.get_dummy_value()

    return generate


@intrinsic
def fetch(typing, address):
    """Prefetch LANES float32 from an address, which may be invalid."""
    return types.void(types.intp), _fetching(0)


@intrinsic
def fetch_to_write(typing, address):
    """Prefetch as `fetch`, for writing."""
    return types.void(types.intp), _fetching(1)


@intrinsic
def zeros(typing):
    """Return LANES zeros."""
    return lanes(), lambda context, builder, signature, args: splat(0.0, _FLOATS)


# ---------------------------------------------------------------- helpers of compiled loops

helper = njit(error_model="numpy", nogil=True)  # for functions called by compiled loops


@helper
def read(address, count, half):
    """`load` from bfloat16 or float32."""
    return load_half(address, count) if half else load(address, count)


@helper
def write(address, value, count, half, around):
    """`store` as bfloat16 or float32."""
    if half:
        store_half(address, value, count, around)
    else:
        store(address, value, count, around)


@helper
def larger(a, b):
    """The larger one; a if a is NaN."""
    return select(b > a, b, a)


@helper
def exp_of_negative(y):
    """exp(y) for y <= 0 with error 2e-7; libm's would not vectorise."""
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
