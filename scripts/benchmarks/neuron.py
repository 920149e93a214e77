"""Forward and backward of a spiking layer, with norm and IMP, against other libraries.

One IF layer (soft reset, ATan, float32). Floor: the time to move 20 bytes per neuron-step (read x, write spikes; read x
and the gradient, write one) at the speed of the faster copy in the same run. "As a library call" is the same layer with
the default allocator and threads of a process, as in a user's own program.

"Every neuron" is each family with its published settings on one thread, as a library call: PyTorch's reference, the
steps compiled (kernels=compile), our kernel where there is one, and spikingjelly's node of that name where it has one.

device=cuda measures the same on a GPU, in float32 and float16, with each of spikingjelly's implementations there and a
ReLU on the same tensor. The first call verifies our kernels on that GPU, which takes a minute or two.
"""

import copy
import gc
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from spikingjelly.activation_based import functional, neuron, surrogate

from benchmarks._harness import (
    CPU,
    HAS_COMPILER,
    Place,
    Seconds,
    clocked,
    in_own_process,
    peer,
    place,
    saved_bytes,
    seconds,
    threads_as_started,
    timings,
)
from benchmarks._report import Report, Table
from snn_repro.data.batches import keep_freed_memory
from snn_repro.kernels import neuron as fused
from snn_repro.models.blocks import Block
from snn_repro.models.norms import BN
from snn_repro.neurons import NEURONS, build_neuron

# [T, B, C, H, W]
SHAPES = [(4, 32, 64, 32, 32), (10, 16, 128, 24, 24), (4, 32, 512, 4, 4), (8, 16, 64, 32, 32), (16, 8, 64, 32, 32)]
NORMED_SHAPES = [(4, 8, 64, 32, 32), (4, 32, 64, 32, 32), (4, 8, 256, 8, 8), (4, 32, 512, 4, 4), (10, 2, 128, 48, 48)]
IMP_SHAPES = [(t, 16, *size) for t in (4, 8, 16) for size in ((512, 4, 4), (256, 8, 8), (64, 32, 32))]
GPU_SHAPES = [(4, 192, 64, 56, 56), (4, 256, 64, 32, 32), (10, 32, 128, 24, 24)]  # whole batches of the paper's rows
FAMILY_SHAPE = (4, 8, 64, 16, 16)
TOY = [(2, 2, 4, 8, 8)]
REFERENCE = "ours, backend=torch (the reference)"
THEIR_CHOICE = "SJ_IF_CUDA_IMPLEMENTATION"  # read when spikingjelly is imported


def measure(rounds: int = 25, quick: bool = False, device: str = "cpu") -> Report:
    """Run the benchmark and return its report."""
    absent: dict[str, str] = {}
    if device != "cpu":
        return on_gpu(place(device), rounds, quick, absent)
    library = [_as_library(shape, rounds) for shape in (TOY if quick else SHAPES)]
    library.append(families(*((TOY[0], rounds, ("if",)) if quick else (FAMILY_SHAPE, rounds))))
    keep_freed_memory()
    fused.fresh = False  # as in a run
    layers = _layers(absent, quick)
    tables = [_layer(shape, layers, rounds) for shape in (TOY if quick else SHAPES)]
    tables += library
    tables += [_norm_and_layer(shape, rounds, quick) for shape in (TOY if quick else NORMED_SHAPES)]
    imp, overhead = _imp_table(TOY if quick else IMP_SHAPES, rounds)
    tables.append(imp)
    how = "malloc keeps freed memory, for all alike, but in the calls as a library."
    packages = ("numpy", "numba", "torch", "spikingjelly", "snntorch", "norse")
    return Report("The spiking layer", how, tables, packages, absent, {"imp_overhead": overhead})


def on_gpu(on: Place, rounds: int, quick: bool, absent: dict[str, str], shapes: Sequence = GPU_SHAPES) -> Report:
    """The same on a GPU (in a test, on a CPU), without CPU-only cases."""
    shapes, tables = TOY if quick else shapes, []
    for dtype in (torch.float32, torch.float16):
        layers = _layers(absent, quick, "auto", on)
        tables += [_layer(shape, layers, rounds, on, dtype) for shape in shapes]
    tables += [_norm_and_layer(shape, rounds, quick, on) for shape in shapes]
    imp, _ = _imp_table(shapes, rounds, on)
    packages = ("numpy", "torch", "triton", "spikingjelly", "snntorch", "norse")
    return Report("The spiking layer on a GPU", "", [*tables, imp], packages, absent, gpu=on.facts)


def _imp_table(shapes: Sequence[tuple[int, ...]], rounds: int, on: Place = CPU) -> tuple[Table, list[dict]]:
    overhead = [_imp_overhead(shape, 2 * rounds + 1, on) for shape in shapes]
    rows = {f"T={r['timesteps']}, {r['neurons']:,} neurons, B={r['batch']}": r for r in overhead}
    for row in rows.values():
        row["with / without"] = row["seconds_with"] / row["seconds_without"]
        row["again / without (A/A)"] = row["seconds_without_again"] / row["seconds_without"]
    return Table("Forward and backward with IMP and without", rows, "Goal: at most 1.05 from T=4 on."), overhead


# ------------------------------------------------------------------ the layer in each library


def stepwise(step: Callable) -> Callable:
    """Layer x [T, B, ...] -> spikes from a step (x_t, state) -> (spikes, state)."""

    def layer(x):
        state, spikes = None, []
        for x_t in x:
            s, state = step(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)

    return layer


def if_loop(spike: Callable) -> Callable:
    """IF with soft reset, step by step, as in a tutorial."""

    def step(x, v):
        v = (torch.zeros_like(x) if v is None else v) + x
        s = spike(v - 1.0)
        return s, v - s

    return stepwise(step)


def straight_through(z):
    """Heaviside step with the gradient of arctan."""
    smooth = torch.atan(math.pi * z) / math.pi
    return (z >= 0).to(z.dtype) - smooth.detach() + smooth


class SpikeFunction(torch.autograd.Function):
    """Heaviside step with ATan surrogate gradient."""

    @staticmethod
    def forward(ctx, z):
        """Spikes of z >= 0."""
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        """grad / (1 + (pi z)^2)."""
        (z,) = ctx.saved_tensors
        return grad / (1 + (math.pi * z) ** 2)


class LayerFunction(torch.autograd.Function):
    """All steps in one autograd.Function of PyTorch calls; saves h."""

    @staticmethod
    def forward(ctx, x):
        """Spikes [T, B, ...] of input currents x [T, B, ...]."""
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
        """Backward pass through time."""
        (h,) = ctx.saved_tensors
        gx = torch.empty_like(h)
        gv = torch.zeros_like(h[0])
        for t in reversed(range(len(h))):
            slope = h[t].sub(1.0).mul_(math.pi).square_().add_(1).reciprocal_()
            torch.addcmul(gv, grad[t] - gv, slope, out=gx[t])
            gv = gx[t]
        return gx


class TheirIF(neuron.IFNode):
    """spikingjelly's IF node with the settings of our `if` and its potential in float32.

    In float16 the node keeps a float16 potential, for which spikingjelly 2.0 has no kernel on a GPU.
    """

    def __init__(self):
        super().__init__(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")

    def materialize_states(self, inputs, states, step_mode):
        """States for these inputs."""
        return tuple(state.float() for state in super().materialize_states(inputs, states, step_mode))


def _spikingjelly_layer(before: Callable | None = None) -> Callable:
    node = TheirIF()

    def layer(x):
        node.reset()
        return node(before(x) if before else x)

    return layer


def _layers(absent: dict[str, str], quick: bool, backend: str = "cpu", on: Place = CPU) -> dict[str, Callable]:
    """{name: function of x [T, B, ...]}; missing ones go into `absent` with the reason."""
    found: dict[str, Callable] = {
        "ours": build_neuron("if", backend=backend),
        REFERENCE: build_neuron("if", backend="torch"),
        "spikingjelly": _spikingjelly_layer(),
    }
    optional = absent if quick or on.facts else None
    snntorch = peer("snntorch", "the neuron", optional)
    if snntorch:
        leaky = snntorch.Leaky(beta=1.0, spike_grad=snntorch.surrogate.atan(alpha=2.0)).to(on.device)
        found["snnTorch"] = stepwise(lambda x, v: leaky(x, leaky.init_leaky() if v is None else v))
    norse = peer("norse.torch", "the neuron", optional)
    if norse:
        cell = norse.IAFCell(p=norse.IAFParameters(method="super", alpha=torch.tensor(2.0)))
        found["Norse (hard reset: other dynamics)"] = stepwise(cell)
    loop = if_loop(SpikeFunction.apply)  # as in most code
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
    """Reset torch.compile, which would otherwise look for one graph for all shapes, or give up."""
    if any("torch.compile" in name for name in layers):
        torch.compiler.reset()


def both_passes(layer: Callable, x, grad, *parameters) -> Callable[[], None]:
    """A call that runs forward and backward and accumulates no gradient."""

    def call() -> None:
        torch.autograd.grad(layer(x), (x, *parameters), grad)

    return call


@intrinsic
def _copy_64_bytes(context, to, source):
    """Copy 64 bytes between 64-byte-aligned addresses with a non-temporal store."""

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


# ------------------------------------------------------------------ measurements


def _layer(
    shape: tuple[int, ...], layers: dict[str, Callable], rounds: int, on: Place = CPU, dtype: torch.dtype = torch.float32
) -> Table:  # fmt: skip
    torch.manual_seed(0)
    _forget_compiled(layers)
    x, grad = (torch.randn(shape).to(on.device, dtype) for _ in range(2))
    x.requires_grad_()
    with torch.no_grad():
        spikes = layers["ours"](x)
        same = {name: (layer(x) == spikes).float().mean().item() for name, layer in layers.items()}
    title = (
        f"[T, B, C, H, W] = {list(shape)}: {x.numel() / 1e6:.1f} M neuron-steps, {str(dtype).removeprefix('torch.')}"
    )
    exact = (REFERENCE, "spikingjelly") if dtype == torch.float32 else ()  # in float16 others also round the potential
    wrong = [f"{title}: only {same[name]:.4%} of the spikes of {name} equal ours" for name in exact if same[name] < 1]
    assert on.facts or not wrong, wrong
    y = torch.empty_like(x)
    copies: dict[str, Callable] = {"copy, torch": lambda: y.copy_(x.detach())}
    if on.facts:
        copies["ReLU, both passes"] = both_passes(torch.relu, x, grad)
    elif dtype == torch.float32:
        copies["copy, around the cache"] = lambda: _copy_around(y.data_ptr(), x.data_ptr(), x.numel() * 4)
    rows = timings({**{name: both_passes(f, x, grad) for name, f in layers.items()}, **copies}, rounds, on.clock)
    with torch.no_grad():
        forward = timings({name: lambda f=f: f(x) for name, f in layers.items()}, max(rounds // 2, 3), on.clock)
    copy = min(seconds(rows[name]) for name in copies if name.startswith("copy"))
    floor = 20 / 8 * copy  # forward: read x, write s; backward: read x and the gradient, write one
    for name, row in rows.items():
        row["over_floor"] = seconds(row) / floor
        if name in layers:
            row["forward_seconds"] = seconds(forward[name])
            row["saved_bytes"] = saved_bytes(layers[name], x) / x.numel()
            row["equal_spikes"] = same[name]
    goal = "1.3 of the floor" if on.facts else "6x spikingjelly, 1.5x torch.compile, 1.7 of the floor"
    note = f"Copy at {2 * x.nbytes / copy / 1e9:.1f} GB/s. Goal: {goal}."
    for word in ("cuda", "triton") if on.facts and THEIR_CHOICE not in os.environ else ():
        name = f"spikingjelly, {THEIR_CHOICE}={word}"
        os.environ[THEIR_CHOICE] = word
        try:
            rows[name] = in_own_process(_their_implementation, shape, dtype, rounds, on)
            rows[name]["over_first"] = seconds(rows[name]) / seconds(rows["ours"])
        except Exception as error:  # not built, no compiler, no such backend, ...
            wrong.append(f"{title}: {name} does not run ({error})")
        finally:
            del os.environ[THEIR_CHOICE]
    return Table(title, rows, note, wrong=wrong)


def _their_implementation(shape: tuple[int, ...], dtype: torch.dtype, rounds: int, on: Place) -> dict:
    """In a fresh process whose environment names an implementation of spikingjelly's."""
    x, grad = (torch.randn(shape).to(on.device, dtype) for _ in range(2))
    call = both_passes(_spikingjelly_layer(), x.requires_grad_(), grad)
    return timings({"it": call}, rounds, on.clock)["it"]


def _as_library(shape: tuple[int, ...], rounds: int) -> Table:
    with threads_as_started():
        rows, threads = in_own_process(_library_call, shape, rounds)
    title = f"As a library call, {threads} threads: [T, B, C, H, W] = {list(shape)}"
    return Table(title, rows, "Goal: 6x spikingjelly.")


def _library_call(shape: tuple[int, ...], rounds: int) -> tuple[dict[str, dict], int]:
    """In a fresh process with default settings."""
    torch.manual_seed(0)
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    layers: dict[str, Callable] = {
        "ours": build_neuron("if"),
        "ours, without huge pages": build_neuron("if"),
        "spikingjelly": _spikingjelly_layer(),
    }
    cases = {name: both_passes(layer, x, grad) for name, layer in layers.items()}

    def timed(call: Callable[[], None]) -> Seconds:
        fused.fresh = call is not cases["ours, without huge pages"]
        return clocked(call)

    rows = timings(cases, rounds, timed)
    for row in rows.values():
        row["wall_over_first"] = row["wall_seconds"] / rows["ours"]["wall_seconds"]
    return rows, torch.get_num_threads()


def families(shape: tuple[int, ...], rounds: int, names: Sequence[str] = tuple(NEURONS)) -> Table:
    """Every neuron in a fresh process: reference, compiled, kernel, spikingjelly."""
    rows = in_own_process(_every_neuron, shape, rounds, names)
    note = "Goal: compiled at least 3x as fast as the reference. Cases of a row are interleaved."
    if not HAS_COMPILER:
        note += " Not compiled: there is no C++ compiler on this machine."
    return Table(f"Every neuron, one thread: [T, B, C, H, W] = {list(shape)}", rows, note)


def _every_neuron(shape: tuple[int, ...], rounds: int, names: Sequence[str]) -> dict[str, dict]:
    rows: dict[str, dict] = {}
    for name in names:
        torch.manual_seed(0)
        x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
        reference: Any = build_neuron(name, timesteps=shape[0], state_shape=shape[2:], backend="torch")
        theirs = _their_node(name, shape[0], shape[2])
        backends = {"compile": "compile"} if HAS_COMPILER else {}
        backends |= {"kernel": "cpu"} if reference.law() else {}
        layers: dict[str, Any] = {"reference": reference} | ({"spikingjelly": theirs} if theirs else {})
        for case, backend in backends.items():
            layers[case] = copy.deepcopy(reference)
            layers[case].backend = backend
        cases = {}
        for case, layer in layers.items():
            learned = [] if case == "spikingjelly" else [p for p in layer.parameters() if p.requires_grad]
            cases[case] = both_passes(layer, x, grad, *learned)
        start = time.perf_counter()
        if HAS_COMPILER:
            cases["compile"]()
        ready = time.perf_counter() - start
        took = {case: seconds(row) for case, row in timings(cases, rounds).items()}
        rows[name] = {f"{case}_seconds": took.get(case) for case in ("reference", "compile", "kernel", "spikingjelly")}
        for case in ("compile", "kernel", "spikingjelly"):
            rows[name][f"reference / {case}"] = took["reference"] / took[case] if case in took else None
        rows[name] |= {"again / reference (A/A)": took["reference again"] / took["reference"], "s to compile": ready}
        if HAS_COMPILER:
            rows[name]["equal_spikes"] = (layers["compile"](x) == reference(x)).float().mean().item()
    return rows


def _their_node(name: str, timesteps: int, channels: int) -> Callable | None:
    nodes = {
        "if": "IFNode", "lif": "LIFNode", "plif": "ParametricLIFNode", "klif": "KLIFNode", "glif": "GatedLIFNode",
        "ilif": "ILIFNode", "psn": "PSN", "masked_psn": "MaskedPSN", "sliding_psn": "SlidingPSN",
    }  # fmt: skip
    own = {
        "glif": dict(T=timesteps, inplane=channels), "psn": dict(T=timesteps), "masked_psn": dict(k=4, T=timesteps),
        "sliding_psn": dict(k=4),
    }  # fmt: skip
    node = getattr(neuron, nodes.get(name, ""), None)
    if node is None:
        return None
    layer = node(**own.get(name, {}), **({} if name == "psn" else {"step_mode": "m"}))

    def call(x):
        functional.reset_net(layer)
        return layer(x)

    return call


def _norm_and_layer(shape: tuple[int, ...], rounds: int, quick: bool, on: Place = CPU) -> Table:
    """A batch norm in training and the IF layer behind it.

    Ours and PyTorch's own operations use channels-last memory, as a CPU's convolutions do; spikingjelly's network uses
    contiguous memory, its default.
    """
    gc.collect()
    torch.manual_seed(0)
    x = torch.randn(shape).to(on.device).requires_grad_()
    folded = x.detach().flatten(0, 1).contiguous(memory_format=torch.channels_last)
    last = folded.unflatten(0, shape[:2]).requires_grad_()
    norm, ours = BN(shape[2]).to(on.device), build_neuron("if")
    with_imp = build_neuron("if", imp=True, state_shape=shape[2:]).to(on.device)
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
    rows = timings(cases, rounds, on.clock)
    for name, (layer, x) in layers.items():
        rows[name]["saved_bytes"] = saved_bytes(layer, x) / x.numel()
        rows[name]["equal_spikes"] = (spikes[name] == spikes["ours"]).float().mean().item()
    return Table(f"A batch norm and the layer: [T, B, C, H, W] = {list(shape)}", rows)


def _imp_overhead(shape: tuple[int, ...], rounds: int, on: Place) -> dict:
    torch.manual_seed(0)
    x, grad = (torch.randn(shape).to(on.device) for _ in range(2))
    x.requires_grad_()
    without, with_imp = build_neuron("if"), build_neuron("if", imp=True, state_shape=shape[2:]).to(on.device)
    cases = {"without": both_passes(without, x, grad), "with": both_passes(with_imp, x, grad, with_imp.imp)}
    took = {name: seconds(row) for name, row in timings(cases, rounds, on.clock).items()}
    facts = {"timesteps": shape[0], "neurons": math.prod(shape[2:]), "batch": shape[1]}
    return facts | {f"seconds_{name.replace(' ', '_')}": value for name, value in took.items()}
