"""Base class of neurons: charge, fire and reset. Each family is one file beside it.

The steps, in this order (x[t] input, v potential, h potential before the reset):
    charge   h[t] = charge(v[t-1], x[t])             defined by the family
    fire     s[t] = step(h[t] - v_threshold)
    reset    soft:   v[t] = h[t] - v_threshold * s[t]
             hard:   v[t] = h[t] * (1 - s[t]) + v_reset * s[t]
v[-1] is the initial membrane potential: learned (IMP), 0 or another of `initial.py`.

Neurons are spikingjelly nodes, so its monitors, counters and NIR exchange work with them. Unlike spikingjelly's they
keep no state between calls: every forward over [T, B, ...] starts from the initial potential, `v` only records where
the last forward ended, and a caller has nothing to reset.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.neurons.layer import Layer, settings
from snn_repro.registry import NEURONS


def register(name: str):
    """Class decorator that adds a Neuron to `build_neuron` under a name.

    name + "_imp" then selects it with IMP. Raises UserError for a name that ends with "_imp".
    """
    if name.endswith("_imp"):
        raise UserError(f"'{name}' cannot name a neuron: the suffix _imp selects a learned initial potential")

    def add(cls):
        cls.family = name
        return NEURONS.register(name)(cls)

    return add


class Neuron(Layer):
    """Base class of neurons; a family overrides `charge`.

    x [T, B, ...] -> spikes [T, B, ...]. The other steps can be overridden too. settings: name -> Setting; a family's
    own become attributes. `initial` selects the initial potential; where it is learned, `imp` [...] has one value per
    neuron (or axes of size 1: per channel or layer) and no batch axis. A family's parameters have no weight decay
    except those in `decayed`. A family with a schedule over epochs defines `begin_epoch(epoch, epochs)`, which training
    calls before the first batch of each epoch.
    """

    settings = settings({})
    causal: Any = True  # no output depends on a later input
    wired = False  # the number of time steps is fixed by the parameters
    states: Any = 1  # state variables per neuron; None: the inputs of the steps that an output sees
    max_count = 1  # largest number of spikes one output represents, each a synaptic operation; see energy.py
    scale: Any = 1.0  # output of one spike, where the next layer's weights can absorb it
    # callback(layer, h, s) after every forward of the reference `steps`; h and s are lists of T tensors [B, ...]
    watch: Callable[["Neuron", list[Tensor], list[Tensor]], None] | None = None

    def begin(self, x: Tensor) -> None:
        """Initialise states other than v; called before the first step of x [T, B, ...]."""

    def end(self) -> None:
        """Delete what `begin` set; called after the last step."""

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """Return the potential h before the reset from v and x, all [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must define charge(self, v, x)")

    def fire(self, h: Tensor) -> Tensor:
        """Return the spikes of the potential h before the reset."""
        return self.surrogate_function(h - self.v_threshold)

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        """Return the potential v after the reset, from h and the spikes s."""
        if self.detach_reset:
            s = s.detach()
        if self.v_reset is None:
            learned = isinstance(self.v_threshold, Tensor)
            return h - self.v_threshold * s if learned else torch.sub(h, s, alpha=self.v_threshold)
        v = h * (1 - s)
        return v + self.v_reset * s if self.v_reset else v

    def steps(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The reference implementation: all time steps in PyTorch, every dtype and device.

        x [T, B, ...] is the input; v0 the initial potential, broadcastable to [B, ...] (None means 0). Returns spikes
        [T, B, ...] in x's dtype, the last potential [B, ...] and, with `store_v_seq`, the potentials after each reset
        [T, B, ...], else None. Potentials have at least float32, since half precision would lose small charges.
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
    """Return {name: parameter} of all learned initial states (IMP) of `model`, trainable or not."""
    return {name: parameter for name, parameter in model.named_parameters() if is_initial_state(name)}


def is_initial_state(name: str) -> bool:
    """Whether a parameter's name in a checkpoint is that of an initial state."""
    return name.rsplit(".", 1)[-1] == "imp"


@contextmanager
def firing_rates(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measure each spiking layer's spikes per neuron and time step inside the block.

        with firing_rates(model) as rates:
            ...                              # any number of forwards
        rates["layer1.0.sn1"]                # filled when the block ends

    The mean is over all samples, so a short last batch weighs less. Layers that never ran have no entry.
    """
    rates: dict[str, float] = {}
    spikes: dict[str, Tensor] = {}
    neuron_steps: dict[str, int] = {}

    def count(name, module, inputs, output):
        if hasattr(module, "counts"):  # spikes are not 0 and 1
            output = module.counts(output)
        # per sample first: exact in float32. count_nonzero is 15 times slower on a CPU
        ones = output.detach().sum(tuple(range(2, output.dim())), dtype=torch.float32)
        spikes[name] = spikes.get(name, 0) + ones.sum(dtype=torch.float64)  # stays on its device
        neuron_steps[name] = neuron_steps.get(name, 0) + output.numel()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, BaseNode):
                stack.enter_context(module.register_forward_hook(partial(count, name)))
        yield rates
    rates.update({name: float(spikes[name]) / neuron_steps[name] for name in spikes})
