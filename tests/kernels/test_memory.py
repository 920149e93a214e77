"""Large outputs lie on huge pages in anybody's program, with the same numbers."""

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
