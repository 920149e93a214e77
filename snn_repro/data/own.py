"""Users' data: class folders, or train/, test/ (and val/) with class folders in each."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from snn_repro.config.schema import Config
from snn_repro.data.dataset import Split
from snn_repro.data.image_files import class_folders
from snn_repro.data.recordings import required_folder
from snn_repro.data.splits import split_parts
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting

# lower-case folder name -> the part that it holds
PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
TEST_SHARE = 0.2
SETTINGS = {
    "test_share": Setting(
        None, "own data without a test folder: test share of each class, drawn with dataset.split_seed; null is 0.2",
        above=0, below=1,
    )
}  # fmt: skip


def layout(data_dir: str | None, holds: str) -> dict[str, Path]:
    """{"": data_dir} if its folders are classes, else {"train": ..., "test": ...} and perhaps "val".

    holds: expected content, for messages. Raises UserError without data_dir, DataError for another layout.
    """
    root = required_folder(data_dir, f"a folder of class folders with {holds}")
    folders = class_folders(root)
    found = {PARTS[name.lower()]: path for name, path in folders.items() if name.lower() in PARTS}
    if not {"train", "test"} & found.keys():
        return {"": root}
    there = " and ".join(p.name for p in found.values())
    if missing := {"train", "test"} - found.keys():
        raise DataError(
            f"{root} holds {there}/ but no {missing.pop()}/: add it, or put all class folders into data_dir itself to"
            " have a test part drawn"
        )
    if others := [name for name, path in folders.items() if path not in found.values()]:
        raise DataError(f"{root} holds {others[0]}/ beside {there}: it is not a part; move it elsewhere")
    return found


def common_classes(root: Path, classes: Mapping[str, Iterable[str]]) -> list[str]:
    """Sorted class names, equal in all parts. Raises DataError for differences or a single class."""
    parts = {part: set(names) for part, names in classes.items()}
    everything = sorted(set().union(*parts.values()))
    for part, names in parts.items():
        if lacking := sorted(set(everything) - names):
            raise DataError(f"{root}: class {lacking[0]} is missing in {part}/; every part needs every class")
    if len(everything) < 2:
        there = f"only the class {everything[0]}" if everything else "no class folders"
        raise DataError(f"{root} holds {there}: it must hold a folder for each of at least two classes")
    return everything


def stratified(names: Sequence[str], labels: Sequence[int], share: float, seed: int) -> np.ndarray:
    """Test mask bool [N], stratified by class.

    Of the n samples of a class, floor(share * n + 0.5) are test, at least one and not all, drawn with
    RandomState([seed, class, 2]) from the names sorted as strings. Raises DataError for a class of one sample.
    """
    mask, order = np.zeros(len(names), bool), np.argsort(np.array(names), kind="stable")
    for k in np.unique(labels):
        rows = order[np.asarray(labels)[order] == k]
        if len(rows) < 2:
            raise DataError(f"the class of {names[rows[0]]} has this file only, so none is left to test; add more")
        count = min(max(math.floor(share * len(rows) + 0.5), 1), len(rows) - 1)
        mask[np.random.RandomState([seed, int(k), 2]).permutation(rows)[:count]] = True
    return mask


def parts_of(cfg: Config, parts: Sequence[str], names: Sequence[str], labels: Sequence[int]) -> tuple[str, list[str]]:
    """(split id, parts of samples), drawn if none are given. Raises UserError for unused keys."""
    d, share = cfg.dataset, cfg.dataset.test_share or TEST_SHARE
    if "" in parts:
        mask = stratified(names, labels, share, d.split_seed)
        return f"stratified,test={share:g},seed={d.split_seed}", ["test" if held else "train" for held in mask]
    if d.test_share is not None:
        raise UserError(f"dataset.test_share={d.test_share} has no effect, as data_dir has a test folder; leave it out")
    if "val" in parts and d.validation:
        raise UserError(
            f"dataset.validation={d.validation:g} is not used, as data_dir has a validation folder; set it to 0"
        )
    return "folders,val=folder" if "val" in parts else "folders", list(parts)


def own_split(
    cfg: Config, split: str, parts: Sequence[str], names: Sequence[str], labels: Sequence[int], dropped: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Split]:
    """(training, validation, test rows, Split) of samples with given parts."""
    train, given, test = (np.flatnonzero(np.array(parts) == name) for name in ("train", "val", "test"))
    for name, rows in (("training", train), ("test", test)):
        if not len(rows):
            raise DataError(f"no {name} file of data_dir={cfg.data_dir} is left; add some")
    test_names = [names[i] for i in test.tolist()]
    train, val, of_run = split_parts(cfg, train, test, labels, test_names, split=split, dropped=dropped)
    val = given if len(given) else val
    return train, val, test, dataclasses.replace(of_run, n_val=len(val))
