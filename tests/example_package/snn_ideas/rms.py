"""A norm: model.norm=rms."""

import torch
from torch import nn

from snn_repro.models import register_norm


@register_norm("rms")
class RMS(nn.Module):
    """x / sqrt(mean x^2) * weight, the mean over T, B, H and W of [T, B, C, H, W]; the same in training and in the test."""

    def __init__(self, channels, timesteps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * x.square().mean((0, 1, 3, 4), keepdim=True).add(1e-5).rsqrt() * self.weight.view(-1, 1, 1)

    def parameter_kind(self, name):
        return "norm"
