"""`digits_dvs`: the embedded digits recorded by the emulated event camera of emulator.py.

It moves them along N-MNIST's three saccades: emulated from real images, not N-MNIST, and summing the frames over time loses
little.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snn_repro.data.dataset import SETS, DataSet, register
from snn_repro.data.sets import digits

if TYPE_CHECKING:
    import numpy as np

CAMERA_SEED = 0  # one camera for everybody: the data do not depend on a run's seed


def digits_dvs_frames(
    timesteps: int, seed: int = CAMERA_SEED, by: str = "number", cache_dir: str | Path | None = None
) -> np.ndarray:
    """All digits as emulated event frames: event counts, uint8 [1797, T, 2, 24, 24], channel 0 = darker.

    seed: of the emulated camera. by: "number" or "time", see `integrate`. With `cache_dir` the frames are kept
    there; a cache file that is damaged, or that cannot be written, only costs a warning and a second of work.
    """
    from snn_repro.data.emulator import DIGITS_CAMERA, emulated_frames

    return emulated_frames("digits_dvs", digits.load_digits()[0], timesteps, seed, by, DIGITS_CAMERA, cache_dir)


@register("digits_dvs")
class DigitsDVS(DataSet):
    shape, num_classes = (2, 24, 24), 10
    static, resizable = False, False
    samples = 1_347, 450
    label_names = digits.Digits.label_names

    def fingerprint(self, cfg):
        return SETS["digits"].fingerprint(cfg)

    def sample(self, cfg, source, say):
        """A digit is recorded by the camera as its first recording, number 0."""
        from snn_repro.data import raw
        from snn_repro.data.emulator import DIGITS_CAMERA

        return raw.emulated(self, cfg, source, say, SETS["digits"], 1, DIGITS_CAMERA)

    def build(self, cfg):
        """Frames of emulated events, counts; all digits are recorded, so that one cache file does for every run."""
        from snn_repro.data.augment import batch_transforms
        from snn_repro.data.build import Part, assemble
        from snn_repro.data.splits import split_parts

        frames = digits_dvs_frames(cfg.timesteps, by=cfg.dataset.integrate_by, cache_dir=cfg.cache_dir)
        labels, (train, test) = digits.load_digits()[1], digits.train_test()
        train, val, split = split_parts(cfg, train, test, labels, digits.sample_names(test), split="fixed")
        parts = [Part(frames, labels, rows) for rows in (train, val, test)]
        return assemble(cfg, self, parts, split, batch_transforms(cfg.augment, self))
