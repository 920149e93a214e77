"""Event recordings and their integration into frames [T, 2, H, W].

The loops below are plain Python functions that numba compiles at their first use (and keeps compiled on
disk), so that importing this module costs nothing.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from snn_repro.errors import DataError, UserError


class Events(NamedTuple):
    """One recording: N events in the order in which they were recorded.

    t: int64 [N], microseconds. x, y: int16 [N], column and row of the pixel, from 0.
    p: uint8 [N], polarity, 0 or 1.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


def compiled(function):
    """`function` compiled by numba and kept on disk (kernels/compiled.py)."""
    from snn_repro.kernels.compiled import compiled

    return compiled(function, error_model="python")


_WIDER = {np.dtype(np.uint8): np.dtype(np.uint16), np.dtype(np.uint16): np.dtype(np.uint32)}
_COUNTS = (*_WIDER, np.dtype(np.uint32))


def integrate(events: Events, timesteps: int, size: tuple[int, int], by: str = "number", dtype=np.uint16) -> np.ndarray:
    """Count the events of each frame, polarity and pixel: [T, 2, H, W], channel 0 holds polarity 0.

    by="number": N // T events a frame, in recorded order; the last frame takes the remainder too.
    by="time": frames of (t[-1] - t[0]) // T microseconds from t[0] on; the last frame takes the rest.
        A time bin without events gives an empty frame. Times that jitter backwards are binned one by one.
    by="braincog": as "time", but the rest is in no frame, as with tonic's ToFrame(n_time_bins=T).
    With fewer events than frames, all of them are in the last frame (by number) or where their times put
    them (by time). Without any event all frames are zero.

    size: (H, W) of the sensor. dtype: the count type to start with (uint8, uint16 or uint32). It is widened
    when a count would not fit, so look at the result's dtype: counts are never clipped and never wrap.

    Raises DataError for an event outside of the sensor, a polarity other than 0 and 1, arrays of different
    lengths, or (by time) a recording that ends before it begins; UserError for a wrong argument.
    """
    if timesteps < 1:
        raise UserError(f"timesteps={timesteps} must be at least 1")
    if by not in ("number", "time", "braincog"):
        raise UserError(f"dataset.integrate_by={by!r} must be 'number', 'time' or 'braincog'")
    dtype = np.dtype(dtype)
    if dtype not in _COUNTS:
        raise UserError(f"frames cannot be counted in {dtype}; choose uint8, uint16 or uint32")
    t, x, y, p = _plain(events)
    _check_pixels(x, y, p, *size)
    if by == "number":
        stops = len(t) // timesteps * np.arange(1, timesteps + 1)
        stops[-1] = len(t)
    else:
        edges = _time_edges(t, timesteps, by == "braincog")
        if np.any(t[1:] < t[:-1]):
            frame_of = np.searchsorted(edges, t, side="right")
            order = np.argsort(frame_of, kind="stable")
            x, y, p = x[order], y[order], p[order]
            stops = np.searchsorted(frame_of[order], np.arange(1, timesteps + 1))
        else:
            stops = np.append(np.searchsorted(t, edges), len(t))[:timesteps]
    while True:
        frames = np.zeros((timesteps, 2 * size[0] * size[1]), dtype)
        if _count()(x, y, p, stops, frames, *size, np.iinfo(dtype).max):
            return frames.reshape(timesteps, 2, *size)
        if dtype not in _WIDER:
            raise DataError(f"more than {np.iinfo(dtype).max} events at one pixel of one frame")
        dtype = _WIDER[dtype]


def _plain(events) -> list[np.ndarray]:
    """Contiguous arrays of the types of `Events`; refuses what those cannot hold, so that nothing wraps."""
    arrays: list[np.ndarray] = []
    for name, values, dtype in zip("txyp", events, map(np.dtype, ("i8", "i2", "i2", "u1")), strict=True):
        values = np.asarray(values)
        if values.ndim != 1 or values.dtype.kind not in "iub":
            kind = f"{values.dtype} {values.shape}"
            raise DataError(f"events.{name} must be a 1-D array of integers, not {kind}")
        if values.dtype != dtype and values.size:
            low, high = int(values.min()), int(values.max())
            if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
                raise DataError(f"events.{name} reaches from {low} to {high}, which no sensor here can give")
        arrays.append(np.ascontiguousarray(values, dtype))
    if len({len(a) for a in arrays}) != 1:
        raise DataError(f"events.t, x, y and p have different lengths: {[len(a) for a in arrays]}")
    return arrays


def _check_pixels(x: np.ndarray, y: np.ndarray, p: np.ndarray, height: int, width: int) -> None:
    column, row = x.view(np.uint16), y.view(np.uint16)  # negative ones become large: one test finds both
    top = _tops()(column, row, p)
    if top[0] >= width or top[1] >= height or top[2] > 1:
        i = int(np.argmax((column >= width) | (row >= height) | (p > 1)))
        raise DataError(
            f"event {i} of {len(x)} is at x={x[i]}, y={y[i]} with polarity {p[i]}, which a sensor of"
            f" {height} x {width} pixels (height x width) cannot give; is the file of another data set?"
        )


def _time_edges(t: np.ndarray, timesteps: int, last_ends: bool) -> np.ndarray:
    """int64 [T - 1]: the times at which frames 1, 2, ... begin; with last_ends [T], and that at which the last ends."""
    frames = np.arange(1, timesteps + last_ends, dtype=np.int64)
    if len(t) == 0:
        return 0 * frames
    if t[-1] < t[0]:
        raise DataError(f"the recording ends ({t[-1]} us) before it begins ({t[0]} us) and cannot be split by time")
    return t[0] + (t[-1] - t[0]) // timesteps * frames


@cache
def _tops():
    return compiled(_largest)


@cache
def _count():
    return compiled(_count_events)


def _largest(x, y, p):
    top_x, top_y, top_p = np.uint16(0), np.uint16(0), np.uint8(0)
    for i in range(len(x)):
        top_x, top_y, top_p = max(top_x, x[i]), max(top_y, y[i]), max(top_p, p[i])
    return top_x, top_y, top_p


def _count_events(x, y, p, stops, frames, height, width, limit):
    """Add events [stops[j - 1], stops[j]) to frames[j]; False as soon as a count would exceed `limit`.

    Every event must lie on the sensor. Computing a block of pixel numbers first, apart from the scattered
    increments, lets the compiler vectorise that part: over twice as fast as one loop.
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
