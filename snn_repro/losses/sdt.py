"""Losses of one term: SDT, LTS for inputs that do not change, and the squared error of firing rates."""

from torch import Tensor
from torch.nn import functional as F

from snn_repro.losses.loss import Loss, at_least_float32, check, cross_entropy, of_the_mean, register_loss, smooth


@register_loss("lts")
class LTS(Loss):
    """Cross entropy of the last time step; earlier steps are trained through the membrane potential alone."""

    readout_name = "last"
    last_step = True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check(logits, target)
        return cross_entropy(at_least_float32(logits[-1]), target)


@register_loss("mse")
class MSE(Loss):
    """mean (mean_t y[t] - q)^2 over samples and classes, q one-hot or mixed: for networks whose output is spikes or votes, as
    PLIF-Net (Fang et al., ICCV 2021) and TCJA-SNN are trained."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check(logits, target)
        rates = at_least_float32(logits).mean(0)
        return F.mse_loss(rates, smooth(target, rates.shape[-1], 0.0).to(rates.dtype))


@register_loss("sdt")
class SDT(Loss):
    """Standard direct training: cross entropy of the mean output."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return of_the_mean(logits, target)
