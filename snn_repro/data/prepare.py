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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro import distributed
from snn_repro.console import progress
from snn_repro.data.archives import means
from snn_repro.data.batches import RowCheck
from snn_repro.data.cache import FORMAT_VERSION, TABLE, Cache, Settings, open_cache
from snn_repro.data.dataset import Entry, Recorded, Sample
from snn_repro.data.events import OVERFLOW, apart, cut, to_frames
from snn_repro.data.recordings import Recordings, find_recordings, read_entry, walk
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError, nearest
from snn_repro.files import hold, write_error, write_json, write_text

_PART_VERSION = 4  # of the files of an unfinished cache


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
    with _partial(Path(f"{folder}.partial")) as partial:
        jobs = _jobs(partial, settings, found)
        made = {part: _kept(part) for part in jobs}
        todo = [part for part, facts in made.items() if facts is None]
        if len(todo) < len(made):
            say(f"{len(made) - len(todo)} of {len(made)} files were read before")
        with (
            _decoded([(settings, part, *jobs[part]) for part in todo], workers) as results,
            progress("files", len(todo), say) as advance,
        ):
            for n, (facts, notes) in enumerate(results, 1):
                for line in [f"note: {note}" for note in notes] + [
                    f"bad: {_said(*p)}" for p in facts["problems"].items()
                ]:
                    say(line)
                made[todo[n - 1]], problems, read = facts, problems | facts["problems"], read + len(facts["rows"])
                advance(n)
        if problems and not allow_bad:
            raise DataError(
                f"{len(problems)} of {len(found.samples) + len(found.problems)} recordings of {dataset.name} are bad"
                f" ({_said(*next(iter(problems.items())))}); replace them and run again, which reads only those, or"
                " pass allow_bad=true to leave them out, which the manifest then says"
            )
        samples = _join(made, settings, partial / "finished", problems)
        shutil.rmtree(folder, ignore_errors=True)
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


def _jobs(partial: Path, settings: Settings, found: Recordings) -> dict[Path, tuple[Entry, list[Sample]]]:
    """{the part that is made of a file: (where the file lies, its samples)}; what a part depends on is in its name."""
    jobs = {}
    for file, group in groupby(found.samples, lambda sample: sample.file):
        entry, samples = found.files[file], list(group)
        state = os.stat(entry.path) if os.path.isfile(entry.path) else None
        plan = json.dumps([_PART_VERSION, settings.words(), samples, state and (state.st_size, state.st_mtime_ns)])
        jobs[partial / f"{hashlib.sha256(plan.encode()).hexdigest()[:24]}.npz"] = entry, samples
    return jobs


def _kept(part: Path) -> dict[str, Any] | None:
    """The facts of a part that is there as it was written, with all samples of its file; else None."""
    try:
        with zipfile.ZipFile(part) as stored, np.load(part) as arrays:
            facts = json.loads(str(arrays["facts"]))
            return facts if stored.testzip() is None and not facts["problems"] else None
    except Exception:  # whatever is wrong with it, it is made again
        return None


@contextlib.contextmanager
def _decoded(jobs: list[tuple], threads: int | None) -> Iterator[Iterator[tuple[dict[str, Any], list[str]]]]:
    """(facts, what readers warned of) of each file; the rest is called off where the block is left.

    Threads do, as neither NumPy nor the counting holds Python's lock for long.
    """
    pool = ThreadPoolExecutor(threads or distributed.cores(), "prepare")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            facts = pool.map(lambda job: _decode(*job), jobs)
            yield ((each, [str(caught.pop(0).message) for _ in range(len(caught))]) for each in facts)
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(settings: Settings, part: Path, entry: Entry, samples: list[Sample]) -> dict[str, Any]:
    """Keep the frames of one file; returns what is known of it: its bytes, rows, and the problems of other samples."""
    facts: dict[str, Any] = {"file": samples[0].file, "rows": [], "problems": {}}
    arrays = {}
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
    """Write a finished cache from all parts to the folder `target`; returns the number of samples."""
    kinds = [row[-1] for facts in made.values() for row in facts["rows"]]
    if not kinds:
        raise DataError(f"not one recording of {settings.dataset.name} is good, so there is nothing to cache")
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
                    written, places, more = apart(values)
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
