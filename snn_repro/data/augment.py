"""Augmentation: one implementation of each, on whole batches wherever no PIL image is needed.

Batch transforms (batches.BatchTransform) are callables (x, target, generator) -> (x, target). x is [B, C, H, W] or
frames [T, B, C, H, W]; all T frames of a sample share its draw. They draw from the given generator alone, for the
batch of all processes together, and never change x in place.

What each key of `augment.` means is said in the configuration's schema.

Order: crop, flip, then event_policy and nda, then Mix and SmoothLabels; with RandomResizedCrop or
RandAugment, crop and flip move into the PIL part. Repeated augmentation is `recipe.repeated_augmentation` and
lives in batches.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snn_repro.data.batches import BatchTransform
from snn_repro.data.events import Events


def _uniform(low: float, high: float, n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


class Normalize(BatchTransform):
    """x <- (x - mean) / std per channel (dim -3), float32; mean and std in the unit of the stored values.

    channel_order="bgr" turns the channels of x round first: blue is then normalised with red's statistics, as
    the paper's CIFAR code does.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb"):
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.scale = 1 / torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.reverse = channel_order == "bgr"

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        x = x.flip(-3) if self.reverse else x
        return (x.to(torch.float32) - self.mean).mul_(self.scale), target


class RandomCrop(BatchTransform):
    """Pad by `padding` zeros on each side, then cut the original size at a random place."""

    def __init__(self, padding: int):
        self.padding = padding

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Rows and columns [2, n] at which the cuts begin."""
        return torch.randint(2 * self.padding + 1, (2, n), generator=generator)

    def apply(self, x: Tensor, target: Tensor, draws: Tensor, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        batch, _, height, width = x.shape[-4:]
        dy, dx = draws[:, rows]
        padded = F.pad(x, (self.padding,) * 4).movedim(-4, 0)
        windows = padded.unfold(-2, height, 1).unfold(-2, width, 1)  # a view [B, ..., dy, dx, H, W]
        cut = windows.movedim((-4, -3), (1, 2))[torch.arange(batch), dy, dx]
        return cut.movedim(0, -4), target


class RandomFlip(BatchTransform):
    """Mirror each sample left to right with the given chance."""

    def __init__(self, chance: float):
        self.chance = chance

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Which samples are mirrored, bool [n]."""
        return torch.rand(n, generator=generator) < self.chance

    def apply(self, x: Tensor, target: Tensor, draws: Tensor, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        return torch.where(draws[rows].view(-1, 1, 1, 1), x.flip(-1), x), target


def _affine(x: Tensor, translate=(0, 0), shear: float = 0.0) -> Tensor:
    from torchvision.transforms.functional import affine

    return affine(x, angle=0.0, translate=list(translate), scale=1.0, shear=[shear, 0.0])


def _linspace(end: float, n: int) -> list[float]:
    """torch.linspace(-end, end, n) in float32 as fused multiply-adds round it, and so the same on every processor.

    Which levels are cut to how many pixels hangs on the last bit: 1 comes out as 0.9999999.
    """
    end, k = float(np.float32(end)), np.arange(n)
    step = float(np.float32(2 * end) / np.float32(n - 1))
    return np.where(k < n // 2, -end + step * k, end - step * (n - 1 - k)).astype(np.float32).tolist()


class EventPolicy(BatchTransform):
    """One operation a sample, uniformly one of six (the paper's 128-pixel event rows, after Spikformer).

    Identity; ShearX up to 0.3 rad; TranslateX, TranslateY up to 5 pixels, cut to whole ones; Rotate up to 30
    degrees; Cutout: one square of 0.1 % to 11 % of the area set to zero. Magnitudes are those of
    torch.linspace(-max, max, 31); nearest-neighbour sampling, zeros from outside.
    """

    levels = 31
    shears, shifts, angles = _linspace(0.3, levels), _linspace(5.0, levels), _linspace(30.0, levels)

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Operations [n], levels [n], and of Cutout the part of the area [n] and the corner [2, n], both in 0..1."""
        operation = torch.randint(6, (n,), generator=generator)
        level = torch.randint(self.levels, (n,), generator=generator)
        return operation, level, _uniform(0.001, 0.11, n, generator), torch.rand(2, n, generator=generator)

    def apply(self, x: Tensor, target: Tensor, draws: tuple, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        operation, level, area, corner = (d[..., rows] for d in draws)
        height, width = x.shape[-2:]
        side = (area * height * width).sqrt().round().long()
        own = zip(operation.tolist(), level.tolist(), side.tolist(), corner.T.tolist(), strict=True)
        out = x.clone()
        for b, (operation, level, side, corner) in enumerate(own):
            out[..., b, :, :, :] = self._apply(operation, x[..., b, :, :, :], level, side, corner)
        return out, target

    @classmethod
    def _apply(cls, operation: int, x: Tensor, level: int, side: int, corner: Sequence[float]) -> Tensor:
        from torchvision.transforms.functional import rotate

        match operation:
            case 0:
                return x
            case 1:
                return _affine(x, shear=math.degrees(cls.shears[level]))
            case 2:
                return _affine(x, translate=(int(cls.shifts[level]), 0))
            case 3:
                return _affine(x, translate=(0, int(cls.shifts[level])))
            case 4:
                return rotate(x, cls.angles[level])
        height, width = x.shape[-2:]
        side = min(side, height, width)
        top, left = int(corner[0] * (height - side + 1)), int(corner[1] * (width - side + 1))
        x = x.clone()
        x[..., top : top + side, left : left + side] = 0
        return x


class NDA(BatchTransform):
    """Neuromorphic data augmentation (Li et al., ECCV 2022), as its code does it: one of three a sample.

    Roll by up to +-shift pixels in both directions (round the edge); rotate or shear along x by up to
    +-degrees. The authors use 5 pixels and 30 degrees on CIFAR10-DVS, 3 and 15 on N-Caltech101.
    """

    def __init__(self, shift: int = 5, degrees: float = 30.0):
        self.shift, self.degrees = shift, degrees

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Operations [n], shifts [n, 2] in pixels, angles [n] in degrees."""
        operation = torch.randint(3, (n,), generator=generator)
        shifts = torch.randint(-self.shift, self.shift + 1, (n, 2), generator=generator)
        return operation, shifts, _uniform(-self.degrees, self.degrees, n, generator)

    def apply(self, x: Tensor, target: Tensor, draws: tuple, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.functional import rotate

        operation, shifts, angle = (d[rows].tolist() for d in draws)
        out = torch.empty_like(x)
        for b in range(len(rows)):
            sample = x[..., b, :, :, :]
            if operation[b] == 0:
                sample = sample.roll(shifts[b], dims=(-2, -1))
            elif operation[b] == 1:
                sample = rotate(sample, angle[b])
            else:
                sample = _affine(sample, shear=angle[b])
            out[..., b, :, :, :] = sample
        return out, target


class _Mixing(NamedTuple):
    """How a batch is mixed. `other` [n] are the partners; `box` draws CutMix's box next, whose range is the image's size.

    `apply` uses `box` up: to copy a RandomState takes as long as the rest.
    """

    other: Tensor
    kind: str
    lam: float
    box: np.random.RandomState


class Mix(BatchTransform):
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch with a random order of itself.

    mixup, cutmix: alpha of the Beta(alpha, alpha) from which lambda is drawn, 0 is off; with both on, each
    batch takes one of the two with equal chance. prob: chance that a batch is mixed at all. Targets become
    soft, float32 [B, K].

    cutmix_axes="spatial" pastes a box of sqrt(1 - lambda) of the height and width, cut off at the border,
    into all frames and channels; lambda becomes the part of the area that stayed. "published" draws the same
    box and the same lambda, but cuts the axes that the paper's code cuts in event frames: its vertical range
    from the polarities and its horizontal range from the rows. As there are two polarities, most batches keep
    their frames while the targets move all the same.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        cutmix_axes: str = "spatial",
    ):
        self.num_classes, self.prob, self.cutmix_axes = num_classes, prob, cutmix_axes
        self.kinds = [(kind, alpha) for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]

    def draw(self, n: int, generator: Generator) -> _Mixing | None:
        """None: this batch is not mixed."""
        # a legacy NumPy generator: torch has no seeded Beta, and this one's stream never changes
        draw = np.random.RandomState(int(torch.randint(2**31, (1,), generator=generator)))
        other = torch.randperm(n, generator=generator)
        if draw.rand() >= self.prob:
            return None
        kind, alpha = self.kinds[draw.randint(len(self.kinds))]
        lam = draw.beta(alpha, alpha)
        return _Mixing(other, kind, lam, draw)

    def partners(self, draws: _Mixing | None, rows: Tensor) -> Tensor:
        return rows[:0] if draws is None else draws.other[rows]

    def apply(self, x: Tensor, target: Tensor, draws: _Mixing | None, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        target = F.one_hot(target, self.num_classes).to(torch.float32) if target.ndim == 1 else target
        if draws is None:
            return x, target
        held = torch.empty_like(draws.other)  # where x holds a row of the batch
        held[rows] = torch.arange(len(rows))
        other = held[draws.other[rows[:keep]]]
        own, lam = x.narrow(-4, 0, keep), draws.lam
        if draws.kind == "mixup":
            mixed = lam * own + (1 - lam) * x[..., other, :, :, :]
        else:
            mixed, lam = self._cutmix(own, x, other, draws)
        return mixed, lam * target[:keep] + (1 - lam) * target[other]

    def _cutmix(self, own: Tensor, x: Tensor, other: Tensor, draws: _Mixing) -> tuple[Tensor, float]:
        draw, lam = draws.box, draws.lam
        height, width = x.shape[-2:]
        (top, bottom), (left, right) = (self._range(size, math.sqrt(1 - lam), draw) for size in (height, width))
        if self.cutmix_axes == "published" and x.ndim == 5:
            box: tuple = (..., slice(top, bottom), slice(left, right), slice(None))
        else:
            box = (..., slice(top, bottom), slice(left, right))
        mixed = own.clone()
        mixed[box] = x[..., other, :, :, :][box]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)

    @staticmethod
    def _range(size: int, part: float, draw) -> tuple[int, int]:
        centre, half = draw.randint(size), int(size * part) // 2
        return max(centre - half, 0), min(centre + half, size)


class SmoothLabels(BatchTransform):
    """target <- (1 - epsilon) target + epsilon / K, float32 [B, K], of class numbers [B] or mixed targets [B, K]."""

    def __init__(self, num_classes: int, epsilon: float):
        self.num_classes, self.epsilon = num_classes, epsilon

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        target = F.one_hot(target, self.num_classes).to(torch.float32) if target.ndim == 1 else target
        return x, (1 - self.epsilon) * target + self.epsilon / self.num_classes


def event_drop(events: Events, size: tuple[int, int]) -> Events:
    """EventDrop (Gu et al., IJCAI 2021), by tonic: drop nothing, a time window, a box or random events.

    Draws from NumPy's global generator, which LoaderBatches seeds for each sample. If nothing would be left,
    or the recording is empty, the events come back as they are.
    """
    from tonic.transforms import EventDrop

    if not len(events.t):
        return events
    structured = np.empty(len(events.t), dtype=[("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    for name in "xyp":
        structured[name] = getattr(events, name)
    structured["t"] = events.t - events.t.min()  # tonic's time window assumes that a recording starts at 0
    height, width = size
    kept = EventDrop(sensor_size=(width, height, 2))(structured)
    if not len(kept):
        return events
    return Events(*(np.ascontiguousarray(kept[name]) for name in "txyp"))


def frame_transforms(augment, num_classes: int, nda: tuple[int, float] = (5, 30.0)) -> list[BatchTransform]:
    """The batch transforms for event frames that `augment` (the configuration's group) asks for, in order.

    nda: (shift, degrees) of NDA, a fact of each data set.
    """
    chosen: list[BatchTransform] = _crop_and_flip(augment)
    if augment.event_policy:
        chosen.append(EventPolicy())
    if augment.nda:
        chosen.append(NDA(*nda))
    return chosen + mix_transforms(augment, num_classes)


def needs_pil(augment) -> bool:
    """Whether `augment` asks for something that is done image by image, in PIL."""
    return bool(augment.randaugment_ops or augment.rrc_min_area)


def image_transforms(augment, num_classes: int, normalize: Normalize, in_pil: bool = False) -> list:
    """The batch transforms for images, in order. Crop and flip are left out where `sample_transform` does them.

    in_pil: the images come from `sample_transform` although nothing in `augment` needs it.
    """
    first = [] if in_pil or needs_pil(augment) else _crop_and_flip(augment)
    return [*first, normalize, *mix_transforms(augment, num_classes)]


def _crop_and_flip(augment) -> list[BatchTransform]:
    chosen: list[BatchTransform] = []
    if augment.crop_padding:
        chosen.append(RandomCrop(augment.crop_padding))
    if augment.flip:
        chosen.append(RandomFlip(augment.flip))
    return chosen


def mix_transforms(augment, num_classes: int) -> list[BatchTransform]:
    """Mix and SmoothLabels, where `augment` asks for them."""
    chosen: list[BatchTransform] = []
    if augment.mixup or augment.cutmix:
        chosen.append(Mix(num_classes, augment.mixup, augment.cutmix, augment.mix_prob, augment.cutmix_axes))
    if augment.label_smoothing:
        chosen.append(SmoothLabels(num_classes, augment.label_smoothing))
    return chosen


def sample_transform(augment, size: int, fill: Sequence[float], first: Sequence[Callable] = ()) -> Callable:
    """The per-image part of training: PIL image -> uint8 tensor [C, size, size].

    RandomResizedCrop (aspect 3/4 to 4/3), or else the steps `first` and a padded crop; flip; then timm's
    RandAugment: `randaugment_ops` of its 15 "increasing" operations, each applied with chance 0.5 at a level
    drawn from N(level, std), with bicubic resampling and `fill` (0..255 per channel) from outside. Draws come
    from the global generators, which LoaderBatches seeds for each sample.
    """
    from torchvision import transforms as T

    mode = _mode(augment.interpolation)
    steps: list[Callable] = []
    if augment.rrc_min_area:
        steps.append(T.RandomResizedCrop(size, (augment.rrc_min_area, 1.0), interpolation=mode))
    else:
        steps += first
        if augment.crop_padding:
            steps.append(T.RandomCrop(size, augment.crop_padding))
    if augment.flip:
        steps.append(T.RandomHorizontalFlip(augment.flip))
    if augment.randaugment_ops:
        from PIL.Image import Resampling
        from timm.data.auto_augment import rand_augment_transform

        colour = [round(v) for v in fill]
        options = {
            "img_mean": tuple(colour) if len(colour) > 1 else colour[0],
            "interpolation": Resampling.BICUBIC,
            "magnitude_std": augment.randaugment_std,
        }
        name = f"rand-m{augment.randaugment_level}-n{augment.randaugment_ops}-inc1"
        steps.append(rand_augment_transform(name, options))
    return T.Compose([*steps, T.PILToTensor()])


def eval_sample_transform(augment, size: int) -> Callable:
    """The ImageNet test: PIL image -> uint8 tensor [C, size, size]."""
    from torchvision import transforms as T

    return T.Compose([*eval_steps(augment, size), T.PILToTensor()])


def eval_steps(augment, size: int) -> list[Callable]:
    """Resize and centre crop of the ImageNet test; the short side is 256 for 224 pixels unless test_resize is set."""
    from torchvision import transforms as T

    short = augment.test_resize or round(size * 256 / 224)
    return [T.Resize(short, interpolation=_mode(augment.interpolation)), T.CenterCrop(size)]


def _mode(name: str):
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)
