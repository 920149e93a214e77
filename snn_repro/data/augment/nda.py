"""Neuromorphic data augmentation (Li et al., ECCV 2022)."""

from functools import partial

import torch
from torch import Generator, Tensor

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import MovingAugmentation, register_augmentation, sources_of
from snn_repro.data.augment.event_policy import sheared
from snn_repro.settings import Setting


@register_augmentation("nda")
class NDA(MovingAugmentation):
    """Roll, rotate or shear each sample, as the authors' code does.

    Rolls by up to +-shift pixels along both axes (wrapping around), or rotates or shears along x by up to +-degrees.
    The authors use 5 pixels and 30 degrees on CIFAR10-DVS, 3 and 15 on N-Caltech101; each data set has its own.
    """

    settings = {"nda": Setting(False, "events: neuromorphic data augmentation (Li et al., 2022)")}
    works_on = ("frames",)
    order = 40

    def __init__(self, shift: int = 5, degrees: float = 30.0):
        self.shift, self.degrees = shift, degrees

    @classmethod
    def build(cls, values, dataset):
        return cls(*dataset.nda)

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Operations [n], shifts [n, 2] in pixels, angles [n] in degrees."""
        operation = torch.randint(3, (n,), generator=generator)
        shifts = torch.randint(-self.shift, self.shift + 1, (n, 2), generator=generator)
        return operation, shifts, torch.rand(n, generator=generator) * (2 * self.degrees) - self.degrees

    def sources(self, draws: tuple, rows: Tensor, size: tuple[int, int]) -> Tensor:
        places, found = torch.arange(size[0] * size[1]).view(size), []
        for operation, shifts, angle in zip(*(d[rows].tolist() for d in draws), strict=True):
            turn = partial(vision.functional.rotate, angle=angle) if operation == 1 else partial(sheared, degrees=angle)
            found.append(sources_of(turn, size) if operation else places.roll(shifts, (-2, -1)).flatten())
        return torch.stack(found)
