"""Event recordings, their integration into frames [T, 2, H, W], and frames kept as bytes."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from snn_repro.errors import DataError, UserError
from snn_repro.kernels import compiled as kernels


class Events(NamedTuple):
    """One recording: N events in recorded order.

    t: int64 [N], microseconds. x, y: int16 [N], column and row of the pixel, from 0. p: uint8 [N], polarity, 0 or 1.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


@cache
def compiled(function):
    """`function`, compiled by numba at its first call and cached on disk (kernels/compiled.py)."""
    return kernels.compiled(function, error_model="python")


def integrate(events: Events, timesteps: int, size: tuple[int, int], by: str = "number") -> np.ndarray:
    """Count events per frame, polarity and pixel: [T, 2, H, W]; channel = polarity.

    by="number": N // T events per frame, in recorded order; the last frame also takes the remainder.
    by="time": frames of (t[-1] - t[0]) // T microseconds from t[0] on; the last frame also takes the rest.
        A time bin without events gives an empty frame. Times that jitter backwards are binned one by one.
    by="braincog": as "time", but the rest is in no frame, as with tonic's ToFrame(n_time_bins=T).
    With fewer events than frames, all are in the last frame (by number) or where their times put them (by time).
    Without events all frames are zero.

    size: (H, W) of the sensor. Counts are uint8, or uint16 or uint32 if one needs it; none is clipped or wraps. Raises
    DataError for an event outside the sensor, a polarity other than 0 and 1, arrays of different lengths, or (by time)
    a recording that ends before it begins; UserError for a wrong argument.
    """
    if timesteps < 1:
        raise UserError(f"timesteps={timesteps} must be at least 1")
    if by not in ("number", "time", "braincog"):
        raise UserError(f"dataset.integrate_by={by!r} must be 'number', 'time' or 'braincog'")
    t, x, y, p = _plain(events)
    column, row = x.view(np.uint16), y.view(np.uint16)  # negative values become large: one test finds both
    if column.max(initial=0) >= size[1] or row.max(initial=0) >= size[0] or p.max(initial=0) > 1:
        i = int(np.argmax((column >= size[1]) | (row >= size[0]) | (p > 1)))
        raise DataError(
            f"event {i} of {len(x)} is at x={x[i]}, y={y[i]} with polarity {p[i]}, which a sensor of"
            f" {size[0]} x {size[1]} pixels (height x width) cannot give; is the file from another data set?"
        )
    if by == "number":
        stops = len(t) // timesteps * np.arange(1, timesteps + 1)
        stops[-1] = len(t)
    else:
        if len(t) and t[-1] < t[0]:
            raise DataError(f"the recording ends ({t[-1]} us) before it begins ({t[0]} us) and cannot be split by time")
        first, width = (t[0], (t[-1] - t[0]) // timesteps) if len(t) else (0, 0)
        # frame starts, and the end of the last frame
        edges = first + width * np.arange(1, timesteps + (by == "braincog"))
        if np.any(t[1:] < t[:-1]):
            frame_of = np.searchsorted(edges, t, side="right")
            order = np.argsort(frame_of, kind="stable")
            x, y, p = x[order], y[order], p[order]
            stops = np.searchsorted(frame_of[order], np.arange(1, timesteps + 1))
        else:
            stops = np.append(np.searchsorted(t, edges), len(t))[:timesteps]
    for dtype in (np.uint8, np.uint16, np.uint32):
        frames = np.zeros((timesteps, 2 * size[0] * size[1]), dtype)
        if compiled(_count_events)(x, y, p, stops, frames, *size, np.iinfo(dtype).max):
            break
    return frames.reshape(timesteps, 2, *size)


def _plain(events) -> list[np.ndarray]:
    """Contiguous arrays of the types of `Events`. Raises DataError for values that would wrap."""
    given = [np.asarray(values) for values in events]
    if len({a.shape for a in given}) != 1 or any(a.ndim != 1 or a.dtype.kind not in "iub" for a in given):
        kinds = ", ".join(f"{a.dtype} {list(a.shape)}" for a in given)
        raise DataError(f"events.t, x, y and p must be four arrays of N integers, not {kinds}")
    plain = [np.ascontiguousarray(a, kind) for a, kind in zip(given, ("i8", "i2", "i2", "u1"), strict=True)]
    for name, a, values in zip("txyp", given, plain, strict=True):
        if a.dtype != values.dtype and not np.array_equal(a, values):
            raise DataError(f"events.{name} reaches from {a.min()} to {a.max()}, which no sensor here can give")
    return plain


def _count_events(x, y, p, stops, frames, height, width, limit):
    """Add events [stops[j - 1], stops[j]) to frames[j]; False if a count would exceed `limit`.

    Every event must lie on the sensor. Pixel numbers are computed in blocks, apart from the scattered increments, so
    that the compiler vectorises them: over twice as fast as one loop.
    """
    block = 2048
    pixels = np.empty(block, np.uint32)
    start = 0
    for frame in range(len(frames)):
        counts = frames[frame]
        for low in range(start, stops[frame], block):
            high = min(low + block, stops[frame])
            xs, ys, ps = x[low:high], y[low:high], p[low:high]
            for i in range(high - low):
                row = np.uint32(ps[i]) * np.uint32(height) + np.uint32(ys[i])
                pixels[i] = row * np.uint32(width) + np.uint32(xs[i])
            for i in range(high - low):
                counts[pixels[i]] += 1
        if stops[frame] - start > limit:  # only then can a count have wrapped: the sum then falls short
            total = 0
            for count in counts:
                total += count
            if total != stops[frame] - start:
                return False
        start = stops[frame]
    return True


def cut(events: Events, start: int, stop: int) -> Events:
    """Events with start <= t < stop, in recorded order; all if stop is -1."""
    inside = (events.t >= start) & (events.t < stop)
    return events if stop < 0 else Events(*(a[inside] for a in events))


def to_frames(events: Events, size: tuple[int, int], timesteps: int, by: str, frame_size: int | None) -> np.ndarray:
    """Frames as the cache stores them: counts of `integrate`, or resized to `frame_size`.

    Resized frames are [T, 2, frame_size, frame_size], float16 (float32 where float16 cannot hold a count): bilinear
    with antialiasing, without keeping the aspect ratio. by="braincog", as in BrainCog: only the rectangle of pixels
    with events is resized, with aligned corners and without antialiasing.
    """
    counts = integrate(events, timesteps, size, by)
    if frame_size is None:
        return counts
    if corners := by == "braincog":
        rows, columns = (slice(v.min(), int(v.max()) + 1) for v in (events.y, events.x))
        counts = counts[..., rows, columns]
    frames, size = torch.from_numpy(counts.astype(np.float32)), (frame_size, frame_size)
    small = interpolate(frames, size=size, mode="bilinear", antialias=not corners, align_corners=corners)
    return small.numpy().astype(np.float16 if counts.max(initial=0) <= 60_000 else np.float32)


# ------------------------------------------------------------------ counts as bytes

MOST = 255  # largest count in a byte; also stored where the table has the count
# an entry of the table: a row, the place in its flattened frames, and the count there
OVERFLOW = np.dtype([("row", "<u4"), ("place", "<u4"), ("count", "<u4")])


class ByteFrames:
    """Frames [N, T, 2, H, W] stored as bytes and a table of larger counts.

    The table is sorted by row. frames[i] are counts: uint8, or the narrowest of uint16 and uint32 for a row with
    entries in the table. So one hot pixel does not double a data set.
    """

    def __init__(self, stored: np.ndarray, table: np.ndarray):
        self.stored, self.shape, self.ndim, self.dtype = stored, stored.shape, stored.ndim, stored.dtype
        rows, starts = np.unique(table["row"], return_index=True)
        ends = [*starts[1:], len(table)]
        self.over = {  # row -> (places, counts)
            int(row): (table["place"][start:end].astype(np.int64), table["count"][start:end])
            for row, start, end in zip(rows, starts, ends, strict=False)
        }

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> np.ndarray:
        if row not in self.over:
            return self.stored[row]
        places, counts = self.over[row]
        frames = self.stored[row].astype(np.uint16 if counts.max() < 2**16 else np.uint32)
        frames.reshape(-1)[places] = counts
        return frames


def split_counts(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of one row, and the places and counts of its table entries."""
    places = np.flatnonzero(frames > MOST)
    return np.minimum(frames, MOST).astype(np.uint8), places, frames.reshape(-1)[places]
