"""Rows compared with a baseline at the readout and at each time step."""

from collections.abc import Iterable, Sequence
from typing import Any

from snn_repro.errors import UserError
from snn_repro.paper.formats import Column, Table
from snn_repro.paper.results import Group, over_seeds
from snn_repro.paper.statistics import Paired, Verdict, verdicts, verdicts_against_baseline

LEVEL = 0.05
NUMBERS = [  # the columns of CSV and JSON; differences in points
    Column(key, key) for key in (
        "baseline", "row", "at", "n", "difference", "low", "high", "p", "p_sign_flip", "p_adjusted", "p_equivalent",
        "verdict", "seeds",
    )
]  # fmt: skip


def comparison(baseline: Group, others: Sequence[Group], margin: float = 0.5) -> list[Table]:
    """A table for each other row: its difference from the baseline, in points of test accuracy.

    Values are paired over the seeds that all rows have. With one other row: paired t-test, exact sign-flip test, and Holm's correction over the steps. With several:
    Dunnett's test with seeds as blocks, and Bonferroni's correction over the steps. The readout is a family of its own.
    `margin`: differences below it, in points, count as equal. Raises UserError where too few seeds are in all rows.
    """
    groups, needed = [baseline, *others], 1 if len(others) == 1 else 2
    seeds, readout = over_seeds(groups, lambda run: 100 * run["acc_last"])
    if len(seeds) < needed:
        have = "; ".join(f"{g.label}: {_list(run['seed'] for run in g.runs)}" for g in groups)
        raise UserError(
            f"rows are paired over seeds, so that they need {needed} in common, and have {len(seeds)} (seeds of {have}); "
            "run the missing seeds"
        )
    steps = over_seeds(groups, lambda run: run["acc_step"] if run.get("causal", True) else [])[1]
    T = min(len(accuracies) for row in steps for accuracies in row)
    by_step = [[[100 * accuracies[t] for accuracies in row] for row in steps] for t in range(T)]
    judged = _judged([readout], margin) + (_judged(by_step, margin) if T else [])
    at = ["readout", *(f"step {t + 1}" for t in range(T))]
    tables = []
    for i, row in enumerate(others):
        named = dict(baseline=baseline.label, row=row.label)
        lines = [named | _line(where, found[i], margin) for where, found in zip(at, judged, strict=True)]
        title = f"B - A in points, A: {baseline.label}, B: {row.label}"
        tables.append(Table(title, _columns(len(others)), lines))
    tables[-1].notes = [*_scope(groups, seeds, T), *_legend(len(others), margin)]
    return tables


def _judged(measures: Sequence[Sequence[Sequence[float]]], margin: float) -> list[list[Verdict]]:
    """Verdicts [measures][other rows] on values [measures][rows][seeds]."""
    if len(measures[0]) > 2:
        return verdicts_against_baseline(measures, margin, LEVEL)
    return [[verdict] for verdict in verdicts([(a, b) for a, b in measures], margin, LEVEL)]


def _line(at: str, v: Verdict, margin: float) -> dict[str, Any]:
    """Numbers of one comparison, and their texts for a page."""
    f, flip = v.found, v.found.p_sign_flip if isinstance(v.found, Paired) else None
    small = v.word in ("better", "worse") and v.p_equivalent is not None and v.p_equivalent <= LEVEL
    return dict(
        at=at, n=f.n, difference=f.mean, low=f.low, high=f.high, p=f.p, p_sign_flip=flip, p_adjusted=v.p,
        p_equivalent=v.p_equivalent, verdict=v.word + f", < {margin:g}" * small, seeds=v.seeds,
        text=f"{f.mean:+.2f}", interval="" if f.low is None else f"{f.low:+.2f} .. {f.high:+.2f}",
        t=_p(f.p), flip=_p(flip), adjusted=_p(v.p), needed=v.seeds and ("1000+" if v.seeds >= 1000 else str(v.seeds)),
    )  # fmt: skip


def _columns(others: int) -> list[Column]:
    tests = {"t": "p", "flip": "p flip", "adjusted": "p Holm"} if others == 1 else {"t": "p", "adjusted": "p steps"}
    return [
        Column("at", "at"), Column("text", "B - A", "number"), Column("interval", "95 % interval", "number"),
        *(Column(key, header, "number") for key, header in tests.items()),
        Column("verdict", "verdict"), Column("needed", "seeds", "number"),
    ]  # fmt: skip


def _scope(groups: Sequence[Group], seeds: Sequence[int], T: int) -> Iterable[str]:
    """Notes on seeds, readouts and steps that the comparison is about."""
    yield f"paired over {len(seeds)} common seed{'s' * (len(seeds) > 1)}: {_list(seeds)}"
    for group in groups:
        if more := [run["seed"] for run in group.runs if run["seed"] not in seeds]:
            yield f"left out, because other rows lack it: {group.label}, seed {_list(more)}"
    if len({group.first["readout"] for group in groups}) > 1:
        yield "each row at its own readout: " + ", ".join(f"{g.label}: {g.first['readout']}" for g in groups)
    if len({group.first["timesteps"] for group in groups}) > 1:
        yield f"only steps that all rows have: 1 to {T}"


def _legend(others: int, margin: float) -> list[str]:
    correction = "Holm's correction over the steps; the readout is one comparison"
    tests = f"p: paired t-test; p flip: exact sign-flip test; p Holm: p with {correction}"
    within, of = "two one-sided t-tests", "p Holm"
    if others > 1:
        tests = (
            f"p: Dunnett's test over {others} rows against A, variance pooled, seeds as blocks; p steps: p times steps"
        )
        within, of = f"{within}, by Holm over rows and steps", "p steps"
        tests += "; intervals hold for all rows together"
    return [
        tests,
        f"better, worse: {of} at most {LEVEL:g}; equivalent: less than {margin:g} points apart ({within}); both: better, "
        f"< {margin:g}",
        "seeds: how many would say it with 80 % power, if difference and spread are as seen here",
    ]


def _p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
