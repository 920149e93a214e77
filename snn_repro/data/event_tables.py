"""Recordings of one's own: `read_recording` gives events and sensor of a file by its suffix.

.npz .h5 .hdf5       columns t, x, y, p, each an array, at the top or in `events`: a group, or a structured array
    t                microseconds, ascending: whole numbers, or floating point numbers without fractions
    x, y             column and row of the pixel, from 0
    p                0 and 1, false and true, or -1 and 1
    height, width    of the sensor, not needed: arrays of one number, or attributes
.aedat               AEDAT 2.0 of a DVS128, decoded as CIFAR10-DVS is, or AEDAT 3.1
.bin                 40-bit ATIS events, as of N-Caltech101 and N-MNIST
.aedat4 .raw .dat .es  AEDAT 4, EVT 2 and 3, DAT and ES, read by faery (an extra)
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro.data.events import Events
from snn_repro.data.formats import FormatError, read_aedat2, read_aedat3, read_atis_bin
from snn_repro.errors import DataError, UserError

SUFFIXES = (".npz", ".h5", ".hdf5", ".aedat", ".bin", ".aedat4", ".raw", ".dat", ".es")
CAMERAS = {"DVS128": (128, 128), "DAVIS240": (180, 240), "DAVIS346": (260, 346), "DAVIS640": (480, 640)}
"""what the name of an AEDAT 3.1 file's source begins with -> (height, width)"""
LARGEST = 2**31  # bytes that a file may hold unpacked: 67 million events of 32 bytes
LARGEST_SENSOR = 4096  # pixels a side
RANGES = {"t": (-(2**62), 2**62), "x": (0, LARGEST_SENSOR - 1), "y": (0, LARGEST_SENSOR - 1), "p": (-1, 1)}
WANTED = "the columns t (microseconds), x, y and p (0 and 1, or -1 and 1) are wanted, as arrays or as a structured array `events`"
JITTER = 1000  # microseconds that an event of a camera's own file may lie before an earlier one


class Recording(NamedTuple):
    """What a file holds."""

    events: Events
    size: tuple[int, int] | None  # (height, width) of the sensor, where the file says it


def read_recording(data: bytes, name: str) -> Recording:
    """A file of one of SUFFIXES. Raises DataError (FormatError), and UserError where faery is needed and missing."""
    suffix, jitter = Path(name).suffix.lower(), JITTER
    if suffix in (".npz", ".h5", ".hdf5"):
        found, jitter = _table_file(data, name, suffix), 0
    elif suffix == ".aedat" and data.startswith(b"#!AER-DAT3.1"):
        camera = re.search(rb"^#\s*Source \d+: *(\w+)", data[:4096], re.MULTILINE)
        named = camera.group(1).decode() if camera else ""
        size = next((s for c, s in CAMERAS.items() if named.startswith(c)), None)
        found = Recording(read_aedat3(data, name, None), size)
    elif suffix == ".aedat":
        found = Recording(read_aedat2(data, name), CAMERAS["DVS128"])
    elif suffix == ".bin":
        found = Recording(read_atis_bin(data, name, (240, 256)), None)
    elif suffix in SUFFIXES:
        found = _by_faery(data, name, suffix)
    else:
        raise DataError(f"{name} is no recording that can be read; they end in {', '.join(SUFFIXES)}")
    t = found.events.t
    if len(early := np.flatnonzero(np.maximum.accumulate(t) - t > jitter)):
        i = int(early[0])
        raise FormatError(name, None, f"t falls from {t[:i].max()} to {t[i]} at event {i}; sort the events by t")
    return found


def _table_file(data: bytes, name: str, suffix: str) -> Recording:
    """A .npz or HDF5 file. Nothing in it is unpickled."""
    try:
        if suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _check_size(sum(member.file_size for member in archive.infolist()), name)
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                return _table(file, file, name)
        import h5py

        with h5py.File(io.BytesIO(data), "r") as file:
            sizes: list[int] = []
            file.visititems(lambda _, found: sizes.append(getattr(found, "nbytes", 0)))
            _check_size(sum(sizes), name)
            return _table(file, {**file, **file.attrs}, name)
    except FormatError:
        raise
    except Exception as error:  # zipfile, numpy and h5py raise nearly anything for a damaged file
        raise FormatError(
            name, None, f"it cannot be unpacked ({_reason(error)}): it is damaged, or no {suffix}"
        ) from None


def _check_size(size: int, name: str) -> None:
    if size > LARGEST:
        raise FormatError(name, None, f"it holds {size:,} bytes and {LARGEST:,} are read at most; cut it into parts")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__


def _table(file: Any, told: Mapping[str, Any], name: str) -> Recording:
    """The columns of an opened file; `told` may have height and width."""
    source = file["events"] if "events" in file else file
    held = (source.dtype.names or ()) if hasattr(source, "dtype") else list(source)
    if missing := [key for key in "txyp" if key not in held]:
        there = ", ".join(sorted(held)) or "no names"
        raise FormatError(name, None, f"it lacks {', '.join(missing)}: {WANTED}; it holds: {there}")
    t, x, y, p = (_column(source, key, name) for key in "txyp")
    if len({len(t), len(x), len(y), len(p)}) > 1:
        raise FormatError(
            name, None, f"t, x, y and p must have one value an event and have {[*map(len, (t, x, y, p))]}"
        )
    if len(p) and p.min() < 0 and not p.all():
        raise FormatError(name, None, "p holds -1, 0 and 1; polarities are 0 and 1, or -1 and 1")
    events = Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), (p > 0).astype(np.uint8))
    sides = [_side(told[key], key, name) for key in ("height", "width") if key in told]
    return Recording(events, (sides[0], sides[1]) if len(sides) == 2 else None)


def _column(source: Any, key: str, name: str) -> np.ndarray:
    """One column as its file has it: a list of whole numbers in its range."""
    try:
        values = np.asarray(source[key])
    except Exception as error:
        raise FormatError(name, None, f"{key} cannot be read ({_reason(error)})") from None
    if values.ndim != 1 or values.dtype.kind not in "iubf":
        raise FormatError(name, None, f"{key} is {values.dtype} {list(values.shape)}, not one number an event")
    if values.dtype.kind == "f":
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise FormatError(name, None, f"{key} is {values[bad[0]]} at event {bad[0]}; every event needs a number")
        if len(bad := np.flatnonzero(values != np.rint(values))):
            unit = "; times are microseconds (seconds times 1e6, rounded)" if key == "t" else ""
            raise FormatError(name, None, f"{key} holds fractions, {values[bad[0]]} at event {bad[0]}{unit}")
    low, high = RANGES[key]
    if len(values) and not low <= int(values.min()) <= int(values.max()) <= high:
        bad = np.flatnonzero((values < low) | (values > high))[0]
        raise FormatError(name, None, f"{key} is {values[bad]} at event {bad}, which is not from {low} to {high}")
    return values


def _side(value: Any, key: str, name: str) -> int:
    values = np.asarray(value).ravel()
    if values.size != 1 or values.dtype.kind not in "iuf" or values[0] not in range(1, LARGEST_SENSOR + 1):
        raise FormatError(
            name, None, f"{key} is {values.tolist()!s:.60}; a number of pixels up to {LARGEST_SENSOR} is wanted"
        )
    return int(values[0])


def _by_faery(data: bytes, name: str, suffix: str) -> Recording:
    try:
        import faery
    except ImportError:
        raise UserError(f"{name} is read by faery, which is not installed: pip install faery") from None
    unknown = (LARGEST_SENSOR, LARGEST_SENSOR)  # (width, height) that faery gives where a header says nothing
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:  # it reads files alone
        file.write(data)
        file.flush()
        try:
            stream = faery.events_stream_from_file(file.name, dimensions_fallback=unknown)
            parts, size = [], 0
            for part in stream:
                parts.append(part)
                size += part.nbytes
                _check_size(size, name)
            width, height = stream.dimensions()
        except (KeyboardInterrupt, MemoryError, FormatError):
            raise
        except BaseException as error:  # its panics are no Exception
            raise FormatError(name, None, f"faery cannot read it ({_reason(error)})") from None
    table = np.concatenate(parts) if parts else np.empty(0, faery.EVENTS_DTYPE)
    columns = (_column(table, key, name) for key in "txyp")
    events = Events(*(v.astype(kind) for v, kind in zip(columns, ("i8", "i2", "i2", "u1"), strict=True)))
    return Recording(events, None if (width, height) == unknown else (height, width))
