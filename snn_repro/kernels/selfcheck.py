"""Whether the Triton kernels are right on this GPU, before `auto` lets them compute anything there.

`refusal` compares them with the CPU's loops in a process of its own, for an illegal access ends a process's use of the GPU:
spikes equal those of the CPU, gradients within rounding, the same bits twice. The verdict is kept in the user's cache, for the
sources of the kernels, GPU, driver, torch and Triton; a check that broke off is made again by the next process.
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
from snn_repro.kernels.compiled import fingerprint, kept

log = logging.getLogger("snn_repro")
TIMEOUT = 600  # seconds; some twenty kernels are compiled
CPU = torch.device("cpu")
CASES = (  # [B, C, H, W], and what there is: channels last, IMP, an input that repeats, does not begin at a vector, ...
    ((3, 5, 3, 3), ""),
    ((2, 64, 4, 4), "last imp"),
    ((3, 5, 3, 3), "static imp"),
    ((2, 16, 4, 4), "offset"),
    ((2, 5, 3, 3), "wide"),  # the last step begins beyond 2^31 values
    ((3, 24, 5, 5), "last norm imp plus"),
    ((2, 8, 4, 8), "norm te imp"),
    ((3, 24, 5, 5), "last norm static te"),
    ((3, 130, 3, 3), "last norm given plus"),  # mean and variance of evaluation
)


class Undecided(Exception):
    """The check did not come to a verdict."""


# ---------------------------------------------------------------- the verdict


def refusal(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str | None:
    """Why the kernels of this law, dtype and number of time steps must not be used on `device`; None where they are right."""
    case = dict(law=list(law), dtype=str(dtype).removeprefix("torch."), steps=steps)
    key = json.dumps([machine(device), case])
    try:
        return kept(key, lambda: [_ask(case | {"device": str(device)})], f"triton-{fingerprint()}.json")[0] or None
    except Undecided as undecided:
        return str(undecided)


@cache
def machine(device: torch.device) -> str:
    """What the kernels' results depend on here, in words."""
    import triton

    gpu = "the interpreter"
    if device.type == "cuda":
        driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: "of ROCm")()
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        gpu = f"{torch.cuda.get_device_name(device)} ({capability}), driver {driver}"
    return f"{gpu}, torch {torch.__version__}, triton {triton.__version__}"


def _command(case: dict) -> list[str]:
    return [sys.executable, "-m", "snn_repro.kernels.selfcheck", json.dumps(case)]


def _ask(case: dict) -> str:
    """What `examine` says of a case in a process of its own. Raises Undecided where that breaks off."""
    log.info(f"checking the fused spiking layers of {case['law'][0]} in {case['dtype']}, once: a minute or two")
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    how: Any = dict(env=os.environ | {"PYTHONPATH": path}, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    try:
        done = subprocess.run(_command(case), capture_output=True, text=True, **how)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Undecided(f"the check did not end: {error}") from None
    if done.returncode or not done.stdout.strip():
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1][:200]
        raise Undecided(f"the check's process ended with code {done.returncode} ({said})")
    return json.loads(done.stdout.splitlines()[-1])


def examine(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str:
    """What a kernel does wrong on `device`, or ""."""
    for shape, words in CASES:
        # A norm's output is not rounded in between: a potential within rounding of the threshold may fire otherwise, hardly in
        # both of two samples.
        for seed in (0, 1) if "norm" in words else (0,):
            if not (wrong := compare(law, dtype, steps, device, shape, words, seed)):
                break
        else:
            return f"a layer with {words or 'nothing else'}: {wrong}"
    return ""


# ---------------------------------------------------------------- one case


def moved(t: Tensor, device: torch.device, strides: tuple[int, ...], offset: int = 0) -> Tensor:
    """t on a device, in memory of these strides that begins `offset` values behind an allocation."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True))
    return torch.empty(offset + span, dtype=t.dtype, device=device).as_strided(t.shape, strides, offset).copy_(t)


def compare(
    law: Law, dtype: torch.dtype, steps: int, device: torch.device, shape: tuple[int, ...], words: str, seed: int = 0
) -> str:
    """In what the kernels' results differ from those of the CPU, or "". Inputs are multiples of 1/64: few sums round."""
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
        found = [s, v, *torch.autograd.grad([s, v], wanted, [gs, of_last.to(at)])]
        return [t.detach().cpu() for t in found]

    def by_kernel() -> list[Tensor]:
        there = moved(x, device, strides, 1 if "offset" in has else 0)
        gs = of_spikes.to(device) if "static" in has else moved(of_spikes, device, strides)
        return layer("triton", there, None if plus is None else plus.to(device), gs, device)

    results = by_kernel()
    if not all(map(torch.equal, results, by_kernel())):
        return "two runs differ"
    spikes, *wanted = layer("cpu", (last if "norm" in has else x).float(), None, of_spikes.float(), CPU)
    differ = (results[0] != (spikes.to(dtype) if plus is None else plus + spikes.to(dtype))).any(0)
    if differ.any():
        return f"{differ.sum()} of {differ.numel()} neurons fire otherwise than on the CPU"
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 1e-5)
    for i, (found, there) in enumerate(zip(results[1:], wanted, strict=True)):
        limit = (rounding if i and found.dtype == dtype else 2e-5) * there.abs().max().clamp(min=1e-3 if i else 1)
        wrong = ~((found.float() - there).abs() <= limit)
        if wrong.any():
            return f"{wrong.sum()} of {wrong.numel()} {'gradients are off' if i else 'last potentials are off'}"
    return ""


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    device = torch.device(asked["device"])
    # What is allocated is not-a-number until it is written; not in the interpreter, where most of a tensor is only mapped.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    print(json.dumps(examine(Law(*asked["law"]), getattr(torch, asked["dtype"]), asked["steps"], device)))
