"""Augmentations, applied to whole batches wherever no PIL image is needed.

`augmentation.py` has the base classes; every file beside it is one augmentation, discovered automatically, and plug-ins
may register more. Order: crop, flip, event_policy, nda and plug-ins, then mixing of samples and label smoothing. Images
that are read one by one are cropped and flipped in PIL. batches.py has `recipe.repeated_augmentation`.
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
    "PilAugmentation", "RecordingAugmentation", "Setting", "batch_transforms", "chosen", "eval_sample_transform", "eval_steps",
    "register_augmentation", "sample_transform",
]  # fmt: skip

import_all(__name__, __path__)


def chosen(augment: Any, dataset: DataSet, kind: type = Augmentation) -> list[Any]:
    """The augmentations of a kind that the configuration group `augment` turns on, in order."""
    return [cls.build(augment.of(cls), dataset) for cls in augment.turned_on(kind)]


def batch_transforms(
    augment: Any, dataset: DataSet, normalize: Normalize | None = None, in_pil: bool = False
) -> list[BatchTransform]:
    """The batch transforms that `augment` turns on, in order, including `normalize` for images.

    in_pil: leave out what `sample_transform` has already applied to the PIL images.
    """
    steps = chosen(augment, dataset, BatchAugmentation)
    if in_pil:
        steps = [step for step in steps if type(step).pil_step is Augmentation.pil_step]
    early = [step for step in steps if step.order < NORMALIZE]
    return [*early, *([normalize] if normalize else []), *steps[len(early) :]]


def sample_transform(
    augment: Any, dataset: DataSet, size: int, fill: Sequence[float], first: Sequence[Callable] = (),
    tensors: bool = False,
) -> Callable:  # fmt: skip
    """The per-image training transform: PIL image or uint8 tensor -> uint8 tensor [C, size, size].

    It applies RandomResizedCrop, or else the steps `first` and a padded crop; then flip, and RandAugment with `fill`
    (0..255 per channel) outside the image. tensors: the input is a uint8 tensor [C, H, W]. Draws come from the global
    generators, which LoaderBatches seeds per sample.
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
    """Test transform of image files: PIL image or tensor -> uint8 tensor [C, size, size]."""
    return vision.v2.Compose([*eval_steps(augment, size, margin), vision.v2.PILToTensor()])  # a tensor stays one
