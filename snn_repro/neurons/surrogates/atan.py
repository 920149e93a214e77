"""The derivative of an arc tangent (Fang et al., ICCV 2021)."""

import math

from torch import Tensor

from snn_repro.neurons.surrogates.spike import register_surrogate


@register_surrogate("atan", width=2.0, kernel="atan")
def atan(z: Tensor, alpha: float) -> Tensor:
    """alpha/2 / (1 + (pi/2 * alpha * z)^2)"""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)
