"""Splits: the published ones to the last file, and a validation part that never meets the test set."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_repro.data import splits
from snn_repro.data.sets import SETS
from snn_repro.data.splits import carve_validation, carve_validation_people, split_parts, take_subset
from snn_repro.errors import DataError, UserError

GOLDEN = Path(__file__).parents[1] / "golden"
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def named_split(dataset, *args):
    return splits.named_split(SETS[dataset], *args)


def config(name, **keys):
    return SimpleNamespace(dataset=SimpleNamespace(**{"name": name, "train_subset": 0, **keys}))


def all_names(dataset, *args):
    return SETS[dataset].all_names(*args)


@pytest.fixture(scope="module")
def dvs():
    """Names and labels of the whole CIFAR10-DVS."""
    names = sorted(f"{c}/cifar10_{c}_{i}.aedat" for c in CIFAR10_CLASSES for i in range(1000))
    return names, np.array([CIFAR10_CLASSES.index(n.split("/")[0]) for n in names])


@pytest.fixture(scope="module")
def caltech():
    counts = json.loads((GOLDEN / "ncaltech101_counts.json").read_text())
    names = sorted(f"{c}/image_{i:04d}.bin" for c, n in counts.items() for i in range(1, n + 1))
    classes = sorted(counts)
    return names, np.array([classes.index(n.split("/")[0]) for n in names])


def test_random_split_of_cifar10_dvs_is_the_published_one(dvs):
    reference = json.loads((GOLDEN / "cifar10dvs_random_split.json").read_text())
    train, test = named_split("cifar10_dvs", "random", *dvs)
    per_class = [test[dvs[1][test] == k].tolist() for k in range(10)]
    assert per_class == reference["test_sorted"]
    text = ",".join(str(i) for members in per_class for i in members)
    assert hashlib.sha256(text.encode()).hexdigest() == reference["sha256_test_sorted"]
    assert len(train) == 9000


@pytest.mark.parametrize(("split", "numbers"), [("tebn", range(100)), ("tail", range(900, 1000))])
def test_numbered_splits(dvs, split, numbers):
    names, _ = dvs
    train, test = named_split("cifar10_dvs", split, *dvs)
    assert {names[i] for i in test} == {f"{c}/cifar10_{c}_{i}.aedat" for c in CIFAR10_CLASSES for i in numbers}
    assert len(train) == 9000


def test_front90_takes_the_string_order(dvs):
    names, labels = dvs
    train, test = named_split("cifar10_dvs", "front90", names, labels)
    expected = sorted(f"{i}." for i in range(1000))[900:]  # "91.", "910.", ..., "99.", ..., "999."
    assert [names[i].split("_")[-1].removesuffix("aedat") for i in test[labels[test] == 3]] == expected
    assert len(train) == 9000 and len(test) == 1000


def test_ncaltech101_seeded_sizes(caltech):
    names, labels = caltech
    assert len(names) == 8709
    train, test = named_split("ncaltech101", "seeded", names, labels)
    assert (len(train), len(test)) == (7795, 914)
    order = np.flatnonzero(labels == 2)
    np.random.RandomState(2).shuffle(order)
    assert set(order[:180]) <= set(train) and set(order[180:]) <= set(test)


@pytest.mark.parametrize(("split", "tests", "first"), [("front90", 823, 422), ("front90_rounded", 870, 421)])
def test_the_front_of_ncaltech101_is_rounded_as_tcja_and_tks_round_it(caltech, split, tests, first):
    names, labels = caltech
    train, test = named_split("ncaltech101", split, names, labels)
    assert (len(train), len(test)) == (8709 - tests, tests)
    assert [names[i] for i in test[labels[test] == 0]] == [
        f"BACKGROUND_Google/image_{i:04d}.bin" for i in range(first, 468)
    ]
    assert (f"{679 / tests:.4f}" == "0.8250") == (split == "front90")  # TCJA's accuracy is a number of these samples


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=20, max_size=200), st.floats(0.05, 0.5), st.integers(0, 2**31 - 1))
def test_validation_is_stratified_disjoint_and_repeatable(labels, fraction, seed):
    labels = np.array(labels)
    train = np.arange(len(labels))[::2]
    try:
        rest, val = carve_validation(train, labels, fraction, seed)
    except UserError:
        assert max(np.bincount(labels[train])) * fraction < 0.5 or len(train) < 3
        return
    assert sorted([*rest, *val]) == sorted(train)
    for k in np.unique(labels[train]):
        n = (labels[train] == k).sum()
        assert (labels[val] == k).sum() == int(fraction * n + 0.5)
    again = carve_validation(train[::-1], labels, fraction, seed)
    assert all(np.array_equal(a, b) for a, b in zip(again, (rest, val), strict=True))


def test_subset_keeps_proportions():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    kept = take_subset(np.arange(100), labels, 25, seed=3)
    assert len(kept) == 25 and np.bincount(labels[kept]).tolist() in ([15, 8, 2], [15, 7, 3])
    with pytest.raises(UserError, match="train_subset=101"):
        take_subset(np.arange(100), labels, 101, seed=0)


def test_split_id_says_what_changed_it(dvs):
    names, labels = dvs
    train, test = named_split("cifar10_dvs", "tebn", names, labels)
    cfg = config("cifar10_dvs", validation=0.1, train_subset=1000, split_seed=5)
    rest, val, split = split_parts(cfg, train, test, labels, [names[i] for i in test], split="tebn")
    assert split.id == "cifar10_dvs/tebn,subset=1000,val=0.1,seed=5"
    assert (split.n_train, split.n_val, split.n_test) == (len(rest), len(val), 1000) == (900, 100, 1000)
    assert not set(rest) & set(val) and not set(test) & (set(rest) | set(val))


def test_an_empty_side_is_said():
    with pytest.raises(DataError, match="no test files among"):
        named_split("cifar10_dvs", "tail", ["cat/cifar10_cat_1.aedat"], [0])


@pytest.mark.parametrize("split", ["random", "tail"])
def test_a_dropped_recording_moves_no_other_of_cifar10_dvs(dvs, split):
    """Whether it is listed as excluded or merely absent: the published split, less the file."""
    names, labels = dvs
    _, full = named_split("cifar10_dvs", split, names, labels)
    gone = {0, 5555}
    kept = [i for i in range(len(names)) if i not in gone]
    rest, rest_labels = [names[i] for i in kept], labels[kept]
    for excluded in ([], [names[i] for i in gone]):
        everything = all_names("cifar10_dvs", rest, rest_labels, excluded)
        train, test = named_split("cifar10_dvs", split, rest, rest_labels, everything)
        assert {rest[i] for i in test} == {names[i] for i in full} - {names[i] for i in gone}
        assert len(train) + len(test) == 9998 and len(everything) - len(rest) == 2


def test_names_that_the_published_set_does_not_have_are_split_with_the_excluded_ones():
    names = [f"cat/cifar10_cat_{i}.aedat" for i in range(1990, 2000)]
    everything = all_names("cifar10_dvs", names[1:], [3] * 9, [names[0]])
    assert everything == dict.fromkeys(names, 3)
    _, full = named_split("cifar10_dvs", "front90", names, [3] * 10)
    _, test = named_split("cifar10_dvs", "front90", names[1:], [3] * 9, everything)
    assert [names[i] for i in full] == [names[1:][i] for i in test]


def gestures(rng, absent=()):
    """Names and labels like those of DVS128 Gesture's training part: 23 people, 2 to 5 trials of 12 rows each."""
    lights = ("fluorescent", "fluorescent_led", "lab", "led", "natural")
    classes = [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]
    samples = [
        (f"user{user:02d}_{light}.aedat:{i:02d}", k)
        for user in range(1, 24)
        for light in lights[: rng.integers(2, 6)]
        for i, k in enumerate(classes)
        if (user, k) not in absent
    ]
    return [n for n, _ in samples], np.array([k for _, k in samples])


@pytest.mark.parametrize(("fraction", "seed"), [(0.05, 0), (0.1, 1), (0.2, 2), (0.5, 0)])
def test_gesture_validation_is_drawn_by_person(fraction, seed):
    absent = {(user, 10) for user in range(3, 24)}  # only two people show the last class
    names, labels = gestures(np.random.default_rng(seed), absent)
    people = [SETS["dvs_gesture"].person(n) for n in names]
    assert sorted(set(people)) == [f"user{u:02d}" for u in range(1, 24)]
    train = np.arange(len(names))
    rest, val = carve_validation_people(train, labels, people, fraction, seed)
    assert sorted([*rest, *val]) == train.tolist()
    assert not {people[i] for i in rest} & {people[i] for i in val}
    assert set(labels[rest]) == set(labels[val]) == set(range(11))
    assert abs(len(val) - fraction * len(names)) <= 60  # a person has up to 60 rows
    again = carve_validation_people(train[::-1], labels, people, fraction, seed)
    assert all(np.array_equal(a, b) for a, b in zip(again, (rest, val), strict=True))
    others = [carve_validation_people(train, labels, people, fraction, seed + 10 + k)[1].tolist() for k in range(9)]
    assert len({tuple(o) for o in others}) > 1
    cfg = config("dvs_gesture", validation=fraction, split_seed=seed)
    _, val2, split = split_parts(cfg, train, train[:0], labels, [], dropped=3, people=people)
    assert np.array_equal(val, val2)
    assert split.id == f"dvs_gesture/official,dropped=3,val={fraction:g},by=person,seed={seed}"


def test_one_person_cannot_be_split():
    with pytest.raises(UserError, match="dataset.validation=0.1 holds out whole people"):
        carve_validation_people(np.arange(12), np.arange(12) % 11, ["user01"] * 12, 0.1, 0)
