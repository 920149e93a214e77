"""Counts of right answers, over time steps and at the readout. Pure functions; divide by the samples seen.

Logits are [T, B, K]. Targets are class indices [B]; of soft targets [B, K] the heaviest class counts.
"""

import torch
from torch import Tensor


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
    """Return the right answers of scores [B, K] as int64 [], on their device: nothing waits for it."""
    return (scores.argmax(-1) == _labels(target)).sum()


def correct_readout(scores: Tensor, target: Tensor) -> int:
    """Return the right answers of readout scores [B, K]."""
    return int(count_correct(scores, target))


def _labels(target: Tensor) -> Tensor:
    return target.argmax(-1) if target.dim() == 2 else target
