"""Prepared frames: `prepare` makes a cache from raw recordings once, `open_cache` opens it.

A finished cache is a folder `cache_dir/<dataset>/T<timesteps>-<number|time|braincog>[-<pixels>px]` with these files:

    frames.npy     [N, T, 2, H, W], memory-mapped when used: event counts as bytes, or, resized, float16 (float32 where
                   a count needs it)
    overflow.npy   counts above a byte, if any (`ByteFrames`)
    index.csv      one line per sample, sorted by name: row, label, official part, events, bytes and CRC-32 of its file,
                   CRC-32 of its row's frames in the narrowest type that holds their counts, name
    manifest.json  format version, settings, shape, what was excluded and why

A row's CRC-32 is checked when a run first reads the row (`RowCheck`), so that damaged frames are not trained on. Format
version 2, without overflow.npy, is still read.

While it is made, the folder is called `<name>.partial` and holds a file of frames for each recording; these are joined
at the end. So a killed run loses at most the recordings in progress.
"""

import csv
import hashlib
import json
import os
import shutil
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from snn_repro import distributed
from snn_repro.console import progress
from snn_repro.data.archives import name_matches
from snn_repro.data.batches import RowCheck
from snn_repro.data.dataset import SETS, Entry, Recorded, Sample
from snn_repro.data.events import OVERFLOW, ByteFrames, cut, split_counts, to_frames
from snn_repro.data.recordings import Recordings, find_recordings, read_entry, walk
from snn_repro.errors import DataError, UserError, nearest
from snn_repro.files import write_error, write_json, write_text

FORMAT_VERSION = 3
_READABLE = (2, 3)
TABLE = "overflow.npy"
_PART_VERSION = 4  # format of the files of an unfinished cache
WHOLE = 2**30  # bytes of own recordings up to which all contents are compared; of more, evenly spaced files


class Settings(NamedTuple):
    """Everything that determines the content of a cache."""

    dataset: Recorded
    timesteps: int
    by: str = "number"  # or "time", "braincog": see `integrate`
    frame_size: int | None = None  # pixels; None keeps the sensor's size

    @property
    def folder(self) -> Path:
        """Its folder, relative to cache_dir."""
        pixels = f"-{self.frame_size}px" if self.frame_size else ""
        return Path(self.dataset.cache_name) / f"T{self.timesteps}-{self.by}{pixels}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[T, 2, H, W] of one sample."""
        return (self.timesteps, *self.dataset.frame_shape(self.frame_size))

    def words(self) -> dict[str, Any]:
        """Its entries in the manifest."""
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
    """An opened cache; `names`, `labels` and `parts` follow the rows of `frames`, sorted by name."""

    frames: np.ndarray | ByteFrames  # memory-mapped [N, T, 2, H, W]
    names: list[str]
    labels: np.ndarray  # int64 [N]
    parts: list[str] | np.ndarray  # "train" | "test" if the split is official, else ""
    manifest: dict[str, Any]
    excluded: dict[str, str]  # sample or file -> reason
    folder: Path
    rebuild: str  # the command that rebuilds it
    checksums: list[int]  # CRC-32 of the bytes of each row of `frames`
    files: dict[str, tuple[int, str]]  # file of each recording -> its bytes and CRC-32


# ------------------------------------------------------------------ opening


def open_cache(settings: Settings, cache_dir: str | Path | None, data_dir: str | Path | None = None) -> Cache:
    """Open a finished cache, memory-mapped; the frames are not read yet (see RowCheck).

    Raises UserError if there is none. Raises DataError, with the command that rebuilds it, for another format version
    or other settings, for files that do not fit together, or if it was made from other raw files (checked only if
    `data_dir` is given and holds the data set).
    """
    if not cache_dir:
        raise UserError(
            f"cache_dir is not set: {settings.dataset.name} is read from prepared frames; run"
            f" `{settings.command(data_dir)}` once, then pass the same cache_dir=DIR"
        )
    folder, command = Path(cache_dir, settings.folder), settings.command(data_dir, cache_dir)
    if not (folder / "manifest.json").is_file():
        begun = Path(f"{folder}.partial").exists()
        unfinished = " (an unfinished one is there: the command resumes it)" if begun else ""
        again = " rebuild=true" if folder.exists() else ""
        raise UserError(f"no prepared frames at {folder}{unfinished}; run `{command}{again}` once")
    cache = _read(folder, settings, f"{command} rebuild=true")
    if changed := _changed_source(settings.dataset, data_dir, cache_dir, cache):
        raise DataError(
            f"{folder} is stale: {changed}; rebuild it with `{cache.rebuild}`, or give the data_dir that it was made from"
        )
    return cache


def _read(folder: Path, settings: Settings, command: str) -> Cache:
    """Open an intact cache with these settings. Raises DataError with the command that rebuilds it."""
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
                raise ValueError(f"{file} does not belong to manifest.json")
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
        manifest,
        excluded,
        folder,
        command,
        [int(r["row_crc32"], 16) for r in rows],
        {r["name"].partition(":")[0]: (int(r["bytes"]), r["crc32"]) for r in rows},
    )


def _changed_source(dataset: Recorded, data_dir, cache_dir, cache: Cache) -> str | None:
    """How raw files in `data_dir` differ from the index; None if equal, absent or packed.

    For own data the contents are compared too: other data may have the same names and sizes.
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
    step = 1 + sum(size for size, _ in cache.files.values()) // WHOLE
    for name in sorted(cache.files)[::step] if dataset.own else []:
        if f"{zlib.crc32(read_entry(files[name], name)):08x}" != cache.files[name][1]:
            return f"the content of {name} has changed"
    return None


# ------------------------------------------------------------------ making


def event_set(name: str) -> Any:
    """The data set of this name. Raises UserError if it needs no preparation."""
    sets = {n: s for n, s in SETS.items() if s.prepared}
    if name not in sets:
        raise UserError(f"dataset={name} needs no preparation; these do: {', '.join(sets)}{nearest(name, sets)}")
    return sets[name]


def verify_cache(settings: Settings, cache_dir: str | Path | None, say=print) -> tuple[Cache, list[str]]:
    """Read all rows of a cache: (cache, names of damaged rows). Raises like `open_cache`."""
    cache = open_cache(settings, cache_dir)
    check, bad = RowCheck(cache), []
    with progress("rows", len(cache.names), say) as advance:
        for row, name in enumerate(cache.names):
            if not check.intact(row, cache.frames[row]):
                bad.append(name)
                say(f"bad: {name} (row {row})")
            advance(row + 1)
    return cache, bad


class Report(NamedTuple):
    """Result of `prepare`."""

    folder: Path
    samples: int  # in the finished cache
    expected: int  # in the complete data set
    read: int  # samples decoded by this call
    problems: dict[str, str]  # excluded sample or file -> reason
    speed: str = ""  # events read by this call, and per second


def prepare(
    settings: Settings, data_dir: str | Path | None, cache_dir: str | Path | None, workers: int | None = None,
    allow_bad: bool = False, rebuild: bool = False, say=print,
) -> Report:  # fmt: skip
    """Read every recording of a data set below `data_dir` and write its frames to `cache_dir`.

    Resumes after a killed run; returns at once if the cache is finished and its source files have the same names and
    sizes. Every file is checked; bad ones are reported through `say` with the reason. The cache is finished only if all
    are good, or with allow_bad=True, which records the exclusions in the manifest. rebuild=True makes it again and
    replaces the old one at the end. workers: threads (default: one per CPU). Raises UserError and DataError.
    """
    if not cache_dir:
        raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the prepared frames")
    settings = settings._replace(dataset=settings.dataset.measured(data_dir, say))
    dataset, folder = settings.dataset, Path(cache_dir, settings.folder)
    _refuse_overlap(dataset, data_dir, folder)
    if folder.exists() and not rebuild:
        cache = open_cache(settings, cache_dir, data_dir)
        expected = dataset.total or len(cache.names) + len(cache.excluded)
        return Report(folder, len(cache.names), expected, 0, cache.excluded)
    found, partial = find_recordings(dataset, data_dir, cache_dir), Path(f"{folder}.partial")
    problems = dict(sorted(found.problems.items()))
    for problem in problems.items():
        say(f"bad: {_said(*problem)}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial / "lock", timeout=0.2):
            made, read, speed = _read_all(partial, settings, found, workers or distributed.cores(), say)
            problems |= {name: why for facts in made.values() for name, why in facts["problems"].items()}
            if problems and not allow_bad:
                raise DataError(
                    f"{len(problems)} of {len(found.samples) + len(found.problems)} recordings of {dataset.name} are bad"
                    f" ({_said(*next(iter(problems.items())))}); replace them and run again (only those are read), or"
                    " pass allow_bad=true to exclude them, which the manifest records"
                )
            samples = _join(made, settings, partial / "finished", problems)
            shutil.rmtree(folder, ignore_errors=True)
            (partial / "finished").rename(folder)
            shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise UserError(f"another run is preparing {partial}; wait for it or stop it") from None
    except OSError as error:
        raise write_error(partial, error, "cache_dir=DIR") from None
    return Report(folder, samples, dataset.total or len(found.samples), read, problems, speed)


def _said(name: str, reason: str) -> str:
    return reason if name in reason else f"{name}: {reason}"


def _refuse_overlap(dataset: Recorded, data_dir: str | Path | None, folder: Path) -> None:
    """Raise UserError for a cache inside the data set's own, read-only folders."""
    holding = {inner.rpartition("/")[0] for inner, _ in walk(dataset, data_dir) if not inner.endswith("/")}
    own = {Path(data_dir or "", *above) for above in (Path(h).parts[:n] for h in holding for n in range(1, 9))}
    roots = Path(data_dir or ""), Path(os.path.realpath(data_dir or ""))
    own = (own - {roots[0]}) | {root for root in roots if name_matches(root.name, dataset.known_names)}
    for raw in own:
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(raw)):
            raise UserError(
                f"cache_dir would put the cache, {folder}, inside of the data set's own folder {raw}, which is never"
                " written to; choose a folder outside with cache_dir=DIR"
            )


# ------------------------------------------------------------------ a file of frames for each recording


def _read_all(
    partial: Path, settings: Settings, found: Recordings, threads: int, say
) -> tuple[dict[Path, Any], int, str]:
    """({part: facts} of all files, samples read now, speed); reads files with missing or damaged parts.

    In threads, as neither NumPy nor the counting kernel holds Python's lock for long.
    """
    made: dict[Path, Any] = {}
    jobs, began = [], time.perf_counter()
    for file, group in groupby(found.samples, lambda sample: sample.file):
        entry, samples = found.files[file], list(group)
        state = os.stat(entry.path) if os.path.isfile(entry.path) else None
        plan = json.dumps([_PART_VERSION, settings.words(), samples, state and (state.st_size, state.st_mtime_ns)])
        part = partial / f"{hashlib.sha256(plan.encode()).hexdigest()[:24]}.npz"  # named by all that it depends on
        made[part] = _kept(part)
        if made[part] is None:
            jobs.append((settings, part, entry, samples))
    if len(jobs) < len(made):
        say(f"{len(made) - len(jobs)} of {len(made)} files were read before")
    pool = ThreadPoolExecutor(threads, "prepare")
    with warnings.catch_warnings(record=True) as caught, progress("files", len(jobs), say) as advance:
        warnings.simplefilter("always")
        try:
            for n, facts in enumerate(pool.map(lambda job: _decode(*job), jobs)):
                for _ in range(len(caught)):
                    say(f"note: {caught.pop(0).message}")
                for problem in facts["problems"].items():
                    say(f"bad: {_said(*problem)}")
                made[jobs[n][1]] = facts
                advance(n + 1)
        finally:
            pool.shutdown(cancel_futures=True)
    events = [row[3] for _, part, *_ in jobs for row in made[part]["rows"]]
    return made, len(events), f"{sum(events):,} events, {sum(events) / (time.perf_counter() - began):,.0f} per second"


def _kept(part: Path) -> dict[str, Any] | None:
    """Facts of a part that is intact and has all samples; else None."""
    try:
        with zipfile.ZipFile(part) as stored, np.load(part) as arrays:
            facts = json.loads(str(arrays["facts"]))
            return facts if stored.testzip() is None and not facts["problems"] else None
    except Exception:  # whatever is wrong with it, make it again
        return None


def _decode(settings: Settings, part: Path, entry: Entry, samples: list[Sample]) -> dict[str, Any]:
    """Write the frames of one file; returns facts: bytes, rows, and problems of samples."""
    facts: dict[str, Any] = {"file": samples[0].file, "rows": [], "problems": {}}
    arrays: dict[str, Any] = {}
    part.unlink(missing_ok=True)
    try:
        data = read_entry(entry, samples[0].file)
        events = settings.dataset.decode(data, samples[0].file)
    except DataError as error:
        return facts | {"problems": {samples[0].file: str(error)}}
    facts |= {"size": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    for sample in samples:
        inside = cut(events, sample.start, sample.stop)
        try:
            if not len(inside.t):
                raise DataError("it holds no events")
            frames = to_frames(inside, settings.dataset.shape[1:], *settings[1:])
        except DataError as error:
            facts["problems"][sample.name] = str(error)
            continue
        arrays[str(len(arrays))] = frames
        facts["rows"].append([sample.name, sample.label, sample.part, len(inside.t), str(frames.dtype)])
    with open(part.with_suffix(".tmp"), "wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
    part.with_suffix(".tmp").replace(part)
    return facts


# ------------------------------------------------------------------ joining them


def _join(made: dict[Path, dict[str, Any]], settings: Settings, target: Path, problems: dict[str, str]) -> int:
    """Join all parts into a finished cache in `target`; returns the number of samples."""
    if not (kinds := [row[-1] for facts in made.values() for row in facts["rows"]]):
        raise DataError(f"no recording of {settings.dataset.name} is usable, so there is nothing to cache")
    dtype, shape = np.result_type(*set(kinds)), (len(kinds), *settings.shape)
    counts = dtype.kind == "u"
    dtype = np.dtype(np.uint8) if counts else dtype  # larger counts go to the table
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    index, tables = ["row,label,part,events,bytes,crc32,row_crc32,name"], [np.empty(0, OVERFLOW)]
    with open(target / "frames.npy", "wb") as file:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for part, facts in made.items():
            stored = np.load(part) if facts["rows"] else {}
            for k, (name, label, split, events, _) in enumerate(facts["rows"]):
                values = written = stored[str(k)] if counts else stored[str(k)].astype(dtype)
                row = len(index) - 1
                if counts:
                    written, places, more = split_counts(values)
                    tables.append(np.rec.fromarrays([np.full(len(places), row), places, more], dtype=OVERFLOW))
                file.write(np.ascontiguousarray(written).data)
                row_crc32 = f"{zlib.crc32(np.ascontiguousarray(values).data):08x}"
                index.append(f"{row},{label},{split},{events},{facts['size']},{facts['crc32']},{row_crc32},{name}")
        file.flush()
        os.fsync(file.fileno())
    text, table = "\n".join(index) + "\n", np.concatenate(tables)
    manifest = {
        "format_version": FORMAT_VERSION,
        **settings.words(),
        "shape": list(shape),
        "dtype": str(dtype),
        "excluded": [{"name": name, "reason": reason} for name, reason in problems.items()],
        "index_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if len(table):
        np.save(target / TABLE, table)
        manifest["overflow_sha256"] = hashlib.sha256(table.tobytes()).hexdigest()
    write_text(target / "index.csv", text)
    write_json(target / "manifest.json", manifest)
    return len(kinds)
