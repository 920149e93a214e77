"""Augmentation of whole batches; every draw comes from the generator given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """x <- (x - mean) / std per channel (dim -3), as float32; mean and std in the unit of the stored values."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.scale = 1 / torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, x: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return (x.to(torch.float32) - self.mean) * self.scale, target
