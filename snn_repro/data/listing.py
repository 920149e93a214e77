"""The images of a set of class folders, listed and looked at once (scripts/prepare_data.py), so that runs need do neither.

`cache_dir/<dataset>/listing.json` holds them with the times of the folders and archives that they are in. Once one of those has
changed it counts no more.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snn_repro.console import progress
from snn_repro.data.image_files import ImageFile, Tree, check_image
from snn_repro.errors import DataError, UserError
from snn_repro.files import write_text

if TYPE_CHECKING:
    from snn_repro.config.schema import Config

log = logging.getLogger("snn_repro")
FORMAT_VERSION = 1


def place(name: str, cache_dir: str | None) -> Path | None:
    """Where the listing of the data set is; None without cache_dir."""
    return Path(cache_dir, name, "listing.json") if cache_dir else None


def make(dataset: Any, cfg: Config, workers: int | None = None, say: Callable[[str], None] = print) -> int:
    """List and look at every image, and keep the listing; returns their number. workers: threads that read.

    Raises UserError and DataError, the latter where images cannot be read, of which each is said.
    """
    path = place(dataset.name, cfg.cache_dir)
    if path is None:
        raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the listing")
    changed, tree = dataset.changed(cfg), dataset.listed(cfg)
    if Path(os.path.realpath(tree.base)) in Path(os.path.realpath(path)).parents:
        raise UserError(
            f"cache_dir={cfg.cache_dir} would put the listing inside of the data set's own folder {tree.base}, which is only"
            " ever read; choose a folder outside"
        )
    images, bad = [*tree.train, *tree.test], []
    with progress("images", len(images), say) as advance:
        for done, problem in enumerate(_problems(images, workers or 16), 1):
            if problem is not None:
                say(f"bad: {problem}")
                bad.append(problem)
            advance(done)
    if bad:
        raise DataError(
            f"{len(bad)} of {len(images):,} images are bad ({bad[0]}); the listing is kept once all are good"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_plain(tree, changed)))
    except OSError as error:
        raise UserError(f"cache_dir={cfg.cache_dir} cannot be written: {error}") from None
    return len(images)


def kept(path: Path | None, changed: tuple) -> Tree | None:
    """The listing at `path`, of folders and archives of which none has `changed` since; None without, with a line if it is stale."""
    if path is None or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        if found["format_version"] == FORMAT_VERSION and found["changed"] == [list(c) for c in changed]:
            return _tree(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    log.info(
        f"{path} is not of the images that are there now, which are listed anew; scripts/prepare_data.py makes it again"
    )
    return None


def _problems(images: list[ImageFile], threads: int) -> Iterator[DataError | None]:
    """What is wrong with each image, in order; a short queue, so that Ctrl-C is heard."""

    def problem(image: ImageFile) -> DataError | None:
        try:
            check_image(image)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(threads, "check") as pool:  # waiting for a file server, not for the processor
        waiting = iter(images)
        while some := list(islice(waiting, 64 * threads)):
            yield from pool.map(problem, some, chunksize=1)


def _plain(tree: Tree, changed: tuple) -> dict[str, Any]:
    parts = {}
    for part, files, labels in (("train", tree.train, tree.train_labels), ("test", tree.test, tree.test_labels)):
        groups = groupby(zip(labels.tolist(), files, strict=True), key=lambda pair: (pair[0], pair[1].container))
        parts[part] = [[*of, [[file.name] for _, file in members]] for of, members in groups]
    return {
        "format_version": FORMAT_VERSION,
        "changed": changed,
        "base": str(tree.base),
        "classes": tree.classes,
        **parts,
    }


def _tree(found: dict[str, Any]) -> Tree:

    lists: list[Any] = []
    for part in ("train", "test"):
        lists.append([ImageFile(container, file[0]) for _, container, files in found[part] for file in files])
        lists.append(np.repeat([label for label, *_ in found[part]], [len(files) for *_, files in found[part]]))
    return Tree(Path(found["base"]), found["classes"], *lists)
