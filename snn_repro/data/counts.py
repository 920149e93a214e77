"""Event counts as bytes, with a table of the few that are larger: one hot pixel does not double a data set."""

from __future__ import annotations

import numpy as np

MOST = 255  # that a byte holds; it stands where the table has the count
OVERFLOW = np.dtype([("row", "<u4"), ("place", "<u4"), ("count", "<u4")])
"""an entry of the table: a row, the place in its flattened frames, and the count there"""


class ByteFrames:
    """Frames [N, T, 2, H, W] of bytes and their table (sorted by row), read as one array.

    frames[i] are the counts of a row: uint8, or the narrowest of uint16 and uint32 that holds them where the table has some.
    """

    def __init__(self, stored: np.ndarray, table: np.ndarray):
        self.stored, self.shape, self.ndim, self.dtype = stored, stored.shape, stored.ndim, stored.dtype
        rows, starts = np.unique(table["row"], return_index=True)
        parts = np.split(table, starts[1:]) if len(rows) else []
        self.over = {
            int(row): (part["place"].astype(np.int64), part["count"]) for row, part in zip(rows, parts, strict=True)
        }

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> np.ndarray:
        return together(self.stored[row], *self.over[row]) if row in self.over else self.stored[row]


def together(stored: np.ndarray, places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The counts of one row, of its bytes and its part of the table."""
    frames = stored.astype(np.uint16 if counts.max() < 2**16 else np.uint32)
    frames.reshape(-1)[places] = counts
    return frames


def apart(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of one row, and the places and counts of its part of the table."""
    places = np.flatnonzero(frames > MOST)
    return np.minimum(frames, MOST).astype(np.uint8), places, frames.reshape(-1)[places]
