"""Damaged files: whatever bytes are changed, a reader gives what can be, or a sentence that says what is wrong and where."""

import gzip
import pickle
import tracemalloc
import warnings

import fixtures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_repro.data.formats import FormatError, read_aedat2, read_aedat3, read_atis_bin, read_gesture_labels
from snn_repro.data.sets.small_images import cifar_batch, idx

MEMORY = 24e6  # bytes that reading a damaged file of a few kB may take
CUBE = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
IMAGES = np.full((2, 3, 32, 32), 7, np.uint8)


def recording(size=(128, 128), **options):
    return fixtures.random_recording(np.random.default_rng(1), 60, size, **options)


def events(height, width, record):
    """At most one event a record of the file, all on the sensor."""

    def check(found, data):
        t, x, y, p = found
        assert len(t) == len(x) == len(y) == len(p) <= len(data) / record and set(p) <= {0, 1}
        assert not len(t) or (0 <= x.min() <= x.max() < width and 0 <= y.min() <= y.max() < height)

    return check


def labelled(found, data):
    assert found and all(1 <= gesture <= 11 and 0 <= start < end for gesture, start, end in found)


def array(found, data):
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    assert found.dtype == np.uint8 and found.size and data.endswith(found.tobytes())


def images(found, data):
    """Python's own unpickler cannot be let loose on damaged files; but the pixels must be bytes of the file, in one piece."""
    pixels, labels = found
    assert pixels.shape == (len(labels), 3, 32, 32) and len(labels) and 0 <= labels.min() <= labels.max() <= 9
    assert pixels.tobytes() in data or pixels.reshape(len(pixels), -1).T.tobytes() in data


# name: (the reader, a good file, what holds of all that the reader gives)
FORMATS = {
    "aedat2": (read_aedat2, fixtures.encode_aedat2(recording(), external=(5,)), events(128, 128, 8)),
    "aedat3": (
        read_aedat3, fixtures.encode_aedat3(recording(start=2**31 - 50_000), invalid=(3,), per_packet=20),
        events(128, 128, 8),
    ),
    "atis": (read_atis_bin, fixtures.encode_atis(recording((180, 240), start=8192), (20,)), events(180, 240, 5)),
    "labels": (read_gesture_labels, b"class,startTime_usec,endTime_usec\n1,100,200\n8,300,400\n11,600,700\n", labelled),
    "idx": (idx, fixtures.encode_idx(CUBE), array),
    "idx_gz": (idx, fixtures.encode_idx(CUBE, packed=True), array),
    "cifar": (cifar_batch, fixtures.encode_cifar_batch(IMAGES, np.array([3, 9])), images),
    "cifar_protocol5": (cifar_batch, pickle.dumps({"labels": [3, 9], "data": IMAGES.reshape(2, -1)}, 5), images),
}  # fmt: skip


def read(name: str, data: bytes) -> bool:
    """Whether a file can be read; no other exception, and no memory out of proportion, gets past this."""
    reader, _, check = FORMATS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="name: (left out|kept|headers and valid bits)")
        tracemalloc.start()
        try:
            found = reader(data, "name")
        except FormatError as error:
            assert error.name == "name" and 0 <= error.offset <= max(len(data), 200) and error.reason
            assert str(error).startswith(f"name, byte {error.offset}: ") and len(str(error)) < 400
            return False
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEMORY
    check(found, data)
    return True


place = st.one_of(st.integers(0, 200), st.integers(0, 2**14))  # the head of a file decides most
change = st.tuples(place, st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 4, bytes(4)])), st.integers(0, 9))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(changes=st.lists(change, max_size=4), end=st.one_of(st.none(), place), other=st.binary(max_size=300))
def test_damaged_files(name, changes, end, other):
    """Bytes replaced, put in and taken out; files that break off, and files that are something else."""
    good = data = FORMATS[name][1]
    for at, new, gone in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + gone :]
    readable = read(name, data[:end])
    assert readable or data[:end] != good
    assert read(name, other) == (name == "atis" and len(other) % 5 == 0)  # any five bytes are an ATIS record


@pytest.mark.parametrize("name", FORMATS)
def test_every_flipped_bit_at_the_head(name):
    data = bytearray(FORMATS[name][1])
    readable = set()
    for bit in range(0, 8 * min(len(data), 300), 5):
        data[bit // 8] ^= 1 << bit % 8
        readable.add(read(name, bytes(data)))
        data[bit // 8] ^= 1 << bit % 8
    assert readable == ({True} if name == "atis" else {True, False})
