"""Batches: the same numbers from any starting point, any number of workers, any number of ranks. See test_shares.py too."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from snn_repro.config import load_config
from snn_repro.data.augment import BatchTransform
from snn_repro.data.batches import LoaderBatches, MemoryBatches, epoch_order, make_generator
from snn_repro.data.build import Part, assemble, balanced
from snn_repro.data.dataset import Batches, Split
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError

N = 23
IMAGES = torch.arange(N * 3 * 4 * 4).reshape(N, 3, 4, 4).to(torch.uint8)
TARGETS = torch.arange(N)


class AddNoise(BatchTransform):
    def draw(self, n, generator):
        return torch.rand(n, generator=generator).view(n, 1, 1, 1)

    def apply(self, x, target, draws, rows, keep):
        return x + draws[rows], target


class Noisy(torch.utils.data.Dataset):
    """Draws from all three global generators, as PIL transforms do."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return IMAGES[i] + torch.rand(3, 4, 4) + np.random.rand() + random.random(), i


class Broken(Noisy):
    def __getitem__(self, i):
        if i == 5:
            raise DataError("image_5.png is cut short at byte 17")
        return super().__getitem__(i)


def collect(batches, epoch, start=0):
    return list(batches.epoch(epoch, start))


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)
    )


def make(kind, **options):
    if kind == "memory":
        return MemoryBatches(IMAGES, TARGETS, 5, transforms=[AddNoise()], **options)
    return LoaderBatches(Noisy(), 5, transforms=[AddNoise()], **options)


@pytest.mark.parametrize("kind", ["memory", "loader"])
@pytest.mark.parametrize("options", [{"repeats": 3}, {"drop_last": True}])
def test_start_changes_nothing(kind, options):
    batches = make(kind, seed=1, shuffle=True, **options)
    assert isinstance(batches, Batches)
    whole = collect(batches, epoch=4)
    assert len(whole) == len(batches) == (4 if options.get("drop_last") else 5)
    assert sum(len(t) for _, t in whole) == batches.n_samples
    for start in range(len(batches) + 1):
        assert equal(collect(batches, 4, start), whole[start:])
    assert not equal(collect(batches, 5), whole)
    assert not equal(collect(make(kind, seed=2, shuffle=True, **options), 4), whole)
    with pytest.raises(ValueError, match="start=9"):
        collect(batches, 4, 9)


def test_workers_change_nothing_and_survive_an_abandoned_epoch():
    alone = LoaderBatches(Noisy(), 5, seed=3, shuffle=True, repeats=3)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    helped = LoaderBatches(Noisy(), 5, seed=3, shuffle=True, repeats=3, workers=2)
    assert equal(collect(alone, 0), collect(helped, 0))
    iterator = helped.epoch(1)
    next(iterator)
    assert equal(collect(alone, 2, 1), collect(helped, 2, 1))
    drawn = random.random(), np.random.rand(), torch.rand(1).item()  # reading leaves the global generators alone
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_sentence(workers):
    with pytest.raises(DataError, match=r"^image_5.png is cut short at byte 17$"):
        collect(LoaderBatches(Broken(), 5, workers=workers), 0)


def test_unshuffled_batches_keep_the_order_and_every_sample():
    ((x, target),) = collect(MemoryBatches(IMAGES, TARGETS, 5, indices=[7, 3, 11]), 0)
    assert target.tolist() == [7, 3, 11] and torch.equal(x, IMAGES[[7, 3, 11]].float())
    parts = [MemoryBatches(IMAGES, TARGETS, 4).shard(rank, 5) for rank in range(5)]
    assert sum(part.n_samples for part in parts) == N  # also when processes share them: none is counted twice
    assert epoch_order(N, 0, 1, False, world=5).tolist() == list(range(N))


@pytest.mark.parametrize("kind", ["memory", "loader"])
def test_class_balanced_draws_are_replayed_shared_and_those_of_torchs_sampler(kind):
    labels, rows = np.repeat([0, 1, 2], [2, 6, 15]), np.arange(1, N)
    weights = balanced(Part(IMAGES, labels, rows))
    sampler = WeightedRandomSampler([1 / [2, 6, 15][k] for k in labels[rows]], N - 1, generator=make_generator(1, 4, 0))
    of, inputs = (MemoryBatches, (IMAGES, TARGETS)) if kind == "memory" else (LoaderBatches, (Noisy(),))
    batches = of(*inputs, 6, seed=1, shuffle=weights, indices=rows)
    whole = collect(batches, 4)
    assert torch.cat([t for _, t in whole]).tolist() == [rows[i] for i in sampler]
    assert equal(collect(batches, 4, 2), whole[2:]) and not equal(collect(batches, 5), whole)
    for rank in range(2):
        for (x, y), (own_x, own_y) in zip(whole, batches.shard(rank, 2).epoch(4), strict=True):
            assert torch.equal(own_x, x[rank::2]) and torch.equal(own_y, y[rank::2])
    many = np.concatenate([labels[rows][epoch_order(N - 1, 1, epoch, weights)] for epoch in range(200)])
    wanted = [0.2, 0.4, 0.4]  # one of the two of class 0 is there
    assert np.bincount(many) / len(many) == pytest.approx(wanted, abs=0.02)


def test_a_recipe_asks_for_class_balanced_draws():
    for balance in (False, True):
        train = SETS["digits"].build(load_config(["dataset=digits", f"recipe.class_balanced={balance}"])).train
        drawn = torch.cat([planned.rows for planned in train.plan(0, 0)])
        assert (len(drawn.unique()) < 0.7 * len(drawn)) == balance and len(drawn) == train.n_samples


def test_repeated_augmentation_has_adjacent_copies_of_a_third_of_the_images():
    """50,000 draws of 16,667 different images, three copies next to each other, 196 batches of 256."""
    indices = epoch_order(50_000, seed=0, epoch=0, shuffle=True, repeats=3)
    assert len(indices) == 50_000 and len(indices.unique()) == 16_667
    copies = indices[: 16_666 * 3].view(-1, 3)
    assert (copies == copies[:, :1]).all()
    batches = MemoryBatches(torch.zeros(50_000, 1, 1, 1), torch.zeros(50_000), 256, shuffle=True, repeats=3)
    assert len(batches) == 196
    by_rank = [epoch_order(50_000, 0, 0, True, 3, 3)[rank::3] for rank in range(3)]
    assert torch.equal(by_rank[0][:16_666], by_rank[1][:16_666])  # one copy on each of three processes


def test_wrong_sizes_are_told():
    with pytest.raises(UserError, match="recipe.batch_size=24 leaves no full batch of 23"):
        MemoryBatches(IMAGES, TARGETS, 24, drop_last=True)
    with pytest.raises(DataError, match="no samples"):
        MemoryBatches(IMAGES, TARGETS, 4, indices=[])
    with pytest.raises(DataError, match="23 inputs but 22 targets"):
        MemoryBatches(IMAGES, TARGETS[:-1], 4)


@pytest.mark.parametrize("shape, label, said", [
    ((1, 8, 8), 10, "with labels 0 to 10, but its file in data/sets/ declares 10 classes"),
    ((1, 8, 9), 1, r"as images \[1, 8, 9\], but its file in data/sets/ declares \[1, 8, 8\], static=True"),
    ((3, 1, 8, 8), 1, r"as frames \[1, 8, 8\], but its file in data/sets/ declares \[1, 8, 8\], static=True"),
])  # fmt: skip
def test_arrays_that_are_not_what_their_set_says_are_refused(shape, label, said):
    part, split = Part(torch.zeros(2, *shape), [0, label]), Split("digits/official", "", 2, 2, 2)
    with pytest.raises(DataError, match=f"digits was read {said}"):
        assemble(load_config(["dataset=digits"]), SETS["digits"], [part] * 3, split, [])
