"""Augmentation: one implementation of each, on whole batches wherever no PIL image is needed.

What an augmentation is stands in `augmentation.py`; each is one file beside it, found by its being there, and a package
from outside may register its own. This module says which of them a configuration turns on, and applies them by kind.

Order: crop, flip, then event_policy, nda and what comes from outside, then whole samples are mixed and labels smoothed; with
images that are read one by one, crop and flip move into the PIL part. Repeated augmentation is
`recipe.repeated_augmentation` and lives in batches.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from snn_repro.data.augment.augmentation import (
    NORMALIZE,
    Augmentation,
    BatchAugmentation,
    BatchTransform,
    MovingAugmentation,
    PilAugmentation,
    RecordingAugmentation,
    register_augmentation,
)
from snn_repro.data.augment.normalize import Normalize
from snn_repro.data.augment.resized_crop import eval_steps
from snn_repro.data.augment.rpg import GuidedAugmentation
from snn_repro.registry import AUGMENTATIONS, import_all
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from snn_repro.data.dataset import DataSet

__all__ = [
    "AUGMENTATIONS", "Augmentation", "BatchAugmentation", "BatchTransform", "GuidedAugmentation", "MovingAugmentation", "Normalize",
    "PilAugmentation", "RecordingAugmentation", "Setting", "batch_transforms", "eval_sample_transform", "eval_steps", "needs_pil",
    "recording_steps", "register_augmentation", "sample_transform", "turned_on", "values_of",
]  # fmt: skip

import_all(__name__, __path__)


def values_of(cls: type[Augmentation], augment: Any) -> dict[str, Any]:
    """The values that `augment`, the configuration's group, gives to an augmentation's settings."""
    return augment.of(cls)


def turned_on(augment: Any, kind: type = Augmentation) -> list[Any]:
    """The classes of a kind that `augment` turns on, in order."""
    return augment.turned_on(kind)


def batch_transforms(
    augment: Any, dataset: DataSet, normalize: Normalize | None = None, in_pil: bool = False
) -> list[BatchTransform]:
    """The batch transforms that `augment` asks for, in order, `normalize` (of images) among them.

    in_pil: the images come from `sample_transform`, which has done what can be done to a PIL image.
    """
    found: list[BatchTransform] = [] if normalize is None else [normalize]
    chosen = turned_on(augment, BatchAugmentation)
    steps = [cls.build(values_of(cls, augment), dataset) for cls in chosen]
    if in_pil:
        steps = [step for step in steps if type(step).pil_step is Augmentation.pil_step]
    early = [step for step in steps if step.order < NORMALIZE]
    return [*early, *found, *(step for step in steps if step.order >= NORMALIZE)]


def recording_steps(augment: Any, dataset: DataSet) -> list[RecordingAugmentation]:
    """What `augment` does to recordings before they become frames, in order."""
    return [cls.build(values_of(cls, augment), dataset) for cls in turned_on(augment, RecordingAugmentation)]


def needs_pil(augment: Any) -> list[str]:
    """The keys in `augment` that ask for something that is done image by image, in PIL."""
    return [cls.name for cls in turned_on(augment, PilAugmentation)]


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
    from torchvision import transforms as T

    chosen = [cls.build(values_of(cls, augment), dataset) for cls in turned_on(augment)]
    if any(getattr(step, "resizes", False) for step in chosen):
        first, chosen = (), [step for step in chosen if not getattr(step, "crops", False)]
    steps = [(step.on_tensors, found) for step in chosen if (found := step.pil_step(size, fill))]
    early = [found for _, found in takewhile(lambda step: step[0], steps)] if tensors else []
    late = [found for _, found in steps[len(early) :]]
    if tensors:
        return T.Compose([*first, *early, *([T.ToPILImage(), *late, T.PILToTensor()] if late else [])])
    return T.Compose([*first, *late, T.PILToTensor()])


def eval_sample_transform(augment: Any, size: int, margin: float = 256 / 224) -> Callable:
    """The test of image files: PIL image or uint8 tensor [C, H, W] -> uint8 tensor [C, size, size]; margin: see `eval_steps`."""
    from torchvision.transforms import v2

    return v2.Compose([*eval_steps(augment, size, margin), v2.PILToTensor()])  # a tensor stays one
