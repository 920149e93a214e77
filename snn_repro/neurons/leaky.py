"""Leaky neuron, the leak as the share that is kept."""

from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("leaky")
class Leaky(Neuron):
    """Leaky neuron with an undecayed input: h = retain * v + x."""

    settings = settings(
        dict(reset="hard", fire_at="gt", detach_reset=False, surrogate="triangle", imp_init=(-0.2, 0.2)),
        retain=Setting(0.25, "part of v that one step keeps", low=0, high=1, why="the share of v that is kept"),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return self.retain * v + x

    def kernel(self) -> tuple[str, float]:
        return "leaky", self.retain
