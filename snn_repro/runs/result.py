"""The content of result.json: its keys, how they are made and read back.

`python -m snn_repro.runs.result > docs/result.md` writes the table of keys.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from snn_repro.config import Config, choices, config_hash, to_dict
from snn_repro.console import by_step
from snn_repro.errors import UserError

SCHEMA_VERSION = 1  # other versions are refused; a new key that older results may lack needs no new version

# Key: type, meaning, unit. Accuracies are fractions, on the test part unless stated otherwise.
KEYS: dict[str, tuple[Any, ...]] = {
    "schema_version": (int, "version of this table"),
    "name": (str, "name of the row: `name` in the configuration"),
    "experiment": (str | None, "file in `conf/experiment/`; null if the run has none"),
    "paper_row": (str | None, "id of the line in `results/paper_tables.yaml` that the row is compared with"),
    "seed": (int, "seed of weights, order and augmentation"),
    "config_hash": (str, "hash of the configuration, without paths and other keys that change no number"),
    "recipe_hash": (str, "the same without the seed: equal for runs that are averaged"),
    "dataset": (str, "data set"),
    "model": (str, "network"),
    "loss": (str, "loss"),
    "neuron": (dict, "settings of the neuron; `backend`: backends of its layers"),
    "split_id": (str, "name of the split into training, validation and test samples"),
    "split_sha256": (str, "SHA-256 of the sorted names of the test samples, one per line"),
    "n_train": (int, "size of the training part", "samples"),
    "n_val": (int, "size of the validation part", "samples"),
    "n_test": (int, "number of tested samples", "samples"),
    "correct": (int, "test samples classified correctly after the last epoch", "samples"),
    "timesteps": (int, "T", "time steps"),
    "input_size": (list, "[channels, height, width] of the network's input", "pixels"),
    "num_classes": (int, "number of classes"),
    "params_weights": (int, "parameters without IMP"),
    "params_imp": (int, "initial membrane potentials (IMP), trainable or frozen"),
    "acc_last": (float, "accuracy after the last epoch, at the loss's readout"),
    "acc_best_test": (float, "accuracy of the best epoch on the test part, which the paper reports"),
    "acc_best_test_epoch": (int, "that epoch, from 1"),
    "acc_best_test_is_optimistic": (bool, "always true: the epoch is selected on the test part itself"),
    "acc_valsel": (float | None, "test accuracy of the epoch selected on the validation part; null without one"),
    "acc_valsel_epoch": (int | None, "that epoch, from 1"),
    "acc_val": (float | None, "validation accuracy of that epoch"),
    "acc_last10_mean": (float, "mean accuracy of the last ten epochs"),
    "acc_step": (list, "[T]: accuracy of the output of step t alone, after the last epoch (the paper's curve)"),
    "acc_cum": (list, "[T]: accuracy of the mean output up to step t, after the last epoch"),
    "readout": (str, "readout of the loss: `mean`, `last`, or a name of its own"),
    "loss_last": (float, "test loss after the last epoch"),
    "train_loss_last": (float, "mean training loss of the last epoch"),
    "train_acc_last": (float, "training accuracy of the last epoch, measured during training"),
    "firing_rates": (dict, "of each spiking layer, on the test part, last epoch", "spikes per neuron and time step"),
    "precision": (str, "`float32`, `fp16 autocast` or `bf16 autocast` (training; evaluation is float32)"),
    "device": (str, "`cpu` or `cuda`"),
    "cuda": (dict | None, "GPU and its rounding: `cudnn_benchmark`, TF32 in float32 convolutions (evaluation too)"),
    "threads": (int | None, "CPU threads"),
    "processes": (int | None, "processes that share each batch"),
    "images_per_statistic": (int | None, "images per batch-norm statistic in a training step", "images"),
    "epochs": (int, "trained epochs"),
    "seconds": (float, "duration of all epochs, including evaluation", "s"),
    "samples_per_s": (float | None, "training throughput in the last epoch", "samples/s"),
    "peak_memory_mb": (float, "peak memory: allocated on the GPU, or resident set of the process", "MiB"),
    "config": (dict, "the full configuration"),
    "data": (dict | None, "fingerprint of images or prepared frames, and of pretrained weights"),
    "code": (dict | None, "`commit`, `dirty`, `numbers`: version of the numbers, `outside`: versions of plug-ins"),
    "changed_on_resume": (list | None, "conditions that changed when the run was resumed, as text"),
    "causal": (bool | None, "false if outputs use later steps: accuracy per time step is then not shown"),
    "energy": (dict | None, "operations and energy per sample: if `energy=true` or counting takes < 2 % of the run"),
    "verified": (bool | None, "of a contributed run: whether `snn-verify` found nothing wrong"),
    "right": (dict | None, "of a collected run: `n_test`, and `bits` in hex: which test samples are correct"),
}
# Keys that older results, or those of some runs, lack.
MAY_LACK = {
    "cuda", "threads", "processes", "images_per_statistic", "data", "code", "changed_on_resume", "causal", "energy", "right", "verified",
}  # fmt: skip
KINDS = {
    int: ("integer", "a whole number"), float: ("number", "a number"), str: ("text", "a text"),
    bool: ("boolean", "true or false"), dict: ("object", "a JSON object"), list: ("list", "a list"),
}  # fmt: skip


class RunResult(dict[str, Any]):
    """One finished run: the items of result.json, also available as attributes.

    A missing optional attribute (MAY_LACK) is None. `folder` is where it was read from. Unknown keys are kept.
    """

    def __getattr__(self, key: str) -> Any:
        if key in KEYS or key == "folder":
            return self.get(key)
        raise AttributeError(f"a result has no {key}")

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value


# ---------------------------------------------------------------- from a run


def selection(history: list[dict[str, Any]]) -> list[int]:
    """Positions of new maxima of the selection accuracy (validation if available, else test)."""
    values = [line.get("val_acc", line["acc"]) for line in history]
    return [i for i, value in enumerate(values) if value > max(values[:i], default=-1.0)]


def build_result(
    config: Config, data: Any, weights: int, imp: int, history: list[dict[str, Any]], conditions: dict[str, Any],
    readout: str, n_test: int,
) -> RunResult:  # fmt: skip
    """The result, from the `Data`, metrics.jsonl, numbers of weights and IMP, and `runtime.conditions`."""
    last, best = history[-1], max(history, key=lambda line: line["acc"])
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


# ---------------------------------------------------------------- as text


def epoch_line(line: dict[str, Any], epochs: int, width: int | None = None) -> str:
    """The line printed for an epoch: whole, or what fits into `width` columns."""
    parts = dict(
        epoch=f"epoch {line['epoch']:>3}/{epochs}", loss=f"loss {line['train_loss']:.4f}",
        train=f"train {line['train_acc']:.2%}", val=f"val {line['val_acc']:.2%}" if "val_acc" in line else "",
        test=f"test {line['acc']:.2%}", steps="", lr=f"lr {line['lr']:{'<7' if width else ''}.2g}",
        speed=f"{line['samples_per_s']:,.0f} samples/s" if line["samples_per_s"] else "",
    )  # fmt: skip
    for part in ("steps", "speed", "lr", "train", "val", "loss"):
        parts |= {part: "", "steps": ""}
        room = (width or 10**6) - len("  ".join(filter(None, parts.values()))) - 2
        parts["steps"] = ("" if width else "at ") + by_step([100 * a for a in line["acc_step"]], room)
        if parts["steps"].count(" ") >= min(3, len(line["acc_step"])):
            break
    return "  ".join(filter(None, parts.values())).rstrip()


def summary(result: RunResult) -> str:
    """The line printed for a finished run."""
    return (
        f"test accuracy {result.acc_last:.2%} ({result.correct}/{result.n_test}, readout: {result.readout}); "
        f"at {by_step([100 * a for a in result.acc_step], 10**6)}; {result.seconds:.0f} s"
    )


def table() -> str:
    """docs/result.md: a Markdown table of all keys of result.json."""
    lines = [
        "# result.json", "",
        "Generated from `snn_repro/runs/result.py` by `python -m snn_repro.runs.result > docs/result.md`; do not edit.",
        "Accuracies are fractions, on the test part unless stated otherwise. Results may lack the keys marked *.", "",
        "| key | type | unit | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for key, (kind, meaning, *unit) in KEYS.items():
        plain, *or_null = get_args(kind) or (kind,)
        type_ = KINDS[plain][0] + (" or null" if or_null and key not in MAY_LACK else "")
        lines.append(f"| `{key}`{' *' if key in MAY_LACK else ''} | {type_} | {''.join(unit)} | {meaning} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- read back


def read_result(path: Path) -> RunResult:
    """One result.json, with `folder` added. Raises UserError if damaged or of another version."""
    (found,) = read_file(path)
    if isinstance(found, UserError):
        raise found
    return found


def read_file(path: Path) -> Iterator[RunResult | UserError]:
    """The run of a result.json, or those of NAME.jsonl (one per line).

    A damaged one is yielded as an error. `folder` is that of the file, or NAME joined with the line's `run`.
    """
    try:
        content, collected = path.read_bytes(), path.suffix == ".jsonl"
    except OSError as error:
        yield UserError(f"{path} cannot be read: {error.strerror or error}")
        return
    for i, text in enumerate(content.splitlines() if collected else [content], 1):
        try:
            result = json.loads(text.decode(), parse_constant=_no_number)
            problem = _problem(result)
        except (ValueError, RecursionError):
            problem = "is damaged or no result of snn_repro: it is not valid JSON, or contains NaN"
        if problem:
            where = f"{path}, line {i}," if collected else path
            yield UserError(f"{where} {problem}; repeat the run with force=true")
        else:
            result = RunResult(result)
            result.folder = str(
                path.with_suffix("") / str(result.pop("run", f"line {i}")) if collected else path.parent
            )
            yield result


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not strict JSON")


def _problem(content: Any) -> str | None:
    """Why tables cannot read this parsed JSON as a result; None if they can."""
    if not isinstance(content, dict):
        return "is no result of snn_repro: it has no JSON object"
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
        return f"has acc_step={steps!r:.60}, not one number per time step"
    for value in [content["acc_last"], content["acc_best_test"], *steps, 0 if best is None else best]:
        if not _is((float,), value) or not 0 <= value <= 1:
            return f"has an accuracy of {value!r:.60}, not in 0..1"
    return None


def _is(kinds: tuple[type, ...], value: Any) -> bool:
    """Whether a JSON value is of one of `kinds`; an integer is a number, a boolean is not."""
    return type(value) in kinds or (type(value) is int and float in kinds)


if __name__ == "__main__":
    print(table(), end="")
