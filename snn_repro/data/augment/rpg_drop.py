from __future__ import annotations

from typing import TYPE_CHECKING

from snn_repro.data.augment.augmentation import RELEVANCE, GuidedAugmentation, register_augmentation
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register_augmentation("rpg_drop")
class RPGDrop(GuidedAugmentation):
    """RPGDrop of EventRPG (Sun et al., ICLR 2024): drop events where the network looks.

    Each event is dropped with the chance s r, r the relevance of its place scaled to 0..1 in the sample and s uniform in
    0.5..1 a sample. It happens to a whole batch or not at all; the authors' policy takes it for one batch of ten. Of a count
    that is no whole number (resized frames), what is behind the point stays or goes as one event. A sample that would be
    left without any event keeps them all.
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
        chance = self.scaled(self.salience(x)[0])
        out = x.clone()
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
