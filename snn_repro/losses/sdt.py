"""SDT, the plain one."""

from torch import Tensor

from snn_repro.losses.loss import Loss, of_the_mean, register_loss


@register_loss("sdt")
class SDT(Loss):
    """Standard direct training: cross entropy of the mean output."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return of_the_mean(logits, target)
