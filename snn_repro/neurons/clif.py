"""Complementary leaky integrate-and-fire (CLIF)."""

from typing import Any

from torch import Tensor

from snn_repro.neurons.lif import TAU, Leak
from snn_repro.neurons.node import register, settings


@register("clif")
class CLIF(Leak):
    """Complementary LIF: recent spikes deepen the reset (Huang et al., ICML 2024, arXiv:2402.04663).

        h[t] = (1 - 1/tau) v[t-1] + x[t]
        m[t] = sigmoid(h[t] / tau) m[t-1] + s[t],  m[-1] = 0
        v[t] = h[t] - (v_th + sigmoid(m[t])) s[t]

    The reset is fixed and always part of the backward pass. No learned parameters.
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
        del self.m
