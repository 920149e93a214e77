"""EventRPG (Sun et al., ICLR 2024): events are dropped, and samples mixed, by what the network in training looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from snn_repro.data.augment.augmentation import BatchAugmentation, held, register_augmentation, soft
from snn_repro.errors import UserError
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Generator, Tensor

RELEVANCE = Setting(
    "slrp", "rpg_drop, rpg_mix: relevance of means over time, or at each step", choices=("slrp", "sltrp")
)


class GuidedAugmentation(BatchAugmentation):
    """A step on batches of event frames that uses the relevance of their parts to the network.

    relevance(frames [T, B, C, H, W], rule) -> (relevance of the frames, of the last feature maps [T, B, C', h, w]), set by
    training. It is that of the weights when the batch is made, behind the step before: a resumed run makes the same batch.
    """

    works_on = ("frames",)
    rule: str
    relevance: Callable[[Tensor, str], tuple[Tensor, Tensor]] | None = None

    def salience(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`relevance` of frames. Raises UserError where no network was given."""
        if self.relevance is None:
            raise UserError(f"augment.{self.name} needs the network in training: set its `relevance` first")
        return self.relevance(x, self.rule)

    @staticmethod
    def scaled(relevance: Tensor) -> Tensor:
        """Each sample's relevance [T, B, C, H, W] shifted and scaled to 0..1; 0 where all is the same."""
        low, high = relevance.amin((0, 2, 3, 4), keepdim=True), relevance.amax((0, 2, 3, 4), keepdim=True)
        return (relevance - low) / (high - low).where(high > low, 1)


@register_augmentation("rpg_drop")
class RPGDrop(GuidedAugmentation):
    """RPGDrop: drop events where the network looks, in a whole batch or not at all.

    The chance of an event is s r, r the relevance of its place scaled to 0..1 in the sample and s uniform in 0.5..1 a
    sample. The authors' policy takes it for one batch of ten. The fraction of a count (resized frames) stays or goes as one
    event. A sample that would lose all events keeps them.
    """

    settings = {
        "rpg_drop": Setting(0.0, "events: RPGDrop (EventRPG; Sun et al., 2024), chance of a batch; 0 is off", low=0, high=1),
        "rpg_relevance": RELEVANCE,
    }  # fmt: skip
    order = 54

    def __init__(self, rpg_drop: float, rpg_relevance: str = "slrp"):
        self.chance, self.rule = rpg_drop, rpg_relevance

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor] | None:
        """Strengths [n] and seeds [n] of what is drawn event by event; None: this batch keeps its events."""
        import torch

        drops = float(torch.rand(1, generator=generator)) < self.chance
        strength = torch.rand(n, generator=generator) * 0.5 + 0.5
        seeds = torch.randint(2**62, (n,), generator=generator)
        return (strength, seeds) if drops else None

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        import torch

        if draws is None:
            return x, target
        chance, out = self.scaled(self.salience(x)[0]), x.clone()
        for b, (strength, seed) in enumerate(zip(*(d[rows].tolist() for d in draws), strict=True)):
            generator = torch.Generator().manual_seed(seed)
            places = x[:, b].nonzero(as_tuple=True)
            events, stays = x[:, b][places], 1 - strength * chance[:, b][places]
            whole = events.floor()
            rest = (torch.rand(len(events), generator=generator) < stays) * (events - whole)
            kept = torch.binomial(whole, stays, generator=generator) + rest
            if kept.any():
                out[:, b][places] = kept
        return out, target


class Box(NamedTuple):
    """Rows top <= y < top + height and columns left <= x < left + width."""

    top: int
    left: int
    height: int
    width: int


def salient_box(salience: Tensor) -> Box:
    """The smallest box around all places of a map [H, W] that are not below its mean."""
    rows, columns = ((salience >= salience.mean()).any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return Box(rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])


def placed(one: Box, two: Box, size: tuple[int, int], draws: list[float]) -> tuple[Box, ...]:
    """Both boxes at random places of a frame (H, W), side by side or one above the other, without overlap.

    Direction and order are random where both are possible. Boxes that must overlap go to opposite corners, `one` on the
    left. draws: 6 numbers in 0..1.
    """
    fits = [one[2 + axis] + two[2 + axis] <= size[axis] for axis in (0, 1)]
    turned = draws[1] < 0.5
    if not any(fits):
        up, down = (size[0] - one.height, 0) if turned else (0, size[0] - two.height)
        return one._replace(top=up, left=0), two._replace(top=down, left=size[1] - two.width)
    along = int(draws[0] < 0.5) if all(fits) else int(fits[1])  # 0: one above the other, 1: side by side
    order = (two, one) if turned else (one, two)
    free = size[along] - order[0][2 + along] - order[1][2 + along]
    near, far = sorted(int(draw * (free + 1)) for draw in draws[2:4])
    found = []
    for box, start, draw in zip(order, (near, far + order[0][2 + along]), draws[4:6], strict=True):
        aside = int(draw * (size[1 - along] - box[3 - along] + 1))
        found.append(Box(*((aside, start) if along else (start, aside)), box.height, box.width))
    return tuple(found[::-1] if turned else found)


@register_augmentation("rpg_mix")
class RPGMix(GuidedAugmentation):
    """RPGMix: two samples beside one another, by where the network sees them, in a whole batch or not at all.

    A box lies around what the relevance of the last feature maps, averaged over channels and time and enlarged to the frame,
    puts at its mean or above. Both boxes find random places, and the events move with them: those of the next sample of the
    batch inside of its box, and one's own outside of it. Labels weigh the areas of the two boxes, what is covered of one's
    own left out. A sample that would be left without any event is not mixed.

    The authors mix half of all batches. This is their "post" mask, the code's default.
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

        def moved(i: int, to: Box) -> Tensor:
            down, right = to.top - boxes[i].top, to.left - boxes[i].left
            return F.pad(x[:, i], (right, -right, down, -down))

        size = x.shape[-2], x.shape[-1]
        features = self.scaled(self.salience(x)[1].mean(2, keepdim=True)).mean(0)  # [B, 1, h, w]
        boxes = [salient_box(m[0]) for m in F.interpolate(features, size, mode="bilinear", align_corners=False)]
        out, labels = x.narrow(-4, 0, keep).clone(), target[:keep].clone()
        for b, c in enumerate(held(rows, self.partners(draws, rows[:keep])).tolist()):
            one, two = placed(boxes[b], boxes[c], size, draws[rows[b]].tolist())
            mixed, theirs = moved(b, one), moved(c, two)
            inside = (..., slice(two.top, two.top + two.height), slice(two.left, two.left + two.width))
            mixed[inside] = theirs[inside]
            if mixed.any():
                covered = max(one.height + two.height - size[0], 0) * max(one.width + two.width - size[1], 0)
                mine = one.height * one.width - covered
                weight = mine / (mine + two.height * two.width)
                out[:, b], labels[b] = mixed, weight * target[b] + (1 - weight) * target[c]
        return out, labels
