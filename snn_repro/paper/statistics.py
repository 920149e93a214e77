"""Statistics of a few seeds and of paired predictions, in the units of the input.

Intervals are 95 % confidence intervals. "Paired" means that the k-th values of both sides come from the same seed (same
initial weights, same data order), so that the effect of the seed cancels in the difference.
"""

from bisect import bisect_left
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
    return Paired(mean, sd, n, low, high, float(stats.ttest_rel(y, x).pvalue) if sd > NO_SPREAD else flip, flip)


def equivalence(a: Sequence[float], b: Sequence[float], margin: float) -> float | None:
    """p of the paired equivalence test (two one-sided t-tests, Schuirmann 1987).

    A small p says that the mean of b - a lies within +-margin; None for fewer than two pairs. Raises ValueError for
    unequal lengths or a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be positive")
    mean, sd, n, *_ = paired(a, b)
    return None if sd is None else _outside(margin - abs(mean), sd, n, n - 1)


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
    return bisect_left(range(1000), power, 2, key=lambda n: of(effect, sd, n, alpha))


def sign_flip(differences: Sequence[float] | np.ndarray) -> float | None:
    """Exact two-sided p of the mean under random signs; None above EXACT_UP_TO pairs, unless equal."""
    d = _finite(differences)
    if np.ptp(d) <= NO_SPREAD:  # only all signs alike are as extreme
        return 2.0 ** (1 - len(d)) if abs(d[0]) > NO_SPREAD else 1.0
    if len(d) > EXACT_UP_TO:
        return None
    signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - NO_SPREAD * len(d)))


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
    order, adjusted = np.argsort(p, kind="stable"), np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


class Verdict(NamedTuple):
    """One measure of row b against row a; higher is better."""

    found: "Paired | Against"
    p: float | None  # of the difference, adjusted for all measures that were compared together
    p_equivalent: float | None  # that it is as large as the margin, adjusted by Holm
    word: str  # better, worse, equivalent, cannot be said
    seeds: int | None  # number of seeds that would say it with 80 % power, where it cannot be said


def verdicts(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], margin: float, alpha: float = 0.05
) -> list[Verdict]:
    """Compare two rows by several measures, such as the accuracy at each time step.

    A pair has the values of rows a and b over the same seeds. Better or worse: p of the paired t-test, by Holm over the
    measures, is at most alpha. Equivalent: p of `equivalence`, by Holm as well, is, and the difference is not seen.
    Raises ValueError for unequal lengths or a margin that is not positive.
    """
    found = [paired(a, b) for a, b in pairs]
    differ, same = _holm([f.p for f in found]), _holm([equivalence(a, b, margin) for a, b in pairs])
    return [_verdict(*each, margin, alpha, len(pairs)) for each in zip(found, differ, same, strict=True)]


def verdicts_against_baseline(
    measures: Sequence[Sequence[Sequence[float]]], margin: float, alpha: float = 0.05
) -> list[list[Verdict]]:
    """Compare measures of several rows, each [baseline, row, ...] over the same seeds; [measures][rows] verdicts.

    p of a difference is Dunnett's over the rows, by Bonferroni over the measures. p of equivalence has the same pooled
    variance and is adjusted by Holm over all rows and measures. Raises ValueError as `against_baseline`.
    """
    found, steps = [against_baseline(baseline, others) for baseline, *others in measures], len(measures)
    same = iter(holm([_outside(margin - abs(a.mean), a.sd, a.n, a.df) for row in found for a in row]))
    return [
        [_verdict(a, min(1.0, a.p * steps), next(same), margin, alpha, steps * len(row)) for a in row] for row in found
    ]


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    known = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(known) for p in p_values]


def _outside(inside: float, sd: float, n: int, df: int) -> float:
    """p of the two one-sided t-tests of a mean `inside` units within the margin."""
    return float(stats.t.sf(inside * n**0.5 / sd, df)) if sd > NO_SPREAD else float(inside <= 0)


def _verdict(
    f: "Paired | Against", p: float | None, same: float | None, margin: float, alpha: float, count: int
) -> Verdict:
    """The verdict on one of `count` comparisons; seeds are for the level alpha / count, which suffices for Holm."""
    if p is not None and p <= alpha:
        return Verdict(f, p, same, "better" if f.mean > 0 else "worse", None)
    if same is not None and same <= alpha:
        return Verdict(f, p, same, "equivalent", None)
    ways: list[int] = []
    if f.sd and f.sd > NO_SPREAD:
        ways = [pairs_needed(abs(f.mean), f.sd, alpha=alpha / count)]
        if abs(f.mean) < margin:
            ways.append(pairs_needed(margin - abs(f.mean), f.sd, alpha=alpha / count, exclude=True))
    return Verdict(f, p, same, "cannot be said", min(ways, default=None))


class Against(NamedTuple):
    """Difference of a row from the baseline, with simultaneous 95 % interval and Dunnett's p."""

    mean: float
    sd: float  # of the difference of two rows at one seed, from the pooled variance
    n: int
    low: float
    high: float
    p: float
    df: int


def against_baseline(baseline: Sequence[float], others: Sequence[Sequence[float]]) -> list[Against]:
    """Dunnett's test (1955) of rows against one baseline, with seeds as blocks.

    Each row has values of the same n seeds in the same order. The variance is pooled over all rows: the residual of row
    and seed effects, with m (n - 1) degrees of freedom for m rows. Without any spread, p is the sign-flip test's times
    m. Raises ValueError for unequal lengths or fewer than two seeds.
    """
    rows = [_finite(row) for row in (baseline, *others)]
    m, n = len(others), len(rows[0])
    if m < 1 or n < 2 or any(len(row) != n for row in rows):
        raise ValueError(f"a baseline, another row and two common seeds are needed, got {[len(row) for row in rows]}")
    x, df = np.array(rows), m * (n - 1)
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    sd = float(2 * (residual**2).sum() / df) ** 0.5
    means = (x[1:].mean(1) - x[0].mean()).tolist()
    if sd <= NO_SPREAD:
        return [Against(d, 0.0, n, d, d, 1.0 if abs(d) <= NO_SPREAD else min(1.0, m * 2 / 2**n), df) for d in means]
    error = sd / n**0.5
    reach = error * float(optimize.brentq(lambda t: dunnett_p(t, m, df) - 0.05, 0, 1000))
    return [Against(d, sd, n, d - reach, d + reach, dunnett_p(abs(d) / error, m, df), df) for d in means]


def dunnett_p(t: float, m: int, df: int) -> float:
    """P(max |T| >= t) of m Student variables with correlations of 1/2."""
    z, weight = np.polynomial.hermite_e.hermegauss(64)
    u = (np.arange(1000) + 0.5) / 1000
    s = np.sqrt(stats.chi2.ppf(u**3, df) / df)[:, None]  # dense where s is small: there are the tails of T
    inside = special.ndtr(z + 2**0.5 * t * s) - special.ndtr(z - 2**0.5 * t * s)
    outside = (1 - inside**m) @ weight / weight.sum()
    return float((outside * 3 * u**2).mean())


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"a non-empty list of finite numbers is needed, got {values!r}")
    return x
