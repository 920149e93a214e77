"""A spiking layer by spikingjelly's own multi-step functions, where they mean the same as ours."""

import torch
from torch import Tensor

from snn_repro.kernels import Law


def refusal(law: Law) -> str | None:
    """What keeps them from a law, in words; None: nothing."""
    if law.strict:
        return "fires at h >= V_th only; use neuron.fire_at=ge or another backend"
    if law.charge != "if" and law.v_reset:
        return f"leaks towards v_reset, ours towards 0: v_reset={law.v_reset} must be 0 there"
    return None


def update(x: Tensor, v0: Tensor | None, law: Law, store_v_seq: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spikes [T, B, ...] in x's dtype, the last potential [B, ...], and all after each reset [T, B, ...] if wanted."""
    from spikingjelly.activation_based import functional, surrogate

    dtype = torch.promote_types(x.dtype, torch.float32)
    v = torch.zeros((), dtype=dtype, device=x.device) if v0 is None else v0.to(dtype)
    step = {
        "atan": surrogate.ATan,
        "sigmoid": surrogate.Sigmoid,
        "triangle": lambda gamma: surrogate.PiecewiseQuadratic(1 / gamma),
    }[law.slope](law.width)
    settings = (law.v_threshold, law.v_reset, step, law.detach, store_v_seq)
    inputs = (x.to(dtype), v.expand(x.shape[1:]).contiguous())
    if law.charge == "if" or (law.charge == "leaky" and law.leak == 1):
        spikes, v, v_seq = functional.if_multi_step(*inputs, *settings)
    elif law.charge == "leaky":  # its lif with an undecayed input
        spikes, v, v_seq = functional.lif_multi_step(*inputs, 1 / (1 - law.leak), False, *settings)
    else:
        spikes, v, v_seq = functional.lif_multi_step(*inputs, law.leak, True, *settings)
    return spikes.to(x.dtype), v, v_seq
