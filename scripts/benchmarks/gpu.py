"""Check and time this project on one GPU in under 15 minutes; the report can be contributed.

The kernels' self-check, outputs of every neuron by every backend against the CPU, losses of three steps against those
of tests/golden, then whole steps, spiking layers and batches beside spikingjelly's Triton and torch.compile. Each part
has its own process: one that crashes or takes too long is a line of the report. What is not right comes first.

Writes results/contributed/gpu/GPU-DATE.json and .md; CONTRIBUTING.md says how to send them. quick=true runs toy sizes.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import data, neuron, step
from benchmarks._golden import first_losses, golden_losses
from benchmarks._harness import Place, in_own_process, in_words, place
from benchmarks._report import Report, Table
from snn_repro.distributed import cores
from snn_repro.errors import UserError
from snn_repro.kernels import BACKENDS, KERNELS, selfcheck
from snn_repro.neurons import NEURONS, build_neuron

FOLDER = Path(__file__).resolve().parents[2] / "results" / "contributed" / "gpu"
MINUTES, LIMIT = 14.5, 300  # of the whole, and seconds of a part
LOSSES_WITHIN, GRADIENTS_WITHIN, SPIKES = 0.01, 1e-3, 0.999  # see the notes of the tables
CHECK_MEMORY = 2**34 + 2**33  # bytes of the GPU that a self-check may need
FIRST_CHECKS = tuple(("if", dtype, steps) for dtype in (torch.float16, torch.float32) for steps in (4, 10))
TOY_CHECKS = (("if", torch.float32, 2),)
MORE_CHECKS = (("if", torch.bfloat16, 4), ("lif", torch.float16, 4), ("leaky", torch.float16, 4))


def measure(rounds: int = 9, quick: bool = False, device: str = "cuda") -> Report:
    """Run all parts and return their report; raises UserError without a GPU."""
    if not (torch.cuda.is_available() and device.startswith("cuda")):
        raise UserError(f"benchmark gpu needs a GPU, but torch sees none or device={device} is not cuda or cuda:N")
    on, start = place(device), time.monotonic()
    os.environ[neuron.THEIR_CHOICE] = "triton"
    tables: list[Table] = []
    absent: dict[str, str] = {}
    wrong: list[str] = []
    for name in PARTS:
        left = 60 * MINUTES - (time.monotonic() - start)
        print(f"# {name}", file=sys.stderr, flush=True)
        try:
            if left < 10:
                raise TimeoutError(f"{MINUTES} minutes were over")
            asked = (name, device, 1 if quick else rounds, quick)
            part = run_part(*asked) if quick else in_own_process(run_part, *asked, limit=min(left, LIMIT))
        except Exception as error:
            wrong.append(f"{name}: no result ({in_words(error)})")
            continue
        tables += [Table(f"{name}: {t.title}", t.rows, t.note, t.unit, t.wrong) for t in part.tables]
        absent |= part.absent
    title = f"Report of one GPU: {on.facts['GPU']}"
    how = f"Parts: {', '.join(PARTS)}; the cases of a table take turns. spikingjelly runs with {neuron.THEIR_CHOICE}=triton."
    slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    packages = ("torch", "triton", "spikingjelly", "snntorch", "norse", "numpy", "snn_repro")
    return Report(
        title, how, tables, packages, absent, gpu=on.facts, wrong=wrong, name=f"{slug}-{time.strftime('%Y-%m-%d')}"
    )


def run_part(name: str, device: str, rounds: int, quick: bool) -> Report:
    """One part, in the process that it may crash."""
    torch.backends.cudnn.allow_tf32 = name in TIMED  # as in training; equality is one of float32
    return PARTS[name](place(device), rounds, quick)


# ------------------------------------------------------------------ what must be right


def self_checks(on: Place, cases: tuple) -> Report:
    """Verdicts on the fused layers; those of this GPU, driver and versions that are known are not repeated."""
    device = torch.device(on.device)

    def verdict(case: tuple) -> tuple[str | None, float]:
        family, dtype, steps = case
        layer: Any = build_neuron(family)
        start = time.monotonic()
        return selfcheck.refusal(layer.law(), dtype, steps, device), time.monotonic() - start

    at_once = max(1, min(len(cases), cores(), torch.cuda.mem_get_info(device)[0] // CHECK_MEMORY))
    with ThreadPoolExecutor(at_once) as pool:
        found = [*pool.map(verdict, cases)]
    names = [f"{family}, {str(dtype).removeprefix('torch.')}, T={steps}" for family, dtype, steps in cases]
    table = Table("fused layers", {}, unit="s")
    for name, (reason, took) in zip(names, found, strict=True):
        table.rows[name] = {"verdict": "failed" if reason else "passed", "wall_seconds": took}
        table.wrong += [f"Self-check of {name}: {reason}; kernels=auto runs PyTorch instead"] if reason else []
    return Report("", "", [table], ())


def equality(on: Place, rounds: int, quick: bool) -> Report:
    """Spikes and gradients of every neuron by every backend, float32, against the reference on the CPU."""
    shape = (4, 2, 4, 4, 4) if quick else (4, 8, 32, 8, 8)
    note = (
        f"Spikes must be equal; by PyTorch alone, which rounds differently on a GPU, {SPIKES:.1%} of them. Where all are, "
        f"no gradient may be off by more than {GRADIENTS_WITHIN:g} of the largest."
    )
    table = Table(f"neurons, [T, B, C, H, W] = {list(shape)}", {}, note)
    for family, kind in NEURONS.items():
        for backend in (b for b in BACKENDS if b not in ("auto", "cpu")):
            case = f"{family}, backend={backend}"
            try:
                found = _outcome(family, backend, on.device, shape, "imp_init" in kind.settings)
                there = _outcome(family, "torch", "cpu", shape, "imp_init" in kind.settings)
            except UserError:  # no such kernel
                continue
            except Exception as error:
                table.wrong.append(f"{case} does not run ({in_words(error)})")
                continue
            equal = torch.isclose(found[0], there[0], rtol=1e-5).float().mean().item()
            gaps = [(a - b).abs().max() / b.abs().max().clamp(min=1e-6) for a, b in zip(found, there, strict=True)]
            gap = torch.stack(gaps[1:]).max().item()  # NaN if any is
            table.rows[case] = {"equal_spikes": equal, "largest gap of a gradient": f"{gap:.1e}"}
            if equal < (SPIKES if backend == "torch" else 1) or (equal == 1 and not gap <= GRADIENTS_WITHIN):
                table.wrong.append(f"{case} differs from the CPU: {equal:.3%} equal spikes, gradients off by {gap:.1e}")
    return Report("", "", [table], ())


def _outcome(family: str, backend: str, device: str, shape: tuple[int, ...], imp: bool) -> list[torch.Tensor]:
    """Spikes and gradients of input and parameters, on the CPU."""
    draw = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
    torch.manual_seed(0)
    layer = build_neuron(family, imp, shape[2:], shape[0], backend).to(device)
    spikes = layer(x.requires_grad_())
    learned = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(spikes, [x, *learned], weights, allow_unused=True)
    return [t.detach().float().cpu() for t in (spikes, *gradients) if t is not None]


def losses(on: Place, rounds: int, quick: bool) -> Report:
    """Losses of three steps of a small network against the committed ones of a CPU."""
    golden = golden_losses()
    every = {p: v for p, v in golden.items() if p[1] == "sdt" or p[0] == "if_imp"}
    chosen = {pair: golden[pair][:1] for pair in (("if", "sdt"), ("clif", "sdt"))} if quick else every
    note = f"Losses of consecutive steps; each must be within {LOSSES_WITHIN:.0%} of tests/golden/losses.txt."
    table = Table("first steps on a fixed batch, float32", {}, note)
    for (family, loss), wanted in chosen.items():
        for kernels in (k for k in ("off", "compile", "triton") if k in KERNELS):
            case = f"{family}, loss={loss}, kernels={kernels}"
            try:
                found = first_losses(family, loss, on.device, kernels, len(wanted))
            except UserError:  # no such kernel
                continue
            except Exception as error:
                table.wrong.append(f"{case} does not run ({in_words(error)})")
                continue
            gap = (torch.tensor(found) / torch.tensor(wanted) - 1).abs().max().item()
            table.rows[case] = {"losses": ", ".join(f"{a:.5f}" for a in found), "largest gap": f"{gap:.1e}"}
            if not gap <= LOSSES_WITHIN:
                table.wrong.append(f"{case}: losses {table.rows[case]['losses']} instead of {wanted}")
    return Report("", "", [table], ())


# ------------------------------------------------------------------ the parts


def layers(on: Place, rounds: int, quick: bool, shape: tuple[int, ...]) -> Report:
    """The benchmark `neuron` of one shape."""
    absent: dict[str, str] = {}
    return neuron.on_gpu(on, rounds, quick, absent, [shape])


TIMED: dict[str, Callable[[Place, int, bool], Report]] = {
    "steps of SEW-ResNet-18": lambda on, rounds, quick: step.on_gpu(on, rounds, quick, ((step.LARGE, 64),)),
    "steps of VGG-48": lambda on, rounds, quick: step.on_gpu(on, rounds, quick, ((step.VGG, 32),)),
    "layers of SEW-ResNet-18": lambda on, rounds, quick: layers(on, rounds, quick, neuron.GPU_SHAPES[0]),
    "layers of VGG-48": lambda on, rounds, quick: layers(on, rounds, quick, neuron.GPU_SHAPES[2]),
    "data": data.on_gpu,
}
PARTS: dict[str, Callable[[Place, int, bool], Report]] = {  # the most important first
    "self-check": lambda on, _, quick: self_checks(on, TOY_CHECKS if quick else FIRST_CHECKS),
    "equality with the CPU": equality,
    "losses": losses,
    **TIMED,
    "self-check of more layers": lambda on, _, quick: self_checks(on, TOY_CHECKS if quick else MORE_CHECKS),
}
