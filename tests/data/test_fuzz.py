"""Damaged files: whatever bytes are changed, a reader decodes what is there or says what is wrong, and where.

Each format has a second decoder here, slow and simple, that goes through the file byte by byte. The reader must
refuse exactly the files that this one refuses and otherwise give the same values, so nothing can be lost silently.
"""

import gzip
import pickle
import struct
import tracemalloc
import warnings
from datetime import timedelta

import fixtures
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snn_repro.data.events import integrate
from snn_repro.data.formats import (
    FormatError,
    read_aedat2,
    read_aedat3,
    read_atis_bin,
    read_gesture_labels,
)
from snn_repro.data.sets.small_images import cifar_batch, idx
from snn_repro.errors import DataError

MEMORY = 24e6  # bytes that reading a damaged file of a few kB may take


class Refused(Exception):
    """The second decoder's verdict."""


def recording(size=(128, 128), **options):
    return fixtures.random_recording(np.random.default_rng(1), 60, size, **options)


# ------------------------------------------------------------------ the second decoders


def header_end(data: bytes, magic: bytes, last: bytes | None) -> int:
    if data[: len(magic)] != magic:
        raise Refused
    at = 0
    while at < len(data) and data[at] == ord("#"):
        end = data.find(b"\n", at)
        if end < 0 or any(byte < 32 and byte not in b"\t\r" for byte in data[at:end]):
            raise Refused
        line, at = data[at:end].rstrip(b"\r"), end + 1
        if line == last:
            return at
    if last:
        raise Refused
    return at


def slow_aedat2(data: bytes):
    at, rows = header_end(data, b"#!AER-DAT2.0", None), []
    while at < len(data):
        if len(data) - at < 8:
            raise Refused
        address, time = struct.unpack_from(">II", data, at)
        at += 8
        if address & 0x7FFF0000:
            raise Refused
        if not address & 0x80008000:
            rows.append((time, 127 - (address >> 8 & 127), 127 - (address >> 1 & 127), 1 - (address & 1)))
    return rows


def slow_aedat3(data: bytes):
    at, rows = header_end(data, b"#!AER-DAT3.1", b"#!END-HEADER"), []
    while at < len(data):
        if len(data) - at < 28:
            raise Refused
        kind, _, size, offset, overflow, capacity, number, valid = struct.unpack_from("<HHIIIIII", data, at)
        at += 28
        if at + size * capacity > len(data) or not valid <= number <= capacity or kind > 13:
            raise Refused
        if kind == 1:
            if size != 8 or offset != 4:
                raise Refused
            for i in range(number):
                word, time = struct.unpack_from("<II", data, at + 8 * i)
                if word & 1 or valid == number:
                    x, y = word >> 17, word >> 2 & 0x7FFF
                    if x > 127 or y > 127:
                        raise Refused
                    rows.append((time | overflow << 31, x, y, word >> 1 & 1))
        at += size * capacity
    return rows


def slow_atis(data: bytes):
    if len(data) % 5:
        raise Refused
    rows, extra = [], 0
    for at in range(0, len(data), 5):
        x, y, high, middle, low = data[at : at + 5]
        if y == 240:
            extra += 8192
        elif x < 240 and y < 180:
            rows.append((extra + ((high & 127) << 16 | middle << 8 | low), x, y, high >> 7))
    return rows


def slow_idx(data: bytes):
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except Exception:
            raise Refused from None
    if len(data) < 4 or data[:2] != b"\0\0" or not 1 <= data[3] <= 8:
        raise Refused
    at = 4 + 4 * data[3]
    if data[2] != 8 or len(data) < at:
        raise Refused
    shape, count = struct.unpack_from(f">{data[3]}I", data, 4), 1
    for n in shape:
        count *= n
    if not count or len(data) - at != count:
        raise Refused
    return np.array(list(data[at:]), np.uint8).reshape(shape)


def slow_labels(data: bytes):
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    if not lines or lines[0].strip() != b"class,startTime_usec,endTime_usec":
        raise Refused
    rows = []
    for line in lines[1:]:
        if line.strip():
            fields = line.strip().split(b",")
            lengths = [len(field) for field in fields]
            if len(fields) != 3 or not all(field.isdigit() for field in fields) or max(lengths) > 18 or lengths[0] > 2:
                raise Refused
            gesture, start, end = map(int, fields)
            if not 1 <= gesture <= 11 or start >= end:
                raise Refused
            rows.append((gesture, start, end))
    if not rows:
        raise Refused
    return rows


# ------------------------------------------------------------------ the formats


def same_events(size):
    def compare(found, rows, data):
        assert list(zip(*(values.tolist() for values in found), strict=True)) == rows
        for by in ("number", "time"):
            try:
                assert integrate(found, 3, size, by).sum() == len(found.t)
            except DataError as error:
                assert by == "time" and "before it begins" in str(error)

    return compare


def same_array(found, expected, data):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(found, expected)


def same_rows(found, expected, data):
    assert found == expected


def plausible_cifar(found, _, data):
    """Python's own unpickler cannot be let loose on damaged files; but the pixels must be bytes of the file, in one piece."""
    images, labels = found
    assert images.shape == (len(labels), 3, 32, 32) and len(labels)
    assert labels.min() >= 0 and labels.max() <= 9
    assert images.tobytes() in data or images.reshape(len(images), -1).T.tobytes() in data


CUBE = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
GOOD = {
    "aedat2": fixtures.encode_aedat2(recording(), external=(5,)),
    "aedat3": fixtures.encode_aedat3(recording(start=2**31 - 50_000), invalid=(3,), per_packet=20),
    "atis": fixtures.encode_atis(recording((180, 240), start=8192), overflows=(20,)),
    "labels": b"class,startTime_usec,endTime_usec\n1,100,200\n8,300,400\n8,350,500\n11,600,700\n",
    "idx": fixtures.encode_idx(CUBE),
    "idx_gz": fixtures.encode_idx(CUBE, packed=True),
    "cifar": fixtures.encode_cifar_batch(np.full((2, 3, 32, 32), 7, np.uint8), np.array([3, 9])),
    "cifar_protocol5": pickle.dumps({"labels": [3, 9], "data": np.full((2, 3072), 7, np.uint8)}, 5),
}
# name: (the reader, the second decoder, the comparison of their results)
FORMATS = {
    "aedat2": (read_aedat2, slow_aedat2, same_events((128, 128))),
    "aedat3": (read_aedat3, slow_aedat3, same_events((128, 128))),
    "atis": (read_atis_bin, slow_atis, same_events((180, 240))),
    "labels": (read_gesture_labels, slow_labels, same_rows),
    "idx": (idx, slow_idx, same_array),
    "idx_gz": (idx, slow_idx, same_array),
    "cifar": (cifar_batch, None, plausible_cifar),
    "cifar_protocol5": (cifar_batch, None, plausible_cifar),
}


# ------------------------------------------------------------------ damage

EXTREMES = [struct.pack(order + "I", v) for order in "<>" for v in (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1)]
changes = st.lists(
    st.tuples(
        st.sampled_from(["bit", "byte", "number", "cut", "remove", "insert", "repeat", "swap"]),
        st.one_of(st.integers(0, 200), st.integers(0, 2**14)),  # the head of a file decides most
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=5,
)


def damaged(data: bytes, steps) -> bytes:
    out = bytearray(data)
    for kind, place, value in steps:
        at = place % (len(out) or 1)
        if kind == "cut":
            del out[at:]
        elif kind == "remove":
            del out[at : at + 1 + value % 16]
        elif kind == "insert":
            out[at:at] = bytes([value]) * (1 + value % 9)
        elif kind == "repeat":
            out[at:at] = out[at : at + value]
        elif not out:
            continue
        elif kind == "bit":
            out[at] ^= 1 << value % 8
        elif kind == "byte":
            out[at] = value
        elif kind == "number":
            out[at : at + 4] = EXTREMES[value % len(EXTREMES)]
        elif kind == "swap":
            other = (at * 7 + value) % len(out)
            out[at], out[other] = out[other], out[at]
    return bytes(out)


def traced(read, data: bytes):
    """The reader's result, or its FormatError; no other exception, and no memory out of proportion, gets past this."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="name: (left out|kept|headers and valid bits)")
        tracemalloc.start()
        try:
            return read(data, "name")
        except FormatError as error:
            return error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEMORY


def examine(name: str, data: bytes) -> bool:
    """Hold the reader's outcome against the second decoder's; returns whether the file could be read."""
    read, slow, compare = FORMATS[name]
    found = traced(read, data)
    if not isinstance(found, FormatError):
        compare(found, slow(data) if slow else None, data)
        return True
    assert found.name == "name" and 0 <= found.offset <= max(len(data), 200) and found.reason
    assert str(found).startswith(f"name, byte {found.offset}: ") and len(str(found)) < 400
    if slow:
        with pytest.raises(Refused):
            slow(data)
    return False


def budget(examples):
    fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
    deadline = timedelta(seconds=20)
    return settings(
        max_examples=examples, derandomize=True, deadline=deadline, database=None, suppress_health_check=fine
    )


@pytest.mark.parametrize("name", FORMATS)
@budget(100)
@given(steps=changes)
def test_damaged_files(name, steps):
    examine(name, damaged(GOOD[name], steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@budget(10_000)
@given(steps=changes)
def test_very_many_damaged_files(name, steps):
    examine(name, damaged(GOOD[name], steps))


@pytest.mark.parametrize("name", FORMATS)
def test_bits_of_the_first_bytes(name):
    outcomes = {examine(name, GOOD[name])}
    assert outcomes == {True}
    for bit in range(0, 8 * min(len(GOOD[name]), 300), 3):
        data = bytearray(GOOD[name])
        data[bit // 8] ^= 1 << bit % 8
        outcomes.add(examine(name, bytes(data)))
    assert outcomes == ({True} if name == "atis" else {True, False})  # any five bytes are an ATIS record


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(name):
    good = GOOD[name]
    for end in range(0, len(good), max(1, len(good) // 100)):
        examine(name, good[:end])


@pytest.mark.parametrize("name", FORMATS)
@budget(50)
@given(data=st.binary(max_size=300))
def test_files_that_are_something_else(name, data):
    assert examine(name, data) == (name == "atis" and len(data) % 5 == 0)
