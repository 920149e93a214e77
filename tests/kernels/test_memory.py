"""Large outputs lie on huge pages in anybody's program, are torch's own as ever, and cost nothing when they are gone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snn_repro.config import load_config
from snn_repro.kernels import memory
from snn_repro.neurons import build_neuron
from snn_repro.runtime import pick_device

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = (4, 2, 2**19)  # 16 MiB


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(memory, "fresh", True)


def both(shape=LARGE):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer = build_neuron("if", backend="cpu")
    s = layer(x)
    (gx,) = torch.autograd.grad(s, x, torch.ones_like(s))
    return s.detach(), gx, layer.v.detach()


def advised(x) -> bool:
    """Whether the middle of a tensor's memory is marked for huge pages."""
    at, here = x.data_ptr() + x.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if not word.endswith(":"):
            low, high = (int(n, 16) for n in word.split("-"))
            here = low <= at < high
        elif here and word == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("the tensor lies nowhere")


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no transparent huge pages")
def test_large_outputs_are_on_huge_pages_and_small_ones_are_left_alone(fresh, monkeypatch):
    asked = []
    real = memory._madvise()
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *a: asked.append(a) or real(*a))
    s, gx, v = both()
    assert advised(s) and advised(gx) and advised(v)
    assert len(asked) == 3
    for (at, size, _), x in zip(asked, (s, v, gx), strict=True):
        assert x.data_ptr() <= at < at + size <= x.data_ptr() + x.nbytes, "advice about memory of others"
    both((4, 2, 64))
    assert len(asked) == 3


@pytest.mark.parametrize("lacks", ["a run", "no such function", "refused"])
def test_the_numbers_are_the_same_without(fresh, monkeypatch, lacks):
    wanted = both()
    if lacks == "a run":  # keeps its memory by another setting
        pick_device(load_config(["device=cpu"]))
        assert not memory.fresh
    monkeypatch.setattr(memory, "_madvise", lambda: {"no such function": None}.get(lacks, lambda *a: -1))
    for a, b in zip(both(), wanted, strict=True):
        assert torch.equal(a, b)


def test_what_a_layer_gave_outlives_it_and_may_be_changed(fresh):
    first = both()
    kept = [x.clone() for x in first]
    both()
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True)), "memory in use was handed out again"
    s = first[0]
    s.mul_(3).resize_(2, *LARGE)
    assert torch.equal(s[0], kept[0] * 3)
    x = torch.randn(LARGE, requires_grad=True)
    s = build_neuron("if", backend="cpu")(x)
    loss = (s * s).sum()  # saves the spikes
    s.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


PROGRAM = """
import resource, torch
from snn_repro.kernels import memory
from snn_repro.neurons import build_neuron
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
x, layer, found = torch.randn(8, 2**20, 1).requires_grad_(), build_neuron("if"), []
gs = torch.ones_like(x)
for memory.fresh in (True, False):
    torch.autograd.grad(layer(x), x, gs)
    before, held = faults(), resident()
    for _ in range(5):
        torch.autograd.grad(layer(x), x, gs)
    found += [faults() - before, resident() - held]
print(*found)
"""


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this machine hands out no huge pages"
)
def test_a_program_of_ones_own_meets_few_page_faults_and_keeps_nothing():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    few, grown, many, _ = map(int, run.stdout.split())
    assert few < many / 5, "blocks of 32 MiB are still handed out page by page"
    assert grown < 2**26, "memory is kept from call to call"
