"""SDT, TET, TET-S, LTS (for static inputs) and the squared error of firing rates."""

from torch import Tensor
from torch.nn import functional as F

from snn_repro.losses.loss import (
    Loss,
    at_least_float32,
    check_shapes,
    cross_entropy,
    cross_entropy_of_mean,
    cross_entropy_of_steps,
    register_loss,
    smooth,
)
from snn_repro.settings import Setting


@register_loss("lts")
class LTS(Loss):
    """Cross entropy of the last step; earlier steps are trained only through the potential."""

    readout_name, last_step = "last", True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check_shapes(logits, target)
        return cross_entropy(at_least_float32(logits[-1]), target)


@register_loss("mse")
class MSE(Loss):
    """Mean squared error of mean logits against the target: mean (mean_t y[t] - q)^2.

    The mean is over samples and classes; q is one-hot or mixed. For networks whose outputs are spikes or votes, such as
    PLIF-Net (Fang et al., ICCV 2021) and TCJA-SNN.
    """

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        check_shapes(logits, target)
        rates = at_least_float32(logits).mean(0)
        return F.mse_loss(rates, smooth(target, rates.shape[-1], 0.0).to(rates.dtype))


@register_loss("sdt")
class SDT(Loss):
    """Standard direct training: cross entropy of the mean output."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy_of_mean(logits, target)


@register_loss("tet")
class TET(Loss):
    """Temporal efficient training: cross entropy of every step (Deng et al., ICLR 2022, arXiv:2202.11946).

    With lam > 0 the mean squared distance of all logits from phi is added.
    """

    settings = {
        "lam": Setting(0.0, "weight lambda of the MSE term", low=0, high=1, why="the weight of the mean squared error"),
        "phi": Setting(1.0, "target phi of the MSE term"),
    }

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy_of_steps(logits, target)
        if self.lam:
            loss = (1 - self.lam) * loss + self.lam * ((at_least_float32(logits) - self.phi) ** 2).mean()
        return loss


@register_loss("tet_s")
class TETS(Loss):
    """TET with smoothed labels; epsilon = 0 equals TET bit for bit."""

    settings = {"epsilon": Setting(0.01, "label smoothing", low=0, below=1)}

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy_of_steps(logits, target, self.epsilon)
