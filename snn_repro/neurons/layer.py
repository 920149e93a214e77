"""What every spiking layer has besides its state equation: settings, initial state, its kernel, spikingjelly's calls."""

from typing import Any

import torch
from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from snn_repro.errors import UserError
from snn_repro.kernels import Affine, Law, door
from snn_repro.neurons.initial import INITIAL_STATES
from snn_repro.neurons.surrogates import SURROGATES, Spike

EQUATION = {"begin", "charge", "fire", "reset_potential", "steps"}


class Layer(BaseNode):
    """A spiking layer of some state equation: x [T, B, ...] -> spikes [T, B, ...]. See `node.Neuron`, which adds the equation.

    settings are those of the class, `initial` without a value follows from `imp`. timesteps and state_shape are those that
    the layer was built for, None where nobody said.
    """

    family: str
    initial_parameters = ("imp",)  # those that are an initial state
    decayed: tuple[str, ...] = ()
    v: Any
    v_seq: Any
    wired: bool
    stepwise: bool
    watch: Any

    def __init__(
        self, *, imp: nn.Parameter | None = None, timesteps: int | None = None, state_shape: tuple[int, ...] | None = None,
        backend: str = "auto", **settings: Any,
    ):  # fmt: skip
        take = settings.pop
        surrogate = take("surrogate", "atan")
        own = {key: settings[key] for key in SURROGATES.own(surrogate) if key in settings}
        spike = Spike(surrogate, take("surrogate_width", None), take("fire_at", "ge"), **own)
        hard, v_reset = take("reset", "soft") == "hard", take("v_reset", 0.0)
        super().__init__(
            v_threshold=take("v_threshold", 1.0), v_reset=v_reset if hard else None, surrogate_function=spike,
            detach_reset=take("detach_reset", False), step_mode="m",
        )  # fmt: skip
        self.backend, self.timesteps, self.state_shape = backend, timesteps, state_shape
        self.initial = take("initial", None) or ("zero" if imp is None else "imp")
        self.initial_value, self.imp_init = take("initial_value", 0.5), take("imp_init", (0.4, 0.6))
        take("imp_trainable", True)  # `imp` says it
        self._own = tuple(settings)
        for key, value in settings.items():  # spikingjelly itself refuses tau = 1, the limit of a neuron without memory
            setattr(self, key, value)
        self.register_parameter("imp", imp)
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

    def parameter_kind(self, name: str) -> str:
        """What a parameter of its own is to an optimiser: `imp`, `neuron` (never decayed) or `weight`."""
        return "imp" if name in self.initial_parameters else "weight" if name in self.decayed else "neuron"

    def begin(self, x: Tensor) -> None: ...

    def steps(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """All time steps in PyTorch: spikes, the last potential and, with `store_v_seq`, all of them."""
        raise NotImplementedError

    # ---------------------------------------------------------------- its kernel

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        # A kernel stands for the class that names it: a class that changes a step has none until it names one again.
        last = next(c for c in cls.__mro__ if "kernel" in vars(c) or EQUATION & vars(c).keys())
        cls._kernel_is_right = "kernel" in vars(last)

    def kernel(self) -> tuple[str, float] | None:
        """By name the compiled charge that is the same as `charge` (kernels.CHARGES), and its leak; None: there is none.

        It fires and resets as Neuron does. A class that overrides a step and not this method has no kernel.
        """
        return None

    def law(self) -> Law | None:
        """The state equation as the kernels know it; None where only the reference is right, or somebody watches."""
        spike = self._modules["surrogate_function"]  # looked up in every call: faster than the attribute
        if not self._kernel_is_right or type(spike) is not Spike or self.watch is not None:
            return None
        named, slope = self.kernel(), SURROGATES[spike.surrogate].kernel
        if named is None or slope is None or not isinstance(self.v_threshold, float) or not isinstance(named[1], float):
            return None
        return Law(*named, slope, spike.width, spike.fire_at == "gt", self.v_threshold, self.v_reset, self.detach_reset)

    def plan(self, x: Tensor, norm: Affine | None = None, timesteps: int | None = None) -> door.Plan:
        """Which backend runs this layer for x, and whether with the norm before it; asked once per forward."""
        if self.store_v_seq:
            law, norm = self.law() if self.backend == "spikingjelly" else None, None
        else:
            law = self.law()
        return door.choose(self.backend, law, x, norm, timesteps)

    @property
    def adds(self) -> bool:
        """Whether a kernel may add a shortcut to the spikes: nobody wants to see these alone."""
        hooked = self._forward_hooks or self._backward_hooks or hooks._global_forward_hooks
        return not hooked and self._plain

    def update(
        self, x: Tensor, v0: Tensor | None, plan: door.Plan | None = None, plus: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`steps` by the backend of `plan`, with its norm before them, and `plus` added to the spikes."""
        plan = plan or self.plan(x)
        return self.steps(x, v0) if plan.law is None else door.run(plan, x, v0, plus, self.store_v_seq)

    def multi_step_forward(
        self, x_seq: Tensor, plan: door.Plan | None = None, plus: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """x [T, B, ...] -> spikes [T, B, ...], by `plan`, or by the plan for x.

        Where the plan has a norm, x goes through it first and may be [1, B, ...] for equal steps; `plus` (where `adds`) is
        added to the spikes. Leaves the last potential [B, ...] in `v` and, with `store_v_seq`, every potential after its reset
        [T, B, ...] in `v_seq`, both detached. Raises UserError where x does not fit the shape of IMP.
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
        spikes, v, v_seq = self.update(x_seq, v0, plan, plus)
        self.v = v.detach()
        if self.training and not self._plain and not self.repeats:
            self.initial_state.learn(self, spikes, self.v)
        if v_seq is not None or self.v_seq is not None:
            self.v_seq = None if v_seq is None else v_seq.detach()
        return spikes

    # ---------------------------------------------------------------- spikingjelly's calls

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
        if not self.stepwise:
            raise UserError(f"'{self.family}' keeps more than a potential from step to step; give it all steps at once")
        spikes, v, _ = self.update(inputs[0].unsqueeze(0), states[0])
        return (spikes[0],), (v,)

    def multi_step_functional_forward(self, inputs, states, **kwargs):
        spikes, v, _ = self.update(inputs[0], states[0])
        return (spikes,), (v,)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        own = [f"{key}={getattr(self, key)}" for key in self._own if f" {key}=" not in text]
        imp = None if self.imp is None else list(self.imp.shape)
        return ", ".join([text, *own, f"initial={self.initial}", f"imp={imp}"])


def _fits(imp: torch.Size, neurons: torch.Size, initial: str) -> bool:
    """Whether values shared by a channel or layer go with neurons of this shape."""
    return imp == INITIAL_STATES[initial].learned_shape(tuple(neurons))
