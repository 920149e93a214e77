"""Known values from textbooks and scipy, and properties that must hold for any numbers."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from snn_repro.paper import statistics as s
from studies.initial_state import visible_effect

ROOT = Path(__file__).parents[2]
values = st.lists(st.floats(0, 100), min_size=2, max_size=8)


def test_summary_is_the_textbook_t_interval():
    found = s.summary([94.0, 95.0, 96.0, 97.0, 98.0])
    assert found.mean == 96.0 and found.n == 5 and found.sd == pytest.approx(math.sqrt(2.5))
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)  # t(0.975, 4)
    assert (found.low, found.high) == pytest.approx((96 - half, 96 + half))


def test_pages_promise_the_power_that_there_is():
    honest, rule = ((ROOT / page).read_text("utf-8") for page in ("docs/honest.md", "results/methods.md"))
    assert [f"{s.power_to_see(1, 1, n):.2f}" for n in (5, 3)] == ["0.40", "0.18"]
    assert [round(visible_effect(1, n), 1) for n in (5, 3)] == [1.7, 3.3]
    assert "| 5 | 40 % | 1.7 sd |" in honest and "| 3 | 18 % | 3.3 sd |" in honest
    least = stats.t.ppf(1 - 0.05 / 37 / 2, 2) / 3**0.5
    assert f"no difference below {least:.1f} standard deviations" in rule


def test_findings_quote_their_reports():
    page = (ROOT / "results/README.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if "| [report](" in line]
    for line in lines:
        report = (ROOT / "results" / re.search(r"\[report\]\((\w+\.md)\)", line)[1]).read_text("utf-8")
        quoted = re.findall(r"[-+][\d.]+ \([-+][\d.]+ \.\. [-+][\d.]+\)", line)
        assert quoted and all(effect in report for effect in quoted), line
    assert len(lines) == 5 and page.index("No run of the paper's own rows exists") < page.index(lines[0])


def test_one_value_has_no_spread():
    assert s.summary([3.5]) == (3.5, None, 1, None, None)
    assert s.paired([1.0], [2.5]) == (1.5, None, 1, None, None, None, None)


@pytest.mark.parametrize(
    "call, said",
    [
        *((lambda bad=bad: s.summary(bad), "finite numbers") for bad in ([], [1.0, float("nan")], [[1.0, 2.0]])),
        (lambda: s.paired([1, 2], [1, 2, 3]), "got 2 and 3"), (lambda: s.mcnemar([True], [True, False]), "same samples"),
        (lambda: s.holm([1.5]), "0..1"), (lambda: s.equivalence([1, 2], [2, 3], 0), "margin=0"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_an_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@given(values)
def test_summary_agrees_with_scipy(x):
    found = s.summary(x)
    if found.sd > 1e-6:
        expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_paired_agrees_with_scipy():
    a, b = [90.1, 91.2, 89.7, 90.6, 90.9], [91.0, 91.9, 90.9, 91.1, 91.2]
    p, expected = s.paired(a, b), stats.ttest_rel(b, a)
    assert p.p == pytest.approx(expected.pvalue)
    assert (p.low, p.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert p.p_sign_flip == 2 / 32  # all five differences are positive: the smallest p that five pairs allow
    flipped = stats.permutation_test(
        (np.subtract(b, a),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert p.p_sign_flip == pytest.approx(flipped.pvalue)


def test_pairs_without_spread_are_left_to_the_exact_test():
    assert s.paired([1, 2, 3], [1, 2, 3])[-2:] == (1.0, 1.0)
    same = s.paired([0.1, 0.2, 0.3], [0.6, 0.7, 0.8])  # each + 0.5 but for rounding: the t statistic means nothing
    assert same.mean == pytest.approx(0.5) and same.p == same.p_sign_flip == 0.25


# thousandths: two sums are equal or far apart, never within what the test and the code take for rounding
@given(st.lists(st.integers(-5000, 5000).map(lambda n: n / 1000), min_size=1, max_size=7))
def test_sign_flip_counts_every_pattern(d):
    extreme = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=len(d))]
    expected = sum(e >= abs(sum(d)) - 1e-11 for e in extreme) / 2 ** len(d)
    assert s.sign_flip(d) == pytest.approx(expected)
    assert s.sign_flip(d) == s.sign_flip([-x for x in d])
    assert s.sign_flip([1.0, 2.0] * 9) is None and s.sign_flip([1.0] * 17) == 2 / 2**17


def test_mcnemar_by_hand():
    a = [True] * 60 + [True] * 2 + [False] * 9 + [False] * 29
    b = [True] * 60 + [False] * 2 + [True] * 9 + [False] * 29
    assert s.mcnemar(a, b) == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)  # 0.0654
    assert s.mcnemar(b, a) == s.mcnemar(a, b) and s.mcnemar([True, False], [True, False]) == 1


def test_wilson_known_values():
    assert s.wilson(0, 10) == pytest.approx((0.0, 0.27753279))
    k, n, z = 878, 1000, stats.norm.ppf(0.975)
    centre, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert s.wilson(k, n) == pytest.approx((centre - half, centre + half))


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.9, 0.8]) == [1.0, 1.0] and s.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_never_helps_and_keeps_the_order(p):
    adjusted = s.holm(p)
    assert all(q >= x for q, x in zip(adjusted, p, strict=True)) and max(adjusted) <= 1
    ranks = np.argsort(p, kind="stable")
    assert all(np.diff(np.array(adjusted)[ranks]) >= 0)


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(0)
    a = rng.normal(80, 0.3, 8)
    b = a + rng.normal(0.1, 0.2, 8)
    above = stats.ttest_1samp(b - a, -0.5, alternative="greater").pvalue
    below = stats.ttest_1samp(b - a, 0.5, alternative="less").pvalue
    assert s.equivalence(a, b, 0.5) == pytest.approx(max(above, below), rel=1e-9)
    assert s.equivalence(a, a + 0.1, 0.5) == 0 and s.equivalence(a, a + 0.6, 0.5) > 0.5
    assert s.equivalence([1.0], [1.0], 0.5) is None


def test_power_is_how_often_a_simulated_study_sees_it():
    rng = np.random.default_rng(1)
    sd, n = 0.4, 6
    for shift, of in ((0.6, s.power_to_see), (0.0, s.power_to_exclude)):
        d = rng.normal(shift, sd, (1000, n))
        zero = np.zeros(n)
        p = [s.paired(zero, x).p if shift else s.equivalence(zero, x, 0.5) for x in d]
        assert np.mean(np.array(p) < 0.05) == pytest.approx(of(0.6 if shift else 0.5, sd, n), abs=0.05)


def test_pairs_needed_and_what_can_be_seen_go_together():
    # Machin et al.: a paired t-test of an effect of one sd needs 10 pairs for a power of 80 %
    assert s.pairs_needed(1.0, 1.0) == 10
    assert visible_effect(1.0, 10) == pytest.approx(1.0, abs=0.02)
    for n in (2, 3, 5, 100):  # scipy's lower tail is NaN far out
        powers = [s.power_to_see(effect, 0.46, n) for effect in np.linspace(0, 20, 100)]
        assert np.all(np.diff(powers) > -1e-9) and powers[0] == pytest.approx(0.05) and powers[-1] > 0.99
        assert s.power_to_see(visible_effect(0.46, n), 0.46, n) == pytest.approx(0.8)
    assert s.pairs_needed(1.0, 1.0, exclude=True) > 10
    assert s.pairs_needed(1e-6, 1.0) == 1000 and visible_effect(0.0, 5) == 0


@pytest.mark.parametrize(("m", "n"), [(1, 3), (4, 6), (35, 8)])
def test_dunnett_is_scipys(m, n):
    rng = np.random.default_rng(m)
    control, *samples = rng.normal(size=(m + 1, n)) + np.linspace(0, 1.5, m + 1)[:, None]
    theirs = stats.dunnett(*samples, control=control, random_state=np.random.default_rng(0))
    ours = [s.dunnett_p(abs(t), m, (m + 1) * (n - 1)) for t in theirs.statistic]
    np.testing.assert_allclose(ours, theirs.pvalue, atol=2e-3)


def test_against_a_baseline_with_seeds_as_blocks():
    rng = np.random.default_rng(3)
    seeds = rng.normal(0, 5, 8)  # what the seed does, which cancels
    baseline, same, better = (seeds + shift + rng.normal(0, 0.1, 8) for shift in (0, 0, 1))
    found = s.against_baseline(baseline, [same, better])
    assert found[0].p > 0.05 and found[0].low < 0 < found[0].high
    assert found[1].p < 1e-6 and 0.8 < found[1].low < found[1].mean < found[1].high < 1.2
    (alone,) = s.against_baseline(baseline, [better])  # with one row it is the paired t-test
    pair = s.paired(baseline, better)
    assert (alone.mean, alone.sd, alone.p) == pytest.approx((pair.mean, pair.sd, pair.p), rel=1e-3)
    assert (alone.low, alone.high) == pytest.approx((pair.low, pair.high), abs=1e-5)
    for rows in ([], [[1.0]], [[1.0, 2.0], [1.0]]):
        with pytest.raises(ValueError):
            s.against_baseline([1.0, 2.0][: 1 + bool(rows and len(rows[0]) > 1)], rows)
    equal, shifted = s.against_baseline([10.0] * 8, [[10.0] * 8, [11.0] * 8])  # no spread: the sign-flip test's p
    assert (equal.mean, equal.p) == (0, 1) and (shifted.low, shifted.high, shifted.p) == (1, 1, 2 * 2 / 2**8)


def test_verdicts_say_what_the_seeds_show():
    rng = np.random.default_rng(1)
    a, noise = rng.normal(90, 1, 8), rng.normal(0, 0.2, 8)
    pairs = [(a, a + 2 + noise), (a, a - 2 + noise), (a, a + noise / 10), (a, a + 0.4 + 10 * noise)]
    found = s.verdicts(pairs, margin=0.5)
    assert [v.word for v in found] == ["better", "worse", "equivalent", "cannot be said"]
    assert [v.p for v in found] == s.holm([v.found.p for v in found])
    unsure = found[-1]
    assert [v.p_equivalent for v in found] == s.holm([s.equivalence(a, b, 0.5) for a, b in pairs])
    assert 8 < unsure.seeds == s.pairs_needed(unsure.found.mean, unsure.found.sd, alpha=0.05 / 4)  # as Holm at worst
    (one,) = s.verdicts([([90.0], [91.0])], margin=0.5)
    assert (one.word, one.p, one.seeds) == ("cannot be said", None, None)
    against = s.verdicts_against_baseline(
        [(a, a + 2 + noise, a + noise / 10), (a, a - 2 + noise, a + noise)], margin=0.5
    )
    assert [[v.word for v in rows] for rows in against] == [["better", "equivalent"], ["worse", "equivalent"]]
    assert against[0][1].p == min(1, 2 * s.against_baseline(a, [a + 2 + noise, a + noise / 10])[1].p)
