"""The paper's families IF, LIF and leaky; PLIF and KLIF with one learned parameter."""

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
DECAY_INPUT = Setting(True, "scale the input by 1/tau; false: h = (1 - 1/tau) v + x")


class Leak(Neuron):
    """Base class with LIF's charge: h = v + (x - v) / tau.

    With decay_input False the input is not scaled: h = (1 - 1/tau) v + x.
    """

    decay_input = False

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return v + (x - v) / self.tau if self.decay_input else (1 - 1 / self.tau) * v + x


@register("lif")
class LIF(Leak, LIFNode):
    """Leaky integrate-and-fire: h = v + (x - v) / tau, with leak towards 0.

    IMP thus counts (1 - 1/tau) v at the first step. decay_input False gives a leaky neuron with retain 1 - 1/tau.
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
    """Leaky neuron whose input is not scaled: h = retain v + x."""

    settings = settings(
        dict(reset="hard", fire_at="gt", detach_reset=False, surrogate="triangle", imp_init=(-0.2, 0.2)),
        retain=Setting(0.25, "fraction of v kept per step", low=0, high=1, why="a fraction of v"),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return self.retain * v + x

    def kernel(self) -> tuple[str, float]:
        return "leaky", self.retain


@register("plif")
class PLIF(Neuron, ParametricLIFNode):
    """Parametric LIF: the time constant is learned (Fang et al., ICCV 2021, arXiv:2007.05785).

        h = v + (x - v) sigmoid(w),  1/tau = sigmoid(w),  one w per layer

    As in LIF the leak is towards 0 under any reset, and with decay_input False the input is not scaled.
    """

    settings = settings(
        dict(reset="hard", fire_at="ge", detach_reset=True, surrogate="atan", imp_init=(0.4, 0.6)),
        tau=Setting(2.0, "initial membrane time constant", "time steps", above=1),
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
    """LIF with a learned gain k and a ReLU (Jiang and Zhang, arXiv:2302.09238).

        h = ReLU(k (v + (x - v) / tau)),  one k per layer, initially 1

    h is both what fires and what is reset, so each step clips negative potentials to 0. With scale_reset the reset
    divides by k: v = (h - v_th s) / k (soft) or v = h (1 - s) / k + v_reset s (hard).
    """

    settings = settings(
        dict(reset="hard", fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6)),
        tau=TAU,
        decay_input=DECAY_INPUT,
        scale_reset=Setting(False, "divide the potential by k at the reset"),
    )

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        return torch.relu(self.k * super().charge(v, x))

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        if not self.scale_reset:
            return super().reset_potential(h, s)
        s = s.detach() if self.detach_reset else s
        soft = self.v_reset is None
        return (h - self.v_threshold * s) / self.k if soft else h * (1 - s) / self.k + self.v_reset * s
