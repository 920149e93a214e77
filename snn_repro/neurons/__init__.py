"""Spiking neurons with or without a learnable initial membrane potential (IMP).

    neuron = build_neuron("if", imp=True, state_shape=(64, 32, 32))
    spikes = neuron(x)                        # x [T, B, 64, 32, 32]

`node.py` is the base class; each neuron family is one file beside it, discovered automatically. From outside the
package, `@register("name")` adds a neuron and `@register_surrogate` a surrogate gradient (see `surrogates.py`).
"""

import torch
from torch import nn

from snn_repro.errors import UserError
from snn_repro.kernels import BACKENDS, door
from snn_repro.kernels.door import resolve_backend
from snn_repro.neurons.initial import INITIAL_STATES, InitialState, register_initial
from snn_repro.neurons.node import NEURONS, Neuron, firing_rates, initial_states, is_initial_state, register, settings
from snn_repro.neurons.surrogates import SURROGATES, register_surrogate
from snn_repro.registry import import_all
from snn_repro.settings import Setting

__all__ = [
    "BACKENDS", "INITIAL_STATES", "NEURONS", "SURROGATES", "InitialState", "Neuron", "Setting", "build_neuron", "firing_rates", "initial_states",
    "is_initial_state", "register", "register_initial", "register_surrogate", "resolve_backend", "settings",
]  # fmt: skip

import_all(__name__, __path__)


def build_neuron(
    name: str, imp: bool = False, state_shape=None, timesteps: int | None = None, backend: str | None = None,
    **overrides,
) -> nn.Module:  # fmt: skip
    """Build one spiking layer: x [T, B, *state_shape] -> spikes [T, B, *state_shape].

    name: "if", "lif", "leaky" or another of NEURONS; "if_imp" is short for "if" with imp=True. imp: learn the initial
    potential (initial="imp"), a parameter `imp` of shape state_shape, e.g. (C, H, W), from U(*imp_init). timesteps: T,
    required by neurons with parameters per time step (`wired`). backend: "auto", "torch", "cpu", "triton",
    "spikingjelly" or "compile" (see kernels); results are equal up to rounding.

    Overrides (None means the family's published value):
        v_threshold=1.0  reset="soft"|"hard"  v_reset=0.0 (hard reset only)  fire_at="ge"|"gt"  detach_reset
        surrogate="atan"|"sigmoid"|"triangle"|...  surrogate_width (its alpha, gamma, width or temperature)
        initial="zero"|"constant"|"half"|"random"|"imp"|"imp_channel"|"imp_layer"|"mp_init" (see initial.py)
        initial_value=0.5 (constant)  imp_init=[low, high]  imp_trainable=True
        tau=2.0 (lif, >= 1)  retain=0.25 (leaky, 0..1)  decay_input=True (lif; False: h = (1 - 1/tau) v + x)
    Families without tau, decay_input or retain accept only the defaults, so a value without effect is an error.

    One number is drawn from torch's global generator with and without IMP, so one seed gives both the same weights.

    Raises UserError, naming the key, the value and what is allowed.
    """
    if (family := str(name).removesuffix("_imp")) not in NEURONS:
        known = [*NEURONS, *(f"{n}_imp" for n, cls in NEURONS.items() if "imp_init" in cls.settings)]
        raise UserError(NEURONS.unknown(name, known))
    imp, cls = Setting(False, "").checked("neuron.imp", imp) or name != family, NEURONS[family]
    if imp and "imp_init" not in cls.settings:
        raise UserError(f"neuron.imp=true has no meaning for '{family}', which has no initial potential; leave imp out")
    if cls.wired and timesteps is None:
        raise UserError(f"'{family}' has parameters for each time step and needs timesteps=T")
    values = NEURONS.checked(family, overrides)
    if imp and values["initial"] not in ("zero", "imp"):
        raise UserError(f"neuron.imp=true and neuron.initial={values['initial']} conflict; leave one of them out")
    if imp:
        values["initial"] = "imp"
    if values.get("reset") == "soft" and values["v_reset"] != 0:
        raise UserError(f"neuron.v_reset={values['v_reset']} has no meaning with reset='soft'; use reset='hard' or 0")
    if values.get("v_reset", 0) >= values["v_threshold"]:
        raise UserError(f"neuron.v_reset={values['v_reset']} must be below v_threshold={values['v_threshold']}")
    initial = INITIAL_STATES[values.get("initial", "zero")]
    start = _draw_imp(initial, state_shape, *values.get("imp_init", (0.0, 0.0)))
    parameter = None if start is None else nn.Parameter(start, requires_grad=values["imp_trainable"])
    backend = Setting("auto", "", choices=BACKENDS).checked("neuron.backend", backend or "auto")
    shape = state_shape and tuple(state_shape)
    neuron = cls(imp=parameter, timesteps=timesteps, state_shape=shape, backend=backend, **values)
    door.check_backend(neuron, family)
    return neuron


def _draw_imp(initial: type[InitialState], state_shape, low: float, high: float) -> torch.Tensor | None:
    seed = int(torch.randint(2**62, (), device="cpu"))
    if initial.learned_shape((1,)) is None:  # not learned
        return None
    if state_shape is None:
        raise UserError("neuron.imp=true needs state_shape, for example (C, H, W): IMP has one value per neuron")
    if not (shape := tuple(state_shape)) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UserError(f"state_shape={state_shape!r} must consist of positive integers, for example (64, 32, 32)")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    values = torch.empty(initial.learned_shape(shape) or (), device="cpu").uniform_(low, high, generator=generator)
    return values.to(torch.get_default_device())
