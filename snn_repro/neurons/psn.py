"""Parallel spiking neurons: no reset, so that all time steps are one matrix product (Fang et al., NeurIPS 2023)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.neurons.node import STATEFUL, Neuron, register, settings
from snn_repro.settings import Setting


def parallel_settings(**own: Setting) -> dict[str, Setting]:
    """What neurons without a potential that lasts from step to step have: no reset and no initial state."""
    return settings(dict(fire_at="ge", surrogate="atan"), without=STATEFUL, **own)


class Parallel(Neuron):
    """s = step(W x + b) over the time axis. A kind of it makes `weight`, `bias` [T, 1] or [], and says W in `matrix`.

    There is no reset and no initial potential. `v` shows W x + b, the distance to the threshold.
    """

    settings = parallel_settings()
    bias: nn.Parameter

    @classmethod
    def states(cls, settings: Mapping[str, Any], timesteps: int) -> int:
        return min(settings.get("order", timesteps + 1), timesteps + 1) - 1  # inputs of other steps

    def matrix(self, timesteps: int) -> Tensor:
        """W [T, T]: the weight of input step j in output step i."""
        raise NotImplementedError(f"{type(self).__name__} must say how steps weigh: def matrix(self, timesteps)")

    def steps(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        last = x.movedim(2, -1) if x.dim() == 5 else x  # no copy of images, which are channels last
        with torch.autocast(x.device.type, enabled=False):
            z = torch.addmm(self.bias.to(dtype), self.matrix(len(x)).to(dtype), last.to(dtype).flatten(1))
        z = z.view(last.shape).movedim(-1, 2) if x.dim() == 5 else z.view(last.shape)
        return self.surrogate_function(z).to(x.dtype), z[-1], z if self.store_v_seq else None


def full_weight(timesteps: int) -> nn.Parameter:
    """W [T, T] as a linear layer starts."""
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(timesteps, timesteps), a=math.sqrt(5)))


@register("psn")
class PSN(Parallel):
    """W [T, T] and b [T] learned, one of each a layer, b from -v_threshold (arXiv:2304.12760). Sees the future."""

    wired, causal = True, False

    def __init__(self, **settings):
        super().__init__(**settings)
        self.weight = full_weight(self.timesteps)
        self.bias = nn.Parameter(torch.full((self.timesteps, 1), -self.v_threshold))

    def matrix(self, timesteps: int) -> Tensor:
        return self.weight
