"""Accuracy counts per time step, for the running mean, and at the readout.

Pure functions. Logits are [T, B, K]. Targets are class indices [B], or soft targets [B, K], whose largest class counts.
"""

import torch
from torch import Tensor, nn


def correct_per_step(logits: Tensor, target: Tensor) -> Tensor:
    """Correct predictions of each time step's own output y_t, int64 [T]."""
    return (logits.argmax(-1) == _labels(target)).sum(1)


def correct_cumulative(logits: Tensor, target: Tensor) -> Tensor:
    """Correct predictions of the mean output over steps 1..t, int64 [T]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Each mean is computed separately, so the last equals the mean readout even where two classes nearly tie.
    return correct_per_step(torch.stack([logits[: t + 1].mean(0) for t in range(len(logits))]), target)


def count_correct(scores: Tensor, target: Tensor) -> Tensor:
    """Correct predictions of readout scores [B, K], int64 [], on their device (no synchronisation)."""
    return (scores.argmax(-1) == _labels(target)).sum()


def _labels(target: Tensor) -> Tensor:
    return target.argmax(-1) if target.dim() == 2 else target


def sees_future(model: nn.Module) -> list[str]:
    """Names of modules with `causal = False`: their outputs in evaluation see later time steps."""
    return [name or type(m).__name__ for name, m in model.named_modules() if not getattr(m, "causal", True)]
