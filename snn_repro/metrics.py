"""Counts of right answers, over time steps and at the readout, and whether single steps say anything. Pure functions.

Logits are [T, B, K]. Targets are class indices [B]; of soft targets [B, K] the heaviest class counts.
"""

import torch
from torch import Tensor, nn


def correct_per_step(logits: Tensor, target: Tensor) -> Tensor:
    """Return int64 [T]: right answers of each time step's own output y_t."""
    return (logits.argmax(-1) == _labels(target)).sum(1)


def correct_cumulative(logits: Tensor, target: Tensor) -> Tensor:
    """Return int64 [T]: right answers of the mean output over steps 1..t, as of a network stopped at t."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Each mean is taken afresh: so the last entry equals the mean readout even where two classes nearly tie.
    means = torch.stack([logits[: t + 1].mean(0) for t in range(len(logits))])
    return correct_per_step(means, target)


def count_correct(scores: Tensor, target: Tensor) -> Tensor:
    """Return the right answers of readout scores [B, K] as int64 [], on their device: nothing waits for it."""
    return (scores.argmax(-1) == _labels(target)).sum()


def _labels(target: Tensor) -> Tensor:
    return target.argmax(-1) if target.dim() == 2 else target


def sees_future(model: nn.Module) -> list[str]:
    """Names of the modules of `model` whose outputs in evaluation depend on later time steps: those with `causal = False`.

    Where there are any, the accuracy of single time steps says nothing about an inference that ends there. In training,
    batch statistics are over all time steps in any network.
    """
    return [name or type(m).__name__ for name, m in model.named_modules() if not getattr(m, "causal", True)]
