"""In what runs differ: notes for below a table, and the gain of one group over another of the same recipe."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from snn_repro.config import ADDED, SAID_OF_THEM, hashed, text_only
from snn_repro.errors import UserError
from snn_repro.paper.results import Group, facts, right_or_none
from snn_repro.paper.statistics import mcnemar, paired
from snn_repro.provenance import moved_since
from snn_repro.runs.folder import RunResult

MACHINE = ("threads", "processes")  # no key of a configuration, yet sums are added in another order
RECORDED = ("images_per_statistic", "data")  # facts that older runs did not record: None
WHAT_A_METHOD_CHANGES = ("name", "paper_row", "seed", "neuron.imp", "neuron.initial", "recipe.imp_", "loss.")

# ---------------------------------------------------------------- notes for below a table


def remarks(groups: Sequence[Group], common: int = 6) -> list[str]:
    """Notes for below a table: threads or processes that differ, keys changed on resume, text-only methods, older numbers.

    A value that more than `common` groups share is not followed by their names.
    """
    runs = [(group, run) for group in groups for run in group.runs]
    notes = []
    for key in MACHINE:
        who: dict[Any, list[str]] = {}
        for group in groups:
            seeds: dict[Any, list[int]] = {}
            for run in group.runs:
                seeds.setdefault(run.get(key), []).append(run["seed"])
            for value in sorted(seeds, key=lambda v: (v is None, v)):
                who.setdefault(value, []).append(group.label + (_seeds(seeds[value]) if len(seeds) > 1 else ""))
        said = [
            f"{'not recorded' if value is None else value} in "
            + (", ".join(names) if len(names) <= common else f"{len(names)} rows")
            for value, names in sorted(who.items(), key=lambda item: -len(item[1]))
        ]
        if len(said) > 1:
            notes.append(f"{key} differ, which changes sums in their last digits, and so numbers: {'; '.join(said)}")
    notes += [
        f"{g.label}{_seeds([r['seed']])} was continued under other conditions: {', '.join(map(str, r['changed_on_resume']))}"
        for g, r in runs
        if r.get("changed_on_resume")
    ]
    for verified, said in ((True, "verified"), (False, "not verified")):
        if names := [f"{g.label}{_seeds([r['seed']])}" for g, r in runs if r.get("verified") is verified]:
            notes.append(f"contributed and {said} by snn-verify: {', '.join(names)}")
    if ahead := [group.label for group in groups if not group.steps()]:
        notes.append(f"no accuracy at single steps: every step sees the later ones in {', '.join(ahead)}")
    if known := dict.fromkeys(chosen for group in groups for chosen in text_only(group.first["config"])):
        notes.append(f"{SAID_OF_THEM}: {', '.join(known)}")
    return [*notes, *filter(None, [older_note([run for _, run in runs])])]


def _seeds(seeds: list[int]) -> str:
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def is_older(made: Mapping[str, Any]) -> bool:
    """Whether the numbers of a result (or other measured data) moved after it was made, or may have."""
    flat = ADDED | hashed(made["config"]) if "config" in made else hashed(dict(made))
    return moved_since((made.get("code") or {}).get("numbers", 0), flat)


def older_note(made: Sequence[Mapping[str, Any]], what: str = "runs") -> str | None:
    """A sentence on how many of the results have older numbers; None where none has."""
    older = sum(map(is_older, made))
    said = "made before a change that moved them, or without a record of the numbers' version"
    return f"older numbers: {older} of {len(made)} {what} {said}" if older else None


def debug_keys(result: RunResult) -> list[str]:
    """`["debug.max_steps=2", ...]`: the keys that cut a run short; empty for a real run."""
    return [f"debug.{k}={v}" for k, v in result["config"]["debug"].items() if v and k != "profile"]


def described(group: Group) -> dict[str, Any]:
    """Flat facts of a group, with those of the machine; without what it did not record."""
    flat = {k: v for k, v in facts(group.first).items() if v is not None or k not in RECORDED}
    for key in MACHINE:
        values = sorted({run[key] for run in group.runs if run.get(key) is not None})
        flat |= {key: " and ".join(map(str, values))} if values else {}
    return flat


# ---------------------------------------------------------------- one group against another


def recipe_difference(a: RunResult, b: RunResult) -> list[str]:
    """`["recipe.epochs: 150 -> 200", ...]`: where two runs differ beyond IMP and the loss; empty for the same recipe.

    What one of them did not record may be the same.
    """
    fa, fb = facts(a), facts(b)
    return [
        f"{k}: {fa.get(k)} -> {fb.get(k)}"
        for k in sorted(fa.keys() | fb.keys())
        if fa.get(k) != fb.get(k)
        and not k.startswith(WHAT_A_METHOD_CHANGES)
        and not (k in RECORDED and None in (fa[k], fb[k]))
    ]


class Gain(NamedTuple):
    """Accuracy of a group less that of its baseline, last epoch, each at its own readout, in percentage points.

    Over n common seeds: paired t interval and p. For a single common seed: McNemar's exact p over the test set, no
    interval. p is None where neither can be had.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    baseline: str

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:+.2f} .. {self.high:+.2f})"
        p = "" if self.p is None else ", p < 0.001" if self.p < 1e-3 else f", p = {self.p:.3f}"
        return f"{self.value:+.2f}{interval}{p}, {self.test}, n={self.n}, over {self.baseline}"


def gain(group: Group, baseline: Group) -> Gain:
    """Compare over the seeds that both have. Raises UserError when the recipes differ or no seed is common."""
    if differences := recipe_difference(baseline.first, group.first):
        raise UserError(f"{baseline.label} has another recipe ({'; '.join(differences)})")
    ours, theirs = ({run["seed"]: run for run in g.runs} for g in (group, baseline))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise UserError(f"{baseline.label} shares no seed with {group.label}")
    before, after = ([100 * side[s]["acc_last"] for s in seeds] for side in (theirs, ours))
    test = paired(before, after)
    if len(seeds) > 1:
        return Gain(test.mean, test.low, test.high, test.p, "paired t", test.n, baseline.label)
    a, b = right_or_none(theirs[seeds[0]]), right_or_none(ours[seeds[0]])
    if a is None or b is None:
        return Gain(test.mean, None, None, None, "no predictions", 1, baseline.label)
    return Gain(test.mean, None, None, mcnemar(a, b), "McNemar", 1, baseline.label)
