"""Ways out of snn_repro: a trained network in the format of other tools, each a folder with a model card.

    export("runs/NAME/seed0", "onnx")        # -> runs/NAME/seed0/export/onnx

A format is `write(run, folder) -> str` under `@EXPORTS.register("its name")` in a file of this folder; the first line of its
docstring is the help. It writes its files into the empty `folder` and returns what the model card says about how to use them, in
Markdown. It imports what it needs where it uses it, and raises UserError where the format cannot say what the network does.
"""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from snn_repro.console import markdown
from snn_repro.errors import Interrupted, UserError, handled_by, nearest
from snn_repro.files import write_error
from snn_repro.registry import EXPORTS, import_all
from snn_repro.runs.folder import METRICS, epoch_of
from snn_repro.runs.result import RunResult
from snn_repro.trained.load import TrainedRun, load_run

__all__ = ["export", "help_of", "names"]

CARD = "README.md"
CITATION = """\
@inproceedings{shen2024rethinking,
  title     = {Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural Networks},
  author    = {Shen and Zheng and Wang and Pan},
  booktitle = {Advances in Neural Information Processing Systems},
  pages     = {92697--92720},
  year      = {2024}
}"""
CHOSEN = {
    "last": "those of the last epoch",
    "validation": "those of the epoch that the validation part chose",
    "test": "those of the epoch that is best on the test part, so that accuracies below are optimistic",
}


def names() -> list[str]:
    """The formats, also from outside."""
    return sorted(EXPORTS)


def help_of(name: str) -> str:
    return (EXPORTS[name].__doc__ or "").partition("\n")[0]


def export(path: str | Path, to: str, weights: str = "last", output: str | Path | None = None) -> Path:
    """Write the network of a finished run as `to` (see `names`) into the folder `output`, RUN/export/<to> where nothing is said.

    weights: "last" or "best", as of `load_run`. The folder appears whole or not at all; one that is there is refused.
    Returns it. Raises UserError where the run is not finished, the format cannot say what the network does, or the folder is
    there or cannot be written.
    """
    if to not in EXPORTS:
        raise UserError(f"--to {to} is no format; choose one of: {', '.join(names())}{nearest(to, names())}")
    run = load_run(path, weights)
    if run.result is None:
        raise UserError(
            f"{path} is not finished: it has no result.json for the model card; give its command again first"
        )
    target = Path(output) if output else Path(path) / "export" / to
    if os.path.lexists(target):
        raise UserError(f"{target} is there already; remove it, or choose another folder with --output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            handled_by(_interrupted),
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as spare,
        ):
            folder = Path(spare, "new")
            folder.mkdir()
            use = EXPORTS[to](run, folder)
            (folder / CARD).write_text(card(run, run.result, to, use), encoding="utf-8")
            folder.rename(target)
    except ModuleNotFoundError as error:
        raise UserError(f"--to {to} needs {error.name}: pip install 'snn_repro[export]'") from None
    except OSError as error:
        raise write_error(target, error, "--output") from None
    return target


def _interrupted(signum: int, frame: object) -> None:
    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}, nothing was written")


# ---------------------------------------------------------------- the model card


def card(run: TrainedRun, result: RunResult, to: str, use: str) -> str:
    """README.md with the metadata of model hubs: what was trained, accuracies of these weights, and `use`, how to load them."""
    line: dict[str, Any] = dict(acc=result.acc_last, acc_step=result.acc_step)
    if run.epoch != result.epochs and not (line := epoch_of(run.path, run.epoch)):
        raise UserError(
            f"{run.path / METRICS} lacks epoch {run.epoch}, whose weights these are and whose accuracy the card says; "
            "use --weights last"
        )
    chosen = CHOSEN["last" if run.weights == "last" else "validation" if result.acc_valsel is not None else "test"]
    neuron = result.neuron["name"] + ("_imp" if result.neuron["imp"] else "")
    split = f"{result.split_id} (SHA-256 of the test part's names {result.split_sha256})"
    rows = [
        ("row", result.name), ("row of the paper's tables", result.paper_row or "none"), ("seed", result.seed),
        ("data set", result.dataset), ("split", split), ("test samples", result.n_test), ("input [C, H, W]", result.input_size),
        *_inputs(run), ("time steps T", result.timesteps), ("network", result.model), ("neuron", neuron), ("loss", result.loss),
        ("readout", result.readout), ("weights, initial potentials", f"{result.params_weights:,}, {result.params_imp:,}"),
        ("epoch of these weights", f"{run.epoch} of {result.epochs}"), ("configuration", result.config_hash),
    ]  # fmt: skip
    table = "\n".join(f"| {key} | {markdown(value)} |" for key, value in rows)
    by_step = "".join(f"| {t} | {100 * acc:.2f} % |\n" for t, acc in enumerate(line["acc_step"], 1))
    head = "\n| time step t | accuracy of the output of step t alone |\n|---:|---:|\n"
    steps = head + by_step if result.causal is not False else ""  # else a step has seen the later ones
    return f"""\
---
license: mit
library_name: snn_repro
{yaml.safe_dump(_metadata(result, line["acc"]), sort_keys=False)}---

# {markdown(result.name)}

A spiking neural network that snn_repro trained, as {to}. Its weights are {chosen}.

| | |
|---|---|
{table}

## Accuracy

On the test part, at the readout: {100 * line["acc"]:.2f} %.
{steps}
One run with one seed: compare means over seeds, on the same split.

## How to use it

{use.strip()}

## License and citation

MIT, as snn_repro. The data set has terms of its own. Please cite snn_repro and the paper whose tables it reproduces:

```bibtex
{CITATION}
```
"""


def _metadata(result: RunResult, acc: float) -> dict[str, Any]:
    """What model hubs read, https://huggingface.co/docs/hub/model-cards, with the accuracy as a result of evaluation."""
    accuracy = {"type": "accuracy", "value": round(100 * acc, 4), "name": f"accuracy %, T={result.timesteps}"}
    dataset = {"type": result.dataset, "name": result.dataset, "split": "test", "revision": result.split_id}
    evaluated = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [accuracy]}
    return {
        "pipeline_tag": "image-classification",
        "tags": ["spiking-neural-network", "snn", "image-classification", result.model, result.neuron["name"]],
        "model-index": [{"name": result.name, "results": [evaluated]}],
    }


def _inputs(run: TrainedRun) -> list[tuple[str, str]]:
    """Classes, and how an image's pixels become the network's input, as rows of the card."""
    rows = [("classes, by label", ", ".join(run.class_names))]
    facts: Any = run.facts()
    if not facts.static:
        return [*rows, ("values of a frame", "counts of events")]
    if hasattr(facts, "stored"):
        rows.append(("values of an image", f"0 to {facts.stored(np.full(run.input_shape, 255, np.uint8)).max():g}"))
    if statistics := getattr(facts, "statistics", None):
        mean, deviation = (", ".join(f"{v:.6g}" for v in values) for values in statistics)
        order = run.config.dataset.channel_order.upper() if run.input_shape[0] == 3 else "grey"
        rows.append((f"normalised, {order}", f"(value - mean) / deviation, mean {mean}, deviation {deviation}"))
    return rows


import_all(__name__, __path__)
