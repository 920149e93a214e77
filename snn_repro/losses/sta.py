"""Self-distillation between similar time steps (STA), and with a teacher (SeAl-KD)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_repro.losses.distill import Taught, divergence
from snn_repro.losses.loss import Loss, at_least_float32, cross_entropy_of_steps, register_loss
from snn_repro.settings import Setting


@register_loss("sta")
class STA(Loss):
    """TET plus self-distillation between time steps: SeAl-KD without its teacher (2026, arXiv:2605.14252).

        mean_t CE(y[t], q) + beta mean_t temperature^2 KL(softmax(z[t] / temperature) || softmax(y[t] / temperature))
        z[t] = sum_s w[t, s] y[s], without gradient;  w[t, .] = softmax over s != t of c[s] cos(y[t], y[s])

    c[s] = 1 - entropy(softmax(y[s])) / ln K is the confidence of a step. beta is that of the authors' commands. The
    term is used in training only.
    """

    settings = {
        "beta": Setting(0.15, "weight of the other steps", low=0),
        "temperature": Setting(3.0, "temperature of all distributions", above=0),
    }

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy_of_steps(logits, target)
        if not torch.is_grad_enabled() or len(logits) == 1:
            return loss
        y = at_least_float32(logits.detach())
        p, unit = y.softmax(-1), F.normalize(y, dim=-1)
        confidence = 1 + (p * (p + 1e-8).log()).sum(-1) / math.log(y.shape[-1])
        score = confidence * torch.einsum("tbk,sbk->tsb", unit, unit)
        own = torch.eye(len(y), dtype=torch.bool, device=y.device)[..., None]
        z = torch.einsum("tsb,sbk->tbk", score.masked_fill(own, -math.inf).softmax(1), y)
        return loss + self.beta * divergence(at_least_float32(logits), z, self.temperature)


@register_loss("seal_kd")
class SeAlKD(Taught, STA):
    """STA plus distillation of every step from a teacher's logits z (SeAl-KD, 2026, arXiv:2605.14252).

        STA + alpha mean_t temperature^2 KL(softmax(z'[t] / temperature) || softmax(y'[t] / temperature))

    y' and z' are y and z where a step is right. Where it is wrong, the predicted class takes the logit of the target
    class in y', and both classes take the lower logit of the two in z'. The class of a mixed target is that of the
    largest weight; the authors use labels only. Their teacher is an ANN, which sees the mean of event frames.
    """

    settings = Taught.settings | {"alpha": Setting(0.6, "weight of the teacher", low=0)} | STA.settings

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().__call__(logits, target)
        if not torch.is_grad_enabled():
            return loss
        y = at_least_float32(logits)
        label = (target.argmax(-1) if target.dim() == 2 else target).expand(y.shape[:2])[..., None]
        said, z = y.argmax(-1, keepdim=True), self.taught.to(y.dtype).expand_as(y)
        lower = torch.minimum(z.gather(-1, label), z.gather(-1, said))
        z = z.scatter(-1, label, lower).scatter(-1, said, lower)
        return loss + self.alpha * divergence(y.scatter(-1, said, y.gather(-1, label)), z, self.temperature)
