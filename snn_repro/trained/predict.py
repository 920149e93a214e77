"""Classify your own images or recordings with a trained network.

    snn-predict RUN FILE|FOLDER... [weights=best] [device=cuda] [--json]

RUN       folder of a run
FILE      images, resized like those of the data set if needed; or recordings in the format of the run's data set
          (user01_led.aedat:03 is row 3 in the label table of a DVS128 Gesture file); or folders of them
weights   last (default) or best: the epoch selected by validation, else (optimistic) by the test part
device    auto (default), cpu, cuda or cuda:N

With a folder, all images and recordings at or below it are classified, sorted by path: one line per file.
Files that cannot be read are skipped with a line on stderr.

Otherwise prints, for every file and time step, the label and confidence of a network that stops there: the softmax of the scores
that the loss reads of the outputs so far. If the data set emulates events, images pass the emulated camera first.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snn_repro.build import loss_of
from snn_repro.config.schema import DEVICES
from snn_repro.console import audible, harmless, text_table
from snn_repro.data.formats import SUFFIXES
from snn_repro.data.image_files import EXTENSIONS, images_in
from snn_repro.errors import UserError
from snn_repro.metrics import sees_future
from snn_repro.runtime import pick_device
from snn_repro.trained.evaluate import arguments, probabilities, running_scores
from snn_repro.trained.load import TrainedRun, command, load_run, log


@dataclass(frozen=True)
class Prediction:
    """Prediction for one sample: at the last time step, and in `steps` for each.

    steps: (label, name, confidence) of a network that stops at each time step.
    """

    source: str
    label: int
    name: str
    confidence: float
    steps: list[tuple[int, str, float]]
    logits: Tensor  # [T, K], the output of each step


@audible(log)
def predict(run: TrainedRun | str | Path, sources: Iterable[Any], weights: str = "last") -> list[Prediction]:
    """Classify images or recordings: paths, PIL images, arrays or `Events` (see TrainedRun.transform).

    Runs on the device of `run.model`. Raises UserError for a sample that cannot be read, before any is classified.
    """
    run = run if isinstance(run, TrainedRun) else load_run(run, weights)
    names, loss_fn = run.class_names, loss_of(run.config)
    device = next(run.model.parameters()).device
    inputs = [(str(s) if isinstance(s, str | Path) else f"sample {k}", run.transform(s)) for k, s in enumerate(sources)]
    predictions = []
    for source, x in inputs:
        with torch.inference_mode():
            logits = run.model(x.to(device)).float().cpu()
        p = probabilities(running_scores(loss_fn, logits))[:, 0]
        steps = [(k, names[k], float(p[t, k])) for t, k in enumerate(p.argmax(-1).tolist())]
        predictions.append(Prediction(source, *steps[-1], steps, logits[:, 0]))
    return predictions


def tables(predictions: Iterable[Prediction]) -> str:
    """Format one table per sample for the terminal."""
    return "\n".join(
        text_table(
            f"{p.source}: {p.name}, {100 * p.confidence:.1f}%",
            ["up to t", "label", "confidence %"],
            ((str(t), name, f"{100 * confidence:.1f}") for t, (_, name, confidence) in enumerate(p.steps, 1)),
        )
        for p in predictions
    ).lstrip("\n")


def one_by_one(run: TrainedRun, sources: Iterable[Any]) -> Iterator[Prediction]:
    """`predict` for each sample; unreadable ones are skipped, changes reported for the first only."""
    for source in sources:
        try:
            yield from predict(run, [source])
            log.setLevel(logging.WARNING)
        except UserError as error:
            log.warning(f"skipped: {error}")


def main() -> None:
    """Run `snn-predict`: classify files and print tables or JSON."""
    args = arguments("snn-predict", __doc__, "FILE", "+")
    own = {k: v for k, e, v in (w.partition("=") for w in args.words) if e and k in ("weights", "device")}
    if own.get("device", "auto") not in DEVICES:
        raise UserError(f"device={own['device']} must be auto, cpu, cuda or cuda:N")
    run = load_run(args.run, own.get("weights", "last"))
    run.model.to(pick_device(replace(run.config, device=own.get("device", "auto"))))
    words = [w for w in args.words if w.partition("=")[0] not in own]
    whole, known = any(Path(w).is_dir() for w in words), (*EXTENSIONS, *SUFFIXES)
    sources = [str(Path(w, file)) for w in words for file in (images_in(Path(w), known) if Path(w).is_dir() else [""])]
    predictions: Iterable[Prediction] = one_by_one(run, sources) if whole else predict(run, sources)
    if ahead := sees_future(run.model):
        log.info(f"outputs of a step depend on later steps (by {', '.join(ahead)}): use only the last step's")
    if args.json:
        rows = [
            vars(p) | dict(logits=p.logits.tolist(), steps=[dict(label=k, name=n, confidence=c) for k, n, c in p.steps])
            for p in predictions
        ]
        print(json.dumps(rows, indent=1))
    elif whole:
        for p in predictions:
            print(harmless(f"{p.source}: {p.name}, {100 * p.confidence:.1f}%").replace("\n", "?"), flush=True)
    else:
        print(tables(predictions))


entry = partial(command, "snn-predict", main)  # of the console script

if __name__ == "__main__":
    entry()
