"""Sections of the report: runs, curves, the paper's tables, firing rates, learned IMP."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from snn_repro.config import ADDED, config_hash, hashed
from snn_repro.neurons import initial_states
from snn_repro.paper.differences import WHAT_A_METHOD_CHANGES, debug_keys, described, remarks
from snn_repro.paper.results import data_id
from snn_repro.paper.rows import SHARED, load_rows
from snn_repro.paper.statistics import summary
from snn_repro.paper.tables import TITLES, paper_table, runs_table
from snn_repro.report._page import Chart, NothingToShow, Section, register_section, table, text
from snn_repro.report._read import Found, Row, Run

# ---------------------------------------------------------------- runs

# key, header, kind: text | number | percent
COLUMNS = [
    ("acc", "readout %", "percent"), ("first", "step 1 %", "percent"), ("final", "step T %", "percent"),
    ("seeds", "seeds", "number"), ("dataset", "data set", "text"), ("model", "model", "text"),
    ("neuron", "neuron", "text"), ("initial", "initial state", "text"), ("loss", "loss", "text"), ("T", "T", "number"),
    ("best", "best on test* %", "percent"), ("valsel", "by validation %", "percent"), ("epochs", "epochs", "number"),
    ("params", "weights + IMP", "number"), ("energy", "energy µJ", "number"), ("state", "state", "text"),
]  # fmt: skip
FACETS = ("dataset", "model", "neuron", "initial", "loss", "T", "state")


@register_section("runs", "Runs", 2)
def runs(found: Found) -> Section:
    """Test accuracy in percent, mean ± standard deviation over seeds, one line per row.

    Select rows or runs to show them in the charts. Settings that the row's name does not say are below it.
    """
    flats = [_flat(row) for row in found.rows]
    keys = (config_hash(row.config | {"seed": row.config["name"]})[:8] for row in found.rows)  # a hash without the seed
    keyed = list(zip(_distinct(keys), found.rows, strict=True))  # the same in every page, for links to chosen rows
    every = sorted(set().union(*flats))
    varied = [k for k in every if len({repr(flat.get(k)) for flat in flats}) > 1 or k == "name"]
    data = {
        "columns": COLUMNS,
        "facets": FACETS,
        "folded": FACETS[:5],
        "rows": [dict(id=key, row=row.id, cells=_line(row, row.runs)) for key, row in keyed],
        "runs": [
            dict(id=f"{key}-{i}", row=row.id, seed=run.seed, cells=_line(row, [run]), **_origin(run))
            for key, row in keyed
            for i, run in zip(_distinct(str(run.seed) for run in row.runs), row.runs, strict=True)
        ],
        "facts": {k: [str(flat[k]) if k in flat else None for flat in flats] for k in varied},
        "method": [key for key in varied if key.startswith(WHAT_A_METHOD_CHANGES)],
        "alike": len(every) - len(varied),
    }
    legend = (
        "readout: the output that the loss trains, last epoch; step 1, step T: the output of this time step, empty if "
        "it depends on later steps; best on test*: best epoch on the test set (optimistic); by validation: epoch "
        "chosen on the validation part; energy: of one inference, operations only"
    )
    errors = [f"{run.folder}: {run.error}" for run in found.runs if run.error and not run.result]
    notes = [*remarks([row.group for row in found.rows if row.group]), *found.notes, *errors]
    return Section(html=text([legend]) + text(notes), data=data)


def _distinct(names: Iterable[str]) -> list[str]:
    """The names; repeated ones end in .2, .3, ..."""
    seen, found = Counter[str](), []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return found


def _origin(run: Run) -> dict[str, Any]:
    """Folder, command, commit, and hashes of configuration and data of a run; None where not recorded."""
    result: Any = run.result or {}
    code, file = result.get("code") or {}, run.folder / "overrides.yaml"
    commit = code.get("commit") and code["commit"][:12] + " with changes" * bool(code.get("dirty"))
    words = yaml.safe_load(file.read_text("utf-8")) if file.exists() else _overrides(run)
    command = words and shlex.join(["python", "-m", "snn_repro.train", *map(str, words)])
    hashes = dict(config=config_hash(run.config), data=data_id(result) if result else None)
    return dict(folder=str(run.folder), command=command, commit=commit, **hashes)


def _overrides(run: Run) -> list[str] | None:
    """Overrides from the folder name ROW/OVERRIDES/seedN of a collected run; None if it has another form."""
    name, tweaks, _ = ("", "", *run.folder.parts)[-3:]
    if name != run.config["name"]:
        name, tweaks = tweaks, ""
    words = name.split("-")
    if experiment := run.result and run.result["experiment"]:
        chosen = [f"experiment={experiment}"]
    elif name == run.config["name"] and len(words) == len(SHARED):
        chosen = [f"{group}={word}" for group, word in zip(SHARED, words, strict=True)]
    else:
        return None
    more = re.split(r",(?![^\[]*\])", tweaks) if tweaks else []
    return [*chosen, *more, f"seed={run.seed}"] if all("=" in word for word in more) else None


def _flat(row: Row) -> dict[str, Any]:
    """Flat settings of a row; of an unfinished one only its configuration."""
    return described(row.group) if row.group else ADDED | {k: v for k, v in hashed(row.config).items() if k != "seed"}


def _line(row: Row, runs: Sequence[Run]) -> dict[str, Any]:
    """{column: [text, sort key]} of a row or of one of its runs."""
    part = Row(row.id, row.label, list(runs), row.group)
    config, neuron, results = part.config, part.config["neuron"], [run.result for run in runs if run.result]

    def cell(value: float | None, form: str = ".2f") -> list[Any]:
        return ["", None] if value is None else [format(value, form), value]

    def accuracy(key: str, at: int | None = None) -> list[Any]:
        value = None if at is not None and not row.has_steps else part.percent(key, at)
        return ["", None] if value is None else [str(value).removesuffix(" (n=1)"), value.mean]

    def mean(values: Iterable[float]) -> float | None:
        return fmean(known) if (known := [*values]) else None

    def percent(key: str) -> float | None:
        return mean(100 * r[key] for r in results if r.get(key) is not None)

    energy = mean(r["energy"]["energy_pj"] / 1e6 for r in results if (r.get("energy") or {}).get("energy_pj"))
    epochs = mean(len(r.history) or (r.result["epochs"] if r.result else 0) for r in part.counted) or 0
    planned, done = config.get("recipe", {}).get("epochs", epochs), len(results)
    top = [100 * max(line["acc"] for line in run.history) for run in part.counted if run.history and not results]
    sizes = [results[0][key] for key in ("params_weights", "params_imp")] if results else []  # weights, IMP
    initial = neuron.get("initial", "zero")
    texts = {
        "dataset": config["dataset"]["name"], "model": config["model"]["name"], "neuron": neuron["name"],
        "initial": "imp" if neuron.get("imp") and initial == "zero" else initial, "loss": config["loss"]["name"],
        "T": config["timesteps"],
    }  # fmt: skip
    return {k: [str(v), v] for k, v in texts.items()} | {
        "seeds": [f"{done}" if done == len(runs) else f"{done} of {len(runs)}", len(runs)],
        "acc": accuracy("acc"), "first": accuracy("acc_step", 0), "final": accuracy("acc_step", -1),
        "best": cell(fmean(top) if top else percent("acc_best_test")), "valsel": cell(percent("acc_valsel")),
        "epochs": [f"{epochs:g}" if epochs == planned else f"{epochs:g} of {planned}", epochs],
        "params": [" + ".join(f"{n:,}" for n in sizes), sum(sizes) if sizes else None],
        "energy": cell(energy, f".{max(0, 2 - math.floor(math.log10(energy)))}f" if energy else ""),
        "state": [", ".join(dict.fromkeys(run.state for run in runs))] * 2,
    }  # fmt: skip


# ---------------------------------------------------------------- curves


@register_section("accuracy_steps", "Accuracy by time step", 1)
def accuracy_steps(found: Found) -> Section:
    """Test accuracy by time step, one panel for each data set and T.

    Mean over seeds, with a band of one standard deviation. The paper's curves show the output of the step. The mean of
    the outputs so far is what an inference that stops at this step predicts.
    """
    shown = [row for row in found.rows if row.has_steps]
    ahead = [row.label for row in found.rows if row.group and not row.has_steps]
    notes = [f"Not shown, since these networks use future time steps: {', '.join(ahead)}"] if ahead else []
    if not shown:
        raise NothingToShow("; ".join(notes) or "no run is finished yet")
    layout = {"xaxis": {"dtick": 1 if max(row.config["timesteps"] for row in shown) < 17 else None}}
    panels = {row.id: f"{row.config['dataset']['name']}, T = {row.config['timesteps']}" for row in shown}
    charts = []
    for key, name in {"acc_step": "output of the step", "acc_cum": "mean of the outputs so far"}.items():
        traces = {}
        for row in shown:
            curves: list[Any] = [run.measured.get(key) for run in row.counted]
            if None not in curves:
                percent = [[100 * v for v in curve] for curve in curves]
                traces[row.id] = [_band(range(1, len(percent[0]) + 1), percent) | {"mode": "lines+markers"}]
        charts.append(Chart(name, "time step", "test accuracy %", traces, layout, panels))
    return Section(charts, text(notes))


def _band(x: Sequence[int], curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A trace: the mean of curves, with their standard deviation if there are several."""
    points = [summary(values) for values in zip(*curves, strict=True)]
    return {"x": list(x), "y": [p.mean for p in points]} | ({"sd": [p.sd for p in points]} if len(curves) > 1 else {})


MOST = 150  # points of a line; longer ones are thinned, keeping the first and last point
MEASURES: dict[str, tuple[str, float, str]] = {
    "acc": ("test accuracy, at the readout", 100, "%"), "val_acc": ("validation accuracy, at the readout", 100, "%"),
    "train_acc": ("training accuracy", 100, "%"), "train_loss": ("training loss", 1, "loss"),
    "loss": ("test loss", 1, "loss"), "first": ("test accuracy, at step 1", 100, "%"),
    "final": ("test accuracy, at step T", 100, "%"), "lr": ("learning rate", 1, "lr"),
    "samples_per_s": ("speed", 1, "samples/s"),
}  # fmt: skip


@register_section("learning_curves", "Learning curves", 3)
def learning_curves(found: Found) -> Section:
    """Metrics by epoch: mean over seeds, with a band of one standard deviation.

    The mean ends at the last epoch that all seeds have reached; seeds that are further continue as single lines.
    """
    charts = []
    for key, (name, factor, unit) in MEASURES.items():
        single, at, traces = key in ("first", "final"), 0 if key == "first" else -1, {}
        for row in found.rows:
            curves = []
            for run in row.runs if row.has_steps or not single else ():
                values = {line["epoch"]: line["acc_step"][at] if single else line.get(key) for line in run.history}
                if curve := {epoch: factor * v for epoch, v in values.items() if isinstance(v, int | float)}:
                    curves.append((run.seed, curve))
            if lines := _lines(curves):
                traces[row.id] = lines
        if traces:
            charts.append(Chart(name, "epoch", f"{name.split(',')[0]} {unit}" if unit == "%" else unit, traces))
    if not charts:
        raise NothingToShow("no run has a metrics.jsonl (collected results have none)")
    return Section(charts)


def _lines(curves: Sequence[tuple[int, dict[int, float]]]) -> list[dict[str, Any]]:
    """Traces of one row, from (seed, {epoch: value}) of its runs."""
    common = sorted(set.intersection(*(set(curve) for _, curve in curves))) if curves else []
    shown = _thinned(common)
    lines = [_band(shown, [[curve[epoch] for epoch in shown] for _, curve in curves])] if common else []
    for seed, curve in curves:
        beyond = [epoch for epoch in curve if not common or epoch >= common[-1]]
        if len(beyond) > bool(common):
            shown = _thinned(beyond)
            lines.append({"x": shown, "y": [curve[epoch] for epoch in shown], "seed": seed})
    return [line | {"mode": "lines+markers"} for line in lines]


def _thinned(epochs: list[int]) -> list[int]:
    every = -(-len(epochs) // MOST) or 1
    return epochs[::every] + epochs[-1:] * bool((len(epochs) - 1) % every)


# ---------------------------------------------------------------- the paper's tables


@register_section("paper_tables", "The paper's tables", 4)
def paper_tables(found: Found) -> Section:
    """The paper's numbers, ours, and the gain over baselines of the same recipe.

    A cell is empty if there is no run.
    """
    groups, rows = found.groups, load_rows()
    if not groups:
        raise NothingToShow("no run is finished")
    cut, tables = [g.label for row in found.rows if (g := row.group) and debug_keys(g.first)], []
    for number, title in TITLES.items():
        lines = [row for row in rows if row.table == number]
        ours = {g.first["paper_row"] for g in groups} & {row.id for row in lines}
        made = paper_table(number, lines, groups)
        made.title = f"{title} (ours in {len(ours)} of {len(lines)} rows)"
        tables.append(table(made, opened=bool(ours)))
    if any(g.first["paper_row"] is None for g in groups):
        left_out = [f"Not shown, since cut short by a debug key: {', '.join(cut)}"] if cut else []
        tables.append(table(runs_table(groups, left_out), opened=len(groups) <= 20))
    return Section(html="".join(tables))


# ---------------------------------------------------------------- layers

DEAD, SATURATED = 0.001, 0.9
SIGNS = {"dead": "x", "saturated": "triangle-up"}


@register_section("firing_rates", "Firing rates by layer", 5)
def firing_rates(found: Found) -> Section:
    """Spikes per neuron and time step on the test set, last epoch, mean over seeds.

    ✕ marks dead layers (below 0.001), ▲ saturated layers (above 0.9 of the maximum). Neither distinguishes inputs.
    """
    traces, notes = {}, []
    for row in found.rows:
        runs = [run.measured.get("firing_rates") or {} for run in row.counted]
        if not runs or not runs[0] or any(rates.keys() != runs[0].keys() for rates in runs):
            continue
        rates = {layer: fmean(rates[layer] for rates in runs) for layer in runs[0]}
        most = SATURATED * (row.config["neuron"].get("max_count") or 1)
        kinds = ["dead" if rate < DEAD else "saturated" if rate > most else "" for rate in rates.values()]
        signs = [SIGNS.get(kind) for kind in kinds]
        traces[row.id] = [{"x": list(rates), "y": list(rates.values()), "mode": "lines+markers", "mark": signs}]
        for kind in SIGNS:
            if named := [f"{k} ({rates[k]:.2g})" for k, s in zip(rates, kinds, strict=True) if s == kind]:
                notes.append(f"{row.label}: {kind} {', '.join(named)}")
    if not traces:
        raise NothingToShow("no run recorded firing rates")
    chart = Chart("firing rate", "layer", "spikes per neuron and step", traces)
    return Section([chart], text(notes or ["No layer is dead or saturated."]))


@register_section("learned_imp", "Learned IMP", 6)
def learned_imp(found: Found) -> Section:
    """Learned initial membrane potentials, one box per layer.

    Boxes show the quartiles, whiskers the 5th and 95th percentiles. From the last checkpoint of one seed.
    """

    def may_learn(row: Row) -> bool:
        if row.group:
            return row.group.first["params_imp"] > 0
        neuron = row.config["neuron"]  # an unfinished run has not recorded the number of its potentials
        return neuron.get("initial", "zero") != "zero" or neuron.get("imp")

    traces, notes = {}, []
    for row, run, network in found.trained(may_learn):
        if isinstance(network, str):
            notes.append(network)
            continue
        states = initial_states(network.model).items()
        imps = {name.rpartition(".")[0] or name: p.detach().double().numpy() for name, p in states}
        if not imps:
            continue
        points = [np.percentile(values, (5, 25, 50, 75, 95)).tolist() for values in imps.values()]
        keys = ("lowerfence", "q1", "median", "q3", "upperfence")
        boxes = dict(zip(keys, map(list, zip(*points, strict=True)), strict=True))
        means = [float(values.mean()) for values in imps.values()]
        traces[row.id] = [boxes | dict(type="box", x=list(imps), mean=means)]
        sizes = ", ".join(f"{name} {'×'.join(map(str, values.shape))}" for name, values in imps.items())
        began = run.config["neuron"].get("imp_init")
        drawn = f"; initialised in [{began[0]}, {began[1]}]" if began else ""
        notes.append(f"{row.label}, seed {run.seed}: {sizes}{drawn}")
    if not traces:
        raise NothingToShow("; ".join(notes) or "no run with a checkpoint has learned initial potentials")
    return Section([Chart("learned IMP", "layer", "initial potential", traces)], text(notes))
