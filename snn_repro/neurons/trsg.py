"""LIF with a learned threshold and a surrogate scaled by it (TrSG)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("trsg")
class TrSG(Neuron):
    """LIF with threshold-robust surrogate gradient (TrSG, WACV 2026, arXiv:2511.08708).

        h[t] = v[t-1] + (x[t] - v[t-1]) / tau
        o[t] = theta if h[t] > theta, else 0;  v[t] = h[t] - o[t]
        theta = softplus(z) and 1/tau = sigmoid(w): learned per layer, with weight decay
        do/dh = phi,  do/dtheta = S - phi h / theta,  S = 1 where it fires,  phi = 1 where 1/2 <= h / theta <= 3/2

    Spikes are 0 and theta: the next convolution can absorb theta, but not after a sum of layers. As published, a
    potential equal to theta fires in evaluation only.
    """

    settings = settings(
        {},
        tau=Setting(2.0, "initial membrane time constant", "time steps", above=1),
        reset=Setting("soft", "v = h - o, with gradient", choices=("soft",)),
        fire_at=Setting("ge", "h = theta fires in evaluation", choices=("ge",)),
        surrogate=Setting("rectangle", "rectangle of width theta", choices=("rectangle",)),
        surrogate_width=Setting(None, "width in units of theta", low=1, high=1),
    )
    decayed = ("z", "w")

    def __init__(self, **settings):
        super().__init__(**settings)
        self.w = nn.Parameter(torch.tensor(-math.log(self.tau - 1)))

    @property
    def v_threshold(self) -> Tensor:
        """The learned threshold theta = softplus(z)."""
        return F.softplus(self.z)

    @v_threshold.setter
    def v_threshold(self, theta: float) -> None:
        """Initialise z so that the threshold is theta."""
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
        """Convert an output to {0, 1} for counting spikes."""
        return (output != 0).float()
