"""Random crop after zero padding."""

import torch
from torch import Generator, Tensor

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import MovingAugmentation, register_augmentation
from snn_repro.settings import Setting


@register_augmentation("crop_padding")
class RandomCrop(MovingAugmentation):
    """Pad by `crop_padding` zeros per side, then crop the original size at random."""

    settings = {"crop_padding": Setting(0, "zero padding before a random crop; 0 is off", "pixels", low=0)}
    order = 10
    crops = on_tensors = True

    def __init__(self, crop_padding: int):
        self.padding = crop_padding

    def draw(self, n: int, generator: Generator) -> Tensor:
        """First rows and columns [2, n] of the crops."""
        return torch.randint(2 * self.padding + 1, (2, n), generator=generator)

    def sources(self, draws: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        y, x = (torch.arange(n) + d[rows, None] - self.padding for n, d in zip(size, draws, strict=True))
        inside = ((y >= 0) & (y < height)).unsqueeze(2) & ((x >= 0) & (x < width)).unsqueeze(1)
        return torch.where(inside, y.unsqueeze(2) * width + x.unsqueeze(1), height * width).flatten(1)

    def pil_step(self, size, fill):
        return vision.transforms.RandomCrop(size, self.padding)
