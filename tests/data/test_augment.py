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
from snn_repro.data.augment.flip import RandomFlip
from snn_repro.data.augment.mix import Mix
from snn_repro.data.augment.nda import NDA
from snn_repro.data.batches import make_generator
from snn_repro.data.sets import SETS
from snn_repro.registry import AUGMENTATIONS


def frames(t=3, b=6, h=20, w=24, seed=0):
    return torch.randint(1, 9, (t, b, 2, h, w), generator=make_generator(seed)).float()


def keys(**values):
    """A configuration's augmentations: those given, all else at its default."""
    return AugmentConfig({k: s.default for k, s in AUGMENTATIONS.all_settings().items()} | values)


LABELS = torch.arange(6)
ALL = [
    RandomCrop(4), RandomFlip(0.5), EventPolicy(), NDA(3, 15), Mix(6, mixup=0.5), Mix(6, cutmix=1.0),
    Mix(6, mixup=0.5, cutmix=1.0, mix_prob=0.5, cutmix_axes="published"),
]  # fmt: skip


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_all_steps_of_a_sample_are_treated_alike_and_the_input_is_untouched(transform):
    x = frames(t=1).repeat(3, 1, 1, 1, 1)
    before = x.clone()
    out, _ = transform(x, LABELS, make_generator(9))
    assert torch.equal(x, before) and out.shape == x.shape
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    image, _ = transform(x[0], LABELS, make_generator(9))
    if getattr(transform, "cutmix_axes", "") != "published":
        assert torch.equal(image, out[0])  # a batch without a time axis is treated alike


def test_crop_equals_pad_and_slice():
    x = frames()
    out, _ = RandomCrop(4)(x, LABELS, make_generator(1))
    dy, dx = torch.randint(9, (2, 6), generator=make_generator(1))
    for b in range(6):
        expected = TF.crop(TF.pad(x[:, b], [4]), int(dy[b]), int(dx[b]), 20, 24)
        assert torch.equal(out[:, b], expected)


def test_normalize_in_both_channel_orders():
    x = torch.tensor([[[[10]], [[20]], [[30]]]], dtype=torch.uint8)
    mean, std = [1, 2, 3], [1, 2, 4]
    assert Normalize(mean, std)(x, LABELS, None)[0].flatten().tolist() == [9, 9, 6.75]
    assert Normalize(mean, std, "bgr")(x, LABELS, None)[0].flatten().tolist() == [29, 9, 1.75]


def event_policy(operation, x, level, part, place):
    """One operation on the frames [T, C, H, W] of a sample; Cutout at `place` over `part` of the area."""
    draws = torch.tensor([operation]), torch.tensor([level]), torch.tensor([part]), torch.tensor(place).view(2, 1)
    return EventPolicy().apply(x.unsqueeze(1), torch.zeros(1), draws, torch.arange(1), 1)[0][:, 0]


# int() of torch.linspace(-5, 5, 31) in float32: levels 12 and 18 are 1 only on paper
SHIFTS = [-5, -4, -4, -4, -3, -3, -3, -2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5]


@pytest.mark.parametrize("level", range(31))
def test_event_policy_levels_are_the_released_ones(level):
    """The released code takes a magnitude of torch.linspace(-max, max, 31) and cuts shifts to whole pixels."""
    x = torch.rand(2, 2, 40, 48, generator=make_generator(0))
    shear, rotate = (torch.linspace(-end, end, 31)[level].item() for end in (0.3, 30.0))
    applied = [event_policy(k, x, level, 100 / 1920, (0.5, 0.5)) for k in range(6)]
    assert torch.equal(applied[0], x) and (applied[5] == 0).sum() == 4 * 100
    assert torch.equal(applied[1], TF.affine(x, 0, [0, 0], 1, [float(np.degrees(shear)), 0]))
    assert torch.equal(applied[2], TF.affine(x, 0, [SHIFTS[level], 0], 1, [0, 0]))
    assert torch.equal(applied[3], TF.affine(x, 0, [0, SHIFTS[level]], 1, [0, 0]))
    assert torch.equal(applied[4], TF.rotate(x, rotate))


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
    x = torch.arange(2.0).view(1, 2, 1, 1, 1).expand(1, 2, 2, 128, 128)
    mass, pixels, mix = [], [], Mix(2, cutmix=1.0, cutmix_axes="published")
    for seed in range(500):
        out, soft = mix(x, torch.arange(2), make_generator(seed))
        if soft[0, 0] < 1:  # else the random order kept both samples in place
            different = (out[0, 0] != 0).float()
            assert different.std(-1).max() == 0  # whole rows
            pixels.append(different.mean().item())
            mass.append(1 - soft[0, 0].item())
    assert 0.29 < np.mean(np.array(pixels) > 0) < 0.39
    assert 0.26 < np.mean(mass) < 0.38
    assert 0.15 < np.mean(pixels) < 0.25


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
