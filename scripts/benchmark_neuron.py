"""The subcommands `neuron` and `startup` of benchmark.py, which sets the thread counts and reports the machine."""

import gc
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmark import timings

from snn_repro.errors import UserError

SHAPES = [(4, 32, 64, 32, 32), (10, 16, 128, 24, 24), (4, 32, 512, 4, 4), (8, 16, 64, 32, 32), (16, 8, 64, 32, 32)]
IMP_SHAPES = [(t, b, *s) for t in (4, 8, 16) for b, s in ((16, (512, 4, 4)), (16, (256, 8, 8)), (16, (64, 32, 32)))]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


# ------------------------------------------------------------------ the layer, as each library writes it


def plain_loop(x):
    """IF with soft reset and the ATan surrogate by autograd, as it is written in a tutorial."""
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        v = v + x_t
        z = v - 1.0
        smooth = torch.atan(math.pi * z) / math.pi
        s = (z >= 0).to(x.dtype) - smooth.detach() + smooth  # the step, with the derivative of its smooth stand-in
        v = v - s
        spikes.append(s)
    return torch.stack(spikes)


class SpikeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad / (1 + (math.pi * z) ** 2)


def surrogate_loop(x):
    """The same loop with the spike as an autograd.Function: what most code does."""
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        v = v + x_t
        s = SpikeFunction.apply(v - 1.0)
        v = v - s
        spikes.append(s)
    return torch.stack(spikes)


class LayerFunction(torch.autograd.Function):
    """All steps in one autograd.Function of PyTorch calls, with the backward pass by hand; saves h."""

    @staticmethod
    def forward(ctx, x):
        h, s = torch.empty_like(x), torch.empty_like(x)
        v = torch.zeros_like(x[0])
        for t in range(len(x)):
            torch.add(v, x[t], out=h[t])
            torch.ge(h[t], 1.0, out=s[t])
            v = torch.sub(h[t], s[t], out=v)
        ctx.save_for_backward(h)
        return s

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        gx = torch.empty_like(h)
        gv = torch.zeros_like(h[0])
        for t in reversed(range(len(h))):
            slope = h[t].sub(1.0).mul_(math.pi).square_().add_(1).reciprocal_()
            torch.addcmul(gv, grad[t] - gv, slope, out=gx[t])
            gv = gx[t]
        return gx


def layers(peer) -> tuple[dict[str, Callable], dict[str, str]]:
    """name -> function of x [T, B, ...]; and what is absent, with the reason."""
    from spikingjelly.activation_based import neuron, surrogate

    from snn_repro.neurons import build_neuron

    absent = {}
    theirs = neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")

    def spikingjelly(x):
        theirs.reset()
        return theirs(x)

    snntorch = peer("snntorch", "the neuron")
    leaky = snntorch.Leaky(beta=1.0, spike_grad=snntorch.surrogate.atan(alpha=2.0))

    def snntorch_layer(x):
        v, spikes = leaky.init_leaky(), []
        for x_t in x:
            s, v = leaky(x_t, v)
            spikes.append(s)
        return torch.stack(spikes)

    norse = peer("norse.torch", "the neuron")
    cell = norse.IAFCell(p=norse.IAFParameters(method="super", alpha=torch.tensor(2.0)))

    def norse_layer(x):
        state, spikes = None, []
        for x_t in x:
            s, state = cell(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)

    ours = build_neuron("if", backend="cpu")
    reference = build_neuron("if", backend="torch")
    found = {
        "ours": ours,
        "ours, backend=torch (the reference)": reference,
        "spikingjelly": spikingjelly,
        "snnTorch": snntorch_layer,
        "Norse (hard reset: other dynamics)": norse_layer,
        "loop, straight-through": plain_loop,
        "loop, autograd.Function a step": surrogate_loop,
        "autograd.Function of the layer": LayerFunction.apply,
    }
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        found["torch.compile of the loop with autograd.Function"] = torch.compile(surrogate_loop, dynamic=False)
    else:
        absent["torch.compile"] = "there is no C++ compiler on this machine"
    return found, absent


def both_passes(layer, x, grad, *parameters):
    """A call that runs forward and backward and leaves no gradient behind."""

    def call():
        torch.autograd.grad(layer(x), (x, *parameters), grad)

    return call


def saved_bytes(layer, x) -> float:
    """Bytes that autograd keeps a neuron-step, every storage once."""
    kept = {}

    def keep(tensor):
        if tensor.numel() > x[0].numel() // 2:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = layer(x)
    total = sum(kept.values()) / x.numel()
    del y
    return total


def copying(x) -> dict[str, Callable]:
    """Copies of x: 8 bytes a value, by torch and past the cache."""
    from numba import njit

    from snn_repro.kernels.lanes import LANES as lanes
    from snn_repro.kernels.lanes import load, store

    y = torch.empty_like(x)

    @njit(nogil=True)
    def past(to, source, n):
        for i in range(0, n, 4 * lanes):
            store(to + i, load(source + i, lanes, False), lanes, False, True)

    return {
        "copy, torch": lambda: y.copy_(x.detach()),
        "copy, around the cache": lambda: past(y.data_ptr(), x.data_ptr(), x.numel() * 4),
    }


NORMED_SHAPES = [(4, 8, 64, 32, 32), (4, 32, 64, 32, 32), (4, 8, 256, 8, 8), (4, 32, 512, 4, 4), (10, 2, 128, 48, 48)]


def normed_layers(shape):
    """name -> (function of x, x): a batch norm in training and the IF layer behind it; the norm's parameters; IMP.

    Ours and PyTorch's own operations get channels-last memory, what a CPU's convolutions give and take; spikingjelly's
    network, as it is built by default, contiguous memory.
    """
    from spikingjelly.activation_based import neuron, surrogate

    from snn_repro.models.blocks import Block
    from snn_repro.models.norms import BN
    from snn_repro.neurons import build_neuron

    steps, batch, channels, *size = shape
    x = torch.randn(shape).requires_grad_()
    folded = x.detach().flatten(0, 1).contiguous(memory_format=torch.channels_last)
    last = folded.unflatten(0, (steps, batch)).requires_grad_()
    norm, ours, with_imp = BN(channels), build_neuron("if"), build_neuron("if", imp=True, state_shape=shape[2:])
    theirs = neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")
    fire = Block().fire

    def spikingjelly(x):
        theirs.reset()
        return theirs(norm(x))

    found = {
        "ours": (lambda x: fire(x, norm, ours), last),
        "ours, with IMP": (lambda x: fire(x, norm, with_imp), last),
        "torch's norm, our neuron": (lambda x: ours(norm(x)), last),
        "torch's norm, spikingjelly's neuron": (spikingjelly, x),
        "the same, channels-last": (spikingjelly, last),
    }
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        weight, bias = norm.weight, norm.bias
        norm_and_loop = torch.compile(
            lambda x: surrogate_loop(
                torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, weight, bias, True).unflatten(0, x.shape[:2])
            ),
            dynamic=False,
        )
        found["torch.compile of the norm and the loop"] = (norm_and_loop, last)
    return found, [norm.weight, norm.bias], with_imp.imp


def bench_normed(rounds: int) -> list[dict]:
    """A batch norm and the layer behind it, forward and backward in training."""
    sections = []
    for shape in NORMED_SHAPES:
        torch.manual_seed(0)
        torch.compiler.reset()
        found, parameters, imp = normed_layers(shape)
        grads = {}
        for name, (_, x) in found.items():
            grads[name] = torch.empty_like(x).copy_(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        cases = {
            name: both_passes(f, x, grads[name], *parameters, *([imp] if "IMP" in name else []))
            for name, (f, x) in found.items()
        }
        spikes = {name: f(x).detach() for name, (f, x) in found.items()}
        times = timings(cases, rounds)
        rows = {}
        for name, values in times.items():
            low, middle, high = quartiles(values)
            rows[name] = {"seconds": middle, "quartiles": [low, high]}
            if name in found:
                rows[name]["saved_bytes"] = saved_bytes(*found[name])
                rows[name]["equal_spikes"] = (spikes[name] == spikes["ours"]).float().mean().item()
        sections.append({"shape": list(shape), "rows": rows})
        del found, cases, grads, spikes
        gc.collect()
    return sections


def bench_neuron(rounds: int, peer, machine, out: Path) -> None:
    """Forward and backward of one IF layer against its peers; the price of IMP; what is saved; the memory's own speed."""
    from snn_repro.data.batches import keep_freed_memory
    from snn_repro.neurons import build_neuron

    torch.set_num_threads(1)
    keep_freed_memory()
    load_before = os.getloadavg()[0]
    found, absent = layers(peer)
    sections = []
    for shape in SHAPES:
        torch.manual_seed(0)
        torch.compiler.reset()
        x = torch.randn(shape).requires_grad_()
        grad = torch.randn(shape)
        with torch.no_grad():
            same = {name: (layer(x) == found["ours"](x)).float().mean().item() for name, layer in found.items()}
        assert same["ours, backend=torch (the reference)"] == same["spikingjelly"] == 1, same
        copies = copying(x)
        times = timings({**{n: both_passes(f, x, grad) for n, f in found.items()}, **copies}, rounds)
        with torch.no_grad():
            forward = timings({n: lambda f=f, x=x: f(x) for n, f in found.items()}, max(rounds // 2, 5))
        copy = min(statistics.median(times[n]) for n in copies)
        floor = 20 / 8 * copy  # forward: read x, write s; backward: read x and the gradient, write one
        rows = {}
        for name, values in times.items():
            low, middle, high = quartiles(values)
            rows[name] = {"seconds": middle, "quartiles": [low, high], "over_floor": middle / floor}
            if name in found:
                rows[name] |= {
                    "forward_seconds": statistics.median(forward[name]),
                    "saved_bytes": saved_bytes(found[name], x),
                    "equal_spikes": same[name],
                }
        sections.append(
            {"shape": list(shape), "floor_seconds": floor, "copy_gb_s": 8 * x.numel() / copy / 1e9, "rows": rows}
        )
        del x, grad, copies
        gc.collect()
    overhead = []
    for shape in IMP_SHAPES:
        torch.manual_seed(0)
        x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
        without, with_imp = build_neuron("if"), build_neuron("if", imp=True, state_shape=shape[2:])
        cases = {"without": both_passes(without, x, grad), "with": both_passes(with_imp, x, grad, with_imp.imp)}
        values = timings(cases, 2 * rounds + 1)
        seconds = {name: statistics.median(v) for name, v in values.items()}
        overhead.append(
            {
                "timesteps": shape[0],
                "neurons": math.prod(shape[2:]),
                "batch": shape[1],
                "seconds_without": seconds["without"],
                "seconds_with": seconds["with"],
                "seconds_without_again": seconds["without again"],
            }
        )
    facts = machine("numpy", "numba", "torch", "spikingjelly", "snntorch", "norse")
    facts["load"] = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {facts['cores']} cores"
    facts |= {f"{name} is absent": reason for name, reason in absent.items()}
    write_neuron(facts, sections, bench_normed(rounds), overhead, rounds, out)


def write_neuron(facts, sections, normed, overhead, rounds, out: Path) -> None:
    lines = [
        "# The spiking layer",
        "",
        f"Made by `python scripts/benchmark.py neuron rounds={rounds}`: one IF layer (soft reset, ATan, float32), forward and",
        "backward. One thread, CPU time of the process, shuffled order, medians; `again` times ours twice (A/A control).",
        "malloc keeps freed memory, for all alike. Floor: the time to move 20 bytes a neuron-step (read x, write spikes; read",
        "x and the gradient, write one) at the speed of the faster copy in the same run.",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
    ]
    for section in sections:
        ours = section["rows"]["ours"]["seconds"]
        steps = math.prod(section["shape"])
        lines += [
            f"## [T, B, C, H, W] = {section['shape']}: {steps / 1e6:.1f} M neuron-steps, copy {section['copy_gb_s']:.1f} GB/s",
            "",
            "| layer | ms | quartiles | forward ms | time / ours | time / floor | saved bytes | equal spikes |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in section["rows"].items():
            low, high = row["quartiles"]
            cells = [name, f"{row['seconds'] * 1e3:.2f}", f"{low * 1e3:.2f}-{high * 1e3:.2f}"]
            copy = name.startswith("copy")
            cells += [f"{row['forward_seconds'] * 1e3:.2f}"] if "forward_seconds" in row else [""]
            cells += ["", ""] if copy else [f"{row['seconds'] / ours:.2f}", f"{row['over_floor']:.2f}"]
            cells += [f"{row['saved_bytes']:.1f}", f"{row['equal_spikes']:.2%}"] if "saved_bytes" in row else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    for section in normed:
        ours = section["rows"]["ours"]["seconds"]
        lines += [
            f"## A batch norm and the layer: [T, B, C, H, W] = {section['shape']}",
            "",
            "| norm and layer | ms | quartiles | time / ours | saved bytes a neuron-step | equal spikes |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, row in section["rows"].items():
            low, high = row["quartiles"]
            cells = [name, f"{row['seconds'] * 1e3:.2f}", f"{low * 1e3:.2f}-{high * 1e3:.2f}", f"{row['seconds'] / ours:.2f}"]
            cells += [f"{row['saved_bytes']:.1f}", f"{row['equal_spikes']:.3%}"] if "saved_bytes" in row else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "## Forward and backward with IMP over without",
        "",
        "| T | neurons | B | ms without | ms with | with / without | again / without (A/A) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in overhead:
        base = row["seconds_without"]
        lines.append(
            f"| {row['timesteps']} | {row['neurons']} | {row['batch']} | {base * 1e3:.2f} | {row['seconds_with'] * 1e3:.2f} "
            f"| {row['seconds_with'] / base:.3f} | {row['seconds_without_again'] / base:.3f} |"
        )
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": facts, "rounds": rounds, "sections": sections, "norm_and_neuron": normed, "imp_overhead": overhead}
    (out / "neuron.json").write_text(json.dumps(report, indent=1) + "\n")
    text = "\n".join(lines) + "\n"
    (out / "neuron.md").write_text(text)
    print(text)


# ------------------------------------------------------------------ startup

TRAIN = ("-m", "snn_repro.train")
ONE_STEP = (*TRAIN, "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1")
IMPORT, HELP, STEP, FIRST = "import torch", "train --help", "one training step", "the first command"


def checkout(folder: str) -> str:
    """What to call another checkout of this repository: its commit. Raises UserError where there is none."""
    if not Path(folder, "snn_repro", "train.py").is_file():
        raise UserError(
            f"base={folder} holds no snn_repro; give the folder of another checkout (git worktree add DIR COMMIT)"
        )
    asked = subprocess.run(["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return f"commit {asked.stdout.strip()}" if asked.returncode == 0 else "another checkout"


def bench_startup(rounds: int, machine, out: Path, base: str | None = None) -> None:
    """Fresh processes: what a command costs before it computes, what compiling adds once, and the README's first command.

    The first command runs with seed 0 in the first round, 1 in the second, and so on, so that its accuracy is a mean
    over seeds. base: the folder of another checkout, whose commands run in the same shuffled rounds.
    """
    ours = Path(__file__).resolve().parents[1]
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        accuracies: dict[str, list[float]] = {}

        def command(name: str, *arguments: str, tree: str | Path = ours, cold: bool = False) -> Callable[[int], None]:
            def call(seed: int) -> None:
                run = Path(tempfile.mkdtemp(dir=folder))
                keys = [] if name.startswith((HELP, IMPORT)) else [f"seed={seed}", f"hydra.run.dir={run}/run"]
                environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(run if cold else folder)}
                done = subprocess.run(
                    [sys.executable, *arguments, *keys], cwd=run, env=environment, capture_output=True, text=True
                )
                if done.returncode:
                    raise UserError(f"{name} ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
                if name.startswith(FIRST):
                    result = json.loads((run / "run" / "result.json").read_text())
                    accuracies.setdefault(name, []).append(result["acc_last"])

            return call

        cases = {
            name: command(name, *arguments, cold="compiled" in name)
            for name, arguments in {
                FIRST: TRAIN,
                f"{FIRST} again": TRAIN,
                f"{FIRST}, kernels not compiled yet": TRAIN,
                f"{FIRST}, logger.mode=disabled": (*TRAIN, "logger.mode=disabled"),
                STEP: ONE_STEP,
                HELP: (*TRAIN, "--help"),
                IMPORT: ("-c", IMPORT),
            }.items()
        }
        if base is not None:
            other = checkout(base)
            for name, arguments in ((FIRST, TRAIN), (STEP, ONE_STEP), (HELP, (*TRAIN, "--help"))):
                name = f"{name}, {other}"
                cases[name] = command(name, *arguments, tree=Path(base).resolve())
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for call in cases.values():
            call(0)  # compile, measure the convolutions, fill the system's file cache
        accuracies.clear()
        order = list(cases)
        shuffle = random.Random(0).shuffle
        for seed in range(rounds):
            shuffle(order)
            for name in order:
                used, start = os.times(), time.perf_counter()
                cases[name](seed)
                now = os.times()
                cpu = now.children_user + now.children_system - used.children_user - used.children_system
                times[name].append((cpu, time.perf_counter() - start))
    rows = {}
    for name, measured in times.items():
        cpu, wall = zip(*measured, strict=True)
        low, middle, high = quartiles(list(cpu))
        rows[name] = {"cpu_seconds": middle, "quartiles": [low, high], "wall_seconds": statistics.median(wall)}
        if name in accuracies:
            rows[name] |= {"accuracy": accuracies[name]}
    facts = machine("torch", "numba", "spikingjelly", "wandb", "hydra-core")
    facts["load"] = f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {facts['cores']} cores"
    write_startup(facts, rows, rounds, None if base is None else other, out)


def write_startup(facts, rows, rounds, other: str | None, out: Path) -> None:
    asked = f"startup rounds={rounds}" + (" base=DIR" if other else "")
    lines = [
        "# Start-up and the first command",
        "",
        f"Made by `python scripts/benchmark.py {asked}`: fresh processes with one thread, CPU time of the process and its",
        "children, shuffled order, medians; `again` times the first command twice (A/A control). The first command is the",
        f"README's, `python -m snn_repro.train`, with seeds 0 to {rounds - 1}: its accuracy is mean ± standard deviation.",
        *([f"{other} of this repository ran in the same rounds."] if other else []),
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        "| command | CPU s | quartiles | wall s | CPU time / ours | test accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        low, high = row["quartiles"]
        ours = next(n for n in (FIRST, STEP, HELP, IMPORT) if name.startswith(n))
        cells = [name, f"{row['cpu_seconds']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['wall_seconds']:.2f}"]
        cells += [f"{row['cpu_seconds'] / rows[ours]['cpu_seconds']:.2f}" if name != ours else ""]
        found = [100 * value for value in row.get("accuracy", [])]
        cells += [f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %" if found else ""]
        lines.append("| " + " | ".join(cells) + " |")
    if other:
        before, after = rows[f"{FIRST}, {other}"], rows[FIRST]
        ratios = [before[key] / after[key] for key in ("cpu_seconds", "wall_seconds")]
        sentence = (
            f"The first command takes {ratios[0]:.2f} times less CPU time than {other}, and {ratios[1]:.2f} times "
        )
        lines += ["", f"{sentence}less wall time."]
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": facts, "rounds": rounds, "base": other, "cases": rows}
    (out / "startup.json").write_text(json.dumps(content, indent=1) + "\n")
    text = "\n".join(lines) + "\n"
    (out / "startup.md").write_text(text)
    print(text)
