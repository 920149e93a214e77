"""Norm layers over [T, B, C, H, W]; their batch statistics run over T, B, H and W together, if they say nothing else.

A norm is one class in a file here, registered once, built by Norm(channels, timesteps). It says itself by `affine_form` whether
a fused spiking layer may compute it, by `parameter_kind` what its parameters are to an optimiser, by `wired` whether it takes
one number of time steps alone, and by `causal` whether in evaluation its output at a step depends on no later one.
"""

from snn_repro.models.norms.bn import BN
from snn_repro.models.norms.norm import NORM, NORMS, norms, register_norm
from snn_repro.models.norms.sync import SyncBatchNorm2d, synchronise
from snn_repro.models.norms.tebn import TEBN, GestureTEBN
from snn_repro.registry import import_all

__all__ = [
    "BN", "NORM", "NORMS", "TEBN", "GestureTEBN", "SyncBatchNorm2d", "norms", "register_norm", "synchronise",
]  # fmt: skip

import_all(__name__, __path__)
