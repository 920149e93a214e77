"""Parallel spiking neurons whose sight of the future is taken away in the course of training."""

import torch
from torch import Tensor, nn

from snn_repro.neurons.node import register
from snn_repro.neurons.psn import Parallel, full_weight, parallel_settings
from snn_repro.settings import Setting


@register("masked_psn")
class MaskedPSN(Parallel):
    """W = weight (lambda mask + 1 - lambda), the mask 1 for the last `order` steps up to its own (arXiv:2304.12760).

    weight [T, T] and b [T] are learned, one of each a layer, b from -v_threshold. lambda is a buffer: 0 sees every step, 1
    the mask's alone. Training sets it at the start of each epoch to min(1, ramp epoch / (epochs - 1)), as published.
    """

    wired = True
    settings = parallel_settings(
        order=Setting(4, "steps up to its own that one step sees in the end", "time steps", low=1),
        ramp=Setting(8.0, "lambda = min(1, ramp epoch / (epochs - 1))", low=1, why="the last epoch must end at 1"),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        self.weight = full_weight(self.timesteps)
        self.bias = nn.Parameter(torch.full((self.timesteps, 1), -self.v_threshold))
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
