"""The paper's claims on small data: the sweeps, the decision rule and the report."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.paper.differences import recipe_difference, remarks
from snn_repro.paper.formats import Column, Table, to_markdown
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.paper.statistics import NO_SPREAD, equivalence, holm, paired
from snn_repro.paper.tables import BY_STEP
from snn_repro.runs.folder import result_files
from studies.initial_state import MEASURES  # what a claim may be about, with its margin

SWEEP_DIR = "runs/small_scale"
SEEDS = 5  # minimum; the report uses every seed that both sides of a comparison have
ALPHA = 0.05


class Sweep(NamedTuple):
    """Every neuron x loss x seed of one data set, under one recipe."""

    static: bool
    neurons: tuple[str, str]
    losses: tuple[str, ...]
    overrides: tuple[str, ...]
    about: str


SWEEPS = {
    "digits": Sweep(
        True, ("if", "if_imp"), ("sdt", "tet", "lts"), (),
        "1,797 handwritten digits, 8x8; nearly saturated, so differences are small by construction",
    ),
    "fashion_mnist": Sweep(
        True, ("if", "if_imp"), ("sdt", "tet", "lts"),
        ("dataset.train_subset=6000", "recipe.epochs=8", "recipe.batch_size=64"),
        "6,000 of the 60,000 training images (stratified), all 10,000 test images",
    ),
    "digits_dvs": Sweep(
        False, ("lif", "lif_imp"), ("sdt", "tet", "tet_s"), (),
        "the digits as events of an emulated camera, made from the images",
    ),
    "fashion_mnist_dvs": Sweep(
        False, ("lif", "lif_imp"), ("sdt", "tet", "tet_s"),
        ("dataset.train_subset=6000", "timesteps=5", "recipe.epochs=5"),
        "6,000 training images and all test images of Fashion-MNIST as events of an emulated camera, T=5",
    ),
}  # fmt: skip


class Claim(NamedTuple):
    """A claim that `better` beats each of `worse` (losses, or IMP against none), on static data, events or both (None)."""

    text: str
    static: bool | None
    better: str
    worse: tuple[str, ...]
    measure: str = "readout"


CLAIMS = (
    Claim("IMP helps", None, "imp", ("none",)),
    Claim("TET beats SDT on event data", False, "tet", ("sdt",)),
    Claim("SDT beats TET on static data", True, "sdt", ("tet",)),
    Claim("LTS beats both SDT and TET on static data", True, "lts", ("sdt", "tet")),
    Claim("TET-S beats TET on event data", False, "tet_s", ("tet",)),
)
EARLY = (
    Claim("IMP helps at step 1", None, "imp", ("none",), "first"),
    Claim("IMP helps on average over the steps", None, "imp", ("none",), "area"),
    Claim("TET beats SDT at step 1", None, "tet", ("sdt",), "first"),
    Claim("TET beats LTS at step 1 on static data", True, "tet", ("lts",), "first"),
)


def commands(datasets: Sequence[str], seeds: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """The Hydra multirun of each data set (default: all), as words; `more` are further overrides.

    Raises UserError for a data set that has no sweep or does not exist.
    """
    for dataset in datasets:
        if dataset not in SWEEPS:
            raise UserError(f"{dataset} has no sweep; choose of: {', '.join(SWEEPS)}")
        if dataset not in SETS:
            raise UserError(f"dataset={dataset} does not exist in this version; choose of: {', '.join(SETS)}")
    yield from (_command(dataset, seeds, more) for dataset in datasets or [d for d in SWEEPS if d in SETS])


def _command(dataset: str, seeds: int, more: Sequence[str] = ()) -> list[str]:
    sweep = SWEEPS[dataset]
    return [
        "python", "-m", "snn_repro.train", "-m", f"dataset={dataset}", "model=small", f"neuron={','.join(sweep.neurons)}",
        f"loss={','.join(sweep.losses)}", f"seed={','.join(map(str, range(seeds)))}", *sweep.overrides, *more,
        "logger.mode=disabled", f"hydra.sweep.dir={SWEEP_DIR}",
    ]  # fmt: skip


# ---------------------------------------------------------------- testing the claims

Accuracies = dict[tuple[str, str], dict[int, float]]  # ("imp" | "none", loss) -> seed -> accuracy %


@dataclass
class Comparison:
    """One claim on one data set: effect in percentage points, interval, p and verdict."""

    claim: str
    dataset: str
    versus: str
    n: int | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_sign_flip: float | None = None
    p_holm: float | None = None
    measure: str = "readout"
    p_margin: float | None = None  # Holm's p that the effect is as large as the margin
    verdict: str = "not run"
    exploratory: bool = False  # the claim was added when the runs were known
    n_test: int = 0

    @property
    def interval(self) -> str | None:
        """The 95 % interval in percentage points; all differences, where they are equal."""
        if self.low is None or self.high is None or self.effect is None:
            return None
        if self.high - self.low <= NO_SPREAD:
            return f"{self.effect * self.n_test / 100:+.3g} images of {self.n_test}, {self.n} times"
        return f"{_signed(self.low)} .. {_signed(self.high)}"


def accuracies(groups: Sequence[Group], dataset: str, measure: str = "readout") -> Accuracies:
    """Accuracy of the last epoch of one data set, by IMP, loss and seed.

    Raises UserError if two configurations have the same IMP and loss, or if recipes differ.
    """
    mine = [g for g in groups if g.first["dataset"] == dataset]
    by_method: dict[tuple[str, str], Group] = {}
    for group in mine:
        loss = group.first["loss"]
        other = by_method.setdefault(("imp" if group.first["neuron"]["imp"] else "none", loss), group)
        if other is not group:
            raise UserError(
                f"{dataset} has two configurations of {loss} ({other.label}; {group.label}); keep the runs of one"
            )
        if differences := recipe_difference(mine[0].first, group.first):
            raise UserError(f"{group.label} has another recipe than {mine[0].label}: {'; '.join(differences)}")
    of: Any = MEASURES[measure].of  # an accuracy, which every run has
    return {key: {run["seed"]: of(run) for run in group.runs} for key, group in by_method.items()}


def contrast(accuracy: Accuracies, losses: Sequence[str], better: str, worse: str) -> tuple[list[float], list[float]]:
    """(worse, better) by seed, each the mean over the other factor: losses for IMP, IMP on and off for a loss."""
    if better == "imp":
        sides = [[(imp, loss) for loss in losses] for imp in ("none", "imp")]
    else:
        sides = [[(imp, loss) for imp in ("none", "imp")] for loss in (worse, better)]
    if any(key not in accuracy for side in sides for key in side):
        return [], []
    seeds = sorted(set.intersection(*(set(accuracy[key]) for side in sides for key in side)))
    before, after = ([fmean(accuracy[key][s] for key in side) for s in seeds] for side in sides)
    return before, after


def judge_claims(groups: Sequence[Group]) -> list[Comparison]:
    """Every claim on every data set, judged by RULE."""
    sets = [d for d in SWEEPS if d in SETS or any(g.first["dataset"] == d for g in groups)]
    rows, tested, p_values, margins = [], [], [], []
    for claim in (*CLAIMS, *EARLY):
        for dataset in sets:
            if claim.static not in (None, SWEEPS[dataset].static):
                continue
            accuracy = accuracies(groups, dataset, claim.measure)
            for worse in claim.worse:
                versus = "same network without IMP" if worse == "none" else worse.upper().replace("_", "-")
                size = next((g.first["n_test"] for g in groups if g.first["dataset"] == dataset), 0)
                row = Comparison(
                    claim.text, dataset, versus, measure=claim.measure, exploratory=claim in EARLY, n_test=size
                )
                rows.append(row)
                before, after = contrast(accuracy, SWEEPS[dataset].losses, claim.better, worse)
                if len(before) < 2:
                    continue
                row.effect, _, row.n, row.low, row.high, row.p, row.p_sign_flip = test = paired(before, after)
                margin = equivalence(before, after, MEASURES[claim.measure].margin)
                if test.p is not None and margin is not None:
                    tested.append(row)
                    p_values.append(test.p)
                    margins.append(margin)
    for row, p, q in zip(tested, holm(p_values), holm(margins), strict=True):
        row.p_holm, row.p_margin = p, q
        row.verdict = judge(row)
    return rows


RULE = f"""\
Fixed before any number was seen:

- **Accuracy** is on the test set after the last epoch, at the loss's readout (LTS: last step; others: mean over time). The test set
  chooses no epoch.
- **Comparisons** are paired over seeds: both sides of a pair share initial weights and data order. "IMP helps" is the mean over the
  losses of (with IMP - without). A comparison of losses is the mean over IMP on and off.
- **Effect** is the mean difference in percentage points, with a 95 % interval (Student's t over seeds). p is that of the two-sided paired
  t-test, adjusted by Holm over all comparisons below. The exact sign-flip p is given too; it cannot be below 2/2^n.
- **supported**: at least {SEEDS} seeds, the interval is above 0, and Holm's p is below {ALPHA}.
- **not supported**: the same with the interval below 0; the opposite was found.
- **undecided**: everything else. "leans for" or "leans against": the interval excludes 0 but Holm's p is not below {ALPHA}.
- A claim with two comparisons (LTS beats both) is supported if both are, not supported if one is not, else undecided.

**Exploratory**: added when these runs were known, which the verdict says. The margins are those of the study of initial states
(`docs/studies/initial_state.md`), which were not chosen by these runs.

- The claims about step 1 and about the mean over the steps. They use the accuracy of each step's own output.
- **no effect above the margin** replaces undecided: at least {SEEDS} seeds, and Holm's p (over all comparisons below) of two one-sided
  tests against the margin is below {ALPHA}. Margins: {"; ".join(MEASURES[key].said for key in ("readout", "first", "area"))}.
"""


def judge(row: Comparison) -> str:
    """The verdict of one tested comparison by RULE."""
    assert row.n is not None and row.low is not None and row.high is not None
    assert row.p_holm is not None and row.p_margin is not None
    if row.n < SEEDS:
        return f"undecided (fewer than {SEEDS} seeds)"
    later = " (exploratory)" if row.exploratory else ""
    if row.high - row.low <= NO_SPREAD:  # no spread, so no interval and no test
        return f"undecided (all {row.n} differences are equal)"
    seen = not row.low <= 0 <= row.high
    if seen and row.p_holm < ALPHA:
        return ("supported" if row.low > 0 else "not supported") + later
    if row.p_margin < ALPHA:
        return f"no effect above {MEASURES[row.measure].margin:g} (exploratory)"
    return f"undecided (leans {'for' if row.low > 0 else 'against'})" if seen else "undecided"


def overall(verdicts: Sequence[str]) -> str:
    """The verdict of a claim on one data set from those of its comparisons."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if opposite := [verdict for verdict in verdicts if verdict.startswith("not supported")]:
        return opposite[0]
    return "not run" if "not run" in verdicts else "undecided"


# ---------------------------------------------------------------- the report


def report(results: Path) -> dict[str, str]:
    """`{"small_scale.md": ...}` from the collected runs. Raises UserError if there are none."""
    runs = results / "runs" / "small_scale"
    if not result_files(runs):
        raise UserError(f"{runs} does not exist; run `python scripts/study.py small_scale run`, then `... collect`")
    groups, notes = group_runs(load([runs]))
    rows = judge_claims(groups)
    seeds = {d: max((len(g.runs) for g in groups if g.first["dataset"] == d), default=0) for d in SWEEPS}
    parts = [
        "# The paper's claims at a small scale\n",
        "Generated by `python scripts/study.py small_scale report` from the results under `runs/small_scale`; not edited by hand.",
        "",
        *_summary(rows, min(len(g.runs) for g in groups)),
        "## How a verdict is reached\n",
        RULE,
        "## Verdicts\n",
        *map(to_markdown, (_verdicts(rows), _comparisons(rows), _accuracies(groups, notes))),
        "## Data and commands\n",
        *(f"- **{d}**: {SWEEPS[d].about}.\n" for d in SWEEPS if seeds[d]),
        "```bash",
        *(shlex.join(_command(d, seeds[d])) for d in SWEEPS if seeds[d]),
        "python scripts/study.py small_scale collect",
        "python scripts/study.py small_scale report",
        "```\n",
    ]
    return {"small_scale.md": "\n".join(parts)}


def _overall(rows: Sequence[Comparison]) -> dict[tuple[str, str], str]:
    """{(claim, data set): its verdict}."""
    verdicts: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        verdicts.setdefault((row.claim, row.dataset), []).append(row.verdict)
    return {key: overall(v) for key, v in verdicts.items()}


def _summary(rows: Sequence[Comparison], seeds: int) -> Iterator[str]:
    """Question, design, findings with effects and intervals, and what is not known."""
    verdicts = {key: verdict for key, verdict in _overall(rows).items() if verdict != "not run"}
    ran = list(dict.fromkeys(data for _, data in verdicts))
    yield "## Summary\n"
    yield "**Question.** Do the paper's claims about IMP and the losses hold for a small network on small data?\n"
    yield "**Design.** One network of about 32,000 weights is trained on two CPU cores, with and without IMP and with three losses, on"
    yield f"{', '.join(ran)}. Every combination has at least {seeds} seeds, and differences are paired over seeds.\n"
    yield "**Findings.**\n"
    every, some, none, opposite = (
        "Supported on every data set tested", "Supported on some data sets", "Supported on no data set", "The opposite was found",
    )  # fmt: skip
    kinds: dict[str, list[str]] = {kind: [] for kind in (every, some, none, opposite)}
    for claim in dict.fromkeys(claim for claim, _ in verdicts):
        found = {data: verdict for (c, data), verdict in verdicts.items() if c == claim}
        yes, no = ([d for d, v in found.items() if v.startswith(wanted)] for wanted in ("supported", "not supported"))
        claim += " (exploratory)" if any(row.claim == claim and row.exploratory for row in rows) else ""
        if len(yes) == len(found):
            kinds[every].append(claim)
        elif yes:
            kinds[some].append(f"{claim} ({', '.join(yes)})")
        if no:
            kinds[opposite].append(f"{claim} ({', '.join(no)})")
        if not yes and not no:
            kinds[none].append(claim)
    yield from (f"- {kind}: {'; '.join(claims)}." for kind, claims in kinds.items() if claims)
    yield "\nEffect in percentage points with its 95 % interval, by data set. Claims that name no step are about accuracy at the readout:\n"
    twice = {row.claim for row in rows if sum((r.claim, r.dataset) == (row.claim, row.dataset) for r in rows) > 1}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        label = f"{row.claim} (against {row.versus})" if row.claim in twice else row.claim
        line = cells.setdefault(label, dict(claim=label))
        if row.effect is not None and row.low is not None:
            line[row.dataset] = f"{_signed(row.effect)} ({row.interval})"
    columns = [Column("claim", "claim"), *(Column(data, data, "number") for data in ran)]
    yield to_markdown(Table("", columns, list(cells.values())))
    open_ = sum(verdict.startswith("undecided") for verdict in verdicts.values())
    yield f"**Not known.** {open_} of {len(verdicts)} verdicts are undecided: these seeds are too few to tell. Only one small network and small"
    yield "or emulated data were tested, so nothing here is evidence for the paper's networks and data sets. Exploratory: added when the runs"
    yield "were known.\n"


def _verdicts(rows: Sequence[Comparison]) -> Table:
    lines = [dict(claim=claim, data=data, verdict=f"**{v}**") for (claim, data), v in _overall(rows).items()]
    return Table("", [Column("claim", "claim"), Column("data", "data set"), Column("verdict", "verdict")], lines)


def _comparisons(rows: Sequence[Comparison]) -> Table:
    columns = [
        Column("claim", "claim"), Column("dataset", "data set"), Column("versus", "against"), Column("n", "seeds", "number"),
        Column("effect", "effect, pp", "number"), Column("interval", "95 % interval", "number"), Column("p", "p", "number"),
        Column("p_holm", "p, Holm", "number"), Column("p_sign_flip", "p, sign flip", "number"),
        Column("p_margin", "p, Holm, margin", "number"), Column("verdict", "verdict"),
    ]  # fmt: skip
    lines = [
        vars(r) | dict(
            effect=_signed(r.effect), interval=r.interval,
            p=_p(r.p), p_holm=_p(r.p_holm), p_sign_flip=_p(r.p_sign_flip), p_margin=_p(r.p_margin),
        )
        for r in rows
    ]  # fmt: skip
    return Table("Every comparison", columns, lines)


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.2f}"


def _p(p: float | None) -> str | None:
    return None if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _accuracies(groups: Sequence[Group], notes: Sequence[str]) -> Table:
    columns = [
        Column("row", "network"), Column("n", "seeds", "number"), Column("acc_last", "acc_last %", "summary"), BY_STEP,
        Column("epochs", "epochs", "number"), Column("n_train", "train", "number"), Column("n_test", "test", "number"),
    ]  # fmt: skip
    rows = [
        dict(row=g.label, n=len(g.runs), acc_last=g.last, acc_step=g.steps())
        | {key: g.first[key] for key in ("epochs", "n_train", "n_test")}
        for g in groups
    ]
    means = "mean ± sample standard deviation over seeds; accuracy at t: the output of that step alone"
    return Table("Accuracies", columns, rows, [means, *remarks(groups), *notes])
