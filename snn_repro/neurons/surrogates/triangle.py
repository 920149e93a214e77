"""A triangle."""

from torch import Tensor

from snn_repro.neurons.surrogates.spike import register_surrogate


@register_surrogate("triangle", width=1.0, kernel="triangle")
def triangle(z: Tensor, gamma: float) -> Tensor:
    """max(0, gamma - |z|) / gamma^2"""
    return (gamma - z.abs()).clamp(min=0) / gamma**2
