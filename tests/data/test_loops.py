"""The compiled loops of augmentations against torch's own operations, bit for bit, and what is done without a compiler."""

import itertools

import pytest
import torch

from snn_repro.data.augment import augmentation, mix
from snn_repro.data.augment.augmentation import move_pixels
from snn_repro.data.augment.event_policy import EventPolicy
from snn_repro.data.augment.mix import blend
from snn_repro.kernels import compiled


def picked(x, sources):
    """x [..., B, C, H, W] with every pixel looked up, one behind the frame being zero."""
    pixels = torch.nn.functional.pad(x.flatten(-2), (0, 1))
    index = sources.unsqueeze(-2).expand(*x.shape[:-2], sources.shape[-1])
    return pixels.gather(-1, index).view(x.shape)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(*shape, dtype=torch.float32):
    return (torch.rand(shape, generator=draw(len(shape))) * 200).to(dtype)


def some_sources(kind, batch, size):
    n = size[0] * size[1]
    if kind == "policy":
        step = EventPolicy()
        return step.sources(step.draw(batch, draw()), torch.arange(batch), size)
    return {
        "anywhere": torch.randint(0, n + 1, (batch, n), generator=draw()), "nothing": torch.full((batch, n), n),
        "backwards": torch.arange(n).flip(0).repeat(batch, 1),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str)
def test_pixels_come_from_their_sources(dtype):
    shapes = (3, 6, 2, 7, 9), (6, 2, 7, 9), (2, 3, 1, 1, 1), (1, 2, 3, 1, 5)
    for kind, shape in itertools.product(("anywhere", "policy", "nothing", "backwards"), shapes):
        x, sources = frames(*shape, dtype=dtype), some_sources(kind, shape[-4], shape[-2:])
        before = x.clone()
        assert torch.equal(move_pixels(x, sources), picked(x, sources)) and torch.equal(x, before)


def test_a_transposed_batch_moves_and_a_place_before_the_frame_is_refused():
    x, sources = frames(5, 3, 2, 4, 6).transpose(0, 1), some_sources("anywhere", 5, (4, 6))
    assert torch.equal(move_pixels(x, sources), picked(x, sources))
    sources[1, 2] = -1
    with pytest.raises(IndexError, match="0 to 24, not -1"):
        move_pixels(x, sources)


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(augmentation, "SHARE", 8)
    x, sources = frames(4, 7, 2, 6, 5), some_sources("policy", 7, (6, 5))
    other = torch.tensor([6, 0, 0, 4, 3])  # of five of the seven samples
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(move_pixels(x, sources), picked(x, sources))
        for values in (x, frames(4, 7, 2, 6, 5, dtype=torch.uint8)):
            wanted = values[:, :5].float().mul(0.3) + values[:, other].float().mul(1 - 0.3)
            assert torch.equal(blend(values, other, 0.3), wanted)
    finally:
        torch.set_num_threads(threads)


def test_without_a_compiler_torch_does_the_same(monkeypatch):
    x, sources, other = frames(3, 6, 2, 7, 9), some_sources("policy", 6, (7, 9)), torch.randperm(6, generator=draw())
    want = move_pixels(x, sources), blend(x, other, 0.3)
    for module, loop in ((augmentation, "_move_loop"), (mix, "_loop")):
        monkeypatch.setattr(module, loop, getattr(module, loop).__wrapped__)
    monkeypatch.setattr(compiled, "compiled", lambda function: 1 / 0)
    with pytest.warns(UserWarning, match="slower, not different"):
        found = move_pixels(x, sources), blend(x, other, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
