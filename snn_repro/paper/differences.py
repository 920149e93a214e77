"""How runs differ: notes below tables, and gains over a baseline of the same recipe."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from snn_repro.config import ADDED, TEXT_ONLY_NOTE, hashed, text_only
from snn_repro.errors import UserError
from snn_repro.paper.results import Group, facts, over_seeds, right_or_none
from snn_repro.paper.statistics import mcnemar, paired
from snn_repro.provenance import moved_since
from snn_repro.runs.folder import RunResult

MACHINE = ("threads", "processes")  # not in the configuration, but they change the order of summation
RECORDED = ("images_per_statistic", "data")  # None in older results, which did not record them
WHAT_A_METHOD_CHANGES = ("name", "paper_row", "seed", "neuron.imp", "neuron.initial", "recipe.imp_", "loss.")

# ---------------------------------------------------------------- notes below a table


def remarks(groups: Sequence[Group], common: int = 6) -> list[str]:
    """Notes below a table of `groups`: conditions that differ, text-only methods, older numbers.

    A value of `threads` or `processes` lists the groups that share it, or counts them if more than `common` do.
    """
    runs = [(group, run) for group in groups for run in group.runs]
    notes = []
    for key in MACHINE:
        labels: dict[Any, list[str]] = {}
        for group in groups:
            seeds: dict[Any, list[int]] = {}
            for run in group.runs:
                seeds.setdefault(run.get(key), []).append(run["seed"])
            for value in sorted(seeds, key=lambda v: (v is None, v)):
                labels.setdefault(value, []).append(group.label + (_seeds(seeds[value]) if len(seeds) > 1 else ""))
        shared = [
            f"{'not recorded' if value is None else value} in "
            + (", ".join(names) if len(names) <= common else f"{len(names)} rows")
            for value, names in sorted(labels.items(), key=lambda item: -len(item[1]))
        ]
        if len(shared) > 1:
            notes.append(f"{key} differ, which changes rounding and therefore numbers: {'; '.join(shared)}")
    notes += [
        f"{g.label}{_seeds([r['seed']])} was resumed under other conditions: {', '.join(map(str, changed))}"
        for g, r in runs
        if (changed := r.get("changed_on_resume"))
    ]
    for verified, word in ((True, "verified"), (False, "not verified")):
        if names := [f"{g.label}{_seeds([r['seed']])}" for g, r in runs if r.get("verified") is verified]:
            notes.append(f"contributed and {word} by snn-verify: {', '.join(names)}")
    if noncausal := [group.label for group in groups if not group.steps()]:
        notes.append(f"no accuracy per time step where outputs depend on later steps: {', '.join(noncausal)}")
    if known := dict.fromkeys(chosen for group in groups for chosen in text_only(group.first["config"])):
        notes.append(f"{TEXT_ONLY_NOTE}: {', '.join(known)}")
    return [*notes, *filter(None, [older_note([run for _, run in runs])])]


def _seeds(seeds: list[int]) -> str:
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def is_older(made: Mapping[str, Any]) -> bool:
    """Whether later code changed, or may have changed, the numbers of a result or measurement."""
    flat = ADDED | hashed(made["config"]) if "config" in made else hashed(dict(made))
    return moved_since((made.get("code") or {}).get("numbers", 0), flat)


def older_note(made: Sequence[Mapping[str, Any]], what: str = "runs") -> str | None:
    """A note on how many results have older numbers (see `is_older`); None if none has."""
    older = sum(map(is_older, made))
    why = "made before a change of the numbers, or without a record of their version"
    return f"older numbers: {older} of {len(made)} {what} {why}" if older else None


def debug_keys(result: RunResult) -> list[str]:
    """`["debug.max_steps=2", ...]`: the keys that cut a run short; empty for a full run."""
    return [f"debug.{k}={v}" for k, v in result["config"]["debug"].items() if v and k != "profile"]


def described(group: Group) -> dict[str, Any]:
    """Flat `{key: value}` of a group: its settings, threads and processes, without unrecorded ones."""
    flat = {k: v for k, v in facts(group.first).items() if v is not None or k not in RECORDED}
    machine = {key: sorted({run[key] for run in group.runs if run.get(key) is not None}) for key in MACHINE}
    return flat | {key: " and ".join(map(str, values)) for key, values in machine.items() if values}


# ---------------------------------------------------------------- one group against another


def changes(a: RunResult, b: RunResult) -> dict[str, str]:
    """`{"recipe.epochs": "150 -> 200", ...}`: settings and data in which b differs from a.

    A value that one run did not record counts as equal.
    """
    fa, fb = facts(a), facts(b)
    return {
        k: f"{fa.get(k)} -> {fb.get(k)}"
        for k in sorted(fa.keys() | fb.keys())
        if fa.get(k) != fb.get(k) and not (k in RECORDED and None in (fa[k], fb[k]))
    }


def recipe_difference(a: RunResult, b: RunResult) -> list[str]:
    """`["recipe.epochs: 150 -> 200", ...]`: `changes` apart from IMP and loss."""
    return [f"{k}: {values}" for k, values in changes(a, b).items() if not k.startswith(WHAT_A_METHOD_CHANGES)]


class Gain(NamedTuple):
    """Gain in last-epoch accuracy of a group over its baseline, in percentage points.

    Each side is read at its own readout. With n > 1 common seeds: the 95 % interval and p of the paired t-test. With
    one common seed: McNemar's exact p over the test samples and no interval, or p = None without predictions.
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
    """The gain of `group` over `baseline`, on the seeds that both have.

    Raises UserError if the recipes differ or no seed is common.
    """
    if differences := recipe_difference(baseline.first, group.first):
        raise UserError(f"{baseline.label} has a different recipe ({'; '.join(differences)})")
    seeds, (theirs, ours) = over_seeds([baseline, group], lambda run: run)
    if not seeds:
        raise UserError(f"{baseline.label} has no seed in common with {group.label}")
    before, after = ([100 * run["acc_last"] for run in side] for side in (theirs, ours))
    test = paired(before, after)
    if len(seeds) > 1:
        return Gain(test.mean, test.low, test.high, test.p, "paired t", test.n, baseline.label)
    a, b = right_or_none(theirs[0]), right_or_none(ours[0])
    p, name = (None, "no predictions") if a is None or b is None else (mcnemar(a, b), "McNemar")
    return Gain(test.mean, None, None, p, name, 1, baseline.label)
