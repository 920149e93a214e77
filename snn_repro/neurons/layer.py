"""Base of every spiking layer: settings, initial state, choice of kernel, spikingjelly's interface."""

from functools import partial
from typing import TYPE_CHECKING, Any

from spikingjelly.activation_based.neuron import BaseNode
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from snn_repro.errors import UserError
from snn_repro.kernels import Affine, Law, door
from snn_repro.neurons.initial import INITIAL_STATES, InitialState
from snn_repro.neurons.surrogates import SURROGATES, Spike
from snn_repro.settings import Setting, shared

SHARED = {
    "v_threshold": Setting(1.0, "firing threshold v_th", above=0),
    "reset": Setting("soft", "soft: v = h - v_th s; hard: v = v_reset after a spike", choices=("soft", "hard")),
    "v_reset": Setting(0.0, "potential after a hard reset"),
    "fire_at": Setting("ge", "fire at h >= v_th (ge) or h > v_th (gt)", choices=("ge", "gt")),
    "detach_reset": Setting(False, "no gradient through the reset"),
    "surrogate": Setting("atan", "surrogate gradient of the spike", choices=SURROGATES),
    "surrogate_width": Setting(None, "alpha (atan 2, sigmoid 4), gamma (triangle 1), width (rectangle 1) or b (dspike 3); null: these", above=0),
    "initial": Setting("zero", "initial membrane potential; imp: learned, one value per neuron", choices=INITIAL_STATES),
    "initial_value": Setting(0.5, "initial potential of initial=constant"),
    "imp_init": Setting((0.4, 0.6), "[low, high] of the uniform draw of IMP and initial=random"),
    "imp_trainable": Setting(True, "train IMP; false keeps its random draw, as several published rows did"),
}  # fmt: skip
settings = partial(shared, SHARED)  # settings({setting: published default, ...}, without=(), own=Setting(...))

EQUATION = {"begin", "charge", "fire", "reset_potential", "steps"}


class Layer(BaseNode):
    """A spiking layer without its state equation, [T, B, ...] -> [T, B, ...].

    `node.Neuron` adds the equation. settings: those of the class; `initial` follows from `imp` where it is not given.
    timesteps and state_shape: those the layer was built for, or None.
    """

    decayed: tuple[str, ...] = ()
    repays = False  # whether the run is long enough for `auto` to compile the steps; see kernels/door.py
    before: Affine | None = None  # the norm that the next forward has to run too
    v_seq: Any

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # a setting, or an attribute of node.Neuron

    def __init__(
        self, *, imp: nn.Parameter | None = None, timesteps: int | None = None, state_shape: tuple[int, ...] | None = None,
        backend: str = "auto", **settings: Any,
    ):  # fmt: skip
        given = {key: setting.default for key, setting in SHARED.items()} | settings
        own = {key: given[key] for key in SURROGATES.own(given["surrogate"]) if key in given}
        super().__init__(
            v_threshold=given["v_threshold"], v_reset=given["v_reset"] if given["reset"] == "hard" else None,
            surrogate_function=Spike(given["surrogate"], given["surrogate_width"], given["fire_at"], **own),
            detach_reset=given["detach_reset"], step_mode="m",
        )  # fmt: skip
        self.backend, self.timesteps, self.state_shape = backend, timesteps, state_shape
        self.initial = "imp" if imp is not None and given["initial"] == "zero" else given["initial"]
        self.initial_value, self.imp_init = given["initial_value"], given["imp_init"]
        for key in settings.keys() - SHARED.keys():  # set here: spikingjelly's own check rejects tau = 1
            setattr(self, key, settings[key])
        self.register_parameter("imp", imp)
        self.initial_state = INITIAL_STATES[self.initial]()
        self._learns = type(self.initial_state).learn is not InitialState.learn
        self.initial_state.attach(self)
        # spikingjelly initialises v to v_reset under hard reset; here v[-1] = 0 under any reset.
        self.set_reset_value("v", 0.0)
        self.v: Any = 0.0

    def parameter_kind(self, name: str) -> str:
        """Return an own parameter's optimiser group: `imp`, `neuron` (no weight decay) or `weight`."""
        return "imp" if name == "imp" else "weight" if name in self.decayed else "neuron"

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        # A class that overrides a step loses the inherited kernel unless it defines `kernel` too.
        last = next(c for c in cls.__mro__ if "kernel" in vars(c) or EQUATION & vars(c).keys())
        cls._kernel_is_valid = "kernel" in vars(last)

    def kernel(self) -> tuple[str, float] | None:
        """Return (name, leak) of the compiled charge that equals `charge` (kernels.CHARGES), or None.

        The kernel fires and resets as Neuron does. A class that overrides a step and not this method has no kernel.
        """
        return None

    def law(self) -> Law | None:
        """Return the state equation for the kernels; None if only the reference may run.

        That is so for equations without a kernel and while `watch` is set.
        """
        spike = self._modules["surrogate_function"]  # on every call: faster than the attribute
        if not self._kernel_is_valid or type(spike) is not Spike or self.watch is not None:
            return None
        named, slope = self.kernel(), SURROGATES[spike.surrogate].kernel
        if named is None or slope is None or not isinstance(self.v_threshold, float) or not isinstance(named[1], float):
            return None
        return Law(*named, slope, spike.width, spike.fire_at == "gt", self.v_threshold, self.v_reset, self.detach_reset)

    def plan(self, x: Tensor, norm: Affine | None = None, timesteps: int | None = None) -> door.Plan:
        """Choose the backend for x and `norm`, by default `before`; called once per forward."""
        norm, self.before = norm or self.before, None
        if self.store_v_seq:
            return door.choose(self.backend, self.law() if self.backend == "spikingjelly" else None, x)
        return door.choose(self.backend, self.law(), x, norm, timesteps)

    @property
    def adds(self) -> bool:
        """Whether a kernel may fuse a shortcut's addition: nothing else reads the spikes."""
        hooked = self._forward_hooks or self._backward_hooks or hooks._global_forward_hooks
        return not hooked and not self._learns

    def update(
        self, x: Tensor, v0: Tensor | None, plan: door.Plan | None = None, plus: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the time steps by `plan`'s backend, with its norm; add `plus` to the spikes."""
        plan = plan or self.plan(x)
        return door.steps(self, x, v0) if plan.law is None else door.run(plan, x, v0, plus, self.store_v_seq)

    def multi_step_forward(self, x_seq: Tensor, plan: door.Plan | None = None, plus: Tensor | None = None) -> Tensor:
        """Return spikes [T, B, ...] for x [T, B, ...]; the default plan is `plan(x)`.

        Where the plan has a norm, x is the norm's input and may be [1, B, ...] for equal steps; `plus` (if `adds`) is
        added to the spikes. Stores the last potential [B, ...] in `v` and, with `store_v_seq`, the potentials after
        each reset [T, B, ...] in `v_seq`, both detached. Raises UserError where x does not fit timesteps or the shape
        of IMP.
        """
        if x_seq.dim() < 2 or x_seq.shape[0] == 0:
            raise UserError(f"A spiking layer needs input [T, B, ...] with T >= 1, not {list(x_seq.shape)}.")
        if self.wired and len(x_seq) != self.timesteps:
            raise UserError(
                f"This '{self.family}' layer was built for timesteps={self.timesteps}, but its input has {len(x_seq)} "
                f"time steps; use the same timesteps or another neuron."
            )
        imp = self._parameters["imp"]
        if imp is not None and imp.shape != self.initial_state.learned_shape(tuple(x_seq.shape[2:])):
            raise UserError(
                f"This '{self.family}' layer has one IMP value for each of {list(imp.shape)} neurons, "
                f"but its input [T, B, ...] is {list(x_seq.shape)}; build the network for this input shape."
            )
        v0 = self.initial_state.potential(self, x_seq)
        spikes, v, v_seq = self.update(x_seq, v0, plan, plus)
        self.v = v.detach()
        if self._learns and self.training:
            self.initial_state.learn(self, spikes, self.v)
        if v_seq is not None or self.v_seq is not None:
            self.v_seq = None if v_seq is None else v_seq.detach()
        return spikes

    def supported_step_mode(self) -> tuple[str, ...]:
        """Return ("m",): spikingjelly's multi-step mode only."""
        return ("m",)

    def functional_forward(self, *args, **kwargs):
        """Raise UserError: spikingjelly's functional calls need a state kept between calls."""
        raise UserError(f"'{self.family}' keeps no state between calls; pass all time steps at once")

    single_step_functional_forward = multi_step_functional_forward = functional_forward
