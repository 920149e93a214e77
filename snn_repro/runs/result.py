"""The content of result.json: what each key means, how it is made of a run, and how it is read back.

`python -m snn_repro.runs.result > docs/result.md` writes the table of the keys.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from snn_repro.config import Config, choices, config_hash, to_dict
from snn_repro.errors import UserError

if TYPE_CHECKING:
    from snn_repro.data.batches import Data

SCHEMA_VERSION = 1  # another one is refused when read; a key that is added, or left out by older versions, needs none


@dataclass(kw_only=True, eq=False)
class RunResult(Mapping[str, Any]):
    """One finished run. A mapping as well: its items are those of result.json, in their order.

    Keys with a default are missing in results of older versions, and then are None here and no items. Accuracies are
    fractions; without a further word they are of the test part.
    """

    schema_version: Annotated[int, "version of this table"]
    name: Annotated[str, "the row, `name` of the configuration"]
    experiment: Annotated[str | None, "file in `conf/experiment/`; null for a run of no such row"]
    paper_row: Annotated[str | None, "id of the line in `results/paper_tables.yaml` that the row is held against"]
    seed: Annotated[int, "seed of weights, order and augmentation"]
    config_hash: Annotated[str, "hash of the configuration, but for places and other keys that move no number"]
    recipe_hash: Annotated[str, "the same without the seed: equal in the runs that a mean is over"]
    dataset: Annotated[str, "data set"]
    model: Annotated[str, "network"]
    loss: Annotated[str, "loss"]
    neuron: Annotated[dict[str, Any], "settings of the neuron; `backend`: what its layers ran"]
    split_id: Annotated[str, "name of the split into training, validation and test samples"]
    split_sha256: Annotated[str, "SHA-256 of the sorted names of the test samples, one a line"]
    n_train: Annotated[int, "training part", "samples"]
    n_val: Annotated[int, "validation part", "samples"]
    n_test: Annotated[int, "samples that were tested", "samples"]
    correct: Annotated[int, "test samples that were right after the last epoch", "samples"]
    timesteps: Annotated[int, "T", "time steps"]
    input_size: Annotated[list[int], "[channels, height, width] of what the network is given", "pixels"]
    num_classes: Annotated[int, "classes"]
    params_weights: Annotated[int, "learned numbers without IMP"]
    params_imp: Annotated[int, "learned initial membrane potentials"]
    acc_last: Annotated[float, "accuracy after the last epoch, at the loss's readout"]
    acc_best_test: Annotated[float, "accuracy of the epoch that is best on the test part: what the paper reports"]
    acc_best_test_epoch: Annotated[int, "that epoch, from 1"]
    acc_best_test_is_optimistic: Annotated[bool, "always true: it was chosen by what it is measured on"]
    acc_valsel: Annotated[float | None, "accuracy of the epoch that validation chose; null without a validation part"]
    acc_valsel_epoch: Annotated[int | None, "that epoch, from 1"]
    acc_val: Annotated[float | None, "its accuracy on the validation part"]
    acc_last10_mean: Annotated[float, "mean accuracy of the last ten epochs"]
    acc_step: Annotated[
        list[float], "[T]: accuracy of the output of step t alone, after the last epoch: the paper's curve"
    ]
    acc_cum: Annotated[list[float], "[T]: accuracy of the mean output up to step t, after the last epoch"]
    readout: Annotated[str, "how the loss reads the outputs: `mean`, `last`, or a name of its own"]
    loss_last: Annotated[float, "test loss after the last epoch"]
    train_loss_last: Annotated[float, "mean training loss of the last epoch"]
    train_acc_last: Annotated[float, "training accuracy of the last epoch, while it was trained"]
    firing_rates: Annotated[
        dict[str, float],
        "of each spiking layer on the test part, after the last epoch",
        "spikes a neuron and time step",
    ]
    precision: Annotated[str, "`float32`, `fp16 autocast` or `bf16 autocast` (training; evaluation is float32)"]
    device: Annotated[str, "`cpu` or `cuda`"]
    cuda: Annotated[
        dict[str, Any] | None,
        "the GPU, and what moves roundings there: `cudnn_benchmark`, and TF32 in float32 convolutions, evaluation's among them",
    ] = None
    threads: Annotated[int | None, "CPU threads"] = None
    processes: Annotated[int | None, "processes that shared each batch"] = None
    images_per_statistic: Annotated[int | None, "over which a training step's batch norms average", "images"] = None
    epochs: Annotated[int, "epochs trained"]
    seconds: Annotated[float, "time of all epochs, evaluations included", "s"]
    samples_per_s: Annotated[float | None, "training speed in the last epoch", "samples/s"]
    peak_memory_mb: Annotated[float, "most memory: allocated on the GPU, or resident of the process", "MiB"]
    config: Annotated[dict[str, Any], "the whole configuration"]
    data: Annotated[dict[str, str] | None, "fingerprint of images or prepared frames, and of initial weights"] = None
    code: Annotated[
        dict[str, Any] | None, "`commit`, `dirty`, `numbers`: version of the numbers, `outside`: versions of packages"
    ] = None
    changed_on_resume: Annotated[list[str] | None, "conditions that were others before a stop, in words"] = None
    causal: Annotated[
        bool | None, "false where the output of a step depends on later ones: then no accuracy at single steps is shown"
    ] = None
    energy: Annotated[
        dict[str, Any] | None,
        "operations and energy a test sample (`energy.py`); with `energy=true`, or where they cost under 2 % of the run",
    ] = None
    right: Annotated[
        dict[str, Any] | None,
        "of a collected run: `n_test`, and `bits`, in hex: which test samples were answered right",
    ] = None
    unknown: dict[str, Any] = field(default_factory=dict)  # keys of another version, kept as they are
    folder: str | None = None  # where it was read from; not in the file

    def __getitem__(self, key: str) -> Any:
        if key in KEYS and (vars(self)[key] is not None or key not in MAY_LACK):
            return vars(self)[key]
        return self.unknown[key]

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in KEYS if key != "folder" and key in self)
        yield from self.unknown
        yield from ("folder",) if self.folder is not None else ()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: str | None = None) -> "RunResult":
        """Of the items of a result.json; a key that it lacks and that no table needs is None."""
        known: dict[str, Any] = {
            k: content.get(k) for k in KEYS if k != "folder" and (k in content or k not in MAY_LACK)
        }
        return cls(**known, unknown={k: v for k, v in content.items() if k not in KEYS}, folder=folder)


KEYS = tuple(f.name for f in fields(RunResult) if f.name != "unknown")
MAY_LACK = {f.name for f in fields(RunResult) if f.default is not MISSING}
HINTS = {
    key: hint for key, hint in get_type_hints(RunResult, include_extras=True).items() if get_origin(hint) is Annotated
}
KINDS = {
    int: ("integer", "a whole number"), float: ("number", "a number"), str: ("text", "a text"),
    bool: ("boolean", "true or false"), dict: ("object", "a JSON object"), list: ("list", "a list"),
}  # fmt: skip
NEEDED = (
    "name", "seed", "recipe_hash", "split_id", "split_sha256", "precision", "timesteps", "readout", "acc_last",
    "acc_valsel", "acc_best_test", "acc_step", "n_train", "n_test", "correct", "params_weights", "params_imp", "epochs",
    "dataset", "model", "loss", "neuron", "paper_row", "device", "config",
)  # fmt: skip


# ---------------------------------------------------------------- made of a run


def selection(history: list[dict[str, Any]]) -> list[int]:
    """Positions at which the selection accuracy (validation, else test) rose above all before."""
    best, positions = -1.0, []
    for i, line in enumerate(history):
        value = line.get("val_acc", line["acc"])
        if value > best:
            best = value
            positions.append(i)
    return positions


def build_result(
    config: Config, data: "Data", weights: int, imp: int, history: list[dict[str, Any]], conditions: dict[str, Any],
    readout: str, n_test: int,
) -> RunResult:  # fmt: skip
    """Of the lines of metrics.jsonl, the numbers of learned weights and IMP, and `runtime.conditions`."""
    last = history[-1]
    best = max(history, key=lambda line: line["acc"])
    selected = history[selection(history)[-1]] if "val_acc" in last else None
    tail = [line["acc"] for line in history[-10:]]
    shown = {k: conditions[k] for k in ("precision", "device", "threads", "processes", "images_per_statistic")}
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
        acc_valsel=selected["acc"] if selected else None, acc_valsel_epoch=selected["epoch"] if selected else None,
        acc_val=selected["val_acc"] if selected else None,
        acc_last10_mean=fmean(tail),
        acc_step=last["acc_step"], acc_cum=last["acc_cum"], readout=readout,
        loss_last=last["loss"], train_loss_last=last["train_loss"], train_acc_last=last["train_acc"],
        firing_rates=last["firing_rates"], **shown, cuda=conditions.get("cuda"), epochs=len(history),
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
    for key, hint in HINTS.items():
        kind, meaning, unit = (*get_args(hint), "")[:3]
        star = " *" if key in MAY_LACK else ""
        or_null = " or null" if NoneType in get_args(kind) and not star else ""
        lines.append(f"| `{key}`{star} | {KINDS[_plain(kind)][0]}{or_null} | {unit} | {meaning} |")
    return "\n".join(lines) + "\n"


def _plain(kind: Any) -> type:
    """`float` of `float | None`, `list` of `list[float]`."""
    kind = next((part for part in get_args(kind) if NoneType in get_args(kind)), kind)
    return get_origin(kind) or kind


# ---------------------------------------------------------------- read back


def read_result(path: Path) -> RunResult:
    """One result.json, with `folder` added. Raises UserError where it is damaged or no result of this version."""
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return RunResult.of(_parsed(text, str(path)), folder=str(path.parent))


def read_lines(path: Path) -> Iterator[RunResult | UserError]:
    """The runs of a file of collected ones, a line each, or what is wrong with the line; `folder` is NAME of NAME.jsonl and `run`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        yield UserError(f"{path} cannot be read: {error.strerror or error}")
        return
    for i, line in enumerate(lines, 1):
        try:
            content = _parsed(line, f"{path}, line {i},")
            yield RunResult.of(content, folder=str(path.with_suffix("") / str(content.pop("run", f"line {i}"))))
        except UserError as error:
            yield error


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    """The content of a result. Raises UserError, which says where it stands."""
    try:
        content = json.loads(text.decode("utf-8"), parse_constant=_no_number)
        complaint = _complaint(content)
    except (ValueError, RecursionError) as error:
        why = f"holds {error}" if isinstance(error, NotStrict) else "does not parse as JSON"
        complaint = f"is damaged or no result of snn_repro: it {why}"
    if complaint:
        raise UserError(f"{where} {complaint}; run it again with force=true")
    return content


class NotStrict(ValueError):
    """NaN or an infinity, which strict JSON does not have."""


def _no_number(word: str) -> None:
    raise NotStrict(word)


def _complaint(content: Any) -> str | None:
    """What keeps parsed JSON from being a result that tables can read; None where nothing does."""
    if not isinstance(content, dict):
        return "is no result of snn_repro: it holds no JSON object"
    if (given := content.get("schema_version")) != SCHEMA_VERSION:
        return f"has schema_version={given}, and this version reads {SCHEMA_VERSION}"
    if missing := [key for key in NEEDED if key not in content]:
        return f"lacks the keys {', '.join(missing)}"
    for key in filter(content.__contains__, HINTS):
        value, hint = content[key], get_args(HINTS[key])[0]
        if not _is(_plain(hint), value) and not (value is None and NoneType in get_args(hint)):
            return f"has {key}={value!r:.60}, which is not {KINDS[_plain(hint)][1]}"
    parts = [part for part in ("dataset", "recipe", "debug") if not isinstance(content["config"].get(part), dict)]
    if parts or not isinstance(content["neuron"].get("imp"), bool):
        return f"has a config without {', '.join(parts) or 'neuron.imp'}"
    steps, best = content["acc_step"], content["acc_valsel"]
    if len(steps) != content["timesteps"]:
        return f"has acc_step={steps!r:.60}, not one number a time step"
    for value in [content["acc_last"], content["acc_best_test"], *steps, 0 if best is None else best]:
        if not _is(float, value) or not 0 <= value <= 1:
            return f"has an accuracy of {value!r:.60}, not in 0..1"
    return None


def _is(kind: type, value: Any) -> bool:
    """Whether JSON means `kind` by a value: a whole number is a number too, true and false are none."""
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


if __name__ == "__main__":
    print(table(), end="")
