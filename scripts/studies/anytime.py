"""Does an initial state move the anytime front: accuracy against mean time steps and operations under early exit.

The design, with its measures and decision rule, is docs/studies/anytime.md; this file runs and judges it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from snn_repro.errors import UserError
from snn_repro.files import replace_atomically
from snn_repro.paper.formats import Column, Table, to_markdown
from snn_repro.paper.results import load
from snn_repro.paper.statistics import Verdict, verdicts_against_baseline
from snn_repro.trained.anytime import THRESHOLDS, area
from studies.methods import SIGNS, difference

SWEEP_DIR = "runs/anytime"
SEEDS = 8
STATES = ("zero", "constant", "imp", "mp_init")
LOSSES = ("sdt", "tet", "lts")
CURVES = "anytime/curves.npz"  # below results/runs
FIGURES = ("anytime",)
DELTA = 0.1
RULE = "confidence, readout"  # the one that is judged


class Part(NamedTuple):
    """A data set with its recipe. epsilon: accuracy that early exit may lose."""

    dataset: str
    neuron: str
    states: tuple[str, ...]
    epsilon: float
    overrides: tuple[str, ...]


PARTS = {
    "static": Part(
        "fashion_mnist", "if", STATES, 0.01,
        ("dataset.train_subset=20000", "dataset.validation=0.1", "recipe.epochs=3", "recipe.optimizer=adamw", "recipe.lr=0.005",
         "recipe.weight_decay=0.01", "recipe.batch_size=64", "augment.crop_padding=0", "augment.flip=0"),
    ),
    "events": Part(
        "fashion_mnist_dvs", "lif", STATES, 0.01,
        ("dataset.train_subset=6000", "dataset.validation=0.1", "timesteps=5", "recipe.epochs=3"),
    ),
    "digits": Part("digits", "if", ("zero", "imp"), 0.05, ("dataset.validation=0.3", "recipe.epochs=6")),
}  # fmt: skip


def commands(names: Sequence[str], seeds: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """The Hydra multiruns, as words: one per part, seed by seed, so that a stopped study has all cells of some seeds."""
    if unknown := set(names) - PARTS.keys():
        raise UserError(f"{min(unknown)} is no part of this study; choose of: {', '.join(PARTS)}")
    own = [] if any(word.startswith("seed=") for word in more) else [f"seed={','.join(map(str, range(seeds)))}"]
    for name in names or PARTS:
        part = PARTS[name]
        yield [
            "python", "-m", "snn_repro.train", "-m", f"dataset={part.dataset}", "model=small", f"neuron={part.neuron}", *own,
            f"neuron.initial={','.join(part.states)}", f"loss={','.join(LOSSES)}", *part.overrides, *more,
            "logger.mode=disabled", f"hydra.sweep.dir={SWEEP_DIR}",
        ]  # fmt: skip


def measure(results: Path) -> None:
    """Write results/runs/anytime/curves.npz from the checkpoints under SWEEP_DIR, for the runs that it lacks.

    It has, for the runs in the order of `runs`: right [runs, rules, thresholds] correct test samples, steps and operations
    (their sums over the test samples), threshold, lost [runs, rules] of the guarantee.
    """
    from snn_repro.runs.folder import find_results
    from snn_repro.trained.evaluate import anytime_run

    root = Path(SWEEP_DIR)
    if not root.is_dir():
        raise UserError(f"{root} does not exist; run `python scripts/study.py anytime run` here first")
    path = results / "runs" / CURVES
    path.parent.mkdir(parents=True, exist_ok=True)
    there = curves(results)
    for result in find_results(root):
        if result["config_hash"] in there:
            continue
        epsilon = next(part.epsilon for part in PARTS.values() if part.dataset == result["dataset"])
        found = anytime_run(Path(result["folder"]), (), epsilon, DELTA)
        n = found["n"]
        there[result["config_hash"]] = dict(
            name=[f"{rule['rule']}, {rule['scores']}" for rule in found["rules"]],
            right=_sums(found, "acc", n), steps=_sums(found, "steps", n), operations=_sums(found, "operations", n),
            threshold=[rule["guarantee"]["threshold"] for rule in found["rules"]],
            lost=[rule["guarantee"]["lost"] for rule in found["rules"]], n=n,
        )  # fmt: skip
        _write(path, there)  # a stopped measurement resumes here


def _sums(found: dict[str, Any], key: str, n: int) -> np.ndarray:
    """Sums over the test samples [rules, thresholds], which are whole numbers."""
    return np.rint([[n * point[key] for point in rule["curve"]] for rule in found["rules"]]).astype(np.int64)


def curves(results: Path) -> dict[str, dict[str, Any]]:
    """What `measure` wrote, by the runs' config_hash; empty without a file."""
    path = results / "runs" / CURVES
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    names = arrays.pop("name").tolist()
    runs = arrays.pop("runs").tolist()
    return {run: dict(name=names, **{key: value[i] for key, value in arrays.items()}) for i, run in enumerate(runs)}


def _write(path: Path, there: dict[str, dict[str, Any]]) -> None:
    runs = sorted(there)
    names = there[runs[0]]["name"]
    arrays: dict[str, Any] = {key: np.array([there[run][key] for run in runs], float if key in ("threshold", "lost") else np.int64)
              for key in ("right", "steps", "operations", "threshold", "lost", "n")}  # fmt: skip
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, runs=runs, name=names, **arrays)


# ---------------------------------------------------------------- what is judged

Seeds = dict[int, tuple[Any, dict[str, Any]]]  # seed: (result, curves)


def cells(results: Path) -> dict[tuple[str, str, str], Seeds]:
    """Runs with their curves, by (part, loss, initial state). Raises UserError where there is none."""
    there = curves(results)
    found: dict[tuple[str, str, str], Seeds] = {}
    file = results / "runs" / "anytime.jsonl"
    names = {part.dataset: name for name, part in PARTS.items()}
    for result in load([file]) if file.exists() else []:
        if result["config_hash"] in there:
            neuron = result["config"]["neuron"]
            state = "imp" if neuron["imp"] else neuron["initial"]
            cell = names[result["dataset"]], result["loss"], state
            found.setdefault(cell, {})[result["seed"]] = result, there[result["config_hash"]]
    if not found:
        raise UserError(f"{file} has no run with curves; use `study.py anytime run`, `collect` and `measure`")
    return found


def front(run: dict[str, Any], rule: str = RULE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(accuracy in percent, mean time steps, mean operations) of a run at the thresholds."""
    i = run["name"].index(rule)
    return 100 * run["right"][i] / run["n"], run["steps"][i] / run["n"], run["operations"][i] / run["n"]


def within(cost: np.ndarray, acc: np.ndarray, budget: float) -> float:
    """The highest accuracy at a mean cost of at most `budget`."""
    return float(acc[cost <= budget + 1e-9].max(initial=acc[cost.argmin()]))


class Measure(NamedTuple):
    """A number of a run, higher is better; zero: the run of the zero state with the same loss and seed."""

    title: str
    margin: float

    def of(self, run: tuple[Any, dict[str, Any]], zero: tuple[Any, dict[str, Any]]) -> float:
        acc, steps, operations = front(run[1])
        match self.title:
            case "step 1":
                return float(acc[0])
            case "2 steps":
                return within(steps, acc, 2)
            case "half the operations":
                return within(operations, acc, front(zero[1])[2][-1] / 2)
            case "area":
                return float(area(list(zip(steps.tolist(), acc.tolist(), strict=True)), 1, run[0]["timesteps"]) or 0)
        return 100 * float(run[0]["acc_last"])


MEASURES = [
    Measure("step 1", 2), Measure("2 steps", 0.5), Measure("half the operations", 0.5), Measure("area", 0.5),
    Measure("last step", 0.5),
]  # fmt: skip


def judge(found: dict[tuple[str, str, str], Seeds], part: str, loss: str) -> dict[str, list[Verdict]]:
    """Verdicts of each measure, by initial state but zero; empty with fewer than two seeds common to all states."""
    runs = [found.get((part, loss, state), {}) for state in STATES]
    seeds = sorted(set.intersection(*map(set, runs)))
    if len(seeds) < 2:
        return {}
    judged = [
        verdicts_against_baseline([[[m.of(of[seed], runs[0][seed]) for seed in seeds] for of in runs]], m.margin)[0]
        for m in MEASURES
    ]
    return {state: [verdicts[i] for verdicts in judged] for i, state in enumerate(STATES[1:])}


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """The design's decision rule on the verdicts of MEASURES."""
    first, two, half = (verdict.word for verdict in verdicts[:3])
    if two == half == "better":
        return "moves the front"
    if first == "better" and two == half == "equivalent":
        return "only step 1"
    if two == half == "worse":
        return "lowers the front"
    return "cannot be said" if "cannot be said" in (two, half) else f"2 steps {two}, half the operations {half}"


def report(results: Path) -> dict[str, str]:
    """`anytime.md`, from the collected runs and their curves."""
    found = cells(results)
    rows, said, seeds = [], [], [SEEDS]
    for name in ("static", "events"):
        for loss in LOSSES:
            for state, verdicts in judge(found, name, loss).items():
                words = [f"{difference(v)} {SIGNS[v.word]}" for v in verdicts]
                what = conclusion(verdicts)
                seeds.append(verdicts[0].found.n)
                rows.append(dict(part=name, loss=loss, state=state, n=seeds[-1], what=what)
                            | dict(zip([m.title for m in MEASURES], words, strict=True)))  # fmt: skip
                said.append((what, f"{state} with {loss.upper()} ({name})"))
    findings = {what: [where for w, where in said if w == what] for what in dict.fromkeys(w for w, _ in said)}
    columns = [
        Column("part", "part"),
        Column("loss", "loss"),
        Column("state", "initial state"),
        Column("n", "seeds", "number"),
    ]
    columns += [Column(m.title, m.title, "number") for m in MEASURES] + [Column("what", "verdict")]
    notes = [
        "difference from zero in points, simultaneous 95 % interval; + better, - worse, = equivalent, ? cannot be said",
        f"rule: {RULE}; margins: " + ", ".join(f"{m.title} {m.margin:g}" for m in MEASURES),
    ]
    if min(seeds) < SEEDS:
        notes.append(
            f"the design asks for {SEEDS} seeds; what was not run is listed by `study.py anytime run --missing --print`"
        )
    text = [
        "# Does an initial state move the anytime front?", "",
        "Generated by `python scripts/study.py anytime report` from the results under `runs/anytime`; not edited by hand.", "",
        "**Question.** Early exit trades accuracy for time steps and operations. Does an initial membrane potential move this front, or",
        "only raise the accuracy of step 1? The measures, margins and rules were fixed before the runs",
        "([design](../docs/studies/anytime.md)).", "", "![fronts](figures/anytime.svg)", "", "## Findings", "",
        *(f"- **{what}**: {'; '.join(where)}" for what, where in findings.items()), "",
        "## Initial states against zero", "", to_markdown(Table("", columns, rows, notes)),
        "## What early exit saves", "",
        "Threshold with a guarantee (epsilon = 0.01, delta = 0.1), chosen on the validation part, measured on the test part; means over seeds.", "",
        to_markdown(saved(found)), "## Coverage of the guarantee", "", *coverage(found), "## Commands", "", "```bash",
        *(" ".join(words) for words in commands((), SEEDS)), "python scripts/study.py anytime collect",
        "python scripts/study.py anytime measure", "python scripts/study.py anytime report", "```", "",
    ]  # fmt: skip
    return {"anytime.md": "\n".join(text)}


def saved(found: dict[tuple[str, str, str], Seeds]) -> Table:
    """Accuracy, mean steps and operations at the guaranteed threshold of RULE."""
    rows = []
    for (name, loss, state), seeds in sorted(found.items(), key=lambda item: list(PARTS).index(item[0][0])):
        if name == "digits":
            continue
        at = []
        for result, run in seeds.values():
            acc, steps, operations = front(run)
            threshold = run["threshold"][run["name"].index(RULE)]
            k = len(THRESHOLDS) - 1 if np.isnan(threshold) else int(np.rint(threshold * (len(THRESHOLDS) - 1)))
            at.append((100 * result["acc_last"], acc[k], steps[k], operations[k] / 1e3, operations[-1] / 1e3))
        last, acc, steps, operations, whole = np.mean(at, 0).tolist()
        rows.append(
            dict(
                part=name,
                loss=loss,
                state=state,
                n=len(at),
                last=last,
                acc=acc,
                steps=steps,
                operations=operations,
                whole=whole,
            )
        )
    columns = [
        Column("part", "part"), Column("loss", "loss"), Column("state", "initial state"), Column("n", "seeds", "number"),
        Column("last", "accuracy at T, %", "number"), Column("acc", "with early exit, %", "number"), Column("steps", "mean steps", "number"),
        Column("operations", "operations, thousand", "number"), Column("whole", "of all T steps", "number"),
    ]  # fmt: skip
    return Table("", columns, rows)


def coverage(found: dict[tuple[str, str, str], Seeds]) -> list[str]:
    """How often the accuracy lost on the test part was above epsilon, with the binomial bound of the design."""
    names = next(iter(next(iter(found.values())).values()))[1]["name"]
    of_part: dict[str, list[np.ndarray]] = {}
    for (name, _, _), seeds in found.items():
        of_part.setdefault(name, []).extend(run["lost"] > PARTS[name].epsilon + 1e-12 for _, run in seeds.values())
    total = np.concatenate([np.array(failures) for failures in of_part.values()])
    bound = int(stats.binom.ppf(0.975, len(total), DELTA))
    rows = [
        dict(rule=rule, all=f"{total[:, i].sum()} of {len(total)}", held=100 * float(1 - total[:, i].mean()),
             verdict="holds" if total[:, i].sum() <= bound else "fails")
        | {name: f"{np.sum(failures, 0)[i]} of {len(failures)}" for name, failures in of_part.items()}
        for i, rule in enumerate(names)
    ]  # fmt: skip
    columns = [Column("rule", "rule"), *(Column(name, f"{name}: failures", "number") for name in of_part)]
    columns += [
        Column("all", "all: failures", "number"),
        Column("held", "held, %", "number"),
        Column("verdict", "guarantee"),
    ]
    notes = [
        f"{len(found)} rows of {', '.join(map(str, sorted({*map(len, found.values())})))} seeds; promised: {100 * (1 - DELTA):g} % at"
        f" least; it fails above {bound} failures, the 97.5 % quantile of the binomial distribution"
    ]
    return [to_markdown(Table("", columns, rows, notes))]
