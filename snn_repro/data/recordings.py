"""Recordings of event sets: where they lie, which samples they hold, and how one becomes frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from snn_repro.data.archives import ARCHIVES, LARGEST_FILE, archive_suffix, children_of, hidden, means, stem, unpacked
from snn_repro.data.dataset import Entry, Recorded, Sample
from snn_repro.data.events import Events, integrate
from snn_repro.errors import DataError, UserError


class Recordings(NamedTuple):
    """What was found of a data set: its files, and its samples sorted by name."""

    files: dict[str, Entry]
    samples: list[Sample]
    problems: dict[str, str]  # name -> why it cannot be used, found while listing
    ignored: int  # files that do not belong to the data set


def find_sources(dataset: Recorded, data_dir: str | Path | None) -> list[Path]:
    """The folders or archives below `data_dir` that hold the data set, by their names, whatever their capitals.

    Raises UserError if data_dir is not set, DataError saying what was looked for and where, and where the
    authors publish it.
    """
    if not data_dir:
        raise UserError(f"data_dir is not set: pass data_dir=DIR, the folder that holds {dataset.expected}")
    root = Path(data_dir)
    if not root.is_dir():
        why = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data_dir={data_dir} {why}: pass the folder that holds {dataset.expected}")
    bases, known = [root], dataset.known_names
    for base in bases:  # grows: the folders named after the data set, and those that its readers make in them
        depth = len(base.relative_to(root).parts)
        children = children_of(base)
        if held := dataset.find(children):
            return held
        folders = [p for n, p in children.items() if depth < 3 and p.is_dir() and not archive_suffix(n)]
        bases += [p for p in folders if means(p.name, known) or p.name.lower() in ("extract", "extracted", "download")]
    for base in bases:
        children = children_of(base)
        if whole := [p for n, p in sorted(children.items()) if archive_suffix(n) and means(n, known) and p.is_file()]:
            return whole[:1]
    suffixes = ", ".join(ARCHIVES)
    raise DataError(
        f"{dataset.name} was not found in {root}: expected {dataset.expected} there or in a folder {root / dataset.folders[0]};"
        f" looked for the names {', '.join(known)} in capitals or not, as folders and with"
        f" {suffixes}; its authors publish it at {dataset.published}"
    )


def find_recordings(
    dataset: Recorded, data_dir: str | Path | None, cache_dir: str | Path | None = None, unpack: bool = True
) -> Recordings:
    """List the files and samples of a data set below `data_dir`; archives are unpacked in cache_dir.

    Raises UserError and DataError as `find_sources` and `unpacked` do.
    """
    sources = find_sources(dataset, data_dir)
    files, ignored = {}, 0
    level: dict[str, int] = {}  # of two files of the same name the less deeply nested one counts
    spelling = {c.lower(): c for c in dataset.class_names}
    for source in sources:
        for inner, entry in _entries(source, dataset, cache_dir, unpack):
            if hidden(inner):
                ignored += inner.count("/") > 0 or source.is_dir()
                continue
            *above, file = [stem(source.name), *inner.split("/")][-dataset.depth :]
            if spelling:  # others may be named in lists as they are
                above, file = [spelling.get(a.lower(), a) for a in above], file.lower()
            name, depth = "/".join([*above, file]), inner.count("/")
            if name in files and level[name] <= depth:
                ignored += 1
                continue
            ignored += name in files
            files[name], level[name] = entry, depth
    samples, problems = dataset.listing(files)
    samples.sort()
    used = {s.file for s in samples}
    if not samples and not problems:
        raise DataError(f"{sources[0]} holds no recording of {dataset.name}; expected {dataset.expected}")
    suffixes = {Path(n).suffix for n in used}
    ignored += len([n for n in files if n not in used and Path(n).suffix in suffixes])
    return Recordings({n: files[n] for n in used}, samples, problems, ignored)


def _entries(
    source: Path, dataset: Recorded, cache_dir: str | Path | None, unpack: bool
) -> Iterator[tuple[str, Entry]]:
    """(name inside, Entry) of the files of a folder or an archive."""
    if source.is_dir():
        yield from _walk(str(source), "", frozenset(), 1 if dataset.depth == 1 else 3)
        return
    folder, problems = unpacked(source, cache_dir, lambda name: means(name, dataset.known_names), unpack)
    yield from _walk(str(folder), "", frozenset(), 9)
    for name, why in problems.items():
        yield name, Entry("", 0, problem=why)


def _walk(folder: str, inner: str, above: frozenset, depth: int) -> Iterator[tuple[str, Entry]]:
    """Links are followed, wherever they point, but never into a folder that the way there has been through."""
    try:
        status, listed = os.stat(folder), sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None
    if (status.st_dev, status.st_ino) in above:
        return
    above |= {(status.st_dev, status.st_ino)}
    for entry in listed:
        try:
            if not entry.is_dir():
                yield inner + entry.name, Entry(entry.path, entry.stat().st_size if entry.is_file() else 0)
            elif len(above) < depth:
                yield from _walk(entry.path, f"{inner}{entry.name}/", above, depth)
        except OSError:  # a link to itself
            yield inner + entry.name, Entry(entry.path, 0)


def read_entry(entry: Entry, name: str) -> bytes:
    """The bytes of a file. Raises DataError naming it."""
    if entry.problem:
        raise DataError(f"{name} cannot be unpacked ({entry.problem}); get it again")
    if entry.size > LARGEST_FILE:
        raise DataError(f"{name} has {entry.size} bytes, more than any recording of this data set")
    if os.path.lexists(entry.path) and not os.path.isfile(entry.path):
        raise DataError(f"{name} is no file but a link to nothing, a pipe or a device")
    try:
        return Path(entry.path).read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None


def read_or_error(entry: Entry, name: str) -> bytes | DataError:
    """As `read_entry`; the error is returned."""
    try:
        return read_entry(entry, name)
    except DataError as error:
        return error


def cut(events: Events, sample: Sample) -> Events:
    """The events of one sample: those with start <= t < stop, in recorded order."""
    if sample.stop < 0:
        return events
    inside = (events.t >= sample.start) & (events.t < sample.stop)
    return Events(*(a[inside] for a in events))


def to_frames(events: Events, size: tuple[int, int], timesteps: int, by: str, frame_size: int | None) -> np.ndarray:
    """Frames as the cache stores them: counts [T, 2, H, W] in the narrowest of uint8, uint16, uint32 that holds them;
    with `frame_size`, resized to [T, 2, frame_size, frame_size] float16 (float32 where float16 cannot hold a
    count).

    The resize is bilinear with antialiasing, on float32 frames, without keeping the aspect ratio. by="braincog": of the
    pixels that the recording's events reach, from corner to corner and without antialiasing, as BrainCog does it.
    """
    counts = integrate(events, timesteps, size, by, dtype=np.uint8)
    if frame_size is None:
        return counts
    if corners := by == "braincog":
        rows, columns = (slice(v.min(), int(v.max()) + 1) for v in (events.y, events.x))
        counts = counts[..., rows, columns]
    frames, size = torch.from_numpy(counts.astype(np.float32)), (frame_size, frame_size)
    small = interpolate(frames, size=size, mode="bilinear", antialias=not corners, align_corners=corners)
    return small.numpy().astype(np.float16 if counts.max(initial=0) <= 60_000 else np.float32)
