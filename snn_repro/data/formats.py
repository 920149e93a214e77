"""Readers of file formats: bytes in, arrays out, FormatError for damaged files.

    read_aedat2          AEDAT 2.0, CIFAR10-DVS's `.aedat`
    read_aedat3          AEDAT 3.1, DVS128 Gesture's `.aedat`; read_gesture_labels: its `_labels.csv`
    read_atis_bin        40-bit ATIS events, N-Caltech101's `.bin`
    read_recording       a user's recording, by its suffix

Each takes the bytes of a file and `name`, its name in errors. A truncated file, even inside its last record, is an
error and never a shorter recording. Sizes in a file are not trusted until the bytes are present.
"""

import io
import re
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snn_repro.data.events import Events
from snn_repro.errors import DataError, UserError, brief

_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class FormatError(DataError):
    """An invalid file: its `name`, byte `offset` of the error (or None), and `reason`."""

    def __init__(self, name: str, offset: int | None, reason: str):
        super().__init__(name, offset, reason)  # all three, so that the error survives a process boundary
        self.name, self.offset, self.reason = name, offset, reason

    def __str__(self) -> str:
        return f"{self.name}{'' if self.offset is None else f', byte {self.offset}'}: {self.reason}"


# ------------------------------------------------------------------ events


def _after_header(data: bytes, name: str, magic: bytes, last_line: bytes | None = None) -> int:
    """Offset after the ASCII lines that begin with '#', or after `last_line`; LF or CRLF."""
    if not data.startswith(magic):
        raise FormatError(name, 0, f"the file does not begin with {magic.decode()}")
    at = 0
    while data[at : at + 1] == b"#":
        if (end := data.find(b"\n", at)) < 0 or _BINARY.search(data, at, end):
            raise FormatError(name, at, "a header line has no end or holds binary data")
        line, at = data[at:end], end + 1
        if line.rstrip(b"\r") == last_line:
            return at
    if last_line:
        raise FormatError(name, at, f"the header has no line {last_line.decode()}")
    return at


def _records(data: bytes, start: int, dtype: str, columns: int, name: str) -> np.ndarray:
    """All records of a file, [N, columns]. Raises FormatError for a truncated one."""
    size = columns * np.dtype(dtype).itemsize
    if rest := (len(data) - start) % size:
        raise FormatError(name, len(data) - rest, f"the last record is truncated: {rest} of its {size} bytes")
    return np.frombuffer(data, dtype, offset=start).reshape(-1, columns)


def _chosen(events: Events, keep: np.ndarray) -> Events:
    return events if keep.all() else Events(*(values[keep] for values in events))


def read_aedat2(data: bytes, name: str = "the file") -> Events:
    """AEDAT 2.0 of a DVS128 sensor (128 x 128), as CIFAR10-DVS uses it.

    After the header come records of a big-endian 32-bit address and a 32-bit time in microseconds. Address bit 0 is the
    polarity a, bits 1..7 a column b, bits 8..14 a row c. As in the decoding behind published results, x = 127 - c,
    y = 127 - b, p = 1 - a. Records with bit 15 (external) or 31 (special) are skipped. Raises FormatError.
    """
    start = _after_header(data, name, b"#!AER-DAT2.0")
    words = _records(data, start, ">u4", 2, name)
    address = words[:, 0].astype(np.uint32)
    if (wrong := address & 0x7FFF0000).any():
        i = int(np.argmax(wrong != 0))
        raise FormatError(name, start + 8 * i, f"address {address[i]:#010x} has bits that a DVS128 does not use")
    low, high = address.astype(np.uint8), (address >> 8 & 127).astype(np.uint8)
    x, y = (127 - high).astype(np.int16), (127 - (low >> 1)).astype(np.int16)
    return _chosen(Events(words[:, 1].astype(np.int64), x, y, 1 - (low & 1)), address & 0x80008000 == 0)


_PACKET = struct.Struct("<HHIIIIII")  # type, source, size, time offset, time overflow, capacity, number, valid
_POLARITY, _LAST_TYPE = 1, 13


def read_aedat3(data: bytes, name: str = "the file", size: tuple[int, int] | None = (128, 128)) -> Events:
    """AEDAT 3.1, as DVS128 Gesture uses it: all valid polarity events, in recorded order.

    Packets have a 28-byte little-endian header and eventCapacity events of eventSize bytes, of which the first
    eventNumber are used. A polarity event is a 32-bit word (bit 0 valid, bit 1 polarity, bits 2..16 y, bits 17..31 x)
    and a 32-bit time; t = time | eventTSOverflow << 31, in microseconds. Packets of other types are skipped.

    The header's eventValid decides which events are valid: all if it equals eventNumber, whatever their valid bits (the
    reader behind published results ignores them); else those whose bit is set. A warning counts disagreements.

    size: (H, W) bounds of x and y; None accepts all. Raises FormatError.
    """
    packets = _polarity_packets(data, _after_header(data, name, b"#!AER-DAT3.1", last_line=b"#!END-HEADER"), name)
    if not packets:
        return Events(*(np.empty(0, kind) for kind in (np.int64, np.int16, np.int16, np.uint8)))
    starts, numbers, valids, overflows = (np.array(column, np.int64) for column in zip(*packets, strict=True))
    words = np.concatenate([np.frombuffer(data, "<u4", 2 * n, at) for at, n in zip(starts, numbers, strict=True)])
    word, t = words[::2].copy(), words[1::2].astype(np.int64) | np.repeat(overflows << 31, numbers)
    x, y = (word >> 17).astype(np.int16), (word >> 2 & 0x7FFF).astype(np.int16)
    events = Events(t, x, y, (word >> 1 & 1).astype(np.uint8))
    valid, first = word & 1 == 1, np.cumsum(numbers) - numbers
    if odd := int(np.abs(np.add.reduceat(valid, first, dtype=np.int64) - valids).sum()):
        warnings.warn(
            f"{name}: packet headers and valid bits disagree about {odd} of {len(t)} events; an event is kept if its"
            " bit is set or its header counts the whole packet as valid",
            stacklevel=2,
        )
    valid |= np.repeat(numbers == valids, numbers)
    outside = valid & ((events.x >= size[1]) | (events.y >= size[0])) if size else ~valid & valid
    if outside.any():
        i = int(np.argmax(outside))
        packet = int(np.searchsorted(first, i, side="right")) - 1
        where = f"x={events.x[i]}, y={events.y[i]}, outside of {size[1]} x {size[0]} pixels"  # type: ignore[index]
        raise FormatError(name, int(starts[packet] + 8 * (i - first[packet])), f"an event at {where}")
    return _chosen(events, valid)


def _polarity_packets(data: bytes, at: int, name: str) -> list[tuple[int, int, int, int]]:
    """(offset of events, number, number valid, time overflow) of each non-empty polarity packet."""
    packets = []
    while at < len(data):
        if (left := len(data) - at - _PACKET.size) < 0:
            raise FormatError(name, at, f"{len(data) - at} bytes where a packet header of 28 should be")
        kind, _, event_size, time_at, overflow, capacity, number, valid = _PACKET.unpack_from(data, at)
        if capacity * event_size > left:
            raise FormatError(name, at, f"a packet of {capacity} x {event_size} bytes, but only {left} bytes follow")
        if not valid <= number <= capacity:
            counts = f"eventValid {valid}, eventNumber {number}, eventCapacity {capacity}"
            raise FormatError(name, at, f"a packet with {counts}: these may not decrease")
        if kind > _LAST_TYPE:
            raise FormatError(name, at, f"a packet of type {kind}, which AEDAT 3.1 does not define")
        if kind == _POLARITY and (event_size, time_at) != (8, 4):
            raise FormatError(name, at, f"a polarity packet of {event_size}-byte events; they have 8 bytes")
        at += _PACKET.size
        if kind == _POLARITY and number:
            packets.append((at, number, valid, overflow))
        at += capacity * event_size
    return packets


def read_gesture_labels(data: bytes, name: str = "the file") -> list[tuple[int, int, int]]:
    """Label table of a DVS128 Gesture recording: rows (class 1..11, start, end), in microseconds.

    Rows are in the order of the file: a class may occur twice, and rows may overlap. A sample is the events with
    start <= t < end. Raises FormatError.
    """
    head, *lines = data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True) or [b""]
    if head.strip() != b"class,startTime_usec,endTime_usec":
        raise FormatError(name, 0, "the first line is not class,startTime_usec,endTime_usec")
    offset, rows = len(head), []
    for line in lines:
        if line.strip():
            match = re.fullmatch(rb"(0?[1-9]|1[01]),(\d{1,18}),(\d{1,18})", line.strip())
            if not match or int(match[2]) >= int(match[3]):
                raise FormatError(name, offset, "a line is not class,start,end with class 1 to 11 and start < end")
            rows.append((int(match[1]), int(match[2]), int(match[3])))
        offset += len(line)
    if not rows:
        raise FormatError(name, offset, "the table has no rows")
    return rows


def read_atis_bin(data: bytes, name: str = "the file", size: tuple[int, int] = (180, 240)) -> Events:
    """40-bit events of an ATIS, as in N-Caltech101 (180 x 240 pixels) and N-MNIST.

    Five bytes per event: x, y, then polarity (1 bit) and time (23 bits, microseconds, big-endian). A record with
    y = 240 is an overflow: it adds 2^13 microseconds to all later times. Events outside `size` (H, W) are dropped with
    a warning that counts them. Raises FormatError.
    """
    raw = _records(data, 0, "u1", 5, name)
    x, y = raw[:, 0].astype(np.int16), raw[:, 1].astype(np.int16)
    t = raw[:, 4] | raw[:, 3].astype(np.int64) << 8 | (raw[:, 2] & 127).astype(np.int64) << 16
    overflow = y == 240
    outside = ~overflow & ((y >= size[0]) | (x >= size[1]))
    if outside.any():
        warnings.warn(
            f"{name}: left out {np.count_nonzero(outside)} of {len(raw)} events, outside of {size[1]} x {size[0]}"
            f" pixels, the first at byte {5 * int(np.argmax(outside))}",
            stacklevel=2,
        )
    return _chosen(Events(t + (np.cumsum(overflow) << 13), x, y, raw[:, 2] >> 7), ~(overflow | outside))


# ------------------------------------------------------------------ users' recordings

SUFFIXES = (".npz", ".h5", ".hdf5", ".aedat", ".bin", ".aedat4", ".raw", ".dat", ".es")
RANGES = {"t": (-(2**62), 2**62), "x": (0, 4095), "y": (0, 4095), "p": (-1, 1), "height": (1, 4096), "width": (1, 4096)}
LARGEST = 2**31  # bytes of an unpacked table: 67 million events of 32 bytes
JITTER = 1000  # microseconds by which an event may precede an earlier one, as cameras write them


Recording = tuple[Events, tuple[int, int] | None]  # and the sensor's (height, width), if the file has it


def read_recording(data: bytes, name: str) -> Recording:
    """A user's recording, by file suffix: events, and the sensor's (height, width) or None.

    .npz .h5 .hdf5       columns t, x, y, p, each an array, at the top or in `events`: a group, or a structured array
        t                microseconds, ascending, x, y: column and row of the pixel, from 0, p: 0 and 1, or -1 and 1
        height, width    of the sensor, optional: arrays of one number, or attributes
    .aedat               AEDAT 2.0 of a DVS128, decoded as CIFAR10-DVS is, or AEDAT 3.1
    .bin                 40-bit ATIS events, as of N-Caltech101 and N-MNIST
    .aedat4 .raw .dat .es  AEDAT 4, EVT 2 and 3, DAT and ES, read by faery (an extra)

    Raises DataError (FormatError), and UserError if faery is needed but missing.
    """
    suffix, jitter = Path(name).suffix.lower(), JITTER
    if suffix in (".npz", ".h5", ".hdf5"):
        found, jitter = _table_file(data, name, suffix), 0
    elif suffix == ".aedat" and data.startswith(b"#!AER-DAT3.1"):
        found = read_aedat3(data, name, None), None
    elif suffix == ".aedat":
        found = read_aedat2(data, name), (128, 128)
    elif suffix == ".bin":
        found = read_atis_bin(data, name, (240, 256)), None
    elif suffix in SUFFIXES:
        found = _by_faery(data, name, suffix)
    else:
        raise DataError(f"{name} is no recording that can be read; they end in {', '.join(SUFFIXES)}")
    t = found[0].t
    if len(early := np.flatnonzero(np.maximum.accumulate(t) - t > jitter)):
        i = int(early[0])
        raise FormatError(name, None, f"t falls from {t[:i].max()} to {t[i]} at event {i}; sort the events by t")
    return found


def _table_file(data: bytes, name: str, suffix: str) -> Recording:
    """A .npz or HDF5 file, read without unpickling."""
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _check_size(sum(member.file_size for member in archive.infolist()), name)
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                return _table(file, name)
        import h5py

        with h5py.File(io.BytesIO(data), "r") as file:
            sizes: list[int] = []
            file.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
            _check_size(sum(sizes), name)
            return _table({**file, **file.attrs}, name)
    except FormatError:
        raise
    except Exception as error:  # zipfile, numpy and h5py raise nearly anything for a damaged file
        raise FormatError(name, None, f"it cannot be read ({brief(error)}): it is damaged, or no {suffix}") from None


def _check_size(size: int, name: str) -> None:
    if size > LARGEST:
        raise FormatError(name, None, f"it holds {size:,} bytes, more than the limit of {LARGEST:,}; split it")


def _table(file: Mapping[str, Any], name: str) -> Recording:
    source = file["events"] if "events" in file else file
    held = (source.dtype.names or ()) if hasattr(source, "dtype") else list(source)
    if missing := [key for key in "txyp" if key not in held]:
        raise FormatError(
            name, None,
            f"it lacks {', '.join(missing)}: the columns t (microseconds), x, y and p (0 and 1, or -1 and 1) are"
            f" required, as arrays or as a structured array `events`; it holds: {', '.join(sorted(held)) or 'no names'}",
        )  # fmt: skip
    t, x, y, p = (_column(source[key], key, name) for key in "txyp")
    if len({len(t), len(x), len(y), len(p)}) > 1:
        raise FormatError(name, None, f"t, x, y and p have different lengths {[*map(len, (t, x, y, p))]}")
    if len(p) and p.min() < 0 and not p.all():
        raise FormatError(name, None, "p holds -1, 0 and 1; polarities are 0 and 1, or -1 and 1")
    sides = [_column(np.ravel(file[key])[:1], key, name) for key in ("height", "width") if key in file]
    size = (int(sides[0][0]), int(sides[1][0])) if len(sides) == 2 else None
    return Events(t, x.astype(np.int16), y.astype(np.int16), (p > 0).astype(np.uint8)), size


def _column(values: Any, key: str, name: str) -> np.ndarray:
    """A column of whole numbers in their range, as int64."""
    values, (low, high) = np.asarray(values), RANGES[key]
    if values.ndim != 1 or values.dtype.kind not in "iubf":
        raise FormatError(name, None, f"{key} is {values.dtype} {list(values.shape)}, not one number per event")
    if (bad := ~((values >= low) & (values <= high) & (values == np.rint(values)))).any():  # NaN is in no range
        i = int(np.argmax(bad))
        where, unit = f" at event {i}" if key in "txyp" else "", " of microseconds" if key == "t" else ""
        raise FormatError(name, None, f"{key} is {values[i]}{where}, not a whole number{unit} from {low} to {high}")
    return values.astype(np.int64)


def _by_faery(data: bytes, name: str, suffix: str) -> Recording:
    try:
        import faery
    except ImportError:
        raise UserError(f"{name} is read by faery, which is not installed: pip install faery") from None
    unknown = (4096, 4096)  # (width, height) that faery reports if a header has none
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:  # faery only reads files
        file.write(data)
        file.flush()
        try:
            stream = faery.events_stream_from_file(file.name, dimensions_fallback=unknown)
            table = np.concatenate([np.empty(0, faery.EVENTS_DTYPE), *stream])
            width, height = stream.dimensions()
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # its panics are not Exceptions
            raise FormatError(name, None, f"faery cannot read it ({brief(error)})") from None
    t, x, y, p = (_column(table[key], key, name) for key in "txyp")
    events = Events(t, x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))
    return events, None if (width, height) == unknown else (height, width)
