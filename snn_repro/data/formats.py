"""Readers of the published file formats: bytes in, arrays out, and one sentence for what is not as it should be.

    read_aedat2          AEDAT 2.0, CIFAR10-DVS's `.aedat`
    read_aedat3          AEDAT 3.1, DVS128 Gesture's `.aedat`; read_gesture_labels: its `_labels.csv`
    read_atis_bin        40-bit ATIS events, N-Caltech101's `.bin`

Each takes a path, an open binary file or the bytes themselves (a member of a zip file, say), and `name`, what to
call it in errors. A file that breaks off, even inside its last record, is an error and never a shorter recording.
No size found in a file is believed before the bytes are seen to be there.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from snn_repro.data.events import Events
from snn_repro.errors import DataError

_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
Source = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO


class FormatError(DataError):
    """A file is not what its format promises: `name`, the byte `offset` at which that shows, if one does, and the `reason`."""

    def __init__(self, name: str, offset: int | None, reason: str):
        super().__init__(name, offset, reason)  # all three, so that the error survives a process boundary
        self.name, self.offset, self.reason = name, offset, reason

    def __str__(self) -> str:
        return f"{self.name}{'' if self.offset is None else f', byte {self.offset}'}: {self.reason}"


def _bytes(source: Source, name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), name or "<bytes>"
    if isinstance(source, str | os.PathLike):
        try:
            return Path(source).read_bytes(), name or os.fspath(source)
        except OSError as error:
            raise DataError(f"{name or source} cannot be read: {error.strerror or error}") from None
    return bytes(source.read()), name or str(getattr(source, "name", "<stream>"))


def _after_header(data: bytes, name: str, magic: bytes, last_line: bytes | None = None) -> int:
    """Offset of the first byte after the ASCII lines that begin with '#', or after `last_line`; LF or CRLF."""
    if not data.startswith(magic):
        raise FormatError(name, 0, f"the file does not begin with {magic.decode()}")
    at = 0
    while data[at : at + 1] == b"#":
        end = data.find(b"\n", at)
        if end < 0 or _BINARY.search(data, at, end):
            raise FormatError(name, at, "a header line has no end or holds binary data")
        line, at = data[at:end], end + 1
        if line.rstrip(b"\r") == last_line:
            return at
    if last_line:
        raise FormatError(name, at, f"the header has no line {last_line.decode()}")
    return at


def _whole_records(data: bytes, start: int, size: int, name: str) -> None:
    rest = (len(data) - start) % size
    if rest:
        raise FormatError(
            name, len(data) - rest, f"the last record has {rest} of its {size} bytes: the file breaks off"
        )


def read_aedat2(source: Source, name: str | None = None) -> Events:
    """AEDAT 2.0 of a DVS128 sensor (128 x 128), as CIFAR10-DVS uses it.

    After the header, records of a big-endian 32-bit address and a 32-bit time in microseconds. Address bit 0 is
    the polarity a, bits 1..7 are a column b, bits 8..14 a row c; the result follows the decoding that published
    results use: x = 127 - c, y = 127 - b, p = 1 - a. Records with bit 15 (external) or 31 (special) set come
    from no pixel and are left out. Raises FormatError.
    """
    data, name = _bytes(source, name)
    start = _after_header(data, name, b"#!AER-DAT2.0")
    _whole_records(data, start, 8, name)
    words = np.frombuffer(data, ">u4", offset=start).reshape(-1, 2)
    address = words[:, 0].astype(np.uint32)
    used = int(np.bitwise_or.reduce(address, initial=0))
    if used & 0x7FFF0000:
        i = int(np.argmax(address & 0x7FFF0000 != 0))
        raise FormatError(
            name, start + 8 * i, f"address {address[i]:#010x} has bits set that a DVS128 sensor does not use"
        )
    t = words[:, 1].astype(np.int64)
    if used & 0x80008000:
        pixel = address & 0x80008000 == 0
        address, t = address[pixel], t[pixel]
    low, high = address.astype(np.uint8), (address >> 8).astype(np.uint8)
    return Events(t, (127 - high).astype(np.int16), (127 - (low >> 1)).astype(np.int16), 1 - (low & 1))


_PACKET = struct.Struct("<HHIIIIII")  # type, source, size, time offset, time overflow, capacity, number, valid
_POLARITY, _LAST_TYPE = 1, 13


def read_aedat3(source: Source, name: str | None = None, size: tuple[int, int] | None = (128, 128)) -> Events:
    """AEDAT 3.1, as DVS128 Gesture uses it: the valid polarity events of all packets, in recorded order.

    Packets of a 28-byte little-endian header and eventCapacity events of eventSize bytes, of which the first
    eventNumber are used. A polarity event is a 32-bit word (bit 0 valid, bit 1 polarity, bits 2..16 y, bits
    17..31 x) and a 32-bit time; t = time | eventTSOverflow << 31, in microseconds. Packets of other types are
    skipped.

    eventValid, the header's last number, decides which events are valid: where it equals eventNumber, all
    are, whatever their own valid bits say (the reader behind published results never looks at these);
    where it is less, those whose bit is set. A warning counts the events that the two tell differently of.

    size: (H, W) that x and y must lie in, None to accept all. Raises FormatError.
    """
    data, name = _bytes(source, name)
    at = _after_header(data, name, b"#!AER-DAT3.1", last_line=b"#!END-HEADER")
    packets = []  # (offset of the events, how many, how many of them valid, time overflow)
    while at < len(data):
        left = len(data) - at - _PACKET.size
        if left < 0:
            raise FormatError(name, at, f"{len(data) - at} bytes where a packet header of 28 should be")
        kind, _, event_size, time_at, overflow, capacity, number, valid = _PACKET.unpack_from(data, at)
        if capacity * event_size > left:
            promised = f"a packet of {capacity} events of {event_size} bytes"
            raise FormatError(name, at, f"{promised}, but the file ends after {left} more bytes")
        if not valid <= number <= capacity:
            counts = f"eventValid {valid}, eventNumber {number}, eventCapacity {capacity}"
            raise FormatError(name, at, f"a packet with {counts}: these may not decrease")
        if kind == _POLARITY:
            if (event_size, time_at) != (8, 4):
                raise FormatError(name, at, f"a polarity packet of {event_size}-byte events; they have 8 bytes")
            if number:
                packets.append((at + _PACKET.size, number, valid, overflow))
        elif kind > _LAST_TYPE:
            raise FormatError(name, at, f"a packet of type {kind}, which AEDAT 3.1 does not define")
        at += _PACKET.size + capacity * event_size
    return _polarity_events(data, packets, name, size)


def _polarity_events(data: bytes, packets: list[tuple[int, int, int, int]], name: str, size) -> Events:
    total = sum(number for _, number, *_ in packets)
    events = Events(*(np.empty(total, kind) for kind in (np.int64, np.int16, np.int16, np.uint8)))
    filled, kept, unclear = 0, 0, 0
    for first in range(0, len(packets), 64):  # a few packets at a time: recordings can have 100 MB
        starts, numbers, valids, overflows = zip(*packets[first : first + 64], strict=True)
        parts = [np.frombuffer(data, "<u4", 2 * n, s) for s, n in zip(starts, numbers, strict=True)]
        words = np.concatenate(parts).reshape(-1, 2)
        word, t = np.ascontiguousarray(words[:, 0]), words[:, 1].astype(np.int64)
        if any(overflows):
            t |= np.repeat(np.array(overflows, np.int64) << 31, numbers)
        x, y = (word >> 17).astype(np.int16), (word >> 2 & 0x7FFF).astype(np.int16)
        valid = word & 1 == 1
        if not valid.all() or numbers != valids:
            whole = np.equal(numbers, valids)  # packets whose header counts every event as valid
            counted = np.add.reduceat(valid, np.cumsum((0, *numbers[:-1])), dtype=np.int64)
            unclear += int(np.abs(counted - valids)[~whole].sum())
            trusted = np.repeat(whole, numbers)
            kept += int(np.count_nonzero(trusted & ~valid))
            valid |= trusted
        if size is not None and (x.max(initial=0) >= size[1] or y.max(initial=0) >= size[0]):
            outside = valid & ((x >= size[1]) | (y >= size[0]))
            if outside.any():
                i = int(np.argmax(outside))
                packet = int(np.searchsorted(np.cumsum(numbers), i, side="right"))
                offset = starts[packet] + 8 * (i - sum(numbers[:packet]))
                where = f"x={x[i]}, y={y[i]}, outside of {size[1]} x {size[0]} pixels"
                raise FormatError(name, offset, f"an event at {where}")
        decoded = Events(t, x, y, (word >> 1 & 1).astype(np.uint8))
        if not valid.all():
            decoded = Events(*(values[valid] for values in decoded))
        for target, values in zip(events, decoded, strict=True):
            target[filled : filled + len(values)] = values
        filled += len(decoded.t)
    if kept:
        warnings.warn(
            f"{name}: kept {kept} of {total} events whose own valid bit is 0, because their packets' headers count them"
            " as valid",
            stacklevel=3,
        )
    if unclear:
        warnings.warn(
            f"{name}: headers and valid bits of its packets disagree by {unclear} of {total} events; the bits were followed",
            stacklevel=3,
        )
    return Events(*(values[:filled] for values in events))


def read_gesture_labels(source: Source, name: str | None = None) -> list[tuple[int, int, int]]:
    """The label table of one DVS128 Gesture recording: rows (class 1..11, start, end) in microseconds.

    The rows are given as they are recorded: a class may occur twice, rows may overlap, nothing is sorted. The
    samples are the events with start <= t < end. Raises FormatError.
    """
    data, name = _bytes(source, name)
    data, offset, rows = data.removeprefix(b"\xef\xbb\xbf"), 0, []
    for number, line in enumerate(data.splitlines(keepends=True)):
        if number == 0:
            if line.strip() != b"class,startTime_usec,endTime_usec":
                raise FormatError(name, 0, "the first line is not class,startTime_usec,endTime_usec")
        elif line.strip():
            match = re.fullmatch(rb"(\d{1,2}),(\d{1,18}),(\d{1,18})", line.strip())
            if not match:
                raise FormatError(name, offset, "a line that is not three whole numbers: class,start,end")
            gesture, start, end = (int(field) for field in match.groups())
            if not 1 <= gesture <= 11 or start >= end:
                problem = f"class {gesture} from {start} to {end}"
                raise FormatError(name, offset, f"{problem}: classes are 1 to 11 and end after their start")
            rows.append((gesture, start, end))
        offset += len(line)
    if not rows:
        raise FormatError(name, offset, "the table has no rows")
    return rows


def read_atis_bin(source: Source, name: str | None = None, size: tuple[int, int] = (180, 240)) -> Events:
    """40-bit events of an ATIS sensor, as N-Caltech101 (180 x 240 pixels) and N-MNIST use them.

    Five bytes an event: x, y, then polarity (1 bit) and time (23 bits, microseconds, big-endian). A record with
    y = 240 is no event: from there on, 2^13 microseconds are added to all times. Events outside of `size`
    (H, W) are left out with a warning that counts them. Raises FormatError.
    """
    data, name = _bytes(source, name)
    _whole_records(data, 0, 5, name)
    raw = np.frombuffer(data, np.uint8).reshape(-1, 5)
    x, y = raw[:, 0].astype(np.int16), raw[:, 1].astype(np.int16)
    t = raw[:, 4] | raw[:, 3].astype(np.int64) << 8 | (raw[:, 2] & 127).astype(np.int64) << 16
    overflow = y == 240
    if overflow.any():
        t += np.cumsum(overflow) << 13
    outside = ~overflow & ((y >= size[0]) | (x >= size[1]))
    if outside.any():
        first = 5 * int(np.argmax(outside))
        warnings.warn(
            f"{name}: left out {np.count_nonzero(outside)} of {len(raw)} events, outside of {size[1]} x {size[0]}"
            f" pixels, the first at byte {first}",
            stacklevel=2,
        )
    events = Events(t, x, y, raw[:, 2] >> 7)
    keep = ~(overflow | outside)
    return events if keep.all() else Events(*(values[keep] for values in events))
