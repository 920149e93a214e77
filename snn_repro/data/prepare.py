"""Raw event recordings -> cached frames, once; cache.py says what a cache holds, and opens it.

While it is made, the folder is called `<name>.partial` and holds a file of frames for each recording; these are joined at
the end. So a run that is killed at any moment loses at most the recordings in hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from snn_repro import distributed
from snn_repro.console import progress
from snn_repro.data.archives import Packed, means
from snn_repro.data.batches import RowCheck, keep_freed_memory
from snn_repro.data.cache import FORMAT_VERSION, TABLE, Cache, Problem, Settings, open_cache, partial_folder
from snn_repro.data.counts import MOST, OVERFLOW, apart
from snn_repro.data.dataset import Entry, Recorded, Sample
from snn_repro.data.recordings import Recordings, cut, find_recordings, find_sources, read_or_error, to_frames
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError, nearest
from snn_repro.files import hold, write_text

_MOST_OVER = 1 / 16  # of all counts; where more do not fit into bytes, all are widened
_PART_VERSION = 2  # of the files of an unfinished cache
_COLUMNS = ("row", "label", "part", "events", "bytes", "crc32", "row_crc32", "name")


def event_set(name: str) -> Any:
    """The data set of this name. Raises UserError if it is not one to prepare."""
    sets = {n: s for n, s in SETS.items() if s.prepared}
    if name not in sets:
        raise UserError(f"dataset={name} needs no preparation; these do: {', '.join(sets)}{nearest(name, sets)}")
    return sets[name]


def verify_cache(settings: Settings, cache_dir: str | Path | None, say=print) -> tuple[Cache, list[str]]:
    """Read all rows of a cache: (the cache, the names of those that are not what was stored).

    Raises as `open_cache` does, and DataError for a cache without checksums.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = open_cache(settings, cache_dir)
    if cache.checksums is None:
        raise DataError(
            f"{cache.folder} has no checksums, as an earlier version made it; rebuild it with `{cache.rebuild}`"
        )
    check, bad = RowCheck(cache), []
    with progress("rows", len(cache.names), say) as advance:
        for row, name in enumerate(cache.names):
            if not check.intact(row, cache.frames[row]):
                bad.append(name)
                say(f"bad: {name} (row {row})")
            advance(row + 1)
    return cache, bad


# ------------------------------------------------------------------ decoding


class Decoded(NamedTuple):
    """One file's worth of frames, as it comes back from a worker."""

    file: str
    size: int
    crc32: str  # of the file, eight hexadecimal digits
    frames: list[tuple[Sample, np.ndarray, int]]  # (sample, frames, number of events)
    problems: list[Problem]
    notes: list[str]  # what a reader warned of


def decode_file(data: bytes | DataError, file: str, samples: list[Sample], settings: Settings) -> Decoded:
    """Decode one file and count the frames of its samples. Never raises DataError."""
    dataset = settings.dataset
    if isinstance(data, DataError):
        return Decoded(file, 0, "", [], [Problem(file, str(data))], [])
    digest = f"{zlib.crc32(data):08x}"
    frames, problems = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            events = dataset.decode(data, file)
        except DataError as error:
            return Decoded(file, len(data), digest, [], [Problem(file, str(error))], [])
    for sample in samples:
        try:
            part = cut(events, sample)
            if not len(part.t):
                raise DataError("it holds no events")
            frames.append((sample, to_frames(part, dataset.shape[1:], *settings[1:]), len(part.t)))
        except DataError as error:
            problems.append(Problem(sample.name, str(error)))
    return Decoded(file, len(data), digest, frames, problems, [str(w.message) for w in caught])


def _work(entry: Entry, file: str, samples: list[Sample], settings: Settings) -> Decoded:
    """What a worker process runs for one file."""
    return decode_file(read_or_error(entry, file), file, samples, settings)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory(map_large=True)


def _end_with_parent() -> None:
    parent_process().join()  # type: ignore[union-attr]  # a worker has one
    os._exit(1)  # a killed parent would leave its workers waiting for ever


def _decode_all(
    todo: dict[str, list[Sample]], files: dict[str, Entry], settings: Settings, workers: int
) -> Iterator[Decoded]:
    """Decode the files of `todo` {file: its samples}; order of the results is that in which they get ready."""
    own_class = type(settings.dataset).__module__ == "__main__"  # of a notebook: no other process can import it
    if workers == 0 or own_class or multiprocessing.current_process().daemon:  # a daemon may have no children
        for file, samples in todo.items():
            yield _work(files[file], file, samples, settings)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(workers, max(len(todo), 1)), context, initializer=_start_worker) as pool:
        waiting, running = iter(todo.items()), set()
        try:
            while True:
                for file, samples in waiting:  # a short queue: results wait in memory
                    with _no_main_module():
                        running.add(pool.submit(_work, files[file], file, samples, settings))
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    return
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


@contextlib.contextmanager
def _no_main_module():
    """Start worker processes that do not import the program that called us.

    They need nothing of it, and it may be one that cannot be imported: read from stdin, or a script without
    `if __name__ == "__main__"`, which would prepare again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# ------------------------------------------------------------------ making


class Report(NamedTuple):
    """What `prepare` did."""

    folder: Path
    samples: int  # in the finished cache
    expected: int  # in the complete data set
    read: int  # samples decoded by this call; the rest was there already
    problems: list[Problem]
    ignored: int  # files in the data folder that do not belong to the data set


def prepare(
    settings: Settings,
    data_dir: str | Path | None,
    cache_dir: str | Path | None,
    workers: int | None = None,
    allow_bad: bool = False,
    rebuild: bool = False,
    say=print,
) -> Report:
    """Read every recording of a data set below `data_dir`, and leave its frames in `cache_dir`.

    Goes on where a killed run stopped; returns at once if the cache is finished and its source files are unchanged (name
    and size). Every file is looked at; bad ones are listed through `say` with the reason, without stopping. The cache is
    finished only if all are good, or with allow_bad=True, which notes the exclusions in the manifest. rebuild=True makes it
    again, replacing the old one when it is done. workers: processes (0: none beside this one; default: one a CPU).

    Raises UserError and DataError with one sentence.
    """
    settings = _checked(settings, data_dir, cache_dir, say)
    workers = distributed.cores() if workers is None else workers
    if not 0 <= workers <= 1024:
        raise UserError(f"workers={workers} must be from 0 to 1,024 processes")
    folder = Path(cache_dir or "", settings.folder)
    if folder.exists() and not rebuild:
        return _finished(folder, settings, data_dir, cache_dir)
    recordings = find_recordings(settings.dataset, data_dir, cache_dir)
    problems = [Problem(n, reason) for n, reason in sorted(recordings.problems.items())]
    for problem in problems:
        say(f"bad: {problem}")
    read = 0
    with _partial(partial_folder(folder), settings, cache_dir) as partial:
        todo = partial.missing(recordings)
        if done := len(recordings.files) - len(todo):
            say(f"{done} of {len(recordings.files)} files were read before")
        with progress("files", len(todo), say) as advance:
            for n, decoded in enumerate(_decode_all(todo, recordings.files, settings, workers), 1):
                for line in [f"note: {note}" for note in decoded.notes] + [f"bad: {p}" for p in decoded.problems]:
                    say(line)
                problems += decoded.problems
                with partial.writing():
                    partial.add(decoded, recordings.files[decoded.file], todo[decoded.file])
                read += len(decoded.frames)
                advance(n)
        if problems and not allow_bad:
            raise DataError(
                f"{len(problems)} of {len(recordings.samples) + len(recordings.problems)} recordings of"
                f" {settings.dataset.name} are bad ({problems[0]}); replace them and run again, which reads only those, or"
                " pass allow_bad=true to leave them out, which the manifest then says"
            )
        with partial.writing():
            samples = partial.join(folder, recordings.samples, problems)
    return Report(
        folder, samples, settings.dataset.total or len(recordings.samples), read, problems, recordings.ignored
    )


def _checked(settings: Settings, data_dir: str | Path | None, cache_dir: str | Path | None, say) -> Settings:
    """The settings with what a look at the recordings tells. Raises UserError for those out of proportion."""
    timesteps, frame_size = settings.timesteps, settings.frame_size
    if timesteps < 1:
        raise UserError(f"timesteps={timesteps} must be at least 1")
    if frame_size is not None and frame_size < 4:
        raise UserError(f"frame_size={frame_size} must be at least 4 pixels")
    if not cache_dir:
        raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the prepared frames")
    settings = settings._replace(dataset=settings.dataset.measured(data_dir, say))
    if (size := 4 * math.prod(settings.shape)) > 2**32:
        raise UserError(
            f"timesteps={timesteps} frames of {settings.shape[2]} x {settings.shape[3]} pixels would take {size / 1e9:.0f}"
            " GB a recording; choose fewer, or a smaller frame_size"
        )
    _refuse_overlap(settings.dataset, data_dir, cache_dir, Path(cache_dir, settings.folder))
    return settings


def _finished(folder: Path, settings: Settings, data_dir: str | Path | None, cache_dir: str | Path | None) -> Report:
    """The report on a finished cache. Raises DataError where data_dir holds others than it does."""
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{folder} is there, but is no finished cache: remove it, or replace it with rebuild=true")
    cache, ignored = open_cache(settings, cache_dir, data_dir), 0
    excluded = [Problem(**p) for p in cache.manifest["excluded"]]
    known, expected = {*cache.names, *(p.name for p in excluded)}, settings.dataset.total
    with contextlib.suppress(Packed):
        recordings = find_recordings(settings.dataset, data_dir, cache_dir, unpack=False)
        expected, ignored = expected or len(recordings.samples), recordings.ignored
        new = [s.name for s in recordings.samples if s.name not in known and s.file not in known]
        if new:
            raise DataError(
                f"{folder} is stale: {len(new)} recordings in data_dir={data_dir} are not in it, {new[0]} among them;"
                f" rebuild it with `{settings.command(data_dir, cache_dir)} rebuild=true`"
            )
    return Report(folder, len(cache.names), expected or len(known), 0, excluded, ignored)


def _refuse_overlap(dataset: Recorded, data_dir: str | Path | None, cache_dir: str | Path, folder: Path) -> None:
    """The data set's own folders are only ever read: a cache inside of one would be a write.

    Own are the folders of recordings, and the folder that these or the archives lie in if it is named after the
    data set. Where the links in them point to does not matter.
    """
    sources = find_sources(dataset, data_dir)
    around = sources[0].parent
    if around.name.lower() in ("extract", "extracted", "download"):
        around = around.parent
    own = [p for p in sources if p.is_dir()]
    own += [p for p in (around, Path(os.path.realpath(around))) if means(p.name, dataset.known_names)]
    inside = Path(os.path.realpath(folder))
    for raw in (Path(os.path.realpath(p)) for p in own):
        if inside == raw or raw in inside.parents:
            raise UserError(
                f"cache_dir={cache_dir} would put the cache, {folder}, inside of the data set's own folder {raw}, which"
                " is only ever read; choose a folder outside"
            )


# ------------------------------------------------------------------ the unfinished cache


@contextlib.contextmanager
def _partial(folder: Path, settings: Settings, cache_dir: str | Path | None) -> Iterator[_Partial]:
    """An unfinished cache, locked. Raises UserError if another run has it, or cannot write it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / "lock")
    except OSError as error:
        raise UserError(f"cache_dir={cache_dir} cannot be written: {error}") from None
    if lock is None:
        raise UserError(f"another run is preparing {folder}; wait for it or stop it")
    try:
        yield _Partial(folder, settings)
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, probably for want of memory; finished recordings are kept: run the"
            " command again with fewer workers"
        ) from None
    finally:
        lock.release()


class _Partial:
    """A cache in the making: `<hash of the file's name>.npz` of each recording, with its facts and its samples' frames."""

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        self.facts: dict[str, dict[str, Any]] = {}  # file -> what is known of it

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failed write of the cache, and nothing else that fails, into one sentence."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written ({error}); finished recordings are kept: make room and run again"
            ) from None

    def _path(self, file: str) -> Path:
        return self.folder / f"{hashlib.sha256(file.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.npz"

    def _plan(self, file: str, entry: Entry, samples: list[Sample]) -> dict[str, Any]:
        """What a recording's file must say to be used."""
        try:
            changed = os.stat(entry.path).st_mtime_ns
        except OSError:
            changed = 0
        plan = {"version": _PART_VERSION, "settings": self.settings.words(), "file": file, "size": entry.size}
        return json.loads(json.dumps(plan | {"changed": changed, "samples": samples}))

    def _load(self, file: str) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The facts and frames of a recording, held against the checksums in its file. Raises DataError."""
        try:
            with np.load(self._path(file), allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                return facts, [stored[str(i)] for i in range(len(facts["rows"]))]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            raise DataError(f"{self._path(file)} is damaged: run again") from None

    def missing(self, recordings: Recordings) -> dict[str, list[Sample]]:
        """{file: its samples} of what is still to be read: not here, damaged, or changed since."""
        todo: dict[str, list[Sample]] = {}
        for sample in recordings.samples:
            todo.setdefault(sample.file, []).append(sample)
        for file, samples in list(todo.items()):
            with contextlib.suppress(DataError):
                facts, _ = self._load(file)
                if facts["plan"] == self._plan(file, recordings.files[file], samples) and not facts["problems"]:
                    self.facts[file] = facts
                    del todo[file]
        return todo

    def add(self, done: Decoded, entry: Entry, samples: list[Sample]) -> None:
        """Keep the frames of one file; those of files with problems are read again by the next run."""
        rows = []
        for sample, frames, events in done.frames:
            over = int(np.count_nonzero(frames > MOST)) if frames.dtype.kind == "u" else 0
            rows.append({"name": sample.name, "events": events, "dtype": str(frames.dtype), "over": over})
        facts = {"plan": self._plan(done.file, entry, samples), "problems": len(done.problems), "rows": rows}
        facts |= {"size": done.size, "crc32": done.crc32}
        temporary = self.folder / "writing.npz"
        named: dict[str, Any] = {str(i): frames for i, (_, frames, _) in enumerate(done.frames)}
        np.savez(temporary, facts=np.array(json.dumps(facts)), **named)
        temporary.replace(self._path(done.file))
        self.facts[done.file] = facts

    def join(self, folder: Path, samples: list[Sample], problems: list[Problem]) -> int:
        """Write the finished cache from all recordings, in the place of an older one; returns the number of samples."""
        place = {row["name"]: (k, row) for facts in self.facts.values() for k, row in enumerate(facts["rows"])}
        good = [s for s in samples if s.name in place]
        if not good:
            raise DataError(f"not one recording of {self.settings.dataset.name} is good, so there is nothing to cache")
        dtype = self._dtype([row for _, row in place.values()], len(samples))
        target = self.folder / "finished"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        index, over, last, loaded = [",".join(_COLUMNS)], [], "", []
        with open(target / "frames.npy", "wb") as file:
            descr = np.lib.format.dtype_to_descr(dtype)
            shape = (len(good), *self.settings.shape)
            np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
            for new, sample in enumerate(good):
                facts, (k, row) = self.facts[sample.file], place[sample.name]
                if sample.file != last:
                    last, loaded = sample.file, self._load(sample.file)[1]
                values = stored = np.ascontiguousarray(loaded[k])
                if dtype == np.uint8 and row["over"]:
                    stored, places, counts = apart(values)
                    over += [(new, *pair) for pair in zip(places.tolist(), counts.tolist(), strict=True)]
                else:
                    values = stored = stored.astype(dtype, copy=False)
                file.write(stored.data)
                index.append(
                    f"{new},{sample.label},{sample.part},{row['events']},{facts['size']},{facts['crc32']},"
                    f"{zlib.crc32(values.data):08x},{sample.name}"
                )
            file.flush()
            os.fsync(file.fileno())
        self._describe(target, "\n".join(index) + "\n", over, {"shape": list(shape), "dtype": str(dtype)}, problems)
        _replace(folder, target)
        shutil.rmtree(self.folder, ignore_errors=True)
        return len(good)

    def _dtype(self, rows: list[dict[str, Any]], total: int) -> np.dtype:
        """The type of all frames: bytes with a table of larger counts where these are few, else the widest of all."""
        widest = np.result_type(*{np.dtype(row["dtype"]) for row in rows})
        most = _MOST_OVER * total * math.prod(self.settings.shape)
        few = sum(row["over"] for row in rows) <= most
        return np.dtype(np.uint8) if widest.kind == "u" and few else widest

    def _describe(self, target: Path, index: str, over: list, facts: dict[str, Any], problems: list[Problem]) -> None:
        """Write the index, the table of large counts and the manifest."""
        entries = {f: e for f, e in sorted(self.facts.items()) if e["rows"]}
        sources = "".join(f"{e['crc32']} {e['size']} {f}\n" for f, e in entries.items())
        manifest = {
            "format_version": FORMAT_VERSION,
            **self.settings.words(),
            **facts,
            "samples_of_the_complete_set": self.settings.dataset.total,
            "excluded": [p._asdict() for p in problems],
            "source_files": len(entries),
            "sources_sha256": hashlib.sha256(sources.encode()).hexdigest(),
            "index_sha256": hashlib.sha256(index.encode()).hexdigest(),
        }
        if over:
            table = np.array(over, OVERFLOW)
            np.save(target / TABLE, table)
            manifest["overflow_sha256"] = hashlib.sha256(table.tobytes()).hexdigest()
        write_text(target / "index.csv", index)
        write_text(target / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _replace(folder: Path, finished: Path) -> None:
    """Put a finished cache in its place, instead of an older one if there is one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    finished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    parent = os.open(folder.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)
