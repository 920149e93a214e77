"""Statistics of a few seeds and of paired predictions, in the units of the input.

Intervals are 95 % confidence intervals. "Paired" means that the k-th values of both sides come from the same seed (same
initial weights, same data order), so that the effect of the seed cancels in the difference.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

EXACT_UP_TO = 16  # pairs: all 2^16 sign patterns are enumerated
NO_SPREAD = 1e-12  # smaller differences are rounding, not spread


class Summary(NamedTuple):
    """Mean, sample sd and interval of n values; only the mean if n is 1."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f} (n=1)" if self.sd is None else f"{self.mean:.2f} ± {self.sd:.2f}"


class Interval(NamedTuple):
    """A 95 % interval: "t" over seeds, or "Wilson" over test samples for one seed."""

    low: float | None
    high: float | None
    kind: str

    def __str__(self) -> str:
        return f"{self.low:.2f} .. {self.high:.2f}" + (" (sample)" if self.kind == "Wilson" else "")


class Paired(NamedTuple):
    """Mean difference over n pairs, interval and p-values; None where n is too small."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None
    p: float | None  # paired t-test; equals p_sign_flip if the differences have no spread
    p_sign_flip: float | None  # exact: fraction of the 2^n sign patterns whose mean is at least as far from 0


def summary(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean, sample sd and t interval. Raises ValueError for no or non-finite values."""
    x = _finite(values)
    mean, n = float(x.mean()), len(x)
    if n == 1:
        return Summary(mean, None, 1, None, None)
    sd = float(x.std(ddof=1))
    half = float(special.stdtrit(n - 1, 0.975)) * sd / n**0.5
    return Summary(mean, sd, n, mean - half, mean + half)


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Mean of b - a over pairs, t interval, and two-sided t and sign-flip tests.

    The t-test assumes roughly normal differences, the exact sign-flip test only symmetric ones; its p cannot be below 2
    / 2^n (0.0625 for 5 pairs). Raises ValueError for unequal lengths.
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
    """p of the paired equivalence test (two one-sided t-tests, Schuirmann 1987).

    A small p says that the mean of b - a lies within +-margin; None for fewer than two pairs. Raises ValueError for
    unequal lengths or a margin that is not positive.
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
    """Power of the two-sided paired t-test to detect a mean difference `effect` over n pairs."""
    t, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * n**0.5 / sd
    return float(stats.nct.sf(t, n - 1, shift) + stats.nct.sf(t, n - 1, -shift))  # nct.cdf(-t) gives NaN far out


def power_to_exclude(margin: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Power of `equivalence` if the true difference is 0 (a lower bound: Phillips 1990)."""
    t, shift = stats.t.ppf(1 - alpha, n - 1), margin * n**0.5 / sd
    return max(0.0, 2 * float(stats.nct.sf(t, n - 1, shift)) - 1)


def pairs_needed(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05, exclude: bool = False) -> int:
    """Fewest pairs that detect (or `exclude`) `effect` with this power; at most 1000."""
    of = power_to_exclude if exclude else power_to_see
    return next((n for n in range(2, 1000) if of(effect, sd, n, alpha) >= power), 1000)


def sign_flip(differences: Sequence[float] | np.ndarray) -> float | None:
    """Exact two-sided p of the mean under random signs; None above EXACT_UP_TO pairs."""
    d = _finite(differences)
    if len(d) > EXACT_UP_TO:
        return None
    signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    means = np.abs(signs @ d)
    return float(np.mean(means >= abs(d.sum()) - NO_SPREAD * len(d)))


def mcnemar(right_a: Sequence[bool] | np.ndarray, right_b: Sequence[bool] | np.ndarray) -> float:
    """p of McNemar's exact two-sided test on the samples that only one side classified correctly.

    Both are bool [N] over the same samples in the same order. Raises ValueError for unequal lengths or none.
    """
    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two predictions of the same samples are needed, got shapes {a.shape} and {b.shape}")
    only_b, either = int((b & ~a).sum()), int((a ^ b).sum())
    return float(stats.binomtest(only_b, either, 0.5).pvalue) if either else 1.0


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of the rate k / n. Raises ValueError for impossible counts."""
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order; controls the family-wise error rate."""
    p = _finite(p_values) if len(p_values) else np.zeros(0)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p-values must be in 0..1, got {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


class Verdict(NamedTuple):
    """One measure of two rows, compared over seeds: b against a."""

    found: Paired
    p: float | None  # adjusted for all measures that were compared together
    p_equivalent: float | None  # of `equivalence` within the margin
    word: str  # better, worse, equivalent, cannot be said
    seeds: int | None  # pairs that would say it with a power of 80 %, where it cannot be said


def verdicts(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], margin: float, alpha: float = 0.05
) -> list[Verdict]:
    """Compare measures (such as the accuracy at each time step) of two rows, [(a, b), ...] over the same seeds; higher is better.

    Different: Holm's p over all measures is at most alpha. Equivalent: p of `equivalence` is. Else it cannot be said.
    """
    found = [paired(a, b) for a, b in pairs]
    known = iter(holm([f.p for f in found if f.p is not None]))
    adjusted = [None if f.p is None else next(known) for f in found]
    return [
        _verdict(f, p, equivalence(a, b, margin), margin, alpha)
        for f, p, (a, b) in zip(found, adjusted, pairs, strict=True)
    ]


def _verdict(f: Paired, p: float | None, same: float | None, margin: float, alpha: float) -> Verdict:
    if p is not None and p <= alpha:
        return Verdict(f, p, same, "better" if f.mean > 0 else "worse", None)
    if same is not None and same <= alpha:
        return Verdict(f, p, same, "equivalent", None)
    if not f.sd or f.sd <= NO_SPREAD:
        return Verdict(f, p, same, "cannot be said", None)
    ways = [pairs_needed(abs(f.mean), f.sd, alpha=alpha)] if f.mean else []
    if abs(f.mean) < margin:
        ways.append(pairs_needed(margin - abs(f.mean), f.sd, alpha=alpha, exclude=True))
    return Verdict(f, p, same, "cannot be said", min(ways))


class Against(NamedTuple):
    """Difference of a row from the baseline, with its simultaneous 95 % interval and Dunnett's p."""

    mean: float
    low: float
    high: float
    p: float


def against_baseline(baseline: Sequence[float], others: Sequence[Sequence[float]]) -> list[Against]:
    """Dunnett's test (1955) of rows against one baseline, seed as block: values of the same n seeds in the same order.

    The variance is pooled over all rows: the residual of row and seed effects, with m (n - 1) degrees of freedom for m rows.
    Raises ValueError for unequal lengths, fewer than two seeds, or no spread at all.
    """
    x = np.array([_finite(row) for row in (baseline, *others)])
    m, n = len(x) - 1, x.shape[1]
    if m < 1 or n < 2:
        raise ValueError(f"a baseline, another row and two seeds are needed, got {m + 1} rows of {n} seeds")
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    df = m * (n - 1)
    error = float((residual**2).sum() / df * 2 / n) ** 0.5
    if error <= NO_SPREAD:
        raise ValueError("the rows differ by the same amount at every seed: there is no spread to test against")
    reach = error * float(optimize.brentq(lambda t: dunnett_p(t, m, df) - 0.05, 0, 1000))
    means = x[1:].mean(1) - x[0].mean()
    return [Against(float(d), float(d - reach), float(d + reach), dunnett_p(abs(d) / error, m, df)) for d in means]


def dunnett_p(t: float, m: int, df: int) -> float:
    """P(max |T| >= t) of m Student variables with df degrees of freedom and correlations of 1/2."""
    z, weight = np.polynomial.hermite_e.hermegauss(64)
    s = np.sqrt(stats.chi2.ppf((np.arange(1000) + 0.5) / 1000, df) / df)[:, None]
    inside = special.ndtr(z + 2**0.5 * t * s) - special.ndtr(z - 2**0.5 * t * s)
    return float(1 - (inside**m @ weight).mean() / weight.sum())


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"a non-empty list of finite numbers is needed, got {values!r}")
    return x
