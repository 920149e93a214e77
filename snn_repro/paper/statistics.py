"""Statistics of a few seeds and of paired predictions. Pure functions on numbers; units are those of the input.

An interval is a 95 % interval unless said otherwise. "Paired" means that the k-th value of both sides comes from the
same seed (same initial weights, same data order), so that what the seed does cancels in the difference.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

EXACT_UP_TO = 16  # pairs: 2^16 sign patterns are tried one by one
NO_SPREAD = 1e-12  # differences that agree this closely have no spread to test against: rounding, not chance


class Summary(NamedTuple):
    """Mean of n values with its spread; sd, low and high are None for a single value."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f} (n=1)" if self.sd is None else f"{self.mean:.2f} ± {self.sd:.2f}"


class Interval(NamedTuple):
    """A 95 % interval; kind "t" is Student's over seeds, "Wilson" that of the test sample where there is one seed."""

    low: float | None
    high: float | None
    kind: str

    def __str__(self) -> str:
        return f"{self.low:.2f} .. {self.high:.2f}" + (" (sample)" if self.kind == "Wilson" else "")


class Paired(NamedTuple):
    """Mean of n differences b - a with its interval and two p-values; None where n is too small to say."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None
    p: float | None  # paired t-test; the sign-flip p where the differences have no spread
    p_sign_flip: float | None  # exact: how many of the 2^n sign patterns give a mean at least as far from 0


def summary(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean, sample standard deviation (n - 1) and Student's t interval. Raises ValueError for no or non-finite values."""
    x = _finite(values)
    mean, n = float(x.mean()), len(x)
    if n == 1:
        return Summary(mean, None, 1, None, None)
    sd = float(x.std(ddof=1))
    half = float(special.stdtrit(n - 1, 0.975)) * sd / n**0.5
    return Summary(mean, sd, n, mean - half, mean + half)


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Differences b - a over pairs: mean, t interval, paired t-test and exact sign-flip test, both two-sided.

    With n pairs the sign-flip p cannot be below 2 / 2^n (0.0625 for 5): it is shown beside the t-test, which assumes
    roughly normal differences, as the check that assumes only symmetry. Raises ValueError for unequal lengths.
    """
    x, y = _finite(a), _finite(b)
    if len(x) != len(y):
        raise ValueError(f"paired values must come in pairs, got {len(x)} and {len(y)}")
    mean, sd, n, low, high = summary(y - x)
    if sd is None:
        return Paired(mean, None, 1, None, None, None, None)
    flip = sign_flip(y - x)
    p = float(stats.ttest_rel(y, x).pvalue) if sd > NO_SPREAD else flip
    return Paired(mean, sd, n, low, high, p, flip)


def equivalence(a: Sequence[float], b: Sequence[float], margin: float) -> float | None:
    """p of two one-sided paired t-tests (Schuirmann 1987): small where the mean of b - a surely lies within +-margin.

    None below two pairs. Raises ValueError for unequal lengths or a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be positive")
    mean, sd, n, *_ = paired(a, b)
    if sd is None:
        return None
    inside = margin - abs(mean)
    if sd <= NO_SPREAD:
        return 0.0 if inside > 0 else 1.0
    return float(stats.t.sf(inside * n**0.5 / sd, n - 1))


def power_to_see(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t-test for a mean difference `effect` over n pairs whose differences have this sd."""
    t, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * n**0.5 / sd
    return float(stats.nct.sf(t, n - 1, shift) + stats.nct.sf(t, n - 1, -shift))  # nct.cdf(-t) gives NaN far out


def power_to_exclude(margin: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Power of `equivalence` where the true difference is 0 (a lower bound: Phillips 1990)."""
    t, shift = stats.t.ppf(1 - alpha, n - 1), margin * n**0.5 / sd
    return max(0.0, 2 * float(stats.nct.sf(t, n - 1, shift)) - 1)


def pairs_needed(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05, exclude: bool = False) -> int:
    """Fewest pairs that see `effect` (or `exclude` it) with this power; 1000 where none below would."""
    of = power_to_exclude if exclude else power_to_see
    return next((n for n in range(2, 1000) if of(effect, sd, n, alpha) >= power), 1000)


def visible_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest mean difference that n pairs with this sd of their differences show with this power."""
    if sd <= NO_SPREAD:
        return 0.0
    high = sd / n**0.5
    while power_to_see(high, sd, n, alpha) < power:
        high *= 1.5
    return float(optimize.brentq(lambda effect: power_to_see(effect, sd, n, alpha) - power, 0, high))


def sign_flip(differences: Sequence[float] | np.ndarray) -> float | None:
    """Two-sided exact p of the mean difference under random signs; None above EXACT_UP_TO pairs."""
    d = _finite(differences)
    if len(d) > EXACT_UP_TO:
        return None
    signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    means = np.abs(signs @ d)
    return float(np.mean(means >= abs(d.sum()) - NO_SPREAD * len(d)))


def mcnemar(right_a: Sequence[bool] | np.ndarray, right_b: Sequence[bool] | np.ndarray) -> float:
    """p of McNemar's exact test: two-sided binomial over the samples that only one side got right [N].

    Both must be answers to the same samples in the same order. Raises ValueError for unequal lengths or none.
    """
    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two predictions of the same samples are needed, got shapes {a.shape} and {b.shape}")
    only_b, either = int((b & ~a).sum()), int((a ^ b).sum())
    return float(stats.binomtest(only_b, either, 0.5).pvalue) if either else 1.0


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's score interval for the rate behind k of n. Raises ValueError unless 0 <= k <= n and n > 0."""
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (step-down, controls the chance of any false positive), in the order given."""
    p = _finite(p_values) if len(p_values) else np.zeros(0)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p-values lie in 0..1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"a row of finite numbers is needed, got {values!r}")
    return x
