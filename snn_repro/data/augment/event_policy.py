from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from snn_repro.data.augment.augmentation import MovingAugmentation, register_augmentation, sources_of
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@cache
def magnitudes(end: float, n: int) -> list[float]:
    """torch.linspace(-end, end, n) in float32 as fused multiply-adds round it, and so the same on every processor.

    Which levels are cut to how many pixels hangs on the last bit: 1 comes out as 0.9999999.
    """
    import numpy as np

    end, k = float(np.float32(end)), np.arange(n)
    step = float(np.float32(2 * end) / np.float32(n - 1))
    return np.where(k < n // 2, -end + step * k, end - step * (n - 1 - k)).astype(np.float32).tolist()


def affine(x: Tensor, translate: Sequence[int] = (0, 0), shear: float = 0.0) -> Tensor:
    """x [..., H, W] moved by whole pixels (right, down) and sheared along x by degrees: nearest neighbour, zeros from outside."""
    from torchvision.transforms.functional import affine

    return affine(x, angle=0.0, translate=list(translate), scale=1.0, shear=[shear, 0.0])


@register_augmentation("event_policy")
class EventPolicy(MovingAugmentation):
    """SNN-TrivialAug, one operation a sample, uniformly one of six (the paper's 128-pixel event rows).

    The code of Spikformer (Zhou et al., ICLR 2023) has it: TrivialAugment (Mueller and Hutter, ICCV 2021) with
    operations for event frames.

    Identity; ShearX up to 0.3 rad; TranslateX, TranslateY up to 5 pixels, cut to whole ones; Rotate up to 30
    degrees; Cutout: one square of 0.1 % to 11 % of the area set to zero. Magnitudes are those of
    torch.linspace(-max, max, 31); nearest-neighbour sampling, zeros from outside.
    """

    settings = {
        "event_policy": Setting(False, "events: SNN-TrivialAug (Zhou et al., 2023), one of 6 operations, the same for all T")
    }  # fmt: skip
    works_on = ("frames",)
    order = 30
    levels = 31

    def __init__(self, event_policy: bool = True):
        pass

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Operations [n], levels [n], and of Cutout the part of the area [n] and the place [2, n], both in 0..1."""
        import torch

        operation = torch.randint(6, (n,), generator=generator)
        level = torch.randint(self.levels, (n,), generator=generator)
        area = torch.rand(n, generator=generator) * (0.11 - 0.001) + 0.001
        return operation, level, area, torch.rand(2, n, generator=generator)

    def sources(self, draws: tuple, rows: Tensor, size: tuple[int, int]) -> Tensor:
        import torch

        operation, level, area, place = (d[..., rows] for d in draws)
        height, width = size
        side = (area * height * width).sqrt().round().long()
        own = zip(operation.tolist(), level.tolist(), side.tolist(), place.T.tolist(), strict=True)
        return torch.stack(
            [cutout(side, place, size) if k == 5 else moves(k, level, size) for k, level, side, place in own]
        )


@cache
def moves(operation: int, level: int, size: tuple[int, int]) -> Tensor:
    """The sources of all operations but Cutout."""
    from torchvision.transforms.functional import rotate

    def magnitude(end: float) -> float:
        return magnitudes(end, EventPolicy.levels)[level]

    def move(x: Tensor) -> Tensor:
        match operation:
            case 0:
                return x
            case 1:
                return affine(x, shear=math.degrees(magnitude(0.3)))
            case 2:
                return affine(x, translate=(int(magnitude(5.0)), 0))
            case 3:
                return affine(x, translate=(0, int(magnitude(5.0))))
        return rotate(x, magnitude(30.0))

    return sources_of(move, size)


def cutout(side: int, place: Sequence[float], size: tuple[int, int]) -> Tensor:
    """The sources [H W] of frames in which a square of `side` pixels at `place` (0..1) is zero."""
    import torch

    height, width = size
    side = min(side, height, width)
    top, left = int(place[0] * (height - side + 1)), int(place[1] * (width - side + 1))
    kept = torch.arange(height * width).view(height, width)
    kept[top : top + side, left : left + side] = height * width
    return kept.flatten()
