"""Parallel spiking neurons: no reset, so that all time steps are one matrix product (Fang et al., NeurIPS 2023)."""

import math

import torch
from torch import Tensor, nn

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting

# What has no meaning for a neuron whose potential does not last from step to step.
STATEFUL = ("reset", "v_reset", "detach_reset", "initial", "initial_value", "imp_init", "imp_trainable")


def parallel_settings(**own: Setting) -> dict[str, Setting]:
    """What neurons without a potential that lasts from step to step have: no reset and no initial state."""
    return settings(dict(fire_at="ge", surrogate="atan"), without=STATEFUL, **own)


class Parallel(Neuron):
    """s = step(W x + b) over the time axis. A kind of it makes `weight`, `bias` [T, 1] or [], and says W [T, T] in
    `matrix(timesteps)`: the weight of input step j in output step i.

    There is no reset and no initial potential. `v` shows W x + b, the distance to the threshold.
    """

    settings = parallel_settings()

    states = None

    def steps(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        last = x.movedim(2, -1) if x.dim() == 5 else x  # no copy of images, which are channels last
        with torch.autocast(x.device.type, enabled=False):
            z = torch.addmm(self.bias.to(dtype), self.matrix(len(x)).to(dtype), last.to(dtype).flatten(1))
        z = z.view(last.shape).movedim(-1, 2) if x.dim() == 5 else z.view(last.shape)
        return self.surrogate_function(z).to(x.dtype), z[-1], z if self.store_v_seq else None


@register("psn")
class PSN(Parallel):
    """W [T, T] and b [T] learned, one of each a layer, b from -v_threshold (arXiv:2304.12760). Sees the future."""

    wired, causal = True, False

    def __init__(self, **settings):
        super().__init__(**settings)
        weight = torch.empty(self.timesteps, self.timesteps)
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(weight, a=math.sqrt(5)))  # as a linear layer starts
        self.bias = nn.Parameter(torch.full((self.timesteps, 1), -self.v_threshold))

    def matrix(self, timesteps: int) -> Tensor:
        return self.weight


@register("masked_psn")
class MaskedPSN(PSN):
    """A PSN whose sight of the future is taken away in the course of training (arXiv:2304.12760).

    W = weight (lambda mask + 1 - lambda), the mask 1 for the last `order` steps up to its own. lambda is a buffer: 0 sees
    every step, 1 the mask's alone. Training sets it at the start of each epoch to min(1, ramp epoch / (epochs - 1)), as published.
    """

    settings = parallel_settings(
        order=Setting(4, "steps up to its own that one step sees in the end", "time steps", low=1),
        ramp=Setting(8.0, "lambda = min(1, ramp epoch / (epochs - 1))", low=1, why="the last epoch must end at 1"),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        ones = torch.ones(self.timesteps, self.timesteps)
        self.register_buffer("mask", ones.tril().triu(1 - self.order), persistent=False)
        self.register_buffer("lambda_", torch.zeros(()))

    @property
    def causal(self) -> bool:  # type: ignore[override]  # it changes with the epochs
        return bool(self.lambda_ >= 1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called by training before the first batch of epoch 0, 1, ..."""
        self.lambda_.fill_(min(1.0, self.ramp * epoch / (epochs - 1)) if epochs > 1 else 1.0)

    def matrix(self, timesteps: int) -> Tensor:
        return self.weight * (self.lambda_ * self.mask + (1 - self.lambda_))


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
