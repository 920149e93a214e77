"""Raw event recordings -> cached frames, once; cache.py says what a cache holds, and opens it.

While it is made, the folder is called `<name>.partial` and holds a file of frames for each recording; these are joined at
the end. So a run that is killed at any moment loses at most the recordings in hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro import distributed
from snn_repro.console import progress
from snn_repro.data.archives import means
from snn_repro.data.batches import RowCheck
from snn_repro.data.cache import FORMAT_VERSION, TABLE, Cache, Settings, open_cache, partial_folder
from snn_repro.data.dataset import Entry, Recorded, Sample
from snn_repro.data.events import OVERFLOW, apart, cut, to_frames
from snn_repro.data.recordings import Recordings, find_recordings, read_entry, walk
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError, nearest
from snn_repro.files import hold, write_error, write_text

_PART_VERSION = 3  # of the files of an unfinished cache


def event_set(name: str) -> Any:
    """The data set of this name. Raises UserError if it is not one to prepare."""
    sets = {n: s for n, s in SETS.items() if s.prepared}
    if name not in sets:
        raise UserError(f"dataset={name} needs no preparation; these do: {', '.join(sets)}{nearest(name, sets)}")
    return sets[name]


def verify_cache(settings: Settings, cache_dir: str | Path | None, say=print) -> tuple[Cache, list[str]]:
    """Read all rows of a cache: (the cache, the names of those that are not what was stored). Raises as `open_cache` does."""
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
    """What `prepare` did."""

    folder: Path
    samples: int  # in the finished cache
    expected: int  # in the complete data set
    read: int  # samples decoded by this call; the rest was there already
    problems: dict[str, str]  # sample or file -> why it is left out


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
    again, replacing the old one when it is done. workers: threads (default: one a CPU).

    Raises UserError and DataError with one sentence.
    """
    if not cache_dir:
        raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the prepared frames")
    settings = settings._replace(dataset=settings.dataset.measured(data_dir, say))
    dataset, folder = settings.dataset, Path(cache_dir, settings.folder)
    _refuse_overlap(dataset, data_dir, folder)
    if folder.exists() and not rebuild:
        cache = open_cache(settings, cache_dir, data_dir)
        return Report(
            folder, len(cache.names), dataset.total or len(cache.names) + len(cache.excluded), 0, cache.excluded
        )
    found = find_recordings(dataset, data_dir, cache_dir)
    problems, read = dict(sorted(found.problems.items())), 0
    for problem in problems.items():
        say(f"bad: {_said(*problem)}")
    with _partial(partial_folder(folder)) as partial:
        jobs = _jobs(partial, settings, found)
        todo = [job for job in jobs if not _whole(job[-1])]
        if done := len(jobs) - len(todo):
            say(f"{done} of {len(jobs)} files were read before")
        results = _decode_all(todo, workers or distributed.cores())
        with contextlib.closing(results), progress("files", len(todo), say) as advance:
            for n, (good, bad, notes) in enumerate(results, 1):
                for note in notes:
                    say(f"note: {note}")
                for problem in bad.items():
                    say(f"bad: {_said(*problem)}")
                read, problems = read + good, problems | bad
                advance(n)
        if problems and not allow_bad:
            raise DataError(
                f"{len(problems)} of {len(found.samples) + len(found.problems)} recordings of {dataset.name} are bad"
                f" ({_said(*next(iter(problems.items())))}); replace them and run again, which reads only those, or"
                " pass allow_bad=true to leave them out, which the manifest then says"
            )
        samples = _join([job[-1] for job in jobs], found.samples, settings, partial / "finished", problems)
        shutil.rmtree(partial / "old", ignore_errors=True)
        if folder.exists():
            folder.rename(partial / "old")
        (partial / "finished").rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
    return Report(folder, samples, dataset.total or len(found.samples), read, problems)


def _said(name: str, reason: str) -> str:
    return reason if name in reason else f"{name}: {reason}"


def _refuse_overlap(dataset: Recorded, data_dir: str | Path | None, folder: Path) -> None:
    """The data set's own folders are only ever read: a cache inside of one would be a write."""
    holding = {inner.rpartition("/")[0] for inner, _ in walk(dataset, data_dir) if not inner.endswith("/")}
    own = {Path(data_dir or "", *above) for above in (Path(h).parts[:n] for h in holding for n in range(1, 9))}
    roots = Path(data_dir or ""), Path(os.path.realpath(data_dir or ""))
    own = (own - {roots[0]}) | {root for root in roots if means(root.name, dataset.known_names)}
    for raw in own:
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(raw)):
            raise UserError(
                f"cache_dir would put the cache, {folder}, inside of the data set's own folder {raw}, which"
                " is only ever read; choose a folder outside with cache_dir=DIR"
            )


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """The folder of an unfinished cache, locked. Raises UserError if another run has it, or it cannot be written."""
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := hold(folder / "lock")) is None:
            raise UserError(f"another run is preparing {folder}; wait for it or stop it")
        yield folder
    except OSError as error:
        raise write_error(folder, error, "cache_dir=DIR") from None
    finally:
        if lock:
            lock.release()


# ------------------------------------------------------------------ a file of frames for each recording


def _jobs(partial: Path, settings: Settings, found: Recordings) -> list[tuple[Entry, list[Sample], Settings, Path]]:
    """Of each file: where it lies, its samples, and the part that is made of them; what that depends on is in its name."""
    jobs = []
    for file, group in groupby(found.samples, lambda sample: sample.file):
        entry, samples = found.files[file], list(group)
        state = os.stat(entry.path) if os.path.isfile(entry.path) else None
        changed = state and (state.st_size, state.st_mtime_ns)
        plan = json.dumps([_PART_VERSION, settings.words(), samples, changed])
        jobs.append((entry, samples, settings, partial / f"{hashlib.sha256(plan.encode()).hexdigest()[:24]}.npz"))
    return jobs


def _whole(part: Path) -> bool:
    """Whether a part is there as it was written, with all samples of its file."""
    try:
        with zipfile.ZipFile(part) as stored:
            return stored.testzip() is None and _facts(part)["whole"]
    except Exception:  # whatever is wrong with it, it is made again
        return False


def _facts(part: Path) -> dict[str, Any]:
    with np.load(part) as stored:
        return json.loads(str(stored["facts"]))


def _decode_all(jobs: list[tuple], threads: int) -> Generator[tuple[int, dict[str, str], list[str]], None, None]:
    """(good samples, problems, what readers warned of) of each file, in the order in which they get ready.

    Threads do, as neither NumPy nor the counting holds Python's lock for long.
    """
    pool = ThreadPoolExecutor(threads, "prepare")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for decoded in as_completed([pool.submit(_decode, *job) for job in jobs]):
                yield *decoded.result(), [str(caught.pop(0).message) for _ in range(len(caught))]
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(entry: Entry, samples: list[Sample], settings: Settings, part: Path) -> tuple[int, dict[str, str]]:
    """Keep the frames of one file: (how many samples, the problems of others). Those with problems are read again next time."""
    dataset, problems = settings.dataset, {}
    rows: list[list] = []
    arrays: dict[str, Any] = {}
    part.unlink(missing_ok=True)
    try:
        data = read_entry(entry, samples[0].file)
        events = dataset.decode(data, samples[0].file)
    except DataError as error:
        return 0, {samples[0].file: str(error)}
    for sample in samples:
        inside = cut(events, sample.start, sample.stop)
        try:
            if not len(inside.t):
                raise DataError("it holds no events")
            arrays[str(len(rows))] = frames = to_frames(inside, dataset.shape[1:], *settings[1:])
            rows.append([sample.name, len(inside.t), str(frames.dtype)])
        except DataError as error:
            problems[sample.name] = str(error)
    facts = {"file": samples[0].file, "size": len(data), "crc32": f"{zlib.crc32(data):08x}", "rows": rows}
    with open(part.with_suffix(".tmp"), "wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts | {"whole": not problems})), **arrays)
    part.with_suffix(".tmp").replace(part)
    return len(rows), problems


# ------------------------------------------------------------------ joining them


def _join(made: list[Path], samples: list[Sample], settings: Settings, target: Path, problems: dict[str, str]) -> int:
    """Write a finished cache from all parts to the folder `target`; returns the number of samples."""
    parts = {part: _facts(part) for part in made if part.exists()}
    place = {row[0]: (part, str(k), *row[1:]) for part, facts in parts.items() for k, row in enumerate(facts["rows"])}
    good = [sample for sample in samples if sample.name in place]
    if not good:
        raise DataError(f"not one recording of {settings.dataset.name} is good, so there is nothing to cache")
    dtype = np.result_type(*{np.dtype(kind) for *_, kind in place.values()})
    dtype = np.dtype(np.uint8) if dtype.kind == "u" else dtype  # larger counts go to the table
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    index, tables, shape = ["row,label,part,events,bytes,crc32,row_crc32,name"], [], (len(good), *settings.shape)
    with open(target / "frames.npy", "wb") as frames:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(frames, {"descr": descr, "fortran_order": False, "shape": shape})
        for new, sample in enumerate(good):
            part, k, events, _ = place[sample.name]
            with np.load(part) as stored:
                values = written = stored[k] if dtype.kind == "u" else stored[k].astype(dtype)
            if dtype.kind == "u":
                written, places, counts = apart(values)
                tables.append(np.rec.fromarrays([np.full(len(places), new), places, counts], dtype=OVERFLOW))
            frames.write(np.ascontiguousarray(written).data)
            size, crc32 = parts[part]["size"], parts[part]["crc32"]
            row_crc32 = f"{zlib.crc32(np.ascontiguousarray(values).data):08x}"
            index.append(f"{new},{sample.label},{sample.part},{events},{size},{crc32},{row_crc32},{sample.name}")
        frames.flush()
        os.fsync(frames.fileno())
    text, table = "\n".join(index) + "\n", np.concatenate([np.empty(0, OVERFLOW), *tables])
    sources = [
        f"{f['crc32']} {f['size']} {f['file']}\n" for f in sorted(parts.values(), key=itemgetter("file")) if f["rows"]
    ]
    manifest = {
        "format_version": FORMAT_VERSION,
        **settings.words(),
        "shape": list(shape),
        "dtype": str(dtype),
        "samples_of_the_complete_set": settings.dataset.total,
        "excluded": [{"name": name, "reason": reason} for name, reason in problems.items()],
        "source_files": len(sources),
        "sources_sha256": hashlib.sha256("".join(sources).encode()).hexdigest(),
        "index_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if len(table):
        np.save(target / TABLE, table)
        manifest["overflow_sha256"] = hashlib.sha256(table.tobytes()).hexdigest()
    write_text(target / "index.csv", text)
    write_text(target / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return len(good)
