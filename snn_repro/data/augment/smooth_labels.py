from __future__ import annotations

from typing import TYPE_CHECKING

from snn_repro.data.augment.augmentation import BatchAugmentation, register_augmentation, soft
from snn_repro.settings import Setting

if TYPE_CHECKING:
    from torch import Tensor


@register_augmentation("label_smoothing")
class SmoothLabels(BatchAugmentation):
    """target <- (1 - epsilon) target + epsilon / K, float32 [B, K], of class numbers [B] or mixed targets [B, K]."""

    settings = {
        "label_smoothing": Setting(
            0.0, "smooth the training targets of any loss; several published SDT and TET rows do", low=0, below=1
        )
    }
    order = 90
    soft_targets = portable = True

    def __init__(self, num_classes: int, epsilon: float):
        self.num_classes, self.epsilon = num_classes, epsilon

    @classmethod
    def build(cls, values, dataset):
        return cls(dataset.num_classes, values["label_smoothing"])

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        return x, (1 - self.epsilon) * soft(target, self.num_classes) + self.epsilon / self.num_classes
