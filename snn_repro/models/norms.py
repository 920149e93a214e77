"""Norm layers over [T, B, C, H, W]; their batch statistics run over T, B, H and W together."""

import torch
from torch import Tensor, nn


class BN(nn.BatchNorm2d):
    """Batch normalisation, every time step counted as one more sample."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class TEBN(BN):
    """Temporal effective batch norm (Duan et al., NeurIPS 2022): BN(x)[t] * te[t].

    te [T], one learned factor a time step, starts at 1 and wires the number of time steps in. A single time step
    is taken as the same at all of them: [1, B, C, H, W] -> [T, B, C, H, W].
    """

    def __init__(self, channels: int, timesteps: int):
        super().__init__(channels)
        self.te = nn.Parameter(torch.ones(timesteps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.te.view(-1, 1, 1, 1, 1)


class GestureTEBN(TEBN):
    """TEBN as the published DVS128 Gesture code has it: BN(x)[t] * (x[t] * te[t]), x the raw input."""

    def forward(self, x: Tensor) -> Tensor:
        return BN.forward(self, x) * (x * self.te.view(-1, 1, 1, 1, 1))


# name -> norm(channels, timesteps)
NORMS = {
    "bn": lambda channels, timesteps: BN(channels),
    "tebn": TEBN,
    "tebn_gesture": GestureTEBN,
}
