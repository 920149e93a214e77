import pickle
import struct
import tracemalloc
import warnings

import fixtures
import numpy as np
import pytest

from snn_repro.data.events import Events, integrate
from snn_repro.data.formats import (
    FormatError,
    read_aedat2,
    read_aedat3,
    read_atis_bin,
    read_gesture_labels,
)


def assert_same_events(found: Events, written: Events):
    for name in Events._fields:
        values = getattr(found, name)
        assert values.dtype == getattr(written, name).dtype, name
        np.testing.assert_array_equal(values, getattr(written, name), err_msg=name)


def recording(n=200, size=(128, 128), **options) -> Events:
    return fixtures.random_recording(np.random.default_rng(0), n, size, **options)


def refused(read, data, offset, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        read(data, "set/file")
    assert caught.value.name == "set/file" and caught.value.offset == offset
    assert str(caught.value).startswith(f"set/file, byte {offset}: ") and "\n" not in str(caught.value)


# ------------------------------------------------------------------ whole data sets


def test_cifar10_dvs_event_by_event(tmp_path):
    for name, events in fixtures.write_cifar10_dvs(tmp_path, per_class=3, events=50).items():
        assert_same_events(read_aedat2((tmp_path / name).read_bytes()), events)


def test_dvs_gesture_event_by_event(tmp_path):
    trials = fixtures.write_dvs_gesture(tmp_path)
    for file, trial in trials.items():
        path = tmp_path / "DvsGesture" / file
        assert_same_events(read_aedat3(path.read_bytes()), trial.events)
        rows = read_gesture_labels(path.with_name(file.replace(".aedat", "_labels.csv")).read_bytes())
        assert rows == trial.rows and [row[0] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11]
    first, last = list(trials.values())[0], list(trials.values())[-1]
    assert first.rows[9][2] > first.rows[10][1]  # classes 9 and 10 overlap
    assert last.events.t[0] < 2**31 < last.events.t[-1]


def test_ncaltech101_event_by_event(tmp_path):
    for name, events in fixtures.write_ncaltech101(tmp_path).items():
        found = read_atis_bin((tmp_path / "Caltech101" / name).read_bytes())
        assert_same_events(found, events)
        assert integrate(found, 4, (180, 240)).sum() == len(events.t)


def test_a_format_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(FormatError("a.bin", 10, "cut off")))
    assert str(error) == "a.bin, byte 10: cut off" and error.offset == 10


# ------------------------------------------------------------------ AEDAT 2.0


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_aedat2_decodes_as_published(newline):
    address, time = 0x1234, 4_000_000_000  # times are unsigned
    data = b"#!AER-DAT2.0" + newline + b"#note" + newline + struct.pack(">II", address, time)
    t, x, y, p = read_aedat2(data)
    assert t[0] == time and x[0] == 127 - (address >> 8 & 127) and y[0] == 127 - (address >> 1 & 127)
    assert p[0] == 1 - (address & 1)


def test_aedat2_without_events():
    assert all(len(values) == 0 for values in read_aedat2(b"#!AER-DAT2.0\r\n"))


def test_aedat2_leaves_out_what_no_pixel_sent():
    events = recording()
    assert_same_events(read_aedat2(fixtures.encode_aedat2(events, external=(0, 5, 6))), events)


def test_aedat2_refuses():
    good = fixtures.encode_aedat2(recording(10))
    start = len(good) - 80
    refused(read_aedat2, b"", 0, "does not begin with #!AER-DAT2.0")
    refused(read_aedat2, good.replace(b"2.0", b"3.1", 1), 0, "does not begin with")
    refused(read_aedat2, good[:-1], len(good) - 8, "7 of its 8 bytes: the file breaks off")
    refused(read_aedat2, good[: start - 1], good[:start].rindex(b"#"), "a header line has no end")
    damaged = bytearray(good)
    damaged[start + 16 + 1] = 1
    refused(read_aedat2, damaged, start + 16, "address 0x0001.* DVS128")
    damaged = bytearray(good)
    damaged[start - 1] = ord(" ")  # the header's last newline
    refused(read_aedat2, damaged, good[:start].rindex(b"#"), "a header line has no end or holds binary data")


# ------------------------------------------------------------------ AEDAT 3.1

PACKET = "<HHIIIIII"


def test_aedat3_packets():
    events = recording(250)
    for options in ({}, {"others": False}, {"invalid": (0, 3, 249)}, {"per_packet": 1}, {"per_packet": 10_000}):
        assert_same_events(read_aedat3(fixtures.encode_aedat3(events, **options)), events)
    late = recording(250, duration=2**32, start=2**30)
    assert late.t[-1] > 2**32
    assert_same_events(read_aedat3(fixtures.encode_aedat3(late)), late)


def test_aedat3_without_events():
    assert len(read_aedat3(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n").t) == 0


def test_aedat3_refuses():
    good = fixtures.encode_aedat3(recording(10), others=False)
    start = len(good) - 80 - 28

    def with_packet(*fields, at=start):
        return good[:at] + struct.pack(PACKET, *fields) + good[at + 28 :]

    refused(read_aedat3, good.replace(b"3.1", b"2.0", 1), 0, "does not begin with #!AER-DAT3.1")
    refused(read_aedat3, good.replace(b"#!END-HEADER", b"#!END-HEADED"), start, "no line #!END-HEADER")
    refused(read_aedat3, good[:-80] + good[-80:-3], start, "10 events of 8 bytes, but the file ends after 77")
    refused(read_aedat3, good + b"\1\0\1", len(good), "3 bytes where a packet header")
    refused(read_aedat3, with_packet(1, 1, 8, 4, 0, 2**32 - 1, 10, 10), start, "4294967295 events of 8 bytes")
    refused(read_aedat3, with_packet(3, 1, 2**32 - 1, 4, 0, 2**32 - 1, 0, 0), start, "but the file ends after 80")
    refused(read_aedat3, with_packet(1, 1, 8, 4, 0, 10, 11, 10), start, "eventNumber 11, eventCapacity 10")
    refused(read_aedat3, with_packet(1, 1, 8, 4, 0, 10, 9, 10), start, "eventValid 10, eventNumber 9")
    refused(read_aedat3, with_packet(1, 1, 4, 4, 0, 20, 10, 10), start, "4-byte events")
    refused(read_aedat3, with_packet(257, 1, 8, 4, 0, 10, 10, 10), start, "type 257")
    two = fixtures.encode_aedat3(recording(10), others=False, per_packet=6)
    outside = bytearray(two)
    outside[-8:-4] = struct.pack("<I", 128 << 17 | 5 << 2 | 1)
    refused(read_aedat3, outside, len(two) - 8, "x=128, y=5, outside of 128 x 128")
    assert read_aedat3(outside, size=None).x[-1] == 128
    outside[-8] &= 0xFE  # no excuse where the header counts it as valid,
    refused(read_aedat3, outside, len(two) - 8, "x=128, y=5, outside of 128 x 128")
    outside[len(two) - 36 : len(two) - 32] = struct.pack(
        "<I", 3
    )  # but an event that both call invalid may lie anywhere
    assert len(read_aedat3(outside).t) == 9


def test_aedat3_follows_the_header_where_it_counts_events_with_valid_bit_0(recwarn):
    """The reader behind published results keeps them; what header and bits both call invalid is left out."""
    events = recording(50)
    data = bytearray(fixtures.encode_aedat3(events, others=False, per_packet=20))
    first = len(data) - (50 * 8 + 3 * 28)  # the first of three packets: 20, 20 and 10 events
    for i in (0, 7, 19):
        data[first + 28 + 8 * i] &= 0xFE
    assert_same_events(read_aedat3(bytes(data), "set/file"), events)
    assert "set/file: headers and valid bits of its packets disagree about 3 of 50" in str(recwarn.pop().message)
    data[first + 24 : first + 28] = struct.pack("<I", 17)
    keep = np.setdiff1d(np.arange(50), (0, 7, 19))
    assert_same_events(read_aedat3(bytes(data)), Events(*(a[keep] for a in events)))
    assert not recwarn.list  # header and bits agree
    data[first + 24 : first + 28] = struct.pack("<I", 15)
    assert len(read_aedat3(bytes(data), "set/file").t) == 47
    assert "disagree about 2 of 50 events" in str(recwarn.pop().message)


def test_a_huge_capacity_allocates_nothing():
    good = fixtures.encode_aedat3(recording(10), others=False)
    data = good[: len(good) - 108] + struct.pack(PACKET, 1, 1, 8, 4, 0, 2**32 - 1, 2**32 - 1, 0) + good[-80:]
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_aedat3(data)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_gesture_labels_refuses():
    head = b"class,startTime_usec,endTime_usec\n"
    assert read_gesture_labels(head + b"8,5,6\r\n\n8,1,9\n") == [(8, 5, 6), (8, 1, 9)]
    assert read_gesture_labels(b"\xef\xbb\xbf" + head + b"1,1,2") == [(1, 1, 2)]
    refused(read_gesture_labels, b"1,2,3\n", 0, "first line is not class")
    refused(read_gesture_labels, head, len(head), "no rows")
    refused(read_gesture_labels, head + b"1,2,3\n1,2\n", len(head) + 6, "three whole numbers")
    refused(read_gesture_labels, head + b"1,-2,3\n", len(head), "three whole numbers")
    refused(read_gesture_labels, head + b"12,2,3\n", len(head), "class 12 from 2 to 3")
    refused(read_gesture_labels, head + b"1,3,3\n", len(head), "end after their start")


# ------------------------------------------------------------------ ATIS


def test_atis_overflow_records_add_to_the_time():
    data = bytes([5, 6, 0x80 | 1, 2, 3, 0, 240, 0, 0, 0, 9, 240, 0xFF, 1, 1, 7, 8, 0, 0, 1])
    t, x, y, p = read_atis_bin(data)
    assert (
        t.tolist() == [0x010203, 1 + 2 * 8192]
        and x.tolist() == [5, 7]
        and y.tolist() == [6, 8]
        and p.tolist() == [1, 0]
    )
    late = recording(100, (180, 240), duration=20_000_000)  # 23 bits hold 8.4 s
    assert_same_events(read_atis_bin(fixtures.encode_atis(late)), late)


def test_atis_counts_what_it_leaves_out():
    events = recording(50, (180, 240))
    data = bytearray(fixtures.encode_atis(events))
    data[5 * 7 + 1], data[5 * 9] = 200, 250
    with pytest.warns(UserWarning, match="set/file: left out 2 of 50 events, outside of 240 x 180.* first at byte 35"):
        found = read_atis_bin(bytes(data), "set/file")
    assert len(found.t) == 48
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_atis_bin(data, size=(256, 256)).t) == 50


def test_atis_refuses():
    refused(read_atis_bin, bytes(23), 20, "3 of its 5 bytes: the file breaks off")
    assert len(read_atis_bin(b"").t) == 0
