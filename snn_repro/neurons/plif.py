"""Leaky integrate-and-fire with a learned time constant."""

import math

import torch
from spikingjelly.activation_based.neuron import ParametricLIFNode
from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("plif")
class PLIF(Neuron, ParametricLIFNode):
    """h = v + (x - v) / tau, 1 / tau = sigmoid(w), one w a layer (Fang et al., ICCV 2021, arXiv:2007.05785).

    As LIF it leaks towards 0 under any reset, and decay_input False takes the input at full weight.
    """

    settings = settings(
        dict(reset="hard", fire_at="ge", detach_reset=True, surrogate="atan", imp_init=(0.4, 0.6)),
        tau=Setting(2.0, "membrane time constant to start from", "time steps", above=1),
        decay_input=Setting(True, "the input decays too; false: it enters at full weight"),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        torch.nn.init.constant_(self.w, -math.log(self.tau - 1))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        share = self.w.sigmoid()
        return v + (x - v) * share if self.decay_input else (1 - share) * v + x
