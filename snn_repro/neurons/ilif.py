"""Integer leaky integrate-and-fire (I-LIF), which emits spike counts."""

from dataclasses import replace

from torch import Tensor

from snn_repro.neurons.lif import TAU, Leak
from snn_repro.neurons.node import register, settings
from snn_repro.settings import Setting


@register("ilif")
class ILIF(Leak):
    """LIF with integer outputs 0..D (I-LIF, Luo et al., ECCV 2024, arXiv:2407.20708).

        h[t] = (1 - 1/tau) v[t-1] + x[t]
        n[t] = round(clamp(h[t] / v_th, 0, D)),  v[t] = h[t] - v_th n[t]

    n is rounded half to even, with gradient 1 / v_th for 0 <= h <= D v_th and 0 elsewhere. In inference a count n
    stands for n spikes in D sub-steps. The next linear layer sums these, so one pass gives the same result; energy.py
    counts n accumulations.
    """

    settings = settings(
        dict(detach_reset=False, imp_init=(0.4, 0.6)),
        without=("reset", "v_reset", "fire_at", "surrogate", "surrogate_width"),
        tau=replace(TAU, default=4 / 3),
        max_count=Setting(4, "largest count D per time step", "spikes", low=1),
    )

    def fire(self, h: Tensor) -> Tensor:
        n = (h / self.v_threshold).clamp(0, self.max_count)
        return n.detach().round() + (n - n.detach())
