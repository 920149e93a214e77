"""Leaky integrate-and-fire or burst (LIFB)."""

import torch
from torch import Tensor, nn

from snn_repro.neurons.lif import DECAY_INPUT, TAU, Leak
from snn_repro.neurons.node import register, settings
from snn_repro.settings import Setting


@register("lifb")
class LIFB(Leak):
    """LIF with bursts (ESP: Shen, Zhao and Zeng, arXiv:2301.12356), as in BrainCog.

        h = v + (x - v) / tau, or (1 - 1/tau) v + x with decay_input=false
        n = how many of the levels v_th, v_th + 1, ..., v_th + 4 h exceeds
        s = n for n <= 1, kappa n in a burst (n > 1);  v = h (1 - n): negative after a burst

    BrainCog is the authors' code. n has gradient 1 for -1/2 < h - v_th < 9/2 and 0 elsewhere; the reset is detached by
    default. kappa is 1.5 there; the paper learns it (kappa_trainable), one value per layer. As outputs have more than
    two levels, energy.py counts multiplications in the next layer.
    """

    settings = settings(
        dict(fire_at="gt", v_threshold=0.5, detach_reset=True, imp_init=(0.2, 0.3)),
        without=("reset", "v_reset", "surrogate", "surrogate_width"),
        tau=TAU,
        decay_input=DECAY_INPUT,
        kappa_init=Setting(1.5, "output per spike of a burst", above=0),
        kappa_trainable=Setting(False, "learn kappa, as the paper does"),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        self.kappa = nn.Parameter(torch.tensor(self.kappa_init), requires_grad=self.kappa_trainable)

    def count(self, h: Tensor) -> Tensor:
        """Return the number of levels n (0..5) that h exceeds, with a straight-through gradient."""
        z = nn.functional.hardtanh(h - self.v_threshold, -0.5, 4.5)
        with torch.no_grad():
            n = z.floor() + 1 if self.surrogate_function.fire_at == "ge" else z.ceil()
        return n + (z - z.detach())

    def fire(self, h: Tensor) -> Tensor:
        n = self.count(h)
        return torch.where(n > 1, self.kappa * n, n)

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        n = self.count(h)
        return h * (1 - (n.detach() if self.detach_reset else n))
