"""Check that the Triton kernels are correct on this GPU before `auto` uses them.

`refusal` compares them with the CPU's loops: equal spikes, gradients within rounding, bit-identical repetition. It runs
in a subprocess, since an illegal access ends a process's use of the GPU. The result is cached per kernel sources, GPU,
driver, torch and Triton; an interrupted check is repeated by the next process.
"""

import json
import logging
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_repro.kernels import Affine, Law, neuron
from snn_repro.kernels.compiled import fingerprint, measured_once

log = logging.getLogger("snn_repro")
TIMEOUT = 600  # seconds; about twenty kernels are compiled
CPU = torch.device("cpu")
CASES = (  # [B, C, H, W] and features: channels last, IMP, input equal at all steps, unaligned input, ...
    ((3, 5, 3, 3), ""),
    ((2, 64, 4, 4), "last imp"),
    ((3, 5, 3, 3), "static imp"),
    ((2, 16, 4, 4), "offset"),
    ((2, 5, 3, 3), "wide"),  # the last step is beyond 2^31 values
    ((3, 24, 5, 5), "last norm imp plus"),
    ((2, 8, 4, 8), "norm te imp"),
    ((3, 24, 5, 5), "last norm static te"),
    ((3, 130, 3, 3), "last norm given plus"),  # mean and variance given, as in evaluation
)


class Undecided(Exception):
    """The check did not finish."""


def refusal(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str | None:
    """Return why this case's kernels must not be used on `device`; None if they passed."""
    case = dict(law=list(law), dtype=str(dtype).removeprefix("torch."), steps=steps)
    key, file = json.dumps([machine(device), case]), f"triton-{fingerprint()}.json"
    try:
        return measured_once(key, lambda: [_run_subprocess(case | {"device": str(device)})], file)[0] or None
    except Undecided as undecided:
        return str(undecided)


@cache
def machine(device: torch.device) -> str:
    """Describe what the kernels' results depend on: GPU, driver, torch and Triton."""
    import triton

    gpu = "the interpreter"
    if device.type == "cuda":
        driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: "of ROCm")()
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        gpu = f"{torch.cuda.get_device_name(device)} ({capability}), driver {driver}"
    return f"{gpu}, torch {torch.__version__}, triton {triton.__version__}"


def _command(case: dict) -> list[str]:
    return [sys.executable, "-m", "snn_repro.kernels.selfcheck", json.dumps(case)]


def _run_subprocess(case: dict) -> str:
    """Run `examine` on a case in a subprocess. Raises Undecided if that fails."""
    log.info(f"checking the fused {case['law'][0]} layers in {case['dtype']}, once: 1 to 2 minutes")
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    how: Any = dict(env=os.environ | {"PYTHONPATH": path}, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    try:
        done = subprocess.run(_command(case), capture_output=True, text=True, **how)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Undecided(f"the check did not finish: {error}") from None
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise Undecided(f"the check's process ended with code {done.returncode} ({last})")
    return json.loads(done.stdout.splitlines()[-1])


def examine(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str:
    """Return how a kernel is wrong on `device`, or ""."""
    for shape, words in CASES:
        # A fused norm is not rounded: potentials near the threshold may fire differently, but hardly in both inputs.
        for seed in (0, 1) if "norm" in words else (0,):
            if not (wrong := compare(law, dtype, steps, device, shape, words, seed)):
                break
        else:
            return f"case '{words or 'plain'}': {wrong}"
    return ""


def with_strides(t: Tensor, device: torch.device, strides: tuple[int, ...], offset: int = 0) -> Tensor:
    """Copy t to a device with these strides, `offset` values after an allocation's start."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True))
    return torch.empty(offset + span, dtype=t.dtype, device=device).as_strided(t.shape, strides, offset).copy_(t)


def compare(
    law: Law, dtype: torch.dtype, steps: int, device: torch.device, shape: tuple[int, ...], words: str, seed: int = 0
) -> str:
    """Return how the kernels' results differ from the CPU's, or "".

    Inputs are multiples of 1/64, so few sums round.
    """
    has, draw, channels = words.split(), torch.Generator().manual_seed(seed), shape[1]

    def grid(low, high, *size, of=""):
        return torch.randint(low, high, size, generator=draw) / 64 if not of or of in has else None

    x, *given = (
        grid(-64, 129, 1 if "static" in has else steps, *shape).to(dtype), grid(-32, 33, *shape[1:], of="imp"),
        grid(32, 97, channels, of="norm"), grid(-32, 33, channels, of="norm"), grid(32, 97, steps, of="te"),
    )  # fmt: skip
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    plus = torch.randint(0, 3, (steps, *shape), generator=draw).to(dtype) if "plus" in has else None
    mean, var = grid(-32, 33, channels, of="given"), grid(32, 97, channels, of="given")
    of_spikes, of_last = grid(-64, 65, steps, *shape).to(dtype), grid(-64, 65, *shape)
    x = last if "last" in has else x
    strides = x.stride()
    if "wide" in has and (device.type != "cuda" or torch.cuda.mem_get_info(device)[0] > 2**34):
        strides = (-(-(2**31) // max(1, steps - 1)), *strides[1:])

    def layer(backend, x, plus, gs, at) -> list[Tensor]:
        """Spikes, last potential and all gradients."""
        v0, *own = (None if t is None else t.to(at).requires_grad_() for t in given)
        moments = (None if t is None else t.to(at) for t in (mean, var))
        norm = Affine(*own, *moments, 1e-5) if "norm" in has else None
        wanted = [t for t in (x.requires_grad_(), v0, *own) if t is not None]
        s, v = neuron.update(x if norm else x.expand(steps, *shape), v0, law, backend, norm, steps, plus)
        return [t.detach().cpu() for t in (s, v, *torch.autograd.grad([s, v], wanted, [gs, of_last.to(at)]))]

    def by_kernel() -> list[Tensor]:
        there = with_strides(x, device, strides, 1 if "offset" in has else 0)
        gs = of_spikes.to(device) if "static" in has else with_strides(of_spikes, device, strides)
        return layer("triton", there, None if plus is None else plus.to(device), gs, device)

    results = by_kernel()
    if not all(map(torch.equal, results, by_kernel())):
        return "two runs differ"
    spikes, *wanted = layer("cpu", (last if "norm" in has else x).float(), None, of_spikes.float(), CPU)
    differ = (results[0] != (spikes.to(dtype) if plus is None else plus + spikes.to(dtype))).any(0)
    if differ.any():
        return f"{differ.sum()} of {differ.numel()} neurons fire differently than on the CPU"
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 1e-5)
    for i, (found, there) in enumerate(zip(results[1:], wanted, strict=True)):
        limit = (rounding if i and found.dtype == dtype else 2e-5) * there.abs().max().clamp(min=1e-3 if i else 1)
        if (wrong := ~((found.float() - there).abs() <= limit)).any():
            return f"{wrong.sum()} of {wrong.numel()} {'gradients are wrong' if i else 'last potentials are wrong'}"
    return ""


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    device = torch.device(asked["device"])
    # Fills new memory with NaN; not in the interpreter, where most of a tensor is only mapped.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    print(json.dumps(examine(Law(*asked["law"]), getattr(torch, asked["dtype"]), asked["steps"], device)))
