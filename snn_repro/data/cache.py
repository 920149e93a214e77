"""The gate through which prepared frames are opened, and from there to batches. Prepare.py makes them.

A finished cache is a folder `cache_dir/<dataset>/T<timesteps>-<number|time|braincog>[-<pixels>px]` with these files:

    frames.npy     [N, T, 2, H, W], memory-mapped when used: event counts as bytes, or, resized, float16 (float32
                   where a count needs it)
    overflow.npy   the counts that a byte does not hold, where there are some (`ByteFrames`)
    index.csv      one line a sample, sorted by name: row, label, official part, events, bytes and CRC-32 of
                   its file, CRC-32 of the bytes of its row's frames, in the
                   narrowest type where the table has some of them, name
    manifest.json  format version, settings, shape, what was left out and why, a SHA-256 over all source files

A row's CRC-32 is checked when a run first reads the row (`RowCheck`), so that frames which decayed on the disk are
not trained on. Format version 2, which had no table, is still read.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro.data.dataset import Entry, Recorded
from snn_repro.data.events import OVERFLOW, ByteFrames
from snn_repro.data.recordings import find_recordings, read_entry
from snn_repro.errors import DataError, UserError

FORMAT_VERSION = 3
_READABLE = (2, 3)
TABLE = "overflow.npy"
WHOLE, FEW = 2**30, 64  # bytes of own recordings up to which the contents of all are compared; how many of more


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
    excluded: dict[str, str]  # sample or file -> why it was left out
    folder: Path
    rebuild: str  # the command that makes it again
    checksums: list[int]  # CRC-32 of the bytes of each row of `frames`
    files: dict[str, tuple[int, str]]  # name of each recording's file: its bytes and CRC-32


# ------------------------------------------------------------------ opening


def partial_folder(folder: Path) -> Path:
    """What the folder of a cache is called while it is made."""
    return folder.with_name(folder.name + ".partial")


def open_cache(settings: Settings, cache_dir: str | Path | None, data_dir: str | Path | None = None) -> Cache:
    """Open a finished cache, memory-mapped. The frames themselves are not read: see RowCheck.

    Raises UserError if there is none, DataError if it is of another format version, was made with other
    settings, does not fit together, or (only looked at if `data_dir` is given and holds the data set) was
    made from other files: one sentence each, with the command that rebuilds it.
    """
    if not cache_dir:
        raise UserError(
            f"cache_dir is not set: {settings.dataset.name} is read from prepared frames; run `{settings.command(data_dir)}` once,"
            " then pass the same cache_dir=DIR"
        )
    folder, command = Path(cache_dir, settings.folder), settings.command(data_dir, cache_dir)
    if not (folder / "manifest.json").is_file():
        unfinished = (
            " (an unfinished one is there: the command goes on with it)" if partial_folder(folder).exists() else ""
        )
        again = " rebuild=true" if folder.exists() else ""
        raise UserError(f"no prepared frames at {folder}{unfinished}; run `{command}{again}` once")
    cache = _read(folder, settings, f"{command} rebuild=true")
    if changed := _changed_source(settings.dataset, data_dir, cache_dir, cache):
        raise DataError(
            f"{folder} is stale: {changed}; rebuild it with `{cache.rebuild}`, or give the data_dir that it was made from"
        )
    return cache


def _read(folder: Path, settings: Settings, command: str) -> Cache:
    """A cache whose files are as they were written, with these settings. Raises DataError with the command that rebuilds it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if (version := manifest["format_version"]) not in _READABLE:
            raise ValueError(f"it has cache format {version}, this version reads {FORMAT_VERSION}")
        for key, wanted in settings.words().items():
            if manifest.get(key) != wanted:
                raise ValueError(f"it was made with {key}={manifest.get(key)}, not {key}={wanted}")
        text = (folder / "index.csv").read_text()
        frames = np.load(folder / "frames.npy", mmap_mode="r", allow_pickle=False)
        table = np.load(folder / TABLE, allow_pickle=False) if "overflow_sha256" in manifest else np.empty(0, OVERFLOW)
        for file, content, key in (("index.csv", text.encode(), "index"), (TABLE, table.tobytes(), "overflow")):
            if content and hashlib.sha256(content).hexdigest() != manifest[f"{key}_sha256"]:
                raise ValueError(f"{file} is not the one that belongs to manifest.json")
        rows = list(csv.DictReader(text.splitlines()))
        if frames.shape != (len(rows), *settings.shape) or str(frames.dtype) != manifest["dtype"]:
            raise ValueError(
                f"frames.npy holds {frames.shape} {frames.dtype}, its index {len(rows)} samples of {settings.shape}"
                f" {manifest['dtype']}"
            )
        excluded = {problem["name"]: problem["reason"] for problem in manifest["excluded"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read ({error}); rebuild it with `{command}`") from None
    return Cache(
        ByteFrames(frames, table) if len(table) else frames,
        [r["name"] for r in rows],
        np.array([r["label"] for r in rows], np.int64),
        np.array([r["part"] for r in rows]),
        np.array([r["events"] for r in rows], np.int64),
        manifest,
        excluded,
        folder,
        command,
        [int(r["row_crc32"], 16) for r in rows],
        {r["name"].partition(":")[0]: (int(r["bytes"]), r["crc32"]) for r in rows},
    )


def _changed_source(dataset: Recorded, data_dir, cache_dir, cache: Cache) -> str | None:
    """How the raw files in `data_dir` differ from those in the index; None if they agree, are absent, or are not unpacked.

    Of a data set of one's own, the contents are compared too: another may have files of these names and sizes.
    """
    try:
        files = find_recordings(dataset, data_dir, cache_dir, unpack=False).files
    except UserError:
        return None
    for name, (size, _) in cache.files.items():
        if name not in files:
            return f"{name} is in it, but no longer in data_dir={data_dir}"
        if (now := os.path.getsize(files[name].path) if os.path.isfile(files[name].path) else 0) != size:
            return f"{name} had {size} bytes when it was read and has {now} now"
    if new := sorted(files.keys() - cache.files.keys() - {name.partition(":")[0] for name in cache.excluded}):
        return f"{new[0]} is in data_dir={data_dir}, but not in it"
    compared = sorted(cache.files) if dataset.own else []
    if sum(cache.files[name][0] for name in compared) > WHOLE:
        compared = compared[:: -(-len(compared) // FEW)]
    for name in compared:
        if _crc32(files[name], name, os.stat(files[name].path).st_mtime_ns) != cache.files[name][1]:
            return f"the content of {name} has changed"
    return None


@lru_cache(maxsize=100_000)
def _crc32(entry: Entry, name: str, changed: int) -> str:
    """Eight hexadecimal digits of a file as it was `changed` last; a run opens its cache several times."""
    return f"{zlib.crc32(read_entry(entry, name)):08x}"
