"""Training losses of spiking networks, each with the readout that its accuracy is measured by.

y[t] are the logits of time step t, q the target distribution, CE the cross entropy averaged over the batch:
    sdt    CE(mean_t y[t], q)                                      read the mean over time
    tet    (1 - lam) mean_t CE(y[t], q) + lam mean((y - phi)^2)    read the mean over time
    tet_s  mean_t CE(y[t], q'),  q' = (1 - epsilon) q + epsilon/K  read the mean over time
    lts    CE(y[T-1], q)                                           read the last step alone
tet is temporal efficient training (Deng et al., ICLR 2022, arXiv:2202.11946); tet_s smooths its labels; lts
trains the last time step, for inputs that do not change. `@register_loss("name")` above a class adds one. Logits are [T, B, K]; targets are class indices int
[B] or, after Mixup or CutMix, distributions float [B, K]. Losses are computed in float32 at least.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.registry import LOSSES
from snn_repro.settings import Setting

register_loss = LOSSES.register


def smooth(target: Tensor, num_classes: int, epsilon: float) -> Tensor:
    """Return q' = (1 - epsilon) q + epsilon / K, float [B, K], of a target [B] or [B, K]."""
    if target.dim() == 1:
        target = F.one_hot(target, num_classes).to(torch.get_default_dtype())
    return (1 - epsilon) * target + epsilon / num_classes


class Loss:
    """loss(logits [T, B, K], target) -> scalar; loss.readout(logits) -> scores [B, K].

    settings: name -> Setting; their values become attributes. Where `last_step` is true, loss and readout look at
    logits[-1] alone: [1, B, K] of the last step is enough for both.
    """

    # "mean" over time, or of the "last" step; a class with a `readout` of its own calls it something else
    readout_name = "mean"
    last_step = False
    settings: dict[str, Setting] = {}

    def __init__(self, **values):
        for key, setting in self.settings.items():
            setattr(self, key, values.pop(key, setting.default))
        if values:
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(values)}")

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "readout" in vars(cls) and vars(cls).get("readout_name", "mean") in ("mean", "last"):
            raise UserError(
                f"the loss {cls.__name__} has a readout of its own and needs a readout_name, not mean or last"
            )

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def readout(self, logits: Tensor) -> Tensor:
        """Return the scores [B, K] that the prediction is read from."""
        logits = at_least_float32(logits)
        return logits.mean(0) if self.readout_name == "mean" else logits[-1]


@register_loss("sdt")
class SDT(Loss):
    """Standard direct training: cross entropy of the mean output."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        _check(logits, target)
        return _cross_entropy(at_least_float32(logits).mean(0), target)


@register_loss("tet")
class TET(Loss):
    """Temporal efficient training: the cross entropy of every time step, and a pull of all logits to phi."""

    settings = {
        "lam": Setting(0.0, "weight lambda of the MSE term", low=0, high=1, why="the weight of the mean squared error"),
        "phi": Setting(1.0, "target phi of the MSE term"),
    }

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = _every_step(logits, target)
        if self.lam:
            loss = (1 - self.lam) * loss + self.lam * ((at_least_float32(logits) - self.phi) ** 2).mean()
        return loss


@register_loss("tet_s")
class TETS(Loss):
    """TET with smoothed labels; epsilon 0 is TET to the last bit."""

    settings = {"epsilon": Setting(0.01, "label smoothing", low=0, below=1)}

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return _every_step(logits, target, self.epsilon)


@register_loss("lts")
class LTS(Loss):
    """Cross entropy of the last time step; earlier steps are trained through the membrane potential alone."""

    readout_name = "last"
    last_step = True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        _check(logits, target)
        return _cross_entropy(at_least_float32(logits[-1]), target)


def build_loss(name: str, **options) -> Loss:
    """Build a loss by name: sdt, tet (lam=0.0, phi=1.0), tet_s (epsilon=0.01), lts or another of LOSSES.

    None means an option's default. Raises UserError, naming the key, the value and what is allowed.
    """
    values = LOSSES.checked(name, options)
    return LOSSES[name](**values)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others unchanged: means and exponentials need the digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.dim() != 3 or target.shape not in (logits.shape[1:2], logits.shape[1:]):
        raise UserError(
            f"A loss needs logits [T, B, K] and a target [B] or [B, K], "
            f"not {list(logits.shape)} and {list(target.shape)}."
        )


def _cross_entropy(logits: Tensor, target: Tensor, epsilon: float = 0.0) -> Tensor:
    if target.dim() == 2:
        target = target.to(logits.dtype)
    return F.cross_entropy(logits, target, label_smoothing=epsilon)


def _every_step(logits: Tensor, target: Tensor, epsilon: float = 0.0) -> Tensor:
    _check(logits, target)
    repeated = target.repeat(len(logits), *[1] * (target.dim() - 1))  # every time step has the same target
    return _cross_entropy(at_least_float32(logits.flatten(0, 1)), repeated, epsilon)
