"""What a neuron is: a class that says how it charges, fires and resets. One family is one file in this folder.

Each step charges, fires and resets, in this order (x[t] input, v potential, h potential before the reset):
    charge   h[t] = charge(v[t-1], x[t])             the family's own
    fire     s[t] = step(h[t] - v_threshold)
    reset    soft:   v[t] = h[t] - v_threshold * s[t]
             hard:   v[t] = h[t] * (1 - s[t]) + v_reset * s[t]
v[-1] is the initial membrane potential: learned (IMP), 0 or another of `initial.py`.

Neurons are spikingjelly nodes, so that its monitors, counters and NIR exchange know them. Unlike its own they carry no state
from call to call: every forward over [T, B, ...] starts from the initial potential, and `v` merely shows where the last
forward ended. There is nothing for a caller to reset.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.neurons.layer import Layer, settings
from snn_repro.registry import NEURONS


def register(name: str):
    """A decorator that makes a Neuron known to `build_neuron` under a name; name + "_imp" then stands for it with IMP."""
    if name.endswith("_imp"):
        raise UserError(f"'{name}' cannot name a neuron: the ending _imp stands for a learned initial potential")

    def add(cls):
        cls.family = name
        return NEURONS.register(name)(cls)

    return add


class Neuron(Layer):
    """A spiking layer: x [T, B, ...] -> spikes [T, B, ...]. A family overrides `charge`, and what else differs.

    settings: name -> Setting; a family's own become attributes. `initial` says from which potential it starts; where that is
    learned, `imp` [...] holds one value a neuron (or with axes of size 1 one a channel or layer), no batch axis. Parameters
    of a family's own are not decayed but for those in `decayed`. A family with a schedule over epochs has
    `begin_epoch(epoch, epochs)`, which training calls before the first batch of each epoch.
    """

    settings = settings({})
    causal: Any = True  # whether an output depends on no later input
    wired = False  # whether the number of time steps is wired in
    states: Any = 1  # numbers that one neuron keeps from step to step; None: inputs of the steps that it sees
    max_count = 1  # spikes that one output may stand for, each a synaptic operation; see energy.py
    # callback(layer, h, s) after every forward by these `steps`, each a list of T [B, ...]; nothing is kept for it
    watch: Callable[["Neuron", list[Tensor], list[Tensor]], None] | None = None

    # ---------------------------------------------------------------- the state equation

    def begin(self, x: Tensor) -> None:
        """Before the first step of x [T, B, ...]: a neuron with more state than v sets it here."""

    def end(self) -> None:
        """After the last step: forget what `begin` set, so that nothing is kept from call to call."""

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """The potential h before the reset, from the last potential v [B, ...] and one step of input x [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must say how it charges: def charge(self, v, x)")

    def fire(self, h: Tensor) -> Tensor:
        """Spikes of the potential h before the reset."""
        return self.surrogate_function(h - self.v_threshold)

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        """The potential v after the reset, from the potential h before it and the spikes s."""
        if self.detach_reset:
            s = s.detach()
        if self.v_reset is None:
            learned = isinstance(self.v_threshold, Tensor)
            return h - self.v_threshold * s if learned else torch.sub(h, s, alpha=self.v_threshold)
        v = h * (1 - s)
        return v + self.v_reset * s if self.v_reset else v

    def steps(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The reference: all time steps in PyTorch, every dtype and device.

        x [T, B, ...] is the input; v0 the initial potential, broadcastable to [B, ...] (None means 0).
        Returns (spikes [T, B, ...] in x's dtype, last potential [B, ...], with `store_v_seq` the potentials after each
        reset [T, B, ...], else None). The potential is kept in float32 at least: half precision would lose small charges.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        v = torch.zeros((), dtype=dtype, device=x.device) if v0 is None else v0.to(dtype)
        v = v.expand(x.shape[1:])
        spikes, potentials, before = [], [], []
        self.begin(x)
        for x_t in x.unbind(0):
            h = self.charge(v, x_t)
            s = self.fire(h)
            v = self.reset_potential(h, s)
            spikes.append(s)
            if self.store_v_seq:
                potentials.append(v)
            if self.watch is not None:
                before.append(h)
        if self.watch is not None:
            self.watch(self, before, spikes)
        self.end()
        return torch.stack(spikes).to(x.dtype), v, torch.stack(potentials) if potentials else None


def initial_states(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of `model` that is an initial state of neurons (IMP), trainable or not, by its name."""
    return {name: parameter for name, parameter in model.named_parameters() if is_initial_state(name)}


def is_initial_state(name: str) -> bool:
    """Whether a name in a checkpoint is that of an initial state of some neuron."""
    return name.rsplit(".", 1)[-1] == "imp"
