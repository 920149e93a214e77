"""Temporal accumulated batch norm."""

import torch
from torch import Tensor, nn

from snn_repro.models.norms.bn import one_sample_too
from snn_repro.models.norms.norm import register_norm


@register_norm("tab")
class TAB(nn.Module):
    """Temporal accumulated batch norm (Jiang et al., ICLR 2024): y[t] = p[t]^2 BN_t(x)[t], where the batch norm BN_t of
    step t takes its statistics over the steps up to t.

    Each step has statistics, weight, bias and p (which starts at 1 and is decayed) of its own, so the number of time steps is
    wired in. A single time step is taken as the same at all of them: [1, B, C, H, W] -> [T, B, C, H, W]. In training step t
    is normalised together with all before it: (T + 1) / 2 times the work of BN.
    """

    wired = True
    causal = True

    def __init__(self, channels: int, timesteps: int):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(timesteps))
        self.p = nn.Parameter(torch.ones(timesteps))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.bn), *x.shape[1:]) if len(x) == 1 else x
        batch, found = x.shape[1], []
        for t, bn in enumerate(self.bn):
            seen = x[: t + 1] if self.training else x[t : t + 1]
            found.append(one_sample_too(bn, seen.flatten(0, 1))[-batch:])
        return torch.cat(found).unflatten(0, (-1, batch)) * self.p.view(-1, 1, 1, 1, 1) ** 2

    def parameter_kind(self, name: str) -> str:
        return "te"
