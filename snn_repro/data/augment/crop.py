import torch
from torch import Generator, Tensor

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import MovingAugmentation, register_augmentation
from snn_repro.settings import Setting


@register_augmentation("crop_padding")
class RandomCrop(MovingAugmentation):
    """Pad by `padding` zeros on each side, then cut the original size at a random place."""

    settings = {"crop_padding": Setting(0, "random crop after padding by this much", "pixels", low=0)}
    order = 10
    crops = on_tensors = True

    def __init__(self, crop_padding: int):
        self.padding = crop_padding

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Rows and columns [2, n] at which the cuts begin."""
        return torch.randint(2 * self.padding + 1, (2, n), generator=generator)

    def sources(self, draws: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        y, x = (torch.arange(n) + d[rows, None] - self.padding for n, d in zip(size, draws, strict=True))
        inside = ((y >= 0) & (y < height)).unsqueeze(2) & ((x >= 0) & (x < width)).unsqueeze(1)
        return torch.where(inside, y.unsqueeze(2) * width + x.unsqueeze(1), height * width).flatten(1)

    def pil_step(self, size, fill):
        return vision.transforms.RandomCrop(size, self.padding)
