"""A rectangle with its edges (Huang et al., ICML 2024, arXiv:2402.04663)."""

from torch import Tensor

from snn_repro.neurons.surrogates.spike import register_surrogate


@register_surrogate("rectangle_closed", width=1.0)
def rectangle_closed(z: Tensor, width: float) -> Tensor:
    """1 / width where |z| <= width / 2"""
    return (z.abs() <= width / 2).to(z.dtype) / width
