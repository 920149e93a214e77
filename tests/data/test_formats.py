"""What readers decode, and the sentence and place for what they refuse. Damage of all kinds: test_fuzz.py."""

import pickle
import struct
import warnings

import fixtures
import numpy as np
import pytest

from snn_repro.data.events import Events
from snn_repro.data.formats import FormatError, read_aedat2, read_aedat3, read_atis_bin, read_gesture_labels


def assert_same_events(found: Events, written: Events):
    for name in Events._fields:
        values = getattr(found, name)
        assert values.dtype == getattr(written, name).dtype, name
        np.testing.assert_array_equal(values, getattr(written, name), err_msg=name)


def recording(n=200, size=(128, 128), **options) -> Events:
    return fixtures.random_recording(np.random.default_rng(0), n, size, **options)


def changed(data: bytes, *places: tuple[int, bytes]) -> bytes:
    for at, new in places:
        at %= len(data)
        data = data[:at] + new + data[at + len(new) :]
    return data


def packet(*fields: int) -> bytes:
    return struct.pack("<HHIIIIII", *fields)


def test_a_format_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(FormatError("a.bin", 10, "cut off")))
    assert str(error) == "a.bin, byte 10: cut off" and error.offset == 10


DVS, GESTURE = fixtures.encode_aedat2(recording(10)), fixtures.encode_aedat3(recording(10), others=False)
PACKETS = fixtures.encode_aedat3(recording(10), others=False, per_packet=6)
OUTSIDE = changed(PACKETS, (-8, struct.pack("<I", 128 << 17 | 5 << 2 | 1)))
AT, LAST, HEAD = len(GESTURE) - 108, DVS[: len(DVS) - 80].rindex(b"#"), b"class,startTime_usec,endTime_usec\n"


@pytest.mark.parametrize(
    "read, data, offset, reason",
    [
        (read_aedat2, b"", 0, "does not begin with #!AER-DAT2.0"),
        (read_aedat2, DVS[:-1], len(DVS) - 8, "truncated: 7 of its 8 bytes"),
        (read_aedat2, DVS[:-81], LAST, "a header line has no end"),
        (read_aedat2, changed(DVS, (-81, b" ")), LAST, "a header line has no end or holds binary data"),
        (read_aedat2, changed(DVS, (-63, b"\1")), len(DVS) - 64, "address 0x0001.* DVS128"),
        (read_aedat3, DVS, 0, "does not begin with #!AER-DAT3.1"),
        (read_aedat3, GESTURE.replace(b"HEADER", b"HEADED"), AT, "no line #!END-HEADER"),
        (read_aedat3, GESTURE[:-3], AT, "10 x 8 bytes, but only 77 bytes follow"),
        (read_aedat3, GESTURE + b"\1\0\1", len(GESTURE), "3 bytes where a packet header"),
        (read_aedat3, changed(GESTURE, (AT, packet(1, 1, 8, 4, 0, 2**32 - 1, 10, 10))), AT, "4294967295 x 8 bytes"),
        (read_aedat3, changed(GESTURE, (AT, packet(1, 1, 8, 4, 0, 10, 11, 10))), AT, "eventNumber 11, eventCapacity 10"),
        (read_aedat3, changed(GESTURE, (AT, packet(1, 1, 4, 4, 0, 20, 10, 10))), AT, "4-byte events"),
        (read_aedat3, changed(GESTURE, (AT, packet(257, 1, 8, 4, 0, 10, 10, 10))), AT, "type 257"),
        (read_aedat3, OUTSIDE, len(OUTSIDE) - 8, "x=128, y=5, outside of 128 x 128"),
        (read_aedat3, changed(OUTSIDE, (-8, b"\x14")), len(OUTSIDE) - 8, "x=128, y=5, outside of 128 x 128"),
        (read_gesture_labels, b"1,2,3\n", 0, "first line is not class"),
        (read_gesture_labels, HEAD, len(HEAD), "no rows"),
        (read_gesture_labels, HEAD + b"1,2,3\n1,2\n", len(HEAD) + 6, "a line is not class,start,end"),
        (read_gesture_labels, HEAD + b"12,2,3\n", len(HEAD), "class 1 to 11"),
        (read_gesture_labels, HEAD + b"1,3,3\n", len(HEAD), "start < end"),
        (read_atis_bin, bytes(23), 20, "truncated: 3 of its 5 bytes"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_sentence_with_its_place(read, data, offset, reason):
    with pytest.raises(FormatError, match=reason) as caught:
        read(data, "set/file")
    assert caught.value.name == "set/file" and caught.value.offset == offset
    assert str(caught.value).startswith(f"set/file, byte {offset}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_aedat2_decodes_as_published(newline):
    address, time = 0x1234, 4_000_000_000  # times are unsigned
    data = b"#!AER-DAT2.0" + newline + b"#note" + newline + struct.pack(">II", address, time)
    t, x, y, p = read_aedat2(data)
    assert t[0] == time and x[0] == 127 - (address >> 8 & 127) and y[0] == 127 - (address >> 1 & 127)
    assert p[0] == 1 - (address & 1)
    events = recording()
    assert_same_events(read_aedat2(fixtures.encode_aedat2(events, newline, external=(0, 5, 6))), events)


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
    assert read_gesture_labels(b"\xef\xbb\xbf" + HEAD + b"8,5,6\r\n\n8,1,9") == [(8, 5, 6), (8, 1, 9)]


def test_aedat3_follows_the_header_where_it_counts_events_with_valid_bit_0(recwarn):
    """The reader behind published results keeps them; what header and bits both call invalid is left out."""
    events = recording(50)
    data = fixtures.encode_aedat3(events, others=False, per_packet=20)
    first = len(data) - (50 * 8 + 3 * 28)  # the first of three packets: 20, 20 and 10 events
    data = changed(data, *((at, bytes([data[at] & 0xFE])) for at in (first + 28 + 8 * i for i in (0, 7, 19))))
    assert_same_events(read_aedat3(data, "set/file"), events)
    assert "set/file: packet headers and valid bits disagree about 3 of 50" in str(recwarn.pop().message)
    keep = np.setdiff1d(np.arange(50), (0, 7, 19))
    of_both = changed(data, (first + 24, struct.pack("<I", 17)), (first + 28, struct.pack("<I", 300 << 17)))
    assert_same_events(read_aedat3(of_both), Events(*(a[keep] for a in events)))  # an invalid one may lie anywhere
    assert not recwarn.list  # header and bits agree
    assert len(read_aedat3(changed(data, (first + 24, struct.pack("<I", 15))), "set/file").t) == 47
    assert "disagree about 2 of 50 events" in str(recwarn.pop().message)
    assert read_aedat3(OUTSIDE, size=None).x[-1] == 128


def test_atis_overflow_records_add_to_the_time():
    data = bytes([5, 6, 0x80 | 1, 2, 3, 0, 240, 0, 0, 0, 9, 240, 0xFF, 1, 1, 7, 8, 0, 0, 1])
    found = [values.tolist() for values in read_atis_bin(data)]
    assert found == [[0x010203, 1 + 2 * 8192], [5, 7], [6, 8], [1, 0]]
    late = recording(100, (180, 240), duration=20_000_000)  # 23 bits hold 8.4 s
    assert_same_events(read_atis_bin(fixtures.encode_atis(late)), late)


def test_atis_counts_what_it_leaves_out():
    data = changed(fixtures.encode_atis(recording(50, (180, 240))), (5 * 7 + 1, b"\xc8"), (5 * 9, b"\xfa"))
    with pytest.warns(UserWarning, match="set/file: left out 2 of 50 events, outside of 240 x 180.* first at byte 35"):
        assert len(read_atis_bin(data, "set/file").t) == 48
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_atis_bin(data, size=(256, 256)).t) == 50
