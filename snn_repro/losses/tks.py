"""Temporal knowledge sharing."""

from torch import Tensor
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.losses.loss import Loss, at_least_float32, check, cross_entropy, register_loss
from snn_repro.settings import Setting


@register_loss("tks")
class TKS(Loss):
    """a CE(mean_t y[t]) + (1 - a) mean_t te^2 CE(y[t], softmax(z / te)), z the sum of those y[t] that are right (Dong et al.,
    2023, arXiv:2304.06540).

    a = 1 - alpha epoch / epochs falls from 1. A sample that no step has right is taught the uniform distribution. As in the
    published code the teacher z gets a gradient and the taught steps are not tempered; both can be changed.
    """

    soft_targets = False  # a step is right or wrong by its label
    settings = {
        "alpha": Setting(0.7, "how far the weight of the labels falls until the end", low=0, high=1),
        "temperature": Setting(3.0, "temperature te of the teacher", above=0),
        "detach_teacher": Setting(False, "no gradient through the teacher"),
        "temper_student": Setting(False, "temper the taught steps too"),
    }
    labels = 1.0  # a

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.labels = 1 - self.alpha * epoch / epochs

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check(logits, target)
        if target.dim() != 1:
            raise UserError(
                "loss=tks needs labels [B], not the mixed or smoothed targets [B, K] of Mixup, CutMix or label smoothing"
            )
        y = at_least_float32(logits)
        z = (y * (y.argmax(-1) == target).unsqueeze(-1)).sum(0)
        teacher = ((z.detach() if self.detach_teacher else z) / self.temperature).softmax(-1)
        student = F.log_softmax(y / self.temperature if self.temper_student else y, -1)
        shared = self.temperature**2 * -(teacher * student).sum(-1).mean()
        return self.labels * cross_entropy(y.mean(0), target) + (1 - self.labels) * shared
