"""Batches equal, to the last bit, a plain way that works in float32, step by step: on the host, ahead, on the device."""

import threading

import numpy as np
import pytest
import torch

from snn_repro.data.augment import Normalize
from snn_repro.data.augment.crop import RandomCrop
from snn_repro.data.augment.event_policy import EventPolicy
from snn_repro.data.augment.eventmix import EventMix
from snn_repro.data.augment.flip import RandomFlip
from snn_repro.data.augment.mix import Mix
from snn_repro.data.augment.nda import NDA
from snn_repro.data.augment.rpg import RPGDrop
from snn_repro.data.augment.smooth_labels import SmoothLabels
from snn_repro.data.batches import MemoryBatches, feed, make_generator
from snn_repro.data.events import OVERFLOW, ByteFrames, split_counts
from snn_repro.errors import DataError, UserError

N, T, H, W, B = 11, 3, 13, 18, 4
LABELS = np.arange(N) % 5
COUNTS = np.random.RandomState(0).poisson(1, (N, T, 2, H, W))


def reference(inputs, transforms, epoch, seed):
    """All batches of an epoch: gathered as float32, then one transform after another, each as test_augment.py knows it."""
    bare = MemoryBatches(np.zeros((N, 1, 1, 1), np.uint8), np.arange(N), B, seed=seed, shuffle=True)
    for batch, (_, rows) in enumerate(bare.epoch(epoch)):
        x = torch.from_numpy(np.stack([inputs[int(row)].astype(np.float32) for row in rows]))
        x, target = (x.transpose(0, 1) if x.ndim == 5 else x).contiguous(), torch.from_numpy(LABELS)[rows]
        generator = make_generator(seed, epoch, 1, batch, 0)
        for transform in transforms:
            x, target = transform(x, target, generator)
        yield x, target


RECIPES = {
    "none": [],
    "48 pixels": [RandomCrop(4), RandomFlip(0.5)],
    "N-Caltech101": [RandomFlip(0.5), EventPolicy()],
    "128 pixels": [RandomFlip(0.5), EventPolicy(), Mix(5, mixup=0.5, cutmix=1.0, cutmix_axes="published")],
    "Mixup": [RandomFlip(0.5), EventPolicy(), Mix(5, mixup=0.5, mix_prob=0.8), SmoothLabels(5, 0.1)],
    "NDA": [RandomCrop(2), RandomFlip(0.5), NDA(3, 20.0), Mix(5, cutmix=1.0)],
}


def stored(kind):
    if kind == "hot":  # bytes, and two recordings with pixels beyond them
        counts = COUNTS.copy()
        counts[2, 1, 0, 3, 4], counts[7, 0, 1, 0, 0], counts[7, 2, 1, -1, -1] = 256, 70_000, 300
        parts = [(row, *split_counts(frames)) for row, frames in enumerate(counts)]
        table = [(row, *of) for row, _, places, values in parts for of in zip(places, values, strict=True)]
        assert len(table) == 3
        return ByteFrames(np.stack([part[1] for part in parts]), np.array(table, OVERFLOW)), counts
    frames = COUNTS / 3 if kind == "float16" else COUNTS
    return frames.astype(kind), frames.astype(kind)


def check(batches, expected, epoch, start=0):
    for (x, target), (x_there, target_there) in zip(batches.epoch(epoch, start), expected, strict=True):
        assert x.dtype == torch.float32 and x.is_contiguous()
        assert torch.equal(x, x_there.contiguous()) and torch.equal(target, target_there)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32", "hot"])
def test_frames_equal_the_reference_and_those_from_the_device_and_ahead_too(recipe, kind):
    (inputs, values), transforms, cpu = stored(kind), RECIPES[recipe], torch.device("cpu")
    train = MemoryBatches(inputs, LABELS, B, seed=3, shuffle=True, transforms=transforms)
    test = MemoryBatches(inputs, LABELS, 5, indices=[1, 7, 2])
    for epoch in range(3):
        check(train, reference(values, transforms, epoch, 3), epoch)
    for shares in ([train, None, test], [train.shard(1, 2), None, test.shard(1, 2)]):
        there, early = feed(shares, cpu, on_device=True), feed(shares, cpu, ahead=True)
        assert isinstance(there[0].inputs, torch.Tensor) and there[0].inputs is there[2].inputs
        kinds = {"uint8": torch.uint8, "hot": torch.uint8, "float16": torch.float16}
        assert there[0].inputs.dtype == kinds.get(kind, torch.float32)
        for part, resident, made_early in zip(shares, there, early, strict=True):
            for start in range(len(part or ())):
                check(resident, part.epoch(1, start), 1, start)
                check(made_early, part.epoch(1, start), 1, start)


def test_images_from_the_device_equal_the_host():
    images, normalize = COUNTS[:, 0].astype(np.uint8), Normalize([3.0, 4.0], [1.5, 0.7], "bgr")
    transforms = [RandomCrop(4), RandomFlip(0.5), normalize, Mix(5, mixup=0.5, cutmix=1.0)]
    train = MemoryBatches(torch.from_numpy(images), LABELS, B, seed=1, shuffle=True, transforms=transforms)
    (there,) = feed([train], torch.device("cpu"), on_device=True)
    for epoch in range(4):
        check(there, train.epoch(epoch), epoch)


def test_what_has_no_form_for_a_device_stays_on_the_host_with_one_line(caplog):
    inputs = stored("uint8")[0]
    train = MemoryBatches(inputs, LABELS, B, seed=3, shuffle=True, transforms=[RandomFlip(0.5), EventMix(5, 1.0)])
    with caplog.at_level("INFO", "snn_repro"):
        part, _, test = feed([train, None, MemoryBatches(inputs, LABELS, 4)], torch.device("cpu"), on_device=True)
    assert caplog.messages == [
        "dataset.on_device=true: training batches are made on the host, as augment.eventmix runs on the CPU only"
    ]
    assert isinstance(test.inputs, torch.Tensor) and not isinstance(part.inputs, torch.Tensor)
    check(part, train.epoch(0), 0)


def test_a_copy_checks_the_rows_that_are_used():
    def bad(row, frames):
        if row == 4:
            raise DataError("row 4 is damaged")

    inputs = stored("uint8")[0]
    parts = [MemoryBatches(inputs, LABELS, 2, indices=rows, check=bad) for rows in ([0, 1], [3, 5])]
    feed(parts, torch.device("cpu"), on_device=True)
    parts.append(MemoryBatches(inputs, LABELS, 2, indices=[4], check=bad))
    with pytest.raises(DataError, match="row 4 is damaged"):
        feed(parts, torch.device("cpu"), on_device=True)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_the_thread_raises_in_its_place_and_ends_where_the_epoch_is_left():
    def bad(row, frames):
        if row == 6:
            raise DataError("row 6 is damaged")

    whole = MemoryBatches(stored("uint8")[0], LABELS, 2, check=bad)
    (early,) = feed([whole], torch.device("cpu"), ahead=True)
    seen = []
    with pytest.raises(DataError, match=r"^row 6 is damaged$"):
        seen.extend(target for _, target in early.epoch(0))
    assert len(seen) == 3 and not threads()
    for _ in early.epoch(0):
        assert len(threads()) == 1
        break
    assert not threads()


@pytest.mark.parametrize("free, placed", [(40, True), (3.5, False)])
def test_auto_copies_what_takes_a_quarter_of_the_memory_that_is_free(monkeypatch, caplog, free, placed):
    inputs = stored("uint8")[0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * inputs.nbytes), 0))
    monkeypatch.setattr("snn_repro.data.batches._copy", lambda parts, device: (torch.from_numpy(inputs), {}))
    part, gpu = MemoryBatches(inputs, LABELS, B), torch.device("cuda", 0)
    with caplog.at_level("INFO", "snn_repro"):
        (fed,) = feed([part], gpu)
    assert isinstance(fed.inputs, torch.Tensor) == placed and fed.device == gpu and fed.ahead == (not placed)
    assert ("so batches are made on the host" in caplog.text) == (not placed)
    assert not isinstance(feed([part], gpu, on_device=False)[0].inputs, torch.Tensor)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (inputs.nbytes - 1, 0))
    with pytest.raises(UserError, match="^dataset.on_device=true: the data set takes 0.0 GB and cuda:0 has 0.0 GB"):
        feed([part], gpu, on_device=True)


def test_what_goes_by_the_network_waits_for_the_step_before():
    guided = MemoryBatches(stored("uint8")[0], LABELS, B, transforms=[RandomFlip(0.5), RPGDrop(0.5)])
    (fed,) = feed([guided], torch.device("cpu"), on_device=True, ahead=True)
    assert not fed.ahead and fed.inputs is guided.inputs
    (fed,) = feed([MemoryBatches(guided.inputs, LABELS, B)], torch.device("cpu"))  # a CPU changes nothing by itself
    assert fed.inputs is guided.inputs and not fed.ahead and fed.device == torch.device("cpu")
