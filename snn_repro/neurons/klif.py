"""Leaky integrate-and-fire whose potential is scaled by a learned factor before it fires."""

import torch
from spikingjelly.activation_based.neuron import KLIFNode
from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("klif")
class KLIF(Neuron, KLIFNode):
    """h = ReLU(k (v + (x - v) / tau)), one k a layer, which starts at 1 (Jiang and Zhang, arXiv:2302.09238).

    h is what fires and is reset, so no negative potential outlives a step. scale_reset divides by k again: the potential
    becomes (h - V_th s) / k, or h (1 - s) / k + v_reset s.
    """

    settings = settings(
        dict(reset="hard", fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6)),
        tau=Setting(2.0, "membrane time constant", "time steps", low=1, why="it divides the leak"),
        decay_input=Setting(True, "the input decays too; false: it enters at full weight"),
        scale_reset=Setting(False, "divide the potential by k again when it is reset"),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        h = v + (x - v) / self.tau if self.decay_input else (1 - 1 / self.tau) * v + x
        return torch.relu(self.k * h)

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        if not self.scale_reset:
            return super().reset_potential(h, s)
        s = s.detach() if self.detach_reset else s
        if self.v_reset is None:
            return (h - self.v_threshold * s) / self.k
        return h * (1 - s) / self.k + self.v_reset * s
