from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from snn_repro.data.augment.augmentation import RELEVANCE, GuidedAugmentation, held, register_augmentation, soft
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Box(NamedTuple):
    """Rows top <= y < top + height and columns left <= x < left + width."""

    top: int
    left: int
    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width


def salient_box(salience: Tensor) -> Box:
    """The smallest box around all places of a map [H, W] that are not below its mean."""
    rows, columns = ((salience >= salience.mean()).any(dim).nonzero().flatten() for dim in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def placed(one: Box, two: Box, size: tuple[int, int], draws: list[float]) -> tuple[Box, Box]:
    """Both boxes at random places of a frame (H, W), side by side or one above the other, without overlap.

    Which of the two, where both can be, and which box comes first is a matter of chance. Where they cannot but overlap,
    they go to opposite corners. draws: 6 numbers in 0..1.
    """
    fits = [one[2 + axis] + two[2 + axis] <= size[axis] for axis in (0, 1)]
    turned = draws[1] < 0.5
    if not any(fits):  # one of the diagonals, `one` on the left
        up, down = (size[0] - one.height, 0) if turned else (0, size[0] - two.height)
        return one._replace(top=up, left=0), two._replace(top=down, left=size[1] - two.width)
    along = int(draws[0] < 0.5) if all(fits) else int(fits[1])  # 0: one above the other, 1: side by side
    across = 1 - along
    first, second = (two, one) if turned else (one, two)
    free = size[along] - first[2 + along] - second[2 + along]
    near, far = sorted(int(draw * (free + 1)) for draw in draws[2:4])
    starts = near, far + first[2 + along]
    found = []
    for box, start, draw in zip((first, second), starts, draws[4:6], strict=True):
        aside = int(draw * (size[across] - box[2 + across] + 1))
        top, left = (aside, start) if along else (start, aside)
        found.append(box._replace(top=top, left=left))
    return (found[1], found[0]) if turned else (found[0], found[1])


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """x [..., H, W] moved by whole pixels, zeros from outside."""
    import torch

    height, width = x.shape[-2:]
    out = torch.zeros_like(x)
    to_y, to_x = slice(max(down, 0), max(height + min(down, 0), 0)), slice(max(right, 0), max(width + min(right, 0), 0))
    from_y, from_x = (
        slice(max(-down, 0), max(height - max(down, 0), 0)),
        slice(max(-right, 0), max(width - max(right, 0), 0)),
    )
    out[..., to_y, to_x] = x[..., from_y, from_x]
    return out


@register_augmentation("rpg_mix")
class RPGMix(GuidedAugmentation):
    """RPGMix of EventRPG (Sun et al., ICLR 2024): two samples beside one another, by where the network sees them.

    A box lies around what the relevance of the last feature maps, averaged over channels and time and enlarged to the frame,
    puts at its mean or above. Both boxes find random places without overlap, or in opposite corners, and the events move
    with them: those of the next sample of the batch inside of its box, and one's own outside of it. Labels weigh the areas of
    the two boxes, what is covered of one's own left out. A sample that would be left without any event is not mixed.

    It happens to a whole batch or not at all; the authors mix half of them. This is their "post" mask, the code's default.
    """

    settings = {
        "rpg_mix": Setting(0.0, "events: RPGMix (EventRPG; Sun et al., 2024), chance of a batch; 0 is off", low=0, high=1),
        "rpg_relevance": RELEVANCE,
    }  # fmt: skip
    order = 56
    soft_targets = True

    def __init__(self, num_classes: int, rpg_mix: float, rpg_relevance: str = "slrp"):
        self.num_classes, self.chance, self.rule = num_classes, rpg_mix, rpg_relevance

    @classmethod
    def build(cls, values, dataset):
        return cls(dataset.num_classes, **values)

    def draw(self, n: int, generator: Generator) -> Tensor | None:
        """Six numbers a sample [n, 6] for the places of its boxes; None: this batch is not mixed."""
        import torch

        mixes = float(torch.rand(1, generator=generator)) < self.chance
        places = torch.rand(n, 6, generator=generator)
        return places if mixes else None

    def partners(self, draws: Tensor | None, rows: Tensor) -> Tensor:
        return rows[:0] if draws is None else (rows + 1) % len(draws)

    def apply(self, x: Tensor, target: Tensor, draws: Tensor | None, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        import torch.nn.functional as F

        target = soft(target, self.num_classes)
        if draws is None:
            return x, target
        size = x.shape[-2], x.shape[-1]
        features = self.scaled(self.salience(x)[1].mean(2, keepdim=True)).mean(0)  # [B, 1, h, w]
        boxes = [salient_box(m[0]) for m in F.interpolate(features, size, mode="bilinear", align_corners=False)]
        out, labels = x.narrow(-4, 0, keep).clone(), target[:keep].clone()
        for b, c in enumerate(held(rows, self.partners(draws, rows[:keep])).tolist()):
            one, two = placed(boxes[b], boxes[c], size, draws[rows[b]].tolist())
            mixed = moved(x[:, b], one.top - boxes[b].top, one.left - boxes[b].left)
            theirs = moved(x[:, c], two.top - boxes[c].top, two.left - boxes[c].left)
            inside = (..., slice(two.top, two.top + two.height), slice(two.left, two.left + two.width))
            mixed[inside] = theirs[inside]
            if mixed.any():
                covered = max(one.height + two.height - size[0], 0) * max(one.width + two.width - size[1], 0)
                weight = (one.area - covered) / (one.area - covered + two.area)
                out[:, b], labels[b] = mixed, weight * target[b] + (1 - weight) * target[c]
        return out, labels
