"""Temporal regularisation training (TRT): a weight penalty that fades over the time steps."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.losses.loss import Loss, at_least_float32, cross_entropy_of_steps, register_loss, smooth
from snn_repro.neurons import is_initial_state
from snn_repro.settings import Setting


@register_loss("trt")
class TRT(Loss):
    """TET and squared error, plus a weight penalty that fades over time (2025, arXiv:2506.19256).

        mean_t [(1 - eta) CE(y[t], q) + eta mean((y[t] - q)^2) + sum_w d[t](w) w^2]
        d[t](w) = lam / (1 + (e^(decay t) - 1) (|w| + 1e-5))

    w are all parameters without "bias" in their name, as in the authors' code, but no initial states, which their
    networks lack. The penalty depends on no output: it is one weight decay, weaker for large weights. An early version
    of their code weights the squared error by lam - d[t]. The penalty is used in training only and needs `watch`.
    """

    settings = {
        "lam": Setting(1e-5, "weight lambda of the penalty", low=0),
        "decay": Setting(0.5, "rate at which the penalty fades", "per time step", low=0),
        "eta": Setting(0.05, "share of the squared error", low=0, high=1),
    }
    weights: list[Tensor] | None = None  # None: `watch` was not called

    def watch(self, model: nn.Module) -> None:
        named = model.named_parameters()
        self.weights = [w for name, w in named if "bias" not in name and not is_initial_state(name)]

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss, y = cross_entropy_of_steps(logits, target), at_least_float32(logits)
        error = F.mse_loss(y, smooth(target, y.shape[-1], 0.0).to(y.dtype).expand_as(y))
        loss = (1 - self.eta) * loss + self.eta * error
        if not torch.is_grad_enabled():
            return loss
        if self.weights is None:
            raise UserError("loss=trt needs the weights: call watch(model) once before training")
        for t in range(len(y)):
            growth, share = math.expm1(self.decay * t), self.lam / len(y)
            loss = loss + share * sum((w.square() / (1 + growth * (w.abs() + 1e-5))).sum() for w in self.weights)
        return loss
