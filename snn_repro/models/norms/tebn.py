"""Batch norm and a learned factor for each time step."""

import torch
from torch import Tensor, nn

from snn_repro.models.norms.bn import BN
from snn_repro.models.norms.norm import register_norm


@register_norm("tebn")
class TEBN(BN):
    """Temporal effective batch norm (Duan et al., NeurIPS 2022): BN(x)[t] * te[t].

    te [T], one learned factor a time step, starts at 1 and wires the number of time steps in. A single time step
    is taken as the same at all of them: [1, B, C, H, W] -> [T, B, C, H, W].
    """

    wired = True

    def __init__(self, channels: int, timesteps: int):
        super().__init__(channels)
        self.te = nn.Parameter(torch.ones(timesteps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.te.view(-1, 1, 1, 1, 1)

    affine_form = BN.affine_form  # with te


@register_norm("tebn_gesture")
class GestureTEBN(TEBN):
    """TEBN as the published DVS128 Gesture code has it: BN(x)[t] * (x[t] * te[t]), x the raw input."""

    def forward(self, x: Tensor) -> Tensor:
        return BN.forward(self, x) * (x * self.te.view(-1, 1, 1, 1, 1))
