"""the network as a graph of neurons and connections (Neuromorphic Intermediate Representation), for simulators and chips.

What NIR 1.0 has: integrate-and-fire neurons v' = r I and leaky ones tau v' = v_leak - v + r I, without a time step, which fire at
v > V_th, are reset to a value and start from 0. So here

- one time step is dt = 1: h = v + r I, or h = v + (v_leak - v + r I) / tau;
- norms are folded into the convolutions before them;
- an initial potential v0 is one input more, 1 at the first step and 0 at all others, times (dh/dv / dh/dI) v0 in front of the
  neuron: h[1] is the same (v0 with IF, retain v0 with leaky, (tau - 1) v0 with lif);
- a soft reset and firing at >= stand in the metadata of the neurons, which whoever runs the graph has to read;
- sums are several edges into one node, as NIR has it.

Anything else is refused.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.neurons import Neuron
from snn_repro.registry import EXPORTS, NORMS
from snn_repro.trained.export._unrolled import inputs
from snn_repro.trained.load import TrainedRun

FILE, FIRST = "model.nir", "first_step"
# Calls that give the same numbers of each sample and step in another arrangement of samples and steps.
VIEWS = "flatten unflatten expand unsqueeze squeeze reshape view contiguous clone detach to float".split()


@EXPORTS.register("nir")
def write(run: TrainedRun, folder: Path) -> str:
    """model.nir, an HDF5 file: see above. Raises UserError for what NIR cannot say."""
    graph = nir_graph(run.model, inputs(run, 1))
    buffer = io.BytesIO()
    nir.write(buffer, graph)
    (folder / FILE).write_bytes(buffer.getbuffer())  # HDF5 hides the reason of a failed write
    starts = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input) and name != "input"]
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.IF | nir.LIF)]
    told = sorted(
        {f"{key}={value}" for node in neurons for key, value in node.metadata.items()} - {"reset=hard", "fire_at=gt"}
    )
    lines = [
        "```python", "import nir", "", f'graph = nir.read("{FILE}")', "```", "",
        "One time step is dt = 1 (metadata `dt`): h = v + r I (IF) or h = v + (v_leak - v + r I) / tau (LIF), then fire, then reset. Norms "
        "are folded into convolutions, which moves roundings.",
    ]  # fmt: skip
    if starts:
        lines.append(
            f"Neurons start from learned or chosen potentials: the inputs {', '.join(f'`{name}`' for name in starts)} are 1 at the "
            "first time step and 0 at all others."
        )
    if told:
        lines.append(
            f"**NIR has no word for {' and '.join(told)}: it stands in the metadata of each neuron, and a tool that does not read it runs another "
            "network** (hard reset, firing above the threshold)."
        )
    return "\n".join(lines)


def nir_graph(model: nn.Module, x: Tensor) -> nir.NIRGraph:
    """The graph of a network, found by running it once in evaluation on x, static images [1, C, H, W] or frames [T, 1, C, H, W].

    Raises UserError, naming the layer or operation, where NIR cannot say what the network does.
    """
    training = model.training
    model.eval()
    recorder = _Recorder(model, x)
    hooks = []
    for name, module in model.named_modules():
        if kind := _kind(module):
            hooks.append(module.register_forward_pre_hook(recorder.enter))
            hooks.append(module.register_forward_hook(recorder.leave(name, kind)))
    try:
        with torch.no_grad(), door.off(model), recorder:
            logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return recorder.graph(logits)


Sources = tuple[str, ...]  # nodes whose sum a tensor is


class _Recorder(TorchFunctionMode):
    """Hears every operation of a forward pass and which nodes each tensor is the sum of.

    Layers that become nodes are opaque: what happens inside of them is not heard.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__()
        self.network = type(model).__name__
        self.nodes: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # of one sample at one step, behind each node
        self.edges: list[tuple[str, str]] = []
        self.depth = 0
        self.known: dict[int, tuple[Tensor, Sources]] = {}  # by id; the tensor is kept so that no other takes its id
        shape = tuple(x.shape[-3:])
        self.add("input", nir.Input(np.array(shape)), (), shape)
        self.mark(x, ("input",))

    def mark(self, x: Tensor, sources: Sources) -> None:
        self.known[id(x)] = (x, sources)

    def sources(self, x: Any) -> Sources | None:
        found = self.known.get(id(x))
        return found[1] if found else None

    def add(self, name: str, node: Any, sources: Sources, shape: tuple[int, ...]) -> None:
        if name in self.nodes:
            raise UserError(f"NIR has no layer that is used twice, as {name} of this {self.network} is")
        if len(set(sources)) < len(sources):
            raise UserError(f"NIR adds up different nodes, and {name} of this {self.network} takes the same one twice")
        self.nodes[name], self.shapes[name] = node, shape
        self.edges += [(source, name) for source in sources]

    # ---------------------------------------------------------------- layers

    def enter(self, module: nn.Module, args: Any) -> None:
        self.depth += 1

    def leave(self, name: str, kind: Callable[..., Sources]) -> Callable[..., None]:
        key = name.replace(".", "_")  # a dot would nest in HDF5

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if self.depth == 1:  # else it belongs to a layer that is a node
                sources = self.sources(args[0])
                if sources is None:
                    raise UserError(f"NIR cannot say where the input of {name} comes from in this {self.network}")
                self.mark(out, kind(self, key, module, args[0], out, sources))
            self.depth -= 1

        return hook

    # ---------------------------------------------------------------- what happens between layers

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if self.depth or not isinstance(out, Tensor) or id(out) in self.known and self.known[id(out)][0] is out:
            return out
        tensors = [a for a in args if isinstance(a, Tensor)]
        used = [self.sources(a) for a in tensors]
        if not any(used):
            return out
        name = getattr(function, "__name__", str(function)).strip("_")
        found = self.between(name, args, tensors, used, out)
        if found is None:
            raise UserError(f"NIR has no {name}, which this {self.network} computes between its layers")
        self.mark(out, found)
        return out

    def between(
        self, name: str, args: Any, tensors: list[Tensor], used: list[Sources | None], out: Tensor
    ) -> Sources | None:
        if name in ("add", "radd", "iadd") and len(used) == 2 and None not in used:
            a, b = used
            return (*a, *b) if len(args) == 2 and self.shapes[a[0]] == self.shapes[b[0]] else None  # type: ignore[misc,index]
        (sources, *more) = used
        if sources is None or more:
            return None
        shape, n = self.shapes[sources[0]], len(self.shapes[sources[0]])
        if name in VIEWS and tuple(out.shape[-n:]) == shape and out.dim() > n:
            return sources
        if name in ("flatten", "reshape", "view") and out.shape[-1] == np.prod(shape) and out.dim() > 1:
            return self.flat(sources, shape)
        space = shape[1:]
        means = name == "mean" and n == 3 and out.shape[-1] == shape[0] and tuple(tensors[0].shape[-3:]) == shape
        if means and out.numel() * space[0] * space[1] == tensors[0].numel():
            key = f"mean_{len(self.nodes)}"
            self.add(key, nir.AvgPool2d(np.array(space), np.array(space), np.array([0, 0])), sources, (shape[0], 1, 1))
            return self.flat((key,), (shape[0], 1, 1))
        return None

    def flat(self, sources: Sources, shape: tuple[int, ...]) -> Sources:
        key = f"flatten_{len(self.nodes)}"
        self.add(key, nir.Flatten({"input": np.array(shape)}, 0, -1), sources, (int(np.prod(shape)),))
        return (key,)

    def graph(self, logits: Tensor) -> nir.NIRGraph:
        sources = self.sources(logits)
        if sources is None:
            raise UserError(f"NIR cannot say where the logits of this {self.network} come from")
        shape = np.array(self.shapes[sources[0]])
        self.add("output", nir.Output(shape), sources, tuple(shape))
        try:
            return nir.NIRGraph(self.nodes, self.edges, metadata={"dt": 1.0})
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"NIR refuses the graph of this {self.network}: {' '.join(str(error).split())[:200]}"
            ) from None


# ---------------------------------------------------------------- layers as nodes


def _kind(module: nn.Module) -> Callable[..., Sources] | None:
    """What makes a node of a layer; None for containers, and for what is refused by the operations in it."""
    if isinstance(module, Neuron):
        return _neuron
    if isinstance(module, tuple(NORMS.values())) or isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _norm
    kinds = ((nn.Conv2d, _conv), (nn.Linear, _linear), (nn.AvgPool2d, _pool))
    return next((kind for cls, kind in kinds if isinstance(module, cls)), None)


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().cpu().float().numpy()


def _conv(graph: _Recorder, key: str, conv: nn.Conv2d, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise UserError(f"NIR pads with zeros, by numbers, and {key} has padding={conv.padding!r}, {conv.padding_mode}")
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    node = nir.Conv2d(
        tuple(x.shape[-2:]), _numbers(conv.weight), conv.stride, conv.padding, conv.dilation, conv.groups, _numbers(bias)
    )  # fmt: skip
    graph.add(key, node, sources, tuple(out.shape[-3:]))
    return (key,)


def _linear(graph: _Recorder, key: str, layer: nn.Linear, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    if len(graph.shapes[sources[0]]) != 1:
        raise UserError(
            f"NIR's linear layers take vectors, and {key} is applied along one axis of {graph.shapes[sources[0]]}"
        )
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    graph.add(key, nir.Affine(_numbers(layer.weight), _numbers(bias)), sources, (layer.out_features,))
    return (key,)


def _pool(graph: _Recorder, key: str, pool: nn.AvgPool2d, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    size, stride, padding = (
        np.array([n, n] if isinstance(n, int) else [*n]) for n in (pool.kernel_size, pool.stride, pool.padding)
    )
    if pool.ceil_mode or pool.divisor_override or (padding.any() and not pool.count_include_pad):
        raise UserError(f"NIR's average pool divides by its size and rounds down, and {key} does not ({pool})")
    graph.add(key, nir.AvgPool2d(size, stride, padding), sources, tuple(out.shape[-3:]))
    return (key,)


def _norm(graph: _Recorder, key: str, norm: Any, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    """Fold the norm into the convolution before it; in float64, so that it is rounded once."""
    name = f"{key} ({type(norm).__name__})"
    before = graph.nodes[sources[0]]
    if len(sources) > 1 or not isinstance(before, nir.Conv2d) or any(a == sources[0] for a, _ in graph.edges):
        raise UserError(f"NIR has no norm, and {name} does not follow a convolution alone, into which it would fold")
    if not all(isinstance(getattr(norm, k, None), Tensor) for k in ("running_mean", "running_var", "weight", "bias")):
        raise UserError(
            f"NIR has no norm, and {name} is no batch norm, which would fold into a convolution; use model.norm=bn"
        )
    mean, var, weight, bias = (
        t.detach().double().numpy() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight / np.sqrt(var + norm.eps)
    shift = torch.from_numpy(bias - mean * scale).view(-1, 1, 1)
    if not torch.allclose(x * torch.from_numpy(scale).view(-1, 1, 1) + shift, out.double(), rtol=1e-5, atol=1e-5):
        raise UserError(
            f"NIR has no norm that changes with the time step or its input, as {name} does; use model.norm=bn"
        )
    before.weight = (before.weight.astype(np.float64) * scale[:, None, None, None]).astype(np.float32)
    before.bias = ((before.bias - mean) * scale + bias).astype(np.float32)
    return sources


def _neuron(graph: _Recorder, key: str, neuron: Neuron, x: Tensor, out: Tensor, sources: Sources) -> Sources:
    shape = graph.shapes[sources[0]]
    keep, take = _charge(key, neuron)
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
    """(keep, take) of a neuron whose charge is h = keep v + take x, found by asking it. Raises UserError for any other neuron."""
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
        f"NIR has integrate-and-fire neurons, leaky or not, with a fixed threshold, and {key} ('{neuron.family}') is another; "
        "--to onnx takes it"
    )
