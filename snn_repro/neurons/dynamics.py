"""The state equation of a spiking layer: the one function that turns a sequence of inputs into spikes.

Each step charges, fires and resets, in this order (x[t] input, v potential, h potential before the reset):
    charge   if:     h[t] = v[t-1] + x[t]
             lif:    h[t] = v[t-1] + (x[t] - v[t-1]) / tau
             leaky:  h[t] = retain * v[t-1] + x[t]      (and lif with decay_input=False: retain = 1 - 1/tau)
    fire     s[t] = step(h[t] - v_threshold)
    reset    soft:   v[t] = h[t] - v_threshold * s[t]
             hard:   v[t] = h[t] * (1 - s[t]) + v_reset * s[t]
v[-1] is the initial membrane potential: learned (IMP) or 0. So a lif or leaky layer sees its IMP scaled by
(1 - 1/tau) or retain at the first step, as any other v.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Dynamics(NamedTuple):
    """Everything `update` needs to know about a layer.

    v_reset None means soft reset; detach_reset stops the gradient through the spike in the reset.
    tau (lif) divides, retain (leaky) multiplies the previous potential.
    """

    family: str
    spike: Callable[[Tensor], Tensor]
    v_threshold: float = 1.0
    v_reset: float | None = None
    detach_reset: bool = False
    tau: float = 2.0
    retain: float = 0.25


def charge(v: Tensor, x: Tensor, dynamics: Dynamics) -> Tensor:
    """Return the potential h before the reset, from the last potential v and one step of input x."""
    if dynamics.family == "if":
        return v + x
    if dynamics.family == "lif":
        return v + (x - v) / dynamics.tau
    if dynamics.family == "leaky":
        return dynamics.retain * v + x
    raise ValueError(f"unknown neuron family {dynamics.family!r}")


def reset(h: Tensor, s: Tensor, dynamics: Dynamics) -> Tensor:
    """Return the potential v after the reset, from the potential h before it and the spikes s."""
    if dynamics.detach_reset:
        s = s.detach()
    if dynamics.v_reset is None:
        return torch.sub(h, s, alpha=dynamics.v_threshold)
    v = h * (1 - s)
    return v + dynamics.v_reset * s if dynamics.v_reset else v


def update(
    x: Tensor, v0: Tensor | None, dynamics: Dynamics, store_v_seq: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run all time steps of one layer.

    x [T, B, ...] is the input; v0 the initial potential, broadcastable to [B, ...] (None means 0).
    Returns (spikes [T, B, ...] in x's dtype, last potential [B, ...], potentials after each reset [T, B, ...]
    or None). The potential is kept in float32 at least: half precision would lose small charges.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    v = torch.zeros((), dtype=dtype, device=x.device) if v0 is None else v0.to(dtype)
    v = v.expand(x.shape[1:])
    spikes, potentials = [], []
    for x_t in x.unbind(0):
        h = charge(v, x_t, dynamics)
        s = dynamics.spike(h - dynamics.v_threshold)
        v = reset(h, s, dynamics)
        spikes.append(s)
        if store_v_seq:
            potentials.append(v)
    return torch.stack(spikes).to(x.dtype), v, torch.stack(potentials) if store_v_seq else None
