"""The gate through which prepared frames are opened, and from there to batches. Prepare.py makes them.

A finished cache is a folder `cache_dir/<dataset>/T<timesteps>-<number|time|braincog>[-<pixels>px]` with these files:

    frames.npy     [N, T, 2, H, W], memory-mapped when used: event counts as bytes, or, resized, float16 (float32
                   where a count needs it)
    overflow.npy   the counts that a byte does not hold, where there are some (counts.py); where more than one in 16
                   is one, frames.npy has the narrowest of uint16 and uint32 that holds all of them instead
    index.csv      one line a sample, sorted by name: row, label, official part, events, bytes and CRC-32 of
                   its file, CRC-32 of the bytes of its row's frames, in the
                   narrowest type where the table has some of them, name
    manifest.json  format version, settings, shape, what was left out and why, a SHA-256 over all source files

A row's CRC-32 is checked when a run first reads the row (`RowCheck`), so that frames which decayed on the disk are
not trained on. Still read are format version 2, which had no table, and 1, without checksums of rows, with a warning.
"""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from snn_repro.data.counts import OVERFLOW, ByteFrames
from snn_repro.data.dataset import Recorded
from snn_repro.data.recordings import find_recordings
from snn_repro.errors import DataError, UserError

if TYPE_CHECKING:
    pass

FORMAT_VERSION = 3
_READABLE = (1, 2, 3)
TABLE = "overflow.npy"


class Problem(NamedTuple):
    """A file or sample that cannot be used."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


class Settings(NamedTuple):
    """What decides the content of a cache."""

    dataset: Recorded
    timesteps: int
    by: str = "number"  # or "time", "braincog": see `integrate`
    frame_size: int | None = None  # pixels; None keeps the sensor's size

    @property
    def folder(self) -> Path:
        pixels = f"-{self.frame_size}px" if self.frame_size else ""
        return Path(self.dataset.cache_name) / f"T{self.timesteps}-{self.by}{pixels}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.timesteps, *self.dataset.frame_shape(self.frame_size))

    def words(self) -> dict[str, Any]:
        """As the manifest has them."""
        return {**self._asdict(), "dataset": self.dataset.name, **self.dataset.found}

    def command(self, data_dir=None, cache_dir=None) -> str:
        """The command that makes this cache."""
        size = f" frame_size={self.frame_size}" if self.frame_size else ""
        return (
            f"python scripts/prepare_data.py dataset={self.dataset.name} data_dir={data_dir or 'DIR'}"
            f" cache_dir={cache_dir or 'DIR'} timesteps={self.timesteps} integrate_by={self.by}{size}{self.dataset.arguments}"
        )


@dataclass
class Cache:
    """An opened cache; `names`, `labels` and `parts` belong to the rows of `frames`, sorted by name."""

    frames: np.ndarray | ByteFrames  # memory-mapped [N, T, 2, H, W]
    names: list[str]
    labels: np.ndarray  # int64 [N]
    parts: list[str] | np.ndarray  # "train" | "test" where the split is official, else ""
    events: np.ndarray  # int64 [N]: events in the recording
    manifest: dict[str, Any]
    folder: Path
    rebuild: str  # the command that makes it again
    checksums: list[int] | None  # CRC-32 of the bytes of each row of `frames`; None: it was made before these were kept
    files: dict[str, tuple[int, str]]  # name of each recording's file: its bytes and CRC-32


# ------------------------------------------------------------------ opening


def partial_folder(folder: Path) -> Path:
    """What the folder of a cache is called while it is made."""
    return folder.with_name(folder.name + ".partial")


def open_cache(settings: Settings, cache_dir: str | Path | None, data_dir: str | Path | None = None) -> Cache:
    """Open a finished cache, memory-mapped.

    The frames themselves are not read: see RowCheck. Warns of a cache without checksums.

    Raises UserError if there is none, DataError if it is of another format version, was made with other
    settings, does not fit together, or (only looked at if `data_dir` is given and holds the data set) was
    made from other files: one sentence each, with the command that rebuilds it.
    """
    if not cache_dir:
        raise UserError(
            f"cache_dir is not set: {settings.dataset.name} is read from prepared frames; run `{settings.command(data_dir)}` once,"
            " then pass the same cache_dir=DIR"
        )
    folder = Path(cache_dir) / settings.folder
    command = settings.command(data_dir, cache_dir)
    if not (folder / "manifest.json").is_file():
        unfinished = (
            " (an unfinished one is there: the command goes on with it)" if partial_folder(folder).exists() else ""
        )
        raise UserError(f"no prepared frames at {folder}{unfinished}; run `{command}` once")
    cache = _read(folder, settings, f"{command} rebuild=true")
    changed = _changed_source(settings.dataset, data_dir, cache_dir, cache)
    if changed:
        raise DataError(
            f"{folder} is stale: {changed}; rebuild it with `{cache.rebuild}`, or give the data_dir that it was made from"
        )
    return cache


def _read(folder: Path, settings: Settings, command: str) -> Cache:
    """A cache whose files are as they were written, with these settings. Raises DataError with the command that rebuilds it."""
    rebuild = f"rebuild it with `{command}`"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if not isinstance(manifest, dict):
            raise ValueError("manifest.json holds no object")
        version = manifest.get("format_version")
        if version not in _READABLE:
            raise DataError(f"{folder} has cache format {version}, this version reads {FORMAT_VERSION}; {rebuild}")
        for key, wanted in settings.words().items():
            if manifest.get(key) != wanted:
                raise DataError(f"{folder} was made with {key}={manifest.get(key)}, not {key}={wanted}; {rebuild}")
        text = (folder / "index.csv").read_text()
        if hashlib.sha256(text.encode()).hexdigest() != manifest["index_sha256"]:
            raise DataError(f"{folder}/index.csv is not the one that belongs to manifest.json; {rebuild}")
        rows = list(csv.DictReader(text.splitlines()))
        frames = np.load(folder / "frames.npy", mmap_mode="r", allow_pickle=False)
        table = np.load(folder / TABLE, allow_pickle=False) if "overflow_sha256" in manifest else np.empty(0, OVERFLOW)
        if len(table) and hashlib.sha256(table.tobytes()).hexdigest() != manifest["overflow_sha256"]:
            raise DataError(f"{folder}/{TABLE} is not the one that belongs to manifest.json; {rebuild}")
        dtype, _ = manifest["dtype"], [Problem(**p) for p in manifest["excluded"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read ({error}); {rebuild}") from None
    if frames.shape != (len(rows), *settings.shape) or str(frames.dtype) != dtype:
        raise DataError(
            f"{folder}/frames.npy holds {frames.shape} {frames.dtype}, its index {len(rows)} samples of"
            f" {settings.shape} {dtype}; {rebuild}"
        )
    if version == 1:
        warnings.warn(
            f"{folder} has no checksums of its frames, as an earlier version made it, so damage to them goes unseen;"
            f" {rebuild} to have them checked",
            stacklevel=3,
        )
    names, labels, parts, events = ([r[key] for r in rows] for key in ("name", "label", "part", "events"))
    return Cache(
        ByteFrames(frames, table) if len(table) else frames,
        names,
        np.array(labels, np.int64),
        np.array(parts),
        np.array(events, np.int64),
        manifest,
        folder,
        command,
        None if version == 1 else [int(r["row_crc32"], 16) for r in rows],
        {r["name"].partition(":")[0]: (int(r["bytes"]), r["crc32"]) for r in rows},
    )


def _changed_source(dataset: Recorded, data_dir, cache_dir, cache: Cache) -> str | None:
    """How the raw files in `data_dir` differ from those in the index; None if they agree, are absent, or are not unpacked."""
    try:
        recordings = find_recordings(dataset, data_dir, cache_dir, unpack=False)
    except UserError:
        return None
    for name, (size, crc32) in cache.files.items():
        if name not in recordings.files:
            return f"{name} is in it, but no longer in data_dir={data_dir}"
        entry = recordings.files[name]
        if entry.size != size:
            return f"{name} had {size} bytes when it was read and has {entry.size} now"
        if entry.crc32 and entry.crc32 != crc32:
            return f"{name} has changed: its CRC-32 was {crc32} and is {entry.crc32} now"
    if dataset.total is None:  # nobody else says which recordings there are
        new = sorted(recordings.files.keys() - cache.files.keys() - {p["name"] for p in cache.manifest["excluded"]})
        if new:
            return f"{new[0]} is in data_dir={data_dir}, but not in it"
    return None
