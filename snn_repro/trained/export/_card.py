"""The model card of an exported network: README.md with the metadata that model hubs read, made of result.json."""

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from snn_repro.console import markdown
from snn_repro.errors import UserError
from snn_repro.registry import SETS
from snn_repro.runs.folder import METRICS, epoch_of

if TYPE_CHECKING:
    from snn_repro.trained.load import TrainedRun

CARD = "README.md"
START = "---\nlicense: mit\nlibrary_name: snn_repro\n"  # by which a card of ours is known
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


def card(run: "TrainedRun", to: str, use: str) -> str:
    """The card of a finished run: what was trained, accuracies by time step of these weights, and `use`, how to load them."""
    result = run.result
    assert result is not None
    line = _line(run)
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
    lines = [f"| {t} | {_percent(acc)} |" for t, acc in enumerate(line["acc_step"], 1)]
    by_step = ["", "| time step t | accuracy of the output of step t alone |", "|---:|---:|", *lines, ""]
    steps = "\n".join(by_step) if result.causal is not False else ""  # else a step has seen the later ones
    return f"""\
---
{yaml.safe_dump(_metadata(run, line), sort_keys=False)}---

# {markdown(result.name)}

A spiking neural network that snn_repro trained, as {to}. Its weights are {chosen}.

| | |
|---|---|
{table}

## Accuracy

On the test part, at the readout: {_percent(line["acc"])}.
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


def _inputs(run: "TrainedRun") -> list[tuple[str, str]]:
    """Classes, and how an image's pixels become the network's input, as rows of the card."""
    rows = [("classes, by label", ", ".join(run.class_names))]
    facts: Any = SETS[run.config.dataset.name]
    with contextlib.suppress(UserError):  # an older run's data, which lie elsewhere now
        facts = run.facts()
    if not facts.static:
        return [*rows, ("values of a frame", "counts of events")]
    if hasattr(facts, "stored"):
        rows.append(("values of an image", f"0 to {facts.stored(np.full(run.input_shape, 255, np.uint8)).max():g}"))
    if statistics := getattr(facts, "statistics", None):
        mean, deviation = (", ".join(f"{v:.6g}" for v in values) for values in statistics)
        order = run.config.dataset.channel_order.upper() if run.input_shape[0] == 3 else "grey"
        rows.append((f"normalised, {order}", f"(value - mean) / deviation, mean {mean}, deviation {deviation}"))
    return rows


def _line(run: "TrainedRun") -> dict[str, Any]:
    """acc and acc_step of the epoch that the weights are of: of the result, or of metrics.jsonl."""
    result = run.result
    assert result is not None
    if run.epoch == result.epochs:
        return dict(acc=result.acc_last, acc_step=result.acc_step)
    if line := epoch_of(run.path, run.epoch):
        return line
    raise UserError(
        f"{run.path / METRICS} lacks epoch {run.epoch}, whose weights these are and whose accuracy the card says; use --weights last"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _metadata(run: "TrainedRun", line: dict[str, Any]) -> dict[str, Any]:
    """The front matter: https://huggingface.co/docs/hub/model-cards, with the accuracy as a result of evaluation."""
    result = run.result
    assert result is not None
    accuracy = {"type": "accuracy", "value": round(100 * line["acc"], 4), "name": f"accuracy %, T={result.timesteps}"}
    evaluated = {
        "task": {"type": "image-classification"},
        "dataset": {"type": result.dataset, "name": result.dataset, "split": "test", "revision": result.split_id},
        "metrics": [accuracy],
    }
    return {
        "license": "mit",
        "library_name": "snn_repro",
        "pipeline_tag": "image-classification",
        "tags": ["spiking-neural-network", "snn", "image-classification", result.model, result.neuron["name"]],
        "model-index": [{"name": result.name, "results": [evaluated]}],
    }
