"""Every method alone in one baseline, each with its own learning rate.

The design, with its tuning, measures and decision rule, is docs/studies/methods.md; this file runs and judges it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.paper.formats import Column, Table, to_markdown
from snn_repro.paper.results import load
from snn_repro.paper.statistics import Summary, Verdict, summary, verdicts_against_baseline
from studies import methods
from studies.methods import SIGNS, axes, difference, said

NAME = "methods_tuned"
SWEEP_DIR = f"runs/{NAME}"
RESULTS = Path(__file__).resolve().parents[2] / "results"
SEEDS = 10
TUNING_SEEDS = (100, 101)
RATES = (1, 1 / 3, 3)  # of the recipe's learning rate; of two that are equally good the first is taken
BASELINE = ("", "baseline")
SAME = {("initial", "half"), ("norm", "tdbn")}  # the networks of constant and bn


class Part(NamedTuple):
    """A data set with its baseline. tuning: overrides of the tuning runs; choices: None for all of the registries."""

    dataset: str
    base: methods.Part
    tuning: tuple[str, ...]
    seeds: int
    choices: tuple[tuple[str, str], ...] | None = None

    def cells(self) -> list[tuple[str, str]]:
        """(axis, choice) of the baseline and of every choice."""
        found = self.choices or [cell for cell in methods.cells(self.base) if cell not in {*SAME, BASELINE}]
        return [BASELINE, *found]

    def interim(self, found: Cells, seeds: Sequence[int]) -> bool:
        """Whether final runs are left: of a choice, or of a seed that all choices need."""
        return len(found) < len(self.cells()) or len(seeds) < self.seeds

    def rates(self) -> list[str]:
        """The three learning rates, the recipe's first."""
        return [f"{_recipe_lr(self.dataset, self.base.overrides) * rate:.3g}" for rate in RATES]


@cache
def _recipe_lr(dataset: str, overrides: tuple[str, ...]) -> float:
    return load_config([f"dataset={dataset}", "model=small", *overrides]).recipe.lr


PARTS = {
    "events": Part(
        "fashion_mnist_dvs",
        methods.Part(
            "lif", "tet", ("dataset.train_subset=6000", "timesteps=5", "recipe.epochs=5"),
            "6,000 training images and all test images of Fashion-MNIST as events of an emulated camera, T=5, 5 epochs",
        ),
        ("dataset.train_subset=8000", "dataset.validation=0.25", "timesteps=5", "recipe.epochs=5"), 8,
    ),
    "static": Part(
        "fashion_mnist",
        methods.Part(
            "if", "sdt", ("recipe.epochs=6",),
            "Fashion-MNIST, all 60,000 training and 10,000 test images, T=4, 6 epochs",
        ),
        ("dataset.train_subset=24000", "dataset.validation=0.25", "recipe.epochs=6"), 10,
        (
            *(("initial", state) for state in ("constant", "imp", "mp_init")),
            *(("neuron", neuron) for neuron in ("clif", "plif", "sliding_psn")),
            *(("loss", loss) for loss in ("lts", "sta", "tet", "trt")), ("norm", "tebn"),
        ),
    ),
}  # fmt: skip


def commands(names: Sequence[str], seeds: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """The Hydra multiruns, as words: tuning first, then seed by seed the choices whose learning rate is known.

    names: parts, tuning_PART for its tuning alone; a part's own runs need the collected results of its tuning. Raises
    UserError for another name, and for a part that is not tuned.
    """
    known = [name for part in PARTS for name in (f"tuning_{part}", part)]
    given = [word for word in more if word.startswith("seed=")]
    more = [word for word in more if word not in given]
    if unknown := set(names) - set(known):
        raise UserError(f"{min(unknown)} is no part of this study; choose of: {', '.join(known)}")
    for name in names or known:
        part = PARTS[name.removeprefix("tuning_")]
        if name not in PARTS:
            if given:
                raise UserError(
                    f"{given[0]} does not go with {name}, whose seeds are {TUNING_SEEDS[0]} and {TUNING_SEEDS[1]}; leave it out"
                )
            yield from _sweeps(
                part, {cell: ",".join(part.rates()) for cell in part.cells()}, part.tuning, TUNING_SEEDS, more
            )
            continue
        rates = chosen_rates(name, collected(RESULTS))
        if not rates and names:
            raise UserError(f"{name} is not tuned: `study.py {NAME} run tuning_{name}`, then `study.py {NAME} collect`")
        own = [int(seed) for word in given for seed in word[5:].split(",")] or range(min(seeds, part.seeds))
        for seed in own:
            yield from _sweeps(part, rates, (*part.base.overrides, "energy=true"), [seed], more)


def _sweeps(
    part: Part, rates: dict[tuple[str, str], str], overrides: Sequence[str], seeds: Sequence[int], more: Sequence[str]
) -> Iterator[list[str]]:
    """One sweep for each group of choices and learning rate."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for (axis, choice), rate in rates.items():
        grouped.setdefault((axis, rate), []).append(choice)
    for (axis, rate), names in grouped.items():
        given = {"neuron": part.base.neuron, "loss": part.base.loss}
        if axis:
            given[axes()[axis].key] = ",".join(names)
        yield [
            "python", "-m", "snn_repro.train", "-m", f"dataset={part.dataset}", "model=small",
            *(f"{key}={value}" for key, value in given.items()), f"recipe.lr={rate}", f"seed={','.join(map(str, seeds))}",
            *overrides, *(axes()[axis].more if axis else ()), *more, "logger.mode=disabled",
            f"hydra.sweep.dir={SWEEP_DIR}",
        ]  # fmt: skip


# ---------------------------------------------------------------- the runs, as collected

Cells = dict[tuple[str, str], dict[int, Any]]  # of a part: the result of each seed


def collected(results: Path) -> list[Any]:
    file = results / "runs" / f"{NAME}.jsonl"
    return list(load([file])) if file.exists() else []


def tuned(name: str, runs: Sequence[Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Mean validation accuracy in percent by learning rate, of each choice with all its tuning runs."""
    part, found = PARTS[name], dict[tuple[str, str], dict[str, float]]()
    by_cell: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        if run["dataset"] == part.dataset and run["n_val"] and (cell := methods.cell_of(run, part.base)):
            by_cell.setdefault(cell, {}).setdefault(f"{run['config']['recipe']['lr']:.3g}", []).append(
                100 * run["acc_val"]
            )
    for cell in part.cells():
        there = by_cell.get(cell, {})
        if all(len(there.get(rate, ())) == len(TUNING_SEEDS) for rate in part.rates()):
            found[cell] = {rate: fmean(there[rate]) for rate in part.rates()}
    return found


def chosen_rates(name: str, runs: Sequence[Any]) -> dict[tuple[str, str], str]:
    """The learning rate of each choice with all its tuning runs: the one with the highest validation accuracy."""
    return {cell: max(of, key=lambda rate: of[rate]) for cell, of in tuned(name, runs).items()}


def final(name: str, runs: Sequence[Any]) -> Cells:
    """The final runs at the chosen learning rate."""
    part, rates = PARTS[name], chosen_rates(name, runs)
    found: Cells = {}
    for run in runs:
        cell = methods.cell_of(run, part.base) if run["dataset"] == part.dataset and not run["n_val"] else None
        if cell in rates and f"{run['config']['recipe']['lr']:.3g}" == rates[cell]:
            found.setdefault(cell, {})[run["seed"]] = run
    return {cell: found[cell] for cell in part.cells() if cell in found}


# ---------------------------------------------------------------- what is measured apart from the runs


def measure(results: Path) -> None:
    """Write results/runs/methods_tuned/: areas.json of the runs under SWEEP_DIR, and steps.json.

    areas: the area under accuracy against mean time steps of early exit, by config_hash; runs that are there are kept.
    steps: time and memory of a training step, as `methods.measure`, and logistic regression.
    """
    from snn_repro.runs.folder import find_results

    folder = results / "runs" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    areas, where = _read(folder / "areas.json"), dict[str, list[str]]()
    for run in find_results(Path(SWEEP_DIR)):
        places = {key: run["config"].get(key) for key in ("data_dir", "cache_dir")}
        where[run["dataset"]] = [f"{key}={place}" for key, place in places.items() if place]  # as the runs read them
        if run["config_hash"] not in areas and not run["n_val"] and run.get("causal", True):
            areas[run["config_hash"]] = anytime_area(run)
    write_json(folder / "areas.json", dict(sorted(areas.items())))
    steps = _read(folder / "steps.json")
    for name, part in PARTS.items():
        if name not in steps and part.dataset in where:
            steps[name] = dict(
                steps=methods.steps(part.dataset, part.base, part.cells()),
                linear=methods.linear_baseline(part.dataset, [*part.base.overrides, *where[part.dataset]]),
            )
            write_json(folder / "steps.json", steps)


def anytime_area(run: Any) -> float:
    """Mean accuracy over mean time steps 1..T of early exit by confidence of the loss's readout, from predictions.npz."""
    import torch

    from snn_repro.build import options
    from snn_repro.losses import build_loss
    from snn_repro.trained import load_run
    from snn_repro.trained.anytime import anytime
    from snn_repro.trained.evaluate import running_scores

    folder = Path(run["folder"])
    with np.load(folder / "predictions.npz") as file:
        logits, labels = torch.from_numpy(file["logits"]).transpose(0, 1), file["label"]
    loss = load_run(folder).config.loss
    scores = running_scores(build_loss(loss.name, **options(loss, "name")), logits).numpy()
    test = dict(mean=scores, readout=scores, labels=labels, operations=np.ones(scores.shape[1::-1]))
    rules = anytime(test, None)["rules"]
    return next(
        float(rule["area_steps"]) for rule in rules if (rule["rule"], rule["scores"]) == ("confidence", "readout")
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


# ---------------------------------------------------------------- the report


class Measure(NamedTuple):
    """A number of a run, in percent; margin: the smallest difference that matters, in points."""

    title: str
    margin: float

    def of(self, run: Any, areas: dict[str, float]) -> float | None:
        if self.title in ("step 1", "anytime") and not run.get("causal", True):
            return None
        match self.title:
            case "step 1":
                return 100 * float(run["acc_step"][0])
            case "mean":
                return 100 * fmean(run["acc_step"])
            case "anytime":
                found = areas.get(run["config_hash"])
                return None if found is None else 100 * found
        return 100 * float(run["acc_last"])


MEASURES = [Measure("readout", 0.5), Measure("step 1", 2), Measure("mean", 1), Measure("anytime", 0.5)]
Judged = dict[str, dict[tuple[str, str], Verdict]]  # by measure


def judge(found: Cells, areas: dict[str, float]) -> tuple[list[int], Judged]:
    """(common seeds, verdicts against the baseline); without a baseline or with fewer than two seeds no verdicts."""
    seeds = sorted(set.intersection(*map(set, found.values()))) if found else []
    judged: Judged = {}
    if BASELINE not in found or len(found) < 2 or len(seeds) < 2:
        return seeds, judged
    for m in MEASURES:
        values = {cell: [m.of(runs[seed], areas) for seed in seeds] for cell, runs in found.items()}
        rows = {cell: [v for v in of if v is not None] for cell, of in values.items()}
        rows = {cell: of for cell, of in rows.items() if len(of) == len(seeds)}
        if BASELINE in rows and len(rows) > 1:
            base = rows.pop(BASELINE)
            judged[m.title] = dict(
                zip(rows, verdicts_against_baseline([[base, *rows.values()]], m.margin)[0], strict=True)
            )
    return seeds, judged


def report(results: Path) -> dict[str, str]:
    """`methods_tuned.md` from the collected runs. Raises UserError if there are none."""
    if not (runs := collected(results)):
        raise UserError(f"results/runs/{NAME}.jsonl does not exist; use `study.py {NAME} run`, then `collect`")
    areas, steps = (_read(results / "runs" / NAME / file) for file in ("areas.json", "steps.json"))
    text = [
        "# Methods, each alone, with its own learning rate", "",
        f"Generated by `python scripts/study.py {NAME} report` from the results under `runs/{NAME}`; not edited by hand.", "",
        "**Question.** Does a neuron, initial state, loss, norm or surrogate gradient change accuracy if only this one thing is exchanged,",
        "and each choice has the best of three learning rates? Tuning, measures, margins and rules were fixed before the runs",
        "([design](../docs/studies/methods.md)).", "",
    ]  # fmt: skip
    for name, part in PARTS.items():
        text += _part(name, part, runs, areas, steps.get(name, {}))
    text += [
        "## Commands", "", "```bash",
        *(f"python scripts/study.py {NAME} {rest}" for rest in ("tuning_events tuning_static", "collect", "events static", "collect", "measure", "report")),
        "```", "", "The sweep of the baseline's tuning on events, for example:", "", "```bash",
        shlex.join(next(iter(commands(["tuning_events"], SEEDS)))), "```", "",
    ]  # fmt: skip
    return {f"{NAME}.md": "\n".join(text)}


def _part(
    name: str, part: Part, runs: Sequence[Any], areas: dict[str, float], measured: dict[str, Any]
) -> Iterator[str]:
    """Findings and tables of a part."""
    tuning, found = tuned(name, runs), final(name, runs)
    seeds, judged = judge(found, areas)
    yield f"## {name.capitalize()}\n"
    yield f"Baseline: `neuron={part.base.neuron} loss={part.base.loss}`, batch norm, zero initial state; {part.base.about}."
    if measured:
        yield f"Logistic regression on the same samples: {100 * measured['linear']:.2f} %."
    yield ""
    missing = [said(cell) for cell in part.cells() if cell not in found]
    if part.interim(found, seeds):
        yield f"**Not finished.** Tuned: {len(tuning)} of {len(part.cells())}. Seeds that all choices with runs have: {len(seeds)} of {part.seeds}."
        if missing:
            yield f"Without runs: {', '.join(missing) if found else 'all'}."
        yield "**Verdicts are interim until all seeds are there.**\n" if judged else ""
    if judged:
        yield from _findings(judged)
        yield "Exploratory, added after four seeds on events, where losses that do not train the early steps set the pooled variance. The same"
        yield "without losses:\n"
        yield from _findings(judge({cell: runs for cell, runs in found.items() if cell[0] != "loss"}, areas)[1])
    if found:
        yield "+ better, - worse, = equivalent, ? cannot be said (in brackets the seeds that would decide); 95 % intervals, simultaneous over the choices."
        yield "Learning rate: times the recipe's; * the last of the three tried. Step time: the baseline against itself shows the noise.\n"
    for axis in dict.fromkeys(axis for axis, _ in found):
        rows = [
            _row(part, cell, found, seeds, tuning, judged, measured.get("steps", {}))
            for cell in found
            if cell[0] == axis
        ]
        yield to_markdown(Table(axes()[axis].title if axis else "Baseline", _COLUMNS, rows))
    if tuning:
        columns = [
            Column("choice", "choice"),
            *(Column(rate, f"lr {rate}", "number") for rate in sorted(part.rates(), key=float)),
        ]
        rows = [
            dict(choice=said(cell)) | {rate: f"{acc:.2f}" for rate, acc in of.items()} for cell, of in tuning.items()
        ]
        yield to_markdown(Table(f"Validation accuracy in tuning, %, {len(TUNING_SEEDS)} seeds", columns, rows))


def _findings(judged: Judged) -> Iterator[str]:
    for m in MEASURES:
        if verdicts := judged.get(m.title):
            words = {word: [said(cell) for cell, v in verdicts.items() if v.word == word] for word in SIGNS}
            first = next(iter(verdicts.values())).found
            yield (
                f"- **{m.title}**: better: {', '.join(words['better']) or 'none'}; worse: {', '.join(words['worse']) or 'none'}; "
                f"equivalent within {m.margin:g} points: {', '.join(words['equivalent']) or 'none'}; cannot be said: "
                f"{len(words['cannot be said'])} of {len(verdicts)}. With 80 % power, a difference of "
                f"{methods.detected(first, len(verdicts)):.2f} points is seen."
            )
    yield ""


_COLUMNS = [
    Column("choice", "choice"), Column("lr", "learning rate, x", "number"), Column("acc", "accuracy %", "summary"),
    *(Column(m.title, f"{m.title}, pp", "number") for m in MEASURES),
    Column("synops", "synops per sample, k", "number"), Column("macs", "MACs per sample, k", "number"),
    Column("time", "step time, x baseline", "number"), Column("kept", "kept for backward, MB", "number"),
]  # fmt: skip


def _row(
    part: Part, cell: tuple[str, str], found: Cells, seeds: list[int], tuning: dict[tuple[str, str], dict[str, float]],
    judged: Judged, steps: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    rates = part.rates()
    rate = max(tuning[cell], key=lambda r: tuning[cell][r])
    energy = [found[cell][seed]["energy"] for seed in seeds or found[cell] if found[cell][seed].get("energy")]
    step = steps.get(said(cell), {})
    acc: Summary | None = summary([100 * found[cell][seed]["acc_last"] for seed in seeds]) if seeds else None
    return dict(
        choice=cell[1], lr=f"{float(rate) / float(rates[0]):.2g}" + "*" * (rate != rates[0]), acc=acc,
        **{m.title: _in_sign(judged.get(m.title, {}).get(cell)) for m in MEASURES},
        synops=f"{fmean(e['synops'] for e in energy) / 1e3:.1f}" if energy else None,
        macs=f"{fmean(e['macs'] for e in energy) / 1e3:.1f}" if energy else None,
        time=step.get("step_ratio"), kept=step.get("kept_mb"),
    )  # fmt: skip


def _in_sign(v: Verdict | None) -> str | None:
    if v is None:
        return None
    needed = f" ({v.seeds})" * (v.seeds is not None)
    return f"{difference(v)} {SIGNS[v.word]}{needed}"
