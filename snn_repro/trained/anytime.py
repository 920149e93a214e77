"""Early exit: accuracy against time steps and operations, and a guaranteed threshold.

`snn-eval RUN anytime=true`, without training. A sample stops at the first time step at which a rule reaches its threshold,
else at the last step T. A rule is a value in 0..1 of the scores up to a step:

    confidence  the highest probability (SEENN-I: Li et al., NeurIPS 2023)
    margin      the highest probability less the second one
    entropy     1 + sum_k p[k] log p[k] / log K

of the mean output up to the step (`mean`) or of what the loss reads of it (`readout`; the last step's output for LTS).

The guarantee (Learn then Test: Angelopoulos et al., 2021, arXiv:2110.01052): thresholds are tested on the validation part from
the highest one down, each by the binomial tail p = P(Binomial(n, eps) <= k), k the samples that are right at T and wrong where
they stop. The last threshold before the first p > delta is taken. With probability 1 - delta over the validation samples, the
accuracy lost against T is at most eps.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor, nn

from snn_repro.energy import CONNECTIONS, nonzero_products
from snn_repro.kernels import door

THRESHOLDS = np.linspace(0, 1, 101)
EPSILON, DELTA = 0.01, 0.1  # accuracy that may be lost; probability that more is lost


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = dict(  # of probabilities [..., K]
    confidence=lambda p: p.max(-1),
    margin=lambda p: np.diff(np.partition(p, -2, axis=-1)[..., -2:])[..., 0],
    entropy=lambda p: 1 - special.entr(p).sum(-1) / np.log(p.shape[-1]),
)


def anytime(
    test: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray] | None, epsilon: float = EPSILON,
    delta: float = DELTA,
) -> dict[str, Any]:  # fmt: skip
    """Curve, areas and guaranteed threshold of each rule.

    test, validation: `labels` [N], `mean` and `readout` scores [T, N, K] up to each step; test also `operations` [N, T] of each
    step. Accuracies are fractions; `operations` are those up to the stop, a sample. Areas are means of the accuracy over time
    steps 1..T, or over operations from the first step's to all, along the curve (step function from below).
    """
    spent, found = test["operations"].cumsum(1), []
    for scores in ("mean", "readout"):
        right, p = judged(test, scores)
        own = judged(validation, scores) if validation else None
        for name, rule in RULES.items():
            sure = rule(p)
            curve = [point(stops(sure, threshold), right, spent) for threshold in THRESHOLDS]
            found.append(
                dict(
                    rule=name, scores=scores, curve=curve,
                    area_steps=area([(c["steps"], c["acc"]) for c in curve], 1, len(right)),
                    area_operations=area([(c["operations"], c["acc"]) for c in curve], spent[:, 0].mean(), spent[:, -1].mean()),
                    guarantee=guarantee(rule(own[1]), own[0], sure, right, spent, epsilon, delta) if own else None,
                )
            )  # fmt: skip
    n_val = len(validation["labels"]) if validation else 0
    return dict(epsilon=epsilon, delta=delta, n=len(test["labels"]), n_val=n_val, rules=found)


def judged(part: Mapping[str, np.ndarray], scores: str) -> tuple[np.ndarray, np.ndarray]:
    """(whether a stop at each step is right [T, N], probabilities [T, N, K])."""
    return part[scores].argmax(-1) == part["labels"], special.softmax(part[scores].astype(float), axis=-1)


def stops(sure: np.ndarray, threshold: float) -> np.ndarray:
    """The step [N], from 0, at which each sample stops.

    It is the first with sure [T, N] >= threshold, else the last.
    """
    enough = sure >= threshold
    enough[-1] = True
    return enough.argmax(0)


def point(step: np.ndarray, right: np.ndarray, spent: np.ndarray) -> dict[str, float]:
    """Accuracy, mean time steps and mean operations of samples that stop at `step`."""
    samples = np.arange(len(step))
    values = dict(acc=right[step, samples].mean(), steps=step.mean() + 1, operations=spent[samples, step].mean())
    return {name: float(value) for name, value in values.items()}


def area(points: list[tuple[float, float]], low: float, high: float) -> float | None:
    """Mean over costs low..high of the highest accuracy so far; None if low = high."""
    if not high > low:
        return None
    total, best, at = 0.0, min(points)[1], low
    for cost, acc in sorted(points):
        total, at, best = total + best * (cost - at), cost, max(best, acc)
    return float((total + best * (high - at)) / (high - low))


def guarantee(
    own: np.ndarray, own_right: np.ndarray, sure: np.ndarray, right: np.ndarray, spent: np.ndarray, epsilon: float,
    delta: float,
) -> dict[str, Any]:  # fmt: skip
    """The lowest threshold that Learn then Test allows, measured on the test part.

    own, own_right [T, n]: the validation part. threshold is None if not even the highest one is allowed: then no sample
    stops early. lost: accuracy lost against T.
    """
    threshold, n = None, own.shape[1]
    for candidate in THRESHOLDS[::-1]:
        lost = int((own_right[-1] & ~own_right[stops(own, candidate), np.arange(n)]).sum())
        if stats.binom.cdf(lost, n, epsilon) > delta:
            break
        threshold = float(candidate)
    measured = point(stops(sure, np.inf if threshold is None else threshold), right, spent)
    return dict(threshold=threshold, lost=float(right[-1].mean()) - measured["acc"], **measured)


# ---------------------------------------------------------------- operations


@contextmanager
def counted_operations(model: nn.Module, timesteps: int) -> Iterator[list[Tensor]]:
    """Count synaptic operations of each sample and step: a list of [B, T].

    An operation is a nonzero input of a convolution or linear layer that meets a weight, as in `energy.neurobench`, so
    attention between activations is not counted. A layer that runs once for a static image counts at the first step.
    Layers run in PyTorch, which is slow.
    """
    batches: list[Tensor] = []
    met: dict[nn.Module, Tensor] = {}  # weights that each input of a layer meets

    def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        batches.append(torch.zeros(args[0].shape[-4], timesteps, dtype=torch.float64))

    def connection(layer: Any, args: tuple[Tensor, ...]) -> None:
        x, size = args[0].detach() != 0, len(batches[-1])
        tokens = isinstance(layer, nn.Linear) and x.dim() > 2 and x.shape[:2] == (timesteps, size)  # [T, B, ...]
        if not tokens:
            x = x.unflatten(0, (1 if len(x) == size else timesteps, -1))
        if layer not in met or met[layer].shape != x.shape[2:]:
            with torch.inference_mode(False), torch.enable_grad():
                one = torch.zeros(1, *x.shape[2:], device=x.device, dtype=torch.float64, requires_grad=True)
                products = nonzero_products(layer, one, torch.ones_like(layer.weight))
                met[layer] = torch.autograd.grad(products.sum(), one)[0][0]
        for t, part in enumerate(x):
            batches[-1][:, t] += (part.double().flatten(1) @ met[layer].flatten()).cpu()

    with door.off(model), model.register_forward_pre_hook(begin), ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, CONNECTIONS):
                stack.enter_context(module.register_forward_pre_hook(connection))
        yield batches
