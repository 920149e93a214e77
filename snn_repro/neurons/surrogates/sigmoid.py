"""The derivative of a logistic function."""

import torch
from torch import Tensor

from snn_repro.neurons.surrogates.spike import register_surrogate


@register_surrogate("sigmoid", width=4.0, kernel="sigmoid")
def sigmoid(z: Tensor, alpha: float) -> Tensor:
    """alpha * s(alpha z) * (1 - s(alpha z)), s = logistic function"""
    s = torch.sigmoid(alpha * z)
    return alpha * s * (1 - s)
