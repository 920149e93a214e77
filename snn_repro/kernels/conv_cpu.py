"""Sparse convolution and its weight gradient on the CPU, compiled by numba.

Both use one inner loop, `_add_rows`: weighted sums of rows of a cached matrix, given as lists of offsets and factors,
for up to three neighbouring taps of a kernel row, accumulated in vector registers.
    forward          y[pixel - tap, :] += x[i] * w[tap, channel, :]     over the nonzero inputs i of one pixel
    weight gradient  dw[tap, channel, :] += x[i] * gy[pixel - tap, :]   over the nonzero inputs i of one channel
The lists are written without branches (`_compress`). Arrays are flat and channels-last; sizes are passed separately.
Rows are split into blocks of `vectors` * 64 bytes, and channels (forward) or pixels (gradient) into groups, so that the
rows in use fit the first-level cache. Importing this module, at the first sparse convolution, imports numba.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from snn_repro.kernels.compiled import compiled, cuts, in_parallel
from snn_repro.kernels.lanes import BYTES, I1, I8, I32, I64, WIDE, external, keep

VECTOR = 64  # bytes: one AVX-512 register; LLVM splits it where registers are smaller
LANES = VECTOR // 4  # float32 per vector
REGISTERS = 16 if WIDE else 6  # vectors for sums
MANY_SUMS = 8  # independent sums that hide the latency of additions
LONG_LINE = 16  # pixels from which `_add_line` is faster, although taps beyond the ends are wasted
TAPS = 3  # of a kernel row, processed together
FEW = 0.1  # density below which longer lists are worth rows from the second-level cache
PIECE = 4096  # values packed between checks that they fit bytes


@cache
def _cache_size(index: int, default: int) -> int:
    """Bytes of one of the first core's caches (index 0: data, first level; 2: second level)."""
    try:
        size = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text()
        return int(size.strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return default


# ---------------------------------------------------------------- LLVM intrinsics

VALUES, NUMBERS, MASK = (ir.VectorType(t, LANES) for t in (ir.FloatType(), I32, I1))
FLOATS, INTS = ir.FloatType().as_pointer(), I32.as_pointer()


def _splat(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _int(value: int):
    return ir.Constant(I64, value)


def _loop(builder, places, factors, begin, stop, sums, rows, width, at_a_time):
    """Emit the loop over the entries begin..stop, `at_a_time` per iteration with separate sums; return the sums.

    places, factors: pointers to the entries; rows: per tap, the base address of places; width: vectors.
    """
    fma = external(builder, f"llvm.fma.v{LANES}f32", VALUES, VALUES, VALUES, VALUES)
    head, body, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed("<", begin, stop), body, end)
    builder.position_at_end(body)
    i = builder.phi(I64)
    i.add_incoming(begin, head)
    before, added = [builder.phi(VALUES) for _ in sums], []
    for n in range(at_a_time):
        entry = [builder.add(i, _int(n))]
        position = builder.sext(builder.load(builder.gep(places, entry)), I64)
        factor = _splat(builder, builder.load(builder.gep(factors, entry)), VALUES)
        for row in rows:
            row = builder.inttoptr(builder.add(row, position), VALUES.as_pointer())
            for j in range(width):
                value = builder.load(builder.gep(row, [_int(j)]), align=4)
                added.append(builder.call(fma, [factor, value, before[len(added)]]))
    after = builder.add(i, _int(at_a_time))
    i.add_incoming(after, body)
    builder.cbranch(builder.icmp_signed("<", after, stop), body, end)
    builder.position_at_end(end)
    results = [builder.phi(VALUES) for _ in sums]
    for first, phi, new, result in zip(sums, before, added, results, strict=True):
        for node, block, value in ((phi, head, first), (phi, body, new), (result, head, first), (result, body, new)):
            node.add_incoming(value, block)
    return results


def _cases(builder, taps, vectors, least):
    """Emit a block for each (taps, vectors) of at least `least` sums that fit the registers; continue after them."""
    done, never = builder.append_basic_block("done"), builder.append_basic_block("never")
    switch = builder.switch(builder.add(builder.mul(taps, _int(16)), vectors), never)
    with builder.goto_block(never):
        builder.unreachable()
    for n, width in ((n, width) for n in range(1, TAPS + 1) for width in range(1, 9)):
        if least <= n * width <= max(REGISTERS, width):
            case = builder.append_basic_block(f"case{n}_{width}")
            switch.add_case(_int(n * 16 + width), case)
            builder.position_at_end(case)
            yield n, width
            builder.branch(done)
    builder.position_at_end(done)


@intrinsic
def _add_rows(typing, to, to_step, places, factors, count, rows, row_step, taps, vectors):
    """Add factors[i] * row at `rows` + places[i] for i < count to the row at `to`, for each tap.

    Per tap, rows move by `row_step` and sums by `to_step` bytes. Rows have 1..8 `vectors`, taps are 1..TAPS, and their
    product is at most REGISTERS.
    """

    def generate(context, builder, signature, args):
        to, to_step, places, factors, count, rows, row_step, taps, vectors = args
        entries = builder.inttoptr(places, INTS), builder.inttoptr(factors, FLOATS)
        for n, width in _cases(builder, taps, vectors, 1):
            targets = [builder.add(to, builder.mul(to_step, _int(t))) for t in range(n)]
            targets = [builder.inttoptr(target, VALUES.as_pointer()) for target in targets]
            tap_rows = [builder.add(rows, builder.mul(row_step, _int(t))) for t in range(n)]
            sums = [builder.load(builder.gep(target, [_int(j)]), align=4) for target in targets for j in range(width)]
            # With few sums, several rows at a time hide the latency; the remaining rows follow one by one.
            at_a_time = next(m for m in (4, 2, 1) if m * len(sums) <= max(MANY_SUMS, len(sums)))
            begin = _int(0)
            if at_a_time > 1:
                many = builder.and_(count, _int(-at_a_time))
                more = sums + [ir.Constant(VALUES, [0.0] * LANES)] * (len(sums) * (at_a_time - 1))
                parts = _loop(builder, *entries, begin, many, more, tap_rows, width, at_a_time)
                for k in range(len(sums)):
                    sums[k] = parts[k]
                    for part in parts[k + len(sums) :: len(sums)]:
                        sums[k] = builder.fadd(sums[k], part)
                begin = many
            sums = _loop(builder, *entries, begin, count, sums, tap_rows, width, 1)
            for k, value in enumerate(sums):
                builder.store(value, builder.gep(targets[k // width], [_int(k % width)]), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 9), generate


@intrinsic
def _add_line(typing, to, first, first_step, columns, places, factors, rows, row_step, taps, vectors):
    """`_add_rows` for each pixel of a line at stride 1: sums overlap in all taps but one and stay in registers.

    A pixel's entries lie between two numbers at `first`; the next pixel's are `first_step` numbers further. `to` holds
    the sums of the first pixel's first tap, then of its second, which is the second pixel's first.
    """

    def generate(context, builder, signature, args):
        to, first, first_step, columns, places, factors, rows, row_step, taps, vectors = args
        entries = builder.inttoptr(places, INTS), builder.inttoptr(factors, FLOATS)
        to, first = builder.inttoptr(to, VALUES.as_pointer()), builder.inttoptr(first, I64.as_pointer())
        for n, width in _cases(builder, taps, vectors, MANY_SUMS):
            at = lambda position, j: builder.gep(to, [builder.add(position, _int(j))])  # noqa: E731
            tap_rows = [builder.add(rows, builder.mul(row_step, _int(t))) for t in range(n)]
            start = [builder.load(at(_int(0), j), align=4) for j in range(n * width)]
            case, pixel, leave = builder.block, builder.append_basic_block("pixel"), builder.append_basic_block("leave")
            builder.branch(pixel)

            builder.position_at_end(pixel)
            column, position, where = (builder.phi(I64) for _ in range(3))
            sums = [builder.phi(VALUES) for _ in start]
            begin, stop = (builder.load(builder.gep(first, [builder.add(where, _int(k))])) for k in range(2))
            totals = _loop(builder, *entries, begin, stop, sums, tap_rows, width, 1)
            for j in range(width):
                builder.store(totals[j], at(position, j), align=4)
            following = totals[width:] + [builder.load(at(position, n * width + j), align=4) for j in range(width)]
            after = builder.add(column, _int(1))
            for phi, initial, new in (
                (column, _int(0), after),
                (position, _int(0), builder.add(position, _int(width))),
                (where, _int(0), builder.add(where, first_step)),
                *zip(sums, start, following, strict=True),
            ):
                phi.add_incoming(initial, case)
                phi.add_incoming(new, builder.block)
            builder.cbranch(builder.icmp_signed("<", after, columns), pixel, leave)

            builder.position_at_end(leave)
            for j, value in enumerate(totals[width:]):
                builder.store(value, at(position, width + j), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 10), generate


@intrinsic
def _compress(typing, source, quantum, x, count, number, step, numbers, values):
    """List the nonzero ones of x[0..count): number + step * position, and value. Returns their count.

    source: a number of x's type, float32 or byte (one stands for `quantum`). Writes up to one vector past the end.
    """
    as_bytes = isinstance(source, types.Integer)

    def generate(context, builder, signature, args):
        _, quantum, x, count, number, step, numbers, values = args
        pack = "llvm.experimental.vector.compress"
        pack_numbers = external(builder, f"{pack}.v{LANES}i32", NUMBERS, NUMBERS, MASK, NUMBERS)
        pack_values = external(builder, f"{pack}.v{LANES}f32", VALUES, VALUES, MASK, VALUES)
        stored, name, size = (ir.VectorType(I8, LANES), f"v{LANES}i8", 1) if as_bytes else (VALUES, f"v{LANES}f32", 4)
        load = external(builder, f"llvm.masked.load.{name}.p0", stored, stored.as_pointer(), I32, MASK, stored)
        bits = ir.IntType(LANES)
        ones = external(builder, f"llvm.ctpop.i{LANES}", bits, bits)
        x, values = builder.inttoptr(x, stored.element.as_pointer()), builder.inttoptr(values, FLOATS)
        numbers, quantum = builder.inttoptr(numbers, INTS), _splat(builder, quantum, VALUES)
        number, step = builder.trunc(number, I32), _splat(builder, builder.trunc(step, I32), NUMBERS)
        places, zero = ir.Constant(NUMBERS, list(range(LANES))), ir.Constant(VALUES, [0.0] * LANES)
        head, loop, end = builder.block, builder.append_basic_block("list"), builder.append_basic_block("listed")
        builder.cbranch(builder.icmp_signed(">", count, _int(0)), loop, end)

        builder.position_at_end(loop)
        i, filled = builder.phi(I64), builder.phi(I64)
        left = _splat(builder, builder.trunc(builder.sub(count, i), I32), NUMBERS)
        address = builder.bitcast(builder.gep(x, [i]), stored.as_pointer())
        inside = builder.icmp_signed("<", places, left)
        nothing = ir.Constant(stored, [0] * LANES) if as_bytes else zero
        value = builder.call(load, [address, ir.Constant(I32, size), inside, nothing])
        if as_bytes:
            value = builder.fmul(builder.uitofp(builder.zext(value, NUMBERS), VALUES), quantum)
        nonzero = builder.fcmp_unordered("!=", value, zero)
        position = builder.add(places, _splat(builder, builder.trunc(i, I32), NUMBERS))
        which = builder.add(builder.mul(position, step), _splat(builder, number, NUMBERS))
        for packed, pointer, kind in (
            (builder.call(pack_numbers, [which, nonzero, which]), numbers, NUMBERS),
            (builder.call(pack_values, [value, nonzero, value]), values, VALUES),
        ):
            builder.store(packed, builder.bitcast(builder.gep(pointer, [filled]), kind.as_pointer()), align=4)
        more = builder.zext(builder.call(ones, [builder.bitcast(nonzero, bits)]), I64)
        filled_after, i_after = builder.add(filled, more), builder.add(i, _int(LANES))
        for phi, after in ((i, i_after), (filled, filled_after)):
            phi.add_incoming(_int(0), head)
            phi.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", i_after, count), loop, end)

        builder.position_at_end(end)
        result = builder.phi(I64)
        result.add_incoming(_int(0), head)
        result.add_incoming(filled_after, loop)
        return result

    return types.intp(source, types.float32, *[types.intp] * 6), generate


@intrinsic
def _transpose(typing, source, source_step, to, to_step):
    """Transpose a square of LANES x LANES values; rows are `source_step` bytes apart, in the result `to_step`."""

    def generate(context, builder, signature, args):
        source, source_step, to, to_step = args

        def row(base, step, i):
            return builder.inttoptr(builder.add(base, builder.mul(step, _int(i))), VALUES.as_pointer())

        rows = [builder.load(row(source, source_step, i), align=4) for i in range(LANES)]
        for half in (1, 2, 4, 8):  # swap the off-diagonal quarters of all squares of twice this length
            for i in (i for i in range(LANES) if not i & half):
                a, b = rows[i], rows[i + half]
                upper = [j if not j & half else LANES + j - half for j in range(LANES)]
                lower = [j + half if not j & half else LANES + j for j in range(LANES)]
                for position, which in ((i, upper), (i + half, lower)):
                    rows[position] = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, LANES), which))
        for i, value in enumerate(rows):
            builder.store(value, row(to, to_step, i), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def _copy(typing, to, source, size):
    """Copy `size` bytes."""

    def generate(context, builder, signature, args):
        function = external(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), BYTES, BYTES, I64, I1)
        to, source = (builder.inttoptr(a, BYTES) for a in args[:2])
        builder.call(function, [to, source, args[2], ir.Constant(I1, 0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


# ---------------------------------------------------------------- the loops


@compiled
def _forward(x, w, bias, y, lo, hi, height, width, channels, out_height, out_width, outputs, kernel, stride, padding,
             taps, vectors, group, images):  # fmt: skip
    """Compute y[lo:hi] from x[lo:hi]; w is [parts, kernel, kernel, channels, block].

    taps: of a kernel row, processed together; group: channels whose weights are used together.
    """
    size = 4
    row_bytes = vectors * VECTOR
    block = row_bytes // size
    tap_bytes = channels * row_bytes
    groups = (channels + group - 1) // group
    places = np.empty(images * height * width * channels + VECTOR, np.int32)
    values = np.empty(len(places), np.float32)
    first = np.empty(images * height * width * groups + 1, np.int64)  # first entry per input pixel and group
    # Sums of an output row, with margins for taps beyond its ends if whole lines are processed.
    margin, line_width = 0, out_width
    by_line = stride == 1 and padding < kernel <= taps and kernel * vectors >= MANY_SUMS and width >= LONG_LINE
    if by_line:
        margin, line_width = kernel - 1 - padding, width + kernel - 1
    sums = np.empty((images * out_height * line_width + 1) * block + VECTOR, np.float32)
    places_at, values_at, sums_at = places.ctypes.data, values.ctypes.data, sums.ctypes.data
    sums_at += (VECTOR - sums_at % VECTOR) % VECTOR
    # Taps per input column: the first, its output column, their number. The next is `stride` further, one column before.
    tap, out, meets = np.zeros(width, np.int64), np.zeros(width, np.int64), np.zeros(width, np.int64)
    for column in range(width):
        for k in range(kernel - 1, -1, -1):
            to = column + padding - k
            if to % stride == 0 and 0 <= to < out_width * stride:
                tap[column], out[column] = k, to // stride
                meets[column] += 1
    for image in range(lo, hi, images):
        batch = min(images, hi - image)
        filled = entry = 0
        for row in range(batch * height):
            used = (row % height + padding) % stride < kernel
            for column in range(width):
                for start in range(0, channels, group):
                    first[entry] = filled
                    if used and meets[column]:
                        address = x.ctypes.data + (((image * height + row) * width + column) * channels + start) * size
                        filled += _compress(
                            bias[0], bias[0], address, min(group, channels - start), start * row_bytes, row_bytes,
                            places_at + 4 * filled, values_at + size * filled,
                        )  # fmt: skip
                    entry += 1
        first[entry] = filled

        for part in range((outputs + block - 1) // block):
            part_bytes = min(block, outputs - part * block) * size
            for pixel in range(batch * out_height * line_width):
                _copy(sums_at + pixel * row_bytes, bias.ctypes.data + part * row_bytes, row_bytes)
            for k in range(kernel):
                weights = w.ctypes.data + (part * kernel + k) * kernel * tap_bytes
                for which in range(groups):
                    for line in range(batch * out_height):
                        of, row = line // out_height, line % out_height * stride + k - padding
                        if row < 0 or row >= height:
                            continue
                        entry = (of * height + row) * width * groups + which
                        line_at = sums_at + (line * line_width + margin) * row_bytes
                        if by_line:
                            _add_line(
                                sums_at + line * line_width * row_bytes, first.ctypes.data + 8 * entry, groups,
                                width, places_at, values_at, weights + (kernel - 1) * tap_bytes, -tap_bytes, kernel,
                                vectors,
                            )  # fmt: skip
                            continue
                        for column in range(width):
                            i = first[entry]
                            count = first[entry + 1] - i
                            entry += groups
                            t = 0
                            while t < meets[column]:  # once, unless the kernel is wide
                                _add_rows(
                                    line_at + (out[column] - t) * row_bytes, -row_bytes,
                                    places_at + 4 * i, values_at + size * i, count,
                                    weights + (tap[column] + t * stride) * tap_bytes,
                                    stride * tap_bytes, min(taps, meets[column] - t), vectors,
                                )  # fmt: skip
                                t += taps
            to = y.ctypes.data + (image * out_height * out_width * outputs + part * block) * size
            for line in range(batch * out_height):
                for column in range(out_width):
                    source = sums_at + (line * line_width + margin + column) * row_bytes
                    _copy(to + (line * out_width + column) * outputs * size, source, part_bytes)
    keep(places), keep(values), keep(sums)


@compiled
def _weight_gradient(x, quantum, gy, dw, lo, hi, height, width, channels, out_height, out_width, outputs, kernel, stride,
                     padding, taps, vectors, lines, images):  # fmt: skip
    """Add the weight gradient of images lo..hi to dw, laid out as w in `_forward`; a byte in x stands for `quantum`.

    Output gradients are padded with zeros, so every tap of an input is at a fixed offset. With a stride, an input meets
    every stride-th tap; inputs with the same taps share a list. lines: output rows used together.
    """
    size = 4
    row_bytes = vectors * VECTOR
    block = row_bytes // size
    reach = (kernel - 1) // stride
    frame_height = max(out_height, (height - 1 + padding) // stride + 1) + reach
    frame_width = max(out_width, (width - 1 + padding) // stride + 1) + reach
    kinds = min(stride, kernel)
    lists = kinds * kinds * channels
    # An odd length avoids cache conflicts between the lists' beginnings.
    length = images * ((height + stride - 1) // stride) * ((width + stride - 1) // stride) + 17
    places = np.empty(lists * length, np.int32)
    values = np.empty(len(places), np.float32)
    counts = np.empty(lists, np.int64)
    ends = np.zeros((images * height + 1, lists), np.int32)  # entries of each list up to an input row
    filled, filled_values = np.empty(channels + VECTOR, np.int32), np.empty(channels + VECTOR, np.float32)
    frame = np.zeros(images * frame_height * frame_width * block + VECTOR, np.float32)
    frame_at = frame.ctypes.data
    frame_at += (VECTOR - frame_at % VECTOR) % VECTOR
    strips = (out_height + lines - 1) // lines  # per image; if 1, a strip is `whole` images
    whole = max(1, lines // out_height)
    for image in range(lo, hi, images):
        batch = min(images, hi - image)
        counts[:] = 0
        for line in range(batch * height):
            of, row = line // height, line % height
            kind_row = (row + padding) % stride
            for column in range(width if kind_row < kernel else 0):
                kind_column = (column + padding) % stride
                if kind_column >= kernel:
                    continue
                address = x.ctypes.data + ((image * height + line) * width + column) * channels * x.itemsize
                n = _compress(x[0], quantum, address, channels, 0, 1, filled.ctypes.data, filled_values.ctypes.data)
                position = (of * frame_height + (row + padding) // stride + reach) * frame_width
                position += (column + padding) // stride + reach
                kind = (kind_row * kinds + kind_column) * channels
                for i in range(n):
                    which = kind + filled[i]
                    entry = which * length + counts[which]
                    places[entry] = position * row_bytes
                    values[entry] = filled_values[i]
                    counts[which] += 1
            for which in range(lists):
                ends[line + 1, which] = counts[which]

        for part in range((outputs + block - 1) // block):
            part_bytes = min(block, outputs - part * block) * size
            for line in range(batch * out_height):
                of, out_row = line // out_height, line % out_height
                to = frame_at + ((of * frame_height + out_row + reach) * frame_width + reach) * row_bytes
                source = gy.ctypes.data + ((image * out_height + line) * out_width * outputs + part * block) * size
                if block == outputs:
                    _copy(to, source, out_width * row_bytes)
                else:
                    for column in range(out_width):
                        _copy(to + column * row_bytes, source + column * outputs * size, part_bytes)
            for strip in range((batch + whole - 1) // whole * strips):
                of, line = strip // strips * whole, strip % strips * lines
                for k in range(kernel):
                    if whole > 1:
                        begin, end = of * height, min(batch, of + whole) * height
                    else:
                        begin = of * height + min(height, max(0, line * stride + k - padding))
                        end = of * height + min(height, max(0, min(line + lines, out_height) * stride + k - padding))
                    if begin >= end:
                        continue
                    for kind in range(kinds):
                        meets = (kernel - kind + stride - 1) // stride
                        for t in range(0, meets, taps):
                            rows = frame_at - (k // stride * frame_width + t) * row_bytes
                            to = dw.ctypes.data + (
                                ((part * kernel + k) * kernel + kind + t * stride) * channels * row_bytes
                            )  # fmt: skip
                            for channel in range(channels):
                                which = (k % stride * kinds + kind) * channels + channel
                                i = ends[begin, which]
                                _add_rows(
                                    to + channel * row_bytes, stride * channels * row_bytes,
                                    places.ctypes.data + 4 * (which * length + i),
                                    values.ctypes.data + size * (which * length + i), ends[end, which] - i,
                                    rows, -row_bytes, min(taps, meets - t), vectors,
                                )  # fmt: skip
    keep(frame)


@compiled
def _arrange(w, packed, lo, hi, rows, vectors, back):
    """Copy w [parts * vectors * lanes, rows] to packed [parts, rows, vectors, lanes], lo <= vector < hi, or `back`."""
    for vector in range(lo, hi):
        for row in range(0, rows, LANES):
            one = w.ctypes.data + (vector * LANES * rows + row) * 4
            other = packed.ctypes.data + ((vector // vectors * rows + row) * vectors + vector % vectors) * VECTOR
            if back:
                _transpose(other, vectors * VECTOR, one, rows * 4)
            else:
                _transpose(one, rows * 4, other, vectors * VECTOR)


@compiled
def _pack(x, bits, to, lo, hi, factor, quantum):
    """Write x[lo:hi] * factor to the bytes `to`; return whether they times `quantum` are x again, bit for bit (`bits`).

    Stops at the first piece that does not fit.
    """
    for start in range(lo, hi, PIECE):
        stop = min(hi, start + PIECE)
        given, of_given, packed, differs = x[start:stop], bits[start:stop], to[start:stop], np.int32(0)
        for i in range(len(given)):
            value = given[i] * factor
            value = value if value < np.float32(255) else np.float32(255)  # 255 for NaN too
            byte = np.int32(value if value > np.float32(0) else np.float32(0))
            packed[i] = byte
            differs |= np.int32(np.float32(byte) * quantum != given[i]) | (of_given[i] & np.int32(-(2**31)))  # -0.0
        if differs:
            return False
    return True


class Shape:
    """Sizes and blocking of a convolution: x [n, height, width, channels], square kernel."""

    def __init__(self, n, height, width, channels, outputs, kernel, stride, padding):
        self.n, self.height, self.width, self.channels = n, height, width, channels
        self.outputs, self.kernel, self.stride, self.padding = outputs, kernel, stride, padding
        self.out_height, self.out_width = ((k + 2 * padding - kernel) // stride + 1 for k in (height, width))
        self.taps = min(TAPS, -(-kernel // stride))
        self.arguments = (
            height, width, channels, self.out_height, self.out_width, outputs, kernel, stride, padding, self.taps
        )  # fmt: skip

    def _vectors(self, most: int) -> int:
        """Vectors per block: the most that divide a row evenly and whose sums for all taps fit the registers."""
        row = -(-self.outputs * 4 // VECTOR)
        most = min(8, most, REGISTERS // self.taps)
        return max(v for v in range(1, 9) if v == 1 or (row % v == 0 and v <= most))

    def _images(self, most: float, least: int = 1) -> int:
        """Images together: few for a 1x1 kernel, since the lists of more would leave the cache."""
        few = max(least, 64 // (self.out_height * self.out_width)) if self.kernel == self.stride == 1 else most
        return max(1, min(self.n, int(most), int(few)))

    def forward_cut(self, density: float) -> tuple[int, int, int]:
        """Return (vectors per block, channels together, images together) for an input of this density."""
        vectors = self._vectors(8)
        room = _cache_size(0, 2**15) * (4 if density < FEW else 1)
        groups = -(-self.channels // max(16, room // (self.kernel * vectors * VECTOR)))
        entries = density * self.height * self.width * self.channels * (4 + 4)
        sums = self.out_height * (self.width + self.kernel) * vectors * VECTOR
        return vectors, -(-self.channels // groups), self._images(0.2 * _cache_size(2, 2**19) / (entries + sums))

    def gradient_cut(self, density: float) -> tuple[int, int, int]:
        """Return (vectors per block, output rows together, images together) for an input of this density."""
        room = 0.4 * _cache_size(2, 2**19)
        vectors = self._vectors(int(room / (self.kernel**2 * self.channels * VECTOR)))
        frame_height, frame_width = (
            max(out, (size - 1 + self.padding) // self.stride + 1) + (self.kernel - 1) // self.stride
            for out, size in ((self.out_height, self.height), (self.out_width, self.width))
        )
        line = frame_width * vectors * VECTOR
        lines = max(1, int(_cache_size(0, 2**15) * (1.6 if density < FEW else 0.8) / line))
        return vectors, lines, self._images(room / (frame_height * line), lines // self.out_height)

    def packed(self, vectors: int) -> tuple[int, ...]:
        """Packed weights' shape: output blocks, kernel, kernel, channels, outputs per block."""
        block = vectors * LANES
        return -(-self.outputs // block), self.kernel, self.kernel, self.channels, block


def _exchange(w: Tensor, packed: Tensor, vectors: int, threads: int, back: bool) -> None:
    """Copy w [outputs, channels, k, k] to packed [parts, k, k, channels, block], or `back`."""
    rows = w[0].numel()
    if len(w) % packed.shape[-1] or rows % LANES or not w.is_contiguous(memory_format=torch.channels_last):
        for piece, part in zip(w.permute(0, 2, 3, 1).split(packed.shape[-1]), packed, strict=True):
            target = part.permute(3, 0, 1, 2)[: len(piece)]
            piece.copy_(target) if back else target.copy_(piece)
        return
    arrays, parts = (_flat(w.permute(0, 2, 3, 1)), _flat(packed)), cuts(len(w) // LANES, min(threads, len(w) // LANES))
    in_parallel(lambda lo, hi: _arrange(*arrays, lo, hi, rows, vectors, back), parts, threads)


def forward(x: Tensor, w: Tensor, bias: Tensor | None, shape: Shape, threads: int, density: float) -> Tensor:
    """Sparse convolution of x [n, channels, height, width] with w [outputs, channels, k, k].

    x and the result are channels last. density: approximate nonzero fraction of x.
    """
    vectors, *cut = shape.forward_cut(density)
    packed = w.new_empty(shape.packed(vectors))
    _exchange(w, packed, vectors, threads, back=False)
    padded = w.new_zeros(len(packed) * packed.shape[-1])
    if bias is not None:
        padded[: shape.outputs] = bias
    y = w.new_empty(shape.n, shape.out_height, shape.out_width, shape.outputs)
    arrays = [_flat(t) for t in (x.permute(0, 2, 3, 1), packed, padded, y)]
    in_parallel(
        lambda lo, hi: _forward(*arrays, lo, hi, *shape.arguments, vectors, *cut), cuts(shape.n, min(threads, shape.n)), threads
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def weight_gradient(
    x: Tensor, gy: Tensor, w: Tensor, shape: Shape, threads: int, density: float, quantum: float = 1.0
) -> Tensor:
    """Gradient of w, in w's memory format, from x and gy, both channels last.

    x: of w's dtype, or bytes worth `quantum` each (see `to_bytes`); density: its approximate nonzero fraction.
    """
    vectors, *cut = shape.gradient_cut(density)
    threads = min(threads, shape.n)
    packed = w.new_zeros(threads, *shape.packed(vectors))
    inputs, outputs = (_flat(t.permute(0, 2, 3, 1)) for t in (x, gy))
    quantum = outputs.dtype.type(quantum)
    in_parallel(
        lambda sums, lo, hi: _weight_gradient(
            inputs, quantum, outputs, sums, lo, hi, *shape.arguments, vectors, *cut
        ),
        [(_flat(packed[i]), *edges) for i, edges in enumerate(cuts(shape.n, threads))], threads,
    )  # fmt: skip
    gradient = torch.empty_like(w)
    _exchange(gradient, packed[0] if threads == 1 else packed.sum(0), vectors, threads, back=True)
    return gradient


def to_bytes(x: Tensor, threads: int) -> tuple[Tensor, float]:
    """Pack x, float32 [n, channels, height, width] and channels last, into bytes with their unit.

    The unit is 1 or 1/4; it is 0 where x has a value other than 0..255 times the unit.
    """
    packed = torch.empty_like(x, dtype=torch.uint8)
    values, to = (_flat(t.permute(0, 2, 3, 1)) for t in (x, packed))
    for factor in (np.float32(1), np.float32(4)):
        fits = in_parallel(
            lambda lo, hi, factor=factor: _pack(values, values.view(np.int32), to, lo, hi, factor, 1 / factor),
            cuts(len(values), min(threads, len(values))), threads,
        )  # fmt: skip
        if all(fits):
            return packed, 1 / float(factor)
    return packed, 0.0


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().view(-1).numpy()
