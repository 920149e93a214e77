"""The content of result.json: what each key means, how it is made of a run, and how it is read back.

`python -m snn_repro.runs.result > docs/result.md` writes the table of the keys.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

from snn_repro.config import Config, choices, config_hash, to_dict
from snn_repro.errors import UserError

if TYPE_CHECKING:
    from snn_repro.data.dataset import Data

SCHEMA_VERSION = 1  # another one is refused when read; a key that is added, or left out by older versions, needs none

# Key: type, meaning, unit. Accuracies are fractions; without a further word they are of the test part.
KEYS: dict[str, tuple[Any, ...]] = {
    "schema_version": (int, "version of this table"),
    "name": (str, "the row, `name` of the configuration"),
    "experiment": (str | None, "file in `conf/experiment/`; null for a run of no such row"),
    "paper_row": (str | None, "id of the line in `results/paper_tables.yaml` that the row is held against"),
    "seed": (int, "seed of weights, order and augmentation"),
    "config_hash": (str, "hash of the configuration, but for places and other keys that move no number"),
    "recipe_hash": (str, "the same without the seed: equal in the runs that a mean is over"),
    "dataset": (str, "data set"),
    "model": (str, "network"),
    "loss": (str, "loss"),
    "neuron": (dict, "settings of the neuron; `backend`: what its layers ran"),
    "split_id": (str, "name of the split into training, validation and test samples"),
    "split_sha256": (str, "SHA-256 of the sorted names of the test samples, one a line"),
    "n_train": (int, "training part", "samples"),
    "n_val": (int, "validation part", "samples"),
    "n_test": (int, "samples that were tested", "samples"),
    "correct": (int, "test samples that were right after the last epoch", "samples"),
    "timesteps": (int, "T", "time steps"),
    "input_size": (list, "[channels, height, width] of what the network is given", "pixels"),
    "num_classes": (int, "classes"),
    "params_weights": (int, "learned numbers without IMP"),
    "params_imp": (int, "learned initial membrane potentials"),
    "acc_last": (float, "accuracy after the last epoch, at the loss's readout"),
    "acc_best_test": (float, "accuracy of the epoch that is best on the test part: what the paper reports"),
    "acc_best_test_epoch": (int, "that epoch, from 1"),
    "acc_best_test_is_optimistic": (bool, "always true: it was chosen by what it is measured on"),
    "acc_valsel": (float | None, "accuracy of the epoch that validation chose; null without a validation part"),
    "acc_valsel_epoch": (int | None, "that epoch, from 1"),
    "acc_val": (float | None, "its accuracy on the validation part"),
    "acc_last10_mean": (float, "mean accuracy of the last ten epochs"),
    "acc_step": (list, "[T]: accuracy of the output of step t alone, after the last epoch: the paper's curve"),
    "acc_cum": (list, "[T]: accuracy of the mean output up to step t, after the last epoch"),
    "readout": (str, "how the loss reads the outputs: `mean`, `last`, or a name of its own"),
    "loss_last": (float, "test loss after the last epoch"),
    "train_loss_last": (float, "mean training loss of the last epoch"),
    "train_acc_last": (float, "training accuracy of the last epoch, while it was trained"),
    "firing_rates": (
        dict,
        "of each spiking layer on the test part, after the last epoch",
        "spikes a neuron and time step",
    ),
    "precision": (str, "`float32`, `fp16 autocast` or `bf16 autocast` (training; evaluation is float32)"),
    "device": (str, "`cpu` or `cuda`"),
    "cuda": (
        dict | None,
        "the GPU, and what moves roundings there: `cudnn_benchmark`, and TF32 in float32 convolutions, evaluation's among them",
    ),
    "threads": (int | None, "CPU threads"),
    "processes": (int | None, "processes that shared each batch"),
    "images_per_statistic": (int | None, "over which a training step's batch norms average", "images"),
    "epochs": (int, "epochs trained"),
    "seconds": (float, "time of all epochs, evaluations included", "s"),
    "samples_per_s": (float | None, "training speed in the last epoch", "samples/s"),
    "peak_memory_mb": (float, "most memory: allocated on the GPU, or resident of the process", "MiB"),
    "config": (dict, "the whole configuration"),
    "data": (dict | None, "fingerprint of images or prepared frames, and of initial weights"),
    "code": (dict | None, "`commit`, `dirty`, `numbers`: version of the numbers, `outside`: versions of packages"),
    "changed_on_resume": (list | None, "conditions that were others before a stop, in words"),
    "causal": (
        bool | None,
        "false where the output of a step depends on later ones: then no accuracy at single steps is shown",
    ),
    "energy": (
        dict | None,
        "operations and energy a test sample (`energy.py`); with `energy=true`, or where they cost under 2 % of the run",
    ),
    "verified": (bool | None, "of a contributed run: whether `snn-verify` found nothing wrong"),
    "right": (dict | None, "of a collected run: `n_test`, and `bits`, in hex: which test samples were answered right"),
}
# Keys that results of older versions, or of some runs, lack.
MAY_LACK = {
    "cuda", "threads", "processes", "images_per_statistic", "data", "code", "changed_on_resume", "causal", "energy", "right", "verified",
}  # fmt: skip
KINDS = {
    int: ("integer", "a whole number"), float: ("number", "a number"), str: ("text", "a text"),
    bool: ("boolean", "true or false"), dict: ("object", "a JSON object"), list: ("list", "a list"),
}  # fmt: skip


class RunResult(dict[str, Any]):
    """One finished run: the items of result.json, which are attributes too.

    An attribute that it may lack (MAY_LACK) is None then. `folder` is where it was read from. Keys of other versions are kept.
    """

    def __getattr__(self, key: str) -> Any:
        if key in KEYS or key == "folder":
            return self.get(key)
        raise AttributeError(f"a result has no {key}")

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value


# ---------------------------------------------------------------- made of a run


def selection(history: list[dict[str, Any]]) -> list[int]:
    """Positions at which the selection accuracy (validation, else test) rose above all before."""
    values = [line.get("val_acc", line["acc"]) for line in history]
    return [i for i, value in enumerate(values) if value > max(values[:i], default=-1.0)]


def build_result(
    config: Config, data: "Data", weights: int, imp: int, history: list[dict[str, Any]], conditions: dict[str, Any],
    readout: str, n_test: int,
) -> RunResult:  # fmt: skip
    """Of the lines of metrics.jsonl, the numbers of learned weights and IMP, and `runtime.conditions`."""
    last = history[-1]
    best = max(history, key=lambda line: line["acc"])
    selected = history[selection(history)[-1]] if "val_acc" in last else {}
    shown = ("precision", "device", "cuda", "threads", "processes", "images_per_statistic")
    return RunResult(
        schema_version=SCHEMA_VERSION,
        name=config.name, experiment=config.name if config.name in choices("experiment") else None,
        paper_row=config.paper_row, seed=config.seed,
        config_hash=config_hash(config), recipe_hash=config_hash(config, without=("seed",)),
        dataset=config.dataset.name, model=config.model.name, loss=config.loss.name,
        neuron=to_dict(config)["neuron"] | {"backend": conditions["neuron_backend"]},
        split_id=data.split.id, split_sha256=data.split.sha256_test,
        n_train=data.split.n_train, n_val=data.split.n_val, n_test=n_test, correct=round(last["acc"] * n_test),
        timesteps=config.timesteps, input_size=list(data.input_shape), num_classes=data.num_classes,
        params_weights=weights, params_imp=imp,
        acc_last=last["acc"], acc_best_test=best["acc"], acc_best_test_epoch=best["epoch"],
        acc_best_test_is_optimistic=True,
        acc_valsel=selected.get("acc"), acc_valsel_epoch=selected.get("epoch"), acc_val=selected.get("val_acc"),
        acc_last10_mean=fmean(line["acc"] for line in history[-10:]),
        acc_step=last["acc_step"], acc_cum=last["acc_cum"], readout=readout,
        loss_last=last["loss"], train_loss_last=last["train_loss"], train_acc_last=last["train_acc"],
        firing_rates=last["firing_rates"],
        **{k: conditions[k] for k in shown if conditions.get(k) is not None}, epochs=len(history),
        seconds=sum(line["seconds"] for line in history), samples_per_s=last["samples_per_s"],
        peak_memory_mb=max(line["peak_memory_mb"] for line in history), config=to_dict(config),
    )  # fmt: skip


# ---------------------------------------------------------------- in words


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def epoch_line(line: dict[str, Any], epochs: int) -> str:
    """One plain line an epoch."""
    val = f"  val {percent(line['val_acc'])}" if "val_acc" in line else ""
    speed = f"  {line['samples_per_s']:,.0f} samples/s" if line["samples_per_s"] else ""
    return (
        f"epoch {line['epoch']:>3}/{epochs}  loss {line['train_loss']:.4f}  train {percent(line['train_acc'])}{val}  "
        f"test {percent(line['acc'])}  at t=1..{len(line['acc_step'])}: {' '.join(f'{100 * a:.1f}' for a in line['acc_step'])}"
        f"  lr {line['lr']:.2g}{speed}"
    )


def summary(result: RunResult) -> str:
    """One line a result."""
    steps = " ".join(f"{100 * a:.1f}" for a in result.acc_step)
    return (
        f"test accuracy {percent(result.acc_last)} ({result.correct}/{result.n_test}, readout: {result.readout}); "
        f"at t=1..{result.timesteps}: {steps}; {result.seconds:.0f} s"
    )


def table() -> str:
    """docs/result.md: every key of result.json, in Markdown."""
    lines = [
        "# result.json", "",
        "Made of `snn_repro/runs/result.py` by `python -m snn_repro.runs.result > docs/result.md`; not edited by hand.",
        "Accuracies are fractions; without a further word they are of the test part. Keys marked * are missing in results",
        "of older versions.", "", "| key | type | unit | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for key, (kind, meaning, *unit) in KEYS.items():
        plain, *or_null = get_args(kind) or (kind,)
        said = KINDS[plain][0] + (" or null" if or_null and key not in MAY_LACK else "")
        lines.append(f"| `{key}`{' *' if key in MAY_LACK else ''} | {said} | {''.join(unit)} | {meaning} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- read back


def read_result(path: Path) -> RunResult:
    """One result.json, with `folder` added. Raises UserError where it is damaged or no result of this version."""
    (found,) = read_file(path)
    if isinstance(found, UserError):
        raise found
    return found


def read_file(path: Path) -> Iterator[RunResult | UserError]:
    """The run of a result.json, or those of NAME.jsonl, a line each, or what is wrong with one.

    `folder` is that of the file, or NAME and the line's `run`.
    """
    try:
        content, collected = path.read_bytes(), path.suffix == ".jsonl"
    except OSError as error:
        yield UserError(f"{path} cannot be read: {error.strerror or error}")
        return
    for i, text in enumerate(content.splitlines() if collected else [content], 1):
        try:
            result = json.loads(text.decode(), parse_constant=_no_number)
            complaint = _complaint(result)
        except (ValueError, RecursionError):
            complaint = "is damaged or no result of snn_repro: it does not parse as JSON, or holds NaN"
        if complaint:
            where = f"{path}, line {i}," if collected else path
            yield UserError(f"{where} {complaint}; run it again with force=true")
        else:
            result = RunResult(result)
            result.folder = str(
                path.with_suffix("") / str(result.pop("run", f"line {i}")) if collected else path.parent
            )
            yield result


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no strict JSON")


def _complaint(content: Any) -> str | None:
    """What keeps parsed JSON from being a result that tables can read; None where nothing does."""
    if not isinstance(content, dict):
        return "is no result of snn_repro: it holds no JSON object"
    if (given := content.get("schema_version")) != SCHEMA_VERSION:
        return f"has schema_version={given}, and this version reads {SCHEMA_VERSION}"
    if missing := [key for key in KEYS if key not in content and key not in MAY_LACK]:
        return f"lacks the keys {', '.join(missing)}"
    for key in filter(content.__contains__, KEYS):
        kinds = get_args(KEYS[key][0]) or (KEYS[key][0],)
        if not _is(kinds, content[key]):
            return f"has {key}={content[key]!r:.60}, which is not {KINDS[kinds[0]][1]}"
    parts = [part for part in ("dataset", "recipe", "debug") if not isinstance(content["config"].get(part), dict)]
    if parts or not isinstance(content["neuron"].get("imp"), bool):
        return f"has a config without {', '.join(parts) or 'neuron.imp'}"
    steps, best = content["acc_step"], content["acc_valsel"]
    if len(steps) != content["timesteps"]:
        return f"has acc_step={steps!r:.60}, not one number a time step"
    for value in [content["acc_last"], content["acc_best_test"], *steps, 0 if best is None else best]:
        if not _is((float,), value) or not 0 <= value <= 1:
            return f"has an accuracy of {value!r:.60}, not in 0..1"
    return None


def _is(kinds: tuple[type, ...], value: Any) -> bool:
    """Whether JSON means one of `kinds` by a value: a whole number is a number too, true and false are none."""
    return type(value) in kinds or (type(value) is int and float in kinds)


if __name__ == "__main__":
    print(table(), end="")
