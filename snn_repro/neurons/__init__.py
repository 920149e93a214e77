"""Spiking neurons with or without a learnable initial membrane potential (IMP).

    neuron = build_neuron("if", imp=True, state_shape=(64, 32, 32))
    spikes = neuron(x)                        # x [T, B, 64, 32, 32]

The families and their state equations are in `dynamics.py`, the surrogates in `surrogate.py`, and who computes them
(`backend`) in `backends.py`.
"""

import math
from numbers import Real

import torch
from torch import nn

from snn_repro.errors import UserError, nearest
from snn_repro.neurons.backends import BACKENDS, check_backend, resolve_backend
from snn_repro.neurons.nodes import IF, LIF, Leaky
from snn_repro.neurons.rates import firing_rates
from snn_repro.neurons.surrogate import SURROGATES, Spike

__all__ = ["BACKENDS", "NEURONS", "OVERRIDES", "build_neuron", "firing_rates", "resolve_backend"]

NEURONS = {"if": IF, "lif": LIF, "leaky": Leaky}

# Every setting that a neuron takes beside its name, `imp` and its shape; some belong to one family alone.
FAMILY_SETTINGS = {"tau": "lif", "decay_input": "lif", "retain": "leaky"}
OVERRIDES = (
    "v_threshold",
    "reset",
    "v_reset",
    "fire_at",
    "detach_reset",
    "surrogate",
    "surrogate_width",
    "imp_init",
    "imp_trainable",
    "backend",
    *FAMILY_SETTINGS,
)


def build_neuron(name: str, imp: bool = False, state_shape=None, **overrides) -> nn.Module:
    """Build one spiking layer: x [T, B, *state_shape] -> spikes [T, B, *state_shape].

    name is "if", "lif" or "leaky"; "if_imp" and so on stand for imp=True. With imp, state_shape (for example
    (C, H, W)) is needed: the layer owns a parameter `imp` of that shape, drawn from U(*imp_init).

    Overrides (None means the family's published value):
        v_threshold=1.0  reset="soft"|"hard"  v_reset=0.0 (hard reset only)  fire_at="ge"|"gt"  detach_reset
        surrogate="atan"|"sigmoid"|"triangle"  surrogate_width (alpha, or the triangle's gamma)
        imp_init=[low, high]  imp_trainable=True  tau=2.0 (lif, >= 1)  retain=0.25 (leaky, 0..1)
        decay_input=True (lif; False takes the input at full weight: h = (1 - 1/tau) v + x)
        backend="auto"|"torch"|"cpu"|"triton"|"spikingjelly": who computes it (backends.py); changes roundings only
    A family that has no tau, decay_input or retain accepts only their defaults, so that a value without effect is noticed.

    The draw of IMP takes one number from torch's global generator whether imp is on or off, so networks built
    under one seed have the same weights with and without IMP.

    Raises UserError, naming the key, the value and what is allowed.
    """
    family = str(name).removesuffix("_imp")
    if family not in NEURONS:
        known = [*NEURONS, *(f"{n}_imp" for n in NEURONS)]
        raise UserError(f"neuron.name={name!r} is not one of {', '.join(known)}{nearest(name, known)}")
    imp = _boolean("imp", imp) or name != family
    cls = NEURONS[family]
    for key, value in overrides.items():
        if key not in OVERRIDES:
            raise UserError(f"neuron.{key} is not a setting of a neuron{nearest(key, OVERRIDES)}")
        owner = FAMILY_SETTINGS.get(key, family)
        if owner != family and value not in (None, NEURONS[owner].defaults[key]):
            raise UserError(f"neuron.{key}={value!r} belongs to the neuron '{owner}'; leave it out for '{family}'")
    given = {key: value for key, value in overrides.items() if value is not None}
    fixed = {"v_threshold": 1.0, "v_reset": 0.0, "imp_trainable": True, "backend": "auto"}
    settings = {**fixed, **cls.defaults, **given}

    v_threshold = _number("v_threshold", settings["v_threshold"])
    if v_threshold <= 0:
        raise UserError(f"neuron.v_threshold={v_threshold} must be above 0")
    hard = _choice("reset", settings["reset"], ("soft", "hard")) == "hard"
    v_reset = _number("v_reset", settings["v_reset"])
    if not hard and v_reset != 0:
        raise UserError(f"neuron.v_reset={v_reset} has no meaning with reset='soft'; use reset='hard' or leave it 0")
    if v_reset >= v_threshold:
        raise UserError(f"neuron.v_reset={v_reset} must be below v_threshold={v_threshold}")
    surrogate = _choice("surrogate", settings["surrogate"], tuple(SURROGATES))
    width = _number("surrogate_width", settings.get("surrogate_width", SURROGATES[surrogate][1]))
    if width <= 0:
        raise UserError(f"neuron.surrogate_width={width} must be above 0")
    spike = Spike(surrogate, width, _choice("fire_at", settings["fire_at"], ("ge", "gt")))
    extra = {}
    if family == "lif":
        extra["tau"] = _number("tau", settings["tau"])
        if extra["tau"] < 1:
            raise UserError(f"neuron.tau={extra['tau']} must be at least 1 (it divides the leak)")
        extra["decay_input"] = _boolean("decay_input", settings["decay_input"])
    if family == "leaky":
        extra["retain"] = _number("retain", settings["retain"])
        if not 0 <= extra["retain"] <= 1:
            raise UserError(f"neuron.retain={extra['retain']} must lie in 0..1 (the share of v that is kept)")

    values = _draw_imp(imp, state_shape, *_interval("imp_init", settings["imp_init"]))
    trainable = _boolean("imp_trainable", settings["imp_trainable"])
    parameter = None if values is None else nn.Parameter(values, requires_grad=trainable)
    detach_reset = _boolean("detach_reset", settings["detach_reset"])
    neuron = cls(spike, v_threshold, v_reset if hard else None, detach_reset, parameter, **extra)
    neuron.backend = _choice("backend", settings["backend"], BACKENDS)
    check_backend(neuron.backend, neuron.dynamics)
    return neuron


def _draw_imp(imp: bool, state_shape, low: float, high: float) -> torch.Tensor | None:
    seed = int(torch.randint(2**62, (), device="cpu"))
    if not imp:
        return None
    if state_shape is None:
        raise UserError("neuron.imp=true needs state_shape, for example (C, H, W): IMP is one value a neuron")
    shape = tuple(state_shape)
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UserError(f"state_shape={state_shape!r} must hold positive integers, for example (64, 32, 32)")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    values = torch.empty(shape, device="cpu").uniform_(low, high, generator=generator)
    return values.to(torch.get_default_device())


def _number(key: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"neuron.{key}={value!r} must be a finite number")
    return float(value)


def _boolean(key: str, value) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"neuron.{key}={value!r} must be true or false")
    return value


def _choice(key: str, value, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"neuron.{key}={value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
    return value


def _interval(key: str, value) -> tuple[float, float]:
    try:
        low, high = value
    except (TypeError, ValueError):
        raise UserError(f"neuron.{key}={value!r} must be two numbers [low, high]") from None
    low, high = _number(key, low), _number(key, high)
    if low > high:
        raise UserError(f"neuron.{key}=[{low}, {high}] must have low <= high")
    return low, high
