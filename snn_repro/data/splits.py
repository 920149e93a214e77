"""Named splits: which samples train, validate and test, with a SHA-256 of the test list.

`names` are sample names relative to the root of the data set ("airplane/cifar10_airplane_7.aedat"), in the order of
`sorted(names)`: class folders as strings, then files as strings (0, 1, 10, 100, 101, ...). All functions return indices
into that order. Only NumPy's frozen legacy generator (RandomState) is used, so a split is the same on every machine.

A set without an official split names in its file in data/sets/ which of the RULES below are used for it; all others
have one split, `official`. Splits are drawn on the complete list of names; absent or unreadable recordings are dropped
afterwards, so that one bad file moves no other from one part to another.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from snn_repro.config.schema import Config
from snn_repro.data.dataset import Recorded, Split
from snn_repro.errors import DataError, UserError

Indices = np.ndarray
Labels = Any  # N class numbers: a list, or an array


def _numbered(first: int, last: int) -> Callable:
    """Test on the files with these numbers."""

    def test_mask(names, labels):
        numbers: Any = (re.search(r"(\d+)\.\w+$", name) for name in names)
        return np.array([first <= int(number[1]) <= last for number in numbers], bool)

    return test_mask


def _last_tenth(rounded: Callable = int, seed: Callable | None = None) -> Callable:
    """Test on the last tenth of each class, shuffled by seed(samples, class) if given."""

    def test_mask(names, labels):
        mask, labels = np.ones(len(names), bool), np.asarray(labels)
        for k in np.unique(labels).tolist():
            order = np.flatnonzero(labels == k).tolist()
            if seed:
                np.random.RandomState(seed(order, k)).shuffle(order)
            mask[order[: rounded(0.9 * len(order))]] = False
        return mask

    return test_mask


# name -> rule: test mask bool [N] of the sorted names and the labels of a complete data set
RULES: dict[str, Callable] = {
    "tebn": _numbered(0, 99),
    "tail": _numbered(900, 999),
    "front90": _last_tenth(math.ceil),
    "front90_rounded": _last_tenth(round),
    "random": _last_tenth(seed=lambda order, k: order),  # the whole index list is the seed, as published
    "seeded": _last_tenth(seed=lambda order, k: k),
}


def named_split(
    dataset: Recorded, split: str, names: Sequence[str], labels: Labels, everything: Mapping[str, int] | None = None
) -> tuple[Indices, Indices]:
    """(train, test) indices of a split in RULES; `names` must be sorted as strings.

    everything: {name: label} of the complete data set, on which the split is drawn; names that are not in `names` are
    dropped from both parts. None: `names` are complete. Raises DataError if a part is empty.
    """
    everything = everything or dict(zip(names, labels, strict=True))
    complete = sorted(everything)
    held = dict(zip(complete, RULES[split](complete, [everything[n] for n in complete]), strict=True))
    mask = np.array([held[n] for n in names], bool)
    train, test = np.flatnonzero(~mask), np.flatnonzero(mask)
    for part, rows in (("training", train), ("test", test)):
        if not len(rows):
            raise DataError(
                f"dataset.split={split}: no {part} files among {len(names)} of {dataset.name}; is it complete?"
            )
    return train, test


def carve_validation(train: Indices, labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Take `fraction` of each class out of `train`: (train, validation), both sorted.

    Each class gives floor(fraction * n + 0.5) samples, drawn with RandomState([seed, class]). `labels` belongs to the
    whole data set and is indexed by `train`. Raises UserError if a part is empty.
    """
    train, labels = np.sort(np.asarray(train)), np.asarray(labels)
    held = [train[:0]]
    for k in np.unique(labels[train]).tolist():
        members = train[labels[train] == k]
        count = math.floor(fraction * len(members) + 0.5)
        held.append(np.random.RandomState([seed, k]).permutation(members)[:count])
    val = np.sort(np.concatenate(held))
    rest = np.setdiff1d(train, val)
    if fraction and not (len(val) and len(rest)):
        empty = "training" if len(val) else "validation"
        raise UserError(
            f"dataset.validation={fraction} leaves no {empty} samples of {len(train)}; choose another value"
        )
    return rest, val


def carve_validation_people(
    train: Indices, labels: Labels, people: Sequence[str], fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Take whole people, about `fraction` of `train`, out of it: (train, validation), both sorted.

    `labels` and `people` are indexed by `train`. The people are ordered with RandomState(seed), and as many of the
    first ones are held out as come nearest to the fraction, at least one and not all. An order that leaves a class out
    of either part is redrawn, up to 500 times; then the one that leaves out the fewest is used. One person: UserError.
    """
    train = np.sort(np.asarray(train))
    who, person = np.unique(np.asarray(people)[train], return_inverse=True)
    classes, label = np.unique(np.asarray(labels)[train], return_inverse=True)
    if len(who) < 2:
        raise UserError(f"dataset.validation={fraction} holds out whole people, and there is only one; set it to 0")
    counts = np.zeros((len(who), len(classes)), np.int64)  # samples per person and class
    np.add.at(counts, (person, label), 1)
    draw, fewest, best = np.random.RandomState(seed), None, who[:0]
    for _ in range(500):
        order = draw.permutation(len(who))
        sums = np.cumsum(counts[order].sum(1))[:-1]
        held = order[: 1 + int(np.argmin(np.abs(sums - fraction * len(train))))]
        val = counts[held].sum(0)
        missing = np.count_nonzero(val == 0) + np.count_nonzero(val == counts.sum(0))
        if fewest is None or missing < fewest:
            fewest, best = missing, held
        if not missing:
            break
    mask = np.isin(person, best)
    return train[~mask], train[mask]


def take_subset(train: Indices, labels: Labels, count: int, seed: int) -> Indices:
    """Keep `count` of `train`, seeded, with the classes in proportion (largest remainders first)."""
    train, labels = np.sort(np.asarray(train)), np.asarray(labels)
    if not 0 < count <= len(train):
        raise UserError(f"dataset.train_subset={count} must be at most the {len(train)} training samples (0 keeps all)")
    classes = [train[labels[train] == k] for k in np.unique(labels[train])]
    shares = np.array([count * len(m) / len(train) for m in classes])
    quota = np.floor(shares).astype(int)
    short = np.argsort(-(shares - quota), kind="stable")[: count - quota.sum()]
    quota[short] += 1
    quotas = zip(classes, quota, strict=True)
    picks = [np.random.RandomState([seed, int(labels[m[0]]), 1]).permutation(m)[:q] for m, q in quotas]
    return np.sort(np.concatenate(picks))


def split_parts(
    cfg: Config, train: Indices, test: Indices, labels: Labels, test_names: Sequence[str], split: str = "official",
    dropped: int = 0, people: Sequence[str] | None = None,
) -> tuple[Indices, Indices, Split]:  # fmt: skip
    """Apply dataset.train_subset, then dataset.validation, to a train/test split: (train, validation, Split).

    `labels` is indexed by `train`, and so is `people`: the person in each sample, if whole people are held out.
    dropped: number of missing recordings of the complete data set. The Split's id records all that changed the parts,
    e.g. "cifar10_dvs/tebn,dropped=1,val=0.1,seed=0".
    """
    d, val = cfg.dataset, train[:0]
    if d.train_subset:
        train = take_subset(train, labels, d.train_subset, d.split_seed)
    if d.validation and people is not None:
        train, val = carve_validation_people(train, labels, people, d.validation, d.split_seed)
    elif d.validation:
        train, val = carve_validation(train, labels, d.validation, d.split_seed)
    words = {
        f"dropped={dropped}": dropped,
        f"subset={d.train_subset}": d.train_subset,
        f"val={d.validation:g}": d.validation,
        "by=person": d.validation and people is not None,
        f"seed={d.split_seed}": d.train_subset or d.validation,
    }
    name = ",".join([f"{d.name}/{split}", *(word for word, holds in words.items() if holds)])
    digest = hashlib.sha256("".join(f"{n}\n" for n in sorted(test_names)).encode()).hexdigest()
    return train, val, Split(name, digest, len(train), len(val), len(test))
