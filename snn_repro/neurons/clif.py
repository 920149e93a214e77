"""Leaky integrate-and-fire with a complementary potential, which remembers spikes and deepens the reset."""

from typing import Any

from torch import Tensor

from snn_repro.neurons.lif import TAU, Leak
from snn_repro.neurons.node import register, settings


@register("clif")
class CLIF(Leak):
    """h = (1 - 1/tau) v + x; m = sigmoid(h / tau) m + s; v = h - (V_th + sigmoid(m)) s (Huang et al., ICML 2024, arXiv:2402.04663).

    m starts at 0. The reset is this one and is never left out of the backward pass. No parameters of its own.
    """

    settings = settings(
        dict(fire_at="ge", surrogate="rectangle_closed", imp_init=(0.4, 0.6)),
        without=("reset", "v_reset", "detach_reset"),
        tau=TAU,
    )
    states = 2  # v and m

    def begin(self, x: Tensor) -> None:
        self.m: Any = 0.0

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        self.m = self.m * (h / self.tau).sigmoid() + s
        return h - s * (self.v_threshold + self.m.sigmoid())

    def end(self) -> None:
        self.m = 0.0
