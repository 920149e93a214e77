"""Batches equal, to the last bit, a plain reference that works in float32, sample by sample: on the host, ahead, on the device."""

import math
import threading
import time

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import affine, rotate

from snn_repro.config import load_config
from snn_repro.data.augment import Normalize
from snn_repro.data.augment.crop import RandomCrop
from snn_repro.data.augment.event_policy import EventPolicy, magnitudes
from snn_repro.data.augment.eventmix import EventMix
from snn_repro.data.augment.flip import RandomFlip
from snn_repro.data.augment.mix import Mix
from snn_repro.data.augment.nda import NDA
from snn_repro.data.augment.rpg import RPGDrop
from snn_repro.data.augment.smooth_labels import SmoothLabels
from snn_repro.data.batches import MemoryBatches, ahead, feed, make_generator
from snn_repro.data.counts import OVERFLOW, ByteFrames, apart
from snn_repro.errors import DataError, UserError
from snn_repro.train import run

N, T, H, W, B = 11, 3, 13, 18, 4
LABELS = np.arange(N) % 5
COUNTS = np.random.RandomState(0).poisson(1, (N, T, 2, H, W))


# ------------------------------------------------------------------ the reference


def plain(transform, x, target, draws):
    """What a transform does to float32 x [..., B, C, H, W] and a target."""
    samples = x.unbind(-4)
    if isinstance(transform, RandomCrop):
        p, out = transform.padding, []
        for sample, dy, dx in zip(samples, *draws.tolist(), strict=True):
            out.append(torch.nn.functional.pad(sample, (p,) * 4)[..., dy : dy + x.shape[-2], dx : dx + x.shape[-1]])
    elif isinstance(transform, RandomFlip):
        out = [s.flip(-1) if flips else s for s, flips in zip(samples, draws, strict=True)]
    elif isinstance(transform, EventPolicy):
        out = [plain_policy(s, *(d[..., b] for d in draws)) for b, s in enumerate(samples)]
    elif isinstance(transform, NDA):
        out = []
        for s, operation, shifts, angle in zip(samples, *(d.tolist() for d in draws), strict=True):
            moves = [lambda s: s.roll(shifts, (-2, -1)), lambda s: rotate(s, angle), lambda s: sheared(s, angle)]  # noqa: B023
            out.append(moves[operation](s))
    elif isinstance(transform, Mix):
        one_hot = torch.nn.functional.one_hot(target, 5).float()
        if draws is None:
            return x, one_hot
        other, lam = draws.other, draws.lam
        if draws.kind == "mixup":
            x = lam * x + (1 - lam) * x[..., other, :, :, :]
        else:
            ranges, size = [], x.shape[-2:]
            for n in size:
                centre, half = draws.box.randint(n), int(n * math.sqrt(1 - lam)) // 2
                ranges.append(slice(max(centre - half, 0), min(centre + half, n)))
            box = (
                (..., *ranges, slice(None)) if transform.cutmix_axes == "published" and x.ndim == 5 else (..., *ranges)
            )
            lam = 1 - math.prod(r.stop - r.start for r in ranges) / math.prod(size)
            mixed = x.clone()
            mixed[box] = x[..., other, :, :, :][box]
            x = mixed
        return x, lam * one_hot + (1 - lam) * one_hot[other]
    else:
        return x, (1 - transform.epsilon) * target + transform.epsilon / 5
    return torch.stack(out, -4), target


def sheared(x, degrees):
    return affine(x, angle=0.0, translate=[0, 0], scale=1.0, shear=[degrees, 0.0])


def plain_policy(x, operation, level, area, place):
    shift = int(magnitudes(5.0, 31)[level])
    match int(operation):
        case 1:
            return sheared(x, math.degrees(magnitudes(0.3, 31)[level]))
        case 2 | 3:
            to = [shift, 0] if operation == 2 else [0, shift]
            return affine(x, angle=0.0, translate=to, scale=1.0, shear=[0.0, 0.0])
        case 4:
            return rotate(x, magnitudes(30.0, 31)[level])
        case 5:
            height, width = x.shape[-2:]
            side = min(int((area * height * width).sqrt().round()), height, width)
            top, left = (int(p * (n - side + 1)) for p, n in zip(place.tolist(), (height, width), strict=True))
            x = x.clone()
            x[..., top : top + side, left : left + side] = 0
    return x


def reference(inputs, transforms, epoch, seed):
    """All batches of an epoch: gathered as float32, then one transform after another."""
    bare = MemoryBatches(np.zeros((N, 1, 1, 1), np.uint8), np.arange(N), B, seed=seed, shuffle=True)
    for batch, (_, rows) in enumerate(bare.epoch(epoch)):
        x = torch.from_numpy(np.stack([inputs[int(row)].astype(np.float32) for row in rows]))
        x, target, generator = x.transpose(0, 1) if x.ndim == 5 else x, torch.from_numpy(LABELS)[rows], None
        generator = make_generator(seed, epoch, 1, batch, 0)
        for transform in transforms:
            x, target = plain(transform, x, target, transform.draw(len(rows), generator))
        yield x, target


# ------------------------------------------------------------------ what is held against it

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
        parts = [(row, *apart(frames)) for row, frames in enumerate(counts)]
        table = [
            (row, place, count) for row, _, places, values in parts for place, count in zip(places, values, strict=True)
        ]
        assert len(table) == 3
        return ByteFrames(np.stack([part[1] for part in parts]), np.array(table, OVERFLOW)), counts
    frames = COUNTS / 3 if kind == "float16" else COUNTS
    return frames.astype(kind), frames.astype(kind)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32", "hot"])
def test_frames_equal_the_reference(recipe, kind):
    inputs, values = stored(kind)
    batches = MemoryBatches(inputs, LABELS, B, seed=3, shuffle=True, transforms=RECIPES[recipe])
    for epoch in range(3):
        check(batches, reference(values, RECIPES[recipe], epoch, 3), epoch)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("N-Caltech101", "NDA", "128 pixels")])
def test_images_equal_the_reference(recipe):
    images = COUNTS[:, 0].astype(np.uint8)
    transforms = [t for t in RECIPES[recipe] if not isinstance(t, EventPolicy)]
    batches = MemoryBatches(images, LABELS, B, seed=3, shuffle=True, transforms=transforms)
    check(batches, reference(images, transforms, 1, 3), 1)


def check(batches, expected, epoch, start=0):
    for (x, target), (x_there, target_there) in zip(batches.epoch(epoch, start), expected, strict=True):
        assert x.dtype == torch.float32 and x.is_contiguous()
        assert torch.equal(x, x_there.contiguous()) and torch.equal(target, target_there)


def test_byte_frames_are_the_counts():
    frames, counts = stored("hot")
    assert len(frames) == N and frames.dtype == np.uint8
    for row in range(N):
        assert np.array_equal(frames[row], counts[row])
    assert [str(frames[row].dtype) for row in (0, 2, 7)] == ["uint8", "uint16", "uint32"]


# ------------------------------------------------------------------ on a device, and ahead


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "hot"])
def test_batches_from_the_device_and_ahead_equal_the_host(recipe, kind):
    inputs, values = stored(kind)
    transforms = RECIPES[recipe]
    train = MemoryBatches(inputs, LABELS, B, seed=3, shuffle=True, transforms=transforms)
    test = MemoryBatches(inputs, LABELS, 5, indices=[1, 7, 2])
    for shares in ([train, None, test], [train.shard(1, 2), None, test.shard(1, 2)]):
        there = feed(shares, torch.device("cpu"), on_device=True)
        assert isinstance(there[0].inputs, torch.Tensor) and there[0].inputs is there[2].inputs
        assert there[0].inputs.dtype == {"uint16": torch.float32, "float16": torch.float16}.get(kind, torch.uint8)
        early = feed(shares, torch.device("cpu"), ahead=True)
        for part, resident, made_early in zip(shares, there, early, strict=True):
            for epoch in range(2) if part else ():
                for start in range(len(part)):
                    check(resident, part.epoch(epoch, start), epoch, start)
                    check(made_early, part.epoch(epoch, start), epoch, start)


def test_images_from_the_device_equal_the_host():
    images = COUNTS[:, 0].astype(np.uint8)
    transforms = [
        RandomCrop(4),
        RandomFlip(0.5),
        Normalize([3.0, 4.0], [1.5, 0.7], "bgr"),
        Mix(5, mixup=0.5, cutmix=1.0),
    ]
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
        "dataset.on_device=true: training batches are made on the host, as augment.eventmix has no form for a device"
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


def test_what_the_thread_raises_is_raised_in_its_place_and_it_ends():
    def bad(row, frames):
        if row == 6:
            raise DataError("row 6 is damaged")

    whole = MemoryBatches(stored("uint8")[0], LABELS, 2, check=bad)
    (early,) = feed([whole], torch.device("cpu"), ahead=True)
    seen = []
    with pytest.raises(DataError, match=r"^row 6 is damaged$"):
        seen.extend(target for _, target in early.epoch(0))
    assert len(seen) == 3 and not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_where_the_epoch_is_left(error):
    (early,) = feed([MemoryBatches(stored("uint8")[0], LABELS, 2)], torch.device("cpu"), ahead=True)
    for _ in early.epoch(0):
        assert len(threads()) == 1
        break
    assert not threads()
    with pytest.raises(error):
        for _ in early.epoch(0):
            raise error
    assert not threads()


def test_no_more_batches_are_made_than_wait():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    waiting = ahead(items(), depth=2)
    assert next(waiting) == 0
    for _ in range(100):
        if len(made) >= 3:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    assert list(waiting) == list(range(1, 20)) and not threads()


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
    with pytest.raises(
        UserError, match="^dataset.on_device=true: the data set takes 0.0 GB and cuda:0 has 0.0 GB free"
    ):
        feed([part], gpu, on_device=True)


def test_on_a_cpu_nothing_changes_by_itself():
    part = MemoryBatches(stored("uint8")[0], LABELS, B)
    (fed,) = feed([part], torch.device("cpu"))
    assert fed.inputs is part.inputs and not fed.ahead and fed.device == torch.device("cpu")


def test_what_goes_by_the_network_waits_for_the_step_before():
    guided = MemoryBatches(stored("uint8")[0], LABELS, B, transforms=[RandomFlip(0.5), RPGDrop(0.5)])
    (fed,) = feed([guided], torch.device("cpu"), on_device=True, ahead=True)
    assert not fed.ahead and fed.inputs is guided.inputs


def test_a_run_computes_the_same_wherever_its_batches_are_made(tmp_path):
    options = ["dataset=digits_dvs", "augment.crop_padding=1", "augment.flip=0.5", "augment.mixup=0.5", "recipe.epochs=1",
               "debug.max_steps=3", "debug.max_eval_batches=1", "logger.mode=disabled", f"cache_dir={tmp_path / 'cache'}"]  # fmt: skip
    losses = set()
    for k, way in enumerate((["dataset.on_device=false"], ["dataset.on_device=true"], ["dataset.ahead=true"])):
        result = run(load_config([*options, *way]), str(tmp_path / str(k)))
        losses.add((result.train_loss_last, result.loss_last))
    assert len(losses) == 1
