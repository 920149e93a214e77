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

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn

from snn_repro import kernels
from snn_repro.errors import UserError
from snn_repro.kernels import neuron as fused
from snn_repro.neurons.initial import INITIAL_STATES
from snn_repro.neurons.surrogates import SURROGATES, Spike
from snn_repro.registry import NEURONS
from snn_repro.settings import Setting, shared

SHARED = {
    "v_threshold": Setting(1.0, "firing threshold V_th", above=0),
    "reset": Setting("soft", "soft: v = h - V_th s; hard: v = v_reset where a spike was fired", choices=("soft", "hard")),
    "v_reset": Setting(0.0, "potential after a hard reset"),
    "fire_at": Setting("ge", "fire at h >= V_th (ge) or h > V_th (gt)", choices=("ge", "gt")),
    "detach_reset": Setting(False, "leave the reset out of the backward pass"),
    "surrogate": Setting("atan", "surrogate gradient of the spike", choices=SURROGATES),
    "surrogate_width": Setting(None, "the surrogate's own width: alpha (atan 2, sigmoid 4), gamma (triangle 1), width (rectangle 1), b (dspike 3); null takes these", above=0),
    "initial": Setting("zero", "initial membrane potential; imp: learned, one value a neuron", choices=INITIAL_STATES),
    "initial_value": Setting(0.5, "the potential that initial=constant starts from"),
    "imp_init": Setting((0.4, 0.6), "IMP starts uniform in [low, high]; initial=random draws from it"),
    "imp_trainable": Setting(True, "false leaves IMP at its random start, as several published rows did"),
    "backend": Setting("auto", "who computes it; changes roundings only", choices=kernels.BACKENDS),
}  # fmt: skip
settings = partial(shared, SHARED)  # settings({setting: published default, ...}, without=(), own=Setting(...))
_STEPS = {"begin", "charge", "fire", "reset_potential", "steps"}
# What has no meaning for a neuron whose potential does not last from step to step.
STATEFUL = ("reset", "v_reset", "detach_reset", "initial", "initial_value", "imp_init", "imp_trainable")


def register(name: str):
    """A decorator that makes a Neuron known to `build_neuron` under a name; name + "_imp" then stands for it with IMP."""
    if name.endswith("_imp"):
        raise UserError(f"'{name}' cannot name a neuron: the ending _imp stands for a learned initial potential")

    def add(cls):
        cls.family = name
        return NEURONS.register(name)(cls)

    return add


class Neuron(BaseNode):
    """A spiking layer: x [T, B, ...] -> spikes [T, B, ...]. A family overrides `charge`, and what else differs.

    settings: name -> Setting; a family's own become attributes. `initial` says from which potential it starts; where that is
    learned, `imp` [...] holds one value a neuron (or with axes of size 1 one a channel or layer), no batch axis. Parameters
    of a family's own are not decayed but for those in `decayed`.
    timesteps and state_shape are those it was built for, None where nobody said. A module of a network with a schedule
    over epochs has `begin_epoch(epoch, epochs)`, which training calls before the first batch of each epoch.
    """

    family: str
    settings = settings({})
    initial_parameters = ("imp",)  # those that are an initial state
    decayed: tuple[str, ...] = ()
    # hears (layer, h, s) of all steps, each a list of T [B, ...], after every forward; nothing is kept for it
    watch: Callable[["Neuron", list[Tensor], list[Tensor]], None] | None = None
    v: Any
    v_seq: Any
    causal: Any = True  # whether an output depends on no later input
    wired = False  # whether the number of time steps is wired in
    max_count = 1  # spikes that one output may stand for, each a synaptic operation; see energy.py

    def __init__(
        self, *, imp: nn.Parameter | None = None, v_threshold=1.0, reset="soft", v_reset=0.0, fire_at="ge",
        detach_reset=False, surrogate="atan", surrogate_width=None, backend="auto", initial=None, initial_value=0.5,
        imp_init=(0.4, 0.6), imp_trainable=True, timesteps: int | None = None, state_shape: tuple[int, ...] | None = None,
        **own,
    ):  # fmt: skip
        spike = Spike(surrogate, surrogate_width, fire_at, **{k: own[k] for k in SURROGATES.own(surrogate) if k in own})
        super().__init__(
            v_threshold=v_threshold, v_reset=v_reset if reset == "hard" else None, surrogate_function=spike,
            detach_reset=detach_reset, step_mode="m",
        )  # fmt: skip
        self.backend, self.timesteps, self.state_shape = backend, timesteps, state_shape
        for key, value in own.items():  # spikingjelly itself refuses tau = 1, the limit of a neuron without memory
            setattr(self, key, value)
        self.register_parameter("imp", imp)
        self.initial, self.initial_value, self.imp_init = (
            initial or ("zero" if imp is None else "imp"),
            initial_value,
            imp_init,
        )
        self.initial_state = INITIAL_STATES[self.initial]()
        before = {*self._buffers}
        self.initial_state.attach(self)
        self._of_initial = self._buffers.keys() - before
        self._plain = self.initial in ("zero", "imp")  # the paper's two need no call in each forward pass
        self.repeats = False  # while the backward pass runs a forward pass again: it learns nothing twice
        # spikingjelly starts a hard-reset node at v_reset; without IMP ours starts from 0 under any reset.
        self.set_reset_value("v", 0.0)
        self.v = 0.0

    def start_at_zero(self) -> None:
        """Forget the initial state, with what is learned or counted for it."""
        self.register_parameter("imp", None)
        self.initial, self.initial_state, self._plain = "zero", INITIAL_STATES["zero"](), True
        for name in self._of_initial:
            del self._buffers[name]
        self._of_initial = set()

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        # A kernel stands for the class that names it: whoever changes a step behind it has none until it names one again.
        last = next(c for c in cls.__mro__ if "kernel" in vars(c) or _STEPS & vars(c).keys())
        cls._kernel_is_right = "kernel" in vars(last)

    @classmethod
    def states(cls, settings: Mapping[str, Any], timesteps: int) -> int:
        """Numbers that one neuron with these settings keeps from step to step."""
        return 1

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

    def kernel(self) -> tuple[str, float] | None:
        """By name the compiled charge that is the same as `charge` (kernels.CHARGES), and its leak; None: there is none.

        It fires and resets as this class does. A class that overrides a step and not this method has no kernel.
        """
        return None

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

    # ---------------------------------------------------------------- who computes it

    @property
    def shows_potential(self) -> bool:
        """Whether `watch` is called: by the reference's steps, not by those of a family that computes them another way."""
        return type(self).steps is Neuron.steps

    def law(self) -> kernels.Law | None:
        """The state equation as the kernels know it; None where only the reference is right, or somebody watches."""
        spike = self._modules["surrogate_function"]  # looked up in every call: faster than the attribute
        if not self._kernel_is_right or type(spike) is not Spike or self.watch is not None:
            return None
        named, slope = self.kernel(), SURROGATES[spike.surrogate].kernel
        if named is None or slope is None or not isinstance(self.v_threshold, float) or not isinstance(named[1], float):
            return None
        return kernels.Law(
            *named, slope, spike.width, spike.fire_at == "gt", self.v_threshold, self.v_reset, self.detach_reset
        )

    def update(
        self, x: Tensor, v0: Tensor | None, norm: kernels.Affine | None = None, timesteps: int | None = None,
        plus: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """`steps` by whom `kernels.choose` names; with `norm`, for which it must have named a kernel, the norm too, and `plus`
        added to the spikes."""
        law = self.law()
        who = kernels.choose(self, x, law=law) if norm is None else kernels.of_norms(self, x)
        if who == "torch":
            return self.steps(x, v0)
        if who == "spikingjelly":
            from snn_repro.kernels import by_spikingjelly

            return by_spikingjelly.update(x, v0, law, self.store_v_seq)
        return *fused.update(x, v0, law, who, norm, timesteps, plus), None

    def multi_step_forward(
        self,
        x_seq: Tensor,
        norm: kernels.Affine | None = None,
        timesteps: int | None = None,
        plus: Tensor | None = None,
    ) -> Tensor:
        """x [T, B, ...] -> spikes [T, B, ...]; with `norm`, for which `kernels.choose` must have named a kernel, x goes through
        that norm first and may then be [1, B, ...], standing for `timesteps` equal steps; `plus` (where `kernels.sums`)
        is added to the spikes.

        Leaves the last potential [B, ...] in `v` and, with `store_v_seq`, every potential after its reset [T, B, ...] in
        `v_seq`, both detached. Raises UserError where x does not fit the shape of IMP.
        """
        if x_seq.dim() < 2 or x_seq.shape[0] == 0:
            raise UserError(
                f"A spiking layer needs input [T, B, ...] of at least one time step, not {list(x_seq.shape)}."
            )
        if self.wired and len(x_seq) != self.timesteps:
            raise UserError(
                f"This '{self.family}' layer has parameters for each of timesteps={self.timesteps} but its input has "
                f"{len(x_seq)} time steps; use the same timesteps or another neuron."
            )
        imp = self._parameters["imp"]
        if imp is not None and x_seq.shape[2:] != imp.shape and not _fits(imp.shape, x_seq.shape[2:], self.initial):
            raise UserError(
                f"This '{self.family}' layer has one IMP value for each of {list(imp.shape)} neurons, "
                f"but its input [T, B, ...] is {list(x_seq.shape)}; build the network for this input shape."
            )
        v0 = imp if self._plain else self.initial_state.potential(self, x_seq)
        spikes, v, v_seq = self.update(x_seq, v0, norm, timesteps, plus)
        self.v = v.detach()
        if self.training and not self._plain and not self.repeats:
            self.initial_state.learn(self, spikes, self.v)
        if v_seq is not None or self.v_seq is not None:
            self.v_seq = None if v_seq is None else v_seq.detach()
        return spikes

    # ---------------------------------------------------------------- among spikingjelly's tools and ours

    def parameter_kind(self, name: str) -> str:
        """What a parameter of its own is to an optimiser: `imp`, `neuron` (never decayed) or `weight`."""
        return "imp" if name in self.initial_parameters else "weight" if name in self.decayed else "neuron"

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("m",)

    # The stateless calls of spikingjelly, where the caller carries the potential from step to step.

    def materialize_states(self, inputs, states, step_mode):
        x, v = inputs[0], states[0]
        if not isinstance(v, Tensor):
            v = self.initial_state.potential(self, x if step_mode == "m" else x.unsqueeze(0))
            v = torch.zeros((), dtype=x.dtype, device=x.device) if v is None else v
        return (v.expand(x.shape[1:] if step_mode == "m" else x.shape),)

    def single_step_functional_forward(self, inputs, states, **kwargs):
        if type(self).begin is not Neuron.begin or type(self).steps is not Neuron.steps:
            raise UserError(f"'{self.family}' keeps more than a potential from step to step; give it all steps at once")
        spikes, v, _ = self.update(inputs[0].unsqueeze(0), states[0])
        return (spikes[0],), (v,)

    def multi_step_functional_forward(self, inputs, states, **kwargs):
        spikes, v, _ = self.update(inputs[0], states[0])
        return (spikes,), (v,)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        own = [f"{key}={getattr(self, key)}" for key in self.settings if key not in SHARED and f" {key}=" not in text]
        return ", ".join(
            [text, *own, f"initial={self.initial}", f"imp={None if self.imp is None else list(self.imp.shape)}"]
        )


def _fits(imp: torch.Size, neurons: torch.Size, initial: str) -> bool:
    """Whether values shared by a channel or layer go with neurons of this shape."""
    return imp == INITIAL_STATES[initial].learned_shape(tuple(neurons))


def initial_states(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of `model` that is an initial state of neurons (IMP), trainable or not, by its name."""
    return {
        f"{prefix}.{name}".lstrip("."): parameter
        for prefix, module in model.named_modules()
        if isinstance(module, Neuron)
        for name, parameter in module.named_parameters(recurse=False)
        if module.parameter_kind(name) == "imp"
    }


def is_initial_state(name: str) -> bool:
    """Whether a name in a checkpoint is that of an initial state of some neuron."""
    return any(name.rsplit(".", 1)[-1] in cls.initial_parameters for cls in NEURONS.values())
