"""Own data: class folders, or train/ and test/ (and val/) with class folders in each; who is in which part, drawn or found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from snn_repro.config.schema import Config
from snn_repro.data.archives import reading
from snn_repro.data.dataset import Split
from snn_repro.data.recordings import given
from snn_repro.data.splits import split_parts
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting

PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
"""names of folders, in capitals or not -> the part that they hold"""
TEST_SHARE = 0.2
SETTINGS = {
    "test_share": Setting(
        None, "own data without a test folder: part of each class that tests, drawn with dataset.split_seed; null is 0.2",
        above=0, below=1,
    )
}  # fmt: skip


def layout(data_dir: str | None, holds: str) -> dict[str, Path]:
    """{"": data_dir} where its folders are classes, else {"train": ..., "test": ...} and perhaps "val".

    holds: what is expected there, for messages. Raises UserError without data_dir, DataError where it is no such
    folder.
    """
    root = given(data_dir, f"a folder of class folders with {holds}")
    folders = folders_in(root)
    found = {PARTS[p.name.lower()]: p for p in folders if p.name.lower() in PARTS}
    if not {"train", "test"} & found.keys():
        return {"": root}
    there = " and ".join(p.name for p in found.values())
    if missing := {"train", "test"} - found.keys():
        raise DataError(
            f"{root} holds {there}/ but no {missing.pop()}/: add it, or put all class folders into data_dir itself, and a test"
            " part is drawn"
        )
    if others := [p.name for p in folders if p not in found.values()]:
        raise DataError(f"{root} holds {others[0]}/ beside {there}: it is no part of its own; move it elsewhere")
    return found


@reading()
def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, hidden ones aside."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def common_classes(root: Path, classes: Mapping[str, Iterable[str]]) -> list[str]:
    """The sorted names of the classes, the same in each part {part: names}. Raises DataError where they differ, or are one."""
    parts = {part: set(names) for part, names in classes.items()}
    everything = sorted(set().union(*parts.values()))
    for part, names in parts.items():
        if lacking := sorted(set(everything) - names):
            raise DataError(f"{root}: class {lacking[0]} is missing in {part}/; every part needs every class")
    if len(everything) < 2:
        there = f"only the class {everything[0]}" if everything else "no class folders"
        raise DataError(f"{root} holds {there}: it must hold a folder for each of at least two classes")
    return everything


def known_classes(cfg: Config, classes: Iterable[str]) -> list[str]:
    """The classes that a run was trained on, in the order of its labels. Raises DataError where the folder has others."""
    known: list[str] = cfg.dataset.found["classes"]  # type: ignore[index]
    if more := sorted({*classes} - {*known}):
        raise DataError(
            f"data_dir={cfg.data_dir} holds the class {more[0]}, which the run was not trained on (it knows {', '.join(known)});"
            " move that folder away, or give another data_dir"
        )
    return known


def stratified(names: Sequence[str], labels: Sequence[int], share: float, seed: int) -> np.ndarray:
    """bool [N]: floor(share * n + 0.5) of the n samples of each class, at least one and not all, test.

    Drawn with RandomState([seed, class, 2]) from the names sorted as strings. Raises DataError for a class of one
    sample.
    """
    mask, order = np.zeros(len(names), bool), np.argsort(np.array(names), kind="stable")
    for k in np.unique(labels):
        rows = order[np.asarray(labels)[order] == k]
        if len(rows) < 2:
            raise DataError(f"the class of {names[rows[0]]} has this one file alone, so none is left to test; add more")
        count = min(max(math.floor(share * len(rows) + 0.5), 1), len(rows) - 1)
        mask[np.random.RandomState([seed, int(k), 2]).permutation(rows)[:count]] = True
    return mask


def parts_of(cfg: Config, parts: Sequence[str], names: Sequence[str], labels: Sequence[int]) -> tuple[str, list[str]]:
    """(the split's id, the part of each sample): those given, or drawn where they are "". Raises UserError for idle keys."""
    d, share = cfg.dataset, cfg.dataset.test_share or TEST_SHARE
    if "" in parts:
        mask = stratified(names, labels, share, d.split_seed)
        return f"stratified,test={share:g},seed={d.split_seed}", ["test" if held else "train" for held in mask]
    if d.test_share is not None:
        raise UserError(f"dataset.test_share={d.test_share} draws nothing, as data_dir has a test folder; leave it out")
    if "val" in parts and d.validation:
        raise UserError(
            f"dataset.validation={d.validation:g} would take more, as data_dir has a folder of validation data; set it to 0"
        )
    return "folders,val=folder" if "val" in parts else "folders", list(parts)


def own_split(
    cfg: Config, split: str, parts: Sequence[str], names: Sequence[str], labels: Sequence[int], dropped: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Split]:
    """(training, validation, test rows, the Split) of samples with their parts, as `parts_of` says them."""
    train, given, test = (np.flatnonzero(np.array(parts) == name) for name in ("train", "val", "test"))
    for name, rows in (("training", train), ("test", test)):
        if not len(rows):
            raise DataError(f"no {name} file of data_dir={cfg.data_dir} is left; add some")
    test_names = [names[i] for i in test.tolist()]
    train, val, of_run = split_parts(cfg, train, test, labels, test_names, split=split, dropped=dropped)
    val = given if len(given) else val
    return train, val, test, dataclasses.replace(of_run, n_val=len(val))
