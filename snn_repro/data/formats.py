"""Readers of the published file formats: bytes in, arrays out, and one sentence for what is not as it should be.

    read_aedat2          AEDAT 2.0, CIFAR10-DVS's `.aedat`
    read_aedat3          AEDAT 3.1, DVS128 Gesture's `.aedat`; read_gesture_labels: its `_labels.csv`
    read_atis_bin        40-bit ATIS events, N-Caltech101's `.bin`
    read_idx             IDX, Fashion-MNIST's `-ubyte` and `-ubyte.gz`
    read_cifar_batch     one of the Python pickles of CIFAR; read_cifar10, read_cifar100: all of them

Each (but read_cifar10 and read_cifar100, which want a folder or archive) takes a path, an open binary file or
the bytes themselves (a member of a zip file, say), and `name`, what to call it in errors. A file that breaks
off, even inside its last record, is an error and never a shorter recording. No size found in a file is believed
before the bytes are seen to be there.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import re
import struct
import tarfile
import warnings
import zlib
from math import prod
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from snn_repro.data.events import Events
from snn_repro.errors import DataError

_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
Source = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO


class FormatError(DataError):
    """A file is not what its format promises: `name`, the byte `offset` at which that shows, and the `reason`."""

    def __init__(self, name: str, offset: int, reason: str):
        super().__init__(name, offset, reason)  # all three, so that the error survives a process boundary
        self.name, self.offset, self.reason = name, offset, reason

    def __str__(self) -> str:
        return f"{self.name}, byte {self.offset}: {self.reason}"


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


_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(source: Source, name: str | None = None) -> np.ndarray:
    """An IDX array (MNIST's format), plain or gzipped, in its own type and shape and native byte order.

    Two zero bytes, a type code, the number of dimensions, the dimensions as big-endian 32-bit integers, then
    the values. Raises FormatError; for a gzipped file its offsets count unpacked bytes.
    """
    data, name = _bytes(source, name)
    packed = data[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if packed else io.BytesIO(data)
    read = 0

    def take(count: int) -> bytes:
        """Up to `count` bytes, block by block: what a damaged header promises is never allocated at once."""
        nonlocal read
        blocks, wanted = [], count
        try:
            while wanted and (block := stream.read(min(wanted, 1 << 20))):
                blocks.append(block)
                wanted -= len(block)
                read += len(block)
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError(name, read, f"cannot be unpacked ({error}): the file is damaged") from None
        return b"".join(blocks)

    magic = take(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not 1 <= magic[3] <= 8:
        raise FormatError(name, 0, f"the file begins with {magic.hex(' ') or 'nothing'}, not with an IDX header")
    header = take(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise FormatError(name, read, f"the file ends inside its header of {4 + 4 * magic[3]} bytes")
    shape = struct.unpack(f">{magic[3]}I", header)
    dtype = np.dtype(_IDX_TYPES[magic[2]])
    expected = prod(shape) * dtype.itemsize
    if not expected:
        raise FormatError(name, 4, f"the array of shape {shape} is empty")
    body = take(expected + 1)
    if len(body) != expected:
        held = f"only {len(body)}" if len(body) < expected else "more"
        raise FormatError(name, read, f"an array of shape {shape} has {expected} bytes, the file holds {held}")
    return np.frombuffer(body, dtype).astype(dtype.newbyteorder("=")).reshape(shape)


# ------------------------------------------------------------------ CIFAR's pickles


Labelled = tuple[np.ndarray, np.ndarray]
"""images uint8 [N, 3, 32, 32], planes R, G, B; labels int64 [N]"""


def read_cifar10(source: str | os.PathLike) -> tuple[Labelled, Labelled]:
    """CIFAR-10 from the folder cifar-10-batches-py or from cifar-10-python.tar.gz: (train, test), labels 0..9.

    Raises DataError if a file is missing, FormatError if one is damaged.
    """
    *train, test = _read_cifar(source, [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels")
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return (images, labels), test


def read_cifar100(source: str | os.PathLike) -> tuple[Labelled, Labelled]:
    """CIFAR-100 from the folder cifar-100-python or from its tar.gz: (train, test), fine labels 0..99.

    Raises as `read_cifar10` does.
    """
    train, test = _read_cifar(source, ["train", "test"], "fine_labels")
    return train, test


def _read_cifar(source: str | os.PathLike, files: list[str], labels: str) -> list[Labelled]:
    source, held = Path(source), dict[str, Labelled]()
    if source.is_dir():
        held = {f: read_cifar_batch(source / f, labels=labels) for f in files if (source / f).exists()}
    else:
        try:
            with tarfile.open(source, "r|*") as archive:
                for member in archive:
                    file = PurePosixPath(member.name).name
                    if member.isfile() and file in files and member.size < _LARGEST_BATCH:
                        name = f"{source}:{member.name}"
                        content = archive.extractfile(member).read()  # type: ignore[union-attr]  # a file has one
                        held[file] = read_cifar_batch(content, name, labels=labels)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{source} cannot be unpacked ({error}); get it again") from None
    if missing := [f for f in files if f not in held]:
        raise DataError(f"{source} holds no {', '.join(missing)}; it should hold {', '.join(files)}")
    return [held[f] for f in files]


def read_cifar_batch(source: Source, name: str | None = None, labels: str = "labels") -> Labelled:
    """One pickled file of CIFAR. labels: "labels" (CIFAR-10) or "fine_labels" (CIFAR-100).

    The pickle is taken apart without running it: nothing that it names is imported or called. Raises
    FormatError.
    """
    classes = {"labels": 10, "fine_labels": 100}[labels]
    data, name = _bytes(source, name)
    batch, offsets = _load_pickle(data, name)
    if not isinstance(batch, dict):
        raise FormatError(name, 0, "the pickle holds no dictionary")
    batch = {_text(key): value for key, value in batch.items()}
    for needed in ("data", labels):
        if needed not in batch:
            raise FormatError(name, 0, f"the dictionary has no '{needed}'; is the file of another data set?")
    images, numbers = (_array(batch[key]) for key in ("data", labels))
    if images is None or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise FormatError(name, offsets.get("data", 0), "'data' is no whole uint8 array of 3,072 bytes an image")
    if numbers is None or numbers.shape != images.shape[:1] or not len(numbers):
        raise FormatError(name, offsets.get(labels, 0), f"'{labels}' is no list of {len(images)} whole numbers")
    if numbers.min() < 0 or numbers.max() >= classes:
        span = f"{numbers.min()} to {numbers.max()}"
        raise FormatError(name, offsets.get(labels, 0), f"'{labels}' reaches from {span}, not from 0 to {classes - 1}")
    return images.reshape(-1, 3, 32, 32), numbers.astype(np.int64)


class _Integers:
    """What `numpy.dtype` means in a pickle: a type of integers and nothing else; its byte order comes as its state."""

    def __init__(self, code, *_):
        if not re.fullmatch("[iu][1248]", code := _text(code)):
            raise ValueError(f"it holds numbers of type {code}, which no CIFAR file needs")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(">" if _text(state[1]) == ">" else "<")


class _Array:
    """What numpy's `_reconstruct` means: an array, of which all comes as its state."""

    def __setstate__(self, state):
        _, shape, kind, fortran, raw = state
        self.values = _filled(raw, kind, shape, "F" if fortran else "C")


def _filled(raw: bytes, kind: _Integers, shape: tuple, order: str | bytes) -> np.ndarray:
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if _text(order) == "F" else "C").copy()


_LARGEST_BATCH = 1 << 30  # bytes; CIFAR-100's train has 155 million
_MEANINGS = {  # of all names in CIFAR's pickles, written by any Python and numpy; none of them is imported
    "numpy ndarray": None,
    "numpy dtype": _Integers,
    "numpy.core.multiarray _reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray scalar": lambda kind, raw: _filled(raw, kind, (), "C")[()],
    "numpy.core.numeric _frombuffer": _filled,
    "_codecs encode": lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes into a protocol 2 pickle
}
# What pickles of dictionaries, lists, numbers, strings and arrays are made of, protocol 2 and later.
_OPCODES = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD""".split()
)


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        known = f"{module.replace('numpy._core', 'numpy.core')} {name}"
        if known not in _MEANINGS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file needs")
        return _MEANINGS[known]


def _load_pickle(data: bytes, name: str) -> tuple[object, dict[str, int]]:
    """The object, and the offset at which each short string first stands.

    The opcodes are checked before any is obeyed: that all are known and whole, and that none asks for memory
    out of proportion (a memo index does).
    """
    stream, offsets, at = io.BytesIO(data), dict[str, int](), 0
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            at = position or 0
            if opcode.name not in _OPCODES:
                raise FormatError(name, at, f"opcode {opcode.name}, which no CIFAR file needs; it is not obeyed")
            if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > count:
                raise FormatError(name, at, f"memo index {argument} after {count} operations")
            if isinstance(argument, str | bytes) and len(argument) < 20:
                offsets.setdefault(argument if isinstance(argument, str) else argument.decode("latin1"), at)
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        raise FormatError(name, stream.tell(), f"the pickle is damaged or breaks off ({reason})") from None
    if at != len(data) - 1:
        raise FormatError(name, at, f"the pickle ends here, {len(data) - 1 - at} bytes before the file does")
    stream.seek(0)
    try:
        return _SafeUnpickler(stream, encoding="bytes").load(), offsets
    except Exception as error:  # a damaged pickle can fail in any way that its operations can
        reason = " ".join(str(error).split())[:100]
        raise FormatError(name, stream.tell(), f"the pickle is damaged ({reason})") from None


def _text(value):
    """A string however it was written; whatever else it is."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _array(value) -> np.ndarray | None:
    """An array, or a list of whole numbers as one; None for all else and what is empty."""
    value = getattr(value, "values", value)
    if isinstance(value, list):
        if not all((type(n) is int or isinstance(n, np.integer)) and -(2**63) <= n < 2**63 for n in value):
            return None
        value = np.array(value, np.int64)
    return value if isinstance(value, np.ndarray) and value.size else None
