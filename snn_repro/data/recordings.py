"""Recordings of event sets: their files, and the samples in them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from snn_repro.data.archives import ARCHIVES, archive_suffix, name_matches, reading, stem, unpacked
from snn_repro.data.dataset import Entry, Recorded, Sample
from snn_repro.errors import DataError, UserError

BETWEEN = ("extract", "extracted", "download")  # folders that other readers create in that of a data set


class Recordings(NamedTuple):
    """Files of a data set, and its samples sorted by name."""

    files: dict[str, Entry]
    samples: list[Sample]
    problems: dict[str, str]  # name -> why it cannot be used


def find_recordings(
    dataset: Recorded, data_dir: str | Path | None, cache_dir: str | Path | None = None, unpack: bool = True
) -> Recordings:
    """Files and samples of a data set below `data_dir`; archives are unpacked into cache_dir.

    Folders and archives are matched by name, in any case: those of recordings, or if there are none those of the whole
    set. Raises UserError and DataError like `walk` and `unpacked`, and if nothing is found.
    """
    names, found = dataset.inside or dataset.class_names, []
    archives: dict[bool, list[str]] = {True: [], False: []}  # of recordings, of the whole set
    for inner, path in walk(dataset, data_dir):
        if archive_suffix(inner) and name_matches(os.path.basename(path), dataset.known_names):
            if not os.path.isdir(stem(path)):
                archives[name_matches(os.path.basename(path), names)].append(path)
        elif not inner.endswith("/"):
            found.append((inner, Entry(path)))
    for some in (archives[True], archives[False][:1]):
        for archive in some:
            found += _packed(Path(archive), dataset, cache_dir, unpack)
        files = _named(found, dataset)
        samples, problems = dataset.listing(files)
        if samples or problems:
            return Recordings({s.file: files[s.file] for s in samples}, sorted(samples), problems)
    raise DataError(
        f"{dataset.name} was not found in {data_dir}: expected {dataset.expected} there or in a folder"
        f" {Path(data_dir or '', dataset.folders[0])}; looked for folders and archives ({', '.join(ARCHIVES)}) named"
        f" {', '.join(dataset.known_names)}, in any case; it is published at {dataset.published}"
    )


def walk(dataset: Recorded, data_dir: str | Path | None) -> Iterator[tuple[str, str]]:
    """(inner name, path) of files below `data_dir`, and of its known folders ("a/")."""
    known = None if dataset.own else (*dataset.known_names, *dataset.class_names, *BETWEEN)
    return _walk(str(required_folder(data_dir, f"the folder that holds {dataset.expected}")), known)


def required_folder(data_dir: str | Path | None, what: str) -> Path:
    """data_dir, described by `what`. Raises UserError if unset, DataError if it is no folder."""
    if not data_dir:
        raise UserError(f"data_dir is not set: pass data_dir=DIR, {what}")
    if not Path(data_dir).is_dir():
        raise DataError(
            f"data_dir={data_dir} {'is a file' if Path(data_dir).exists() else 'does not exist'}: pass {what}"
        )
    return Path(data_dir)


def _walk(
    folder: str, known: Sequence[str] | None, inner: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Follow links, but never into a folder on the path to it."""
    if (real := os.path.realpath(folder)) in above or len(above) > 8:
        return
    with reading():
        names = os.listdir(folder)
    for name in sorted(name for name in names if name[0] != "." and name != "__MACOSX"):  # of operating systems
        path = os.path.join(folder, name)
        if not os.path.isdir(path):
            yield inner + name, path
        elif known is None or name_matches(name, known):
            yield f"{inner}{name}/", path
            yield from _walk(path, known, f"{inner}{name}/", (*above, real))


def _packed(archive: Path, dataset: Recorded, cache_dir: str | Path | None, unpack: bool) -> list[tuple[str, Entry]]:
    folder, problems = unpacked(archive, cache_dir, lambda name: name_matches(name, dataset.known_names), unpack)
    entries = [(inner, Entry(path)) for inner, path in _walk(str(folder), None) if not inner.endswith("/")]
    entries += [(inner, Entry("", why)) for inner, why in problems.items()]
    return [(f"{stem(archive.name)}/{inner}", entry) for inner, entry in entries]


def _named(found: list[tuple[str, Entry]], dataset: Recorded) -> dict[str, Entry]:
    """Files by name in the data set; of equal names the least nested one counts."""
    spelling, files = {c.lower(): c for c in dataset.class_names}, dict[str, Entry]()
    for inner, entry in sorted(found, key=lambda each: each[0].count("/")):
        *above, file = inner.split("/")[-dataset.depth :]
        if spelling:  # otherwise lists may name files in exact case
            above, file = [spelling.get(a.lower(), a) for a in above], file.lower()
        files.setdefault("/".join([*above, file]), entry)
    return files


def read_entry(entry: Entry, name: str) -> bytes:
    """The bytes of a file. Raises DataError naming it."""
    if entry.problem:
        raise DataError(f"{name} cannot be unpacked ({entry.problem}); get it again")
    if os.path.lexists(entry.path) and not os.path.isfile(entry.path):
        raise DataError(f"{name} is not a file: a broken link, a pipe or a device")
    try:
        return Path(entry.path).read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
