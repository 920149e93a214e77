"""Augmentation: one implementation of each, on whole batches wherever no PIL image is needed.

What an augmentation is stands in `augmentation.py`; each is one file beside it, found by its being there, and a package
from outside may register its own. This module applies by kind those that a configuration turns on.

Order: crop, flip, then event_policy, nda and what comes from outside, then whole samples are mixed and labels smoothed; with
images that are read one by one, crop and flip move into the PIL part. Repeated augmentation is
`recipe.repeated_augmentation` and lives in batches.py.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import (
    NORMALIZE,
    Augmentation,
    BatchAugmentation,
    BatchTransform,
    MovingAugmentation,
    Normalize,
    PilAugmentation,
    RecordingAugmentation,
    register_augmentation,
)
from snn_repro.data.augment.resized_crop import eval_steps
from snn_repro.data.augment.rpg import GuidedAugmentation
from snn_repro.data.dataset import DataSet
from snn_repro.registry import AUGMENTATIONS, import_all
from snn_repro.settings import Setting

__all__ = [
    "AUGMENTATIONS", "Augmentation", "BatchAugmentation", "BatchTransform", "GuidedAugmentation", "MovingAugmentation", "Normalize",
    "PilAugmentation", "RecordingAugmentation", "Setting", "batch_transforms", "chosen", "eval_sample_transform", "eval_steps", "needs_pil",
    "register_augmentation", "sample_transform",
]  # fmt: skip

import_all(__name__, __path__)


def chosen(augment: Any, dataset: DataSet, kind: type = Augmentation) -> list[Any]:
    """The augmentations of a kind that `augment`, the configuration's group, turns on, in order."""
    return [cls.build(augment.of(cls), dataset) for cls in augment.turned_on(kind)]


def batch_transforms(
    augment: Any, dataset: DataSet, normalize: Normalize | None = None, in_pil: bool = False
) -> list[BatchTransform]:
    """The batch transforms that `augment` asks for, in order, `normalize` (of images) among them.

    in_pil: the images come from `sample_transform`, which has done what can be done to a PIL image.
    """
    steps = chosen(augment, dataset, BatchAugmentation)
    if in_pil:
        steps = [step for step in steps if type(step).pil_step is Augmentation.pil_step]
    early = [step for step in steps if step.order < NORMALIZE]
    return [*early, *([normalize] if normalize else []), *steps[len(early) :]]


def needs_pil(augment: Any) -> list[str]:
    """The keys in `augment` that ask for something that is done image by image, in PIL."""
    return [cls.name for cls in augment.turned_on(PilAugmentation)]


def sample_transform(
    augment: Any,
    dataset: DataSet,
    size: int,
    fill: Sequence[float],
    first: Sequence[Callable] = (),
    tensors: bool = False,
) -> Callable:
    """The per-image part of training: PIL image, or with `tensors` uint8 tensor [C, H, W] -> uint8 tensor [C, size, size].

    What cuts any image to its size (RandomResizedCrop), or else the steps `first` and a padded crop; flip; RandAugment, with
    `fill` (0..255 per channel) from outside. Draws come from the global generators, which LoaderBatches seeds for each
    sample.
    """
    on = chosen(augment, dataset)
    if any(step.resizes for step in on):
        first, on = (), [step for step in on if not step.crops]
    steps = [(step.on_tensors, found) for step in on if (found := step.pil_step(size, fill))]
    early = [found for _, found in takewhile(lambda step: step[0], steps)] if tensors else []
    late = [found for _, found in steps[len(early) :]]
    if tensors:
        late = [vision.transforms.ToPILImage(), *late, vision.transforms.PILToTensor()] if late else []
        return vision.transforms.Compose([*first, *early, *late])
    return vision.transforms.Compose([*first, *late, vision.transforms.PILToTensor()])


def eval_sample_transform(augment: Any, size: int, margin: float = 256 / 224) -> Callable:
    """The test of image files: PIL image or uint8 tensor [C, H, W] -> uint8 tensor [C, size, size]; margin: see `eval_steps`."""
    return vision.v2.Compose([*eval_steps(augment, size, margin), vision.v2.PILToTensor()])  # a tensor stays one
