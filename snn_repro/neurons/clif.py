"""Leaky integrate-and-fire with a complementary potential, which remembers spikes and deepens the reset."""

from typing import Any

from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("clif")
class CLIF(Neuron):
    """h = (1 - 1/tau) v + x; m = sigmoid(h / tau) m + s; v = h - (V_th + sigmoid(m)) s (Huang et al., ICML 2024, arXiv:2402.04663).

    m starts at 0. The reset is this one and is never left out of the backward pass. No parameters of its own.
    """

    settings = settings(
        dict(fire_at="ge", surrogate="rectangle_closed", imp_init=(0.4, 0.6)),
        without=("reset", "v_reset", "detach_reset"),
        tau=Setting(2.0, "membrane time constant", "time steps", low=1, why="it divides the leak"),
    )
    states = 2  # v and m

    def begin(self, x: Tensor) -> None:
        self.m: Any = 0.0

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return (1 - 1 / self.tau) * v + x

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        self.m = self.m * (h / self.tau).sigmoid() + s
        return h - s * (self.v_threshold + self.m.sigmoid())

    def end(self) -> None:
        self.m = 0.0
