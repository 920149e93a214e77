"""LTS, for inputs that do not change."""

from torch import Tensor

from snn_repro.losses.loss import Loss, at_least_float32, check, cross_entropy, register_loss


@register_loss("lts")
class LTS(Loss):
    """Cross entropy of the last time step; earlier steps are trained through the membrane potential alone."""

    readout_name = "last"
    last_step = True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check(logits, target)
        return cross_entropy(at_least_float32(logits[-1]), target)
