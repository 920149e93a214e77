"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of batches."""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from snn_repro.data.augment.augmentation import SoftAugmentation, held, register_augmentation, sent, shared, soft
from snn_repro.kernels.compiled import tried
from snn_repro.settings import Setting


class _Mixing(NamedTuple):
    """Random draws for one batch: partners `other` [n], kind and lambda.

    `apply` draws CutMix's box from `box`, as its range is the image's size, and consumes it: a copy would be slow.
    """

    other: Tensor
    kind: str
    lam: float
    box: np.random.RandomState


@register_augmentation("mixup")
class Mix(SoftAugmentation):
    """Mixup or CutMix of a batch with a random permutation of itself.

    mixup, cutmix: alpha of Beta(alpha, alpha), the distribution of lambda; 0 is off. With both, each batch takes one of
    the two with equal probability. mix_prob: probability of mixing a batch at all. Targets become float32 [B, K].

    cutmix_axes="spatial" pastes a box of sqrt(1 - lambda) of height and width, clipped at the border, into all frames
    and channels; lambda becomes the fraction of the area that remains. "published" draws the same box and lambda, but
    cuts the axes that the paper's code cuts in event frames: the vertical range from the polarities, the horizontal
    range from the rows. As there are two polarities, most batches keep their frames while the targets still change.
    """

    settings = {
        "mixup": Setting(0.0, "Mixup alpha; 0 is off", low=0),
        "cutmix": Setting(0.0, "CutMix alpha; 0 is off", low=0),
        "mix_prob": Setting(1.0, "probability of mixing a batch", low=0, high=1),
        "cutmix_axes": Setting(
            "spatial", "CutMix axes; published (the paper's code): polarity, height", choices=("spatial", "published")
        ),
    }
    switches = ("mixup", "cutmix")
    order, portable = 70, True

    def __init__(
        self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0, mix_prob: float = 1.0,
        cutmix_axes: str = "spatial",
    ):  # fmt: skip
        self.num_classes, self.prob, self.cutmix_axes = num_classes, mix_prob, cutmix_axes
        self.kinds = [(kind, alpha) for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]

    def draw(self, n: int, generator: Generator) -> _Mixing | None:
        """Partners, kind and lambda of a batch; None: it is not mixed."""
        # a legacy NumPy generator: torch has no seeded Beta, and the legacy stream never changes
        draw = np.random.RandomState(int(torch.randint(2**31, (1,), generator=generator)))
        other = torch.randperm(n, generator=generator)
        if draw.rand() >= self.prob:
            return None
        kind, alpha = self.kinds[draw.randint(len(self.kinds))]
        return _Mixing(other, kind, draw.beta(alpha, alpha), draw)

    def partners(self, draws: _Mixing | None, rows: Tensor) -> Tensor:
        return rows[:0] if draws is None else draws.other[rows]

    def apply(self, x: Tensor, target: Tensor, draws: _Mixing | None, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        target = soft(target, self.num_classes)
        if draws is None:
            return x, target
        other = held(rows, draws.other[rows[:keep]])
        mixed, lam = (blend(x, other, draws.lam), draws.lam) if draws.kind == "mixup" else self._cutmix(x, other, draws)
        return mixed, lam * target[:keep] + (1 - lam) * target[other]

    def _cutmix(self, x: Tensor, other: Tensor, draws: _Mixing) -> tuple[Tensor, float]:
        draw, lam = draws.box, draws.lam
        height, width = x.shape[-2:]
        (top, bottom), (left, right) = (self._range(size, math.sqrt(1 - lam), draw) for size in (height, width))
        published = self.cutmix_axes == "published" and x.ndim == 5
        box: tuple = (..., slice(top, bottom), slice(left, right), *[slice(None)] * published)
        mixed = x.narrow(-4, 0, len(other)).clone()
        mixed[box] = x[box].index_select(-4, sent(other, x.device))
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)

    @staticmethod
    def _range(size: int, part: float, draw) -> tuple[int, int]:
        centre, half = draw.randint(size), int(size * part) // 2
        return max(centre - half, 0), min(centre + half, size)


def blend(x: Tensor, other: Tensor, lam: float) -> Tensor:
    """lam x[b] + (1 - lam) x[other[b]], float32, for x [..., B, C, H, W].

    Two products and a sum, each rounded, on every device; a fused multiply-add would round once.
    """
    own, loop = x.narrow(-4, 0, len(other)), _loop() if x.device.type == "cpu" else None
    if loop is None:
        return own.float().mul(lam).add_(x.index_select(-4, sent(other, x.device)).float().mul_(1 - lam))
    x = x if x.dtype == torch.uint8 else x.float()
    out = torch.empty(own.shape)
    rows = [a.reshape(-1, a.shape[-4], a.shape[-3:].numel()).numpy() for a in (x, out)]
    weights = np.float32(lam), np.float32(1 - lam)
    shared(lambda *part: loop(*rows, other.numpy(), *weights, *part), len(other), out.numel())
    return out


@cache
def _loop() -> Callable | None:
    """`_blend` compiled, several times faster as it writes no intermediate; None if numba cannot."""
    one = np.zeros((1, 1, 1), np.float32)
    rest = np.zeros(1, np.int64), np.float32(1), np.float32(0), 0, 1
    return tried(_blend, one, one.copy(), *rest, without="Mixup is slower, not different")


def _blend(x, out, other, own_part, other_part, first, last):
    for t in range(out.shape[0]):
        for b in range(first, last):
            mine, theirs, mixed = x[t, b], x[t, other[b]], out[t, b]
            for i in range(len(mine)):
                mixed[i] = own_part * mine[i] + other_part * theirs[i]
