from __future__ import annotations

from typing import TYPE_CHECKING

from snn_repro.data.augment.augmentation import BatchAugmentation, register_augmentation
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register_augmentation("crop_padding")
class RandomCrop(BatchAugmentation):
    """Pad by `padding` zeros on each side, then cut the original size at a random place."""

    settings = {"crop_padding": Setting(0, "random crop after padding by this much", "pixels", low=0)}
    order = 10
    crops = True

    def __init__(self, crop_padding: int):
        self.padding = crop_padding

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Rows and columns [2, n] at which the cuts begin."""
        import torch

        return torch.randint(2 * self.padding + 1, (2, n), generator=generator)

    def apply(self, x: Tensor, target: Tensor, draws: Tensor, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        batch, _, height, width = x.shape[-4:]
        dy, dx = draws[:, rows]
        padded = F.pad(x, (self.padding,) * 4).movedim(-4, 0)
        windows = padded.unfold(-2, height, 1).unfold(-2, width, 1)  # a view [B, ..., dy, dx, H, W]
        cut = windows.movedim((-4, -3), (1, 2))[torch.arange(batch), dy, dx]
        return cut.movedim(0, -4), target

    def pil_step(self, size, fill):
        from torchvision.transforms import RandomCrop

        return RandomCrop(size, self.padding)
