"""A spiking layer with its norm over two processes, against double precision over all samples; run by test_triton.py.

Prints by case the largest difference, relative to the largest value, of spikes, gradients and running statistics.
"""

import copy
import json
import os
import sys

import torch
import torch.distributed as dist

from snn_repro import distributed
from snn_repro.models.blocks import Block
from snn_repro.models.norms import NORMS, synchronise
from snn_repro.neurons import build_neuron


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach().double() - b.detach()).abs().max() / b.abs().max().clamp(min=1e-3))


def compare(rank: int, name: str, backends: tuple[str, str], dtype=torch.float32, static=False, compiled=False) -> dict:
    torch.manual_seed(0)
    steps, batch, channels, size = 3, 5, 6, 4
    x = torch.randn((1 if static else steps) * batch, channels, size, size).to(dtype) * 2 + 1
    x = x.unflatten(0, (-1, batch))
    weight = torch.randn(steps, batch, channels, size, size).to(dtype)
    norm = NORMS[name](channels, steps)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5)
    neuron = build_neuron("lif", imp=True, state_shape=(channels, size, size), backend="torch")
    whole_norm, whole_neuron = copy.deepcopy(norm).double(), copy.deepcopy(neuron).double()
    synchronise(norm)
    neuron.backend = backends[rank]
    own = x[:, rank::2]  # 3 and 2 samples
    own = own.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, own.shape[:2])
    a, b = x.double().requires_grad_(), own.requires_grad_()
    want = Block().fire(a, whole_norm, whole_neuron, steps)
    (want * weight.double()).sum().backward()
    chosen = neuron.plan(b, norm.affine_form(), steps)
    assert chosen.backend == backends[rank] and (chosen.norm is None) == (chosen.backend == "torch"), chosen
    fire = torch.compile(Block().fire, backend="aot_eager") if compiled else Block().fire
    found = fire(b, norm, neuron, steps)
    (found * weight[:, rank::2]).sum().backward()
    gaps = {"spikes": gap(found, want[:, rank::2]), "input": gap(b.grad, a.grad[:, rank::2])}
    named = *whole_norm.named_parameters(), *whole_neuron.named_parameters()
    for (key, p), q in zip(named, (*norm.parameters(), *neuron.parameters()), strict=True):
        dist.all_reduce(q.grad)
        gaps[key] = gap(q.grad, p.grad)
    for (key, p), q in zip(whole_norm.named_buffers(), norm.buffers(), strict=True):
        gaps[key] = gap(q, p)
    whole_norm.eval(), norm.eval()
    with torch.no_grad():
        want = Block().fire(a, whole_norm, whole_neuron, steps)
        gaps["evaluation"] = gap(Block().fire(b, norm, neuron, steps), want[:, rank::2])
    return gaps


def main() -> None:
    distributed.start("cpu")
    rank, fused = int(os.environ["RANK"]), ("triton", "triton")
    found = {
        "bn": compare(rank, "bn", fused),
        "tebn of a static image": compare(rank, "tebn", fused, static=True),
        "half": compare(rank, "bn", fused, torch.float16),
        "one process fused, one not": compare(rank, "tebn", ("triton", "torch")),
        "compiled": compare(rank, "bn", fused, compiled=True),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
