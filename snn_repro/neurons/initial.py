"""Initial states: the potential v[-1] from which a neuron takes its first step, `neuron.initial=NAME`.

What it counts at the first step is the family's: v (if), (1 - 1/tau) v (lif), retain v (leaky).
"""

from typing import Any

import torch
from torch import Tensor

from snn_repro import distributed
from snn_repro.registry import INITIAL_STATES

Neuron = Any  # a spiking layer, see layer.py, which imports this file
register_initial = INITIAL_STATES.register


class InitialState:
    """Where a layer's neurons start; one object a layer, what is learned or counted lives on the neuron itself."""

    @classmethod
    def learned_shape(cls, state_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of the parameter `imp` for neurons of state_shape (C, H, W); None: nothing is learned."""
        return None

    def attach(self, neuron: Neuron) -> None:
        """Once, when the neuron is built: add buffers."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor | None:
        """v[-1] for input x [T, B, ...], in the shape [...] of one sample or [B, ...]; None stands for 0."""
        return None

    def learn(self, neuron: Neuron, spikes: Tensor, v: Tensor) -> None:
        """After each forward pass of training: spikes [T, B, ...] and the last potentials [B, ...]."""


@register_initial("zero")
class Zero(InitialState):
    """v[-1] = 0, the usual one."""


@register_initial("constant")
class Constant(InitialState):
    """v[-1] = neuron.initial_value for all."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        return everywhere(neuron.initial_value, x)


@register_initial("half")
class Half(InitialState):
    """v[-1] = V_th / 2 (Hwang et al., 2021; Bu et al., AAAI 2022, arXiv:2202.01440)."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        return everywhere(neuron.v_threshold / 2, x)


@register_initial("random")
class Random(InitialState):
    """v[-1] ~ U[imp_init] a sample and neuron in training, the middle of the range in evaluation, so that an accuracy is a function
    of the weights alone."""

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        low, high = neuron.imp_init
        if not neuron.training:
            return everywhere((low + high) / 2, x)
        return torch.empty(x.shape[1:], dtype=_potentials(x), device=x.device).uniform_(low, high)


@register_initial("imp")
class Learned(InitialState):
    """IMP (Shen et al., NeurIPS 2024): v[-1] learned, one value a neuron; starts from U[imp_init]."""

    @classmethod
    def learned_shape(cls, state_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return state_shape

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor | None:
        return neuron._parameters["imp"]


@register_initial("imp_channel")
class LearnedByChannel(InitialState):
    """IMP with one value a channel."""

    @classmethod
    def learned_shape(cls, state_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return (state_shape[0], *[1] * (len(state_shape) - 1))

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor | None:
        return neuron.imp.expand(x.shape[2:])


@register_initial("imp_layer")
class LearnedByLayer(LearnedByChannel):
    """IMP with one value a layer."""

    @classmethod
    def learned_shape(cls, state_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return (1,) * len(state_shape)


@register_initial("mp_init")
class RunningMean(InitialState):
    """MP-Init (WACV 2026, arXiv:2511.08708): v[-1] = mu, one running mean a layer, mu <- 0.9 mu + 0.1 mean(v[T])
    over samples and neurons that fired at least once (over all processes), mu = 0 at first.

    Kept in the checkpoint and taken after each training pass; the authors' code takes it at the next one and loses the last
    batch, and leaves it out of what is saved.
    """

    momentum = 0.1

    def attach(self, neuron: Neuron) -> None:
        neuron.register_buffer("running_v", torch.zeros(()))

    def potential(self, neuron: Neuron, x: Tensor) -> Tensor:
        return neuron.running_v.clone().expand(x.shape[2:])  # a copy: the backward pass needs what this pass began with

    @torch.no_grad()
    def learn(self, neuron: Neuron, spikes: Tensor, v: Tensor) -> None:
        fired = spikes.ne(0).any(0)
        sums = torch.stack([(v * fired).sum(dtype=torch.float32), fired.sum().float()])
        sums = distributed.together(sums)
        neuron.running_v.lerp_(sums[0] / sums[1].clamp(min=1), self.momentum)


def everywhere(value: float | Tensor, x: Tensor) -> Tensor:
    """One value for all neurons of a sample of x [T, B, ...]: [...], in the type of potentials."""
    if isinstance(value, Tensor):
        return value.detach().to(x.device, _potentials(x)).expand(x.shape[2:])
    return torch.full((), value, dtype=_potentials(x), device=x.device).expand(x.shape[2:])


def _potentials(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
