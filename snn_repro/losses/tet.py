"""TET and TET-S."""

from torch import Tensor

from snn_repro.losses.loss import Loss, at_least_float32, of_every_step, register_loss
from snn_repro.settings import Setting


@register_loss("tet")
class TET(Loss):
    """Temporal efficient training (Deng et al., ICLR 2022, arXiv:2202.11946): the cross entropy of every time step, and a
    pull of all logits to phi."""

    settings = {
        "lam": Setting(0.0, "weight lambda of the MSE term", low=0, high=1, why="the weight of the mean squared error"),
        "phi": Setting(1.0, "target phi of the MSE term"),
    }

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = of_every_step(logits, target)
        if self.lam:
            loss = (1 - self.lam) * loss + self.lam * ((at_least_float32(logits) - self.phi) ** 2).mean()
        return loss


@register_loss("tet_s")
class TETS(Loss):
    """TET with smoothed labels; epsilon 0 is TET to the last bit."""

    settings = {"epsilon": Setting(0.01, "label smoothing", low=0, below=1)}

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return of_every_step(logits, target, self.epsilon)
