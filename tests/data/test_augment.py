"""Augmentation: against torchvision where it has the operation, and against the published rules where it has not."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from snn_repro.config import AugmentConfig
from snn_repro.data.augment import Normalize, batch_transforms, eval_sample_transform, sample_transform
from snn_repro.data.augment.crop import RandomCrop
from snn_repro.data.augment.event_policy import EventPolicy
from snn_repro.data.augment.eventdrop import EventDrop
from snn_repro.data.augment.flip import RandomFlip
from snn_repro.data.augment.mix import Mix
from snn_repro.data.augment.nda import NDA
from snn_repro.data.batches import make_generator
from snn_repro.data.events import Events
from snn_repro.data.sets import SETS
from snn_repro.registry import AUGMENTATIONS


def frames(t=3, b=6, h=20, w=24, seed=0):
    return torch.randint(1, 9, (t, b, 2, h, w), generator=make_generator(seed)).float()


def keys(**values):
    """A configuration's augmentations: those given, all else at its default."""
    return AugmentConfig({k: s.default for k, s in AUGMENTATIONS.all_settings().items()} | values)


LABELS = torch.arange(6)
ALL = [
    RandomCrop(4),
    RandomFlip(0.5),
    EventPolicy(),
    NDA(3, 15),
    Mix(6, mixup=0.5),
    Mix(6, cutmix=1.0),
    Mix(6, mixup=0.5, cutmix=1.0, mix_prob=0.5, cutmix_axes="published"),
]


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_same_seed_same_draw_same_over_time_and_input_untouched(transform):
    one = frames(t=1)
    x = one.expand(3, *one.shape[1:]).contiguous()
    before = x.clone()
    results = [transform(x, LABELS, make_generator(9)) for _ in range(2)]
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert torch.equal(x, before)
    out = results[0][0]
    assert out.shape == x.shape
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    seen = [transform(x, LABELS, make_generator(seed)) for seed in range(8)]
    assert any(not torch.equal(s[0], seen[0][0]) or not torch.equal(s[1], seen[0][1]) for s in seen)
    image, _ = transform(x[0], LABELS, make_generator(9))
    if not (isinstance(transform, Mix) and transform.cutmix_axes == "published"):
        assert torch.equal(image, out[0])  # a batch without a time axis is treated alike


def test_crop_equals_pad_and_slice():
    x = frames()
    out, _ = RandomCrop(4)(x, LABELS, make_generator(1))
    dy, dx = torch.randint(9, (2, 6), generator=make_generator(1))
    for b in range(6):
        expected = TF.crop(TF.pad(x[:, b], [4]), int(dy[b]), int(dx[b]), 20, 24)
        assert torch.equal(out[:, b], expected)


def test_flip_mirrors_about_half():
    x = torch.arange(4.0).expand(1, 1000, 1, 1, 4)
    out, _ = RandomFlip(0.5)(x, LABELS, make_generator(0))
    mirrored = (out[0, :, 0, 0, 0] == 3).sum()
    assert 400 < mirrored < 600
    assert torch.equal(RandomFlip(1.0)(x, LABELS, make_generator(0))[0], x.flip(-1))


def test_normalize_in_both_channel_orders():
    x = torch.tensor([[[[10]], [[20]], [[30]]]], dtype=torch.uint8)
    mean, std = [1, 2, 3], [1, 2, 4]
    assert Normalize(mean, std)(x, LABELS, None)[0].flatten().tolist() == [9, 9, 6.75]
    assert Normalize(mean, std, "bgr")(x, LABELS, None)[0].flatten().tolist() == [29, 9, 1.75]


def event_policy(operation, x, level, part, place):
    """One operation on the frames [T, C, H, W] of a sample; Cutout at `place` over `part` of the area."""
    draws = torch.tensor([operation]), torch.tensor([level]), torch.tensor([part]), torch.tensor(place).view(2, 1)
    return EventPolicy().apply(x.unsqueeze(1), torch.zeros(1), draws, torch.arange(1), 1)[0][:, 0]


def test_event_policy_uses_six_operations_with_published_limits():
    x = torch.ones(1, 4000, 1, 32, 32)
    out, _ = EventPolicy()(x, torch.zeros(4000), make_generator(0))
    untouched = (out == 1).all(-1).all(-1).flatten()
    # identity, the middle level of the others and translations below one pixel
    assert 0.16 < untouched.float().mean() < 0.35
    lost = (1024 - out.sum((-1, -2)).flatten()) / 1024
    assert lost.max() < 0.25
    cut = event_policy(5, x[:, 0], 30, 100 / 1024, (0.5, 0.5))
    assert cut.sum() == 1024 - 100 and torch.equal(event_policy(0, x[:, 0], 30, 0.1, (0.5, 0.5)), x[:, 0])


# int() of torch.linspace(-5, 5, 31) in float32: levels 12 and 18 are 1 only on paper
SHIFTS = [-5, -4, -4, -4, -3, -3, -3, -2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5]


@pytest.mark.parametrize("level", range(31))
def test_event_policy_levels_are_the_released_ones(level):
    """The released code takes a magnitude of torch.linspace(-max, max, 31) and cuts shifts to whole pixels."""
    x = torch.rand(2, 2, 40, 48, generator=make_generator(0))
    shear, rotate = (torch.linspace(-end, end, 31)[level].item() for end in (0.3, 30.0))
    applied = [event_policy(k, x, level, 0.0, (0.0, 0.0)) for k in range(5)]
    assert torch.equal(applied[1], TF.affine(x, 0, [0, 0], 1, [float(np.degrees(shear)), 0]))
    assert torch.equal(applied[2], TF.affine(x, 0, [SHIFTS[level], 0], 1, [0, 0]))
    assert torch.equal(applied[3], TF.affine(x, 0, [0, SHIFTS[level]], 1, [0, 0]))
    assert torch.equal(applied[4], TF.rotate(x, rotate))


def test_nda_rolls_keep_every_count():
    x = frames(t=2, b=200)
    out, _ = NDA(3, 15)(x, torch.zeros(200), make_generator(2))
    kept = (out.sum((0, 2, 3, 4)) == x.sum((0, 2, 3, 4))).float().mean()
    assert 0.25 < kept < 0.5  # a roll loses nothing, the other two lose corners


def test_mixup_is_convex_and_targets_follow():
    x = torch.eye(6).view(1, 6, 1, 1, 6)  # the sample is its own one-hot label
    out, soft = Mix(6, mixup=0.5)(x, LABELS, make_generator(3))
    assert torch.allclose(out.view(6, 6), soft, atol=1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(6))


def test_spatial_cutmix_moves_labels_with_pixels():
    x = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(2, 6, 2, 20, 24).contiguous()
    for seed in range(20):
        out, soft = Mix(6, cutmix=1.0)(x, LABELS, make_generator(seed))
        for b in range(6):
            part = (out[:, b] == b).float().mean()
            assert torch.isclose(soft[b, b], part, atol=1e-6)


def test_published_cutmix_cuts_polarity_and_height():
    """About a third of the batches change a pixel, yet labels always move, by about 0.32 of their mass."""
    x = torch.arange(2.0).view(1, 2, 1, 1, 1).expand(1, 2, 2, 128, 128).contiguous()
    changed, mass = 0, []
    mix = Mix(2, cutmix=1.0, cutmix_axes="published")
    pixels = []
    for seed in range(500):
        out, soft = mix(x, torch.arange(2), make_generator(seed))
        if soft[0, 0] == 1:  # the random order kept both samples in place
            continue
        different = (out[0, 0] != 0).float()
        pixels.append(different.mean().item())
        changed += different.any().item()
        mass.append(1 - soft[0, 0].item())
        assert (different.flatten(1).min() == different.amin()) and different.std(-1).max() == 0  # whole rows
    assert 0.29 < changed / len(mass) < 0.39
    assert 0.26 < np.mean(mass) < 0.38
    assert 0.15 < np.mean(pixels) < 0.25


def test_event_drop_only_drops():
    rng, n = np.random.RandomState(0), 2000
    t = np.sort(rng.randint(10**6, 2 * 10**6, n)).astype(np.int64)
    x, y, p = (rng.randint(0, most, n).astype(kind) for most, kind in ((30, np.int16), (20, np.int16), (2, np.uint8)))
    events = Events(t, x, y, p)
    sizes = set()
    for seed in range(30):
        np.random.seed(seed)
        kept = EventDrop().apply(events, (20, 30))
        np.random.seed(seed)
        again = EventDrop().apply(events, (20, 30))
        assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))
        assert 0 < len(kept.t) <= n and kept.t.dtype == np.int64 and kept.p.dtype == np.uint8
        sizes.add(len(kept.t))
    assert n in sizes and len(sizes) > 10
    empty = Events(*(a[:0] for a in events))
    assert len(EventDrop().apply(empty, (20, 30)).t) == 0


def test_order_of_the_composed_transforms():
    def names(augment, dataset, *more):
        return [type(t).__name__ for t in batch_transforms(augment, SETS[dataset], *more)]

    augment = keys(crop_padding=4, flip=0.5, event_policy=True, mixup=0.5, cutmix=1.0)
    assert names(augment, "cifar10_dvs") == ["RandomCrop", "RandomFlip", "EventPolicy", "Mix"]
    assert batch_transforms(keys(nda=True), SETS["ncaltech101"])[0].shift == 3
    normalize = Normalize([0], [1])
    assert names(keys(crop_padding=4, flip=0.5), "cifar10", normalize) == ["RandomCrop", "RandomFlip", "Normalize"]
    pil = keys(crop_padding=4, flip=0.5, randaugment_ops=2, mixup=0.1)
    assert names(pil, "cifar10", normalize, True) == ["Normalize", "Mix"]


def test_randaugment_is_timms_increasing_one():
    augment = keys(rrc_min_area=0.875, flip=0.5, randaugment_ops=2, randaugment_level=7)
    transform = sample_transform(augment, SETS["cifar10"], 32, [125.3, 123.0, 113.9])
    policy = transform.transforms[2]
    assert len(policy.ops) == 15 and policy.num_layers == 2
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in policy.ops} == {(0.5, 7, 0.5)}
    assert policy.ops[0].kwargs["fillcolor"] == (125, 123, 114)
    image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (300, 400, 3), np.uint8))
    out = transform(image)
    assert out.dtype == torch.uint8 and out.shape == (3, 32, 32)
    assert eval_sample_transform(keys(test_resize=236), 224)(image).shape == (3, 224, 224)
