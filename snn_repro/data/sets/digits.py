"""Embedded data: 1,797 handwritten 8x8 digits from scikit-learn (Alpaydin & Kaynak, 1998).

A linear classifier reaches 97.3 % on the test set: the digits show that all works, but cannot tell methods apart.

The test set is fixed: the 450 digits of digits_test.txt, stratified, drawn once by scikit-learn's train_test_split with
random_state=0. `dataset.validation` takes a part of the other 1,347.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageSet


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images float32 [1797, 1, 8, 8] in 0..1, labels int64 [1797]."""
    table = _table()
    return (table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype("float32"), table[:, -1].astype("int64")


@cache
def _table() -> np.ndarray:
    """Pixels (0..16) and label of each digit, uint8 [1797, 65], without importing scikit-learn."""
    package: Any = find_spec("sklearn")
    return np.loadtxt(Path(package.origin).with_name("datasets") / "data/digits.csv.gz", np.uint8, delimiter=",")


def sample_names(indices: np.ndarray) -> list[str]:
    """Names of the digits for the hash of the test list: "digits/0007"."""
    return [f"digits/{i:04d}" for i in indices]


def train_test() -> tuple[np.ndarray, np.ndarray]:
    """Fixed indices (train, test), each sorted."""
    test = np.loadtxt(Path(__file__).with_name("digits_test.txt"), dtype=np.int64)
    return np.setdiff1d(np.arange(len(_table())), test), test


@register("digits")
class Digits(ImageSet):
    """The embedded digits."""

    shape, num_classes = (1, 8, 8), 10
    resizable = False
    samples = 1_347, 450
    statistics = [0.0], [1.0]
    split_id = "fixed"
    label_names = tuple("0123456789")

    def read(self):
        images, labels = load_digits()
        return [(images[part], labels[part], sample_names(part)) for part in train_test()]

    def stored(self, pixels):
        return (pixels * (16 / 255)).round().astype("float32") / 16

    def fingerprint(self, cfg):
        return {"digits": hashlib.sha256(_table().tobytes()).hexdigest()}
