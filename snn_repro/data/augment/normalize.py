from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from snn_repro.data.augment.augmentation import BatchTransform

if TYPE_CHECKING:
    from torch import Tensor


class Normalize(BatchTransform):
    """x <- (x - mean) / std per channel (dim -3), float32; mean and std in the unit of the stored values.

    channel_order="bgr" turns the channels of x round first: blue is then normalised with red's statistics, as
    the paper's CIFAR code does.
    """

    portable = True

    def __init__(self, mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb"):
        import torch

        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.scale = 1 / torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.reverse = channel_order == "bgr"

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        import torch

        self.mean, self.scale = self.mean.to(x.device), self.scale.to(x.device)
        x = x.flip(-3) if self.reverse else x
        return (x.to(torch.float32) - self.mean).mul_(self.scale), target
