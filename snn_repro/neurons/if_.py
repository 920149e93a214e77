"""Integrate-and-fire."""

from spikingjelly.activation_based.neuron import IFNode
from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings


@register("if")
class IF(Neuron, IFNode):
    """Integrate-and-fire: h = v + x."""

    settings = settings(
        dict(reset="soft", fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6)),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + x

    def kernel(self) -> tuple[str, float]:
        return "if", 0.0
