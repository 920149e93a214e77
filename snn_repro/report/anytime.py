"""Section on early exit: accuracy against time steps and operations, from RUN/eval/anytime.json."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from snn_repro.report._page import NothingToShow, Section, register_section, text
from snn_repro.report._read import Found
from snn_repro.runs.folder import EVALUATIONS
from snn_repro.trained.anytime import RULES, THRESHOLDS

FILE, MAKE = f"{EVALUATIONS}/anytime.json", "`snn-eval RUN anytime=true`"
NAMES = [f"{rule}, {scores}" for scores in ("mean", "readout") for rule in RULES]
FIRST = "confidence, readout"  # the rule that the page opens with


@register_section("anytime", "Anytime", 2.7)
def anytime(found: Found) -> Section:
    """Test accuracy under early exit, against mean synaptic operations or mean time steps per sample.

    A sample stops at the first time step at which the rule's value reaches the threshold, else at T. Curves are means
    over seeds at 101 thresholds. The band is one standard deviation of the accuracy over seeds at the same threshold.
    The wide grey line is the Pareto front of the rows shown: no other point is at least as accurate at the same or a lower cost.
    """
    rows: dict[int, dict] = {}
    notes = []
    for row in found.rows:
        curves = []
        for file in [run.folder / FILE for run in row.runs if run.result and (run.folder / FILE).exists()]:
            try:
                curves.append(_curves(file))
            except (OSError, ValueError, KeyError, TypeError) as error:
                notes.append(f"{file} is damaged ({type(error).__name__}); write it again with {MAKE}")
        if curves and row.group:
            rows[row.id] = dict(
                panel="{dataset}, {n_test:,} test samples, split {split_sha256:.8}".format_map(row.group.first),
                seeds=[len(curves), len(row.runs)],
                rules=[
                    dict(acc=acc.round(2).tolist(), steps=steps.round(2).tolist(), operations=[*map(round, operations)],
                         sd=sd.round(2).tolist())
                    for (acc, steps, operations), (sd, *_) in zip(
                        np.mean(curves, 0), np.std(curves, 0, ddof=len(curves) > 1), strict=True)
                ],
            )  # fmt: skip
    if not rows:
        raise NothingToShow("; ".join(notes) or f"no run has {FILE}; {MAKE} writes it for a run with a checkpoint")
    for panel in dict.fromkeys(row["panel"] for row in rows.values()):
        of = {i: row["rules"][NAMES.index(FIRST)] for i, row in rows.items() if row["panel"] == panel}
        on = front((*p, i) for i, c in of.items() for p in zip(c["operations"], c["acc"], strict=True))
        counts = ", ".join(f"{found.rows[i].label} ({n})" for i, n in Counter(i for *_, i in on).items())
        notes.append(f"{panel}: points on the front of all rows by operations ({FIRST}): {counts}")
    return Section(
        html=text([f"{len(rows)} of {len(found.rows)} rows have {FILE}, which {MAKE} writes", *notes]),
        data=dict(rows=rows, names=NAMES, first=FIRST, thresholds=THRESHOLDS.tolist()),
    )


def _curves(file: Path) -> np.ndarray:
    """Read percent, steps and operations [rules, 3, thresholds]; raises ValueError, KeyError or TypeError."""
    rules = {f"{r['rule']}, {r['scores']}": r["curve"] for r in json.loads(file.read_text("utf-8"))["rules"]}
    points = [[(100 * c["acc"], c["steps"], c["operations"]) for c in rules[name]] for name in NAMES]
    return np.array(points, float).reshape(len(NAMES), len(THRESHOLDS), 3).swapaxes(1, 2)


def front(points: Iterable[tuple[float, float, Any]]) -> list[tuple[float, float, Any]]:
    """Pareto front of points (cost, accuracy, row), by rising cost; the first of equal ones."""
    found: list[tuple[float, float, Any]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found
