"""Rows compared with a baseline at the readout and at each time step."""

from collections.abc import Sequence
from typing import Any

from snn_repro.errors import UserError
from snn_repro.paper.results import Group, over_seeds
from snn_repro.paper.statistics import Paired, Verdict, verdicts, verdicts_against_baseline

LEVEL = 0.05


def comparison(baseline: Group, others: Sequence[Group], margin: float = 0.5) -> list[list[dict[str, Any]]]:
    """Differences of rows from a baseline, in points.

    For each row a list: readout, step 1, ..., step T. Values are paired over the seeds that all rows have. One other
    row: paired t-test, exact sign-flip test, Holm's correction over the steps. Several: Dunnett's test with seeds as
    blocks, Bonferroni's correction over the steps. The readout is not corrected. Differences below `margin` count as
    equal. Raises UserError where too few seeds are common.
    """
    groups, needed = [baseline, *others], 1 if len(others) == 1 else 2
    seeds, readout = over_seeds(groups, lambda run: 100 * run["acc_last"])
    if len(seeds) < needed:
        have = "; ".join(f"{g.label}: {', '.join(str(run['seed']) for run in g.runs)}" for g in groups)
        raise UserError(
            f"rows are paired over seeds: {needed} must be common, and {len(seeds)} are; run the missing seeds ({have})"
        )
    steps = over_seeds(groups, lambda run: run["acc_step"] if run.get("causal", True) else [])[1]
    T = min(len(accuracies) for row in steps for accuracies in row)
    by_step = [[[100 * accuracies[t] for accuracies in row] for row in steps] for t in range(T)]
    judged = _judged([readout], margin) + (_judged(by_step, margin) if T else [])
    at = ["readout", *(f"step {t + 1}" for t in range(T))]
    return [
        [
            dict(baseline=baseline.label, row=row.label, at=where) | _numbers(found[i], margin)
            for where, found in zip(at, judged, strict=True)
        ]
        for i, row in enumerate(others)
    ]


def _judged(measures: Sequence[Sequence[Sequence[float]]], margin: float) -> list[list[Verdict]]:
    """Verdicts [measures][other rows] on values [measures][rows][seeds]."""
    if len(measures[0]) > 2:
        return verdicts_against_baseline(measures, margin, LEVEL)
    return [[verdict] for verdict in verdicts([(a, b) for a, b in measures], margin, LEVEL)]


def _numbers(v: Verdict, margin: float) -> dict[str, Any]:
    f, flip = v.found, v.found.p_sign_flip if isinstance(v.found, Paired) else None
    small = v.word in ("better", "worse") and v.p_equivalent is not None and v.p_equivalent <= LEVEL
    return dict(
        n=f.n, difference=f.mean, low=f.low, high=f.high, p=f.p, p_sign_flip=flip, p_adjusted=v.p,
        p_equivalent=v.p_equivalent, verdict=v.word + f", < {margin:g}" * small, seeds=v.seeds,
    )  # fmt: skip
