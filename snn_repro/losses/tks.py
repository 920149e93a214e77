"""Temporal knowledge sharing (TKS)."""

from torch import Tensor
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.losses.loss import Loss, at_least_float32, check_shapes, cross_entropy, register_loss
from snn_repro.settings import Setting


@register_loss("tks")
class TKS(Loss):
    """SDT plus distillation from the correct time steps (Dong et al., 2023, arXiv:2304.06540).

        a CE(mean_t y[t], q) + (1 - a) mean_t te^2 CE(y[t], softmax(z / te)),  z = sum of the correct y[t]

    a = 1 - alpha epoch / epochs falls from 1. A sample without a correct step is taught the uniform distribution. As in
    the published code the teacher z has a gradient and the student steps have no temperature; settings change both.
    """

    soft_targets = False  # whether a step is correct depends on the label
    settings = {
        "alpha": Setting(0.7, "decrease of the labels' weight over training", low=0, high=1),
        "temperature": Setting(3.0, "temperature te of the teacher", above=0),
        "detach_teacher": Setting(False, "no gradient through the teacher"),
        "temper_student": Setting(False, "apply the temperature to the student steps too"),
    }
    labels = 1.0  # a

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.labels = 1 - self.alpha * epoch / epochs

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check_shapes(logits, target)
        if target.dim() != 1:
            raise UserError("loss=tks needs labels [B], not targets [B, K] of Mixup, CutMix or label smoothing")
        y = at_least_float32(logits)
        z = (y * (y.argmax(-1) == target).unsqueeze(-1)).sum(0)
        teacher = ((z.detach() if self.detach_teacher else z) / self.temperature).softmax(-1)
        student = F.log_softmax(y / self.temperature if self.temper_student else y, -1)
        shared = self.temperature**2 * -(teacher * student).sum(-1).mean()
        return self.labels * cross_entropy(y.mean(0), target) + (1 - self.labels) * shared
