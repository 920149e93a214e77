"""Learnable neuron model (LNM), whose dynamics are a learned polynomial."""

import torch
from torch import Tensor, nn

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("lnm")
class LNM(Neuron):
    """Neuron whose potential evolves by a polynomial, learned per layer (LNM, 2025, arXiv:2510.07341).

        h[t] = c_0 + c_1 v[t-1] + ... + c_d v[t-1]^d + x[t]

    Starts as a leaky neuron: c_1 = retain, the others 0. Soft reset. Nothing bounds the polynomial: with large
    coefficients, potentials far from 0 diverge. From the abstract and quoted text: no code was found. The degree d, the
    initial coefficients and the surrogate are ours.
    """

    settings = settings(
        dict(fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6)),
        reset=Setting("soft", "v = h - v_th s", choices=("soft",)),
        degree=Setting(3, "degree d of the polynomial", low=1, high=8),
        retain=Setting(0.5, "initial fraction of v kept per step", low=0, high=1, why="a fraction of v"),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        self.c = nn.Parameter(torch.tensor([0.0, self.retain] + [0.0] * (self.degree - 1)))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        f = self.c[-1]
        for c in reversed(self.c[:-1].unbind()):  # Horner's rule
            f = f * v + c
        return f + x
