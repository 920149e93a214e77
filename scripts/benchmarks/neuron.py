"""A spiking layer forward and backward, alone and behind a norm, beside other libraries; the price of IMP.

One IF layer (soft reset, ATan, float32). Floor: the time to move 20 bytes a neuron-step (read x, write spikes; read x and
the gradient, write one) at the speed of the faster copy in the same run. "As a library call" is the same layer with the
allocator and the threads as a process has them that sets neither, as a user's own program.
"""

import gc
import math
from collections.abc import Callable

import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from spikingjelly.activation_based import neuron, surrogate

from benchmarks._harness import HAS_COMPILER, in_own_process, peer, saved_bytes, threads_as_started, timings
from benchmarks._report import Report, Table
from snn_repro.data.batches import keep_freed_memory
from snn_repro.models.blocks import Block
from snn_repro.models.norms import BN
from snn_repro.neurons import build_neuron

# [T, B, C, H, W]
SHAPES = [(4, 32, 64, 32, 32), (10, 16, 128, 24, 24), (4, 32, 512, 4, 4), (8, 16, 64, 32, 32), (16, 8, 64, 32, 32)]
NORMED_SHAPES = [(4, 8, 64, 32, 32), (4, 32, 64, 32, 32), (4, 8, 256, 8, 8), (4, 32, 512, 4, 4), (10, 2, 128, 48, 48)]
IMP_SHAPES = [(t, 16, *size) for t in (4, 8, 16) for size in ((512, 4, 4), (256, 8, 8), (64, 32, 32))]
TOY = [(2, 2, 4, 8, 8)]
REFERENCE = "ours, backend=torch (the reference)"


def measure(rounds: int = 25, quick: bool = False) -> Report:
    absent: dict[str, str] = {}
    library = [_as_library(shape, rounds) for shape in (TOY if quick else SHAPES)]
    keep_freed_memory()
    layers = _layers(absent, quick)
    tables = [_layer(shape, layers, rounds) for shape in (TOY if quick else SHAPES)]
    tables += library
    tables += [_norm_and_layer(shape, rounds, quick) for shape in (TOY if quick else NORMED_SHAPES)]
    overhead = [_imp_overhead(shape, 2 * rounds + 1) for shape in (TOY if quick else IMP_SHAPES)]
    rows = {f"T={r['timesteps']}, {r['neurons']:,} neurons, B={r['batch']}": r for r in overhead}
    for row in rows.values():
        row["with / without"] = row["seconds_with"] / row["seconds_without"]
        row["again / without (A/A)"] = row["seconds_without_again"] / row["seconds_without"]
    tables.append(Table("Forward and backward with IMP and without", rows, "Goal: at most 1.05 from T=4 on."))
    how = "malloc keeps freed memory, for all alike, but in the calls as a library."
    packages = ("numpy", "numba", "torch", "spikingjelly", "snntorch", "norse")
    return Report("The spiking layer", how, tables, packages, absent, {"imp_overhead": overhead})


# ------------------------------------------------------------------ the layer, as each library writes it


def stepwise(step: Callable) -> Callable:
    """The layer x [T, B, ...] -> spikes of a function (x_t, state) -> (spikes, state); the first state is None."""

    def layer(x):
        state, spikes = None, []
        for x_t in x:
            s, state = step(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)

    return layer


def if_loop(spike: Callable) -> Callable:
    """IF with soft reset, step by step, as it is written in a tutorial."""

    def step(x, v):
        v = (torch.zeros_like(x) if v is None else v) + x
        s = spike(v - 1.0)
        return s, v - s

    return stepwise(step)


def straight_through(z):
    smooth = torch.atan(math.pi * z) / math.pi
    return (z >= 0).to(z.dtype) - smooth.detach() + smooth  # the step, with the derivative of its smooth stand-in


class SpikeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad / (1 + (math.pi * z) ** 2)


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


def _spikingjelly_layer(before: Callable | None = None) -> Callable:
    node = neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")

    def layer(x):
        node.reset()
        return node(before(x) if before else x)

    return layer


def _layers(absent: dict[str, str], quick: bool) -> dict[str, Callable]:
    """name -> function of x [T, B, ...]; what is missing goes into `absent` with the reason."""
    found = {
        "ours": build_neuron("if", backend="cpu"),
        REFERENCE: build_neuron("if", backend="torch"),
        "spikingjelly": _spikingjelly_layer(),
    }
    snntorch = peer("snntorch", "the neuron", absent if quick else None)
    if snntorch:
        leaky = snntorch.Leaky(beta=1.0, spike_grad=snntorch.surrogate.atan(alpha=2.0))
        found["snnTorch"] = stepwise(lambda x, v: leaky(x, leaky.init_leaky() if v is None else v))
    norse = peer("norse.torch", "the neuron", absent if quick else None)
    if norse:
        cell = norse.IAFCell(p=norse.IAFParameters(method="super", alpha=torch.tensor(2.0)))
        found["Norse (hard reset: other dynamics)"] = stepwise(cell)
    loop = if_loop(SpikeFunction.apply)  # what most code does
    found["loop, straight-through"] = if_loop(straight_through)
    found["loop, autograd.Function a step"] = loop
    found["autograd.Function of the layer"] = LayerFunction.apply
    if quick:
        absent["torch.compile"] = "it takes longer than quick=true allows"
    elif HAS_COMPILER:
        found["torch.compile of the loop with autograd.Function"] = torch.compile(loop, dynamic=False)
    else:
        absent["torch.compile"] = "there is no C++ compiler on this machine"
    return found


def _forget_compiled(layers: dict) -> None:
    """A shape after another would make torch.compile look for a graph for all, or give up."""
    if any("torch.compile" in name for name in layers):
        torch.compiler.reset()


def both_passes(layer: Callable, x, grad, *parameters) -> Callable[[], None]:
    """A call that runs forward and backward and leaves no gradient behind."""

    def call() -> None:
        torch.autograd.grad(layer(x), (x, *parameters), grad)

    return call


@intrinsic
def _copy_64_bytes(context, to, source):
    """Copy 64 bytes between addresses that are multiples of 64, the store around the cache."""

    def generate(context, builder, signature, addresses):
        vector = ir.VectorType(ir.FloatType(), 16).as_pointer()
        to, source = (builder.inttoptr(address, vector) for address in addresses)
        store = builder.store(builder.load(source, align=64), to, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@njit(nogil=True)
def _copy_around(to, source, size):
    for i in range(0, size, 64):
        _copy_64_bytes(to + i, source + i)


# ------------------------------------------------------------------ what is measured


def _layer(shape: tuple[int, ...], layers: dict[str, Callable], rounds: int) -> Table:
    torch.manual_seed(0)
    _forget_compiled(layers)
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    with torch.no_grad():
        spikes = layers["ours"](x)
        same = {name: (layer(x) == spikes).float().mean().item() for name, layer in layers.items()}
    assert same[REFERENCE] == same["spikingjelly"] == 1, same
    y = torch.empty_like(x)
    copies = {
        "copy, torch": lambda: y.copy_(x.detach()),
        "copy, around the cache": lambda: _copy_around(y.data_ptr(), x.data_ptr(), x.numel() * 4),
    }
    rows = timings({**{name: both_passes(f, x, grad) for name, f in layers.items()}, **copies}, rounds)
    with torch.no_grad():
        forward = timings({name: lambda f=f: f(x) for name, f in layers.items()}, max(rounds // 2, 3))
    copy = min(rows[name]["cpu_seconds"] for name in copies)
    floor = 20 / 8 * copy  # forward: read x, write s; backward: read x and the gradient, write one
    for name, row in rows.items():
        row["over_floor"] = row["cpu_seconds"] / floor
        if name in layers:
            row["forward_seconds"] = forward[name]["cpu_seconds"]
            row["saved_bytes"] = saved_bytes(layers[name], x) / x.numel()
            row["equal_spikes"] = same[name]
    title = f"[T, B, C, H, W] = {list(shape)}: {x.numel() / 1e6:.1f} M neuron-steps"
    note = (
        f"Copy at {8 * x.numel() / copy / 1e9:.1f} GB/s. Goal: 6x spikingjelly, 1.5x torch.compile, 1.7 of the floor."
    )
    return Table(title, rows, note)


def _as_library(shape: tuple[int, ...], rounds: int) -> Table:
    with threads_as_started():
        rows, threads = in_own_process(_library_call, shape, rounds)
    title = f"As a library call, {threads} threads: [T, B, C, H, W] = {list(shape)}"
    return Table(title, rows, "Goal: 6x spikingjelly.")


def _library_call(shape: tuple[int, ...], rounds: int) -> tuple[dict[str, dict], int]:
    """Run in a fresh process, of which nothing is set."""
    torch.manual_seed(0)
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    layers = {"ours": build_neuron("if"), "spikingjelly": _spikingjelly_layer()}
    rows = timings({name: both_passes(layer, x, grad) for name, layer in layers.items()}, rounds)
    for row in rows.values():
        row["wall_over_first"] = row["wall_seconds"] / rows["ours"]["wall_seconds"]
    return rows, torch.get_num_threads()


def _norm_and_layer(shape: tuple[int, ...], rounds: int, quick: bool) -> Table:
    """A batch norm in training and the IF layer behind it.

    Ours and PyTorch's own operations get channels-last memory, what a CPU's convolutions give and take; spikingjelly's
    network, as it is built by default, contiguous memory.
    """
    gc.collect()
    torch.manual_seed(0)
    x = torch.randn(shape).requires_grad_()
    folded = x.detach().flatten(0, 1).contiguous(memory_format=torch.channels_last)
    last = folded.unflatten(0, shape[:2]).requires_grad_()
    norm, ours, with_imp = BN(shape[2]), build_neuron("if"), build_neuron("if", imp=True, state_shape=shape[2:])
    fire, spikingjelly, loop = Block().fire, _spikingjelly_layer(norm), if_loop(SpikeFunction.apply)

    def norm_and_loop(x):
        folded = torch.nn.functional.batch_norm(x.flatten(0, 1), None, None, norm.weight, norm.bias, True)
        return loop(folded.unflatten(0, x.shape[:2]))

    layers: dict[str, tuple[Callable, torch.Tensor]] = {
        "ours": (lambda x: fire(x, norm, ours), last),
        "ours, with IMP": (lambda x: fire(x, norm, with_imp), last),
        "torch's norm, our neuron": (lambda x: ours(norm(x)), last),
        "torch's norm, spikingjelly's neuron": (spikingjelly, x),
        "the same, channels-last": (spikingjelly, last),
    }
    if HAS_COMPILER and not quick:
        layers["torch.compile of the norm and the loop"] = (torch.compile(norm_and_loop, dynamic=False), last)
    _forget_compiled(layers)
    cases, grad = {}, torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for name, (layer, x) in layers.items():
        parameters = [norm.weight, norm.bias, *([with_imp.imp] if "IMP" in name else [])]
        cases[name] = both_passes(layer, x, torch.empty_like(x).copy_(grad), *parameters)
    spikes = {name: layer(x).detach() for name, (layer, x) in layers.items()}
    rows = timings(cases, rounds)
    for name, (layer, x) in layers.items():
        rows[name]["saved_bytes"] = saved_bytes(layer, x) / x.numel()
        rows[name]["equal_spikes"] = (spikes[name] == spikes["ours"]).float().mean().item()
    return Table(f"A batch norm and the layer: [T, B, C, H, W] = {list(shape)}", rows)


def _imp_overhead(shape: tuple[int, ...], rounds: int) -> dict:
    torch.manual_seed(0)
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    without, with_imp = build_neuron("if"), build_neuron("if", imp=True, state_shape=shape[2:])
    cases = {"without": both_passes(without, x, grad), "with": both_passes(with_imp, x, grad, with_imp.imp)}
    seconds = {name: row["cpu_seconds"] for name, row in timings(cases, rounds).items()}
    facts = {"timesteps": shape[0], "neurons": math.prod(shape[2:]), "batch": shape[1]}
    return facts | {f"seconds_{name.replace(' ', '_')}": value for name, value in seconds.items()}
