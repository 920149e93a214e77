"""Export a trained network for other tools, as a folder with a model card.

    export("runs/NAME/seed0", "onnx")        # -> runs/NAME/seed0/export/onnx

A format is a function `write(run, folder) -> str` under `@EXPORTS.register("its name")` in a file of this folder; the
first line of its docstring is its help. It writes its files into the empty `folder` and returns the model card's
section on how to use them, in Markdown. It imports optional packages where it uses them, and raises UserError for
networks that the format cannot represent.
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
    "last": "from the last epoch",
    "validation": "from the epoch chosen on the validation part",
    "test": "from the epoch with the best test accuracy, so the accuracies below are optimistic",
}


def export(path: str | Path, to: str, weights: str = "last", output: str | Path | None = None) -> Path:
    """Export the network of a finished run in the format `to`, one of EXPORTS.

    weights: "last" or "best", as in `load_run`. output: the new folder, RUN/export/<to> by default; it is written
    atomically and returned. Raises UserError if the run is not finished, the format cannot represent the network, or
    the folder exists or cannot be written.
    """
    if to not in EXPORTS:
        raise UserError(f"--to {to} is not a format; choose one of: {', '.join(sorted(EXPORTS))}{nearest(to, EXPORTS)}")
    if (run := load_run(path, weights)).result is None:
        raise UserError(f"{path} is not finished: it has no result.json for the model card; repeat its command first")
    target = Path(output) if output else Path(path) / "export" / to
    if os.path.lexists(target):
        raise UserError(f"{target} already exists; remove it, or choose another folder with --output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            handled_by(_interrupted),
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as spare,
        ):
            folder = Path(spare, "new")
            folder.mkdir()
            (folder / CARD).write_text(card(run, run.result, to, EXPORTS[to](run, folder)), encoding="utf-8")
            folder.rename(target)
    except ModuleNotFoundError as error:
        raise UserError(f"--to {to} needs {error.name}: pip install 'snn_repro[export]'") from None
    except OSError as error:
        raise write_error(target, error, "--output") from None
    return target


def _interrupted(signum: int, frame: object) -> None:
    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}; nothing was written")


# ---------------------------------------------------------------- the model card


def card(run: TrainedRun, result: RunResult, to: str, use: str) -> str:
    """Write the model card: README.md with metadata for model hubs, facts, accuracies, usage."""
    line: dict[str, Any] = dict(acc=result.acc_last, acc_step=result.acc_step)
    if run.epoch != result.epochs and not (line := epoch_of(run.path, run.epoch)):
        raise UserError(f"{run.path / METRICS} lacks epoch {run.epoch}, that of these weights; use --weights last")
    chosen = CHOSEN["last" if run.weights == "last" else "validation" if result.acc_valsel is not None else "test"]
    neuron = result.neuron["name"] + ("_imp" if result.neuron["imp"] else "")
    rows = [
        ("row", result.name), ("row of the paper's tables", result.paper_row or "none"), ("seed", result.seed),
        ("data set", result.dataset), ("test samples", result.n_test),
        ("split", f"{result.split_id} (SHA-256 of the test part's names {result.split_sha256})"),
        ("input [C, H, W]", result.input_size), *_inputs(run), ("time steps T", result.timesteps),
        ("network", result.model), ("neuron", neuron), ("loss", result.loss), ("readout", result.readout),
        ("weights, initial potentials", f"{result.params_weights:,}, {result.params_imp:,}"),
        ("epoch of these weights", f"{run.epoch} of {result.epochs}"), ("configuration", result.config_hash),
    ]  # fmt: skip
    table = "\n".join(f"| {key} | {markdown(value)} |" for key, value in rows)
    by_step = "".join(f"| {t} | {100 * acc:.2f} % |\n" for t, acc in enumerate(line["acc_step"], 1))
    head = "\n| time step t | accuracy of the output of step t |\n|---:|---:|\n"
    steps = head + by_step if result.causal is not False else ""  # else outputs depend on later steps
    return f"""\
---
license: mit
library_name: snn_repro
{yaml.safe_dump(_metadata(result, line["acc"]), sort_keys=False)}---

# {markdown(result.name)}

A spiking neural network trained by snn_repro, exported as {to}. Its weights are {chosen}.

| | |
|---|---|
{table}

## Accuracy

Test accuracy at the readout: {100 * line["acc"]:.2f} %.
{steps}
This is one run with one seed. Compare means over seeds, on the same split.

## How to use it

{use.strip()}

## License and citation

MIT, like snn_repro. The data set has its own license. Please cite snn_repro and the paper whose tables it reproduces:

```bibtex
{CITATION}
```
"""


def _metadata(result: RunResult, acc: float) -> dict[str, Any]:
    """Metadata for model hubs (https://huggingface.co/docs/hub/model-cards) with the test accuracy."""
    accuracy = {"type": "accuracy", "value": round(100 * acc, 4), "name": f"accuracy %, T={result.timesteps}"}
    dataset = {"type": result.dataset, "name": result.dataset, "split": "test", "revision": result.split_id}
    task = {"type": "image-classification"}
    return {
        "pipeline_tag": "image-classification",
        "tags": ["spiking-neural-network", "snn", "image-classification", result.model, result.neuron["name"]],
        "model-index": [{"name": result.name, "results": [{"task": task, "dataset": dataset, "metrics": [accuracy]}]}],
    }


def _inputs(run: TrainedRun) -> list[tuple[str, str]]:
    """Rows of the card: classes, and how pixels become the network's input."""
    rows = [("classes, by label", ", ".join(run.class_names))]
    facts: Any = run.facts()
    if not facts.static:
        return [*rows, ("values of a frame", "event counts")]
    if hasattr(facts, "stored"):
        rows.append(("values of an image", f"0 to {facts.stored(np.full(run.input_shape, 255, np.uint8)).max():g}"))
    if statistics := getattr(facts, "statistics", None):
        mean, deviation = (", ".join(f"{v:.6g}" for v in values) for values in statistics)
        order = run.config.dataset.channel_order.upper() if run.input_shape[0] == 3 else "grey"
        rows.append((f"normalisation, {order}", f"(value - mean) / std, mean {mean}, std {deviation}"))
    return rows


import_all(__name__, __path__)
