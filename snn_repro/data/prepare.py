"""Raw event recordings -> cached frames, once; cache.py says what a cache holds, and opens it.

While it is made, the folder is called `<name>.partial` and has a journal instead of an index. A row is
written first and noted in the journal afterwards with a checksum, so that a run killed at any moment loses at
most the files in hand.
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
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import torch

from snn_repro import distributed
from snn_repro.console import progress
from snn_repro.data.archives import Entry, close_archives, in_tars, means, read_or_error, stream_tar
from snn_repro.data.batches import RowCheck, keep_freed_memory
from snn_repro.data.cache import FORMAT_VERSION, TABLE, Cache, Problem, Settings, open_cache, partial_folder
from snn_repro.data.counts import OVERFLOW, apart, together
from snn_repro.data.dataset import EventSet, Sample
from snn_repro.data.recordings import Recordings, cut, find_recordings, find_sources, to_frames
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError, nearest
from snn_repro.files import hold, write_text

if TYPE_CHECKING:
    from filelock import FileLock

_MOST_OVER = 1 / 16  # of all counts; where more do not fit into bytes, all are widened
_JOURNAL_VERSION = 1  # of the unfinished cache
_OFFSET = 128  # bytes of a .npy file's header here
_COLUMNS = ("row", "label", "part", "events", "bytes", "crc32", "row_crc32", "name")


def event_set(name: str) -> EventSet:
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


# ------------------------------------------------------------------ making


class Report(NamedTuple):
    """What `prepare` did."""

    folder: Path
    samples: int  # in the finished cache
    expected: int  # in the complete data set
    read: int  # samples decoded by this call; the rest was there already
    problems: list[Problem]
    ignored: int  # files in the data folder that do not belong to the data set


class Decoded(NamedTuple):
    """One file's worth of frames, as it comes back from a worker."""

    file: str
    size: int
    crc32: str  # of the file, eight hexadecimal digits
    frames: list[tuple[int, np.ndarray, int]]  # (row, frames, number of events)
    problems: list[Problem]
    notes: list[str]  # what a reader warned of


def decode_file(data: bytes | DataError, file: str, samples: list[tuple[int, Sample]], settings: Settings) -> Decoded:
    """Decode one file and count the frames of its samples, each given with its row. Never raises DataError."""
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
    for row, sample in samples:
        try:
            part = cut(events, sample)
            if not len(part.t):
                raise DataError("it holds no events")
            frames.append((row, to_frames(part, dataset.shape[1:], *settings[1:]), len(part.t)))
        except DataError as error:
            problems.append(Problem(sample.name, str(error)))
    return Decoded(file, len(data), digest, frames, problems, [str(w.message) for w in caught])


def _work(entry: Entry, file: str, samples: list[tuple[int, Sample]], settings: Settings) -> Decoded:
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


def prepare(
    dataset: str | EventSet,
    data_dir: str | Path | None,
    cache_dir: str | Path | None,
    timesteps: int,
    by: str = "number",
    frame_size: int | None = None,
    workers: int | None = None,
    allow_bad: bool = False,
    rebuild: bool = False,
    say=print,
) -> Report:
    """Read every recording of `dataset` below `data_dir`, and leave its frames in `cache_dir`.

    Goes on where a killed run stopped; returns at once if the cache is finished and its source files are
    unchanged (name and size). Every file is looked at; bad ones are listed through `say` with the reason,
    without stopping. The cache is finished only if all are good, or with allow_bad=True, which notes the
    exclusions in the manifest. rebuild=True makes it anew, replacing the old one when it is done. workers:
    processes (0: none beside this one; default: one a CPU).

    Raises UserError and DataError with one sentence.
    """
    if isinstance(dataset, str):
        dataset = event_set(dataset)
    if timesteps < 1:
        raise UserError(f"timesteps={timesteps} must be at least 1")
    if frame_size is not None and frame_size < 4:
        raise UserError(f"frame_size={frame_size} must be at least 4 pixels")
    if not cache_dir:
        raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the prepared frames")
    settings = Settings(dataset.measured(data_dir, say), timesteps, by, frame_size)
    workers = distributed.cores() if workers is None else workers
    if not 0 <= workers <= 1024:
        raise UserError(f"workers={workers} must be from 0 to 1,024 processes")
    if (size := 4 * math.prod(settings.shape)) > 2**32:
        raise UserError(
            f"timesteps={timesteps} frames of {settings.shape[2]} x {settings.shape[3]} pixels would take {size / 1e9:.0f}"
            " GB a recording; choose fewer, or a smaller frame_size"
        )
    folder = Path(cache_dir) / settings.folder
    unfinished = partial_folder(folder)
    _refuse_overlap(settings.dataset, data_dir, cache_dir, folder)
    recordings = find_recordings(settings.dataset, data_dir)
    problems = [Problem(n, reason) for n, reason in sorted(recordings.problems.items())]
    for problem in problems:
        say(f"bad: {problem}")
    expected = settings.dataset.total or len(recordings.samples)

    complete = ("frames.npy", "index.csv", "manifest.json")
    try:
        if all((unfinished / file).is_file() for file in complete):  # killed while it gave the folder its name
            lock = _lock(unfinished)
            try:
                _publish(unfinished, folder)
            finally:
                lock.release()
    except FileNotFoundError:
        pass  # another run has just done it
    except OSError as error:
        raise UserError(f"cache_dir={cache_dir} cannot be written: {error}") from None
    if folder.exists() and not rebuild:
        if not (folder / "manifest.json").is_file():
            raise DataError(f"{folder} is there, but is no finished cache: remove it, or replace it with rebuild=true")
        cache = open_cache(settings, cache_dir, data_dir)
        known = set(cache.names) | {p["name"] for p in cache.manifest["excluded"]}
        new = [s.name for s in recordings.samples if s.name not in known and s.file not in known]
        if new:
            raise DataError(
                f"{folder} is stale: {len(new)} recordings in data_dir={data_dir} are not in it, {new[0]} among them;"
                f" rebuild it with `{settings.command(data_dir, cache_dir)} rebuild=true`"
            )
        excluded = [Problem(**p) for p in cache.manifest["excluded"]]
        return Report(folder, len(cache.names), expected, 0, excluded, recordings.ignored)

    try:
        partial = _Partial(unfinished, settings, recordings.samples)
    except OSError as error:
        raise UserError(f"cache_dir={cache_dir} cannot be written: {error}") from None
    with partial:
        todo = partial.missing(recordings)
        read = 0
        try:
            for done in _progress(_decode_all(todo, recordings, settings, workers), todo, recordings, say):
                for note in done.notes:
                    say(f"note: {note}")
                for problem in done.problems:
                    say(f"bad: {problem}")
                problems += done.problems
                with partial.writing():
                    partial.add(done)
                read += len(done.frames)
            if problems and not allow_bad:
                raise DataError(
                    f"{len(problems)} of {len(recordings.samples) + len(recordings.problems)} recordings of {dataset.name} are"
                    f" bad ({problems[0]}); replace them and run again, which reads only those, or pass allow_bad=true to"
                    " leave them out, which the manifest then says"
                )
            with partial.writing():
                samples = partial.finish(folder, problems)
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, probably for want of memory; finished recordings are kept: run the"
                f" command again with fewer workers than workers={workers}"
            ) from None
        finally:
            close_archives()
    return Report(folder, samples, expected, read, problems, recordings.ignored)


def _refuse_overlap(dataset: EventSet, data_dir: str | Path | None, cache_dir: str | Path, folder: Path) -> None:
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


def _decode_all(
    todo: dict[str, list[tuple[int, Sample]]], recordings: Recordings, settings: Settings, workers: int
) -> Iterator[Decoded]:
    """Decode the files of `todo` {file: its rows and samples}; order of the results is that in which they get ready."""
    for (path, inner), members in in_tars({f: recordings.files[f] for f in todo}).items():
        for file, data in stream_tar(path, members, inner):  # can only be read from front to back
            yield decode_file(data, file, todo[file], settings)
    todo = {f: s for f, s in todo.items() if recordings.files[f].kind != "tar"}
    own_class = type(settings.dataset).__module__ == "__main__"  # of a notebook: no other process can import it
    if own_class or multiprocessing.current_process().daemon or any(recordings.files[f].kind == "spool" for f in todo):
        workers = 0  # a daemon may have no children, and an unpacked archive belongs to the process that unpacked it
    if workers == 0:
        for file, samples in todo.items():
            yield _work(recordings.files[file], file, samples, settings)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(workers, max(len(todo), 1)), context, initializer=_start_worker) as pool:
        waiting, running = iter(todo.items()), set()
        try:
            while True:
                for file, samples in waiting:  # a short queue: results wait in memory
                    with _no_main_module():
                        running.add(pool.submit(_work, recordings.files[file], file, samples, settings))
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


def _progress(results: Iterator[Decoded], todo: dict, recordings: Recordings, say) -> Iterator[Decoded]:
    """Pass results on, with a progress bar on a terminal and a line every tenth elsewhere."""
    if done := len(recordings.files) - len(todo):
        say(f"{done} of {len(recordings.files)} files were read before")
    with progress("files", len(todo), say) as advance:
        for n, result in enumerate(results, 1):
            yield result
            advance(n)


# ------------------------------------------------------------------ the unfinished cache


class _Partial:
    """A cache in the making: `frames.<dtype>.npy`, `journal.jsonl` and a lock.

    Rows are those of all samples; only the journal says which are filled. Written with plain writes, not
    through a memory map: a full disk then is an error and not a crash.
    """

    def __init__(self, folder: Path, settings: Settings, samples: list[Sample]):
        self.folder, self.settings, self.samples = folder, settings, samples
        kinds = (np.float16, np.float32) if settings.frame_size else (np.uint8, np.uint16, np.uint32)
        self.dtypes = [np.dtype(k) for k in kinds]  # that frames may have, the narrowest first
        names = "\n".join(f"{s.name} {s.label} {s.start} {s.stop}" for s in samples)
        self.plan = {
            "format_version": _JOURNAL_VERSION,
            **settings.words(),
            "samples_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(folder)
        self.done: dict[
            str, dict
        ] = {}  # file -> its journal entry; those with a bad sample too, which the journal has not
        if not self._resume():
            for old in folder.glob("frames.*"):
                old.unlink()
            self.dtype = self.dtypes[0]
            self.file = self._create(self._path(self.dtype), self.dtype, len(samples))
            self.journal = open(folder / "journal.jsonl", "w")  # noqa: SIM115
            self._note({"plan": self.plan})

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        self.journal.close()
        self.lock.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failed write of the cache, and nothing else that fails, into one sentence."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written ({error}); finished recordings are kept: make room and run again"
            ) from None

    # -- going on

    def _resume(self) -> bool:
        """Take over what an earlier run with the same plan has finished: rows whose checksum is still right."""
        path = self.folder / "journal.jsonl"
        try:
            text = path.read_text()
            plan, *entries = (json.loads(line) for line in text.splitlines() if line.endswith("}"))
        except (OSError, ValueError):
            return False
        present = [d for d in self.dtypes if self._path(d).is_file()]
        if plan != {"plan": self.plan} or not present:
            return False
        *narrower, self.dtype = present
        for old in (*map(self._path, narrower), *self.folder.glob("*.tmp")):
            old.unlink()
        self.file = open(self._path(self.dtype), "r+b")  # noqa: SIM115
        if os.fstat(self.file.fileno()).st_size != self._at(len(self.samples), self.dtype):
            self.file.close()
            return False
        for entry in entries:
            with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):  # a damaged line notes nothing
                self.done.pop(entry["file"], None)
                if all(self._intact(row) and self.samples[row["row"]].file == entry["file"] for row in entry["rows"]):
                    self.done[entry["file"]] = {k: entry[k] for k in ("file", "size", "crc32", "rows")}
        self.journal = open(path, "a")  # noqa: SIM115
        if not text.endswith("\n"):
            self.journal.write("\n")  # the last line was cut short
        return True

    def _counts(self, row: dict) -> np.ndarray:
        """The values of a row, with those that a byte cannot hold."""
        values = self._read(row["row"])
        over = np.array(row.get("over") or [], np.uint32).reshape(-1, 2)
        return together(values, *over.T) if len(over) else values

    def _intact(self, row: dict) -> bool:
        """Whether a row holds what was noted. Notes its type and checksum as it is now: it may have been widened since."""
        if self.dtype != np.uint8:
            row.pop("over", None)
        values = self._counts(row)
        same = zlib.crc32(values.astype(row["dtype"]).data) == row["crc32"]
        row |= {"dtype": str(values.dtype), "crc32": zlib.crc32(values.data)}
        return same

    def missing(self, recordings: Recordings) -> dict[str, list[tuple[int, Sample]]]:
        """{file: [(row, sample)]} of what is still to be read: not in the journal, or changed in size since."""
        todo = defaultdict(list)
        for row, sample in enumerate(self.samples):
            before = self.done.get(sample.file)
            entry = recordings.files[sample.file]
            if before is None or before["size"] != entry.size or entry.crc32 not in ("", before["crc32"]):
                todo[sample.file].append((row, sample))
        for file in todo:
            self.done.pop(file, None)
        return dict(todo)

    # -- rows

    def _path(self, dtype: np.dtype) -> Path:
        return self.folder / f"frames.{dtype}.npy"

    def _at(self, row: int, dtype: np.dtype) -> int:
        """Where a row begins in a file."""
        return _OFFSET + row * math.prod(self.settings.shape) * dtype.itemsize

    def _create(self, path: Path, dtype: np.dtype, n: int, rows: Iterable[tuple[int, int]] = ()) -> BinaryIO:
        """A new .npy file of n rows, with copies of our `rows` (new, old)."""
        file = open(path, "w+b")  # noqa: SIM115
        kind = np.lib.format.dtype_to_descr(dtype)
        facts = {"descr": kind, "fortran_order": False, "shape": (n, *self.settings.shape)}
        np.lib.format.write_array_header_1_0(file, facts)
        file.flush()
        file.truncate(self._at(n, dtype))
        for new, old in rows:
            _write(file, self._read(old).astype(dtype, copy=False), self._at(new, dtype))
        return file

    def _read(self, row: int) -> np.ndarray:
        start, stop = self._at(row, self.dtype), self._at(row + 1, self.dtype)
        return np.frombuffer(os.pread(self.file.fileno(), stop - start, start), self.dtype)

    def _widen(self, dtype: np.dtype) -> None:
        """Rewrite all rows in a wider type, under a new name, so that a kill in between loses nothing."""
        path, noted = self._path(dtype), [row for entry in self.done.values() for row in entry["rows"]]
        copies = ((row["row"], row["row"]) for row in noted)
        wide = self._create(path.with_suffix(".tmp"), dtype, len(self.samples), copies)
        for row in noted:
            if row.get("over"):
                _write(wide, self._counts(row).astype(dtype, copy=False), self._at(row["row"], dtype))
        path.with_suffix(".tmp").rename(path)
        self.file.close()
        self._path(self.dtype).unlink()
        self.file, self.dtype = wide, dtype
        for row in noted:
            if not self._intact(row):
                name = self.samples[row["row"]].name
                raise DataError(f"{self.folder}: the frames of {name} were damaged after they were written; run again")

    def add(self, done: Decoded) -> None:
        """Write the rows of one file, then note them; files with problems are not noted, so they are read again."""
        parts = [apart(frames) if frames.dtype.kind == "u" else (frames, (), ()) for _, frames, _ in done.frames]
        over = [row for entry in self.done.values() for row in entry["rows"] if row.get("over")]
        more = sum(len(row["over"]) for row in over) + sum(len(places) for _, places, _ in parts)
        kinds = {frames.dtype for _, frames, _ in done.frames}
        if self.dtype == np.uint8 and more > _MOST_OVER * len(self.samples) * math.prod(self.settings.shape):
            kinds |= {np.dtype(row["dtype"]) for row in over}
        elif self.dtype == np.uint8:
            kinds = set()
        dtype = np.result_type(self.dtype, *kinds)
        if dtype != self.dtype:
            self._widen(dtype)
        rows = []
        for (row, frames, events), (stored, places, counts) in zip(done.frames, parts, strict=True):
            noted = {"row": row, "events": events}
            if dtype == np.uint8 and len(places):
                noted["over"] = np.stack([places, counts], 1).tolist()
                values = frames
            else:
                values = stored = np.ascontiguousarray(frames, dtype)
            _write(self.file, stored, self._at(row, dtype))
            rows.append(noted | {"dtype": str(values.dtype), "crc32": zlib.crc32(np.ascontiguousarray(values).data)})
        entry = {"file": done.file, "size": done.size, "crc32": done.crc32, "rows": rows}
        self.done[done.file] = entry
        if not done.problems:
            self._note(entry)

    def _note(self, entry: dict) -> None:
        self.journal.write(json.dumps(entry) + "\n")
        self.journal.flush()

    # -- finishing

    def finish(self, folder: Path, problems: list[Problem]) -> int:
        """Turn the partial folder into the finished one; returns the number of samples."""
        entries = {f: e for f, e in sorted(self.done.items()) if e["rows"]}
        facts = {row["row"]: (row, e) for e in entries.values() for row in e["rows"]}
        rows = sorted(facts)
        if not rows:
            raise DataError(f"not one recording of {self.settings.dataset.name} is good, so there is nothing to cache")
        index, over = [",".join(_COLUMNS)], []
        for new, row in enumerate(rows):
            sample, (noted, entry) = self.samples[row], facts[row]
            over += [(new, *pair) for pair in noted.get("over", [])]
            index.append(
                f"{new},{sample.label},{sample.part},{noted['events']},{entry['size']},{entry['crc32']},"
                f"{noted['crc32']:08x},{sample.name}"
            )
        text = "\n".join(index) + "\n"
        sources = "".join(f"{e['crc32']} {e['size']} {f}\n" for f, e in entries.items())
        manifest = {
            "format_version": FORMAT_VERSION,
            **self.settings.words(),
            "shape": [len(rows), *self.settings.shape],
            "dtype": str(self.dtype),
            "samples_of_the_complete_set": self.settings.dataset.total,
            "excluded": [p._asdict() for p in problems],
            "source_files": len(entries),
            "sources_sha256": hashlib.sha256(sources.encode()).hexdigest(),
            "index_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        table = np.array(over, OVERFLOW)
        (self.folder / TABLE).unlink(missing_ok=True)
        if len(table):
            np.save(self.folder / TABLE, table)
            manifest["overflow_sha256"] = hashlib.sha256(table.tobytes()).hexdigest()
        path = self._path(self.dtype)
        if len(rows) < len(self.samples):  # samples were left out: the others are copied together
            path = self.folder / "frames.together.tmp"
            together = self._create(path, self.dtype, len(rows), enumerate(rows))
            self.file.close()
            self.file = together
        os.fsync(self.file.fileno())
        write_text(self.folder / "index.csv", text)
        write_text(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        path.rename(self.folder / "frames.npy")  # from here on it is complete
        _publish(self.folder, folder)
        return len(rows)


def _lock(folder: Path) -> FileLock:
    """Hold the partial folder's lock. Raises UserError if another run has it."""
    lock = hold(folder / "lock")
    if lock is None:
        raise UserError(f"another run is preparing {folder}; wait for it or stop it")
    return lock


def _publish(partial: Path, folder: Path) -> None:
    """Give a complete partial folder its final name, in place of an older cache if there is one."""
    keep = {"frames.npy", TABLE, "index.csv", "manifest.json", "lock"}
    for file in partial.iterdir():
        if file.name not in keep:
            file.unlink()
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    (folder / "lock").unlink()
    shutil.rmtree(old, ignore_errors=True)
    parent = os.open(folder.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def _write(file: BinaryIO, values: np.ndarray, offset: int) -> None:
    data = values.data.cast("B")
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
