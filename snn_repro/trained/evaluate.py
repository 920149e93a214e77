"""Test a trained network again, also with other time steps, data or initial states.

    snn-eval RUN [weights=best] [timesteps=T] [dataset=NAME] [data_dir=DIR] [cache_dir=DIR] [key=value ...] [--json]
    snn-eval RUN anytime=true [epsilon=0.01] [delta=0.1] [key=value ...]

RUN           folder of a run; without other arguments, its last epoch is tested again as in its result.json
weights       last (default), best: the epoch selected by validation, else (optimistic) by the test part, or previous:
              the checkpoint before the last one
timesteps     another T, if no parameter of the network depends on T
dataset       another data set of the same frame size and number of classes; dataset.KEY=... as in training
data_dir, cache_dir, device, threads, kernels
              where the data are now, and the backend
batch_size    samples per batch
initial       zero, half or constant (neuron.initial_value): the neurons' initial state, instead of IMP

Prints tables, or with --json the JSON that is written to RUN/eval/. No other file of the run changes.

Accuracy by time step, of each step's output and of the mean output so far, is measured as in training. Probabilities
are the softmax of the scores that the loss reads. Calibration: expected calibration error over 15 bins of equal width
of the highest probability (Guo et al., ICML 2017), negative log-likelihood, and the Brier score summed over classes,
0 to 2 (Brier, 1950). Early exit: a sample stops at the first step where the highest probability, of the outputs so
far, reaches a threshold, else at T (SEENN-I: Li et al., NeurIPS 2023).
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snn_repro import config as conf
from snn_repro.build import begin_epoch, build_network, loss_of
from snn_repro.config import Config, ConfigError
from snn_repro.console import Parser, harmless, progress, text_table
from snn_repro.data import Batches, Data, build_data
from snn_repro.data.batches import feed
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.losses import Loss
from snn_repro.metrics import sees_future
from snn_repro.neurons import Neuron
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import EVALUATIONS, final_outputs, other_data
from snn_repro.runtime import Precision, channels_last, compile_network, pick_device, seed_everything
from snn_repro.train import evaluate
from snn_repro.trained.anytime import DELTA, EPSILON, anytime, counted_operations, stops
from snn_repro.trained.load import TrainedRun, command, load_run, log

BINS = 15
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
ANYTIME = ("anytime", "epsilon", "delta")  # words of early exit
SHORT = {
    "batch_size": "recipe.eval_batch_size", "recipe.batch_size": "recipe.eval_batch_size", "initial": "neuron.initial",
}  # fmt: skip
# Keys that a test reads, besides those of `dataset.` that do not divide the training part.
READS = (
    "dataset", "timesteps", "data_dir", "cache_dir", "device", "threads", "kernels", "compile", "deterministic",
    "recipe.eval_batch_size", "augment.test_resize", "augment.interpolation",
    "neuron.initial", "neuron.initial_value", "debug.max_eval_batches",
)  # fmt: skip
OF_TRAINING = ("dataset.validation", "dataset.split_seed", "dataset.train_subset", "dataset.timesteps", "dataset.name")


class Evaluation(dict[str, Any]):
    """Result of a test: the keys of its JSON, also as attributes.

    Keys: run, weights, epoch (of the weights, from 1), config_hash (of the run), changes (from the run's
    configuration), remarks; dataset, split_id, split_sha256, timesteps, device, readout; n, correct, acc (at the
    loss's readout), loss, acc_step and acc_cum [T], firing_rates; causal (false if outputs depend on later steps);
    calibration, early_exit (null if outputs or the loss depend on later steps), classes, confusion (rows: labels,
    columns: predictions). Accuracies are fractions. Attributes only: `labels` [N] and `logits` [N, T, K].
    """

    labels: np.ndarray
    logits: np.ndarray

    def __getattr__(self, key: str) -> Any:
        if key in self:
            return self[key]
        raise AttributeError(f"Evaluation has no key {key}")


# ---------------------------------------------------------------- one test


@dataclass
class Prepared:
    """A run's network and data, ready for a test."""

    run: TrainedRun
    base: dict[str, Any]  # the run's configuration, as tested without overrides
    config: Config
    device: torch.device
    model: nn.Module
    loss_fn: Loss
    data: Data

    def outputs(self, part: Batches) -> dict[str, Any]:
        """Outputs and accuracies on a part of the data, as of `train.evaluate`.

        Raises UserError if the loss is not finite.
        """
        config, device, done = self.config, self.device, itertools.count(1)
        (batches,) = feed([part], device, on_device=False, ahead=config.dataset.ahead)  # one pass does not repay a copy
        with progress("test", min(len(batches), config.debug.max_eval_batches or len(batches))) as advance:
            outcome: Any = evaluate(
                self.model, batches, self.loss_fn, Precision(config, device), device, config,
                stop=lambda: advance(next(done)), rates=True,
            )  # fmt: skip
        if not math.isfinite(outcome["loss"]):
            raise UserError(f"the loss of this test is {outcome['loss']}: the network's outputs are not finite")
        return outcome


def prepared(run: TrainedRun | str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """Prepare a run's network and data for a test. Raises UserError as `evaluate_run`."""
    weights, typed = weights_in(overrides)
    if not isinstance(run, TrainedRun) or weights not in (None, run.weights):
        run = load_run(run.path if isinstance(run, TrainedRun) else run, weights or "last")
    base = as_tested(run.config)
    config = with_overrides(run, base, typed)
    device = pick_device(config)
    seed_everything(config)
    model, loss_fn = tested_network(run, config), loss_of(config)
    begin_epoch(run.epoch - 1, config.recipe.epochs, loss_fn)
    loss_fn.watch(model)  # watched layers run in PyTorch, as in training
    model = channels_last(model, device)
    if config.compile:
        compile_network(model, device, config.compile)
    return Prepared(run, base, config, device, model, loss_fn, build_data(config))


def evaluate_run(run: TrainedRun | str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Test a run's network on the test part, as in its training or with `overrides`.

    overrides: as typed after `snn-eval RUN`. Raises UserError, before any data are read, for keys that a test does not
    read or that would change the network, and for time steps, frame sizes or classes that the network does not accept.
    """
    p = prepared(run, overrides)
    run, config, data, loss_fn = p.run, p.config, p.data, p.loss_fn
    outcome = p.outputs(data.test)
    logits, labels = outcome.pop("logits"), outcome.pop("labels")
    scores, ahead = loss_fn.readout(logits), sees_future(p.model)
    confusion = confusion_matrix(labels, scores.argmax(-1), run.num_classes)
    result = Evaluation(
        run=str(run.path), weights=run.weights, epoch=run.epoch, config_hash=conf.config_hash(run.config),
        changes=[c for c in conf.differing(p.base, conf.to_dict(config)) if not c.startswith("recipe.")], remarks=[],
        dataset=config.dataset.name, split_id=data.split.id, split_sha256=data.split.sha256_test,
        timesteps=config.timesteps, device=str(p.device), readout=loss_fn.readout_name,
        **{k: outcome[k] for k in ("n", "correct", "acc", "loss", "acc_step", "acc_cum", "firing_rates")}, causal=not ahead,
        calibration=calibration(scores, labels), early_exit=None,
        classes=by_class(confusion, run.facts(config).label_names), confusion=confusion.tolist(),
    )  # fmt: skip
    result.labels, result.logits = final_outputs([(logits, labels)]).values()
    if ahead or not loss_fn.causal:
        because = ", ".join(ahead) or config.loss.name
        result.remarks.append(f"early exit is not reported: outputs of a step depend on later steps (by {because})")
    else:
        result["early_exit"] = early_exit(running_scores(loss_fn, logits), labels)
    result.remarks.extend(differences_from_run(run, config, result))
    return result


def anytime_run(
    run: TrainedRun | str | Path, overrides: Sequence[str] = (), epsilon: float = EPSILON, delta: float = DELTA
) -> dict[str, Any]:
    """Measure what early exit saves, and choose a threshold with a guarantee (`trained/anytime.py`).

    epsilon: accuracy that may be lost against T; delta: probability that more is lost. Raises UserError for a network
    whose outputs depend on later time steps, and as `evaluate_run`.
    """
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise UserError(f"epsilon={epsilon:g} and delta={delta:g} must lie between 0 and 1")
    p = prepared(run, overrides)
    if (ahead := sees_future(p.model)) or not p.loss_fn.causal:
        raise UserError(
            f"anytime=true needs a network that can stop at a step, and outputs of {', '.join(ahead) or p.config.loss.name} depend "
            "on later steps"
        )

    def scored(part: Batches) -> dict[str, np.ndarray]:
        found = p.outputs(part)
        logits = found["logits"]
        means = torch.stack([logits[: t + 1].mean(0) for t in range(len(logits))]).numpy()
        return dict(mean=means, readout=running_scores(p.loss_fn, logits).numpy(), labels=found["labels"].numpy())

    with counted_operations(p.model, p.config.timesteps) as batches:
        test = scored(p.data.test)
    test["operations"] = torch.cat(batches).numpy()
    validation = scored(p.data.val) if p.data.val else None
    n, needed = len(validation["labels"]) if validation else 0, math.ceil(math.log(delta) / math.log(1 - epsilon))
    few = f"{n} validation samples are too few for epsilon={epsilon:g} and delta={delta:g}, which need {needed}; raise epsilon"
    none = "the guarantee needs a validation part: train with dataset.validation=0.1"
    remarks = [few if validation else none] if n < needed else []
    return dict(
        run=str(p.run.path), weights=p.run.weights, epoch=p.run.epoch, config_hash=conf.config_hash(p.run.config),
        timesteps=p.config.timesteps, readout=p.loss_fn.readout_name, remarks=remarks,
        **anytime(test, validation, epsilon, delta),
    )  # fmt: skip


def weights_in(typed: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split off `weights=`: (its value or None, the other arguments)."""
    asked = [o.partition("=")[2] for o in typed if o.startswith("weights=")]
    return (asked[0] if asked else None), [o for o in typed if not o.startswith("weights=")]


def as_tested(config: Config) -> dict[str, Any]:
    """A run's configuration without what a test ignores: initial weights, training augmentation."""
    plain = conf.to_dict(config)
    plain["model"]["weights"] = None
    plain["augment"] = {k: v for k, v in plain["augment"].items() if f"augment.{k}" in READS}
    return conf.to_dict(conf.checked(plain))


def with_overrides(run: TrainedRun, base: dict[str, Any], typed: Sequence[str]) -> Config:
    """Apply typed overrides to `base`.

    Raises ConfigError for keys that a test does not accept, UserError for data that the network does not accept.
    """
    overrides, ours = config_overrides(typed), base["dataset"]
    if any(o.startswith("neuron.initial=") for o in overrides):
        base = base | {"neuron": base["neuron"] | {"imp": False}}  # imp=true means initial=imp, a contradiction
    if (config := conf.recomposed(base, overrides)).dataset.name == ours["name"]:
        config.dataset.found = ours["found"]
    if (config.dataset.name, config.dataset.frame_size) != (ours["name"], ours["frame_size"]):
        dataset = SETS[config.dataset.name].of(config)
        given = (dataset.frame_shape(config.dataset.frame_size), dataset.num_classes)
        accepted = (run.input_shape, run.num_classes)
        if given != accepted:
            texts = [f"{'x'.join(map(str, shape))} and {classes} classes" for shape, classes in (given, accepted)]
            raise UserError(
                f"dataset={config.dataset.name} has {texts[0]}, but the run's network accepts {texts[1]}; choose a "
                f"data set like {ours['name']}, or fine-tune on this one: snn-train model.weights=RUN"
            )
    return config


def config_overrides(typed: Sequence[str]) -> list[str]:
    """Return overrides with full key names. Raises ConfigError for keys a test ignores."""
    full = []
    for o in typed:
        name, equals, value = o.partition("=")
        if not equals:
            raise ConfigError(f"cannot read '{o}': write key=value")
        name = SHORT.get(name, name)
        if name not in READS and (name in OF_TRAINING or not name.startswith("dataset.")):
            known = name in conf.keys() or name in conf.GROUPS
            useless = f"{o} has no effect on a test, or would change the trained network; remove it"
            raise ConfigError(useless if known else conf.unknown(name))
        full.append(f"{name}={value}")
    return conf.readable(full)


def tested_network(run: TrainedRun, config: Config) -> nn.Module:
    """Build the run's network for a test. Raises UserError if its weights do not fit."""
    model = build_network(config, run.num_classes, run.input_shape)
    given, wanted = run.model.state_dict(), model.state_dict()
    of_neurons = tuple(f"{name}." for name, module in run.model.named_modules() if isinstance(module, Neuron))
    other = (name for name in given.keys() ^ wanted.keys() if name in wanted or not name.startswith(of_neurons))
    unlike = sorted([*other, *(n for n in given.keys() & wanted.keys() if given[n].shape != wanted[n].shape)])
    if unlike and config.timesteps != run.config.timesteps:
        trained = f"{unlike[0]} is sized for the T={run.config.timesteps} of the training"
        raise UserError(f"timesteps={config.timesteps}: {trained}; remove timesteps")
    if missing := sorted(wanted.keys() - given.keys()):
        learned = f"neuron.initial={config.neuron.initial} is learned"
        raise UserError(f"{learned}, but this run has no {missing[0]}; choose zero, half or constant")
    checkpoint.load_model(model, {name: given[name] for name in wanted}, str(run.path))
    return model.eval()


def differences_from_run(run: TrainedRun, config: Config, tested: Evaluation) -> list[str]:
    """Remarks on why these numbers may not be comparable with the run's own."""
    result, remarks = run.result, []
    if not result:
        return [f"the run is not finished: these are the weights of epoch {run.epoch} of {run.config.recipe.epochs}"]
    if not any(c.startswith(("dataset.", "timesteps:")) for c in tested.changes):
        changed, why = other_data(result, config)
        remarks += [f"warning: the data differ from the run's ({'; '.join(changed)})"] if changed else []
        remarks += [f"cannot tell whether the data are the run's: {why}"] if why else []
    if result.dataset == tested.dataset and result.split_sha256 != tested.split_sha256:
        remarks.append(f"warning: not the run's test samples ({result.split_id}); it may have been trained on some")
    return remarks


# ---------------------------------------------------------------- measures


def probabilities(scores: Tensor) -> Tensor:
    """Return the softmax of scores [..., K] in float64."""
    return scores.double().softmax(-1)


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    """Count samples by label (row) and predicted class (column), int64 [K, K]."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1).numpy()


def by_class(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class: n, correct, acc (recall), predicted and precision; null where undefined."""
    return [
        dict(
            label=k, name=names[k] if names else str(k), n=(n := int(row.sum())), correct=(correct := int(row[k])),
            acc=correct / n if n else None, predicted=(all_ := int(confusion[:, k].sum())),
            precision=correct / all_ if all_ else None,
        )
        for k, row in enumerate(confusion)
    ]  # fmt: skip


def calibration(scores: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, Any]:
    """Measure the calibration of scores [N, K]: ece, nll, brier, and the bins.

    ece: sum_b n_b / N |acc_b - confidence_b| over bins of equal width of the highest probability (Guo et al., ICML
    2017). nll: mean of -log p[label]. brier: mean of sum_k (p[k] - [k = label])^2 (Brier, 1950).
    """
    p = probabilities(scores)
    confidence, predicted = p.max(-1)
    correct = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bin b holds b / bins < confidence <= (b + 1) / bins
    n, hits, sure = (
        torch.zeros(bins).double().index_add(0, place, x) for x in (torch.ones_like(correct), correct, confidence)
    )
    of_label = p.gather(1, labels[:, None])[:, 0]
    return dict(
        ece=float((hits - sure).abs().sum() / len(labels)),
        nll=float(-scores.double().log_softmax(-1).gather(1, labels[:, None]).mean()),
        brier=float((p.square().sum(-1) - 2 * of_label + 1).mean()),
        confidence=float(confidence.mean()),
        bins=[
            dict(low=b / bins, high=(b + 1) / bins, n=int(k), acc=float(hits[b] / k), confidence=float(sure[b] / k))
            for b, k in enumerate(n)
            if k
        ],
    )  # fmt: skip


def running_scores(loss_fn: Loss, logits: Tensor) -> Tensor:
    """Return scores [T, N, K]: the loss's readout of the outputs up to each step."""
    return torch.stack([loss_fn.readout(logits[: t + 1]) for t in range(len(logits))])


def early_exit(scores: Tensor, labels: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, Any]]:
    """Measure early exit by confidence on running scores [T, N, K] (SEENN-I).

    A sample stops at the first step whose highest probability reaches the threshold, else at T (Li et al., NeurIPS
    2023). For each threshold, and null (never reached): accuracy, mean steps, fraction of samples that stop at each
    step.
    """
    confidence, predicted = map(torch.stack, zip(*(probabilities(s).max(-1) for s in scores), strict=True))
    sure, correct, rows = confidence.numpy(), (predicted == labels).numpy(), []
    for threshold in (*thresholds, None):
        step = stops(sure, math.inf if threshold is None else threshold)
        acc, exits = correct[step, np.arange(len(step))].mean(), np.bincount(step, minlength=len(sure)) / len(step)
        rows.append(dict(threshold=threshold, acc=float(acc), mean_steps=float(step.mean() + 1), exits=exits.tolist()))
    return rows


# ---------------------------------------------------------------- tables


def tables(e: Evaluation) -> str:
    """Format an evaluation for the terminal."""
    c = e.calibration
    text = [
        f"{harmless(e.run)}, {e.weights} weights (epoch {e.epoch}), {e.dataset}, T={e.timesteps}, {e.device}",
        f"accuracy {_percent(e.acc)}% ({e.correct}/{e.n}, readout: {e.readout}), loss {e.loss:.4f}",
        f"calibration: ECE {_percent(c['ece'])}% ({BINS} bins), NLL {c['nll']:.4f}, Brier {c['brier']:.4f} (0 to 2)",
        *map(harmless, [f"changed from the run: {'; '.join(e.changes)}"] * bool(e.changes) + e.remarks),
    ]
    if e.causal:
        steps = ((str(t), *map(_percent, each)) for t, each in enumerate(zip(e.acc_step, e.acc_cum, strict=True), 1))
        text.append(text_table("accuracy by time step, %", ["t", "output of step t", "mean of steps 1 to t"], steps))
    if e.early_exit:
        exits = ((str(x["threshold"] or "never"), _percent(x["acc"]), f"{x['mean_steps']:.2f}") for x in e.early_exit)
        title = "early exit: stop once the confidence reaches a threshold"
        text.append(text_table(title, ["threshold", "accuracy %", "mean steps"], exits))
    rows = ((x["name"], str(x["n"]), _percent(x["acc"]), _percent(x["precision"])) for x in e.classes if x["n"])
    return "\n".join([*text, text_table("by class", ["class", "samples", "accuracy %", "precision %"], rows)])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


# ---------------------------------------------------------------- the command


def arguments(name: str, doc: str | None, words: str, number: str) -> argparse.Namespace:
    """Parse a command on a trained network: `run`, `words` and `json`."""
    parser = Parser(name, doc)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("words", metavar=words, nargs=number)
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser.parse_intermixed_args()


def early_stop_table(e: dict[str, Any]) -> str:
    """The table that is printed for `anytime_run`."""
    text = [f"{harmless(e['run'])}, {e['weights']} weights (epoch {e['epoch']}), T={e['timesteps']}", *e["remarks"]]
    rows = (
        (
            r["rule"], r["scores"], _percent(r["area_steps"]), _percent(r["area_operations"]),
            *(("", "", "", "") if g is None else (
                "never" if g["threshold"] is None else f"{g['threshold']:.2f}", _percent(g["acc"]), f"{g['steps']:.2f}",
                f"{g['operations']:,.0f}")),
        )
        for r in e["rules"]
        for g in [r["guarantee"]]
    )  # fmt: skip
    title = f"stop early: at most {_percent(e['epsilon'])} % lost with probability {1 - e['delta']:g}"
    head = ["rule", "of", "area, steps", "area, operations", "threshold", "accuracy %", "mean steps", "operations"]
    return "\n".join([*text, text_table(title, head, rows, left=2)])


def early_stop_settings(typed: Sequence[str]) -> dict[str, float] | None:
    """epsilon and delta as typed with anytime=true; None without it. Raises UserError for another value."""
    own = {name: value for name, _, value in (word.partition("=") for word in typed) if name in ANYTIME}
    wanted = own.pop("anytime", "false").lower()
    if wanted not in ("true", "false") or (own and wanted == "false"):
        raise UserError(f"anytime={wanted} must be true or false, and epsilon and delta need anytime=true")
    try:
        return {name: float(value) for name, value in own.items()} if wanted == "true" else None
    except ValueError:
        raise UserError(f"epsilon and delta are numbers between 0 and 1, not {', '.join(own.values())}") from None


def main() -> None:
    """Run `snn-eval`: test, print, and write RUN/eval/NAME.json."""
    args = arguments("snn-eval", __doc__, "KEY=VALUE", "*")
    early = early_stop_settings(args.words)
    words = [word for word in args.words if word.partition("=")[0] not in ANYTIME]
    result: Any = evaluate_run(args.run, words) if early is None else anytime_run(args.run, words, **early)
    print(json.dumps(result) if args.json else tables(result) if early is None else early_stop_table(result))
    typed = [o for o in config_overrides(weights_in(words)[1]) if not o.startswith("recipe.")]
    changed = conf.tweaks(["name=x", *typed])  # a name: choices are listed too
    parts = [result["weights"]] if early is None else ["anytime", result["weights"] * (result["weights"] != "last")]
    file = Path(result["run"], EVALUATIONS, f"{','.join(filter(None, [*parts, changed]))}.json")
    file.parent.mkdir(exist_ok=True)
    write_json(file, result)
    log.info(f"written to {file}")


entry = partial(command, "snn-eval", main)  # of the console script

if __name__ == "__main__":
    entry()
