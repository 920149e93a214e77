"""A rectangle (Wu et al., 2018, arXiv:1706.02609)."""

from torch import Tensor

from snn_repro.neurons.surrogates.spike import register_surrogate


@register_surrogate("rectangle", width=1.0)
def rectangle(z: Tensor, width: float) -> Tensor:
    """1 / width where |z| < width / 2"""
    return (z.abs() < width / 2).to(z.dtype) / width
