"""Recordings as columns t, x, y, p in .npz and HDF5 files, as tools of the field write them.

columns     each under one of its names (NAMES), at the top or in a group `events`; or a structured array of such fields
            called `events`, or `CD/events`
t           microseconds: whole numbers, or floating point numbers without fractions
x, y        column and row of the pixel, from 0
p           0 and 1, false and true, or -1 and 1
height, width   of the sensor, where the file says them: in .npz as arrays of one number, in HDF5 as those or attributes
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from snn_repro.data.events import Events
from snn_repro.data.formats import FormatError

NAMES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity", "polarities"),
}
TABLES = ("events", "CD/events")
LARGEST_COLUMN = 2**32  # bytes, unpacked


class Table(NamedTuple):
    """What a file holds."""

    events: Events
    size: tuple[int, int] | None  # (height, width) of the sensor, where the file says it


def read_npz(data: bytes, name: str) -> Table:
    """A .npz file. Nothing in it is unpickled. Raises FormatError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}

            def get(key: str) -> np.ndarray | None:
                return _npy(archive, members[key], name) if key in members else None

            return _table(get, members, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise FormatError(name, 0, f"it cannot be unpacked ({error}): the file is damaged, or no .npz") from None


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """An array of which every value is there: what a header promises is not believed."""
    if info.file_size > LARGEST_COLUMN:
        raise FormatError(name, info.header_offset, f"{info.filename} would take {info.file_size:,} bytes")
    stream = io.BytesIO(archive.read(info))
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are not read")
        return np.frombuffer(stream.getbuffer(), dtype, int(np.prod(shape)), stream.tell()).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(name, info.header_offset, f"{info.filename} is no whole array ({error})") from None


def read_hdf5(data: bytes, name: str) -> Table:
    """An HDF5 file. Raises FormatError."""
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:

            def get(key: str) -> np.ndarray | None:
                found = file.get(key)
                if isinstance(found, h5py.Dataset):
                    if found.size * found.dtype.itemsize > LARGEST_COLUMN:
                        raise FormatError(name, 0, f"{key} would take {found.size * found.dtype.itemsize:,} bytes")
                    return found[()]
                return np.asarray(file.attrs[key]) if key in file.attrs else None

            names: list[str] = []
            file.visit(names.append)
            return _table(get, [*names, *file.attrs], name)
    except FormatError:
        raise
    except Exception as error:  # h5py raises nearly anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(name, 0, f"it cannot be read as HDF5 ({reason})") from None


def _table(get: Callable[[str], Any], names: Iterable[str], name: str) -> Table:
    names, columns = set(names), {}
    for table in TABLES:
        values = get(table) if table in names else None
        if values is not None:
            if values.dtype.names is None:
                raise FormatError(
                    name,
                    0,
                    f"{table} is a table without names of its columns; save a structured array, or t, x, y and p apart",
                )
            columns = _chosen(values.dtype.names, values.__getitem__)
            break
    else:
        for group in ("", "events/", "CD/events/"):
            inside = {n.removeprefix(group): n for n in names if n.startswith(group)}
            columns = columns or _chosen(inside, lambda n, inside=inside: get(inside[n]))  # type: ignore[misc]
    if not columns:
        wanted = ", ".join(f"{key} ({', '.join(others[1:])})" for key, others in NAMES.items())
        raise FormatError(name, 0, f"it lacks one of {wanted}; it holds: {', '.join(sorted(names)) or 'nothing'}")
    height, width = (get(key) if key in names else None for key in ("height", "width"))
    size = None if height is None or width is None else (int(np.ravel(height)[0]), int(np.ravel(width)[0]))
    return Table(_events(columns, name), size)


def _chosen(names: Iterable[str], get: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """The four columns under whichever of their names they have; {} where one is missing."""
    there = set(names)
    found = {key: next((n for n in variants if n in there), None) for key, variants in NAMES.items()}
    return {} if None in found.values() else {key: np.asarray(get(n)) for key, n in found.items() if n}


def _events(columns: dict[str, np.ndarray], name: str) -> Events:
    if any(v.ndim != 1 for v in columns.values()) or len({len(v) for v in columns.values()}) != 1:
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in columns.items())
        raise FormatError(name, 0, f"its columns must have one value an event each, and they are: {shapes}")
    whole = {}
    for key, values in columns.items():
        if values.dtype.kind not in "iubf":
            raise FormatError(name, 0, f"{key} holds {values.dtype}, not numbers")
        whole[key] = values
        if values.dtype.kind == "f":
            if not np.array_equal(values, np.rint(values)):
                seconds = "; times are microseconds (seconds times 1e6, rounded)" if key == "t" else ""
                raise FormatError(name, 0, f"{key} holds numbers with fractions{seconds}")
            whole[key] = values.astype(np.int64)
    t, x, y, p = (whole[key] for key in "txyp")
    for key, values in (("x", x), ("y", y)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= 32_767:
            raise FormatError(name, 0, f"{key} reaches from {values.min()} to {values.max()}, which no sensor gives")
    p = p.astype(np.int64)
    if set(np.unique(p).tolist()) <= {-1, 1}:
        p = (p + 1) // 2
    if len(p) and not 0 <= p.min() <= p.max() <= 1:
        raise FormatError(name, 0, f"p reaches from {p.min()} to {p.max()}; polarities are 0 and 1, or -1 and 1")
    return Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), p.astype(np.uint8))
