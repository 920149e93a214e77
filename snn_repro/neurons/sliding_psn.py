"""Parallel spiking neurons that weigh the last steps alike at every step."""

import torch
from torch import Tensor, nn

from snn_repro.neurons.node import register
from snn_repro.neurons.psn import Parallel, parallel_settings
from snn_repro.settings import Setting


@register("sliding_psn")
class SlidingPSN(Parallel):
    """z[t] = sum over j < order of weight[order - 1 - j] x[t - j], plus b (arXiv:2304.12760). Causal, any number of time steps.

    weight [order], from ..., 1/4, 1/2, 1, and b, from -v_threshold, are learned, one of each a layer.
    """

    settings = parallel_settings(order=Setting(4, "steps up to its own that one step sees", "time steps", low=1))

    def __init__(self, **settings):
        super().__init__(**settings)
        self.weight = nn.Parameter(0.5 ** torch.arange(self.order - 1, -1, -1, dtype=torch.get_default_dtype()))
        self.bias = nn.Parameter(torch.tensor(-self.v_threshold))

    def matrix(self, timesteps: int) -> Tensor:
        t = torch.arange(timesteps, device=self.weight.device)
        ago = t.unsqueeze(1) - t
        seen = (ago >= 0) & (ago < self.order)
        return self.weight[(self.order - 1 - ago).clamp(0, self.order - 1)] * seen
