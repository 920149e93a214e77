"""The embedded data: 1,797 real handwritten digits, as images (`digits`) and as emulated events (`digits_dvs`).

`digits` are the 8x8 images that scikit-learn carries (Alpaydin & Kaynak, 1998). They are nearly saturated: a
linear classifier gets 97.3 % of the test set right. `digits_dvs` are the same images recorded by the emulated
event camera of emulator.py, which moves them along N-MNIST's three saccades: emulated from real images, not
N-MNIST, and summing the frames over time loses little. Both show that everything works; neither can tell
methods apart.

The test set never changes: the 450 digits of digits_test.txt, stratified, drawn once by scikit-learn's
train_test_split with random_state=0. `dataset.validation` carves a part out of the other 1,347.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from snn_repro.config import Config
from snn_repro.data.augment import Normalize, frame_transforms, image_transforms, needs_pil
from snn_repro.data.batches import Data, memory_data
from snn_repro.data.emulator import DIGITS_CAMERA, emulated_frames
from snn_repro.data.splits import carve_validation, make_split
from snn_repro.errors import DataError, UserError

CAMERA_SEED = 0  # one camera for everybody: the data do not depend on a run's seed


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images float32 [1797, 1, 8, 8] in 0..1 (sixteenths), labels int64 [1797] in 0..9.

    Read from scikit-learn's own file without importing it, which takes a second. Raises DataError where it is missing.
    """
    table = _table()
    return (table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32), table[:, -1].astype(np.int64)


@cache
def _table() -> np.ndarray:
    """uint8 [1797, 65]: 64 pixels in 0..16 and the label of each digit."""
    found = find_spec("sklearn")
    if found is None:
        raise DataError("the digits come with scikit-learn, which is not installed; pip install scikit-learn")
    file = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(file, "rt") as lines:
            return np.array([line.split(",") for line in lines], dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{file}, which holds the digits, cannot be read ({error}); install scikit-learn anew"
        ) from None


def sample_names(indices: np.ndarray) -> list[str]:
    """The names under which the digits enter the hash of the test list: "digits/0007"."""
    return [f"digits/{i:04d}" for i in indices]


def _train_test() -> tuple[np.ndarray, np.ndarray]:
    test = np.loadtxt(Path(__file__).with_name("digits_test.txt"), dtype=np.int64)
    return np.setdiff1d(np.arange(len(_table())), test), test


def split_digits(
    labels: np.ndarray, validation: float = 0.0, split_seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (train, validation, test), each ascending. The test part depends on nothing that can be set.

    validation: part of the training set that is held out, stratified, drawn with `split_seed`.
    Raises UserError if it leaves no samples on one side.
    """
    train, test = _train_test()
    if validation:
        train, val = carve_validation(train, labels, validation, split_seed)
    else:
        val = train[:0]
    return train, val, test


def linear_baseline() -> float:
    """Test accuracy (0..1) of logistic regression on the pixels: what a linear model reaches on this split.

    Fitted on all 1,347 training digits; C = 6.3 came from 5-fold cross-validation within them.
    """
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits()
    pixels = images.reshape(len(images), -1).astype(np.float64)
    train, test = _train_test()
    model = LogisticRegression(C=6.3, max_iter=5000).fit(pixels[train], labels[train])
    return float(model.score(pixels[test], labels[test]))


def digits_dvs_frames(
    timesteps: int, seed: int = CAMERA_SEED, by: str = "number", cache_dir: str | Path | None = None
) -> np.ndarray:
    """All digits as emulated event frames: event counts, uint8 [1797, T, 2, 24, 24], channel 0 = darker.

    seed: of the emulated camera. by: "number" or "time", see `integrate`. With `cache_dir` the frames are kept
    there; a cache file that is damaged, or that cannot be written, only costs a warning and a second of work.
    """
    return emulated_frames("digits_dvs", load_digits()[0], timesteps, seed, by, DIGITS_CAMERA, cache_dir)


def build_digits(cfg: Config) -> Data:
    """`dataset=digits`: static images [B, 1, 8, 8] in 0..1."""
    if needs_pil(cfg.augment):
        raise UserError(
            "augment.randaugment_ops and augment.rrc_min_area are for larger images; set both to 0 for digits"
        )
    images, labels = load_digits()
    return _build(cfg, images, labels, image_transforms(cfg.augment, 10, Normalize([0.0], [1.0])))


def build_digits_dvs(cfg: Config) -> Data:
    """`dataset=digits_dvs`: frames of emulated events, [T, B, 2, 24, 24] counts."""
    if cfg.augment.eventdrop:
        raise UserError("augment.eventdrop works on recordings; digits_dvs has only frames: set it to false")
    frames = digits_dvs_frames(cfg.timesteps, by=cfg.dataset.integrate_by, cache_dir=cfg.cache_dir)
    return _build(cfg, frames, load_digits()[1], frame_transforms(cfg.augment, "digits_dvs", 10))


def _build(cfg: Config, inputs: np.ndarray, labels: np.ndarray, transforms: list) -> Data:
    data, size = cfg.dataset, inputs.shape[-1]
    if data.frame_size not in (None, size):
        raise UserError(f"dataset.frame_size={data.frame_size}: {data.name} has {size} pixels; set it to null")
    train, test = _train_test()
    train, val, split = make_split(
        data.name,
        train,
        test,
        labels,
        sample_names(test),
        split="fixed",
        validation=data.validation,
        subset=data.train_subset,
        seed=data.split_seed,
    )

    return memory_data(cfg, inputs, labels, (train, val, test), split, transforms, 10)
