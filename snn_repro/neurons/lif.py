"""The paper's three families: integrate-and-fire, and the leak as a time constant or as the share that is kept; PLIF and KLIF,
which learn a number of LIF."""

import math

import torch
from spikingjelly.activation_based.neuron import IFNode, KLIFNode, LIFNode, ParametricLIFNode
from torch import Tensor

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting


@register("if")
class IF(Neuron, IFNode):
    """Integrate-and-fire: h = v + x."""

    settings = settings(dict(reset="soft", fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6)))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + x

    def kernel(self) -> tuple[str, float]:
        return "if", 0.0


TAU = Setting(2.0, "membrane time constant", "time steps", low=1, why="it divides the leak")
DECAY_INPUT = Setting(True, "the input decays too; false: it enters at full weight, h = (1 - 1/tau) v + x")


class Leak(Neuron):
    """h = v + (x - v) / tau; decay_input False takes the input at full weight, h = (1 - 1/tau) v + x."""

    decay_input = False

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + (x - v) / self.tau if self.decay_input else (1 - 1 / self.tau) * v + x


@register("lif")
class LIF(Leak, LIFNode):
    """Leaky integrate-and-fire: h = v + (x - v) / tau; the leak is towards 0, so IMP too counts (1 - 1/tau) at the first step.

    With decay_input False it is a leaky neuron that keeps 1 - 1/tau.
    """

    settings = settings(
        dict(reset="soft", fire_at="ge", detach_reset=True, surrogate="sigmoid", imp_init=(0.4, 0.6)),
        tau=TAU,
        decay_input=DECAY_INPUT,
    )

    def kernel(self) -> tuple[str, float]:
        return ("lif", self.tau) if self.decay_input else ("leaky", 1 - 1 / self.tau)


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


@register("plif")
class PLIF(Neuron, ParametricLIFNode):
    """h = v + (x - v) / tau, 1 / tau = sigmoid(w), one w a layer (Fang et al., ICCV 2021, arXiv:2007.05785).

    As LIF it leaks towards 0 under any reset, and decay_input False takes the input at full weight.
    """

    settings = settings(
        dict(reset="hard", fire_at="ge", detach_reset=True, surrogate="atan", imp_init=(0.4, 0.6)),
        tau=Setting(2.0, "membrane time constant to start from", "time steps", above=1),
        decay_input=DECAY_INPUT,
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        torch.nn.init.constant_(self.w, -math.log(self.tau - 1))

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        share = self.w.sigmoid()
        return v + (x - v) * share if self.decay_input else (1 - share) * v + x


@register("klif")
class KLIF(Leak, KLIFNode):
    """h = ReLU(k (v + (x - v) / tau)), one k a layer, which starts at 1 (Jiang and Zhang, arXiv:2302.09238).

    h is what fires and is reset, so no negative potential outlives a step. scale_reset divides by k again: the potential
    becomes (h - V_th s) / k, or h (1 - s) / k + v_reset s.
    """

    settings = settings(
        dict(reset="hard", fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6)),
        tau=TAU,
        decay_input=DECAY_INPUT,
        scale_reset=Setting(False, "divide the potential by k again when it is reset"),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return torch.relu(self.k * super().charge(v, x))

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        if not self.scale_reset:
            return super().reset_potential(h, s)
        s = s.detach() if self.detach_reset else s
        if self.v_reset is None:
            return (h - self.v_threshold * s) / self.k
        return h * (1 - s) / self.k + self.v_reset * s
