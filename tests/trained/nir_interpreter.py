"""Runs a NIR file step by step, knowing nothing of what wrote it: the definitions of NIR, dt = 1, and the neurons' metadata."""

import nir
import torch
from torch import Tensor
from torch.nn import functional as F


def run(path, frames: Tensor) -> Tensor:
    """frames [T, B, ...] -> what the output node hears [T, B, ...]. Inputs that are not called `input` are 1 at the first step."""
    graph = nir.read(path)
    before = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    order: list[str] = []

    def visit(name):
        if name not in order:
            for source in before[name]:
                visit(source)
            order.append(name)

    visit("output")
    potentials: dict[str, Tensor] = {}
    said = []
    for t, frame in enumerate(frames):
        values: dict[str, Tensor] = {}
        for name in order:
            node = graph.nodes[name]
            if isinstance(node, nir.Input):
                shape = tuple(int(n) for n in node.input_type["input"])
                values[name] = frame if name == "input" else torch.full((1, *shape), float(t == 0))
            else:
                x = sum(values[source] for source in before[name])
                values[name] = step(node, x, name, potentials, float(graph.metadata["dt"]))
        said.append(values["output"])
    return torch.stack(said)


def step(node, x, name, potentials, dt):
    number = lambda key: torch.as_tensor(getattr(node, key))  # noqa: E731
    pairs = lambda *keys: [tuple(int(n) for n in getattr(node, key)) for key in keys]  # noqa: E731
    if isinstance(node, nir.Conv2d):
        return F.conv2d(x, number("weight"), number("bias"), *pairs("stride", "padding", "dilation"), node.groups)
    if isinstance(node, nir.Affine):
        return F.linear(x, number("weight"), number("bias"))
    if isinstance(node, nir.AvgPool2d):
        return F.avg_pool2d(x, *pairs("kernel_size", "stride", "padding"))
    if isinstance(node, nir.Flatten):
        return x.flatten(1)
    if isinstance(node, nir.Scale):
        return x * number("scale")
    if isinstance(node, nir.IF | nir.LIF):
        v, current = potentials.get(name, torch.zeros_like(x)), number("r") * x
        h = v + dt * (current if isinstance(node, nir.IF) else (number("v_leak") - v + current) / number("tau"))
        word = {k: v.decode() if isinstance(v, bytes) else str(v) for k, v in node.metadata.items()}
        threshold = number("v_threshold")
        s = (h >= threshold if word["fire_at"] == "ge" else h > threshold).float()
        potentials[name] = h - threshold * s if word["reset"] == "soft" else torch.where(s > 0, number("v_reset"), h)
        return s
    assert isinstance(node, nir.Output), node
    return x
