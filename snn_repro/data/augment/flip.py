"""Random horizontal flip."""

import torch
from torch import Generator, Tensor

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import MovingAugmentation, register_augmentation
from snn_repro.settings import Setting


@register_augmentation("flip")
class RandomFlip(MovingAugmentation):
    """Mirror each sample left to right with probability `flip`."""

    settings = {"flip": Setting(0.0, "probability of a horizontal flip", low=0, high=1)}
    order, on_tensors = 20, True

    def __init__(self, flip: float):
        self.chance = flip

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Which samples are mirrored, bool [n]."""
        return torch.rand(n, generator=generator) < self.chance

    def sources(self, draws: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
        places = torch.arange(size[0] * size[1]).view(size)
        return torch.stack([places, places.flip(-1)]).flatten(1)[draws[rows].long()]

    def pil_step(self, size, fill):
        return vision.transforms.RandomHorizontalFlip(self.chance)
