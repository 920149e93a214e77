"""Self-distillation between the most and the least confident time step, in either direction."""

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_repro import distributed
from snn_repro.losses.loss import Loss, at_least_float32, cross_entropy_of_mean, register_loss
from snn_repro.settings import Setting


@register_loss("strong2weak")
class Strong2Weak(Loss):
    """SDT plus distillation from the most to the least confident step (2025, arXiv:2510.07924).

        CE(mean_t y[t], q) + weight KL(q_s || q_w),  q_t = softmax(y[t] / temperature)

    s is the step of highest and w that of lowest confidence. A step's confidence is max softmax(y[t]) averaged over the
    batch of all processes: one pair per batch, no labels. cascade: in order of confidence each step teaches the next,
    averaged over the T - 1 pairs. Settings cover what the paper leaves open: the teacher's gradient (on by default) and
    a factor temperature^2. The term depends on the whole batch, so it is omitted where gradients are off.
    """

    settings = {
        "weight": Setting(1.0, "weight lambda of the KL term (0.01 for the paper's QKFormer)", low=0),
        "temperature": Setting(2.0, "temperature alpha of both distributions", above=0),
        "detach_teacher": Setting(False, "no gradient through the teacher"),
        "squared": Setting(False, "multiply the KL term by temperature^2"),
        "cascade": Setting(False, "each step teaches the next in order of confidence"),
    }
    strong_teaches = True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy_of_mean(logits, target)
        if not torch.is_grad_enabled() or not self.weight or len(logits) == 1:
            return loss
        y = at_least_float32(logits)
        confidence = y.detach().softmax(-1).amax(-1).sum(1, dtype=torch.float64)
        confidence = distributed.means(confidence, y.shape[1])  # over the samples of all processes
        order = confidence.argsort(descending=self.strong_teaches, stable=True)
        log_q = (y / self.temperature).log_softmax(-1).index_select(0, order)
        pairs = zip(log_q, log_q[1:], strict=False) if self.cascade else [(log_q[0], log_q[-1])]
        taught = [
            F.kl_div(b, a.detach() if self.detach_teacher else a, reduction="batchmean", log_target=True)
            for a, b in pairs
        ]
        return loss + self.weight * (self.temperature**2 if self.squared else 1) * torch.stack(taught).mean()


@register_loss("weak2strong")
class Weak2Strong(Strong2Weak):
    """Strong2Weak with the step of lowest confidence as teacher."""

    strong_teaches = False
