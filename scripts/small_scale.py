"""The paper's five claims, tested at the size that fits two CPU cores.

python scripts/small_scale.py run [DATASET ...] [KEY=VALUE ...] [--print] [--seeds N]
                                                the sweeps (Hydra multirun), or just their commands
python scripts/small_scale.py collect           copy what tables need from runs/ to results/runs/
python scripts/small_scale.py report [--check]  results/small_scale.md from results/runs/small_scale
A sweep that was stopped goes on when its command is given again. KEY=VALUE (data_dir=DIR, say) is passed on.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from snn_repro import console
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.paper.statistics import holm, paired
from snn_repro.paper.tables import (
    Column,
    Group,
    Table,
    collect,
    group_runs,
    load,
    recipe_difference,
    remarks,
    to_markdown,
)

ROOT = Path(__file__).resolve().parents[1]
SWEEP_DIR = "runs/small_scale"
RESULTS = ROOT / "results"
SEEDS = 5  # at least; the report uses every seed that both sides of a comparison have
ALPHA = 0.05
NAMES = {"sdt": "SDT", "tet": "TET", "tet_s": "TET-S", "lts": "LTS"}


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
        "1,797 real handwritten digits, 8x8; nearly saturated, so differences are small by construction",
    ),
    "fashion_mnist": Sweep(
        True, ("if", "if_imp"), ("sdt", "tet", "lts"),
        ("dataset.train_subset=6000", "recipe.epochs=8", "recipe.batch_size=64"),
        "6,000 of the 60,000 real training images (stratified), all 10,000 test images",
    ),
    "digits_dvs": Sweep(
        False, ("lif", "lif_imp"), ("sdt", "tet", "tet_s"), (),
        "the digits as an emulated event camera sees them; events emulated from real images",
    ),
    "fashion_mnist_dvs": Sweep(
        False, ("lif", "lif_imp"), ("sdt", "tet", "tet_s"),
        ("dataset.train_subset=6000", "timesteps=5", "recipe.epochs=5"),
        "6,000 training images and all test images of Fashion-MNIST as an emulated event camera sees them, T=5",
    ),
}  # fmt: skip


class Claim(NamedTuple):
    """`better` over each of `worse`: losses, or IMP over none; tested on static or event data, or both (None)."""

    text: str
    static: bool | None
    better: str
    worse: tuple[str, ...]


CLAIMS = (
    Claim("IMP helps", None, "imp", ("none",)),
    Claim("TET beats SDT on event data", False, "tet", ("sdt",)),
    Claim("SDT beats TET on static data", True, "sdt", ("tet",)),
    Claim("LTS beats both SDT and TET on static data", True, "lts", ("sdt", "tet")),
    Claim("TET-S beats TET on event data", False, "tet_s", ("tet",)),
)


def command(dataset: str, seeds: int, more: Sequence[str] = ()) -> list[str]:
    """The Hydra multirun of one data set, as words; `more` are further overrides."""
    sweep = SWEEPS[dataset]
    return [
        "python", "-m", "snn_repro.train", "-m", f"dataset={dataset}", "model=small", f"neuron={','.join(sweep.neurons)}",
        f"loss={','.join(sweep.losses)}", f"seed={','.join(map(str, range(seeds)))}", *sweep.overrides, *more,
        "logger.mode=disabled", f"hydra.sweep.dir={SWEEP_DIR}",
    ]  # fmt: skip


# ---------------------------------------------------------------- testing the claims


@dataclass
class Tested:
    """One claim on one data set: effect in percentage points, interval, p, and what is concluded."""

    claim: str
    dataset: str
    versus: str
    n: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_sign_flip: float | None = None
    p_holm: float | None = None
    verdict: str = "not run"


def cells(groups: list[Group], dataset: str) -> dict[tuple[str, str], dict[int, float]]:
    """{("imp" | "none", loss): {seed: accuracy %}} of one data set.

    Raises UserError when two configurations claim one cell, or when the cells have not all the same recipe.
    """
    mine = [g for g in groups if g.first["dataset"] == dataset]
    found: dict[tuple[str, str], Group] = {}
    for group in mine:
        key = ("imp" if group.first["neuron"]["imp"] else "none", group.first["loss"])
        if key in found:
            raise UserError(
                f"{dataset} has two configurations of {key[1]} ({found[key].label}; {group.label}); keep the runs of one"
            )
        found[key] = group
        differences = recipe_difference(mine[0].first, group.first)
        if differences:
            raise UserError(f"{group.label} has another recipe than {mine[0].label}: {'; '.join(differences)}")
    return {key: {run["seed"]: 100 * run["acc_last"] for run in group.runs} for key, group in found.items()}


def contrast(accuracy: dict, losses: tuple[str, ...], better: str, worse: str) -> list[tuple[float, float]]:
    """Pairs (worse, better) a seed, each the mean over the other factor: losses for IMP, IMP on and off for a loss."""
    if better == "imp":
        sides = [[("none", loss) for loss in losses], [("imp", loss) for loss in losses]]
    else:
        sides = [[(imp, loss) for imp in ("none", "imp")] for loss in (worse, better)]
    if any(key not in accuracy for side in sides for key in side):
        return []
    seeds = sorted(set.intersection(*(set(accuracy[key]) for side in sides for key in side)))
    return [tuple(sum(accuracy[key][s] for key in side) / len(side) for side in sides) for s in seeds]


def known(groups: list[Group]) -> list[str]:
    """The data sets that have runs or could have them: a planned one that this version lacks is left out."""
    return [d for d in SWEEPS if d in SETS or any(g.first["dataset"] == d for g in groups)]


def judge_claims(groups: list[Group]) -> list[Tested]:
    """Every claim on every data set, judged as RULE says."""
    done = []
    for claim in CLAIMS:
        for dataset in known(groups):
            sweep = SWEEPS[dataset]
            if claim.static not in (None, sweep.static):
                continue
            accuracy = cells(groups, dataset)
            for worse in claim.worse:
                name = "same network without IMP" if worse == "none" else NAMES[worse]
                row = Tested(claim.text, dataset, name)
                pairs = contrast(accuracy, sweep.losses, claim.better, worse)
                if len(pairs) >= 2:
                    test = paired(*zip(*pairs, strict=True))
                    row.n, row.effect, row.low, row.high = test.n, test.mean, test.low, test.high
                    row.p, row.p_sign_flip = test.p, test.p_sign_flip
                done.append(row)
    tested = [row for row in done if row.p is not None]
    for row, p in zip(tested, holm([row.p for row in tested]), strict=True):
        row.p_holm = p
        row.verdict = judge(row)
    return done


RULE = f"""\
Fixed before any number was seen:

- Accuracy is that of the test set after the last epoch, read as the loss prescribes (LTS: last step; others: mean over
  time). No epoch is chosen by the test set.
- A comparison is paired over seeds: both sides of a seed share initial weights and data order. "IMP helps" is the mean over
  the losses of (with IMP - without); a comparison of losses is the mean over IMP on and off.
- Effect: mean difference in percentage points; interval: 95 %, Student's t over the seeds; p: paired t-test, two-sided,
  adjusted by Holm over all comparisons below. Beside it stands the exact sign-flip p, which cannot be below 2/2^n.
- **supported**: at least {SEEDS} seeds, the interval lies above 0, and Holm's p is below {ALPHA}.
- **not supported**: the same with the interval below 0: the opposite was found.
- **undecided**: everything else; "leans for" or "leans against" where the interval excludes 0 but Holm's p does not hold.
- A claim over two comparisons (LTS beats both) is supported if both are, not supported if one is not, else undecided.
"""


def judge(row: Tested) -> str:
    """The verdict of one comparison by RULE."""
    if row.n < SEEDS:
        return f"undecided (fewer than {SEEDS} seeds)"
    if row.low <= 0 <= row.high:
        return "undecided"
    above = row.low > 0
    if row.p_holm >= ALPHA:
        return f"undecided (leans {'for' if above else 'against'})"
    return "supported" if above else "not supported"


def overall(verdicts: list[str]) -> str:
    """The verdict of a claim on one data set from those of its comparisons."""
    if len(verdicts) == 1 or len(set(verdicts)) == 1:
        return verdicts[0]
    if "not supported" in verdicts:
        return "not supported"
    return "not run" if "not run" in verdicts else "undecided"


# ---------------------------------------------------------------- the report


def report(results: Path) -> str:
    """results/small_scale.md from the collected runs. Raises UserError where there is none."""
    runs = results / "runs" / "small_scale"
    if not runs.exists():
        raise UserError(f"{runs} does not exist; run `python scripts/small_scale.py run`, then `... collect`")
    groups, notes = group_runs(load([runs]))
    rows = judge_claims(groups)
    ran = [d for d in SWEEPS if any(g.first["dataset"] == d for g in groups)]
    parts = [
        "# The paper's claims at a small scale\n",
        "Generated by `python scripts/small_scale.py report` from the results under `runs/small_scale`; not edited by hand.",
        "One small network (about 32,000 weights), trained on two CPU cores. It says what holds at this size, no more.\n",
        "## How a verdict is reached\n",
        RULE,
        "## Verdicts\n",
        _verdicts(rows),
        to_markdown(_comparisons(rows)),
        to_markdown(_accuracies(groups, notes)),
        "## Data and commands\n",
        *(f"- **{d}**: {SWEEPS[d].about}.\n" for d in ran),
        "```bash",
        *(shlex.join(command(d, max(len(g.runs) for g in groups if g.first["dataset"] == d))) for d in ran),
        "python scripts/small_scale.py collect",
        "python scripts/small_scale.py report",
        "```\n",
    ]
    return "\n".join(parts)


def _verdicts(rows: list[Tested]) -> str:
    lines = ["| claim | data set | verdict |", "|---|---|---|"]
    for claim in CLAIMS:
        for dataset in dict.fromkeys(r.dataset for r in rows):
            mine = [r.verdict for r in rows if r.claim == claim.text and r.dataset == dataset]
            if mine:
                lines.append(f"| {claim.text} | {dataset} | **{overall(mine)}** |")
    return "\n".join(lines) + "\n"


def _comparisons(rows: list[Tested]) -> Table:
    columns = [
        Column("claim", "claim"), Column("dataset", "data set"), Column("versus", "against"), Column("n", "seeds", "number"),
        Column("effect", "effect, pp", "number"), Column("interval", "95 % interval", "number"), Column("p", "p", "number"),
        Column("p_holm", "p, Holm", "number"), Column("flip", "p, sign flip", "number"), Column("verdict", "verdict"),
    ]  # fmt: skip
    shown = [
        dict(
            claim=r.claim, dataset=r.dataset, versus=r.versus, n=r.n or None,
            effect=None if r.effect is None else f"{r.effect:+.2f}",
            interval=None if r.low is None else f"{r.low:+.2f} .. {r.high:+.2f}",
            p=_p(r.p), p_holm=_p(r.p_holm), flip=_p(r.p_sign_flip), verdict=r.verdict,
        )
        for r in rows
    ]  # fmt: skip
    return Table("Every comparison", columns, shown)


def _p(p: float | None) -> str | None:
    if p is None:
        return None
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _accuracies(groups: list[Group], notes: list[str]) -> Table:
    columns = [
        Column("row", "network"), Column("n", "seeds", "number"), Column("acc_last", "acc_last %", "summary"),
        Column("acc_step", "accuracy at t=1..T %", "steps"), Column("epochs", "epochs", "number"),
        Column("n_train", "train", "number"), Column("n_test", "test", "number"),
    ]  # fmt: skip
    rows = [
        dict(
            row=g.label, n=len(g.runs), acc_last=g.percent("acc_last"), acc_step=g.steps(), epochs=g.first["epochs"],
            n_train=g.first["n_train"], n_test=g.first["n_test"],
        )
        for g in groups
    ]  # fmt: skip
    means = "mean ± sample standard deviation over seeds; accuracy at t: the output of that step alone"
    return Table("Accuracies", columns, rows, [means, *remarks(groups), *notes])


# ---------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="small_scale.py", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run the sweeps")
    run.add_argument(
        "datasets",
        nargs="*",
        metavar="DATASET | KEY=VALUE",
        help=f"any of: {', '.join(SWEEPS)}; default all there are; KEY=VALUE is passed on",
    )
    run.add_argument("--print", action="store_true", help="only print the commands")
    run.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds 0..N-1 (default {SEEDS})")
    actions.add_parser("collect", help=f"copy results from {SWEEP_DIR} to results/runs/small_scale")
    write = actions.add_parser("report", help="write results/small_scale.md")
    write.add_argument("--check", action="store_true", help="exit 1 when the committed report differs")
    for part in actions.choices.values():
        part.add_argument("--results", type=Path, default=RESULTS, help="results folder")
    args = parser.parse_args(argv)
    try:
        return {"run": _run, "collect": _collect, "report": _report}[args.action](args)
    except UserError as error:
        print(f"small_scale.py: {error}", file=sys.stderr)
        return 2


def _run(args) -> int:
    more = [word for word in args.datasets if "=" in word]
    datasets = [word for word in args.datasets if "=" not in word]
    unknown = [d for d in datasets if d not in SWEEPS]
    if unknown:
        raise UserError(f"{unknown[0]} has no sweep; choose of: {', '.join(SWEEPS)}")
    missing = [d for d in datasets if d not in SETS]
    if missing:
        raise UserError(f"dataset={missing[0]} does not exist in this version; choose of: {', '.join(SETS)}")
    codes = []
    for dataset in datasets or [d for d in SWEEPS if d in SETS]:
        words = command(dataset, args.seeds, more)
        print(shlex.join(words), flush=True)
        if not args.print:
            codes.append(subprocess.run([sys.executable, *words[1:]], cwd=ROOT).returncode)
    return max(codes, default=0)


def _collect(args) -> int:
    written = collect([ROOT / SWEEP_DIR], args.results / "runs" / "small_scale")
    print(f"{len(written)} runs in {args.results / 'runs' / 'small_scale'}")
    return 0


def _report(args) -> int:
    target, text = args.results / "small_scale.md", report(args.results)
    if not args.check:
        write_text(target, text)
        print(target)
        return 0
    if not target.exists() or target.read_text("utf-8") != text:
        print(f"{target} is not what the results give; run `python scripts/small_scale.py report`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
