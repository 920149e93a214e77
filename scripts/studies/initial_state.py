"""What an initial membrane potential changes: every initial state with every loss.

The design, with its questions, margins and power, is docs/studies/initial_state.md; this file runs and judges it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import optimize

from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.paper.differences import older_note
from snn_repro.paper.formats import Column, Table, to_markdown
from snn_repro.paper.results import Group, group_runs, load, over_seeds
from snn_repro.paper.statistics import NO_SPREAD, equivalence, holm, paired, pairs_needed, power_to_see, summary
from snn_repro.runs.folder import result_files

if TYPE_CHECKING:
    from snn_repro.trained import TrainedRun

SWEEP_DIR = "runs/initial_state"
SEEDS = 5
# By the design: above this standard deviation, in points, all cells of a loss get MORE_SEEDS more seeds.
SPREAD, MORE_SEEDS = 0.3, 3
ALPHA, POWER = 0.05, 0.8
FIGURES = ("initial_state_steps", "initial_state_effects", "initial_state_learned")

# Initial states and their overrides, in the order of the tables.
STATES: dict[str, tuple[str, ...]] = {
    "zero": (),
    "constant": ("neuron.initial=constant",),
    "random": ("neuron.initial=random",),
    "imp": ("neuron.initial=imp",),
    "imp_channel": ("neuron.initial=imp_channel",),
    "imp_layer": ("neuron.initial=imp_layer",),
    "mp_init": ("neuron.initial=mp_init",),
}
LEARNING: dict[str, tuple[str, ...]] = {
    "imp_frozen": ("neuron.initial=imp", "neuron.imp_trainable=false"),
    "imp_from_zero": ("neuron.initial=imp", "neuron.imp_init=[0,0]"),
}
DEPTH: dict[str, tuple[str, ...]] = {
    f"imp_in_layer_{k}": ("neuron.initial=imp", f"neuron.initial_layers=[{k}]") for k in (1, 2, 3)
}


class Part(NamedTuple):
    """Initial states by losses on one data set, in one recipe. `against`: the pairs (state, other state) to compare."""

    dataset: str
    neuron: str
    losses: tuple[str, ...]
    states: dict[str, tuple[str, ...]]
    overrides: tuple[str, ...]
    about: str
    against: tuple[tuple[str, str], ...]
    model: str = "small"


_TO_ZERO = tuple((state, "zero") for state in STATES if state != "zero")
_LEARNED = tuple(("imp", other) for other in ("constant", "random", "imp_channel", "imp_layer", "mp_init"))
_STATIC = ("recipe.epochs=6",)
_STATIC_SAID = "Fashion-MNIST, all 60,000 training and 10,000 test images, T=4, 6 epochs"
PARTS = {
    "static": Part(
        "fashion_mnist", "if", ("sdt", "tet", "lts"), STATES, _STATIC, _STATIC_SAID, (*_TO_ZERO, *_LEARNED),
    ),
    "events": Part(
        "fashion_mnist_dvs", "lif", ("sdt", "tet", "tet_s"), STATES,
        ("dataset.train_subset=6000", "timesteps=5", "recipe.epochs=5"),
        "6,000 training images and all test images of Fashion-MNIST as events of an emulated camera, T=5, 5 epochs",
        (*_TO_ZERO, *_LEARNED),
    ),
    "learning": Part(
        "fashion_mnist", "if", ("sdt", "lts"), LEARNING, _STATIC, _STATIC_SAID,
        (("imp_frozen", "imp"), ("imp_from_zero", "imp"), ("imp_frozen", "zero"), ("imp_from_zero", "zero")),
    ),
    "depth": Part(
        "fashion_mnist", "if", ("lts",), DEPTH, _STATIC, _STATIC_SAID,
        tuple((state, other) for state in DEPTH for other in ("zero", "imp")),
    ),
    "network": Part(
        "fashion_mnist", "if", ("sdt", "tet", "lts"),
        {state: (STATES | LEARNING)[state] for state in ("zero", "constant", "imp", "imp_frozen")},
        ("model.width=8", "dataset.train_subset=10000", "recipe.epochs=4",
         "recipe.optimizer=adamw", "recipe.lr=0.005", "recipe.weight_decay=0.01", "recipe.batch_size=64",
         "augment.crop_padding=0", "augment.flip=0"),
        "10,000 training images and all test images of Fashion-MNIST, T=4, VGGSNN with an eighth of its widths, 4 epochs of AdamW",
        (("constant", "zero"), ("imp", "zero"), ("imp_frozen", "zero"), ("imp", "constant"), ("imp_frozen", "imp")),
        "vggsnn",
    ),
}  # fmt: skip


class Measure(NamedTuple):
    """A number of one run; `margin`: the smallest difference that matters, in its unit."""

    title: str
    unit: str
    margin: float
    of: Callable[[Any], float | None]

    @property
    def said(self) -> str:
        return f"{self.title}: {self.margin:g} {self.unit if self.margin != 1 else self.unit.rstrip('s')}"


def _soon(run: Any) -> float:
    """The first step whose own output is at most one point worse than the last step's."""
    return next(t for t, acc in enumerate(run["acc_step"], 1) if acc >= run["acc_step"][-1] - 0.01)


def _synops(run: Any) -> float | None:
    return run["energy"]["synops"] / 1e3 if run.get("energy") else None


MEASURES = {
    "readout": Measure("accuracy at the readout", "points", 0.5, lambda run: 100 * run["acc_last"]),
    "first": Measure("accuracy at step 1", "points", 2.0, lambda run: 100 * run["acc_step"][0]),
    "area": Measure("mean accuracy over the steps", "points", 1.0, lambda run: 100 * fmean(run["acc_step"])),
    "soon": Measure("steps to within a point of the last", "steps", 0.5, _soon),
    "synops": Measure("synaptic operations per sample", "thousand", 25.0, _synops),
}


def _margins() -> Table:
    """The margin of each measure."""
    columns = [Column("title", "measure"), Column("unit", "unit"), Column("margin", "margin", "number")]
    return Table("", columns, [m._asdict() | dict(margin=f"{m.margin:g}") for m in MEASURES.values()])


# ---------------------------------------------------------------- what is run


def part_of(name: str, dataset: str | None = None) -> Part:
    """A part by name; on another data set it uses that set's own recipe. Raises UserError for an unknown name."""
    if name not in PARTS:
        raise UserError(f"{name} is no part of this study; choose of: {', '.join(PARTS)}")
    part = PARTS[name]
    if dataset in (None, part.dataset):
        return part
    return part._replace(dataset=dataset, overrides=(), about=f"{dataset}, its own recipe")


def _chosen(names: Sequence[str], more: Sequence[str]) -> tuple[list[Part], list[str]]:
    """The parts, and the overrides that are left."""
    given = [word.removeprefix("dataset=") for word in more if word.startswith("dataset=")]
    rest = [word for word in more if not word.startswith("dataset=")]
    dataset = given[-1] if given else None
    if dataset is not None and dataset not in SETS:
        raise UserError(f"dataset={dataset} does not exist; choose of: {', '.join(SETS)}")
    if not names and dataset is not None:
        same = [name for name, part in PARTS.items() if SETS[part.dataset].static == SETS[dataset].static]
        names = [name for name in same if PARTS[name].model == "small"]
    parts = [part_of(name, dataset) for name in names or PARTS]
    for name, part in zip(names or PARTS, parts, strict=True):
        if SETS[part.dataset].static != SETS[PARTS[name].dataset].static:
            kind = "static images" if SETS[PARTS[name].dataset].static else "events"
            raise UserError(f"dataset={dataset} does not go with the part {name}, which is about {kind}")
    return parts, rest


def commands(names: Sequence[str], seeds: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """The Hydra multiruns, as words: one per part and state; `dataset=` selects the parts that fit it."""
    parts, rest = _chosen(names, more)
    wanted = {loss for word in rest if word.startswith("loss=") for loss in word.removeprefix("loss=").split(",")}
    rest = [word for word in rest if not word.startswith("loss=")]
    if unknown := wanted - {loss for part in parts for loss in part.losses}:
        raise UserError(f"loss={','.join(sorted(unknown))} is in no part of this study that was asked for")
    for part in parts:
        losses = [loss for loss in part.losses if not wanted or loss in wanted]
        if not losses:
            continue
        model = [] if any(word.startswith(("model=", "experiment=")) for word in rest) else [f"model={part.model}"]
        for state in part.states.values():
            yield [
                "python", "-m", "snn_repro.train", "-m", f"dataset={part.dataset}", *model, f"neuron={part.neuron}",
                f"loss={','.join(losses)}", *state, f"seed={','.join(map(str, range(seeds)))}", *part.overrides, *rest,
                "energy=true", "logger.mode=disabled", f"hydra.sweep.dir={SWEEP_DIR}",
            ]  # fmt: skip


def _as_run(groups: Sequence[Group]) -> Iterator[list[str]]:
    """`commands` with the number of seeds that each part and loss was run with; SEEDS where nothing ran."""
    for name, part in PARTS.items():
        of = cells(groups, part.dataset, part.model)
        losses: dict[int, list[str]] = {}
        for loss in part.losses:
            run = [len(of[state, loss].runs) for state in part.states if (state, loss) in of]
            losses.setdefault(max(run, default=SEEDS), []).append(loss)
        for seeds, same in losses.items():
            yield from commands([name], seeds, [f"loss={','.join(same)}"])


def state_of(config: dict[str, Any]) -> str | None:
    """The initial state of a run's configuration; None if it is not part of this study."""
    neuron = config["neuron"]
    initial = "imp" if neuron.get("imp") else neuron.get("initial", "zero")
    if initial == "imp":
        if layers := neuron.get("initial_layers"):
            return f"imp_in_layer_{layers[0]}" if len(layers) == 1 else None
        if not neuron.get("imp_trainable", True):
            return "imp_frozen"
        if list(neuron.get("imp_init") or ()) == [0, 0]:
            return "imp_from_zero"
    return initial if initial in STATES else None


# ---------------------------------------------------------------- what is measured from the trained networks

MEASURED = "measured.json"
LONGEST = 8  # time steps at test
EXITS = tuple(percent / 100 for percent in range(50, 100))  # confidences at which a reader might stop


def measure(results: Path) -> None:
    """Write results/runs/initial_state/measured.json from the checkpoints under SWEEP_DIR.

    For each data set: accuracy of logistic regression. For each network: early exit, and the distribution of learned
    potentials; for static images also accuracy with 8 steps; with IMP also accuracy with the learned potentials shuffled within
    a layer, averaged per channel or layer, reset to their start, or zero. Entries of these runs, and of networks without a
    checkpoint here, are kept.
    """
    from snn_repro.runs.folder import find_results
    from studies.methods import linear_baseline

    root = Path(SWEEP_DIR)
    if not root.is_dir():
        raise UserError(f"{root} does not exist; run `python scripts/study.py initial_state run` here first")
    folder = results / "runs" / "initial_state"
    folder.mkdir(parents=True, exist_ok=True)
    found = _measured(results)
    networks, linear = {_of_network(entry): entry for entry in found["networks"]}, found["linear"]
    runs = [
        (result, state) for result in find_results(root)
        if result["model"] == "small" and (state := state_of(result["config"])) is not None
    ]  # fmt: skip

    def write() -> None:
        lines = ",\n".join(json.dumps(networks[key]) for key in sorted(networks))
        write_text(folder / MEASURED, f'{{"linear": {json.dumps(linear)}, "networks": [\n{lines}\n]}}\n')

    configs = {result["dataset"]: result["config"] for result, _ in runs}
    for part in PARTS.values():
        if part.dataset not in linear and (config := configs.get(part.dataset)):
            where = [
                f"{key}={config[key]}" for key in ("data_dir", "cache_dir") if config.get(key)
            ]  # as the runs read them
            linear[part.dataset] = round(linear_baseline(part.dataset, [*part.overrides, *where]), 5)
    tests: dict[str, list[Any]] = {}
    for result, state in runs:
        entry = networks.get((result["dataset"], result["loss"], state, result["seed"]), {})
        if (entry.get("code"), entry.get("acc")) == (result["code"], result["acc_last"]):
            continue  # this run was measured before
        entry = _probe(Path(result["folder"]), state, tests)
        networks[_of_network(entry)] = entry
        write()  # a stopped measurement goes on from here
    write()


def _of_network(entry: dict[str, Any]) -> tuple[str, str, str, int]:
    return entry["dataset"], entry["loss"], entry["state"], entry["seed"]


def _measured(results: Path) -> dict[str, Any]:
    """The content of measured.json: linear (accuracy by data set) and networks (a list); empty if there is no file."""
    path = results / "runs" / "initial_state" / MEASURED
    return json.loads(path.read_text("utf-8")) if path.exists() else {"linear": {}, "networks": []}


def _probe(folder: Path, state: str, tests: dict[str, list[Any]]) -> dict[str, Any]:
    """One network's entry of `measure`. tests: cache of test batches, by the data they belong to."""
    import torch

    from snn_repro.build import options
    from snn_repro.data import build_data
    from snn_repro.losses import build_loss
    from snn_repro.metrics import count_correct
    from snn_repro.neurons import initial_states
    from snn_repro.trained import load_run
    from snn_repro.trained.evaluate import early_exit, running_scores, tested_network

    run = load_run(folder)
    config, result = run.config, run.result
    assert result is not None
    entry = dict(
        dataset=config.dataset.name,
        loss=config.loss.name,
        state=state,
        seed=config.seed,
        neuron=config.neuron.name,
        model=config.model.name,
        code=result["code"],
        acc=result["acc_last"],
    )
    loss = build_loss(config.loss.name, **options(config.loss, "name"))
    data = json.dumps(
        [result["data"], result["config"]["dataset"], result["split_id"], result["timesteps"]], sort_keys=True
    )
    if data not in tests:
        tests[data] = list(build_data(config).test.epoch(0))
    batches = tests[data]
    target = torch.cat([y for _, y in batches])
    learned = initial_states(run.model)

    def outputs(model: Any = run.model) -> Any:
        with torch.inference_mode():
            return torch.cat([model(x).float() for x, _ in batches], dim=1)

    def accuracies(scores: Any) -> list[float]:
        return [round(int(count_correct(of_step, target)) / len(target), 5) for of_step in scores]

    stop = cheapest(early_exit(running_scores(loss, outputs()), target, EXITS))
    entry["exit"] = stop | _cost(run, batches[0][0], stop["exits"])
    if SETS[config.dataset.name].static:
        longer = outputs(tested_network(run, replace(config, timesteps=LONGEST)))
        entry["longer"] = dict(acc_step=accuracies(longer), acc_readout=accuracies(running_scores(loss, longer)))
    if learned and state in ("imp", "imp_from_zero"):
        entry |= dict(layers={
            name.rpartition(".")[0]: np.percentile(p.detach().double().numpy(), range(0, 101, 5)).round(4).tolist()
            for name, p in learned.items()
        })  # fmt: skip
    if learned and state == "imp":
        values = {name: p.detach().clone() for name, p in learned.items()}
        starts = starts_of(run)
        generator = torch.Generator().manual_seed(config.seed)
        changes: dict[str, Callable[[str, Any], Any]] = {
            "as learned": lambda name, v: v,
            "shuffled in its layer": lambda name, v: v.flatten()[
                torch.randperm(v.numel(), generator=generator)
            ].view_as(v),
            "mean of its channel": lambda name, v: v.mean((1, 2), keepdim=True).expand_as(v),
            "mean of its layer": lambda name, v: v.mean().expand_as(v),
            "back at its start": lambda name, v: starts[name].detach(),
            "zero": lambda name, v: torch.zeros_like(v),
        }
        entry["changed"] = {}
        for what, change in changes.items():
            for name, p in learned.items():
                p.data = change(name, values[name]).contiguous()
            logits = outputs()
            entry["changed"][what] = dict(acc_step=accuracies(logits), acc=accuracies([loss.readout(logits)])[0])
    return entry


def _cost(run: TrainedRun, x: Any, exits: Sequence[float]) -> dict[str, float]:
    """Energy per sample in nJ (`energy_report`) on the test batch x: with early exit, and of all T steps.

    exits: shares of samples that stop at steps 1..T.
    """
    from snn_repro.energy import energy_report
    from snn_repro.trained.evaluate import tested_network

    static = SETS[run.config.dataset.name].static
    used = [
        energy_report(tested_network(run, replace(run.config, timesteps=t)), x if static else x[:t])["energy_pj"] / 1e3
        for t in range(1, len(exits) + 1)
    ]
    return dict(energy=round(fsum(map(float.__mul__, exits, used)), 2), energy_all=round(used[-1], 2))


def starts_of(run: TrainedRun) -> dict[str, Any]:
    """The initial potentials before training, by name, drawn again from the run's seed."""
    from snn_repro.build import build_network
    from snn_repro.neurons import initial_states
    from snn_repro.runtime import seed_everything

    seed_everything(run.config)
    return initial_states(build_network(run.config, run.num_classes, run.input_shape))


def cheapest(exits: Sequence[dict[str, Any]], lost: float = 0.01) -> dict[str, Any]:
    """Of `trained.evaluate.early_exit`, the threshold with the fewest steps that loses at most `lost` in accuracy.

    Returns threshold (null: all steps), steps (mean), exits (shares of samples that stop at each step), acc, and acc_all of all
    steps.
    """
    everything = exits[-1]["acc"]
    best = min((e for e in exits if e["acc"] >= everything - lost), key=lambda e: e["mean_steps"])
    return dict(
        threshold=best["threshold"], steps=round(best["mean_steps"], 3), exits=[round(share, 4) for share in best["exits"]],
        acc=round(best["acc"], 4), acc_all=round(everything, 4),
    )  # fmt: skip


# ---------------------------------------------------------------- how it is judged

RULE = f"""\
Fixed before any run of the study (docs/studies/initial_state.md, whose pilot used other seeds):

- Differences are paired over seeds: both sides of a pair have the same initial weights and data order. Accuracy is on the test set after
  the last epoch; the test set chooses no epoch.
- A difference is **seen** if Holm's p of the paired t-test is below {ALPHA}. A difference as large as the margin is **excluded** if Holm's p
  of two one-sided tests against the margin is below {ALPHA}. Both are adjusted over all comparisons of a part and measure.
- **+** or **-**: a difference is seen, and one as large as the margin is not excluded.
- **none above the margin**: a difference as large as the margin is excluded. A smaller one that is seen is given in brackets.
- **cannot be said**: neither. The difference that these seeds would have detected with a power of {POWER:.0%} is given in brackets.

Seeds beyond those that the design asks for are run where the first ones did not decide. A verdict is **exploratory** (†) if the first
{SEEDS + MORE_SEEDS} seeds alone give another one.

The margin is the smallest difference that matters:

{to_markdown(_margins())}
"""


class Comparison(NamedTuple):
    """One initial state compared with another by one measure; differences are state minus other, in the measure's unit."""

    part: str
    loss: str
    state: str
    other: str
    measure: str
    n: int
    mean: float
    low: float
    high: float
    sd: float
    p: float  # Holm's, that there is no difference
    p_margin: float  # Holm's, that it is as large as the margin
    exploratory: bool = False  # the seeds of the design alone do not give this verdict

    @property
    def kind(self) -> str:
        """more | less | none | unknown | too few seeds."""
        if self.n < SEEDS:
            return "too few seeds"
        if self.p_margin < ALPHA:
            return "none"
        if self.p < ALPHA:
            return "more" if self.mean > 0 else "less"
        return "unknown"

    @property
    def verdict(self) -> str:
        if self.kind == "none":
            notes = [f"{self.mean:+.2f} is seen"] * (self.p < ALPHA) + ["exploratory"] * self.exploratory
            return f"none above {MEASURES[self.measure].margin:g}" + f" ({'; '.join(notes)})" * bool(notes)
        if self.kind == "unknown":
            return f"cannot be said (seen from {visible_effect(self.sd, self.n, POWER, ALPHA):.2f} on)"
        return {"more": "**+**", "less": "**-**"}.get(self.kind, self.kind) + " (exploratory)" * self.exploratory

    @property
    def mark(self) -> str:
        """The verdict as one sign."""
        return _MARKS[self.kind] + "†" * self.exploratory


def visible_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest mean difference that n pairs detect with this power, given the sd of their differences."""
    if sd <= NO_SPREAD:
        return 0.0
    high = sd / n**0.5
    while power_to_see(high, sd, n, alpha) < power:
        high *= 1.5
    return float(optimize.brentq(lambda effect: power_to_see(effect, sd, n, alpha) - power, 0, high))


Cells = dict[tuple[str, str], Group]  # (state, loss)


def cells(groups: Sequence[Group], dataset: str, model: str = "small") -> Cells:
    """The runs of a network on a data set by state and loss. Raises UserError if two configurations share a cell."""
    found: Cells = {}
    for group in groups:
        where = group.first["dataset"], group.first["model"]
        if where == (dataset, model) and (state := state_of(group.first["config"])):
            if (state, group.first["loss"]) in found:
                raise UserError(
                    f"{dataset} has two configurations of {state} with {group.first['loss']}; keep one's runs"
                )
            found[state, group.first["loss"]] = group
    return found


def compare(name: str, part: Part, of: Cells, seeds: int | None = None) -> list[Comparison]:
    """Every comparison of a part by every measure, if both sides have two shared seeds; `seeds`: use only the first ones."""
    found: list[Comparison] = []
    for key, measure_ in MEASURES.items():
        family = []
        for loss in part.losses:
            for state, other in part.against:
                a, b = of.get((other, loss)), of.get((state, loss))
                if a is None or b is None:
                    continue
                x, y = (values[:seeds] for values in over_seeds([a, b], measure_.of)[1])
                if len(x) < 2 or None in x or None in y:
                    continue
                test, margin = paired(x, y), equivalence(x, y, measure_.margin)
                assert test.p is not None and margin is not None
                family.append(Comparison(
                    name, loss, state, other, key, len(x), test.mean, test.low or 0.0, test.high or 0.0, test.sd or 0.0,
                    test.p, margin,
                ))  # fmt: skip
        adjusted = holm([c.p for c in family]), holm([c.p_margin for c in family])
        found += [c._replace(p=p, p_margin=q) for c, p, q in zip(family, *adjusted, strict=True)]
    if seeds is None and any(c.n > SEEDS + MORE_SEEDS for c in found):
        first = {c[:5]: c.kind for c in compare(name, part, of, SEEDS + MORE_SEEDS)}
        decided = ("more", "less", "none")
        found = [c._replace(exploratory=c.kind in decided and first.get(c[:5]) != c.kind) for c in found]
    return found


# ---------------------------------------------------------------- the report


def ran(groups: Sequence[Group]) -> dict[str, Part]:
    """The parts with runs, by key of their title: on the part's data set, and on others of the same kind."""
    found = {}
    for name, part in PARTS.items():
        there = {g.first["dataset"] for g in groups if g.first["dataset"] in SETS}
        for dataset in (part.dataset, *sorted(there - {part.dataset})):
            if SETS[dataset].static == SETS[part.dataset].static and dataset in there:
                mine = part_of(name, dataset)
                if any(s in mine.states and loss in mine.losses for s, loss in cells(groups, dataset, mine.model)):
                    found[name if dataset == part.dataset else f"{name}, {dataset}"] = mine
    return found


def collected(results: Path) -> tuple[list[Group], list[str]]:
    """The committed runs. Raises UserError if there are none."""
    folder = results / "runs" / "initial_state"
    if not result_files(folder):
        raise UserError(f"{folder} holds no run; run `python scripts/study.py initial_state run`, then `... collect`")
    return group_runs(load([folder]))


def probes(results: Path) -> list[dict[str, Any]]:
    """The networks in measured.json; [] if there is no file."""
    return _measured(results)["networks"]


def report(results: Path) -> dict[str, str]:
    """`{"initial_state.md": ...}` from the collected runs and measured.json."""
    groups, notes = collected(results)
    measured, linear = probes(results), _measured(results)["linear"]
    judged: dict[str, list[Comparison]] = {}
    text = [
        "# What an initial membrane potential changes\n",
        "Generated by `python scripts/study.py initial_state report` from the results under `runs/initial_state`; not edited by hand.",
        "",
    ]  # fmt: skip
    body, not_run, parts = [], [], ran(groups)
    if PARTS.keys() & parts.keys():  # else it is about other data sets alone
        parts = PARTS | parts
    for name, part in parts.items():
        of = cells(groups, part.dataset, part.model)
        mine = {key: g for key, g in of.items() if key[0] in part.states and key[1] in part.losses}
        for loss in part.losses:
            if lacking := [state for state in part.states if (state, loss) not in mine]:
                not_run.append(f"{name}, {loss}: {', '.join(lacking)}")
        if not mine:
            continue
        judged[name] = compare(name, part, of)
        about = f"{part.about}; `neuron={part.neuron}`."
        if part.dataset in linear:
            about += f" Logistic regression on the same samples: {100 * linear[part.dataset]:.2f} %."
        body += [f"## {_title(name)}\n", about + "\n"]
        body.append(to_markdown(_means(part, mine)))
        body += [to_markdown(table) for table in _differences(judged[name], part)]
    text += [*_summary(judged, parts), "## How a verdict is reached\n", RULE]
    glances = [to_markdown(_glance(name, judged[name])) for name in judged if judged[name]]
    text += ["## At a glance\n", *glances] if glances else []
    text += [to_markdown(_both(judged))] if judged.get("network") else []
    verdicts = [to_markdown(_by_verdict(name, judged[name])) for name in judged if judged[name]]
    text += ["## What holds, what does not, and what cannot be said\n", *verdicts, *body]
    text += [f"![{name}](figures/{name}.svg)\n" for name in FIGURES if (results / "figures" / f"{name}.svg").exists()]
    text += [*map(to_markdown, _probed(measured)), "## What it costs\n", to_markdown(_price(groups, results))]
    text += ["## Seeds\n", to_markdown(_seeds(judged, groups))] if any(judged.values()) else []
    remarks = [*notes, *filter(None, [older_note([r for g in groups for r in g.runs])])]
    not_run += _cut_seeds(judged, groups)
    text += ["## What was not run\n", *(f"- {line}" for line in not_run), ""] if not_run else []
    text += [*(f"- {note}" for note in remarks), ""] if remarks else []
    own = [shlex.join(words) for words in _as_run(groups)] if PARTS.keys() & parts.keys() else []
    others = dict.fromkeys(p.dataset for name, p in parts.items() if name not in PARTS)
    text += [
        "## Commands\n", "```bash", *own, *(f"python scripts/study.py initial_state run dataset={d}" for d in others),
        *(f"python scripts/study.py initial_state {action}" for action in ("collect", "measure", "report")), "```\n",
    ]  # fmt: skip
    return {"initial_state.md": "\n".join(text)}


_TITLES = {
    "static": "Static images",
    "events": "Events",
    "learning": "Values or learning",
    "depth": "IMP in one layer",
    "network": "A second network",
}


def _price(groups: Sequence[Group], results: Path) -> Table:
    """Cost of each state in the network of static images; time and memory from `results/methods.md`."""
    from studies import methods

    path = results / "runs" / "methods" / methods.MEASURED
    steps = json.loads(path.read_text("utf-8")) if path.exists() else {}
    dataset = next(
        (part.dataset for part in ran(groups).values() if SETS[part.dataset].static), PARTS["static"].dataset
    )
    timed = steps.get(dataset, {}).get("steps", {})
    found: dict[str, Group] = {}
    for (state, _), group in cells(groups, dataset).items():
        found.setdefault(state, group)
    neurons, layers = (found[s].first["params_imp"] if s in found else None for s in ("imp", "imp_layer"))
    kept = timed.get("baseline", {}).get("kept_mb")
    rows = []
    for state in STATES:
        if state not in found:
            continue
        of = timed.get("baseline" if state == "zero" else f"initial={state}")
        learned = found[state].first["params_imp"]
        reads = {"random": neurons, "mp_init": layers}.get(state, learned)  # a random one is drawn, not stored
        rows.append(dict(
            state=state, learned=f"{learned:,}", bytes=f"{4 * learned:,}", reads=None if reads is None else f"{reads:,}",
            time=of and f"{of['step_ratio']:.2f}",
            memory=f"{of['kept_mb'] - kept:+.2f}" if of and kept is not None else None,
        ))  # fmt: skip
    columns = [
        Column("state", "initial state"), Column("learned", "learned numbers", "number"), Column("bytes", "bytes, float32", "number"),
        Column("reads", "numbers read or drawn per sample", "number"), Column("time", "training step, x zero", "number"),
        Column("memory", "memory kept for the backward pass, MB", "number"),
    ]  # fmt: skip
    said = [
        "the network of the static part; values are read or drawn once, before step 1; zero and constant are part of the program; "
        "time and memory: `results/methods.md`, batch of 64, a CPU",
    ]  # fmt: skip
    return Table("", columns, rows, said)


def _seeds(judged: dict[str, list[Comparison]], groups: Sequence[Group]) -> Table:
    """By part and loss: largest sd of a readout difference over the first SEEDS seeds, seeds due, and detectable differences."""
    rows, parts = [], ran(groups)
    for name, comparisons in judged.items():
        part = parts[name]
        first = compare(name, part, cells(groups, part.dataset, part.model), seeds=SEEDS)
        for loss in dict.fromkeys(c.loss for c in comparisons):
            spread = [c for c in first if (c.loss, c.measure) == (loss, "readout") and c.n >= SEEDS]
            if spread:
                most = max(spread, key=lambda c: c.sd)
                mine = [c.n for c in comparisons if c.loss == loss]
                fewest, asked = min(mine), SEEDS + MORE_SEEDS * (most.sd > SPREAD)
                rows.append(dict(
                    part=name, loss=loss, sd=f"{most.sd:.2f}", of=f"{most.state} - {most.other}",
                    asked=asked, fewest=fewest, n=f"{fewest} to {max(mine)}" if len({*mine}) > 1 else fewest,
                    seen=f"{visible_effect(most.sd, fewest, POWER, ALPHA):.2f}",
                    seen_asked=f"{visible_effect(most.sd, max(asked, fewest), POWER, ALPHA):.2f}",
                    excluded=pairs_needed(MEASURES["readout"].margin, most.sd, POWER, ALPHA, exclude=True),
                ))  # fmt: skip
    columns = [
        Column("part", "part"), Column("loss", "loss"), Column("sd", "largest sd of a difference, points", "number"), Column("of", "of"),
        Column("asked", "seeds that the design asks for", "number"), Column("n", "seeds run", "number"),
        Column("seen", "these would see, points", "number"), Column("seen_asked", "those asked for would see", "number"),
        Column("excluded", f"seeds to exclude {MEASURES['readout'].margin:g} points", "number"),
    ]  # fmt: skip
    said = f"sd: of the readout's differences over the first {SEEDS} seeds; above {SPREAD} points the design asks for {MORE_SEEDS} more seeds"
    power = f"would see, and exclude: with a power of {POWER:.0%}, for a single comparison at that sd; Holm's correction needs more seeds"
    return Table("", columns, rows, [said, power])


def _cut_seeds(judged: dict[str, list[Comparison]], groups: Sequence[Group]) -> list[str]:
    """A line for each part and loss with fewer seeds than the design asks for."""
    return [
        f"{row['part']}, {row['loss']}: the {MORE_SEEDS} more seeds that the design asks for. Differences of the readout between"
        f" {row['seen_asked']} and {row['seen']} points are not seen without them"
        for row in _seeds(judged, groups).rows
        if row["fewest"] < row["asked"]
    ]


def _title(name: str) -> str:
    """The heading of a part, from its key in `ran`."""
    part, _, dataset = name.partition(", ")
    return f"{_TITLES[part]}: {dataset}" if dataset else _TITLES[part]


def _means(part: Part, of: Cells) -> Table:
    columns = [
        Column("loss", "loss"), Column("state", "initial state"), Column("n", "seeds", "number"),
        Column("readout", "readout %", "summary"), Column("steps", "at t=1..T %", "steps"), Column("area", "mean of steps %", "summary"),
        Column("soon", "steps to within 1 point", "number"), Column("synops", "synops, k", "number"),
        Column("imp", "learned potentials", "number"),
    ]  # fmt: skip
    rows = []
    for loss in part.losses:
        for state in part.states:
            if group := of.get((state, loss)):
                synops = [v for run in group.runs if (v := _synops(run)) is not None]
                rows.append(dict(
                    loss=loss, state=state, n=len(group.runs), readout=group.last, steps=group.steps(),
                    area=summary([100 * fmean(run["acc_step"]) for run in group.runs]),
                    soon=fmean(map(_soon, group.runs)), synops=fmean(synops) if synops else None,
                    imp=f"{group.first['params_imp']:,}",
                ))  # fmt: skip
    said = "mean ± sample standard deviation over seeds; at t: output of that step alone; constant: 0.5, half of the threshold"
    return Table("", columns, rows, [said])


_MARKS = {"more": "+", "less": "-", "none": "=", "unknown": "?", "too few seeds": "seeds"}
_SIGNS = "+ or - seen; = none above the margin; ? cannot be said; seeds: too few seeds; † exploratory"


def _glance(name: str, judged: Sequence[Comparison]) -> Table:
    """Differences in accuracy from zero by loss and state, each with its verdict as one sign."""
    shown = ("readout", "first", "area")
    found = {(c.loss, c.state, c.measure): c for c in judged if c.other == "zero"}
    rows = [
        dict(loss=loss, state=state) | {
            key: f"{c.mean:+.1f} {c.mark}" for key in shown if (c := found.get((loss, state, key)))
        }
        for loss, state in dict.fromkeys((c.loss, c.state) for c in judged if c.other == "zero")
    ]  # fmt: skip
    columns = [Column("loss", "loss"), Column("state", "initial state, against zero")]
    columns += [Column(key, f"{MEASURES[key].title}, {MEASURES[key].unit}", "number") for key in shown]
    return Table(_title(name), columns, rows, [f"mean difference and verdict: {_SIGNS}"])


def _both(judged: dict[str, list[Comparison]]) -> Table:
    """Differences at step 1 in both networks; the finding holds if every non-zero start is higher than zero and IMP not higher than constant."""
    pairs = [pair for pair in PARTS["network"].against if pair[0] != "imp_frozen" or pair[1] == "zero"]
    small, second = (
        {(c.loss, c.state, c.other): c for name in names for c in judged.get(name, ()) if c.measure == "first"}
        for names in (("learning", "static"), ("network",))
    )
    rows = []
    for loss in PARTS["network"].losses:
        of = {pair: [found.get((loss, *pair)) for found in (small, second)] for pair in pairs}
        there = [(pair, c) for pair, both in of.items() for c in both if c]
        enough = [(pair, c) for pair, c in there if c.n >= SEEDS]
        if any((c.kind == "more") != (pair[1] == "zero") for pair, c in enough):
            said = "not shown"
        elif len(enough) < len(there):
            said = "too few seeds"
        else:
            said = "yes" if len(there) == 2 * len(pairs) else "a part was not run"
        for pair, both in of.items():
            first, other = (f"{c.mean:+.1f} {c.mark}" if c else None for c in both)
            rows.append(dict(loss=loss, what=" - ".join(pair), small=first, second=other, holds=said))
    columns = [
        Column("loss", "loss"), Column("what", "difference at step 1, points"), Column("small", "small", "number"),
        Column("second", "second network", "number"), Column("holds", "finding holds in both"),
    ]  # fmt: skip
    finding = "the finding: constant, IMP and frozen IMP are +, and IMP is not + against constant"
    return Table("Both networks", columns, rows, [f"{_SIGNS}; {finding}"])


def _differences(judged: Sequence[Comparison], part: Part) -> list[Table]:
    columns = [
        Column("loss", "loss"), Column("what", "state"), Column("other", "against"),
        Column("difference", "difference", "number"), Column("interval", "95 % interval", "number"),
        Column("p", "Holm's p", "number"), Column("q", "Holm's p, margin", "number"), Column("verdict", "difference?"),
    ]  # fmt: skip
    tables = []
    for key, measure_ in MEASURES.items():
        rows = [
            dict(
                loss=c.loss, what=c.state, other=c.other, difference=f"{c.mean:+.2f}", interval=f"{c.low:+.2f} .. {c.high:+.2f}",
                p=_p(c.p), q=_p(c.p_margin), verdict=c.verdict,
            )
            for c in judged
            if c.measure == key
        ]  # fmt: skip
        if rows:
            tables.append(Table(f"{measure_.title}, {measure_.unit}; margin {measure_.margin:g}", columns, rows))
    return tables


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


_KINDS = {
    "more": "higher",
    "less": "lower",
    "none": "no difference above {margin}",
    "unknown": "cannot be said",
    "too few seeds": "too few seeds",
}


def _by_verdict(name: str, judged: Sequence[Comparison]) -> Table:
    """The states by verdict, a row for each measure and other state."""
    rows = []
    for key, other in dict.fromkeys((c.measure, c.other) for c in judged):
        row = dict(measure=f"{MEASURES[key].title}, {MEASURES[key].unit}", other=other)
        for c in judged:
            if (c.measure, c.other) == (key, other):
                cell = f"{c.state} ({c.loss.upper().replace('_', '-')}, {c.mean:+.1f}){'†' * c.exploratory}"
                row[c.kind] = f"{row[c.kind]}, {cell}" if c.kind in row else cell
        rows.append(row)
    kinds = [
        Column(kind, words.format(margin="the margin"))
        for kind, words in _KINDS.items()
        if any(kind in r for r in rows)
    ]
    said = "in brackets: loss, and mean difference (state minus the one it is compared with); † exploratory"
    return Table(_title(name), [Column("measure", "measure"), Column("other", "against"), *kinds], rows, [said])


# The comparisons of the summary: (state, the state it is compared with), each with its words.
_HEADLINES = {
    ("imp", "zero"): "IMP - zero",
    ("imp", "constant"): "IMP - constant 0.5",
    ("imp_frozen", "imp"): "IMP frozen at its start - IMP",
}
_ACCURACIES = ("readout", "first", "area")


def _summary(judged: dict[str, list[Comparison]], parts: dict[str, Part]) -> Iterator[str]:
    """Question, design, findings with differences and intervals, and what is not known."""
    accuracy = [c for comparisons in judged.values() for c in comparisons if c.measure in _ACCURACIES]
    mine = {pair: [c for c in accuracy if (c.state, c.other) == pair] for pair in _HEADLINES}
    yield "## Summary\n"
    yield "**Question.** What does an initial membrane potential other than zero change, at which time step and under which loss, and must it be"
    yield "learned?\n"
    second = "; `network` is a second one" if "network" in judged else ""
    yield f"**Design.** One small network (36,000 weights{second}) is trained with every initial state and loss, on two CPU cores. Differences are paired"
    yield f"over {', '.join(map(str, sorted({c.n for c in accuracy})))} seeds. The margins were fixed before ([design](../docs/studies/initial_state.md)).\n"
    for about in dict.fromkeys(parts[name].about for name in judged):
        yield f"- {', '.join(name for name in judged if parts[name].about == about)}: {about}"
    yield "\n**Findings.**\n"
    for key in _ACCURACIES:
        if those := [c for c in mine["imp", "zero"] if c.measure == key]:
            yield f"- {MEASURES[key].title.capitalize()}, IMP (learned) against zero: {_in_words(those, MEASURES[key])}."
    for pair in list(_HEADLINES)[1:]:
        if mine[pair]:
            seen = sum(c.p < ALPHA and c.n >= SEEDS for c in mine[pair])
            small = sum(c.kind == "none" for c in mine[pair])
            late = f"; {n} of these verdicts are exploratory" if (n := sum(c.exploratory for c in mine[pair])) else ""
            yield f"- {_HEADLINES[pair]}: of {len(mine[pair])} differences in accuracy, {seen} are seen; {small} are below the margin{late}."
    if judged.get("network"):
        of = {row["loss"].upper(): row["holds"] for row in _both(judged).rows}
        words_ = (
            f"{said} with {', '.join(loss for loss in of if of[loss] == said)}" for said in dict.fromkeys(of.values())
        )
        yield f"- In both networks every start above zero is higher at step 1, and IMP not higher than constant: {'; '.join(words_)}."
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for pair, words in _HEADLINES.items():
        for c in mine[pair]:
            row = rows.setdefault((*pair, c.part, c.loss), dict(what=words, part=c.part, loss=c.loss))
            row[c.measure] = f"{c.mean:+.2f} ({c.low:+.2f} .. {c.high:+.2f}) {c.mark}"
    if rows:
        columns = [Column("what", "difference, points"), Column("part", "part"), Column("loss", "loss")]
        columns += [Column(key, MEASURES[key].title, "number") for key in _ACCURACIES]
        yield "\n" + to_markdown(Table("", columns, list(rows.values()), [f"95 % interval in brackets; {_SIGNS}"]))
    unknown = sum(c.kind in ("unknown", "too few seeds") for c in accuracy)
    others = "D" if "network" in judged else "Other networks, d"
    yield f"**Not known.** {unknown} of all {len(accuracy)} comparisons of accuracy cannot be decided with these seeds. {others}ata sets of the"
    yield "paper's size and longer training were not studied. The events are emulated from images.\n"


def _in_words(comparisons: Sequence[Comparison], measure: Measure) -> str:
    """Which differences are seen, excluded or open, each by its loss and part."""
    found: dict[str, list[str]] = {}
    for c in comparisons:
        found.setdefault(c.kind, []).append(
            f"{c.loss.upper().replace('_', '-')} ({c.part}{', exploratory' * c.exploratory})"
        )
    margin = f"{measure.margin:g} {measure.unit if measure.margin != 1 else 'point'}"
    return "; ".join(f"{w.format(margin=margin)} with {', '.join(found[k])}" for k, w in _KINDS.items() if k in found)


def _by_cell(measured: Sequence[dict[str, Any]], key: str) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in measured:
        if key in entry:
            found.setdefault((entry["dataset"], entry["loss"], entry["state"]), []).append(entry)
    return found


def _probed(measured: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Tables of the measurements of trained networks (measured.json)."""
    head = [
        Column("dataset", "data set"),
        Column("loss", "loss"),
        Column("state", "initial state"),
        Column("n", "seeds", "number"),
    ]

    def row(key: tuple[str, str, str], entries: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(("dataset", "loss", "state"), key, strict=True), n=len(entries))

    rows = [
        row(key, entries) | dict(
            what=what, acc=summary([100 * e["changed"][what]["acc"] for e in entries]),
            first=summary([100 * e["changed"][what]["acc_step"][0] for e in entries]),
        )
        for key, entries in _by_cell(measured, "changed").items()
        for what in entries[0]["changed"]
    ]  # fmt: skip
    if rows:
        columns = [*head, Column("what", "learned potentials"), Column("acc", "readout %", "summary"), Column("first", "at step 1 %", "summary")]  # fmt: skip
        yield Table("Learned potentials changed after training, without retraining", columns, rows)
    rows = [
        row(key, entries) | dict(acc=[100 * fmean(e["longer"]["acc_readout"][t] for e in entries) for t in range(LONGEST)])
        for key, entries in _by_cell(measured, "longer").items()
    ]  # fmt: skip
    if rows:
        said = "accuracy at the readout when tested with t steps; trained with T=4"
        yield Table("Other T at test time", [*head, Column("acc", f"T=1..{LONGEST} %", "steps")], rows, [said])
    rows = [
        row(key, entries) | dict(
            steps=summary([e["exit"]["steps"] for e in entries]), acc=summary([100 * e["exit"]["acc"] for e in entries]),
            all=summary([100 * e["exit"]["acc_all"] for e in entries]),
            energy=f"{fmean(e['exit']['energy'] for e in entries):.0f}", energy_all=f"{fmean(e['exit']['energy_all'] for e in entries):.0f}",
        )
        for key, entries in _by_cell(measured, "exit").items()
    ]  # fmt: skip
    if rows:
        columns = [*head, Column("steps", "mean steps", "summary"), Column("acc", "accuracy %", "summary"), Column("all", "with all steps %", "summary"), Column("energy", "energy, nJ", "number"), Column("energy_all", "with all steps, nJ", "number")]  # fmt: skip
        said = (
            "a sample stops when the confidence of the readout reaches a threshold: the one with the fewest steps that loses at most "
            "a point of accuracy (chosen on the test set: optimistic); energy: per sample, as `snn_repro/energy.py` counts it"
        )
        yield Table("Early exit", columns, rows, [said])
