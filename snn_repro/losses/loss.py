"""What a loss is, and what several of them compute with."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.registry import LOSSES
from snn_repro.settings import Setting

register_loss = LOSSES.register


class Loss:
    """loss(logits [T, B, K], target) -> scalar; loss.readout(logits) -> scores [B, K].

    settings: name -> Setting; their values become attributes. Where `last_step` is true, loss and readout look at
    logits[-1] alone: [1, B, K] of the last step is enough for both. A term that only training has is left out where
    gradients are off, so that a loss in evaluation is a mean over samples.
    """

    # "mean" over time, or of the "last" step; a class with a `readout` of its own calls it something else
    readout_name = "mean"
    last_step = False
    soft_targets = True  # whether distributions [B, K] are taken beside labels
    reads_potentials = False  # watches the spiking layers, so that PyTorch computes them in training
    causal = True  # in evaluation, the prediction at a step depends on no later frame
    settings: dict[str, Setting] = {}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # a setting's value

    def __init__(self, **values):
        vars(self).update({key: setting.default for key, setting in self.settings.items()} | values)

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

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the training steps of epoch `epoch` (from 0) of `epochs`, after a resume too."""

    def watch(self, model: nn.Module) -> None:
        """Called once before training with what will be trained, and before that with one of its neurons alone. A loss that
        reads more than logits asks for it here. Raises UserError where the model does not show it."""


def at_least_float32(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others unchanged: means and exponentials need the digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check(logits: Tensor, target: Tensor) -> None:
    """Raise UserError for shapes that no loss takes."""
    if logits.dim() != 3 or target.shape not in (logits.shape[1:2], logits.shape[1:]):
        raise UserError(
            f"A loss needs logits [T, B, K] and a target [B] or [B, K], "
            f"not {list(logits.shape)} and {list(target.shape)}."
        )


def cross_entropy(logits: Tensor, target: Tensor, epsilon: float = 0.0) -> Tensor:
    """Of logits [N, K] and a target [N] or [N, K], averaged over N."""
    if target.dim() == 2:
        target = target.to(logits.dtype)
    return F.cross_entropy(logits, target, label_smoothing=epsilon)


def of_the_mean(logits: Tensor, target: Tensor) -> Tensor:
    """CE(mean_t y[t], q)."""
    check(logits, target)
    return cross_entropy(at_least_float32(logits).mean(0), target)


def of_every_step(logits: Tensor, target: Tensor, epsilon: float = 0.0) -> Tensor:
    """mean_t CE(y[t], q), with labels smoothed by epsilon."""
    check(logits, target)
    repeated = target.repeat(len(logits), *[1] * (target.dim() - 1))  # every time step has the same target
    return cross_entropy(at_least_float32(logits.flatten(0, 1)), repeated, epsilon)


def smooth(target: Tensor, num_classes: int, epsilon: float) -> Tensor:
    """Return q' = (1 - epsilon) q + epsilon / K, float [B, K], of a target [B] or [B, K]."""
    if target.dim() == 1:
        target = F.one_hot(target, num_classes).to(torch.get_default_dtype())
    return (1 - epsilon) * target + epsilon / num_classes
