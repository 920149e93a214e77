"""Leaky integrate-and-fire with a learned threshold, whose surrogate follows it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("trsg")
class TrSG(Neuron):
    """Threshold-robust surrogate gradient (WACV 2026, arXiv:2511.08708): h = v + (x - v) / tau fires o = theta at h > theta,
    and v = h - o.

    A layer learns theta = softplus(z) and 1/tau = sigmoid(w), both decayed like weights. With S = 1 where it fires and phi = 1
    where 1/2 <= h / theta <= 3/2, do/dh = phi and do/dtheta = S - phi h / theta. Its spikes are 0 and theta: a convolution
    behind them can take theta in, but not behind a sum of layers. As published, h = theta fires in evaluation and is silent
    in training.
    """

    settings = settings(
        {},
        tau=Setting(2.0, "membrane time constant to start from", "time steps", above=1),
        reset=Setting("soft", "v = h - o, with gradient", choices=("soft",)),
        fire_at=Setting("ge", "h = theta fires in evaluation", choices=("ge",)),
        surrogate=Setting("rectangle", "as wide as theta", choices=("rectangle",)),
        surrogate_width=Setting(None, "in units of theta", low=1, high=1),
    )
    decayed = ("z", "w")

    def __init__(self, **settings):
        super().__init__(**settings)
        self.w = nn.Parameter(torch.tensor(-math.log(self.tau - 1)))

    @property
    def v_threshold(self) -> Tensor:
        return F.softplus(self.z)

    @v_threshold.setter
    def v_threshold(self, theta: float) -> None:
        self.z = nn.Parameter(torch.tensor(math.log(math.expm1(theta))))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + (x - v) * self.w.sigmoid()

    def fire(self, h: Tensor) -> Tensor:
        theta = self.v_threshold
        if not self.training:
            return theta * (h >= theta)
        u = (h / theta - 0.5).clamp(0, 1)
        return theta * (u + (u.round() - u).detach())

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        return h - (s.detach() if self.detach_reset else s)

    def counts(self, output: Tensor) -> Tensor:
        """The spikes of an output, counted."""
        return (output != 0).float()
