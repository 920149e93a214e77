"""Shares of a batch: what one process draws for a whole batch, several draw together, bit for bit."""

import hashlib
import random

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
from snn_repro.data.augment.rpg import RPGDrop, RPGMix
from snn_repro.data.augment.smooth_labels import SmoothLabels
from snn_repro.data.batches import LoaderBatches, MemoryBatches, make_generator

N, BATCH = 31, 12  # batches of 12, 12 and 7
IMAGES = torch.randint(0, 256, (N, 3, 16, 12), generator=make_generator(1)).to(torch.uint8)
FRAMES = torch.randint(0, 9, (N, 2, 2, 16, 12), generator=make_generator(2)).numpy().astype(np.uint8)
TARGETS = np.arange(N) % 5
NORMALIZE = Normalize([120, 110, 100], [60, 50, 40], "bgr")

ALL = [
    RandomCrop(3), RandomFlip(0.5), EventPolicy(), NDA(3, 15), Mix(5, mixup=0.5), Mix(5, cutmix=1.0),
    Mix(5, mixup=0.5, cutmix=1.0, mix_prob=0.6, cutmix_axes="published"), SmoothLabels(5, 0.1),
]  # fmt: skip
CASES = {"images": [*ALL[:4], NORMALIZE, *ALL[4:]], "frames": ALL}


def guided(step):
    step.relevance = lambda x, rule: (x * torch.linspace(0, 1, 12), x.sum(2, keepdim=True)[..., ::2, ::2] ** 3)
    return step


MIXED = {  # steps that float frames alone have
    "eventmix": EventMix(5, 1.0, 0.6), "rpg_drop": guided(RPGDrop(0.7)), "rpg_mix": guided(RPGMix(5, 0.7)),
}  # fmt: skip


class Noisy(torch.utils.data.Dataset):
    """Samples that draw from all three global generators, as PIL transforms do."""

    def __init__(self, inputs):
        self.inputs = torch.as_tensor(inputs)

    def __len__(self):
        return N

    def __getitem__(self, i):
        noise = torch.rand(self.inputs.shape[1:]) + np.random.rand() + random.random()
        return self.inputs[i] + noise, int(TARGETS[i])


def make(kind: str, where: str, transforms, **options):
    inputs = IMAGES if kind == "images" else FRAMES
    options = {"seed": 3, "shuffle": True, "transforms": transforms} | options
    if where == "memory":
        return MemoryBatches(inputs, TARGETS, BATCH, **options)
    return LoaderBatches(Noisy(inputs), BATCH, **options)


def digest(batches) -> str:
    found = hashlib.sha256()
    for x, target in batches.epoch(2):
        found.update(repr((x.dtype, x.shape, target.dtype, target.shape)).encode())
        found.update(x.numpy().tobytes() + target.numpy().tobytes())
    return found.hexdigest()[:16]


PINNED = {  # of one process, as it always was: without transforms, and with all of them
    ("memory", "images"): ("3ab90ea71c669425", "8df96e8ed479e470"), ("memory", "frames"): ("8bc6cd6aa9af33b5", "69348fb7085b4b67"),
    ("loader", "images"): ("26b6c83ee452c5da", "5ad6186302422554"), ("loader", "frames"): ("9eb5de912288712a", "7fdc213528aec284"),
}  # fmt: skip


@pytest.mark.parametrize("where, kind", PINNED)
def test_one_process_draws_what_it_always_drew(where, kind):
    assert tuple(digest(make(kind, where, steps)) for steps in ([], CASES[kind])) == PINNED[where, kind]


def shares_are_the_batch(whole):
    """Inputs and targets, last smaller batch and repeated copies included; draw k belongs to process k % world."""
    one = list(whole.epoch(4))
    assert [t.shape[0] for _, t in one] == [12, 12, 7]
    for world, rank in ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2)):
        share = whole.shard(rank, world)
        for start in (0, 2):
            for (x, target), (own_x, own_target) in zip(one[start:], share.epoch(4, start), strict=True):
                assert own_x.is_contiguous() and own_x.dtype == torch.float32
                assert torch.equal(own_x, x.movedim(-4, 0)[rank::world].movedim(0, -4))
                assert own_target.dtype == target.dtype and torch.equal(own_target, target[rank::world])


@pytest.mark.parametrize("where", ["memory", "loader"])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("repeats", [1, 3])
def test_shares_of_two_and_three_processes_are_the_batch_of_one(kind, where, repeats):
    shares_are_the_batch(make(kind, where, CASES[kind], repeats=repeats))


@pytest.mark.parametrize("name", MIXED)
def test_shares_of_mixed_recordings(name):
    whole = make("frames", "memory", [MIXED[name]])
    shares_are_the_batch(whole)
    plain = make("frames", "memory", [])
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(whole.epoch(4), plain.epoch(4), strict=True))


def test_partners_are_read_only_where_a_batch_is_mixed():
    """At most twice the share, and nothing more where nothing is mixed."""
    read = []

    class Counted(Noisy):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    for prob, least, most in ((1.0, 17, 32), (0.0, 16, 16)):
        read.clear()
        steps = [RandomCrop(3), Mix(5, mixup=0.5, mix_prob=prob)]
        list(LoaderBatches(Counted(IMAGES), BATCH, seed=3, shuffle=True, transforms=steps).shard(0, 2).epoch(0))
        assert least <= len(read) <= most
