"""Shares of a batch: what one process draws for a whole batch, several draw together, bit for bit."""

import hashlib
import random

import numpy as np
import pytest
import torch

from snn_repro.data.augment import Normalize
from snn_repro.data.augment.crop import RandomCrop
from snn_repro.data.augment.event_policy import EventPolicy
from snn_repro.data.augment.flip import RandomFlip
from snn_repro.data.augment.mix import Mix
from snn_repro.data.augment.nda import NDA
from snn_repro.data.augment.smooth_labels import SmoothLabels
from snn_repro.data.batches import LoaderBatches, MemoryBatches, make_generator

N, BATCH = 31, 12  # batches of 12, 12 and 7
IMAGES = torch.randint(0, 256, (N, 3, 16, 12), generator=make_generator(1)).to(torch.uint8)
FRAMES = torch.randint(0, 9, (N, 2, 2, 16, 12), generator=make_generator(2)).numpy().astype(np.uint8)
TARGETS = np.arange(N) % 5
NORMALIZE = Normalize([120, 110, 100], [60, 50, 40], "bgr")

ALONE = {
    "none": [],
    "crop": [RandomCrop(3)],
    "flip": [RandomFlip(0.5)],
    "policy": [EventPolicy()],
    "nda": [NDA(3, 15)],
    "mixup": [Mix(5, mixup=0.5)],
    "cutmix": [Mix(5, cutmix=1.0)],
    "mix": [Mix(5, mixup=0.5, cutmix=1.0, mix_prob=0.6, cutmix_axes="published")],
    "smooth": [SmoothLabels(5, 0.1)],
}
ALL = [
    RandomCrop(3),
    RandomFlip(0.5),
    EventPolicy(),
    NDA(3, 15),
    ALONE["mixup"][0],
    ALONE["cutmix"][0],
    ALONE["mix"][0],
    SmoothLabels(5, 0.1),
]
CASES = {
    "images": ALONE | {"normalize": [NORMALIZE], "all": [*ALL[:4], NORMALIZE, *ALL[4:]]},
    "frames": ALONE | {"all": ALL},
}


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


def every(case):
    return pytest.mark.parametrize(
        case, [(kind, name) for kind, cases in CASES.items() for name in cases], ids="-".join
    )


def digest(batches) -> str:
    found = hashlib.sha256()
    for x, target in batches.epoch(2):
        found.update(repr((x.dtype, x.shape, target.dtype, target.shape)).encode())
        found.update(x.numpy().tobytes() + target.numpy().tobytes())
    return found.hexdigest()[:16]


PINNED = {  # of one process, as it always was
    ("memory", "images"): {
        "none": "3ab90ea71c669425", "crop": "7ba050d0cc97958d", "flip": "a1b7c9bdd79b94fd", "policy": "48ccc3a833527cde",
        "nda": "9eeb1d3132feab4a", "mixup": "b2fb81a609b8ea07", "cutmix": "d4af780f874ad467", "mix": "a8c7da974fdea385",
        "smooth": "487387d0196c9aaf", "normalize": "16714f823029f4d5", "all": "8df96e8ed479e470",
    },
    ("memory", "frames"): {
        "none": "8bc6cd6aa9af33b5", "crop": "35334f36532042d9", "flip": "c438b52b21aade39", "policy": "78c7664d9c2f680f",
        "nda": "0dd838075e5ea50b", "mixup": "786657bbe235cecf", "cutmix": "30c2bc2212d8efc0", "mix": "72823746b2ea29c3",
        "smooth": "4f2faec3a297223b", "all": "69348fb7085b4b67",
    },
    ("loader", "images"): {
        "none": "26b6c83ee452c5da", "crop": "acca71ed1b71f14d", "flip": "c5e8b314f310288f", "policy": "b78608f3f174f78d",
        "nda": "4140fd3d409d52fc", "mixup": "30e41ebef1cde09c", "cutmix": "0dc5db1754f9a3b8", "mix": "e91d6fff9c938614",
        "smooth": "30ca47626659333c", "normalize": "31d538c30c0d0930", "all": "5ad6186302422554",
    },
    ("loader", "frames"): {
        "none": "9eb5de912288712a", "crop": "8b9e5b0a9e3bf8f0", "flip": "f0f7cfba4f2157fb", "policy": "f65d927dea704a22",
        "nda": "931f3968ea6e945b", "mixup": "38e7aa36f534b06e", "cutmix": "5a7febd30cbe4a87", "mix": "a5ac9d1c7c7235a8",
        "smooth": "2aac9575b9427372", "all": "7fdc213528aec284",
    },
}  # fmt: skip


@pytest.mark.parametrize("where", ["memory", "loader"])
@every("case")
def test_one_process_draws_what_it_always_drew(case, where):
    kind, name = case
    assert digest(make(kind, where, CASES[kind][name])) == PINNED[where, kind][name]


@pytest.mark.parametrize("where", ["memory", "loader"])
@every("case")
def test_shares_of_two_and_three_processes_are_the_batch_of_one(case, where):
    """Inputs and targets, last smaller batch and repeated copies included; draw k belongs to process k % world."""
    kind, name = case
    for options in ({}, {"repeats": 3}):
        whole = make(kind, where, CASES[kind][name], **options)
        one = list(whole.epoch(4))
        assert [t.shape[0] for _, t in one] == [12, 12, 7]
        for world in (2, 3):
            for rank in range(world):
                share = whole.shard(rank, world)
                for start in (0, 2):
                    for (x, target), (own_x, own_target) in zip(one[start:], share.epoch(4, start), strict=True):
                        assert own_x.is_contiguous() and own_x.dtype == torch.float32
                        assert torch.equal(own_x, x.movedim(-4, 0)[rank::world].movedim(0, -4))
                        assert own_target.dtype == target.dtype and torch.equal(own_target, target[rank::world])


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


def test_workers_read_partners_alike():
    mix = ALONE["mixup"]
    alone, helped = (make("images", "loader", mix, workers=n).shard(1, 3) for n in (0, 2))
    for a, b in zip(alone.epoch(1), helped.epoch(1), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
