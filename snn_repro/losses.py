"""Training losses of spiking networks, each with the readout that its accuracy is measured by.

y[t] are the logits of time step t, q the target distribution, CE the cross entropy averaged over the batch:
    sdt    CE(mean_t y[t], q)                                      read the mean over time
    tet    (1 - lam) mean_t CE(y[t], q) + lam mean((y - phi)^2)    read the mean over time
    tet_s  mean_t CE(y[t], q'),  q' = (1 - epsilon) q + epsilon/K  read the mean over time
    lts    CE(y[T-1], q)                                           read the last step alone
tet is temporal efficient training (Deng et al., ICLR 2022, arXiv:2202.11946); tet_s smooths its labels; lts
trains the last time step, for inputs that do not change. Logits are [T, B, K]; targets are class indices int
[B] or, after Mixup or CutMix, distributions float [B, K]. Losses are computed in float32 at least.
"""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_repro.errors import UserError, nearest


def smooth(target: Tensor, num_classes: int, epsilon: float) -> Tensor:
    """Return q' = (1 - epsilon) q + epsilon / K, float [B, K], of a target [B] or [B, K]."""
    if target.dim() == 1:
        target = F.one_hot(target, num_classes).to(torch.get_default_dtype())
    return (1 - epsilon) * target + epsilon / num_classes


class Loss:
    """loss(logits [T, B, K], target) -> scalar; loss.readout(logits) -> scores [B, K].

    Where `last_step` is true, loss and readout look at logits[-1] alone: [1, B, K] of the last step is enough for both.
    """

    readout_name: str  # "mean" over time or "last" step
    last_step = False
    defaults: dict[str, float] = {}

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def readout(self, logits: Tensor) -> Tensor:
        """Return the scores [B, K] that the prediction is read from."""
        logits = at_least_float32(logits)
        return logits.mean(0) if self.readout_name == "mean" else logits[-1]


class SDT(Loss):
    """Standard direct training: cross entropy of the mean output."""

    readout_name = "mean"

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        _check(logits, target)
        return _cross_entropy(at_least_float32(logits).mean(0), target)


class TET(Loss):
    """Temporal efficient training: the cross entropy of every time step, and a pull of all logits to phi."""

    readout_name = "mean"
    defaults = {"lam": 0.0, "phi": 1.0}

    def __init__(self, lam: float = 0.0, phi: float = 1.0):
        if not 0 <= lam <= 1:
            raise UserError(f"loss.lam={lam} must lie in 0..1 (the weight of the mean squared error)")
        self.lam, self.phi = lam, phi

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = _every_step(logits, target)
        if self.lam:
            loss = (1 - self.lam) * loss + self.lam * ((at_least_float32(logits) - self.phi) ** 2).mean()
        return loss


class TETS(Loss):
    """TET with smoothed labels; epsilon 0 is TET to the last bit."""

    readout_name = "mean"
    defaults = {"epsilon": 0.01}

    def __init__(self, epsilon: float = 0.01):
        if not 0 <= epsilon < 1:
            raise UserError(f"loss.epsilon={epsilon} must be at least 0 and below 1")
        self.epsilon = epsilon

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return _every_step(logits, target, self.epsilon)


class LTS(Loss):
    """Cross entropy of the last time step; earlier steps are trained through the membrane potential alone."""

    readout_name = "last"
    last_step = True

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        _check(logits, target)
        return _cross_entropy(at_least_float32(logits[-1]), target)


LOSSES: dict[str, type[Loss]] = {"sdt": SDT, "tet": TET, "tet_s": TETS, "lts": LTS}


def build_loss(name: str, **options) -> Loss:
    """Build a loss by name: sdt, tet (lam=0.0, phi=1.0), tet_s (epsilon=0.01) or lts.

    Raises UserError for an unknown name, an option that this loss does not have, and a value out of range.
    """
    if str(name) not in LOSSES:
        raise UserError(f"loss.name={name!r} is not one of {', '.join(LOSSES)}{nearest(name, LOSSES)}")
    cls = LOSSES[name]
    for key, value in options.items():
        if key not in cls.defaults:
            has = f"it has {', '.join(cls.defaults)}" if cls.defaults else "it has no options"
            raise UserError(f"loss.{key} is not an option of the loss '{name}'; {has}{nearest(key, cls.defaults)}")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"loss.{key}={value!r} must be a finite number")
    return cls(**options)


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
