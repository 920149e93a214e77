"""Whether the Triton kernels are right on this GPU, before `auto` lets them compute anything there.

`refusal` compares them with the reference in a process of its own, for an illegal access ends a process's use of the GPU:
spikes equal those of the CPU, gradients within rounding, the same bits twice, nothing read or written around tensors. The
verdict is kept in the user's cache, for the sources of the kernels, GPU, driver, torch and Triton; a check that broke off is
made again by the next process.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_repro.kernels import Affine, Law, neuron
from snn_repro.kernels.limits import kept

log = logging.getLogger("snn_repro")
TIMEOUT = 600  # seconds; some twenty kernels are compiled
MARGIN, PATTERN = 64, 12345.0  # values around a tensor
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


class Wrong(Exception):
    """What a kernel did wrong."""


class Undecided(Exception):
    """The check did not come to a verdict."""


# ---------------------------------------------------------------- the verdict


def refusal(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str | None:
    """Why the kernels of this law, dtype and number of time steps must not be used on `device`; None where they are right."""
    case = dict(law=list(law), dtype=str(dtype).removeprefix("torch."), steps=steps)
    key = json.dumps([machine(device), case])
    try:
        return kept(key, lambda: [_ask(case | {"device": str(device)})], f"triton-{_sources()}.json")[0] or None
    except Undecided as undecided:
        return str(undecided)


@cache
def _sources() -> str:
    """Of all kernels: a changed one is checked again."""
    texts = (path.name.encode() + path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


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
    words = f"{case['law'][0]} in {case['dtype']} on {case['device']}"
    log.info(f"checking the fused spiking layers of {words}, once: a minute or two")
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
        try:
            compare(law, dtype, steps, device, shape, words)
        except Wrong as wrong:
            return f"a layer with {words or 'nothing else'}: {wrong}"
    return ""


# ---------------------------------------------------------------- the reference, on the CPU


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, s, law):
        ctx.save_for_backward(z)
        ctx.law = law
        return s.clone()

    @staticmethod
    def backward(ctx, g):
        (z,), width = ctx.saved_tensors, ctx.law.width
        e = torch.sigmoid(width * z)
        slopes = {
            "atan": width / 2 / (1 + (math.pi / 2 * width * z) ** 2),
            "sigmoid": width * e * (1 - e),
            "triangle": (width - z.abs()).clamp(min=0) / width**2,
        }
        return g * slopes[ctx.law.slope], None, None


def reference(z: Tensor, v0: Tensor | None, spikes: Tensor, law: Law) -> tuple[Tensor, Tensor, Tensor]:
    """A layer that fires as `spikes` [T, B, ...] say: these with their gradient, the last potential, all before a reset."""
    v = torch.zeros_like(z[0]) if v0 is None else v0.expand(z.shape[1:])
    fired, potentials = [], []
    for x, s in zip(z, spikes.to(z.dtype), strict=True):
        h = v + x if law.charge == "if" else v + (x - v) / law.leak if law.charge == "lif" else law.leak * v + x
        fired.append(_Spike.apply(h - law.v_threshold, s, law))
        potentials.append(h.detach())
        r = s if law.detach else fired[-1]
        v = h - law.v_threshold * r if law.v_reset is None else h * (1 - r) + law.v_reset * r
    return torch.stack(fired), v, torch.stack(potentials)


# ---------------------------------------------------------------- one case


def _framed(shape, strides, dtype, device, frames: list[Tensor], offset: int = 0) -> Tensor:
    """Memory of not-a-number with a pattern before and behind it, which goes to `frames`."""
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = torch.empty(span + 2 * MARGIN, dtype=dtype, device=device)
    if span < 2**24:  # else most of it is never touched
        memory.fill_(torch.nan)
    frames += [memory[: MARGIN + offset].fill_(PATTERN), memory[MARGIN + offset + span :].fill_(PATTERN)]
    return memory.as_strided(shape, strides, MARGIN + offset)


@contextlib.contextmanager
def guarded():
    """Within, whatever the kernels fill is framed, and the frames must be whole at the end (else Wrong). Yields the frames."""
    from snn_repro.kernels import neuron_triton

    before, frames = (neuron.empty_as, neuron_triton._new), []

    def empty_as(x, layout, lead=0, dtype=None):
        return _framed(x.shape[lead:], layout.strides[lead:], dtype or x.dtype, x.device, frames)

    def new(x, *shape):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return _framed(shape, strides, torch.float32, x.device, frames)

    neuron.empty_as, neuron_triton._new = empty_as, new
    try:
        yield frames
    finally:
        neuron.empty_as, neuron_triton._new = before
    if not all((frame == torch.tensor(PATTERN, dtype=frame.dtype)).all() for frame in frames):
        raise Wrong("it writes outside of its results")


def compare(law: Law, dtype: torch.dtype, steps: int, device: torch.device, shape: tuple, words: str) -> None:
    """Raise Wrong where the kernels' results differ from the reference's. Inputs are multiples of 1/64: few sums round."""
    has, draw, channels = words.split(), torch.Generator().manual_seed(0), shape[1]

    def grid(low, high, *size, of=""):
        return torch.randint(low, high, size, generator=draw) / 64 if not of or of in has else None

    x = grid(-64, 129, 1 if "static" in has else steps, *shape).to(dtype)
    if "last" in has:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    strides = x.stride()
    if "wide" in has and (device.type != "cuda" or torch.cuda.mem_get_info(device)[0] > 2**34):
        strides = (-(-(2**31) // max(1, steps - 1)), *strides[1:])
    given = {
        "x": x, "v0": grid(-32, 33, *shape[1:], of="imp"), "plus": grid(0, 3, steps, *shape, of="plus"),
        "weight": grid(32, 97, channels, of="norm"), "bias": grid(-32, 33, channels, of="norm"),
        "te": grid(32, 97, steps, of="te"),
    }  # fmt: skip
    if "plus" in has:
        given["plus"] = (given["plus"] * 64).to(dtype)
    mean, var = grid(-32, 33, channels, of="given"), grid(32, 97, channels, of="given")
    of_spikes, of_last = grid(-64, 65, steps, *shape).to(dtype), grid(-64, 65, *shape)

    def by_kernel() -> list[Tensor]:
        with guarded() as frames:

            def there(t, strides=None, offset=0):
                to = t if t is None else _framed(t.shape, strides or t.stride(), t.dtype, device, frames, offset)
                return t if t is None else to.copy_(t)

            a = {k: there(t) for k, t in given.items()} | {"x": there(x, strides, 1 if "offset" in has else 0)}
            wanted = [t.requires_grad_() for t in a.values() if t is not None]
            norm = Affine(a["weight"], a["bias"], a["te"], there(mean), there(var), 1e-5) if "norm" in has else None
            seen = a["x"] if norm else a["x"].expand(steps, *shape)
            s, v = neuron.update(seen, a["v0"], law, "triton", norm, steps, a["plus"])
            gs = there(of_spikes, strides if "static" not in has else None)
            found = torch.autograd.grad([s, v], wanted, [gs, of_last.to(device)])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return [t.detach().cpu() for t in (s, v, *found)]

    def by_reference(at: torch.dtype) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        a = {k: t if t is None else t.to(at).requires_grad_() for k, t in given.items()}
        z = a["x"]
        if "norm" in has:
            middle = z.mean((0, 1, 3, 4)) if mean is None else mean.to(at)
            z = z - middle.view(-1, 1, 1)
            square = z.square().mean((0, 1, 3, 4)) if var is None else var.to(at)
            z = z * (a["weight"] / (square + 1e-5).sqrt()).view(-1, 1, 1) + a["bias"].view(-1, 1, 1)
        z = z.expand(steps, *shape) * (a["te"].view(-1, 1, 1, 1, 1) if "te" in has else 1)
        s, v, h = reference(z, a["v0"], spikes, law)
        outputs, wanted = [s + a["plus"] if "plus" in has else s, v], [t for t in a.values() if t is not None]
        return v, h, torch.autograd.grad(outputs, wanted, [of_spikes.to(at), of_last.to(at)])

    results = by_kernel()
    if not all(map(torch.equal, results, by_kernel())):
        raise Wrong("two runs differ")
    spikes = results[0].float() - (given["plus"].float() if "plus" in has else 0)
    v, h, gradients = by_reference(torch.float64)
    near = (
        1e-4 if "norm" in has else 0.0
    )  # of the threshold rounding decides; without a norm the arithmetic is the same
    h = h if near else by_reference(torch.float32)[1]
    fires = h > law.v_threshold if law.strict else h >= law.v_threshold
    differ = ((fires != spikes) & ((h - law.v_threshold).abs() >= near)).any(0)
    if differ.any():
        raise Wrong(f"{differ.sum()} of {differ.numel()} neurons fire otherwise than on the CPU")
    if ((results[1].double() - v).abs() > 2e-5 * v.abs().max().clamp(min=1)).any():
        raise Wrong("its last potential is off")
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 1e-5)
    for found, wanted in zip(results[2:], gradients, strict=True):
        limit = (rounding if found.dtype == dtype else 2e-5) * wanted.abs().max().clamp(min=1e-3)
        wrong = ~((found.double() - wanted).abs() <= limit)
        if wrong.any():
            raise Wrong(f"{wrong.sum()} of {wrong.numel()} gradients are off")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    device = torch.device(asked["device"])
    print(json.dumps(examine(Law(*asked["law"]), getattr(torch, asked["dtype"]), asked["steps"], device)))
