"""Section that compares two ticked rows, with the tests of `snn_repro.paper.statistics.verdicts`."""

import json
from typing import Any

from scipy import special

from snn_repro.paper.differences import debug_keys
from snn_repro.paper.results import Group
from snn_repro.report._page import NothingToShow, Section, register_section, text
from snn_repro.report._read import Found

MARGIN, LEVEL = 0.5, 0.05  # points of accuracy; level of the tests
MORE = (
    "p: paired t-test; at time steps by Holm's correction over the steps. better, worse: p is at most 0.05. equivalent: "
    "two one-sided t-tests (by Holm as well) say that the rows differ by less than 0.5 points. scripts/compare.py adds "
    "the exact sign-flip test and the number of seeds that would decide."
)


@register_section("comparison", "Comparison", 2.5)
def comparison(found: Found) -> Section:
    """Difference of two rows in test accuracy, paired over their common seeds.

    Select two rows in the table above; the first one is A, the second one B.
    """
    rows = {row.id: _measured(row.group) for row in found.rows if row.group and not debug_keys(row.group.first)}
    if len(rows) < 2:
        raise NothingToShow("fewer than two rows are finished")
    most = max(len(row["seeds"]) for row in rows.values())
    quantiles = [0, 0, *(float(special.stdtrit(n - 1, 0.975)) for n in range(2, most + 1))]  # of t, by number of pairs
    data = dict(rows=rows, quantiles=quantiles, margin=MARGIN, level=LEVEL, places=[str(path) for path in found.paths])
    return Section(html=text([MORE]), data=json.dumps(data))  # as text, which keeps all digits


def _measured(group: Group) -> dict[str, Any]:
    """Per seed: config hash, and the accuracies at the readout and, of a causal network, at each step, in percent."""
    steps = {run["seed"]: run["acc_step"] if run.get("causal", True) else [] for run in group.runs}
    return {
        "test": {"data set": group.first["dataset"], "split": group.first["split_sha256"][:8]},
        "readout": group.first["readout"],
        "hashes": {run["seed"]: run["config_hash"][:8] for run in group.runs},
        "seeds": {r["seed"]: [100 * r["acc_last"], *(100 * v for v in steps[r["seed"]])] for r in group.runs},
    }
