"""EventMix (Shen, Zhao, Zeng, Information Sciences 644, 2023): event frames mixed by Gaussian masks."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from snn_repro.data.augment.augmentation import SoftAugmentation, held, register_augmentation, soft
from snn_repro.settings import Setting


class _Masks(NamedTuple):
    """Random draws of EventMix for n samples."""

    other: Tensor  # [n], partners
    part: Tensor  # [n], fraction of (t, y, x) taken from the partner; 0: not mixed
    weight: Tensor  # [n, 4] of the Gaussians; 0 beyond their number
    mean: Tensor  # [n, 4, 3] in 0..1
    width: Tensor  # [n, 4, 3] in 0..1


@register_augmentation("eventmix")
class EventMix(SoftAugmentation):
    """A sample takes the events of another inside a random mask.

    The mask is where a mixture of 2 to 4 Gaussians over (t, y, x) is densest; it covers lambda ~ Beta(alpha, alpha) of
    all places. A component's weight is uniform in 0..1, its mean uniform in the frames, and its standard deviation
    along each axis half the length times a uniform number, clamped to at least 0.1. The weight of a sample's own label
    is (1 - a) / (1 - a + b), where a and b are the fractions of its own and of the other recording's events inside the
    mask. A sample that would be left without events is not mixed.

    This follows the authors' code without its salt-and-pepper noise; partners are a random permutation of the batch.
    """

    settings = {
        "eventmix": Setting(0.0, "events: EventMix (Shen et al., 2023), alpha of Beta(alpha, alpha); 0 is off", low=0),
        "eventmix_prob": Setting(1.0, "EventMix: probability of mixing a sample", low=0, high=1),
    }
    works_on = ("frames",)
    order = 60

    def __init__(self, num_classes: int, eventmix: float, eventmix_prob: float = 1.0):
        self.num_classes, self.alpha, self.prob = num_classes, eventmix, eventmix_prob

    def draw(self, n: int, generator: Generator) -> _Masks:
        # torch has no seeded Beta distribution
        seed = int(torch.randint(2**31, (1,), generator=generator))
        part = np.random.RandomState(seed).beta(self.alpha, self.alpha, n)
        other = torch.randperm(n, generator=generator)
        mixed = torch.rand(n, generator=generator) < self.prob
        components = torch.randint(2, 5, (n, 1), generator=generator)
        weight, mean, width = (torch.rand(n, 4, *more, generator=generator) for more in ((), (3,), (3,)))
        weight = weight * (torch.arange(4) < components)
        return _Masks(other, torch.from_numpy(part) * mixed, weight, mean, width)

    def partners(self, draws: _Masks, rows: Tensor) -> Tensor:
        return draws.other[rows[draws.part[rows] > 0]]

    def apply(self, x: Tensor, target: Tensor, draws: _Masks, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        target, own = soft(target, self.num_classes), rows[:keep]
        mixed = torch.nonzero(draws.part[own] > 0).flatten()  # a share of a batch without partners holds no others
        if not len(mixed):
            return x.narrow(-4, 0, keep), target[:keep]
        other = held(rows, draws.other[own[mixed]])
        sizes = x.shape[0], *x.shape[-2:]
        masks = [self._mask(sizes, *values) for values in zip(*(d[own[mixed]] for d in draws[1:]), strict=True)]
        mask = torch.stack(masks, 1).unsqueeze(2)  # [T, M, 1, H, W]
        mine, theirs = x[..., mixed, :, :, :], x[..., other, :, :, :]
        a, b = (self._inside(v, mask) for v in (mine, theirs))
        something = 1 - a + b > 0
        weight = torch.where(something, (1 - a) / torch.where(something, 1 - a + b, 1), 1).unsqueeze(1)
        out, labels = x.narrow(-4, 0, keep).clone(), target[:keep].clone()
        out[..., mixed, :, :, :] = torch.where(mask & something.view(-1, 1, 1, 1), theirs, mine)
        labels[mixed] = weight * target[mixed] + (1 - weight) * target[other]
        return out, labels

    @staticmethod
    def _mask(sizes: tuple[int, int, int], part: Tensor, weight: Tensor, mean: Tensor, width: Tensor) -> Tensor:
        """Mask bool [T, H, W] of one sample: the densest `part` of all places."""
        density = weight.view(-1, 1, 1, 1)
        for axis, size in enumerate(sizes):
            middle = (mean[:, axis] * size).floor().unsqueeze(1)
            deviation = (width[:, axis].clamp(min=0.1) * size / 2).unsqueeze(1)
            along = (-(((torch.arange(size) - middle) / deviation) ** 2) / 2).exp()
            density = density * along.view(-1, *(size if i == axis else 1 for i in range(3)))
        density = density.sum(0)
        stay = int(density.numel() * (1 - float(part)))
        return density > density.flatten().kthvalue(stay).values if stay else torch.ones_like(density, dtype=torch.bool)

    @staticmethod
    def _inside(x: Tensor, mask: Tensor) -> Tensor:
        """Fraction of each sample's events inside its mask [M]; 0 without events."""
        inside, total = (v.sum((0, 2, 3, 4), dtype=torch.float64) for v in (x * mask, x))
        return (inside / torch.where(total > 0, total, 1)).float()
