"""SNN-TrivialAug: one random operation per sample of event frames."""

import math
from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import MovingAugmentation, register_augmentation, sources_of
from snn_repro.settings import Setting

LEVELS = 31


@cache
def magnitudes(end: float, n: int = LEVELS) -> list[float]:
    """torch.linspace(-end, end, n) in float32, rounded alike on every processor.

    Rounds as fused multiply-adds do. The last bit decides which levels truncate to which pixel: 1 becomes 0.9999999.
    """
    end, k = float(np.float32(end)), np.arange(n)
    step = float(np.float32(2 * end) / np.float32(n - 1))
    return np.where(k < n // 2, -end + step * k, end - step * (n - 1 - k)).astype(np.float32).tolist()


def sheared(x: Tensor, degrees: float) -> Tensor:
    """x [..., H, W] sheared along x: nearest neighbour, zeros from outside."""
    return vision.functional.affine(x, 0.0, [0, 0], 1.0, [degrees, 0.0])


@register_augmentation("event_policy")
class EventPolicy(MovingAugmentation):
    """SNN-TrivialAug, one of six operations per sample, uniformly (the paper's 128-pixel event rows).

    TrivialAugment (Mueller and Hutter, ICCV 2021) with operations for event frames, as in the code of Spikformer (Zhou
    et al., ICLR 2023): identity; ShearX up to 0.3 rad; TranslateX, TranslateY up to 5 pixels, truncated to integers;
    Rotate up to 30 degrees; Cutout, one square of 0.1 % to 11 % of the area set to zero. Magnitudes are those of
    torch.linspace(-max, max, 31); nearest-neighbour sampling, zeros from outside.
    """

    settings = {
        "event_policy": Setting(False, "events: SNN-TrivialAug (Zhou et al., 2023), one of 6 operations, the same for all T")
    }  # fmt: skip
    works_on = ("frames",)
    order = 30

    def __init__(self, event_policy: bool = True):
        pass

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Operations [n], levels [n], Cutout's area fraction [n] and place [2, n], both in 0..1."""
        operation = torch.randint(6, (n,), generator=generator)
        level = torch.randint(LEVELS, (n,), generator=generator)
        area = torch.rand(n, generator=generator) * (0.11 - 0.001) + 0.001
        return operation, level, area, torch.rand(2, n, generator=generator)

    def sources(self, draws: tuple, rows: Tensor, size: tuple[int, int]) -> Tensor:
        operation, level, area, place = (d[..., rows] for d in draws)
        side = (area * size[0] * size[1]).sqrt().round().long()
        own = zip(operation.tolist(), level.tolist(), side.tolist(), place.T.tolist(), strict=True)
        return torch.stack([cutout(side, at, size) if k == 5 else moves(k, level, size) for k, level, side, at in own])


@cache
def moves(operation: int, level: int, size: tuple[int, int]) -> Tensor:
    """Sources int64 [H*W] of any operation but Cutout."""
    shift = int(magnitudes(5.0)[level])
    by = {
        0: lambda x: x,
        1: lambda x: sheared(x, math.degrees(magnitudes(0.3)[level])),
        2: lambda x: vision.functional.affine(x, 0.0, [shift, 0], 1.0, [0.0, 0.0]),
        3: lambda x: vision.functional.affine(x, 0.0, [0, shift], 1.0, [0.0, 0.0]),
        4: lambda x: vision.functional.rotate(x, magnitudes(30.0)[level]),
    }
    return sources_of(by[operation], size)


def cutout(side: int, place: list[float], size: tuple[int, int]) -> Tensor:
    """Sources int64 [H*W] that zero a square of `side` pixels at `place` (0..1)."""
    height, width = size
    side = min(side, height, width)
    top, left = int(place[0] * (height - side + 1)), int(place[1] * (width - side + 1))
    kept = torch.arange(height * width).view(height, width)
    kept[top : top + side, left : left + side] = height * width
    return kept.flatten()
