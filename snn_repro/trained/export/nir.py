"""Export in the Neuromorphic Intermediate Representation (NIR 1.0).

NIR has integrate-and-fire neurons v' = r I and leaky ones tau v' = v_leak - v + r I, in continuous time. They fire at
v > V_th, are reset to a value and start from 0. Therefore

- one time step is dt = 1: h = v + r I, or h = v + (v_leak - v + r I) / tau;
- norms are folded into the convolutions before them;
- an initial potential v0 is an extra input, 1 at the first step and 0 at all others, times (dh/dv / dh/dI) v0 before
  the neuron: h[1] is the same (v0 with IF, retain v0 with leaky, (tau - 1) v0 with lif);
- a soft reset and firing at >= are recorded in the neurons' metadata, which a tool that runs the graph must read;
- sums are several edges into one node.

Everything else is rejected.
"""

import importlib.util
import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.neurons import Neuron
from snn_repro.registry import EXPORTS, NORMS
from snn_repro.trained.export.graphs import inputs
from snn_repro.trained.load import TrainedRun

nir: Any = importlib.import_module("nir") if importlib.util.find_spec("nir") else None

FILE, FIRST = "model.nir", "first_step"
# Operations that rearrange samples and steps without changing values.
VIEWS = "flatten unflatten expand unsqueeze squeeze reshape view contiguous clone detach to float".split()
Sources = tuple[str, ...]  # the nodes that a tensor is the sum of


@EXPORTS.register("nir")
def write(run: TrainedRun, folder: Path) -> str:
    """NIR graph of neurons and connections, for simulators and neuromorphic chips.

    Writes model.nir, an HDF5 file. Raises UserError for what NIR cannot represent.
    """
    if nir is None:
        raise ModuleNotFoundError("NIR", name="nir")
    graph, buffer = nir_graph(run.model, inputs(run, 1)), io.BytesIO()
    nir.write(buffer, graph)
    (folder / FILE).write_bytes(buffer.getbuffer())  # HDF5 hides the reason of a failed write
    starts = [f"`{name}`" for name in graph.nodes if name.endswith(FIRST)]
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.IF | nir.LIF)]
    own = {f"{key}={value}" for node in neurons for key, value in node.metadata.items()} - {"reset=hard", "fire_at=gt"}
    use = f"""\
```python
import nir

graph = nir.read("{FILE}")
```

One time step is dt = 1 (metadata `dt`): h = v + r I (IF) or h = v + (v_leak - v + r I) / tau (LIF), then fire, then
reset. Norms are folded into convolutions, which changes rounding.
"""
    first = f"Initial potentials: the inputs {', '.join(starts)} are 1 at the first time step and 0 at all others.\n"
    undefined = (
        f"**NIR does not define {' and '.join(sorted(own))}: a tool that does not read it from the metadata of the "
        "neurons runs another network** (hard reset, firing above the threshold).\n"
    )
    return use + first * bool(starts) + undefined * bool(own)


def nir_graph(model: nn.Module, x: Tensor) -> Any:
    """Trace a network into a NIR graph by one forward pass in evaluation mode.

    x: static images [1, C, H, W] or frames [T, 1, C, H, W]. Raises UserError, naming the layer or operation, for what
    NIR cannot represent.
    """
    graph = _Graph(type(model).__name__, x)
    with ExitStack() as stack, torch.no_grad(), door.off(model), graph:
        for name, module in model.named_modules():
            if kind := _kind(module):
                stack.enter_context(module.register_forward_pre_hook(graph.enter))
                stack.enter_context(module.register_forward_hook(graph.leave(name, kind)))
        logits = model.eval()(x)
    last = graph.sources(logits, "the logits")
    graph.add("output", nir.Output(np.array(graph.shapes[last[0]])), last, graph.shapes[last[0]])
    return nir.NIRGraph(graph.nodes, graph.edges, metadata={"dt": 1.0})


class _Graph(TorchFunctionMode):
    """Records nodes and edges of a forward pass; a tensor's `nir` lists the nodes that it is the sum of.

    Layers that become nodes are opaque: operations inside them are not recorded.
    """

    def __init__(self, network: str, x: Tensor):
        super().__init__()
        self.network, self.depth = network, 0
        self.nodes: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of one sample at one step, after each node
        self.edges: list[tuple[str, str]] = []
        shape = tuple(x.shape[-3:])
        x.nir = self.add("input", nir.Input(np.array(shape)), (), shape)  # type: ignore[attr-defined]

    def add(self, name: str, node: Any, sources: Sources, shape: tuple[int, ...]) -> Sources:
        if name in self.nodes:
            raise UserError(f"NIR cannot use a layer twice, as this {self.network} uses {name}")
        if len(set(sources)) < len(sources):
            raise UserError(f"NIR cannot add a node to itself, as {name} of this {self.network} does")
        self.nodes[name], self.shapes[name] = node, shape
        self.edges += [(source, name) for source in sources]
        return (name,)

    def sources(self, x: Any, what: str) -> Sources:
        if not hasattr(x, "nir"):
            raise UserError(f"the NIR export cannot trace where {what} of this {self.network} come from")
        return x.nir

    def enter(self, module: nn.Module, args: Any) -> None:
        self.depth += 1

    def leave(self, name: str, kind: Callable[..., Sources]) -> Callable[..., None]:
        key = name.replace(".", "_")  # a dot would nest in HDF5

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
            if self.depth == 1:  # else it is inside a layer that is a node
                out.nir = kind(self, key, module, args[0], out, self.sources(args[0], f"the inputs of {name}"))
            self.depth -= 1

        return hook

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        used = [getattr(a, "nir", None) for a in tensors] if not self.depth else []
        before = {id(a): a._version for a in tensors}
        out = function(*args, **(kwargs or {}))
        new = isinstance(out, Tensor) and before.get(id(out)) != out._version  # else an unchanged input
        if new and any(used):
            out.nir = self.between(getattr(function, "__name__", str(function)).strip("_"), tensors, used, out)
        return out

    def between(self, name: str, tensors: list[Tensor], used: list[Any], out: Tensor) -> Sources:
        """Sources of a tensor computed between layers. Raises UserError if NIR has no such operation."""
        shapes = [self.shapes[sources[0]] if sources else () for sources in used]
        shape, alone = next(filter(None, shapes)), len(used) == 1
        if name in ("add", "radd", "iadd") and shapes == [shape, shape]:
            return used[0] + used[1]
        if alone and name in VIEWS and tuple(out.shape[-len(shape) :]) == shape and out.dim() > len(shape):
            return used[0]
        if alone and name in ("flatten", "reshape", "view") and out.shape[-1] == np.prod(shape) and out.dim() > 1:
            return self.flat(used[0], shape)
        channels, *space = shape
        mean = alone and name == "mean" and len(space) == 2 and tuple(tensors[0].shape[-3:]) == shape
        if mean and out.shape[-1] == channels and out.numel() * np.prod(space) == tensors[0].numel():
            pool = nir.AvgPool2d(np.array(space), np.array(space), np.array([0, 0]))
            return self.flat(self.add(f"mean_{len(self.nodes)}", pool, used[0], (channels, 1, 1)), (channels, 1, 1))
        raise UserError(f"NIR has no {name}, which this {self.network} computes between its layers")

    def flat(self, sources: Sources, shape: tuple[int, ...]) -> Sources:
        node = nir.Flatten({"input": np.array(shape)}, 0, -1)
        return self.add(f"flatten_{len(self.nodes)}", node, sources, (int(np.prod(shape)),))


# ---------------------------------------------------------------- layers as nodes


def _kind(module: nn.Module) -> Callable[..., Sources] | None:
    """Function that makes a node of a layer; None for containers and for layers whose operations are checked."""
    norms = (*NORMS.values(), nn.modules.batchnorm._BatchNorm)
    kinds = ((Neuron, _neuron), (norms, _norm), (nn.Conv2d, _conv), (nn.Linear, _linear), (nn.AvgPool2d, _pool))
    return next((kind for cls, kind in kinds if isinstance(module, cls)), None)


def _weights(layer: nn.Conv2d | nn.Linear) -> list[np.ndarray]:
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    return [x.detach().cpu().float().numpy() for x in (layer.weight, bias)]


def _conv(graph: _Graph, key: str, conv: nn.Conv2d, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    if conv.padding_mode != "zeros":
        raise UserError(f"NIR pads with zeros, but {key} has padding_mode={conv.padding_mode}")
    (weight, bias), size = _weights(conv), tuple(x.shape[-2:])
    node = nir.Conv2d(size, weight, conv.stride, conv.padding, conv.dilation, conv.groups, bias)
    return graph.add(key, node, sources, tuple(out.shape[-3:]))


def _linear(graph: _Graph, key: str, layer: nn.Linear, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    if len(shape := graph.shapes[sources[0]]) != 1:
        raise UserError(f"NIR's linear layers take vectors, but {key} is applied along one axis of {shape}")
    return graph.add(key, nir.Affine(*_weights(layer)), sources, (layer.out_features,))


def _pool(graph: _Graph, key: str, pool: nn.AvgPool2d, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    size, stride, padding = (
        np.array([n, n] if isinstance(n, int) else [*n]) for n in (pool.kernel_size, pool.stride, pool.padding)
    )
    if pool.ceil_mode or pool.divisor_override or (padding.any() and not pool.count_include_pad):
        raise UserError(f"NIR's average pool divides by its size and rounds down, but {key} does not ({pool})")
    return graph.add(key, nir.AvgPool2d(size, stride, padding), sources, tuple(out.shape[-3:]))


def _norm(graph: _Graph, key: str, norm: Any, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    """Fold the norm into the convolution before it, in float64, so values are rounded once."""
    name, before = f"{key} ({type(norm).__name__})", graph.nodes[sources[0]]
    behind = len(sources) == 1 and isinstance(before, nir.Conv2d) and all(a != sources[0] for a, _ in graph.edges)
    values: list[Any] = [getattr(norm, k, None) for k in ("running_mean", "running_var", "weight", "bias")]
    if not (behind and all(isinstance(value, Tensor) for value in values)):
        why = "is not a batch norm" if behind else "does not directly follow a convolution of its own"
        raise UserError(f"NIR has no norms, and {name} {why}, so it cannot be folded; use model.norm=bn")
    mean, var, weight, bias = (value.detach().double() for value in values)
    scale = weight / (var + norm.eps).sqrt()
    folded = (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    if not torch.allclose(folded, out.double(), 1e-5, 1e-5):
        raise UserError(f"NIR has no norm that depends on time step or input, as {name} does; use model.norm=bn")
    before.weight = (torch.from_numpy(before.weight) * scale.view(-1, 1, 1, 1)).float().numpy()
    before.bias = ((torch.from_numpy(before.bias) - mean) * scale + bias).float().numpy()
    return sources


def _neuron(graph: _Graph, key: str, neuron: Neuron, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    shape, (keep, take) = graph.shapes[sources[0]], _charge(key, neuron)
    full = lambda value: np.full(shape, value, np.float32)  # noqa: E731
    reset = full(neuron.v_reset or 0.0)
    if keep == 1:
        node: Any = nir.IF(full(take), full(neuron.v_threshold), reset)
    else:
        tau = 1 / (1 - keep)
        node = nir.LIF(full(tau), full(take * tau), full(0.0), full(neuron.v_threshold), reset)
    node.metadata = dict(reset="soft" if neuron.v_reset is None else "hard", fire_at=neuron.surrogate_function.fire_at)
    v0 = neuron.imp if neuron.initial == "imp" else neuron.initial_state.potential(neuron, x)
    graph.add(key, node, sources, shape)
    if v0 is not None and bool((v0 != 0).any()):
        start = keep / take * v0.detach().double().expand(shape)
        graph.add(f"{key}_{FIRST}", nir.Input(np.array(shape)), (), shape)
        graph.add(f"{key}_initial", nir.Scale(start.float().numpy()), (f"{key}_{FIRST}",), shape)
        graph.edges.append((f"{key}_initial", key))
    return (key,)


def _charge(key: str, neuron: Neuron) -> tuple[float, float]:
    """Measure (keep, take) of a neuron with charge h = keep v + take x. Raises UserError for any other neuron."""
    kind = type(neuron)
    usual = all(getattr(kind, step) is getattr(Neuron, step) for step in ("begin", "fire", "reset_potential", "steps"))
    if usual and isinstance(neuron.v_threshold, float):
        v, x = (torch.linspace(low, 3, 31, dtype=torch.float64) for low in (-4, -2))
        keep, take = (float(neuron.charge(*pair)) for pair in torch.eye(2, dtype=torch.float64))
        h = torch.stack([neuron.charge(*pair) for pair in torch.cartesian_prod(v, x)]).double()
        linear = (h - torch.cartesian_prod(v, x) @ torch.tensor([keep, take], dtype=torch.float64)).abs().max() < 1e-6
        if linear and 0 <= keep <= 1 and take > 0:
            return keep, take
    raise UserError(
        f"NIR has only integrate-and-fire neurons, leaky or not, with a fixed threshold, and {key} "
        f"('{neuron.family}') is not one; use --to onnx"
    )
