"""Base class of losses and their shared functions."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_repro.errors import UserError
from snn_repro.registry import LOSSES
from snn_repro.settings import Setting

register_loss = LOSSES.register


class Loss:
    """Base class of losses.

    loss(logits [T, B, K], target) -> scalar; loss.readout(logits) -> scores [B, K]. settings: name -> Setting; their
    values become attributes. If `last_step`, only logits[-1] is used, so [1, B, K] of the last step is enough. Terms
    for training only are omitted where gradients are off, so that in evaluation a loss is a mean over samples.
    """

    # "mean" over time or "last" step; a class that overrides `readout` uses another name
    readout_name = "mean"
    last_step = False
    soft_targets = True  # accepts distributions [B, K] as well as labels
    reads_potentials = False  # reads spiking layers' potentials, so training uses the PyTorch backend
    causal = True  # in evaluation, a step's prediction depends on no later frame
    settings: dict[str, Setting] = {}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # a setting's value

    def __init__(self, **values):
        vars(self).update({key: setting.default for key, setting in self.settings.items()} | values)

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "readout" in vars(cls) and vars(cls).get("readout_name", "mean") in ("mean", "last"):
            raise UserError(f"the loss {cls.__name__} overrides readout and needs a readout_name other than mean, last")

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def readout(self, logits: Tensor) -> Tensor:
        """Return the scores [B, K] whose argmax is the prediction."""
        logits = at_least_float32(logits)
        return logits.mean(0) if self.readout_name == "mean" else logits[-1]

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare for epoch `epoch` (from 0) of `epochs`; called after a resume too."""

    def begin_batch(self, x: Tensor) -> None:
        """Read the network's augmented input x; called before each batch of training."""

    def watch(self, model: nn.Module) -> None:
        """Attach hooks for what the loss reads besides logits; called once before training.

        `model` is what will be trained; before that the method is called with one neuron alone. Raises UserError if the
        model does not provide what the loss needs.
        """


def at_least_float32(logits: Tensor) -> Tensor:
    """Convert half-precision logits to float32: means and exponentials need the digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Raise UserError unless logits are [T, B, K] and target [B] or [B, K]."""
    if logits.dim() != 3 or target.shape not in (logits.shape[1:2], logits.shape[1:]):
        shapes = f"{list(logits.shape)} and {list(target.shape)}"
        raise UserError(f"A loss needs logits [T, B, K] and a target [B] or [B, K], not {shapes}.")


def cross_entropy(logits: Tensor, target: Tensor, epsilon: float = 0.0) -> Tensor:
    """Cross entropy of logits [N, K] and target [N] or [N, K], averaged over N."""
    if target.dim() == 2:
        target = target.to(logits.dtype)
    return F.cross_entropy(logits, target, label_smoothing=epsilon)


def cross_entropy_of_mean(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the mean output: CE(mean_t y[t], q)."""
    check_shapes(logits, target)
    return cross_entropy(at_least_float32(logits).mean(0), target)


def cross_entropy_of_steps(logits: Tensor, target: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean cross entropy of the steps, mean_t CE(y[t], q), with labels smoothed by epsilon."""
    check_shapes(logits, target)
    repeated = target.repeat(len(logits), *[1] * (target.dim() - 1))
    return cross_entropy(at_least_float32(logits.flatten(0, 1)), repeated, epsilon)


def smooth(target: Tensor, num_classes: int, epsilon: float) -> Tensor:
    """Smooth the labels of a target [B] or [B, K].

    Returns q' = (1 - epsilon) q + epsilon / K, float [B, K].
    """
    if target.dim() == 1:
        target = F.one_hot(target, num_classes).to(torch.get_default_dtype())
    return (1 - epsilon) * target + epsilon / num_classes
