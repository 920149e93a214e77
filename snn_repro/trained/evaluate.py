"""Test a trained network again: as it was, at other time steps, on other data; where it errs, how sure it is, and when.

    snn-eval RUN [weights=best] [timesteps=T] [dataset=NAME] [data_dir=DIR] [cache_dir=DIR] [key=value ...] [--json]
    snn-eval RUN anytime=true [epsilon=0.01] [delta=0.1] [key=value ...]

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
from dataclasses import dataclass
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
from snn_repro.trained.anytime import DELTA, EPSILON, anytime, counted_operations
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


# ---------------------------------------------------------------- one test


@dataclass
class Prepared:
    """A run's network and data, as a test needs them."""

    run: TrainedRun
    base: dict[str, Any]  # the run's configuration, as it would be tested with no overrides
    config: Config
    device: torch.device
    model: nn.Module
    loss_fn: Loss
    data: Data

    def outputs(self, part: Batches) -> dict[str, Any]:
        """What `train.evaluate` gives for a part of the data. Raises UserError where the loss is not finite."""
        config, device, done = self.config, self.device, itertools.count(1)
        (batches,) = feed([part], device, on_device=False, ahead=config.dataset.ahead)  # one pass is not worth a copy
        with progress("test", min(len(batches), config.debug.max_eval_batches or len(batches))) as advance:
            outcome: Any = evaluate(
                self.model, batches, self.loss_fn, Precision(config, device), device, config,
                stop=lambda: advance(next(done)), rates=True,
            )  # fmt: skip
        if not math.isfinite(outcome["loss"]):
            raise UserError(f"the loss of this test is {outcome['loss']}: the network's outputs are no finite numbers")
        return outcome


def prepared(run: TrainedRun | str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """The network of a run and its data, for a test with `overrides`. Raises UserError as `evaluate_run`."""
    weights, typed = weights_in(overrides)
    if not isinstance(run, TrainedRun) or weights not in (None, run.weights):
        run = load_run(run.path if isinstance(run, TrainedRun) else run, weights or "last")
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
    return Prepared(run, base, config, device, model, loss_fn, build_data(config))


def evaluate_run(run: TrainedRun | str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Test a run's network on the test part, as in its training or with `overrides`, as they are typed after `snn-eval RUN`.

    Raises UserError with one sentence: for keys that would change the network, or that a test does not read, and, before any
    data are read, for a number of time steps, a frame size or a number of classes that the network cannot take.
    """
    p = prepared(run, overrides)
    run, config, data, loss_fn = p.run, p.config, p.data, p.loss_fn
    outcome = p.outputs(data.test)
    logits, labels = outcome.pop("logits"), outcome.pop("labels")
    scores, ahead = loss_fn.readout(logits), sees_future(p.model)
    confusion = confusion_matrix(labels, scores.argmax(-1), run.num_classes)
    found = Evaluation(
        run=str(run.path), weights=run.weights, epoch=run.epoch, config_hash=config_hash(run.config),
        changes=[c for c in differing(p.base, to_dict(config)) if not c.startswith("recipe.")], remarks=[],
        dataset=config.dataset.name, split_id=data.split.id, split_sha256=data.split.sha256_test,
        timesteps=config.timesteps, device=str(p.device), readout=loss_fn.readout_name,
        **{k: outcome[k] for k in ("n", "correct", "acc", "loss", "acc_step", "acc_cum", "firing_rates")}, causal=not ahead,
        calibration=calibration(scores, labels), early_exit=None,
        classes=by_class(confusion, run.facts(config).label_names), confusion=confusion.tolist(),
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


def anytime_run(
    run: TrainedRun | str | Path, overrides: Sequence[str] = (), epsilon: float = EPSILON, delta: float = DELTA
) -> dict[str, Any]:
    """What stopping early saves a run's network (`trained/anytime.py`), with the threshold that loses at most `epsilon`.

    Raises UserError for a network whose outputs depend on later time steps, and as `evaluate_run`.
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
        means = torch.stack([logits[: t + 1].mean(0) for t in range(len(logits))])
        scores = dict(mean=means, readout=running_scores(p.loss_fn, logits), labels=found["labels"])
        return {name: value.numpy() for name, value in scores.items()}

    with counted_operations(p.model, p.config.timesteps) as batches:
        test = scored(p.data.test)
    test["operations"] = torch.cat(batches).numpy()
    validation = scored(p.data.val) if p.data.val else None
    needs = "the guarantee needs a validation part: train with dataset.validation=0.1"
    return dict(
        run=str(p.run.path), weights=p.run.weights, epoch=p.run.epoch, config_hash=config_hash(p.run.config),
        timesteps=p.config.timesteps, readout=p.loss_fn.readout_name, remarks=[] if validation else [needs],
        **anytime(test, validation, epsilon, delta),
    )  # fmt: skip


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
    overrides, ours = config_overrides(typed), base["dataset"]
    if any(o.startswith("neuron.initial=") for o in overrides):
        base = base | {"neuron": base["neuron"] | {"imp": False}}  # it says the same, and would contradict
    config = recomposed(base, overrides)
    if config.dataset.name == ours["name"]:
        config.dataset.found = ours["found"]
    if (config.dataset.name, config.dataset.frame_size) != (ours["name"], ours["frame_size"]):
        dataset = SETS[config.dataset.name].of(config)
        sides = (
            (dataset.frame_shape(config.dataset.frame_size), dataset.num_classes),
            (run.input_shape, run.num_classes),
        )
        if sides[0] != sides[1]:
            gives, takes = (f"{'x'.join(map(str, shape))} and {classes} classes" for shape, classes in sides)
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
        if name not in READS and (name in OF_TRAINING or not name.startswith("dataset.")):
            known = name in keys() or name in GROUPS
            no_use = f"{o} has no effect on a test, or would change what was trained; leave it out"
            raise ConfigError(no_use if known else unknown(name))
        full.append(f"{name}={value}")
    return readable(full)


def tested_network(run: TrainedRun, config: Config) -> nn.Module:
    """The run's network, built for the configuration of a test. Raises UserError where its weights do not fit that."""
    model = build_network(config, run.num_classes, run.input_shape)
    given, wanted = run.model.state_dict(), model.state_dict()
    of_neurons = tuple(f"{name}." for name, module in run.model.named_modules() if isinstance(module, Neuron))
    other = (name for name in given.keys() ^ wanted.keys() if name in wanted or not name.startswith(of_neurons))
    unlike = sorted([*other, *(n for n in given.keys() & wanted.keys() if given[n].shape != wanted[n].shape)])
    if unlike and config.timesteps != run.config.timesteps:
        raise UserError(
            f"timesteps={config.timesteps}: parameters of this network are tied to the T={run.config.timesteps} that it was "
            f"trained with ({unlike[0]}); leave timesteps out"
        )
    if missing := sorted(wanted.keys() - given.keys()):
        raise UserError(
            f"neuron.initial={config.neuron.initial} is learned, and this run has no {missing[0]}; choose zero, half or constant"
        )
    checkpoint.load_model(model, {name: given[name] for name in wanted}, str(run.path))
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


def tables(e: Evaluation) -> str:
    """What a terminal shows."""
    c = e.calibration
    text = [
        f"{harmless(e.run)}, {e.weights} weights (epoch {e.epoch}), {e.dataset}, T={e.timesteps}, {e.device}",
        f"accuracy {_percent(e.acc)}% ({e.correct}/{e.n}, readout: {e.readout}), loss {e.loss:.4f}",
        f"calibration: ECE {_percent(c['ece'])}% ({BINS} bins), NLL {c['nll']:.4f}, Brier score {c['brier']:.4f} (0 to 2)",
        *map(harmless, [f"unlike the run: {'; '.join(e.changes)}"] * bool(e.changes) + e.remarks),
    ]
    if e.causal:
        steps = ((str(t), *map(_percent, each)) for t, each in enumerate(zip(e.acc_step, e.acc_cum, strict=True), 1))
        text.append(text_table("accuracy by time step, %", ["t", "output of t alone", "mean output up to t"], steps))
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
    """What was typed: `run`, `words` and `json` of a command on a trained network."""
    parser = Parser(name, doc)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("words", metavar=words, nargs=number)
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    return parser.parse_intermixed_args()


def anytime_words(e: dict[str, Any]) -> str:
    """What a terminal shows of `anytime_run`."""
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


def main() -> None:
    args = arguments("snn-eval", __doc__, "KEY=VALUE", "*")
    own = {k: v for k, _, v in (w.partition("=") for w in args.words) if k in ("anytime", "epsilon", "delta")}
    words = [w for w in args.words if w.partition("=")[0] not in own]
    wanted = own.pop("anytime", "false").lower()
    try:
        numbers = {k: float(v) for k, v in own.items()}
    except ValueError:
        raise UserError(f"epsilon and delta are numbers between 0 and 1, not {', '.join(own.values())}") from None
    if wanted not in ("true", "false") or (own and wanted == "false"):
        raise UserError(f"anytime={wanted} must be true or false, and epsilon and delta need anytime=true")
    if wanted == "true":
        found: dict[str, Any] = anytime_run(args.run, words, **numbers)
    else:
        found = evaluate_run(args.run, words)
    print(json.dumps(found) if args.json else (anytime_words if wanted == "true" else tables)(found))
    typed = config_overrides(weights_in(words)[1])
    changed = tweaks(["name=x", *(o for o in typed if not o.startswith("recipe."))])  # with a name it says all choices
    weights = found["weights"] if wanted == "false" or found["weights"] != "last" else ""
    name = ",".join(filter(None, ["anytime" * (wanted == "true"), weights, changed]))
    file = Path(found["run"], EVALUATIONS, f"{name}.json")
    file.parent.mkdir(exist_ok=True)
    write_json(file, found)
    log.info(f"written to {file}")


def entry() -> None:
    """`snn-eval`."""
    command("snn-eval", main)


if __name__ == "__main__":
    entry()
