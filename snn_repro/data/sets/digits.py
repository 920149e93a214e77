"""The embedded data: 1,797 real handwritten digits, the 8x8 images that scikit-learn carries (Alpaydin & Kaynak, 1998).

They are nearly saturated: a linear classifier gets 97.3 % of the test set right. They show that everything works, and
cannot tell methods apart.

The test set never changes: the 450 digits of digits_test.txt, stratified, drawn once by scikit-learn's
train_test_split with random_state=0. `dataset.validation` carves a part out of the other 1,347.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageSet
from snn_repro.errors import DataError


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images float32 [1797, 1, 8, 8] in 0..1 (sixteenths), labels int64 [1797] in 0..9."""
    table = _table()
    return (table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype("float32"), table[:, -1].astype("int64")


@cache
def _table() -> np.ndarray:
    """uint8 [1797, 65]: 64 pixels in 0..16 and the label of each digit.

    From scikit-learn's own file without importing it, which takes a second. Raises DataError where it is missing.
    """
    package = find_spec("sklearn")
    file = Path((package and package.origin) or "sklearn/__init__.py").with_name("datasets") / "data/digits.csv.gz"
    try:
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}, which holds the digits, cannot be read ({error}); pip install scikit-learn") from None


def sample_names(indices: np.ndarray) -> list[str]:
    """The names under which the digits enter the hash of the test list: "digits/0007"."""
    return [f"digits/{i:04d}" for i in indices]


def train_test() -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, test), each ascending. They depend on nothing that can be set."""
    test = np.loadtxt(Path(__file__).with_name("digits_test.txt"), dtype=np.int64)
    return np.setdiff1d(np.arange(len(_table())), test), test


@register("digits")
class Digits(ImageSet):
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
