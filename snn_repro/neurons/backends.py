"""Who computes a spiking layer: the plain PyTorch reference, our fused kernels, or spikingjelly.

    torch         `dynamics.update`: the reference, every dtype and device
    cpu           `cpu.py`: one compiled pass over memory, float32 and bfloat16 on the CPU
    triton        `cuda.py`: the same on CUDA, float32, bfloat16 and float16
    spikingjelly  spikingjelly's own multi-step functions, where they mean the same as ours
    auto          cpu where it applies, else torch; triton is untested on a GPU and must be asked for

All give the same spikes for the same input; gradients and potentials agree to rounding.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from snn_repro.errors import UserError
from snn_repro.neurons import dynamics as reference
from snn_repro.neurons.dynamics import Dynamics
from snn_repro.neurons.surrogate import Spike

BACKENDS = ("auto", "torch", "cpu", "triton", "spikingjelly")

_CPU_DTYPES = (torch.float32, torch.bfloat16)
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


def resolve_backend(backend: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """What `backend` comes to for inputs of this device type ("cpu", "cuda", ...) and dtype.

    Raises UserError where a backend asked for by name cannot run there.
    """
    if backend == "auto":
        if device == "cpu" and dtype in _CPU_DTYPES:
            return "cpu"
        return "torch"  # on CUDA too: the Triton kernels have not met a GPU yet, so they must be asked for by name
    if backend == "cpu" and (device != "cpu" or dtype not in _CPU_DTYPES):
        raise UserError(
            f"neuron.backend=cpu computes float32 and bfloat16 on the CPU, not {_name(dtype)} on {device}; use auto"
        )
    if backend == "triton":
        if not _installed("triton"):
            raise UserError("neuron.backend=triton needs the package triton; install it, or use auto")
        from snn_repro.neurons import cuda

        if dtype not in _TRITON_DTYPES or device not in cuda.DEVICES:
            raise UserError(
                f"neuron.backend=triton computes float32, bfloat16 and float16 on a CUDA device, not "
                f"{_name(dtype)} on {device}; use auto"
            )
    return backend


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_backend(backend: str, dynamics: Dynamics) -> None:
    """Raise UserError where spikingjelly is asked for a neuron that it does not have."""
    if backend != "spikingjelly":
        return
    if dynamics.spike.fire_at == "gt":
        raise UserError("neuron.backend=spikingjelly fires at h >= V_th only; use neuron.fire_at=ge or another backend")
    if dynamics.family != "if" and dynamics.v_reset:
        raise UserError(
            f"neuron.backend=spikingjelly leaks towards v_reset, ours towards 0: v_reset={dynamics.v_reset} must be 0 there"
        )


def run(
    x: Tensor, v0: Tensor | None, dynamics: Dynamics, backend: str = "auto", store_v_seq: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`dynamics.update` by a backend: the same arguments and results.

    Recording every potential (store_v_seq), or a spike function that is not ours, is the reference's work.
    """
    chosen = resolve_backend(backend, x.device.type, x.dtype)
    if chosen in ("cpu", "triton") and not store_v_seq and isinstance(dynamics.spike, Spike):
        from snn_repro.neurons import fused

        return *fused.update(x, v0, dynamics, chosen), None
    if chosen == "spikingjelly":
        return _spikingjelly(x, v0, dynamics, store_v_seq)
    return reference.update(x, v0, dynamics, store_v_seq)


def _spikingjelly(x: Tensor, v0: Tensor | None, dynamics: Dynamics, store_v_seq: bool):
    from spikingjelly.activation_based import functional, surrogate

    check_backend("spikingjelly", dynamics)
    dtype = torch.promote_types(x.dtype, torch.float32)
    v = torch.zeros((), dtype=dtype, device=x.device) if v0 is None else v0.to(dtype)
    spike = dynamics.spike
    step = {
        "atan": surrogate.ATan,
        "sigmoid": surrogate.Sigmoid,
        "triangle": lambda gamma: surrogate.PiecewiseQuadratic(1 / gamma),
    }[spike.surrogate](spike.width)
    settings = (dynamics.v_threshold, dynamics.v_reset, step, dynamics.detach_reset, store_v_seq)
    inputs = (x.to(dtype), v.expand(x.shape[1:]).contiguous())
    if dynamics.family == "if" or (dynamics.family == "leaky" and dynamics.retain == 1):
        spikes, v, v_seq = functional.if_multi_step(*inputs, *settings)
    elif dynamics.family == "leaky":  # its lif with an undecayed input
        spikes, v, v_seq = functional.lif_multi_step(*inputs, 1 / (1 - dynamics.retain), False, *settings)
    else:
        spikes, v, v_seq = functional.lif_multi_step(*inputs, dynamics.tau, True, *settings)
    return spikes.to(x.dtype), v, v_seq
