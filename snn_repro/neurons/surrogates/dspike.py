"""Dspike (Li et al., NeurIPS 2021), its temperature fixed."""

import math

from torch import Tensor

from snn_repro.neurons.surrogates.spike import register_surrogate


@register_surrogate("dspike", width=3.0)
def dspike(z: Tensor, b: float) -> Tensor:
    """b / (2 tanh(b / 2)) / cosh(b z)^2 where |z| <= 1/2: a rectangle for small temperatures b, a spike for large ones"""
    return b / (2 * math.tanh(b / 2)) * (1 - (b * z).tanh() ** 2) * (z.abs() <= 0.5)
