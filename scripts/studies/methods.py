"""Every neuron, initial state, loss, norm and surrogate, each exchanged alone in one baseline.

The choices come from the registries, so a new method is part of this study once its own file exists.
"""

from __future__ import annotations

import inspect
import json
import shlex
import statistics as plain_statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy import optimize, stats

from snn_repro.config import choices, load_config
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.paper.differences import remarks
from snn_repro.paper.formats import Column, Table, to_markdown
from snn_repro.paper.results import Group, group_runs, load, over_seeds
from snn_repro.paper.statistics import Against, Paired, Verdict, dunnett_p, verdicts_against_baseline
from snn_repro.registry import INITIAL_STATES, LOSSES, NEURONS, NORMS, SURROGATES
from snn_repro.runs.folder import result_files

if TYPE_CHECKING:
    from snn_repro.config import Config

SWEEP_DIR = "runs/methods"
SEEDS = 3
ALPHA = 0.05
MARGIN = 0.5  # points of accuracy


class Part(NamedTuple):
    """A data set, its baseline and the size of its runs."""

    neuron: str
    loss: str
    overrides: tuple[str, ...]
    about: str


PARTS = {
    "fashion_mnist": Part(
        "if", "sdt", ("dataset.train_subset=20000", "recipe.epochs=3"),
        "20,000 of the 60,000 training images of Fashion-MNIST (stratified), all 10,000 test images, T=4, 3 epochs",
    ),
    "digits_dvs": Part(
        "lif", "tet", ("recipe.epochs=8",),
        "the embedded digits as events of an emulated camera (1,211 training and 450 test samples), T=10, 8 epochs",
    ),
}  # fmt: skip


def part(dataset: str) -> Part:
    """The part of a data set; one without an entry in PARTS uses its own recipe. Raises UserError for an unknown data set."""
    if dataset not in SETS:
        raise UserError(f"dataset={dataset} does not exist; choose of: {', '.join(SETS)}")
    neuron, loss = ("if", "sdt") if SETS[dataset].static else ("lif", "tet")
    return PARTS.get(dataset) or Part(neuron, loss, (), f"{dataset}, its own recipe")


class Axis(NamedTuple):
    """A group of choices: the key that selects one, and their names."""

    title: str
    key: str
    names: tuple[str, ...]
    more: tuple[str, ...] = ()  # overrides of all its runs


def axes() -> dict[str, Axis]:
    """The groups of choices by name, in the order of the runs; the paper's subject comes first."""
    initial = Axis("Initial state", "neuron.initial", tuple(INITIAL_STATES))
    neuron = Axis(
        "Neuron", "neuron", tuple(n for n in choices("neuron") if n in NEURONS)
    )  # their _imp are initial states
    return {
        "initial": initial,
        "neuron": neuron,
        "loss": Axis("Loss", "loss", tuple(n for n in choices("loss") if "teacher" not in LOSSES.own(n))),
        "norm": Axis("Norm", "model.norm", tuple(NORMS)),
        "surrogate": Axis(
            "Surrogate gradient", "neuron.surrogate", tuple(SURROGATES), ("neuron.surrogate_width=null",)
        ),
    }


def base_value(axis: str, p: Part) -> str:
    """The baseline's choice in a group."""
    own = {"neuron": p.neuron, "loss": p.loss, "initial": "zero", "norm": "bn"}
    return own.get(axis) or str(NEURONS[p.neuron].settings["surrogate"].default)


def cells(p: Part) -> Iterator[tuple[str, str]]:
    """(axis, choice) of every run of a part; the baseline is ("", "baseline")."""
    yield "", "baseline"
    for name, axis in axes().items():
        yield from ((name, choice) for choice in axis.names if choice != base_value(name, p))


def said(cell: tuple[str, str]) -> str:
    """A choice in words: AXIS=CHOICE, or `baseline`."""
    return "=".join(filter(None, cell))


def commands(datasets: Sequence[str], seeds: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """The Hydra multiruns, as words: one per data set and group, the baseline first."""
    for dataset in datasets or PARTS:
        p = part(dataset)
        chosen: dict[str, list[str]] = {}
        for axis, choice in cells(p):
            chosen.setdefault(axis, []).append(choice)
        for axis, names in chosen.items():
            given = {"neuron": p.neuron, "loss": p.loss}
            extra: tuple[str, ...] = ()
            if axis:
                given[axes()[axis].key] = ",".join(names)
                extra = axes()[axis].more
            yield [
                "python", "-m", "snn_repro.train", "-m", f"dataset={dataset}", "model=small",
                *(f"{key}={value}" for key, value in given.items()), f"seed={','.join(map(str, range(seeds)))}",
                *p.overrides, *extra, *more, "energy=true", "logger.mode=disabled", f"hydra.sweep.dir={SWEEP_DIR}",
            ]  # fmt: skip


def cell_of(first: Mapping[str, Any], p: Part) -> tuple[str, str] | None:
    """The (group, choice) of a result; None if it differs from the baseline of its part in more than one choice."""
    config = first["config"]
    _, _, neuron, loss = first["name"].rsplit("-", 3)
    family = config["neuron"]["name"]
    initial = config["neuron"].get("initial", "zero")
    if config["neuron"]["imp"]:
        neuron, initial = neuron.removesuffix("_imp"), "imp"
    values = {"neuron": neuron, "loss": loss, "initial": initial, "norm": config["model"].get("norm") or "bn"}
    if family == p.neuron:  # others have surrogates of their own
        values["surrogate"] = config["neuron"]["surrogate"]
    apart = [(axis, value) for axis, value in values.items() if value != base_value(axis, p)]
    return (apart or [("", "baseline")])[0] if len(apart) < 2 else None


# ---------------------------------------------------------------- what is measured apart from the runs


MEASURED = "measured.json"


def measure(results: Path, rounds: int = 7, batch: int = 64) -> None:
    """Write results/runs/methods/measured.json.

    For each choice: time of a training step relative to the baseline's (timed alternately), and bytes kept for the backward
    pass. For each data set, and the digits: accuracy of logistic regression.
    """
    found: dict[str, Any] = {
        dataset: dict(steps=steps(dataset, p, cells(p), rounds, batch), linear=linear_baseline(dataset, p.overrides))
        for dataset, p in PARTS.items()
    }
    found["digits"] = dict(linear=linear_baseline("digits", ()))  # compared with the first command in README
    folder = results / "runs" / "methods"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MEASURED, found)


def steps(
    dataset: str, p: Part, chosen: Iterable[tuple[str, str]], rounds: int = 7, batch: int = 64
) -> dict[str, dict[str, float]]:
    """Time of a training step relative to the baseline's, and MB kept for its backward pass, of each choice."""
    base, rows = _Step(dataset, p, "", "baseline", batch), {}
    for axis, choice in chosen:
        step = _Step(dataset, p, axis, choice, batch)
        ratios = [step.seconds() / base.seconds() for _ in range(rounds + 1)][1:]
        rows[said((axis, choice))] = dict(step_ratio=plain_statistics.median(ratios), kept_mb=step.kept() / 2**20)
    return rows


def _config(dataset: str, p: Part, axis: str, choice: str) -> Config:
    given = {"neuron": p.neuron, "loss": p.loss} | ({axes()[axis].key: choice} if axis else {})
    extra = axes()[axis].more if axis else ()
    words = (f"{key}={value}" for key, value in given.items())
    return load_config([f"dataset={dataset}", "model=small", *words, *p.overrides, *extra])


class _Step:
    """A training step on random input, to be timed."""

    def __init__(self, dataset: str, p: Part, axis: str, choice: str, batch: int):
        import torch

        from snn_repro.build import build_network, options
        from snn_repro.losses import build_loss

        config = _config(dataset, p, axis, choice)
        facts = SETS[dataset].of(config)
        torch.manual_seed(0)
        shape = facts.frame_shape(config.dataset.frame_size)
        model = build_network(config, facts.num_classes, shape)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.x = torch.randn(batch, *shape)
        if not facts.static:
            self.x = torch.poisson(torch.full((config.timesteps, batch, *shape), 0.3))
        self.target = torch.randint(facts.num_classes, (batch,))
        self.loss = build_loss(config.loss.name, **options(config.loss, "name"))
        self.loss.watch(self.model)
        self.loss.begin_epoch(0, 1)

    def forward(self) -> Any:
        return self.loss(self.model(self.x, last_step=self.loss.last_step), self.target)

    def seconds(self) -> float:
        started = time.perf_counter()
        self.forward().backward()
        return time.perf_counter() - started

    def kept(self) -> int:
        """Bytes of the tensors kept for the backward pass, without weights; shared storage counts once."""
        import torch

        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers(), self.x)}
        sizes: dict[int, int] = {}

        def pack(t: Any) -> Any:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            self.forward().backward()
        return sum(sizes.values())


def linear_baseline(dataset: str, overrides: Sequence[str]) -> float:
    """Test accuracy of logistic regression (scikit-learn's, on standardised pixels, frames summed over time)."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from snn_repro.data import build_data

    words = ["augment.crop_padding=0", "augment.flip=0"] if dataset == "fashion_mnist" else []
    data = build_data(load_config([f"dataset={dataset}", "model=small", *overrides, *words]))

    def flat(batches: Any) -> tuple[Any, Any]:
        pairs = list(batches.epoch(0))
        x = torch.cat([x if SETS[dataset].static else x.sum(0) for x, _ in pairs])
        return x.flatten(1).numpy(), torch.cat([y for _, y in pairs]).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(*flat(data.train))
    return float(model.score(*flat(data.test)))


# ---------------------------------------------------------------- the report

RULE = f"""\
The design was fixed before the runs, the analysis was not: the first one (paired t-tests, Holm's correction over 37 choices) calls
no difference below 15.7 standard deviations significant with {SEEDS} seeds, and was replaced after the runs.

- **Design.** Each choice is exchanged alone in the baseline of its data set: same network, recipe, data, epochs and seeds. Nothing was tuned
  for any choice; a method's own recipe may do better.
- **Accuracy** is on the test set after the last epoch, at the loss's readout. The test set chooses no epoch.
- **Differences** from the baseline are means over seeds in percentage points. Dunnett's test compares all choices of a data set with the
  one baseline: seeds are blocks (same data order, and same initial weights where the choice permits), the variance is pooled over all
  choices, the 95 % intervals are simultaneous. It assumes the same spread in all choices.
- **better** or **worse**: Dunnett's p is at most {ALPHA}. **equivalent**: two one-sided tests with the pooled variance, Holm's correction
  over the choices, say that the difference is below {MARGIN:g} points. Else **cannot be said**, with the number of seeds that would decide
  with 80 % power, if difference and spread stay as they are.
- **Identical networks** are not compared: a choice whose runs equal those of the baseline or of an earlier choice to the last digit.
- **Step 1** is the accuracy of the first step's own output; empty if a step uses future time steps.
- **Time and memory** of a training step are measured separately on a CPU, on random input, alternating with the baseline.
"""


def report(results: Path) -> dict[str, str]:
    """`{"methods.md": ...}` from the collected runs. Raises UserError if there are none."""
    folder = results / "runs" / "methods"
    if not result_files(folder):
        raise UserError(f"{folder} does not exist; run `python scripts/study.py methods run`, then `... collect`")
    groups, notes = group_runs(load([folder]))
    measured, ran = _measured(folder), _ran(groups)
    text = [
        "# Methods, each alone in the same recipe\n",
        "Generated by `python scripts/study.py methods report` from the results under `runs/methods`; not edited by hand.",
        "",
    ]
    judged = {dataset: _dataset(groups, dataset, measured.get(dataset, {})) for dataset in ran}
    text += [
        *_summary(judged),
        "## How a verdict is reached\n",
        RULE,
    ]
    for dataset, (tables, _, lacking, _, linear) in judged.items():
        p = part(dataset)
        text.append(f"## {dataset}\n")
        text.append(f"Baseline: `neuron={p.neuron} loss={p.loss}`, batch norm, zero initial state; {p.about}.\n")
        if linear:
            text.append(f"Logistic regression on the same samples: {linear:.2f} %.\n")
        text += [to_markdown(table) for table in tables]
        text += [f"Not run: {', '.join(lacking)}.\n"] if lacking else []
    text += [
        *(f"- {note}" for note in (*remarks(groups), *notes)),
        "\n## What each choice is\n", *_descriptions(),
        "## Commands\n", "```bash",
        *(shlex.join(words) for words in commands(ran, max(len(g.runs) for g in groups))),
        "python scripts/study.py methods collect", "python scripts/study.py methods measure",
        "python scripts/study.py methods report", "```\n",
    ]  # fmt: skip
    return {"methods.md": "\n".join(text)}


def _summary(judged: dict[str, Judged]) -> Iterator[str]:
    """Question, design, findings with differences and intervals, and what is not known."""
    yield "## Summary\n"
    yield "**Question.** Does a neuron, initial state, loss, norm or surrogate gradient change accuracy if only this one thing is exchanged in"
    yield "a common recipe?\n"
    yield f"**Design.** The same small network, data, recipe and {SEEDS} seeds for every choice; two CPU cores. All choices are compared with the"
    yield "baseline of their data set by Dunnett's test, with seeds as blocks.\n"
    yield "**Findings.**\n"
    rows: list[dict[str, Any]] = []
    for dataset, its in judged.items():
        words = {
            word: [c for c, v in its.verdicts.items() if v.word == word] for word in ("better", "worse", "equivalent")
        }
        of = {word: ", ".join(choice for _, choice in those) for word, those in words.items()}
        rest = len(its.verdicts) - sum(map(len, words.values()))
        yield f"- {dataset}, {len(its.verdicts)} choices: better than the baseline: {of['better'] or 'none'}; worse: {of['worse'] or 'none'}; equivalent"
        yield f"  within {MARGIN:g} points: {of['equivalent'] or 'none'}; of the other {rest} nothing can be said."
        if its.verdicts:
            any_ = next(iter(its.verdicts.values())).found
            yield f"  A true difference of {detected(any_, len(its.verdicts)):.2f} points is detected with 80 % power."
        rows += [
            dict(data=dataset, axis=axis, choice=choice, difference=difference(v), verdict=v.word)
            for word in ("better", "worse") for axis, choice in words[word] for v in [its.verdicts[axis, choice]]
        ]  # fmt: skip
    if rows:
        columns = [
            Column("data", "data set"), Column("axis", "group"), Column("choice", "choice"),
            Column("difference", "difference, pp (95 % interval)", "number"), Column("verdict", "verdict"),
        ]  # fmt: skip
        yield "\nThe choices that differ from the baseline:\n"
        yield to_markdown(Table("", columns, rows))
    yield '**Not known.** "Cannot be said" is not equality. Nothing was tuned, so a choice may lose to a learning rate that is not its own;'
    yield "training is short, and the network and data are small. The methods may differ in their own recipes, in larger networks and on other"
    yield "data."
    if slow := [dataset for dataset, its in judged.items() if its.best < its.linear]:
        yield f"On {' and '.join(slow)} all networks are below logistic regression, so the differences there are of the speed of learning."
    yield ""


def detected(found: Paired | Against, choices_: int) -> float:
    """The true difference that Dunnett's test of `choices_` rows detects with 80 % power, by its pooled variance."""
    assert isinstance(found, Against)
    error, df = found.sd / found.n**0.5, found.df
    critical = optimize.brentq(lambda t: dunnett_p(t, choices_, df) - ALPHA, 0, 1000)
    return error * float(optimize.brentq(lambda d: stats.nct.sf(critical, df, d) - 0.8, 0, critical + 20))


def tables(results: Path) -> list[Table]:
    """The tables of the report, titled with their data set; [] without runs."""
    folder = results / "runs" / "methods"
    if not result_files(folder):
        return []
    groups, _ = group_runs(load([folder]))
    measured = _measured(folder)
    return [
        replace(table, title=f"Methods on {dataset}: {table.title}")
        for dataset in _ran(groups)
        for table in _dataset(groups, dataset, measured.get(dataset, {})).tables
    ]


def _measured(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MEASURED).read_text()) if (folder / MEASURED).exists() else {}


def _ran(groups: Sequence[Group]) -> list[str]:
    """The data sets of the runs, those in PARTS first."""
    there = {g.first["dataset"] for g in groups}
    return [*(d for d in PARTS if d in there), *sorted(there - PARTS.keys())]


class Judged(NamedTuple):
    """Tables of a data set, verdicts by cell, choices that were not run, highest mean accuracy, logistic regression's."""

    tables: list[Table]
    verdicts: dict[tuple[str, str], Verdict]
    lacking: list[str]
    best: float
    linear: float


def _dataset(groups: Sequence[Group], dataset: str, measured: dict[str, Any]) -> Judged:
    """Judge a data set: one table for each group of choices."""
    p = part(dataset)
    by_cell = {cell: g for g in groups if g.first["dataset"] == dataset and (cell := cell_of(g.first, p))}
    base = by_cell.get(("", "baseline"))
    same = identical(by_cell, ("", "baseline"))
    seeds = {run["seed"] for run in base.runs} if base else set()
    told = [
        cell for cell, g in by_cell.items()
        if cell[0] and cell not in same and len(seeds) > 1 and seeds <= {run["seed"] for run in g.runs}
    ]  # fmt: skip
    verdicts: dict[tuple[str, str], Verdict] = {}
    if base and told:
        values = over_seeds([base, *(by_cell[cell] for cell in told)], lambda run: 100 * run["acc_last"])[1]
        verdicts = dict(zip(told, verdicts_against_baseline([values], MARGIN, ALPHA)[0], strict=True))
    found = []
    for name, axis in axes().items():
        rows = [
            _row(choice, by_cell[cell], measured, cell) | _verdict(verdicts.get(cell), cell, same)
            for choice in axis.names
            for cell in [("", "baseline") if choice == base_value(name, p) else (name, choice)]
            if cell in by_cell
        ]
        found.append(Table(axis.title, _COLUMNS, rows))
    lacking = [said(cell) for cell in cells(p) if cell not in by_cell]
    best = max((g.last.mean for g in by_cell.values()), default=0.0)
    return Judged(found, verdicts, lacking, best, 100 * measured.get("linear", 0.0))


def identical(by_cell: dict[tuple[str, str], Group], baseline: tuple[str, str]) -> dict[tuple[str, str], str]:
    """The choices whose networks equal those of another choice, with that choice's name."""
    seen: dict[str, str] = {}
    found = {}
    for cell in sorted(by_cell, key=lambda c: c != baseline):
        runs = by_cell[cell].runs
        numbers = [[run["seed"], run["acc_step"], run["loss_last"], *run["firing_rates"].values()] for run in runs]
        first = seen.setdefault(json.dumps(numbers), cell[1])
        if first != cell[1]:
            found[cell] = first
    return found


_COLUMNS = [
    Column("choice", "choice"), Column("acc", "accuracy %", "summary"), Column("n", "seeds", "number"),
    Column("step1", "at step 1 %", "number"), Column("difference", "difference, pp", "number"),
    Column("verdict", "verdict"), Column("params", "parameters", "number"), Column("state", "state per neuron", "number"),
    Column("causal", "causal"), Column("synops", "synops per sample, k", "number"), Column("macs", "MACs per sample, k", "number"),
    Column("time", "step time, x baseline", "number"), Column("kept", "kept for backward, MB", "number"),
]  # fmt: skip


def _row(choice: str, group: Group, measured: dict[str, Any], cell: tuple[str, str]) -> dict[str, Any]:
    first, steps = group.first, group.steps()
    step = measured.get("steps", {}).get(said(cell), {})
    return dict(
        choice=choice, acc=group.last, n=len(group.runs), step1=steps[0] if steps else None,
        params=f"{first['params_weights'] + first['params_imp']:,}", state=states(first["config"]["neuron"], first["timesteps"]),
        causal="yes" if first.get("causal", True) else "no",
        **group.operations(),
        time=step.get("step_ratio"), kept=step.get("kept_mb"),
    )  # fmt: skip


def states(neuron: dict[str, Any], timesteps: int) -> int:
    """Number of values that one neuron carries from step to step."""
    kept = NEURONS[neuron["name"]].states
    return min(neuron.get("order", timesteps + 1), timesteps + 1) - 1 if kept is None else kept


def _verdict(verdict: Verdict | None, cell: tuple[str, str], same: dict[tuple[str, str], str]) -> dict[str, Any]:
    if not cell[0]:
        return dict(difference=None, verdict="baseline")
    if cell in same:
        return dict(difference=None, verdict=f"the network of {same[cell]}")
    if verdict is None:
        return dict(difference=None, verdict="too few seeds")
    word = verdict.word if verdict.word in ("equivalent", "cannot be said") else f"**{verdict.word}**"
    return dict(
        difference=difference(verdict), verdict=word + f" ({verdict.seeds} seeds)" * (verdict.seeds is not None)
    )


SIGNS = {"better": "+", "worse": "-", "equivalent": "=", "cannot be said": "?"}


def difference(verdict: Verdict) -> str:
    """Mean difference with its interval, in points."""
    return f"{verdict.found.mean:+.2f} ({verdict.found.low:+.2f} .. {verdict.found.high:+.2f})"


def _descriptions() -> Iterator[str]:
    """The first paragraph of each choice's docstring, which names its paper."""
    import snn_repro.losses
    import snn_repro.models
    import snn_repro.neurons  # noqa: F401

    registries: dict[str, Any] = dict(
        initial=INITIAL_STATES, neuron=NEURONS, loss=LOSSES, norm=NORMS, surrogate=SURROGATES
    )
    for name, axis in axes().items():
        yield f"### {axis.title}\n"
        for choice in axis.names:
            thing = registries[name].get(choice)
            said = inspect.getdoc(getattr(thing, "derivative", thing)) if thing is not None else choices(name)[choice]
            yield f"- **{choice}**: {' '.join((said or '').split(chr(10) * 2)[0].split())}"
        yield ""
