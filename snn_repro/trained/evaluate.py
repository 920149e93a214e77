"""Test a trained network again: as it was, at other time steps, on other data; where it errs, how sure it is, and when.

    snn-eval RUN [weights=best] [timesteps=T] [dataset=NAME] [data_dir=DIR] [cache_dir=DIR] [key=value ...] [--json]

RUN           the folder of a run; with nothing else said, its last epoch is tested again as its result.json has it
weights       last (default) or best: the epoch that was selected, by validation or else (optimistic) by the test part
timesteps     another T, where no parameter is tied to the run's
dataset       another data set of the same frame size and number of classes; dataset.KEY=... as in training
data_dir, cache_dir, device, threads, kernels
              where the data lie now, and the backend
batch_size    samples at a time
initial       zero, half or constant (neuron.initial_value): start the neurons from there instead, IMP left out

It prints tables, or with --json what it writes into RUN/eval/. The run's own files stay as they are.

Accuracy at each time step, of the step's own output and of the mean output up to it, is that of training. Probabilities
are the softmax of the scores that the loss reads. Calibration: expected calibration error over 15 bins of equal width of
the highest probability (Guo et al., ICML 2017), negative log-likelihood, and the Brier score summed over classes, 0 to 2
(Brier, 1950). Early exit: a sample stops at the first step at which the highest probability of what the loss reads of the
outputs so far reaches a threshold, else at T (SEENN-I: Li et al., NeurIPS 2023).
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snn_repro.build import begin_epoch, build_network, loss_of
from snn_repro.config import (
    GROUPS,
    Config,
    ConfigError,
    checked,
    config_hash,
    differing,
    keys,
    readable,
    recomposed,
    to_dict,
    tweaks,
    unknown,
)
from snn_repro.console import Parser, harmless, progress, text_table
from snn_repro.data import build_data
from snn_repro.data.batches import feed
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.losses import Loss
from snn_repro.metrics import sees_future
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import EVALUATIONS, final_outputs, other_data
from snn_repro.runtime import Precision, channels_last, compile_network, pick_device, seed_everything
from snn_repro.train import evaluate
from snn_repro.trained.load import TrainedRun, command, load_run, log

BINS = 15
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
SHORT = {
    "batch_size": "recipe.eval_batch_size", "recipe.batch_size": "recipe.eval_batch_size", "initial": "neuron.initial",
}  # fmt: skip
# What a test reads of a configuration; of `dataset.` all but what divides the training part.
READS = (
    "dataset", "timesteps", "data_dir", "cache_dir", "device", "threads", "kernels", "compile", "deterministic",
    "recipe.eval_batch_size", "augment.test_resize", "augment.interpolation",
    "neuron.initial", "neuron.initial_value", "debug.max_eval_batches",
)  # fmt: skip
OF_TRAINING = ("dataset.validation", "dataset.split_seed", "dataset.train_subset", "dataset.timesteps", "dataset.name")


class Evaluation(dict[str, Any]):
    """What a test found: the keys of its JSON, which are attributes too, and `labels` [N] and `logits` [N, T, K].

    run, weights, epoch (whose weights they are, from 1), config_hash (of the run), changes (in what the test differs from the
    run's own), remarks; dataset, split_id, split_sha256, timesteps, device, readout; n, correct, acc (at the loss's readout),
    loss, acc_step and acc_cum [T], firing_rates; causal (false where the output of a step depends on later ones);
    calibration, early_exit (null where single steps say nothing of a network that stops there), classes, confusion (rows the
    labels, columns what was predicted). Accuracies are fractions.
    """

    labels: np.ndarray
    logits: np.ndarray

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(f"an evaluation has no {key}")

    def json(self) -> str:
        """One line a key, strict JSON."""
        lines = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in self.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def __str__(self) -> str:
        return tables(self)


# ---------------------------------------------------------------- one test


def evaluate_run(run: TrainedRun | str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Test a run's network on the test part, as in its training or with `overrides`, as they are typed after `snn-eval RUN`.

    Raises UserError with one sentence: for keys that would change the network, or that a test does not read, and, before any
    data are read, for a number of time steps, a frame size or a number of classes that the network cannot take.
    """
    weights, typed = weights_in(overrides)
    if not isinstance(run, TrainedRun):
        run = load_run(run, weights or "last")
    elif weights not in (None, run.weights):
        run = load_run(run.path, str(weights))
    base = as_tested(run.config)
    config = with_overrides(run, base, typed)
    device = pick_device(config)
    seed_everything(config)
    model, loss_fn = tested_network(run, config), loss_of(config)
    begin_epoch(run.epoch - 1, config.recipe.epochs, loss_fn)
    loss_fn.watch(model)  # watched layers are computed by PyTorch, as in the run
    model = channels_last(model, device)
    if config.compile:
        compile_network(model, device, config.compile)
    facts = run.facts(config)
    data = build_data(config)
    (test,) = feed([data.test], device, on_device=False, ahead=config.dataset.ahead)  # one pass is not worth a copy
    done = itertools.count(1)
    with progress("test", min(len(test), config.debug.max_eval_batches or len(test))) as advance:
        outcome: Any = evaluate(
            model, test, loss_fn, Precision(config, device), device, config,
            stop=lambda: advance(next(done)), rates=True,
        )  # fmt: skip
    if not math.isfinite(outcome["loss"]):
        raise UserError(f"the loss of this test is {outcome['loss']}: the network's outputs are no finite numbers")
    logits, labels = outcome.pop("logits"), outcome.pop("labels")
    scores, ahead = loss_fn.readout(logits), sees_future(model)
    confusion = confusion_matrix(labels, scores.argmax(-1), run.num_classes)
    found = Evaluation(
        run=str(run.path), weights=run.weights, epoch=run.epoch, config_hash=config_hash(run.config),
        changes=[c for c in differing(base, to_dict(config)) if not c.startswith("recipe.")], remarks=[],
        dataset=config.dataset.name, split_id=data.split.id, split_sha256=data.split.sha256_test,
        timesteps=config.timesteps, device=str(device), readout=loss_fn.readout_name,
        **{k: outcome[k] for k in ("n", "correct", "acc", "loss", "acc_step", "acc_cum", "firing_rates")}, causal=not ahead,
        calibration=calibration(scores, labels), early_exit=None,
        classes=by_class(confusion, facts.label_names), confusion=confusion.tolist(),
    )  # fmt: skip
    found.labels, found.logits = final_outputs([(logits, labels)]).values()
    if ahead or not loss_fn.causal:
        found.remarks.append(
            f"the output of a step depends on later ones (by {', '.join(ahead) or config.loss.name}), so single steps say nothing "
            "of a network that stops there: early exit is left out"
        )
    else:
        found["early_exit"] = early_exit(running_scores(loss_fn, logits), labels)
    found.remarks.extend(unlike_the_run(run, config, found))
    return found


def weights_in(typed: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the weights that were asked for, all else that was typed)."""
    asked = [o.partition("=")[2] for o in typed if o.startswith("weights=")]
    return (asked[0] if asked else None), [o for o in typed if not o.startswith("weights=")]


def as_tested(config: Config) -> dict[str, Any]:
    """A run's configuration without what a test does not read and might stumble over: initial weights, and augmentation but
    for what the test of image files takes from it."""
    plain = to_dict(config)
    plain["model"]["weights"] = None
    plain["augment"] = {k: v for k, v in plain["augment"].items() if f"augment.{k}" in READS}
    return to_dict(checked(plain))


def with_overrides(run: TrainedRun, base: dict[str, Any], typed: Sequence[str]) -> Config:
    """`base` with what was typed. Raises ConfigError for a key that does nothing here, or does too much."""
    overrides = config_overrides(typed)
    initial = next((o.partition("=")[2] for o in overrides if o.startswith("neuron.initial=")), None)
    if initial == base["neuron"].get("initial", ""):
        raise ConfigError(f"neuron.initial={initial} has no effect: the run's neurons start so; leave it out")
    if initial:
        base = base | {"neuron": base["neuron"] | {"imp": False}}  # it says the same, and would contradict
    config, ours = recomposed(base, overrides), base["dataset"]
    if config.dataset.name == ours["name"]:
        config.dataset.found = ours["found"]
    if (config.dataset.name, config.dataset.frame_size) != (ours["name"], ours["frame_size"]):
        dataset = SETS[config.dataset.name].of(config)
        shapes = (
            (dataset.frame_shape(config.dataset.frame_size), dataset.num_classes),
            (run.input_shape, run.num_classes),
        )
        gives, takes = (f"{'x'.join(map(str, shape))} and {classes} classes" for shape, classes in shapes)
        if gives != takes:
            raise UserError(
                f"dataset={config.dataset.name} gives {gives}, and the run's network takes {takes}; choose a data set like "
                f"{ours['name']}, or go on training on this one: snn-train model.weights=RUN"
            )
    return config


def config_overrides(typed: Sequence[str]) -> list[str]:
    """What was typed, by the full names of its keys. Raises ConfigError for one that a test does not read."""
    full = []
    for o in typed:
        name, equals, value = o.partition("=")
        if not equals:
            raise ConfigError(f"cannot read '{o}': write key=value")
        name = SHORT.get(name, name)
        if name not in READS and not (name.startswith("dataset.") and name not in OF_TRAINING):
            if name not in keys() and name not in GROUPS:
                raise ConfigError(unknown(name))
            raise ConfigError(f"{o} has no effect on a test, or would change what was trained; leave it out")
        full.append(f"{name}={value}")
    return readable(full)


def tested_network(run: TrainedRun, config: Config) -> nn.Module:
    """The run's network, built for the configuration of a test. Raises UserError where its weights do not fit that."""
    given = run.model.state_dict()
    if config.timesteps != run.config.timesteps:
        with torch.device("meta"):
            other = build_network(replace(run.config, timesteps=config.timesteps), run.num_classes, run.input_shape)
        theirs, own = ({name: v.shape for name, v in state.items()} for state in (other.state_dict(), given))
        if unequal := sorted(n for n in theirs.keys() | own.keys() if theirs.get(n) != own.get(n)):
            raise UserError(
                f"timesteps={config.timesteps}: parameters of this network are tied to the T={run.config.timesteps} that it was "
                f"trained with ({unequal[0]}); leave timesteps out"
            )
    model = build_network(config, run.num_classes, run.input_shape)
    wanted = model.state_dict().keys()
    if missing := sorted(wanted - given.keys()):
        raise UserError(
            f"neuron.initial={config.neuron.initial} is learned, and this run has no {missing[0]}; choose zero, half or constant"
        )
    checkpoint.load_model(model, {name: value for name, value in given.items() if name in wanted}, str(run.path))
    return model.eval()


def unlike_the_run(run: TrainedRun, config: Config, found: Evaluation) -> list[str]:
    """What a reader must know who holds these numbers against the run's: other data, other samples."""
    result, said = run.result, []
    if not result:
        return [f"the run is not finished: these are the weights of epoch {run.epoch} of {run.config.recipe.epochs}"]
    if not any(c.startswith(("dataset.", "timesteps:")) for c in found.changes):
        changed, why = other_data(result, config)
        said += [f"warning: the data are not those of the run ({'; '.join(changed)})"] if changed else []
        said += [f"whether the data are those of the run is not known: {why}"] if why else []
    if result.dataset == found.dataset and result.split_sha256 != found.split_sha256:
        said.append(f"warning: other samples than the run's test ({result.split_id}): it may have been trained on some")
    return said


# ---------------------------------------------------------------- what is measured


def probabilities(scores: Tensor) -> Tensor:
    """Softmax of scores [..., K], float64."""
    return scores.double().softmax(-1)


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    """int64 [K, K]: how many of each label (row) were taken for each class (column)."""
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).numpy()


def by_class(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class: samples `n`, `correct`, their share `acc` (recall), `predicted` and the share of these that is right
    (`precision`); null where there are none."""
    return [
        dict(
            label=k, name=names[k] if names else str(k), n=(n := int(row.sum())), correct=(correct := int(row[k])),
            acc=correct / n if n else None, predicted=(all_ := int(confusion[:, k].sum())),
            precision=correct / all_ if all_ else None,
        )
        for k, row in enumerate(confusion)
    ]  # fmt: skip


def calibration(scores: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, Any]:
    """Of scores [N, K]: `ece`, sum_b n_b / N |acc_b - confidence_b| over bins of equal width of the highest probability (Guo
    et al., ICML 2017); `nll`, the mean of -log p[label]; `brier`, the mean of sum_k (p[k] - [k = label])^2 (Brier, 1950);
    and the bins."""
    p = probabilities(scores)
    confidence, predicted = p.max(-1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b holds b / bins < confidence <= (b + 1) / bins
    n, hits, sure = (
        torch.zeros(bins).double().index_add(0, place, x) for x in (torch.ones_like(right), right, confidence)
    )
    of_label = p.gather(1, labels[:, None])[:, 0]
    return dict(
        ece=float((hits - sure).abs().sum() / len(labels)),
        nll=float(-scores.double().log_softmax(-1).gather(1, labels[:, None]).mean()),
        brier=float((p.square().sum(-1) - 2 * of_label + 1).mean()),
        confidence=float(confidence.mean()),
        bins=[
            dict(low=b / bins, high=(b + 1) / bins, n=int(n[b]), acc=float(hits[b] / n[b]), confidence=float(sure[b] / n[b]))
            for b in range(bins)
            if n[b]
        ],
    )  # fmt: skip


def running_scores(loss_fn: Loss, logits: Tensor) -> Tensor:
    """[T, N, K]: what the loss reads of the outputs up to each step, as of a network that stops there."""
    return torch.stack([loss_fn.readout(logits[: t + 1]) for t in range(len(logits))])


def early_exit(scores: Tensor, labels: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, Any]]:
    """A sample stops at the first step whose highest probability reaches the threshold, else at T (SEENN-I: Li et al.,
    NeurIPS 2023). Of running scores [T, N, K], for each threshold, and for null, which nobody reaches: accuracy, mean steps
    used, and the share of samples that stop at each step."""
    last = len(scores) - 1
    confidence, predicted = map(torch.stack, zip(*(probabilities(s).max(-1) for s in scores), strict=True))
    right = predicted == labels
    found = []
    for threshold in (*thresholds, None):
        enough = confidence >= threshold if threshold is not None else torch.zeros_like(right)
        enough[last] = True
        step = enough.long().argmax(0)  # the first
        found.append(
            dict(
                threshold=threshold, acc=float(right.gather(0, step[None]).double().mean()),
                mean_steps=float(step.double().mean() + 1),
                exits=(torch.bincount(step, minlength=last + 1) / len(labels)).tolist(),
            )
        )  # fmt: skip
    return found


# ---------------------------------------------------------------- in words

MANY = 20  # classes: above, tables show the worst alone


def tables(e: Evaluation) -> str:
    """What a terminal shows."""
    text = [
        f"{harmless(e.run)}, {e.weights} weights (epoch {e.epoch}), {e.dataset}, T={e.timesteps}, {e.device}",
        f"accuracy {_percent(e.acc)}% ({e.correct}/{e.n}, readout: {e.readout}), loss {e.loss:.4f}",
        *map(harmless, [f"unlike the run: {'; '.join(e.changes)}"] if e.changes else []),
        *map(harmless, e.remarks),
    ]
    if e.causal:
        steps = ((str(t), *map(_percent, each)) for t, each in enumerate(zip(e.acc_step, e.acc_cum, strict=True), 1))
        text.append(text_table("accuracy by time step, %", ["t", "output of t alone", "mean output up to t"], steps))
    if e.early_exit:
        exits = ((str(x["threshold"] or "never"), _percent(x["acc"]), f"{x['mean_steps']:.2f}") for x in e.early_exit)
        title = "early exit: stop once the confidence reaches a threshold"
        text.append(text_table(title, ["threshold", "accuracy %", "mean steps"], exits))
    c = e.calibration
    title = f"calibration: ECE {_percent(c['ece'])}% ({BINS} bins), NLL {c['nll']:.4f}, Brier score {c['brier']:.4f} (0 to 2)"
    bins = (
        (f"{b['low']:.2f}-{b['high']:.2f}", str(b["n"]), _percent(b["confidence"]), _percent(b["acc"]))
        for b in c["bins"]
    )
    text.append(text_table(title, ["confidence", "samples", "mean confidence %", "accuracy %"], bins))
    seen = [x for x in e.classes if x["n"]]
    worst = sorted(seen, key=lambda x: x["acc"])[:10] if len(seen) > MANY else seen
    rows = []
    for x in worst:
        wrong = [0 if k == x["label"] else count for k, count in enumerate(e.confusion[x["label"]])]
        often = f"{e.classes[wrong.index(max(wrong))]['name']} ({max(wrong)})" if max(wrong) else ""
        rows.append((x["name"], str(x["n"]), _percent(x["acc"]), _percent(x["precision"]), often))
    title = "by class" if worst is seen else f"by class, the worst 10 of {len(seen)}"
    columns = ["class", "samples", "accuracy %", "precision %", "most often taken for"]
    return "\n".join([*text, text_table(title, columns, rows)])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


# ---------------------------------------------------------------- the command


def arguments(name: str, doc: str | None, words: str, number: str) -> argparse.Namespace:
    """What was typed: `run`, `words` and `json` of a command on a trained network."""
    parser = Parser(name, doc)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("words", metavar=words, nargs=number)
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser.parse_intermixed_args()


def main() -> None:
    args = arguments("snn-eval", __doc__, "KEY=VALUE", "*")
    weights, others = weights_in(args.words)
    run = load_run(args.run, weights or "last")
    # with a name it says all choices
    changed = tweaks(["name=x", *(o for o in config_overrides(others) if not o.startswith("recipe."))])
    found = evaluate_run(run, args.words)
    print(found.json() if args.json else found)
    file = run.path / EVALUATIONS / f"{','.join(filter(None, [run.weights, changed]))}.json"
    file.parent.mkdir(exist_ok=True)
    write_text(file, found.json())
    log.info(f"written to {file}")


def entry() -> None:
    """`snn-eval`."""
    command("snn-eval", main)


if __name__ == "__main__":
    entry()
