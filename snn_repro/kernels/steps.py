"""`kernels=compile`: the time loop of any neuron as graphs of tensors, compiled by torch.compile (inductor).

The reference `steps` of a layer is traced twice: for its outputs, and for its gradients, which run the steps again, so
only x is saved. Parameters and buffers are inputs and the neurons one axis of dynamic length, in memory order: layers
of all sizes share the graphs of their family. A family with parameters per channel keeps that axis, [T, R, C, 1, ...].

The graphs are compared with the reference on random numbers. Steps that keep a state between calls, draw random
numbers or connect neurons fail: `run` raises, and the door falls back to the reference.
"""

import copy
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.func import functional_call
from torch.fx.experimental import _config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from snn_repro.errors import UserError
from snn_repro.kernels.neuron import is_eager

SMALL = 8  # inner size up to which a matrix product becomes sums, which inductor fuses with the rest
REPEATS = 5  # timings of graphs and reference that decide what `auto` runs
# Attributes that the steps may not read: layers that differ in them alone share graphs.
HIDDEN = ("state_shape", "initial_state", "initial", "initial_value", "imp_init", "backend", "repays", "v_seq")
_INTERNAL = {*vars(nn.Module()), *HIDDEN, "_memories"} - {"training"}
_found: dict[tuple, Any] = {}  # _Steps by the layer's settings, or the error
ADDMM = get_decompositions([torch.ops.aten.addmm.default])
_compiled: dict[tuple, tuple] = {}  # by the graphs' code: mostly the same in training and evaluation


def run(layer: Any, x: Tensor, v0: Tensor | None, by_name: bool) -> tuple[Tensor, Tensor, None] | None:
    """Run the compiled steps of `layer` for x [T, B, ...]: spikes, last potential, None.

    Returns None where x is traced, counted or empty. Raises what tracing, compiling or comparing raised, and unless
    `by_name` also where the graphs are not faster than the reference.
    """
    if not is_eager(x) or x.numel() < 2 * len(x):
        return None
    named = [*layer.named_parameters(), *layer.named_buffers()]
    tensors = {name: a for name, a in named if name not in ("imp", "running_v")}  # without the initial state
    key = (
        type(layer), len(x), x.dtype, x.device, v0 is None, torch.is_autocast_enabled(x.device.type),
        *(n == 1 for n in x.shape),  # sizes of 1 are constants of a graph
        *((name, a.shape, a.dtype) for name, a in tensors.items()), *_settings(layer).items(),
    )  # fmt: skip
    if key not in _found:
        _found[key] = _built(layer, x, v0, tensors)
    if isinstance(steps := _found[key], Exception):
        raise steps
    if not (by_name or steps.faster):
        raise RuntimeError("they are not faster here")
    return *steps.outputs(x, v0, *tensors.values()), None


def _settings(layer: Any) -> dict[tuple[str, str], Any]:
    """All attributes but tensors that may enter the steps, as constants, by module and name."""
    found = {("memory", name): value for name, value in layer._memories.items() if name != "v"}
    for path, module in layer.named_modules():
        found |= {(path, name): value for name, value in vars(module).items() if name not in _INTERNAL}
    plain = {key: value for key, value in found.items() if not isinstance(value, Tensor)}
    return {key: value if value.__hash__ and type(value) is not tuple else repr(value) for key, value in plain.items()}


class _Steps(nn.Module):
    """The steps of a layer as functions of x, v0 and its tensors, by `reference` and by graphs (`outputs`).

    flat: the graphs have one axis of neurons, else also one of channels. faster: than the reference, as timed.
    """

    def __init__(self, layer: Any, names: list[str], flat: bool):
        super().__init__()
        self.layer, self.names, self.flat = copy.copy(layer), [f"layer.{name}" for name in names], flat
        vars(self.layer)["_memories"] = {**layer._memories, "v": 0.0}
        for name in [k for k, value in vars(layer).items() if k in HIDDEN or isinstance(value, Tensor)]:
            del vars(self.layer)[name]
        self.graphs: Any = None  # of outputs; of gradients; their device

    def forward(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
        len(x)  # makes T a constant of the graph
        return self.layer.steps(x, v0)[:2]

    def reference(self, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        return functional_call(self, dict(zip(self.names, inputs[2:], strict=True)), inputs[:2])

    def outputs(self, x: Tensor, v0: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        last = x.dim() > 3 and (not self.flat or x.stride(2) == 1)  # images are channels last: no copy
        y = x.movedim(2, -1) if last else x
        neurons = (-1,) if self.flat else (-1, y.shape[-1], *[1] * (x.dim() - 3))
        if v0 is not None:
            v0 = v0.to(torch.promote_types(x.dtype, torch.float32)).expand(x.shape[1:])
            v0 = (v0.movedim(1, -1) if last else v0).reshape(neurons)
        s, v = _Compiled.apply(self, y.reshape(len(x), *neurons).contiguous(), v0, *tensors)
        s, v = s.reshape(y.shape), v.reshape(y.shape[1:])
        return (s.movedim(-1, 2), v.movedim(-1, 1)) if last else (s, v)

    def call(self, number: int, *inputs: Any) -> Any:
        inputs = tuple(a if a is None else a.detach() for a in inputs)
        self.graphs = self.graphs or self.traced(*inputs)
        with torch.autocast(self.graphs[2].type, enabled=False):
            return self.graphs[number](*inputs)

    def traced(self, *inputs: Any) -> tuple[Any, Any, torch.device]:
        before, s = _settings(self.layer), torch.zeros_like(inputs[0])
        graphs = _traced(self.reference, *inputs), _traced(partial(gradients, self.reference), s, None, *inputs)
        if not before.items() <= _settings(self.layer).items():  # a tensor that is kept fails in the second graph
            raise RuntimeError("it keeps a state between calls")
        code = inputs[0].device, *(graph.code for graph in graphs)
        if code not in _compiled:  # inductor compiles at the first call
            _compiled[code] = *(torch.compile(graph.forward, dynamic=True) for graph in graphs), code[0]
        return _compiled[code]


def gradients(outputs, gs: Tensor, gv: Tensor | None, *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients of `inputs` from those of spikes and potential, outputs(*inputs); None where there is none."""
    with torch.enable_grad():
        own = [a if a is None else a.detach().requires_grad_(a.is_floating_point()) for a in inputs]
        leaves, n = [a for a in own if a is not None and a.requires_grad], 1 if gv is None else 2
        grads = torch.autograd.grad(outputs(*own)[:n], leaves, (gs, gv)[:n], allow_unused=True)
    found = dict(zip(map(id, leaves), grads, strict=True))
    return [found.get(id(a)) for a in own]


class _Compiled(torch.autograd.Function):
    """The graphs of a layer with their gradient, for x [T, N] or [T, R, C, 1, ...]."""

    @staticmethod
    def forward(ctx, steps: _Steps, *inputs: Tensor | None):
        ctx.steps = steps
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return steps.call(0, *inputs)

    @staticmethod
    def backward(ctx, gs: Tensor | None, gv: Tensor | None):
        if torch.is_grad_enabled():  # for second derivatives
            raise UserError("The compiled spiking layer has no second derivative; use kernels=off or backend=torch.")
        x, *others = ctx.saved_tensors
        gs = torch.zeros_like(x) if gs is None else gs.contiguous()
        if gv is not None:  # a gradient of the last potential is rare
            return None, *gradients(ctx.steps.reference, gs, gv, x, *others)
        return None, *ctx.steps.call(1, gs, None, x, *others)


def _traced(function, *inputs: Any) -> torch.fx.GraphModule:
    """The operations of `function` as a graph for all sizes; raises where replaying them is not the same."""
    with torch.no_grad(), _config.patch(use_duck_shape=False):  # equal sizes are equal by chance
        graph = make_fx(function, {**ADDMM, torch.ops.aten.mm.default: _product}, "symbolic")(*inputs)
    if bad := [node for node in graph.graph.nodes if _is_bad(node)]:
        raise RuntimeError(f"it is random, changes an input or makes a tensor of constants: {bad[0].target}")
    return graph


def _is_bad(node: torch.fx.Node) -> bool:
    mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    changes = mutable and getattr(node.args[0], "op", "") == "placeholder"
    return changes or node.op == "get_attr" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _product(a: Tensor, b: Tensor) -> Any:
    """A product with few inner terms as a sum, else torch's."""
    n = next((int(n) for n in (a.shape[1], b.shape[0]) if is_concrete_int(n)), SMALL + 1)
    return sum(a[:, i, None] * b[i] for i in range(n)) if n <= SMALL else NotImplemented


def _built(layer: Any, x: Tensor, v0: Tensor | None, tensors: dict[str, Tensor], flat: bool = True):
    """Trace, compile and compare, with one axis of neurons or else with a channel axis; an error where both fail."""
    steps = _Steps(layer, [*tensors], flat)
    try:
        with torch.inference_mode(False), torch.random.fork_rng([x.device] if x.is_cuda else []):
            start = None if v0 is None else torch.rand_like(v0.expand(x.shape[1:]))
            noise = [a.detach() + 0.1 * torch.randn_like(a) if a.is_floating_point() else a for a in tensors.values()]
            steps.faster = _compare(steps, torch.randn_like(x), start, *noise)
    except Exception as error:
        return _built(layer, x, v0, tensors, flat=False) if flat else error
    return steps


def _compare(steps: _Steps, x: Tensor, v0: Tensor | None, *tensors: Tensor) -> bool:
    """Whether graphs take at most 0.9 of the reference's time; raises unless results are equal up to rounding."""
    gs, seconds, found = torch.randn_like(x), ([], []), [[], []]
    for _ in range(REPEATS):
        for i, outputs in enumerate((steps.reference, steps.outputs)):
            start = time.perf_counter()
            found[i] = [*outputs(x, v0, *tensors), *gradients(outputs, gs, None, x, v0, *tensors)]
            float(found[i][0].sum())  # waits for a GPU
            seconds[i].append(time.perf_counter() - start)
    (s, *wanted), (s_graphs, *others) = found
    if (s != s_graphs).float().mean() > 1e-4 or any(  # a potential within rounding of the threshold may fire
        a is not None and not (a - b).norm() <= 0.02 * a.norm() + 1e-6 for a, b in zip(wanted, others, strict=True)
    ):
        raise RuntimeError("its compiled steps differ from the reference")
    return min(seconds[1]) < 0.9 * min(seconds[0])
