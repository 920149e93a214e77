"""Leaky integrate-and-fire that emits integer counts of spikes."""

from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("ilif")
class ILIF(Neuron):
    """h = (1 - 1/tau) v + x; n = round(clamp(h / V_th, 0, D)); v = h - V_th n (I-LIF, Luo et al., ECCV 2024, arXiv:2407.20708).

    n, rounded half to even, has gradient 1 / V_th for 0 <= h <= D V_th and none elsewhere. In inference a count n is n
    spikes in D sub-steps, which the linear layer behind adds up: the same sum, so that one pass computes both,
    and energy.py counts n accumulations for it.
    """

    settings = settings(
        dict(detach_reset=False, imp_init=(0.4, 0.6)),
        without=("reset", "v_reset", "fire_at", "surrogate", "surrogate_width"),
        tau=Setting(4 / 3, "membrane time constant", "time steps", low=1, why="it divides the leak"),
        max_count=Setting(4, "largest count D of one time step", "spikes", low=1),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return (1 - 1 / self.tau) * v + x

    def fire(self, h: Tensor) -> Tensor:
        n = (h / self.v_threshold).clamp(0, self.max_count)
        return n.detach().round() + (n - n.detach())
