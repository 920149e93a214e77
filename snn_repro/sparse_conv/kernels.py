"""Convolution and its weight gradient over the nonzero inputs alone, on the CPU, compiled by numba.

Both come down to one inner loop, `_add_rows`: a sum of rows of a matrix in cache, listed by their numbers and factors,
held in vector registers from the first row to the last.
    forward          y[pixel, :] += x[i] * w[tap, channel, :]    over the nonzero inputs i that the pixel's taps meet
    weight gradient  dw[tap, channel, :] += x[i] * gy[pixel, :]  over the nonzero inputs i of the channel
The lists are written without branches (`_compress`). Arrays are channels-last and flat; sizes are passed beside them.
Output channels are cut into blocks of `vectors` times 64 bytes, so that the rows of one block stay in the cache.

Importing this module imports numba; the package does so when a sparse convolution runs for the first time.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

VECTOR = 64  # bytes: one AVX-512 register; LLVM splits it where registers are smaller
PAD = 4  # a list ends with this many entries of factor 0, so that loops may take up to PAD at a time
WIDE = binding.get_host_cpu_features().get("avx512f", False)
REGISTERS = 16 if WIDE else 6  # vectors that sums may occupy
LANES = VECTOR // 4  # float32 in a vector
PIECE = 4096  # values packed before a look whether they fit into bytes
LIST_ELEMENTS = 2**18  # inputs whose nonzero ones are listed at a time

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))


@cache
def _level2_cache() -> int:
    """Bytes of the first core's level-2 cache, or half a MiB where the system does not say."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 2**19


# ---------------------------------------------------------------- LLVM: what numba's Python cannot say
#
# The first argument of each, `unit`, is a number of the arrays' type and serves only to tell float32 from float64;
# the others are addresses and sizes in elements.


def _vectors(unit):
    """LLVM types for a numba float type: element, vector, vector of int32 numbers, mask, and the vector's suffix."""
    element = ir.FloatType() if unit.bitwidth == 32 else ir.DoubleType()
    lanes = VECTOR * 8 // unit.bitwidth
    vector, numbers, mask = (ir.VectorType(t, lanes) for t in (element, I32, I1))
    return element, vector, numbers, mask, f"v{lanes}f{unit.bitwidth}"


def _external(builder, name, result, *arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _splat(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _int(value: int):
    return ir.Constant(I64, value)


@intrinsic
def _add_rows(typing, unit, to, start, numbers, factors, count, rows, vectors):
    """to[:] = start[:] + sum over i < count of factors[i] * rows[numbers[i], :], rows of 1..8 `vectors`."""
    element, vector, *_, suffix = _vectors(unit)

    def generate(context, builder, signature, args):
        _, to, start, numbers, factors, count, rows, vectors = args
        fma = _external(builder, f"llvm.fma.{suffix}", vector, vector, vector, vector)
        numbers, factors = builder.inttoptr(numbers, I32.as_pointer()), builder.inttoptr(factors, element.as_pointer())
        to, start = (builder.inttoptr(a, vector.as_pointer()) for a in (to, start))
        done, never = builder.append_basic_block("done"), builder.append_basic_block("never")
        switch = builder.switch(vectors, never)
        with builder.goto_block(never):
            builder.unreachable()
        for width in range(1, 9):
            # Sums of several rows at a time hide the latency of an addition.
            at_a_time = next(n for n in (4, 2, 1) if n * width <= max(REGISTERS // 2, width) or n == 1)
            head, loop, end = (builder.append_basic_block(f"{name}{width}") for name in ("head", "loop", "end"))
            switch.add_case(_int(width), head)
            builder.position_at_end(head)
            first = [builder.load(builder.gep(start, [_int(j)]), align=4) for j in range(width)]
            first += [ir.Constant(vector, [0.0] * vector.count)] * (width * (at_a_time - 1))
            builder.cbranch(builder.icmp_signed(">", count, _int(0)), loop, end)

            builder.position_at_end(loop)
            i = builder.phi(I64)
            i.add_incoming(_int(0), head)
            sums, added = [builder.phi(vector) for _ in first], []
            for n in range(at_a_time):
                place = [builder.add(i, _int(n))]
                row = builder.mul(builder.sext(builder.load(builder.gep(numbers, place)), I64), _int(width * VECTOR))
                row = builder.inttoptr(builder.add(rows, row), vector.as_pointer())
                factor = _splat(builder, builder.load(builder.gep(factors, place)), vector)
                for j in range(width):
                    value = builder.load(builder.gep(row, [_int(j)]), align=4)
                    added.append(builder.call(fma, [factor, value, sums[n * width + j]]))
            after = builder.add(i, _int(at_a_time))
            i.add_incoming(after, loop)
            for s, before, new in zip(sums, first, added, strict=True):
                s.add_incoming(before, head)
                s.add_incoming(new, loop)
            builder.cbranch(builder.icmp_signed("<", after, count), loop, end)

            builder.position_at_end(end)
            total = []
            for before, new in zip(first, added, strict=True):
                total.append(builder.phi(vector))
                total[-1].add_incoming(before, head)
                total[-1].add_incoming(new, loop)
            for j in range(width):
                parts = total[j::width]
                while len(parts) > 1:
                    parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
                builder.store(parts[0], builder.gep(to, [_int(j)]), align=4)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(unit, *[types.intp] * 7), generate


@intrinsic
def _compress(typing, unit, source, quantum, x, count, number, step, numbers, values):
    """List the nonzero ones of x[0..count): number + step * place, and value. Returns how many.

    source is a number of x's type: that of `unit`, or a byte, which is worth `quantum`. Writes up to a vector too far.
    """
    element, vector, integers, mask, suffix = _vectors(unit)
    lanes = vector.count
    as_bytes = isinstance(source, types.Integer)

    def generate(context, builder, signature, args):
        _, _, quantum, x, count, number, step, numbers, values = args
        pack = "llvm.experimental.vector.compress"
        pack_numbers = _external(builder, f"{pack}.v{lanes}i32", integers, integers, mask, integers)
        pack_values = _external(builder, f"{pack}.{suffix}", vector, vector, mask, vector)
        stored, name, size = (
            (ir.VectorType(I8, lanes), f"v{lanes}i8", 1) if as_bytes else (vector, suffix, unit.bitwidth // 8)
        )
        load = _external(builder, f"llvm.masked.load.{name}.p0", stored, stored.as_pointer(), I32, mask, stored)
        bits = ir.IntType(lanes)
        ones = _external(builder, f"llvm.ctpop.i{lanes}", bits, bits)
        x, values = builder.inttoptr(x, stored.element.as_pointer()), builder.inttoptr(values, element.as_pointer())
        numbers, quantum = builder.inttoptr(numbers, I32.as_pointer()), _splat(builder, quantum, vector)
        number, step = builder.trunc(number, I32), _splat(builder, builder.trunc(step, I32), integers)
        places, zero = ir.Constant(integers, list(range(lanes))), ir.Constant(vector, [0.0] * lanes)
        head, loop, end = builder.block, builder.append_basic_block("list"), builder.append_basic_block("listed")
        builder.cbranch(builder.icmp_signed(">", count, _int(0)), loop, end)

        builder.position_at_end(loop)
        i, found = builder.phi(I64), builder.phi(I64)
        left = _splat(builder, builder.trunc(builder.sub(count, i), I32), integers)
        address = builder.bitcast(builder.gep(x, [i]), stored.as_pointer())
        inside = builder.icmp_signed("<", places, left)
        nothing = ir.Constant(stored, [0] * lanes) if as_bytes else zero
        value = builder.call(load, [address, ir.Constant(I32, size), inside, nothing])
        if as_bytes:
            value = builder.fmul(builder.uitofp(builder.zext(value, integers), vector), quantum)
        nonzero = builder.fcmp_unordered("!=", value, zero)
        place = builder.add(places, _splat(builder, builder.trunc(i, I32), integers))
        which = builder.add(builder.mul(place, step), _splat(builder, number, integers))
        for packed, pointer, kind in (
            (builder.call(pack_numbers, [which, nonzero, which]), numbers, integers),
            (builder.call(pack_values, [value, nonzero, value]), values, vector),
        ):
            builder.store(packed, builder.bitcast(builder.gep(pointer, [found]), kind.as_pointer()), align=4)
        more = builder.zext(builder.call(ones, [builder.bitcast(nonzero, bits)]), I64)
        found_after, i_after = builder.add(found, more), builder.add(i, _int(lanes))
        for phi, after in ((i, i_after), (found, found_after)):
            phi.add_incoming(_int(0), head)
            phi.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", i_after, count), loop, end)

        builder.position_at_end(end)
        result = builder.phi(I64)
        result.add_incoming(_int(0), head)
        result.add_incoming(found_after, loop)
        return result

    return types.intp(unit, source, unit, *[types.intp] * 6), generate


@intrinsic
def _pack(typing, x, to, count, factor, quantum):
    """Write x[0..count) * factor as bytes; whether bytes * quantum are the float32 x again, bit for bit.

    count: a multiple of LANES, at least one.
    """
    lanes = LANES
    floats, integers, octets = (ir.VectorType(t, lanes) for t in (ir.FloatType(), I32, I8))

    def generate(context, builder, signature, args):
        x, to, count, factor, quantum = args
        x, to = builder.inttoptr(x, ir.FloatType().as_pointer()), builder.inttoptr(to, I8.as_pointer())
        factor, quantum = (_splat(builder, a, floats) for a in (factor, quantum))
        least, most, none = (ir.Constant(t, [v] * lanes) for t, v in ((floats, 0.0), (floats, 255.0), (integers, 0)))
        head, loop, end = builder.block, builder.append_basic_block("pack"), builder.append_basic_block("packed")
        builder.branch(loop)

        builder.position_at_end(loop)
        i, differs = builder.phi(I64), builder.phi(integers)
        original = builder.load(builder.bitcast(builder.gep(x, [i]), floats.as_pointer()), align=4)
        value = builder.fmul(original, factor)
        value = builder.select(builder.fcmp_ordered("<", value, most), value, most)  # NaN becomes 255
        value = builder.select(builder.fcmp_ordered(">", value, least), value, least)
        byte = builder.fptosi(value, integers)
        builder.store(builder.trunc(byte, octets), builder.bitcast(builder.gep(to, [i]), octets.as_pointer()), align=1)
        again = builder.fmul(builder.sitofp(byte, floats), quantum)
        new = builder.xor(builder.bitcast(again, integers), builder.bitcast(original, integers))
        new, after = builder.or_(differs, new), builder.add(i, _int(lanes))
        for phi, first, following in ((i, _int(0), after), (differs, none, new)):
            phi.add_incoming(first, head)
            phi.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", after, count), loop, end)

        builder.position_at_end(end)
        bits = ir.IntType(lanes)
        any_bits = builder.bitcast(builder.icmp_unsigned("!=", new, none), bits)
        return builder.icmp_unsigned("==", any_bits, ir.Constant(bits, 0))

    return types.boolean(types.intp, types.intp, types.intp, types.float32, types.float32), generate


@intrinsic
def _append(typing, unit, numbers, values, count, add, to_numbers, to_values):
    """Copy `count` entries of a list, `add` to each number; writes a vector too far."""
    element, vector, integers, *_ = _vectors(unit)

    def generate(context, builder, signature, args):
        _, numbers, values, count, add, to_numbers, to_values = args
        numbers, to_numbers = (builder.inttoptr(a, I32.as_pointer()) for a in (numbers, to_numbers))
        values, to_values = (builder.inttoptr(a, element.as_pointer()) for a in (values, to_values))
        add = _splat(builder, builder.trunc(add, I32), integers)
        head, loop, end = builder.block, builder.append_basic_block("copy"), builder.append_basic_block("copied")
        builder.cbranch(builder.icmp_signed(">", count, _int(0)), loop, end)

        builder.position_at_end(loop)
        i = builder.phi(I64)
        at = lambda p, kind: builder.bitcast(builder.gep(p, [i]), kind.as_pointer())  # noqa: E731
        number = builder.add(builder.load(at(numbers, integers), align=4), add)
        builder.store(number, at(to_numbers, integers), align=4)
        builder.store(builder.load(at(values, vector), align=4), at(to_values, vector), align=4)
        after = builder.add(i, _int(vector.count))
        i.add_incoming(_int(0), head)
        i.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", after, count), loop, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(unit, *[types.intp] * 6), generate


@intrinsic
def _copy(typing, to, source, size):
    """Copy `size` bytes."""

    def generate(context, builder, signature, args):
        pointer = I8.as_pointer()
        memcpy = _external(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), pointer, pointer, I64, I1)
        to, source = (builder.inttoptr(a, pointer) for a in args[:2])
        builder.call(memcpy, [to, source, args[2], ir.Constant(I1, 0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


# ---------------------------------------------------------------- the loops


def _compiled(function):
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(function, nogil=True, error_model="numpy")


@_compiled
def _forward(x, w, bias, y, lo, hi, height, width, channels, out_height, out_width, outputs, kernel, stride, padding,
             vectors, rows_at_once, images, channel_step, tap_step):  # fmt: skip
    """y[lo:hi] from x[lo:hi]. w [parts, rows, block], the row of a weight being channel * channel_step + tap * tap_step.

    rows_at_once: kernel rows whose weights are used together.
    """
    unit = bias[0]
    size = x.itemsize
    row_bytes = vectors * VECTOR
    block = row_bytes // size
    numbers = np.empty(images * height * width * channels + VECTOR, np.int32)
    values = np.empty(len(numbers), x.dtype)
    first = np.empty(images * height * width + 1, np.int64)  # of each input pixel, its first entry
    mine = np.zeros(kernel * kernel * channels + VECTOR, np.int32)
    my_values = np.zeros(len(mine), x.dtype)
    rest = np.empty(block, x.dtype)
    numbers_at, values_at, my_at, my_values_at = (
        numbers.ctypes.data, values.ctypes.data, mine.ctypes.data, my_values.ctypes.data
    )  # fmt: skip
    for image in range(lo, hi, images):
        here = min(images, hi - image)
        found = pixel = 0
        for row in range(here * height):
            used = (row % height + padding) % stride < kernel
            for column in range(width):
                first[pixel] = found
                if used and (column + padding) % stride < kernel:
                    address = x.ctypes.data + ((image * height + row) * width + column) * channels * size
                    found += _compress(
                        unit, unit, unit, address, channels, column * tap_step, channel_step, numbers_at + 4 * found,
                        values_at + size * found,
                    )  # fmt: skip
                pixel += 1
        first[pixel] = found

        # An entry's number is that of its weight row, had the row a tap for each column; it differs from that by the same
        # amount for all entries of one kernel row, whose lists follow each other.
        for part in range(0, (outputs + block - 1) // block):
            whole = outputs - part * block >= block
            part_bytes = min(block, outputs - part * block) * size
            weights = w.ctypes.data + part * kernel * kernel * channels * row_bytes
            for kernel_row in range(0, kernel, rows_at_once):
                for out in range(here * out_height * out_width):
                    out_row, out_column = out // out_width, out % out_width
                    of, out_row = out_row // out_height, out_row % out_height
                    left = out_column * stride - padding
                    begin, stop = max(0, left), min(width, left + kernel)
                    count = 0
                    for k in range(kernel_row, min(kernel, kernel_row + rows_at_once)):
                        row = out_row * stride + k - padding
                        if 0 <= row < height:
                            i = first[(of * height + row) * width + begin]
                            n = first[(of * height + row) * width + stop] - i
                            _append(
                                unit, numbers_at + 4 * i, values_at + size * i, n, (k * kernel - left) * tap_step,
                                my_at + 4 * count, my_values_at + size * count,
                            )  # fmt: skip
                            count += n
                    for n in range(PAD):
                        mine[count + n] = 0
                        my_values[count + n] = 0
                    to = y.ctypes.data + (
                        (image * out_height * out_width + out) * outputs + part * block
                    ) * size  # fmt: skip
                    start = to if kernel_row else bias.ctypes.data + part * row_bytes
                    if whole:
                        _add_rows(unit, to, start, my_at, my_values_at, count, weights, vectors)
                    else:
                        _copy(rest.ctypes.data, start, part_bytes)
                        address = rest.ctypes.data
                        _add_rows(unit, address, address, my_at, my_values_at, count, weights, vectors)
                        _copy(to, address, part_bytes)


@_compiled
def _weight_gradient(x, quantum, gy, dw, lo, hi, height, width, channels, out_height, out_width, outputs, kernel, stride,
                     padding, vectors, images, channel_step, tap_step):  # fmt: skip
    """Add the weight gradient of images lo..hi to dw, arranged as w in `_forward`; a byte in x is worth `quantum`.

    Outputs lie in a frame of zeros, so that every tap of an input is at a fixed distance from it. With a stride, an
    input meets every stride-th tap: inputs of the same taps have lists of their own.
    """
    size = dw.itemsize
    unit = dw[0]
    row_bytes = vectors * VECTOR
    block = row_bytes // size
    reach = (kernel - 1) // stride
    frame_height = (height - 1 + padding) // stride + reach + 1
    frame_width = (width - 1 + padding) // stride + reach + 1
    kinds = min(stride, kernel)
    # The odd length keeps the lists' beginnings out of each other's way in the cache.
    length = images * ((height + stride - 1) // stride) * ((width + stride - 1) // stride) + PAD + 17
    numbers = np.empty(kinds * kinds * channels * length, np.int32)
    values = np.empty(len(numbers), dw.dtype)
    counts = np.empty(kinds * kinds * channels, np.int64)
    found, found_values = np.empty(channels + VECTOR, np.int32), np.empty(channels + VECTOR, dw.dtype)
    frame = np.zeros(images * frame_height * frame_width * block + VECTOR, dw.dtype)
    frame_at = frame.ctypes.data
    frame_at += (VECTOR - frame_at % VECTOR) % VECTOR
    for image in range(lo, hi, images):
        here = min(images, hi - image)
        counts[:] = 0
        for of in range(here):
            for row in range(height):
                kind_row = (row + padding) % stride
                if kind_row >= kernel:
                    continue
                for column in range(width):
                    kind_column = (column + padding) % stride
                    if kind_column >= kernel:
                        continue
                    address = x.ctypes.data + (((image + of) * height + row) * width + column) * channels * x.itemsize
                    n = _compress(
                        unit, x[0], quantum, address, channels, 0, 1, found.ctypes.data, found_values.ctypes.data
                    )  # fmt: skip
                    place = (of * frame_height + (row + padding) // stride + reach) * frame_width
                    place += (column + padding) // stride + reach
                    kind = (kind_row * kinds + kind_column) * channels
                    for i in range(n):
                        which = kind + found[i]
                        entry = which * length + counts[which]
                        numbers[entry] = place
                        values[entry] = found_values[i]
                        counts[which] += 1
        for which in range(kinds * kinds * channels):
            for i in range(which * length + counts[which], which * length + counts[which] + PAD):
                numbers[i] = reach * frame_width + reach  # in the frame whatever the tap
                values[i] = 0

        for part in range(0, (outputs + block - 1) // block):
            part_bytes = min(block, outputs - part * block) * size
            for line in range(here * out_height):
                of, out_row = line // out_height, line % out_height
                to = frame_at + ((of * frame_height + out_row + reach) * frame_width + reach) * row_bytes
                source = gy.ctypes.data + (
                    (image * out_height + line) * out_width * outputs + part * block
                ) * size  # fmt: skip
                if block == outputs:
                    _copy(to, source, out_width * row_bytes)
                else:
                    for column in range(out_width):
                        _copy(to + column * row_bytes, source + column * outputs * size, part_bytes)
            for tap in range(kernel * kernel):
                k_row, k_column = tap // kernel, tap % kernel
                kind = (k_row % stride * kinds + k_column % stride) * channels
                rows = frame_at - (k_row // stride * frame_width + k_column // stride) * row_bytes
                for channel in range(channels):
                    which = kind + channel
                    row = channel * channel_step + tap * tap_step
                    to = dw.ctypes.data + (part * kernel * kernel * channels + row) * row_bytes
                    _add_rows(
                        unit, to, to, numbers.ctypes.data + 4 * which * length,
                        values.ctypes.data + size * which * length, counts[which], rows, vectors,
                    )  # fmt: skip


@_compiled
def _pack_values(x, to, lo, hi, factor, quantum):
    """Whether x[lo:hi] * factor are bytes, which go to `to`. Ends with the first piece that does not fit."""
    whole = hi - (hi - lo) % LANES
    for i in range(lo, whole, PIECE):
        if not _pack(x.ctypes.data + 4 * i, to.ctypes.data + i, min(PIECE, whole - i), factor, quantum):
            return False
    rest, bytes_of_rest = np.zeros(LANES, x.dtype), np.empty(LANES, to.dtype)
    rest[: hi - whole] = x[whole:hi]
    fits = _pack(rest.ctypes.data, bytes_of_rest.ctypes.data, LANES, factor, quantum)
    to[whole:hi] = bytes_of_rest[: hi - whole]
    return fits


# ---------------------------------------------------------------- calls


class Shape:
    """Sizes of one convolution, and how its work is cut: x [n, height, width, channels], square kernel."""

    def __init__(self, n, height, width, channels, outputs, kernel, stride, padding, size):
        self.n, self.height, self.width, self.channels = n, height, width, channels
        self.outputs, self.kernel, self.stride, self.padding, self.size = outputs, kernel, stride, padding, size
        self.out_height, self.out_width = ((k + 2 * padding - kernel) // stride + 1 for k in (height, width))
        self.arguments = (
            height, width, channels, self.out_height, self.out_width, outputs, kernel, stride, padding
        )  # fmt: skip

    def _vectors(self, bytes_a_vector: int, room: float) -> int:
        """Vectors in a block: the most that divide the row evenly and whose data fit in `room` bytes."""
        row = -(-self.outputs * self.size // VECTOR)
        widths = [v for v in range(8 if WIDE else 6, 0, -1) if row % v == 0]
        return next((v for v in widths if v * bytes_a_vector <= room), next(v for v in reversed(widths)))

    def forward_cut(self) -> tuple[int, int, int]:
        """(vectors in a block, kernel rows at once, images at once)."""
        room = 0.65 * _level2_cache()
        vectors = self._vectors(self.kernel * self.channels * VECTOR, room)
        all_rows = self.kernel * self.kernel * self.channels * vectors * VECTOR <= room
        images = max(1, LIST_ELEMENTS // (self.height * self.width * self.channels))
        return vectors, self.kernel if all_rows else 1, min(self.n, images)

    def gradient_cut(self) -> tuple[int, int]:
        """(vectors in a block, images at once)."""
        room = 0.4 * _level2_cache()
        reach = (self.kernel - 1) // self.stride
        pixels = 1
        for length in (self.height, self.width):
            pixels *= (length - 1 + self.padding) // self.stride + reach + 1
        vectors = self._vectors(pixels * VECTOR, room)
        return vectors, max(1, min(self.n, int(room / (pixels * vectors * VECTOR))))

    def parts(self, vectors: int) -> tuple[int, int]:
        """(blocks of output channels, channels in a block)."""
        block = vectors * VECTOR // self.size
        return -(-self.outputs // block), block


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1)


def _in_parallel(function, n: int, threads: int) -> list:
    """Results of function(i, lo, hi) for the parts i of range(n), one a thread."""
    threads = min(threads, n)
    edges = [n * i // threads for i in range(threads + 1)]
    if threads > 1:
        pool = _pool(threads, os.getpid())
        others = [pool.submit(function, i, edges[i], edges[i + 1]) for i in range(1, threads)]
    results = [function(0, 0, edges[1])]
    return results + [others[i - 1].result() for i in range(1, threads)]


def _is_dense(w: Tensor) -> bool:
    return w.is_contiguous() or w.is_contiguous(memory_format=torch.channels_last)


def _rows(w: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Weights as [outputs, rows], a view if they are contiguous or channels-last, and the rows' steps of `_forward`."""
    if not w.is_contiguous() and _is_dense(w):
        return w.permute(0, 2, 3, 1).flatten(1), (1, w.shape[1])
    return w.reshape(len(w), -1), (w[0, 0].numel(), 1)


def _blocks(w: Tensor, packed: Tensor, block: int):
    """Pairs of views of the same weights: in w [outputs, rows], in packed [parts, rows, block] transposed."""
    for part in range(len(packed)):
        piece = w[part * block : (part + 1) * block]
        yield piece, packed[part].t()[: len(piece)]


def forward(x: Tensor, w: Tensor, bias: Tensor | None, shape: Shape, threads: int) -> Tensor:
    """x [n, channels, height, width], channels last; w [outputs, channels, kernel, kernel] -> y, channels last."""
    vectors, rows, images = shape.forward_cut()
    parts, block = shape.parts(vectors)
    w, steps = _rows(w)
    packed = w.new_empty(parts, w.shape[1], block)
    for piece, place in _blocks(w, packed, block):
        place.copy_(piece)
    padded = w.new_zeros(parts * block)
    if bias is not None:
        padded[: shape.outputs] = bias
    y = w.new_empty(shape.n, shape.out_height, shape.out_width, shape.outputs)
    arrays = [_flat(t) for t in (x.permute(0, 2, 3, 1), packed, padded, y)]
    _in_parallel(
        lambda i, lo, hi: _forward(*arrays, lo, hi, *shape.arguments, vectors, rows, images, *steps), shape.n, threads
    )
    return y.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, gy: Tensor, w: Tensor, shape: Shape, threads: int, quantum: float = 1.0) -> Tensor:
    """Gradient of w, in w's memory format, from x and the output's gradient, both channels last.

    x: of w's type, or bytes worth `quantum` each (see `to_bytes`).
    """
    vectors, images = shape.gradient_cut()
    parts, block = shape.parts(vectors)
    threads = min(threads, shape.n)
    gradient = torch.empty_like(w) if _is_dense(w) else w.new_empty(w.shape)
    dw, steps = _rows(gradient)
    packed = w.new_zeros(threads, parts, dw.shape[1], block)
    inputs, outputs = (_flat(t.permute(0, 2, 3, 1)) for t in (x, gy))
    quantum = outputs.dtype.type(quantum)
    _in_parallel(
        lambda i, lo, hi: _weight_gradient(
            inputs, quantum, outputs, _flat(packed[i]), lo, hi, *shape.arguments, vectors, images, *steps
        ),
        shape.n, threads,
    )  # fmt: skip
    for piece, place in _blocks(dw, packed[0] if threads == 1 else packed.sum(0), block):
        piece.copy_(place)
    return gradient


def to_bytes(x: Tensor, threads: int) -> tuple[Tensor, float]:
    """x, float32 [n, channels, height, width] and channels last, as bytes, and what one is worth: 1 or 1/4.

    Worth 0 where x holds anything else than multiples of that from 0 to 255 times it.
    """
    packed = torch.empty_like(x, dtype=torch.uint8)
    values, to = (_flat(t.permute(0, 2, 3, 1)) for t in (x, packed))
    for factor in (np.float32(1), np.float32(4)):
        fits = _in_parallel(
            lambda i, lo, hi, factor=factor: _pack_values(values, to, lo, hi, factor, 1 / factor), len(values), threads
        )
        if all(fits):
            return packed, 1 / float(factor)
    return packed, 0.0


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().view(-1).numpy()
