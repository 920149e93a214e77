"""Initial states: the membrane potential v[-1] before the first step, `neuron.initial=NAME`.

At the first step it contributes v (if), (1 - 1/tau) v (lif) or retain v (leaky).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snn_repro import distributed
from snn_repro.registry import INITIAL_STATES

Neuron = Any  # a spiking layer, see layer.py, which imports this file
register_initial = INITIAL_STATES.register


class InitialState:
    """The initial potential of one layer; parameters and buffers live on the neuron itself."""

    # shape of the parameter `imp` for a state_shape (C, H, W); None: not learned
    learned_shape: Callable[[tuple[int, ...]], tuple[int, ...] | None] = staticmethod(lambda state_shape: None)

    def attach(self, neuron: Neuron) -> None:
        """Register buffers on the neuron; called once, when it is built."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor | None:
        """Return v[-1] for x [T, B, ...]: shape [...] or [B, ...]; None means 0."""
        return None

    def learn(self, neuron: Neuron, spikes: Tensor, v: Tensor) -> None:
        """Update statistics after a training forward: spikes [T, B, ...], last potentials v [B, ...]."""


@register_initial("zero")
class Zero(InitialState):
    """v[-1] = 0, the default."""


@register_initial("constant")
class Constant(InitialState):
    """v[-1] = neuron.initial_value for all neurons."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        return everywhere(neuron.initial_value, x)


@register_initial("half")
class Half(InitialState):
    """v[-1] = v_th / 2 (Hwang et al., 2021; Bu et al., AAAI 2022, arXiv:2202.01440)."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        return everywhere(neuron.v_threshold / 2, x)


@register_initial("random")
class Random(InitialState):
    """v[-1] ~ U[imp_init] per sample and neuron in training, the midpoint in evaluation.

    So accuracy depends on the weights alone.
    """

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        low, high = neuron.imp_init
        if not neuron.training:
            return everywhere((low + high) / 2, x)
        return torch.empty(x.shape[1:], dtype=_potentials(x), device=x.device).uniform_(low, high)


@register_initial("imp")
class Learned(InitialState):
    """IMP (Shen et al., NeurIPS 2024): v[-1] learned, one value per neuron, initialised from U[imp_init]."""

    learned_shape = staticmethod(lambda state_shape: state_shape)

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor | None:
        return neuron._parameters["imp"]


@register_initial("imp_channel")
class LearnedByChannel(InitialState):
    """IMP with one value per channel."""

    learned_shape = staticmethod(lambda state_shape: (state_shape[0], *[1] * (len(state_shape) - 1)))

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor | None:
        return neuron.imp.expand(x.shape[2:])


@register_initial("imp_layer")
class LearnedByLayer(LearnedByChannel):
    """IMP with one value per layer."""

    learned_shape = staticmethod(lambda state_shape: (1,) * len(state_shape))


@register_initial("mp_init")
class RunningMean(InitialState):
    """MP-Init: v[-1] is a running mean of last potentials, per layer (WACV 2026, arXiv:2511.08708).

        mu <- 0.9 mu + 0.1 mean(v[T-1]),  mu = 0 at first

    The mean is over samples and neurons that fired at least once, over all processes. mu is updated after each training
    forward and saved in checkpoints; the authors' code updates it at the next forward, so it misses the last batch, and
    does not save it.
    """

    momentum = 0.1

    def attach(self, neuron: Neuron) -> None:
        neuron.register_buffer("running_v", torch.zeros(()))

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        return neuron.running_v.clone().expand(x.shape[2:])  # a copy: the backward pass needs this value

    @torch.no_grad()
    def learn(self, neuron: Neuron, spikes: Tensor, v: Tensor) -> None:
        fired = spikes.ne(0).any(0)
        sums = distributed.together(torch.stack([(v * fired).sum(dtype=torch.float32), fired.sum().float()]))
        neuron.running_v.lerp_(sums[0] / sums[1].clamp(min=1), self.momentum)


def everywhere(value: float | Tensor, x: Tensor) -> Tensor:
    """Expand one value to the shape [...] of a sample of x, as potentials."""
    if isinstance(value, Tensor):
        return value.detach().to(x.device, _potentials(x)).expand(x.shape[2:])
    return torch.full((), value, dtype=_potentials(x), device=x.device).expand(x.shape[2:])


def _potentials(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
