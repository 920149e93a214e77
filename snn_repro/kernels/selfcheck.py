"""Whether the Triton kernels are right on this GPU, before `auto` lets them compute anything there.

`refusal` has each kernel that a layer needs run against the reference, in a process of its own, for an illegal access ends a
process's use of the GPU: spikes equal those of the CPU, gradients within rounding, both memory orders, sizes that fill no tile,
strides beyond 2^31 values, not-a-number around inputs, nothing written around outputs, the same bits twice, and at least 1.5
times as fast. The verdict is kept in the user's cache, for the sources of the kernels, GPU, driver, torch and Triton.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from snn_repro.kernels import Affine, Law
from snn_repro.kernels.compiled import user_cache
from snn_repro.kernels.limits import kept

log = logging.getLogger("snn_repro")
TIMEOUT = 600  # seconds; some twenty kernels are compiled
LEAST_GAIN = 1.5
LOCK = "triton-check.lock"  # in the user's cache
MARGIN = 64  # values around a tensor
# What a user can mend, so that the next process asks again: a full GPU, a full disk, no C compiler or headers for Triton.
ENVIRONMENT = ("out of memory", "No space left", "C compiler", "Python.h")


class Undecided(Exception):
    """The check could not be run to its end, for a reason that says nothing of the kernels."""


# ---------------------------------------------------------------- the verdict


def refusal(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str | None:
    """Why the kernels of this law, dtype and number of time steps must not be used on `device`; None where they are right.

    The first process of a machine that asks runs the check, others wait for it.
    """
    case = dict(law=list(law), dtype=str(dtype).removeprefix("torch."), steps=steps)
    key = json.dumps([machine(device), case])
    try:
        with _alone():
            (reason,) = kept(key, lambda: [_ask(case | {"device": str(device)})], f"triton-{_sources()}.json")
    except Undecided as undecided:
        reason = str(undecided)
    return reason or None


@cache
def _sources() -> str:
    """Of all kernels: a changed one is checked anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


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


@contextlib.contextmanager
def _alone():
    """One process of a machine at a time, where the user's cache can be written to and locked."""
    from filelock import FileLock

    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, RuntimeError):
            user_cache().mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(user_cache() / LOCK))
        yield


def _command(case: dict) -> list[str]:
    return [sys.executable, "-m", "snn_repro.kernels.selfcheck", json.dumps(case)]


def _ask(case: dict) -> str:
    """What `examine` says of a case in a process of its own; that it broke off, where it did."""
    log.info(
        f"checking the fused spiking layers of {case['law'][0]} in {case['dtype']} on {case['device']}, once: a minute or two"
    )
    ours = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(
            _command(case), env=environment, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Undecided(f"the check did not end: {error}") from None
    if done.returncode == 0 and done.stdout.strip():
        return json.loads(done.stdout.splitlines()[-1])
    said = (done.stderr.strip().splitlines() or ["without a word"])[-1][:200]
    if any(words in done.stderr for words in ENVIRONMENT):
        raise Undecided(f"the check could not run ({said})")
    return f"the check's process ended with code {done.returncode} ({said})"


# ---------------------------------------------------------------- the reference, on the CPU


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, law):
        ctx.save_for_backward(z)
        ctx.law = law
        return (z > 0 if law.strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        (z,), width = ctx.saved_tensors, ctx.law.width
        if ctx.law.slope == "atan":
            slope = width / 2 / (1 + (math.pi / 2 * width * z) ** 2)
        elif ctx.law.slope == "sigmoid":
            s = torch.sigmoid(width * z)
            slope = width * s * (1 - s)
        else:
            slope = (width - z.abs()).clamp(min=0) / width**2
        return g * slope, None


def reference(z: Tensor, v0: Tensor | None, law: Law) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes [T, B, ...], the last potential and each before its reset [T, B, ...], of inputs z [T, B, ...], in z's dtype."""
    v = torch.zeros_like(z[0]) if v0 is None else v0.expand(z.shape[1:])
    spikes, potentials = [], []
    for x in z:
        h = v + x if law.charge == "if" else v + (x - v) / law.leak if law.charge == "lif" else law.leak * v + x
        s = _Spike.apply(h - law.v_threshold, law)
        r = s.detach() if law.detach else s
        v = h - law.v_threshold * r if law.v_reset is None else h * (1 - r) + law.v_reset * r
        spikes.append(s)
        potentials.append(h.detach())
    return torch.stack(spikes), v, torch.stack(potentials)


# ---------------------------------------------------------------- the cases


class Wrong(Exception):
    """What a kernel did wrong."""


def _cases(steps: int):
    """name: shape [B, C, H, W], and what differs. All inputs are multiples of 1/64, so that few sums round."""
    yield "a layer", dict(shape=(3, 5, 3, 3))
    yield "with IMP, channels last", dict(shape=(2, 64, 4, 4), last=True, imp=True)
    yield "with an input that repeats", dict(shape=(3, 5, 3, 3), static=True, imp=True)
    yield "with an unaligned input", dict(shape=(2, 16, 4, 4), offset=1)
    yield "with wide strides", dict(shape=(2, 5, 3, 3), wide=True)
    yield "with a norm", dict(shape=(3, 24, 5, 5), norm=True, last=True, imp=True, plus=True)
    yield "with a norm, channels first", dict(shape=(2, 8, 4, 8), norm=True, te=True, imp=True)
    yield "with a norm and an input that repeats", dict(shape=(3, 24, 5, 5), norm=True, last=True, static=True, te=True)
    yield "with a norm in evaluation", dict(shape=(3, 130, 3, 3), norm=True, last=True, given=True, plus=True)


def examine(law: Law, dtype: torch.dtype, steps: int, device: torch.device) -> str:
    """What a kernel does wrong on `device`, or ""."""
    try:
        for name, case in _cases(steps):
            try:
                _compare(law, dtype, steps, device, **case)
            except Wrong as wrong:
                raise Wrong(f"{name}: {wrong}") from None
        if device.type == "cuda":
            _gain(law, dtype, steps, device)
    except Wrong as wrong:
        return str(wrong)
    return ""


def _surrounded(x: Tensor, device, value: float, offset: int = 0, strides=None) -> Tensor:
    """x on a device, with `value` before and behind it in memory."""
    strides = x.stride() if strides is None else strides
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True))
    memory = torch.empty(span + 2 * MARGIN, dtype=x.dtype, device=device)
    if span < 2**24:  # else most of it is never touched
        memory.fill_(value)
    memory[:MARGIN], memory[-MARGIN:] = value, value
    return memory.as_strided(x.shape, strides, MARGIN + offset).copy_(x)


@contextlib.contextmanager
def guarded():
    """Within, whatever the kernels fill is surrounded by a pattern, which must still be there at the end (else Wrong)."""
    from snn_repro.kernels import neuron, neuron_triton

    before, memories = (neuron.empty_as, neuron_triton._new), []

    def around(shape, strides, dtype, device) -> Tensor:
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        memory = torch.full((span + 2 * MARGIN,), 123.0, dtype=dtype, device=device)
        memories.append(memory)
        memory[MARGIN:-MARGIN] = torch.nan  # what is read before it is written shows
        return memory.as_strided(shape, strides, MARGIN)

    def empty_as(x, layout, lead=0, dtype=None):
        return around(x.shape[lead:], layout.strides[lead:], dtype or x.dtype, x.device)

    def new(x, *shape):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return around(shape, strides, torch.float32, x.device)

    neuron.empty_as, neuron_triton._new = empty_as, new
    try:
        yield
    finally:
        neuron.empty_as, neuron_triton._new = before
    for memory in memories:
        if not ((memory[:MARGIN] == 123).all() and (memory[-MARGIN:] == 123).all()):
            raise Wrong("it writes outside of its results")


def _compare(
    law, dtype, steps, device, shape, last=False, imp=False, static=False, offset=0, wide=False, norm=False, te=False,
    given=False, plus=False,
):  # fmt: skip
    from snn_repro.kernels import neuron

    batch, channels, *plane = shape
    draw = torch.Generator().manual_seed(0)

    def grid(low, high, *size):
        return torch.randint(low, high, size, generator=draw) / 64

    x = grid(-64, 129, 1 if static else steps, *shape)
    strides = None
    if last:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    if wide and (device.type != "cuda" or torch.cuda.mem_get_info(device)[0] > 2**34):
        strides = (-(-(2**31) // max(1, steps - 1)), *x.stride()[1:])  # the last step begins beyond 2^31 values
    v0 = grid(-32, 33, channels, *plane) if imp else None
    numbers = [grid(32, 97, channels), grid(-32, 33, channels), grid(32, 97, steps) if te else None] if norm else []
    statistics = [grid(-32, 33, channels), grid(32, 97, channels)] if given else [None, None]
    more = grid(0, 3, steps, *shape) * 64 if plus else None
    weights, of_last = grid(-64, 65, steps, *shape), grid(-64, 65, *shape)

    def there(a, at=dtype, **how):
        return None if a is None else _surrounded(a.to(at), device, torch.nan, **how).requires_grad_()

    def run():
        inputs = [there(x, offset=offset, strides=strides), there(v0, torch.float32), there(more)]
        inputs += [there(a, torch.float32) for a in numbers]
        affine = None
        if norm:
            known = (None if a is None else a.to(device) for a in statistics)
            affine = Affine(*inputs[3:], *known, 1e-5)
        with guarded():
            seen = inputs[0] if norm else inputs[0].expand(steps, *shape)
            s, v = neuron.update(seen, inputs[1], law, "triton", affine, steps, inputs[2])
            gs = _surrounded(weights.to(dtype), device, torch.nan, strides=strides)
            wanted = [a for a in inputs if a is not None]
            found = torch.autograd.grad([s, v], wanted, [gs, of_last.to(device)])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return [a.detach().cpu() for a in (s, v, *found)]

    results = run()
    for a, b in zip(results, run(), strict=True):
        if not torch.equal(a, b):
            raise Wrong("two runs differ")

    def expected(at):
        given_x = x.to(dtype)
        wide_x, v, add, *own = (
            None if a is None else a.to(at).requires_grad_()
            for a in (given_x, v0, None if more is None else more.to(dtype), *numbers)
        )
        z = wide_x
        if norm:
            mean, var = (None if a is None else a.to(at).view(-1, 1, 1) for a in statistics)
            if mean is None:
                mean = z.mean((0, 1, 3, 4), keepdim=True)
                var = (z - mean).square().mean((0, 1, 3, 4), keepdim=True)
            z = (z - mean) / (var + 1e-5).sqrt() * own[0].view(-1, 1, 1) + own[1].view(-1, 1, 1)
        z = z.expand(steps, *shape)
        if te:
            z = z * own[2].view(-1, 1, 1, 1, 1)
        s, last_v, h = reference(z, v, law)
        spikes = s.detach()
        s = s if add is None else s + add
        wanted = [a for a in (wide_x, v, add, *own) if a is not None]
        of_v = of_last.to(at)
        return spikes, last_v, h, torch.autograd.grad([s, last_v], wanted, [weights.to(dtype).to(at), of_v])

    spikes, v, h, gradients = expected(torch.float64)
    if norm:  # neurons whose potential comes so near the threshold that rounding decides
        unsure = ((h - law.v_threshold).abs() < 1e-4).any(0)
    else:  # the same arithmetic: the same spikes as on the CPU, which may not be those of exact numbers
        exact, spikes = spikes, expected(torch.float32)[0].double()
        unsure = (exact != spikes).any(0)
    s = results[0].double() - (0 if more is None else more.double())
    differ = (s != spikes).any(0)
    if norm:
        differ &= ~unsure
    if differ.any():
        raise Wrong(f"{differ.sum()} of {differ.numel()} neurons fire otherwise than on the CPU")
    if ((results[1].double() - v).abs() > 2e-5 * v.abs().max().clamp(min=1))[~unsure].any():
        raise Wrong("its last potential is off")
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 1e-5)
    for i, (found, wanted) in enumerate(zip(results[2:], gradients, strict=True)):
        limit = (rounding if found.dtype == dtype else 2e-5) * wanted.abs().max().clamp(min=1e-3)
        wrong = ~((found.double() - wanted).abs() <= limit)
        if unsure.any():  # then only what one neuron alone decides can be compared
            wrong = wrong & ~unsure if i == 0 and not norm and not static else torch.zeros(())
        if wrong.any():
            raise Wrong(f"{wrong.sum()} of {wrong.numel()} gradients are off")


def _gain(law, dtype, steps, device) -> None:
    from snn_repro.kernels import neuron

    x = torch.randn(steps * 32, 64, 28, 28, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x = x.unflatten(0, (steps, 32)).requires_grad_()
    weight, bias = torch.ones(64, device=device), torch.zeros(64, device=device)

    def fused():
        return neuron.update(x, None, law, "triton", Affine(weight, bias, None, None, None, 1e-5), steps)[0]

    def apart():
        z = torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, weight, bias, True).unflatten(0, x.shape[:2])
        return reference(z.float(), None, law)[0].to(dtype)

    times = []
    for run in (fused, apart):
        found = []
        for _ in range(8):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            s = run()
            torch.autograd.grad(s, x, s)
            torch.cuda.synchronize(device)
            found.append(time.perf_counter() - start)
        times.append(min(found[3:]))
    if times[1] < LEAST_GAIN * times[0]:
        raise Wrong(f"it is only {times[1] / times[0]:.1f} times as fast as torch's own operations")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(
        json.dumps(
            examine(Law(*asked["law"]), getattr(torch, asked["dtype"]), asked["steps"], torch.device(asked["device"]))
        )
    )
