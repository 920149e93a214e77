"""RandAugment (Cubuk et al., NeurIPS 2020), as timm implements it."""

from typing import Any

from PIL.Image import Resampling

from snn_repro.data.augment.augmentation import PilAugmentation, register_augmentation
from snn_repro.settings import Setting


@register_augmentation("randaugment_ops")
class RandAugment(PilAugmentation):
    """Apply a number of timm's 15 "increasing" operations to each image.

    Each has probability 0.5 and a level drawn from N(level, std); bicubic resampling, `fill` outside the image.
    """

    settings = {
        "randaugment_ops": Setting(0, "RandAugment: operations per image; 0 is off", low=0),
        "randaugment_level": Setting(7, "RandAugment: level, out of 10", low=0, high=10),
        "randaugment_std": Setting(0.5, "RandAugment: standard deviation of the level", low=0),
    }
    order = 30

    def __init__(self, randaugment_ops: int, randaugment_level: int = 7, randaugment_std: float = 0.5):
        self.ops, self.level, self.std = randaugment_ops, randaugment_level, randaugment_std

    def pil_step(self, size, fill):
        from timm.data.auto_augment import rand_augment_transform  # slow to import, used by two tables

        colour = tuple(round(v) for v in fill)
        options: dict[str, Any] = {
            "img_mean": colour if len(colour) > 1 else colour[0],
            "interpolation": Resampling.BICUBIC,
            "magnitude_std": self.std,
        }
        return rand_augment_transform(f"rand-m{self.level}-n{self.ops}-inc1", options)
