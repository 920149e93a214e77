"""The three neuron families as spikingjelly nodes, so that its monitors, counters and reset know them.

Unlike other nodes they carry no state from call to call: every forward over [T, B, ...] starts from the
initial membrane potential (IMP, or 0 without it), and `v` merely shows where the last forward ended.
"""

import torch
from spikingjelly.activation_based.neuron import BaseNode, IFNode, LIFNode
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.neurons import normed
from snn_repro.neurons.backends import resolve_backend, run
from snn_repro.neurons.dynamics import Dynamics
from snn_repro.neurons.surrogate import Spike


class _StartsFromIMP(BaseNode):
    """What the families share: the parameter `imp`, and a multi-step forward through `backends.run`.

    imp [...] holds one initial potential a neuron, no batch axis; None means that the layer starts from 0.
    """

    family: str
    backend: str = "auto"

    def _adopt(self, imp: nn.Parameter | None) -> None:
        self.register_parameter("imp", imp)
        # spikingjelly starts a hard-reset node at v_reset; without IMP ours starts from 0 under any reset.
        self.set_reset_value("v", 0.0)
        self.v = 0.0

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("m",)

    @property
    def dynamics(self) -> Dynamics:
        """The layer's settings as the state equation takes them."""
        return Dynamics(
            family=self.family,
            spike=self.surrogate_function,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
        )

    def multi_step_forward(
        self, x_seq: Tensor, norm: normed.Norm | None = None, timesteps: int | None = None
    ) -> Tensor:
        """x [T, B, ...] -> spikes [T, B, ...].

        With `norm`, where `takes_norm` says so, x goes through that batch norm first; it may then be [1, B, ...] and stand
        for `timesteps` equal steps. Leaves the last potential [B, ...] in `v` and, with `store_v_seq`, every potential after its reset
        [T, B, ...] in `v_seq`, both detached. Raises UserError where x does not fit the shape of IMP.
        """
        if x_seq.dim() < 2 or x_seq.shape[0] == 0:
            raise UserError(
                f"A spiking layer needs input [T, B, ...] of at least one time step, not {list(x_seq.shape)}."
            )
        imp = self.imp
        if imp is not None and x_seq.shape[2:] != imp.shape:
            raise UserError(
                f"This '{self.family}' layer has one IMP value for each of {list(imp.shape)} neurons, "
                f"but its input [T, B, ...] is {list(x_seq.shape)}; build the network for this input shape."
            )
        if norm is None:
            spikes, v, v_seq = run(x_seq, imp, self.dynamics, self.backend, self.store_v_seq)
        else:
            v_seq = None
            spikes, v = normed.update(x_seq, norm, imp, self.dynamics, timesteps or len(x_seq))
        self.v = v.detach()
        self.v_seq = None if v_seq is None else v_seq.detach()
        return spikes

    # The stateless calls of spikingjelly, where the caller carries the potential from step to step.

    def materialize_states(self, inputs, states, step_mode):
        x, v = inputs[0], states[0]
        if not isinstance(v, Tensor):
            v = torch.zeros((), dtype=x.dtype, device=x.device) if self.imp is None else self.imp
        return (v.expand(x.shape[1:] if step_mode == "m" else x.shape),)

    def single_step_functional_forward(self, inputs, states, **kwargs):
        spikes, v, _ = run(inputs[0].unsqueeze(0), states[0], self.dynamics, self.backend)
        return (spikes[0],), (v,)

    def multi_step_functional_forward(self, inputs, states, **kwargs):
        spikes, v, _ = run(inputs[0], states[0], self.dynamics, self.backend)
        return (spikes,), (v,)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, imp={None if self.imp is None else list(self.imp.shape)}"


def takes_norm(neuron: nn.Module, x: Tensor) -> bool:
    """Whether `neuron` can compute the batch norm that x [T, B, C, H, W] would go through before it, in the same pass."""
    return (
        isinstance(neuron, _StartsFromIMP)
        and normed.fits(x)
        and resolve_backend(neuron.backend, x.device.type, x.dtype) == "cpu"
        and isinstance(neuron.surrogate_function, Spike)
        and not neuron.store_v_seq
    )


class IF(_StartsFromIMP, IFNode):
    """Integrate-and-fire: h = v + x."""

    family = "if"
    defaults = dict(reset="soft", fire_at="ge", detach_reset=False, surrogate="atan", imp_init=(0.4, 0.6))

    def __init__(self, spike, v_threshold, v_reset, detach_reset, imp=None):
        super().__init__(v_threshold, v_reset, spike, detach_reset, step_mode="m")
        self._adopt(imp)


class LIF(_StartsFromIMP, LIFNode):
    """Leaky integrate-and-fire: h = v + (x - v) / tau; the leak is towards 0.

    decay_input False takes the input at full weight, h = (1 - 1/tau) v + x: a leaky neuron that keeps 1 - 1/tau.
    """

    family = "lif"
    defaults = dict(reset="soft", fire_at="ge", detach_reset=True, surrogate="sigmoid", imp_init=(0.4, 0.6), tau=2.0,
                    decay_input=True)  # fmt: skip

    def __init__(self, spike, v_threshold, v_reset, detach_reset, imp=None, tau=2.0, decay_input=True):
        super().__init__(2.0, decay_input, v_threshold, v_reset, spike, detach_reset, step_mode="m")
        self.tau = tau  # set here because spikingjelly refuses tau = 1, the limit of a neuron without memory
        self._adopt(imp)

    @property
    def dynamics(self) -> Dynamics:
        if not self.decay_input:  # no backend needs a charge of its own for this
            return super().dynamics._replace(family="leaky", retain=1 - 1 / self.tau)
        return super().dynamics._replace(tau=self.tau)


class Leaky(_StartsFromIMP):
    """Leaky neuron with an undecayed input: h = retain * v + x."""

    family = "leaky"
    defaults = dict(
        reset="hard",
        fire_at="gt",
        detach_reset=False,
        surrogate="triangle",
        imp_init=(-0.2, 0.2),
        retain=0.25,
    )

    def __init__(self, spike, v_threshold, v_reset, detach_reset, imp=None, retain=0.25):
        super().__init__(v_threshold, v_reset, spike, detach_reset, step_mode="m")
        self.retain = retain
        self._adopt(imp)

    @property
    def dynamics(self) -> Dynamics:
        return super().dynamics._replace(retain=self.retain)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, retain={self.retain}"
