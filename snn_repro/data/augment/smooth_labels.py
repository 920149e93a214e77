"""Label smoothing of training targets."""

from torch import Tensor

from snn_repro.data.augment.augmentation import SoftAugmentation, register_augmentation, soft
from snn_repro.settings import Setting


@register_augmentation("label_smoothing")
class SmoothLabels(SoftAugmentation):
    """target <- (1 - epsilon) target + epsilon / K, float32 [B, K]."""

    settings = {
        "label_smoothing": Setting(
            0.0, "label smoothing epsilon, for any loss; several published SDT and TET rows use it", low=0, below=1
        )
    }
    order, portable = 90, True

    def __init__(self, num_classes: int, label_smoothing: float):
        self.num_classes, self.epsilon = num_classes, label_smoothing

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        return x, (1 - self.epsilon) * soft(target, self.num_classes) + self.epsilon / self.num_classes
