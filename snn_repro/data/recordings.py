"""Recordings of event sets: where they lie, which samples they hold, and how one becomes frames."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from snn_repro.data.archives import (
    ARCHIVES,
    Entry,
    archive_suffix,
    children_of,
    close_archives,
    entries,
    hidden,
    means,
    stem,
)
from snn_repro.data.dataset import EventSet, Sample
from snn_repro.data.events import Events, integrate
from snn_repro.errors import DataError, UserError


class Recordings(NamedTuple):
    """What was found of a data set: its files, and its samples sorted by name."""

    files: dict[str, Entry]
    samples: list[Sample]
    problems: dict[str, str]  # name -> why it cannot be used, found while listing
    ignored: int  # files that do not belong to the data set


def find_sources(dataset: EventSet, data_dir: str | Path | None) -> list[Path]:
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


def find_recordings(dataset: EventSet, data_dir: str | Path | None, quick: bool = False) -> Recordings:
    """List the files and samples of a data set below `data_dir`; archives count as much as folders.

    Raises UserError and DataError as `find_sources` does, and DataError for archives that cannot be read. quick:
    raises SlowToList where a whole archive would have to be unpacked for its names.
    """
    close_archives()  # one that was opened before may have been replaced since
    sources = find_sources(dataset, data_dir)
    files, ignored = {}, 0
    level: dict[str, int] = {}  # of two files of the same name the less deeply nested one counts
    spelling = {c.lower(): c for c in dataset.class_names}
    for source in sources:
        for inner, entry in entries(source, dataset.known_names, 1 if dataset.depth == 1 else 3, quick):
            if hidden(inner):
                ignored += 1
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
