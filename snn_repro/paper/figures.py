"""The figures: what each one shows as numbers (pure functions), and how it is drawn.

A drawing depends on the committed files under results/ and on this code alone: fixed fonts, fixed ids, no dates. Lines
differ in colour (Okabe and Ito's palette), marker and dash, so that they can be told apart in print and by everyone.
"""

import io
import json
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.files import replace_atomically, write_text
from snn_repro.losses import build_loss
from snn_repro.neurons import build_neuron, is_initial_state
from snn_repro.paper.tables import Group, group_runs, load, older_note, remarks
from snn_repro.provenance import code_version
from snn_repro.runs.folder import skipped

PROGRAM = "python scripts/make_figures.py"

# ---------------------------------------------------------------- firing pattern


def firing_pattern(dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Seven IF neurons, soft reset, T = 32: first the input varies, then the initial potential.

    Panel 1: no IMP, constant input 1/12 .. 1/6, less 1e-7. Panel 2: input 1/12, IMP 0/12 .. 6/12.
    Returns two dicts: spikes [T, 7], v [T, 7] after each reset, labels [7].
    """
    rising = torch.tensor([1 / (12 - k) - 1e-7 for k in range(7)], dtype=dtype)
    imps = torch.tensor([k / 12 for k in range(7)], dtype=dtype)
    same = torch.full((7,), 1 / 12, dtype=dtype)
    return [
        dict(zip(("spikes", "v"), _simulate(rising, None, 32), strict=True), labels=[f"1/{12 - k}" for k in range(7)]),
        dict(zip(("spikes", "v"), _simulate(same, imps, 32), strict=True), labels=[f"{k}/12" for k in range(7)]),
    ]


def _simulate(current: Tensor, imp: Tensor | None, timesteps: int) -> tuple[np.ndarray, np.ndarray]:
    neuron = build_neuron("if", imp=imp is not None, state_shape=tuple(current.shape)).to(current.dtype)
    neuron.store_v_seq = True
    with torch.no_grad():
        if imp is not None:
            neuron.imp.copy_(imp)
        spikes = neuron(current.expand(timesteps, 1, *current.shape))
    return spikes[:, 0].numpy(), neuron.v_seq[:, 0].numpy()


def draw_firing_pattern() -> Figure:
    """Heat maps of the potential after each step, a mark where a spike was fired."""
    figure = new_figure(7.2, 4.6)
    panels = firing_pattern()
    titles = ("no IMP, constant input (less $10^{-7}$)", "constant input 1/12, initial membrane potential (IMP)")
    for axes, panel, title in zip(figure.subplots(2, 1, sharex=True), panels, titles, strict=True):
        image = axes.imshow(panel["v"].T, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        t, k = np.nonzero(panel["spikes"])
        axes.scatter(t, k, marker="o", s=16, facecolor="white", edgecolor="black", linewidth=0.8)
        axes.set_yticks(range(7), panel["labels"])
        axes.set_title(title)
        axes.set_ylabel("input" if panel is panels[0] else "IMP")
        figure.colorbar(image, ax=axes, label="v after the step", pad=0.02)
    axes.set_xlabel("time step (from 0); circles: spikes")
    footnote(figure, "n = 7 neurons a panel, computed step by step: nothing is drawn at random")
    return figure


# ---------------------------------------------------------------- pattern mapping


def pattern_mapping(
    imps: Sequence[float], weights: Sequence[float], name: str = "if", timesteps: int = 4, **overrides
) -> np.ndarray:
    """Which output patterns each binary input pattern can produce.

    Every input of `timesteps` bits (first step = most significant bit) times every weight, from every initial
    potential, in float32. Returns bool [2^T outputs, 2^T inputs]; `overrides` are those of `build_neuron`.
    """
    n = 2**timesteps
    bits = (torch.arange(n)[None] >> torch.arange(timesteps - 1, -1, -1)[:, None]) & 1  # [T, inputs]
    weights, imps = torch.tensor(weights, dtype=torch.float32), torch.tensor(imps, dtype=torch.float32)
    neuron = build_neuron(name, imp=True, state_shape=(len(imps), len(weights)), **overrides)
    with torch.no_grad():
        neuron.imp.copy_(imps[:, None].expand(len(imps), len(weights)))
        x = bits[:, :, None, None] * weights
        out = neuron(x.expand(timesteps, n, len(imps), len(weights)))
    place = 2 ** torch.arange(timesteps - 1, -1, -1)
    codes = torch.einsum("tbiw,t->biw", out, place.to(out.dtype)).long().flatten(1)  # [inputs, grid]
    reached = np.zeros((n, n), bool)
    for i, row in enumerate(codes):
        reached[row.unique().numpy(), i] = True
    return reached


WEIGHTS = {points: np.linspace(0, 1, points) for points in (9, 17)}
MAPPINGS = {
    "IMP 0": ([0.0], WEIGHTS[17]),
    "IMP 0.25": ([0.25], WEIGHTS[17]),
    "IMP −1 .. 1 (9 values)": (np.linspace(-1, 1, 9), WEIGHTS[9]),
}  # title -> (initial potentials, weights)


def trained_mapping(run: dict, fire_at: str) -> np.ndarray:
    """The map of a trained network's own neurons: initial potentials from the percentiles of all its layers.

    A lif neuron whose input decays takes in 1/tau of it, so its weights go up to tau: one step then adds at most 1, as for the others.
    """
    pooled = np.concatenate([layer["percentiles"] for layer in run["layers"]])
    own = {"lif": ("tau", "decay_input"), "leaky": ("retain",)}.get(run["neuron"]["name"], ())
    neuron = {k: run["neuron"][k] for k in ("name", "reset", "v_threshold", *own) if k in run["neuron"]}
    whole = neuron.get("decay_input") is False  # runs that were made before the key existed decay the input
    return pattern_mapping(pooled, (1 if whole else neuron.get("tau", 1)) * WEIGHTS[9], fire_at=fire_at, **neuron)


def draw_pattern_mapping(trained: Sequence[dict] = ()) -> Figure:
    """16x16 maps of input to output patterns; one more panel for each trained network."""
    panels: list[tuple[str, str, Callable[[str], np.ndarray]]] = [
        (title, "IF, soft reset", lambda fire_at, grid=grid: pattern_mapping(*grid, fire_at=fire_at))
        for title, grid in MAPPINGS.items()
    ]
    for run in trained:
        title = f"IMP trained: {run['dataset']}, {NAMES[run['loss']]}"
        panels.append(
            (title, f"{run['neuron']['name'].upper()}, {run['neuron']['reset']} reset", partial(trained_mapping, run))
        )
    figure = new_figure(2.6 * len(panels), 3.6)
    for axes, (title, below, mapping) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        reached, strict = mapping("ge"), mapping("gt")
        axes.imshow(reached, cmap="Greys", vmin=0, vmax=1.25, interpolation="nearest", origin="lower")
        axes.set_xticks(np.arange(17) - 0.5, minor=True)
        axes.set_yticks(np.arange(17) - 0.5, minor=True)
        axes.grid(which="minor", color="0.8", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
        axes.set_xticks([0, 5, 10, 15], [f"{i:04b}" for i in (0, 5, 10, 15)])
        axes.set_yticks([0, 5, 10, 15], [f"{i:04b}" for i in (0, 5, 10, 15)])
        axes.set_title(f"{title}\n{reached.sum()} cells (≥), {strict.sum()} (>)")
        axes.set_xlabel(f"input pattern\n{below}")
    figure.axes[0].set_ylabel("output pattern")
    trials = [16 * len(imps) * len(weights) for imps, weights in MAPPINGS.values()]
    n = ", ".join(f"{k:,}" for k in trials) + "".join(
        f", {16 * 9 * sum(len(x['percentiles']) for x in r['layers']):,}" for r in trained
    )
    what = f"n, from the left: {n} trials (input × weight × IMP), all there are"
    if trained:
        what += "; trained: one network each, the percentiles of its layers' IMP"
    footnote(figure, what, older_note(trained, "trained networks"))
    return figure


# ---------------------------------------------------------------- convergence on a synthetic task

CONVERGENCE_T = (1, 2, 4, 6)
CONVERGENCE_LOSSES = ("sdt", "tet", "lts")
KEEP_EVERY = 5  # epochs between two committed points of a curve
SEED = 2024


def convergence(timesteps: int, loss: str, epochs: int = 1000, samples: int = 1024) -> dict[str, Any]:
    """Train the MLP 16-256-256-256-16 of IF neurons on random labels of random inputs, full batch, and follow its loss.

    No bias, soft reset, Sigmoid(4), Adam at 1e-3; the input [samples, 16] uniform in 0..1, seen at every step; 16
    classes. All curves share weights and data. Returns the loss every KEEP_EVERY epochs, the first epoch (from 0) with
    a loss of at most 1.0, 0.5 and 0.1, the last loss, and the training accuracy at each time step in the end.
    """
    torch.manual_seed(SEED)
    widths = [16, 256, 256, 256, 16]
    layers: list[nn.Module] = []
    for i in range(4):
        layers.append(nn.Linear(widths[i], widths[i + 1], bias=False))
        if i < 3:
            layers.append(build_neuron("if", surrogate="sigmoid"))
    model = nn.Sequential(*layers)
    x, labels = torch.rand(samples, 16), torch.randint(16, (samples,))
    x = x.expand(timesteps, samples, 16)
    objective = build_loss(loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(epochs):
        value = objective(model(x), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    with torch.no_grad():
        right = (model(x).argmax(-1) == labels).float().mean(1)
    below = {str(level): next((e for e, v in enumerate(losses) if v <= level), None) for level in (1.0, 0.5, 0.1)}
    return dict(
        timesteps=timesteps, loss=loss, epochs=epochs, first_at_most=below, last=round(losses[-1], 4),
        acc_step=[round(a, 4) for a in right.tolist()], every=KEEP_EVERY, values=[round(v, 4) for v in losses[::KEEP_EVERY]],
    )  # fmt: skip


def measure_convergence(target: Path, epochs: int = 1000, say: Callable[[str], None] = print) -> None:
    """Train all curves on one thread (minutes) and write them to `target`; at T = 1 the three losses are one."""
    torch.set_num_threads(1)
    curves, started = [], time.process_time()
    for steps in CONVERGENCE_T:
        for loss in CONVERGENCE_LOSSES:
            if steps == 1 and curves:
                curves.append({**curves[0], "loss": loss})
                continue
            curves.append(convergence(steps, loss, epochs))
            say(f"T={steps} {loss}: {curves[-1]['first_at_most']}, {time.process_time() - started:.0f} s")
    write_data(target, dict(
        what="loss on 1024 random inputs with random labels; MLP 16-256-256-256-16 of IF neurons, full batch, Adam 1e-3",
        command=f"{PROGRAM} measure=convergence", seed=SEED, torch=torch.__version__.split("+")[0], code=code_version(),
        cpu_seconds=round(time.process_time() - started), curves=curves,
    ))  # fmt: skip


def write_data(target: Path, content: dict) -> None:
    """Write a data file of a figure, one line a top-level entry or curve, so that a change is readable."""
    lines = []
    for k, v in content.items():
        if isinstance(v, list) and v and isinstance(v[0], dict):
            inner = ",\n  ".join(json.dumps(item) for item in v)
            lines.append(f" {json.dumps(k)}: [\n  {inner}\n ]")
        else:
            lines.append(f" {json.dumps(k)}: {json.dumps(v)}")
    write_text(target, "{\n" + ",\n".join(lines) + "\n}\n")


def draw_convergence(data: dict) -> Figure:
    """One panel a T: each curve is the loss that this training minimises. Where curves meet, the lower one is wider."""
    figure = new_figure(7.2, 5.4)
    for axes, steps in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, CONVERGENCE_T, strict=True):
        for i, curve in enumerate(c for c in data["curves"] if c["timesteps"] == steps):
            epochs = np.arange(len(curve["values"])) * curve["every"]
            apart = len(epochs) // 9 or 1
            look = line(curve["loss"]) | dict(linewidth=(4.2, 2.4, 1.1)[i % 3], linestyle="-", markersize=5)
            axes.plot(
                epochs, curve["values"], markevery=(apart * (i % 3) // 3, apart), alpha=(0.45, 0.7, 1)[i % 3],
                markeredgecolor="white", markeredgewidth=0.6, **look,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_title(f"T = {steps}" + (" (the three losses are one)" if steps == 1 else ""))
    for axes in figure.axes[2:]:
        axes.set_xlabel("epoch")
    for axes in figure.axes[::2]:
        axes.set_ylabel("training loss")
    figure.axes[1].legend()
    older = older_note(data["curves"] if "code" not in data else [data] * len(data["curves"]), "curves")
    footnote(
        figure,
        "n = 1 training a curve; all share initial weights and data; where curves meet, the one beneath is wider",
        older,
    )
    return figure


# ---------------------------------------------------------------- accuracy at each time step


def draw_accuracy_steps(groups: Sequence[Group]) -> Figure:
    """Test accuracy of each time step's own output, mean ± sd over seeds.

    A row a data set, network, T and length of training, a panel a loss: its runs with and without IMP, beside each other,
    and in grey those of the row's other losses.
    """
    rows: dict[tuple, list[Group]] = {}
    for group in groups:
        if not group.steps():  # it sees the future; the remarks say so
            continue
        first = group.first
        key = (
            first["dataset"], first["model"], first["timesteps"], first["n_train"], first["epochs"], first["split_sha256"]
        )  # fmt: skip
        rows.setdefault(key, []).append(group)
    if not rows:
        raise MissingData("in every run a step sees the later ones, so that its own accuracy says nothing")
    columns = max(len({g.first["loss"] for g in members}) for members in rows.values())
    figure = new_figure(0.6 + 2.5 * columns, 0.5 + 2.1 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    names = [key[:2] for key in rows]
    for line_of_axes, (key, members) in zip(grid, sorted(rows.items()), strict=True):
        dataset, model, steps, n_train, epochs, _ = key
        title = f"{dataset}, {model}"
        if names.count((dataset, model)) > 1:
            title = f"{dataset}, {n_train:,} x {epochs} epochs"
        losses = sorted({g.first["loss"] for g in members}, key=list(NAMES).index)
        t = np.arange(1, steps + 1)
        for axes, loss in zip(line_of_axes, losses, strict=False):
            for group in members:
                if group.first["loss"] != loss:
                    axes.plot(t, group.steps(), color="0.85", linewidth=0.8, zorder=0)
            mine = sorted((g for g in members if g.first["loss"] == loss), key=lambda g: g.first["neuron"]["imp"])
            kinds = [g.first["neuron"]["imp"] for g in mine]
            for i, group in enumerate(mine):
                values = 100 * np.array([run["acc_step"] for run in group.runs])
                spread = values.std(0, ddof=1) if len(values) > 1 else None
                look = line(loss, kinds[i])
                if kinds.count(kinds[i]) > 1:
                    look["label"] = group.label
                aside = 0.016 * steps * (2 * i - len(mine) + 1)  # so that points of equal height lie side by side
                axes.errorbar(t + aside, values.mean(0), spread, capsize=2, elinewidth=0.8, **look)
            seeds = ", ".join(map(str, sorted({len(g.runs) for g in mine})))
            axes.set_title(f"{title}: {NAMES[loss]}, n = {seeds}", fontsize=8)
            axes.set_xticks(t)
            axes.legend(fontsize=7)
        for axes in line_of_axes[len(losses) :]:
            axes.set_axis_off()
        line_of_axes[0].set_ylabel("accuracy of $y_t$ alone, %")
    for axes in grid[-1]:
        axes.set_xlabel("time step t")
    footnote(figure, "mean ± sd over n seeds; grey: the other losses of the row", *remarks(groups))
    return figure


# ---------------------------------------------------------------- learned IMP


def imp_of(run_dir: Path) -> dict[str, Any]:
    """Distribution of the trained IMP of each layer, from a run's last checkpoint: percentiles 0..100 and a histogram.

    Raises UserError where the folder is no finished run, or its network has no IMP.
    """
    from snn_repro.runs import checkpoint

    result = load([run_dir])[0]
    state = checkpoint.load(run_dir / checkpoint.LAST)["model"]
    layers = []
    for key, value in state.items():
        if is_initial_state(key):
            x = value.double().numpy()
            counts, edges = np.histogram(x, bins=40)
            layers.append(dict(
                layer=key.rpartition(".")[0], shape=list(x.shape), mean=round(float(x.mean()), 5), sd=round(float(x.std()), 5),
                percentiles=np.percentile(x, range(101)).round(4).tolist(),
                histogram=dict(low=round(float(edges[0]), 5), high=round(float(edges[-1]), 5), counts=counts.tolist()),
            ))  # fmt: skip
    if not layers:
        raise UserError(f"{run_dir} has no IMP in its checkpoint; give a run with neuron.imp=true")
    return dict(run=f"{result['name']}/seed{result['seed']}", dataset=result["dataset"], loss=result["loss"],
                neuron=result["neuron"], acc_last=result["acc_last"], code=result.get("code"), layers=layers)  # fmt: skip


def measure_learned_imp(target: Path, runs: Sequence[Path]) -> None:
    """Write the IMP distributions of trained runs to `target`."""
    if not runs:
        raise UserError("measure=learned_imp needs run=DIR, the folder of a finished run with IMP and its checkpoint")
    found = [imp_of(Path(run)) for run in runs]
    names = " ".join(f"run=runs/{item['run']}" for item in found)
    what = "trained IMP by layer: percentiles 0..100 and a histogram of 40 bins"
    write_data(target, dict(what=what, command=f"{PROGRAM} measure=learned_imp {names}", runs=found))


def draw_learned_imp(data: dict) -> Figure:
    """One ridge a layer, one panel a run; the grey band is the range that IMP started in."""
    runs = data["runs"]
    deepest = max(len(run["layers"]) for run in runs)
    figure = new_figure(3.8 * len(runs), 1.2 + 0.5 * deepest)
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False).flat, runs, strict=True):
        axes.axvspan(*run["neuron"]["imp_init"], color="0.9")
        for i, layer in enumerate(run["layers"]):
            h = layer["histogram"]
            edges = np.linspace(h["low"], h["high"], len(h["counts"]) + 1)
            height = 0.85 * np.array(h["counts"]) / max(h["counts"])
            base = len(run["layers"]) - 1 - i
            axes.stairs(base + height, edges, baseline=base, fill=True, color=PALETTE["sdt"], alpha=0.55)
            axes.stairs(base + height, edges, baseline=base, color="black", linewidth=0.6)
            axes.plot(layer["percentiles"][50], base, marker="^", color="black", markersize=5, clip_on=False)
        names = [f"{layer['layer']}\n{'×'.join(map(str, layer['shape']))}" for layer in run["layers"]]
        axes.set_yticks(np.arange(len(names))[::-1] + 0.3, names)
        axes.set_xlabel("learned initial membrane potential\n(▲ median; grey: range at the start)")
        axes.set_title(f"{run['dataset']}, {run['neuron']['name'].upper()}, {NAMES[run['loss']]}")
        axes.locator_params(axis="x", nbins=6)
        axes.set_ylim(-0.15, len(names))
    neurons = ", ".join(f"{sum(int(np.prod(layer['shape'])) for layer in run['layers']):,}" for run in runs)
    footnote(figure, f"n = 1 trained network a panel; from the left {neurons} neurons", older_note(runs, "networks"))
    return figure


# ---------------------------------------------------------------- time with and without IMP


def draw_imp_overhead(reports: Sequence[dict]) -> Figure:
    """Time of forward + backward with IMP over without, against the number of neurons, a line a T; a panel a device.

    A report is a file of results/benchmarks/ with `machine`: {"processor": name, ...}, `rounds` and `imp_overhead`:
    [{"timesteps", "neurons", "seconds_without", "seconds_with", "seconds_without_again"}, ...]. The last one is the
    control, the same measurement twice: its ratios, which are 1 but for noise, are drawn too, and span the grey band.
    """
    figure = new_figure(max(5.0, 4.2 * len(reports)), 3.8)
    for axes, report in zip(figure.subplots(1, len(reports), squeeze=False).flat, reports, strict=True):
        rows = report["imp_overhead"]
        series = sorted({row["timesteps"] for row in rows})
        control = [r["seconds_without_again"] / r["seconds_without"] for r in rows if "seconds_without_again" in r]
        if control:
            axes.axhspan(min(control), max(control), color="0.92", zorder=0, label="control: its range")
        for i, steps in enumerate(series):
            mine = sorted((r for r in rows if r["timesteps"] == steps), key=lambda r: r["neurons"])
            aside = 2 ** (0.06 * (i - (len(series) - 1) / 2))  # so that points of equal height lie side by side
            x = [r["neurons"] * aside for r in mine]
            look = SERIES[i % len(SERIES)]
            axes.plot(x, [r["seconds_with"] / r["seconds_without"] for r in mine], label=f"T = {steps}", **look)
            again = [(a, r["seconds_without_again"] / r["seconds_without"]) for a, r in zip(x, mine, strict=True)
                     if "seconds_without_again" in r]  # fmt: skip
            if again:
                axes.plot(
                    *zip(*again, strict=True), linestyle="none", marker=look["marker"], markerfacecolor="white",
                    markeredgecolor=look["color"], label=f"control, T = {steps}",
                )  # fmt: skip
        axes.axhline(1, color="0.4", linewidth=0.8, zorder=1)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("neurons")
        n = f", n = {2 * report['rounds'] + 1} rounds a point" if "rounds" in report else ""
        axes.set_title(f"{report['machine']['processor']}{n}")
        axes.margins(y=0.15)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside right center")
    figure.axes[0].set_ylabel("forward + backward, with IMP / without")
    footnote(figure, "medians of CPU time; control (open): the layer without IMP, measured twice")
    return figure


# ---------------------------------------------------------------- style and files

PALETTE = {"sdt": "#0072B2", "tet": "#D55E00", "lts": "#009E73", "tet_s": "#CC79A7"}
MARKERS = {"sdt": "o", "tet": "s", "lts": "^", "tet_s": "D"}
DASHES = {"sdt": "-", "tet": "--", "lts": "-.", "tet_s": ":"}
NAMES = {"sdt": "SDT", "tet": "TET", "lts": "LTS", "tet_s": "TET-S"}
SERIES = [
    dict(color=color, marker=marker, linestyle=dash)
    for color, marker, dash in zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"), "os^Dvx", ("-", "--", "-.", ":", "-", "--"),
        strict=True,
    )
]  # fmt: skip
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "snn_repro", "svg.fonttype": "path", "savefig.dpi": 150, "lines.linewidth": 1.3, "lines.markersize": 4,
    "axes.grid": False, "grid.color": "0.9", "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def line(loss: str, imp: bool | None = None) -> dict[str, Any]:
    """Colour, marker, dash and label of a loss; with `imp` given, solid and filled is IMP, dashed and open is not."""
    look = dict(color=PALETTE[loss], marker=MARKERS[loss], linestyle=DASHES[loss], label=NAMES[loss])
    if imp is None:
        return look
    return look | dict(
        linestyle="-" if imp else "--", markerfacecolor=PALETTE[loss] if imp else "white",
        label=NAMES[loss] + (" + IMP" if imp else ""),
    )  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches; without pyplot, so that no window and no global state come in."""
    return Figure(figsize=(width, height))


def footnote(figure: Figure, *sentences: str | None) -> None:
    """Small lines below a figure: its n, and what a reader must know; None is left out."""
    width = int(figure.get_figwidth() * 17)
    lines = [part for sentence in sentences if sentence for part in textwrap.wrap(sentence, width)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color="0.3")


class MissingData(UserError):
    """A figure's data are not there (yet): the sentence says how to get them."""


def _data(results: Path, name: str) -> dict:
    path = results / "figures" / f"{name}.json"
    if not path.exists():
        hint = " run=DIR" if name == "learned_imp" else ""
        raise MissingData(f"{path} does not exist; make it with `{PROGRAM} measure={name}{hint}`")
    return _read(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MissingData(f"{path} is damaged ({' '.join(str(error).split())[:80]}); make it again") from None


def _learned_or_nothing(results: Path) -> list[dict]:
    try:
        return _data(results, "learned_imp")["runs"]
    except MissingData:
        return []


def _groups(results: Path) -> list[Group]:
    runs = results / "runs"
    if not list(runs.rglob("result.json")):
        raise MissingData(
            f"{runs} holds no finished run; collect some with `python scripts/make_tables.py --collect runs`"
        )
    return group_runs(load([runs]))[0]


def _benchmarks(results: Path) -> list[dict]:
    reports = []
    for path in sorted((results / "benchmarks").glob("*.json")):
        try:
            reports.append(_read(path))
        except MissingData as error:
            skipped(str(error))
    reports = [r for r in reports if isinstance(r, dict) and "imp_overhead" in r]
    if not reports:
        raise MissingData(
            f"{results / 'benchmarks'} holds no timing of IMP; measure it with `python scripts/benchmark.py neuron`"
        )
    return reports


# name -> (what it shows, drawing from the results folder)
FIGURES: dict[str, tuple[str, Callable[[Path], Figure]]] = {
    "firing_pattern": (
        "Firing of seven IF neurons under varied input and under varied initial potential. In float32, as here, twelve "
        "additions of 1/12 stay below 1, so panel 2 fires one step later than exact arithmetic does.",
        lambda results: draw_firing_pattern(),
    ),
    "pattern_mapping": (
        "Output patterns that each of the 16 input patterns of four steps can produce. Cells are drawn for firing at "
        "h ≥ V_th; the count for h > V_th is given beside.",
        lambda results: draw_pattern_mapping(_learned_or_nothing(results)),
    ),
    "accuracy_steps": (
        "Test accuracy of each time step's own output (not of the running mean), mean ± sd over seeds. A row of panels is a "
        "data set and a length of training, a panel a loss, with the row's other losses in grey.",
        lambda results: draw_accuracy_steps(_groups(results)),
    ),
    "convergence": (
        "Training loss on random labels of random inputs, a synthetic task; each curve is the loss it minimises. A network "
        "trained by LTS must be read at its last step: its earlier steps are near chance (acc_step in the data).",
        lambda results: draw_convergence(_data(results, "convergence")),
    ),
    "imp_overhead": (
        "Time of a layer's forward and backward with IMP over the time without. Open marks are the control, the same layer "
        "measured twice: what lies in the grey band cannot be told from noise.",
        lambda results: draw_imp_overhead(_benchmarks(results)),
    ),
    "learned_imp": (
        "Where the learned initial membrane potentials ended, by layer.",
        lambda results: draw_learned_imp(_data(results, "learned_imp")),
    ),
}


def render(draw: Callable[[Path], Figure], results: Path) -> dict[str, bytes]:
    """{"svg": ..., "png": ...} of one figure; the same bytes for the same data, code and matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = draw(results)
        forms = {}
        for form, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            out = io.BytesIO()
            figure.savefig(out, format=form, metadata=metadata)
            forms[form] = out.getvalue()
        return forms


def make(names: Sequence[str], results: Path, say: Callable[[str], None] = print) -> list[str]:
    """Draw figures into results/figures and write its README; returns the sentences of those that lack their data."""
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for name in names:
        try:
            forms = render(FIGURES[name][1], results)
        except MissingData as error:
            missing.append(f"{name} skipped: {error}")
            continue
        for form, content in forms.items():
            with replace_atomically(folder / f"{name}.{form}") as temporary:
                temporary.write_bytes(content)
        say(f"{folder / name}.svg, .png")
    write_text(folder / "README.md", index(folder))
    return missing


def index(folder: Path) -> str:
    """The README of the figures' folder: what each one shows, and the commands that made it."""
    lines = [
        "# Figures",
        "",
        f"Drawn by `{PROGRAM}` from the files of this folder and of `../runs`, with matplotlib {matplotlib.__version__};",
        "another version of matplotlib may draw the same numbers with other bytes.",
        "",
    ]
    for name, (what, _) in FIGURES.items():
        if (folder / f"{name}.svg").exists():
            lines += [f"## {name}", "", f"![{name}]({name}.svg)", "", what, "", f"    {PROGRAM} figure={name}"]
            data = folder / f"{name}.json"
            if data.exists():
                lines += [f"    {json.loads(data.read_text())['command']}    # its data"]
            lines += [""]
    return "\n".join(lines)
