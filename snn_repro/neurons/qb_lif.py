"""Quantised burst LIF (QB-LIF), whose outputs are spike counts times a learned scale."""

from torch import Tensor

from snn_repro.neurons.ilif import ILIF
from snn_repro.neurons.lif import Leaky
from snn_repro.neurons.node import register, settings
from snn_repro.neurons.trsg import TrSG
from snn_repro.settings import Setting


@register("qb_lif")
class QBLIF(ILIF):
    """Leaky neuron that quantises its potential with a learned scale s (QB-LIF, 2026, arXiv:2604.25688).

        h[t] = retain v[t-1] + x[t]
        n[t] = round(clamp(h[t] / s, 0, K)),  o[t] = s n[t],  v[t] = h[t] - o[t]

    s = softplus(z), one per layer, starts at v_threshold. n is rounded half to even, so h > s / 2 gives a spike. The
    gradient is straight-through: do/dh = 1 for 0 <= h <= K s and 0 elsewhere, do/ds = n - h / s there, K above, 0
    below. o stands for n spikes: the next convolution can absorb s, but not after a sum of layers.

    From the abstract and quoted text: no code was found. retain, K, the initial s and the gradient are ours; the
    paper's surrogate has exponential tails.
    """

    settings = settings(
        dict(detach_reset=False, imp_init=(0.4, 0.6)),
        without=("reset", "v_reset", "fire_at", "surrogate", "surrogate_width"),
        retain=Setting(0.5, "fraction of v kept per step", low=0, high=1, why="a fraction of v"),
        max_count=Setting(4, "largest count K per time step", "spikes", low=1),
    )
    charge, reset_potential = Leaky.charge, TrSG.reset_potential
    v_threshold = scale = TrSG.v_threshold  # s

    def fire(self, h: Tensor) -> Tensor:
        return self.scale * super().fire(h)

    def counts(self, output: Tensor) -> Tensor:
        """Convert an output to its number of spikes."""
        return (output / self.scale).round()
