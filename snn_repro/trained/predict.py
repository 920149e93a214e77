"""Ask a trained network about images or recordings of one's own.

    snn-predict RUN FILE... [weights=best] [device=cuda] [--json]

RUN       the folder of a run
FILE      images, resized as the data set's are where they are of another size; or recordings in the format of the run's
          data set (row 3 of the table of labels of a DVS128 Gesture file is user01_led.aedat:03)
weights   last (default) or best: the epoch that was selected, by validation or else (optimistic) by the test part
device    auto (default), cpu, cuda or cuda:N

For every file and time step it prints what the network answers if it stops there, and its confidence: label and softmax
of what the loss reads of the outputs so far. Where events are emulated, an image is recorded by the emulated camera first.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_repro.build import loss_of
from snn_repro.config.schema import DEVICES
from snn_repro.console import audible, text_table
from snn_repro.errors import UserError
from snn_repro.metrics import sees_future
from snn_repro.runtime import pick_device
from snn_repro.trained.evaluate import arguments, probabilities, running_scores
from snn_repro.trained.load import TrainedRun, command, load_run, log


@dataclass(frozen=True)
class Prediction:
    """One sample. `steps`: (label, its name, confidence) of a network that stops at each time step; first come the last's."""

    source: str
    label: int
    name: str
    confidence: float
    steps: list[tuple[int, str, float]]
    logits: Tensor  # [T, K]: the output of each step


@audible(log)
def predict(run: TrainedRun | str | Path, sources: Iterable[Any], weights: str = "last") -> list[Prediction]:
    """What a run's network sees in images or recordings: paths, PIL images, arrays or `Events` (see TrainedRun.transform).

    It computes where `run.model` is. Raises UserError with one sentence for a sample that cannot be read, before the network
    is asked about any.
    """
    run = run if isinstance(run, TrainedRun) else load_run(run, weights)
    names, loss_fn = run.class_names, loss_of(run.config)
    device = next(run.model.parameters()).device
    inputs = [(str(s) if isinstance(s, str | Path) else f"sample {k}", run.transform(s)) for k, s in enumerate(sources)]
    found = []
    for source, x in inputs:
        with torch.inference_mode():
            logits = run.model(x.to(device)).float().cpu()
        p = probabilities(running_scores(loss_fn, logits))[:, 0]
        steps = [(k, names[k], float(p[t, k])) for t, k in enumerate(p.argmax(-1).tolist())]
        found.append(Prediction(source, *steps[-1], steps, logits[:, 0]))
    return found


def tables(found: list[Prediction]) -> str:
    """What a terminal shows: one table a sample, of which few have more than ten lines."""
    return "\n".join(
        text_table(
            f"{p.source}: {p.name}, {100 * p.confidence:.1f}%",
            ["up to t", "label", "confidence %"],
            ((str(t), name, f"{100 * confidence:.1f}") for t, (_, name, confidence) in enumerate(p.steps, 1)),
        )
        for p in found
    ).lstrip("\n")


def main() -> None:
    args = arguments("snn-predict", __doc__, "FILE", "+")
    own = {k: v for k, e, v in (w.partition("=") for w in args.words) if e and k in ("weights", "device")}
    if own.get("device", "auto") not in DEVICES:
        raise UserError(f"device={own['device']} must be auto, cpu, cuda or cuda:N")
    run = load_run(args.run, own.get("weights", "last"))
    run.model.to(pick_device(replace(run.config, device=own.get("device", "auto"))))
    found = predict(run, [w for w in args.words if w.partition("=")[0] not in own])
    if ahead := sees_future(run.model):
        log.info(
            f"the output of a step depends on later ones (by {', '.join(ahead)}): only that of the last step counts"
        )
    if args.json:
        step = ("label", "name", "confidence")
        plain = [
            dict(steps=[dict(zip(step, s, strict=True)) for s in p.steps], logits=p.logits.tolist()) for p in found
        ]
        print(json.dumps([vars(p) | more for p, more in zip(found, plain, strict=True)], indent=1))
    else:
        print(tables(found))


def entry() -> None:
    """`snn-predict`."""
    command("snn-predict", main)


if __name__ == "__main__":
    entry()
