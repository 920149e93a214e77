from __future__ import annotations

from typing import TYPE_CHECKING

from snn_repro.data.augment.augmentation import BatchAugmentation, register_augmentation
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register_augmentation("flip")
class RandomFlip(BatchAugmentation):
    """Mirror each sample left to right with the given chance."""

    settings = {"flip": Setting(0.0, "chance of a horizontal flip", low=0, high=1)}
    order = 20

    def __init__(self, flip: float):
        self.chance = flip

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Which samples are mirrored, bool [n]."""
        import torch

        return torch.rand(n, generator=generator) < self.chance

    def apply(self, x: Tensor, target: Tensor, draws: Tensor, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        import torch

        return torch.where(draws[rows].view(-1, 1, 1, 1), x.flip(-1), x), target

    def pil_step(self, size, fill):
        from torchvision.transforms import RandomHorizontalFlip

        return RandomHorizontalFlip(self.chance)
