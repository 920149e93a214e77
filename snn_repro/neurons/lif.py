"""Leaky integrate-and-fire, the leak as a time constant."""

from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("lif")
class LIF(Neuron, LIFNode):
    """Leaky integrate-and-fire: h = v + (x - v) / tau; the leak is towards 0, so IMP too counts (1 - 1/tau) at the first step.

    decay_input False takes the input at full weight, h = (1 - 1/tau) v + x: a leaky neuron that keeps 1 - 1/tau.
    """

    settings = settings(
        dict(reset="soft", fire_at="ge", detach_reset=True, surrogate="sigmoid", imp_init=(0.4, 0.6)),
        tau=Setting(2.0, "membrane time constant", "time steps", low=1, why="it divides the leak"),
        decay_input=Setting(True, "the input decays too; false: it enters at full weight, h = (1 - 1/tau) v + x"),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + (x - v) / self.tau if self.decay_input else (1 - 1 / self.tau) * v + x

    def kernel(self) -> tuple[str, float]:
        return ("lif", self.tau) if self.decay_input else ("leaky", 1 - 1 / self.tau)
