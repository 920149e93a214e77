"""Verify a finished run against its own files, data and code: `snn-verify`.

    snn-verify RUN [data_dir=DIR] [cache_dir=DIR] [device=NAME] [--quick | --whole] [--json]
    snn-verify FILE.zip [...]
    snn-verify --pack RUN [FILE.zip]

RUN      the folder of a finished run, or an archive of --pack
--quick  train nothing
--whole  train the whole run again, not only its last epoch
--pack   write an archive that a stranger can check, without the data and the last weights

Each check is a line: yes, no, or cannot be said, and why. Exit code 1 where one says no, else 0. The folder stays as it is.

configuration   config.yaml, result.json and the checkpoints have the same one; overrides.yaml gives it here too
numbers         the version of the numbers (docs/honest.md) and of packages from outside is that here
data            the fingerprint of the data is that here
records         result.json follows from metrics.jsonl and predictions.npz
test            the checkpoints, tested here, give predictions.npz and the recorded accuracies
training        the last epoch, trained here from the checkpoint before it, gives the last weights, results and outputs

Outputs and weights have to be equal to the last bit, or within a bound, which is printed: another machine rounds otherwise.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from snn_repro import train
from snn_repro.build import build_network, loss_of
from snn_repro.config import Config, checked, differing, hashed, load_config, recomposed, to_dict
from snn_repro.config.schema import LoggerConfig
from snn_repro.console import Parser
from snn_repro.data import build_data
from snn_repro.errors import UserError, brief
from snn_repro.files import replace_atomically
from snn_repro.metrics import correct_cumulative, correct_per_step, sees_future
from snn_repro.models import count_parameters
from snn_repro.outside import versions
from snn_repro.provenance import NUMBERS, moved_since
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import CONFIG, METRICS, PREDICTIONS, RESULT, other_data, read_epochs
from snn_repro.runs.result import RunResult, build_result, read_result, selection
from snn_repro.trained.evaluate import evaluate_run
from snn_repro.trained.load import command, load_run, log

PACKED = (CONFIG, "overrides.yaml", RESULT, METRICS, PREDICTIONS, checkpoint.PREVIOUS)
DAMAGE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, yaml.YAMLError)
HASHES = "hashes.json"  # of an archive: SHA-256 of its files, and of the weights of the last checkpoint
LARGEST = 4 * 2**30  # bytes that an archive may unpack to
# Bounds where outputs are not equal to the last bit: share of predictions that differ, difference of logits by their standard
# deviation, distance of weights by that of one epoch. An epoch with other kernels: 0.004, 0.04 and 0.11 (8 epochs of digits).
LABELS, LOGITS, WEIGHTS = 0.02, 0.2, 0.5
# Keys of a result that have a check of their own, or none.
UNCHECKED = {"config", "code", "data", "changed_on_resume", "folder", "right", "verified"}
OF_A_MACHINE = UNCHECKED | {
    "seconds", "samples_per_s", "peak_memory_mb", "threads", "processes", "device", "precision", "cuda", "images_per_statistic",
    "neuron",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One check: verdict is True, False, or None if it cannot be said."""

    name: str
    verdict: bool | None
    why: str

    def __str__(self) -> str:
        return f"{ {True: 'yes', False: 'no', None: 'cannot be said'}[self.verdict]:<15} {self.name:<14} {self.why}"


@dataclass
class Claimed:
    """What the files of a run claim."""

    folder: Path
    config: Config
    result: RunResult
    history: list[dict[str, Any]]
    labels: Tensor
    logits: Tensor  # [T, N, K]
    exact: bool  # outputs are stored as they were tested: float32, on a CPU
    checkpoints: dict[str, dict[str, Any]]  # by file name, those that are there
    hashes: dict[str, str]  # of an archive


def verify(path: str | Path, overrides: Sequence[str] = (), training: str = "epoch") -> list[Check]:
    """Check a run's folder, or an archive of `pack`.

    overrides: data_dir, cache_dir and device to use here. training: "epoch" repeats the last one, "whole" all, "none" no
    epoch. Raises UserError for another override and for a file that `pack` did not write.
    """
    if wrong := [o for o in overrides if o.partition("=")[0] not in ("data_dir", "cache_dir", "device")]:
        raise UserError(f"{wrong[0]} cannot be changed in a verification; give data_dir, cache_dir or device")
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; give the folder of a finished run, or an archive of --pack")
    checks: list[Check] = []

    def check(name: str, find: Callable[[], tuple[bool | None, str]]) -> bool:
        try:
            checks.append(Check(name, *find()))
        except (UserError, *DAMAGE) as error:
            checks.append(Check(name, False, brief(error)))
        return checks[-1].verdict is not False

    if Path(path).is_file():  # a stranger's folders are not ours
        overrides = ["data_dir=null", "cache_dir=null", *overrides]
    with unpacked(Path(path)) as folder:
        try:
            run = claimed(folder)
        except UserError as error:
            return [Check("files", False, str(error))]
        config = replace(
            recomposed(to_dict(run.config), list(overrides)), logger=LoggerConfig(), energy=bool(run.result.energy),
            neurobench=False, dry_run=False, force=False, resume="auto", run_dir=None,
        )  # fmt: skip
        check("configuration", lambda: configuration(run))
        check("numbers", lambda: numbers(run))
        if check("data", lambda: data_here(run, config)):
            check("records", lambda: records(run, config))
            check("test", lambda: tested(run, overrides))
            check("training", lambda: trained(run, config, training))
    return checks


# ---------------------------------------------------------------- what is there


def claimed(folder: Path) -> Claimed:
    """Read the files of a finished run. Raises UserError if one is missing or damaged."""
    if not (folder / RESULT).is_file():
        raise UserError(f"{folder} is no finished run: it holds no {RESULT}")
    result = read_result(folder / RESULT)
    checkpoints = {name: checkpoint.load(folder / name) for name in checkpoint.FILES[:3] if (folder / name).is_file()}
    for name, content in checkpoints.items():
        checkpoint.weights_of(content, folder / name)
    try:
        config = checked(yaml.safe_load((folder / CONFIG).read_text("utf-8")))
        with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
            labels, logits = (torch.from_numpy(arrays[name]) for name in ("label", "logits"))
        n, steps, classes = logits.shape
        if labels.shape != (n,) or classes != result.num_classes or steps != result.timesteps:
            raise ValueError(f"shapes {list(labels.shape)} and {list(logits.shape)} do not fit")
        hashes = json.loads((folder / HASHES).read_text("utf-8")) if (folder / HASHES).exists() else {}
        history = read_epochs(folder / METRICS)
    except DAMAGE as error:
        raise UserError(f"{folder} cannot be read as a run: {brief(error)}") from None
    if [line["epoch"] for line in history] != list(range(1, config.recipe.epochs + 1)):
        raise UserError(f"{folder / METRICS} does not hold one line for each of the {config.recipe.epochs} epochs")
    exact = logits.dtype == torch.float32 and result.device == "cpu"
    return Claimed(folder, config, result, history, labels, logits.float().transpose(0, 1), exact, checkpoints, hashes)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder of a run, or an archive's files in a temporary folder.

    Raises UserError for an archive that `pack` did not write: other names, links, too large, other content than packed.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                names = [entry.filename for entry in entries]
                if strange := sorted({n for n in names if n not in (*PACKED, HASHES) or names.count(n) > 1}):
                    raise UserError(f"{path} holds {strange[0]!r:.80}, which snn-verify --pack does not write")
                if sum(entry.file_size for entry in entries) > LARGEST:
                    raise UserError(f"{path} unpacks to more than {LARGEST >> 30} GiB")
                for entry in entries:  # never reads beyond the size that was summed
                    Path(temporary, entry.filename).write_bytes(archive.read(entry))
            hashes = json.loads(Path(temporary, HASHES).read_text("utf-8"))
            for name in set(names) - {HASHES}:
                if checkpoint.sha256(Path(temporary, name)) != hashes[name]:
                    raise UserError(f"{path}: {name} is not the file that was packed")
        except DAMAGE as error:
            raise UserError(f"{path} is no archive of snn-verify --pack: {brief(error)}") from None
        yield Path(temporary)


def pack(folder: str | Path, target: str | Path | None = None) -> Path:
    """Write an archive with which others can check a run; returns its path.

    It holds the results, the checkpoint before the last epoch, and the hash of the last weights; no data.
    """
    folder = Path(folder)
    run = claimed(folder)
    if checkpoint.LAST not in run.checkpoints:
        raise UserError(f"{folder} holds no {checkpoint.LAST}: pack it where it was trained")
    path = Path(target or f"{run.config.name}-seed{run.config.seed}.zip")
    hashes = {name: checkpoint.sha256(folder / name) for name in PACKED if (folder / name).is_file()}
    of_last = {checkpoint.LAST: digest(run.checkpoints[checkpoint.LAST])}
    with replace_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in hashes:
            archive.write(folder / name, name)
        archive.writestr(HASHES, json.dumps(hashes | of_last, indent=1))
    return path


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the weights of a checkpoint."""
    found = hashlib.sha256()
    for name, value in sorted(content["model"].items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# ---------------------------------------------------------------- the checks: (verdict, why)


def configuration(run: Claimed) -> tuple[bool | None, str]:
    """Whether all files have one configuration, and the overrides give it here."""
    others = {RESULT: run.result.config} | {name: content["config"] for name, content in run.checkpoints.items()}
    apart = {
        name: differing(run.config, other) for name, other in others.items() if checkpoint.unlike(other, run.config)
    }
    wrong = [f"{name}: {'; '.join(changed)}" for name, changed in apart.items()]
    for name, epoch in ((checkpoint.LAST, len(run.history)), (checkpoint.BEST, selection(run.history)[-1] + 1)):
        if name in run.checkpoints and (found := run.checkpoints[name]["epoch"]) != epoch:
            wrong.append(f"{name} is of epoch {found}, not {epoch}")
    if wrong:
        return False, "; ".join(wrong)
    try:
        typed = yaml.safe_load((run.folder / "overrides.yaml").read_text("utf-8"))
        here = differing(load_config([str(o) for o in typed]), run.config)
    except (OSError, TypeError, yaml.YAMLError) as error:
        return None, f"overrides.yaml cannot be read: {error}"
    if here and not typed:
        return None, "the files agree; the run was started from Python, so no command gives its configuration"
    return not here, f"overrides.yaml gives another one here: {'; '.join(here)}" if here else "all files agree"


def numbers(run: Claimed) -> tuple[bool | None, str]:
    """Whether the code here makes the numbers that the run's code made."""
    code = run.result.code or {}
    version, outside = code.get("numbers"), code.get("outside") or {}
    if not isinstance(version, int):
        return None, f"the run does not say its version of the numbers; here it is {NUMBERS}"
    if version > NUMBERS or moved_since(version, hashed(run.config)):
        return False, f"version {version} there, {NUMBERS} here, and numbers of this configuration moved"
    if outside != (here := versions()):
        return False, f"packages from outside: {outside} there, {here} here"
    if code.get("dirty"):
        return None, f"version {version}, with changes that were not committed"
    return True, f"version {version}"


def data_here(run: Claimed, config: Config) -> tuple[bool | None, str]:
    """Whether the data here are those of the run."""
    changed, why = other_data(run.result, config)
    then = {name: content.get("data") or run.result.data for name, content in run.checkpoints.items()}
    changed += [f"{name} was trained on other data" for name, data in then.items() if data != run.result.data]
    return (False if changed else None if why else True), "; ".join(changed) or why or "fingerprints are equal"


def records(run: Claimed, config: Config) -> tuple[bool | None, str]:
    """Whether result.json follows from metrics.jsonl, and the last line from predictions.npz."""
    result, data, loss = run.result, build_data(config), loss_of(config)
    model = build_network(config, data.num_classes, data.input_shape)
    expected = build_result(
        config, data, *count_parameters(model), run.history, result | {"neuron_backend": result.neuron.get("backend")},
        loss.readout_name, result.n_test,
    )  # fmt: skip
    expected.causal = not sees_future(model)
    wrong, n = unlike(expected, result, leave={"energy", *UNCHECKED}), len(run.labels)
    part = config.debug.max_eval_batches * config.recipe.eval_batch_size or data.split.n_test
    right = int((loss.readout(run.logits).argmax(-1) == run.labels).sum())
    steps = [[int(c) / n for c in count(run.logits, run.labels)] for count in (correct_per_step, correct_cumulative)]
    outputs: dict[str, Any] = dict(n_test=n, acc=right / n, acc_step=steps[0], acc_cum=steps[1])
    recorded = run.history[-1] | {"n_test": result.n_test}
    for key, value in outputs.items():
        if np.abs(np.subtract(value, recorded[key])).max() > (0 if run.exact else LABELS):
            wrong.append(f"{PREDICTIONS} gives {key}={value}, not {recorded[key]}")
    if n != min(part, data.split.n_test):
        wrong.append(f"{n} of the {data.split.n_test} test samples were tested")
    return (not wrong), "; ".join(wrong) or f"{RESULT}, {METRICS} and {PREDICTIONS} agree"


def tested(run: Claimed, overrides: Sequence[str]) -> tuple[bool | None, str]:
    """Whether the checkpoints, tested here, give the outputs and accuracies that were recorded."""
    said = []
    if checkpoint.LAST in run.checkpoints:
        found = evaluate_run(load_run(run.folder), overrides)
        logits = torch.from_numpy(found.logits).float().transpose(0, 1)
        good, why = outputs_alike(run, torch.from_numpy(found.labels), logits)
        if not good:
            return False, f"{checkpoint.LAST}: {why}"
        said.append(f"last: {why}")
    for name, weights in ((checkpoint.BEST, "best"), (checkpoint.PREVIOUS, "previous")):
        if name not in run.checkpoints or run.checkpoints[name].get("step"):
            continue  # in the middle of an epoch nothing was tested
        found = evaluate_run(load_run(run.folder, weights), overrides)
        line = run.history[run.checkpoints[name]["epoch"] - 1]
        for key in ("acc", "acc_step", "acc_cum"):
            pairs = zip(np.atleast_1d(found[key]), np.atleast_1d(line[key]), strict=True)
            if max(abs(a - b) for a, b in pairs) > LABELS:
                return False, f"{name}: {key} of epoch {line['epoch']} was recorded as {line[key]}, and is {found[key]}"
        said.append(f"{weights}: epoch {line['epoch']} as recorded")
    return (True, "; ".join(said)) if said else (None, "no checkpoint is there")


def trained(run: Claimed, config: Config, training: str) -> tuple[bool | None, str]:
    """Whether the last epoch, or the whole run, trained here, gives the same."""
    if training == "none":
        return None, "left out (--quick)"
    whole = training == "whole" or config.recipe.epochs == 1
    if (start := 0 if whole else run.checkpoints.get(checkpoint.PREVIOUS, {}).get("epoch")) is None:
        return None, f"no {checkpoint.PREVIOUS} is there; --whole trains all epochs"
    if start >= config.recipe.epochs:
        return None, f"{checkpoint.PREVIOUS} is of the last epoch, where the run was stopped; --whole trains all epochs"
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary, "run")
        if not whole:
            again.mkdir()
            shutil.copy(run.folder / checkpoint.PREVIOUS, again / checkpoint.LAST)
            shutil.copy(run.folder / CONFIG, again / CONFIG)
            (again / METRICS).write_text("".join(json.dumps(line) + "\n" for line in run.history[:start]), "utf-8")
        train.run(config, str(again))
        return same_training(run, claimed(again), start)


def same_training(run: Claimed, new: Claimed, start: int) -> tuple[bool | None, str]:
    """Whether a run and its repetition agree: to the last bit, or within the bounds."""
    weights, last = new.checkpoints[checkpoint.LAST], run.checkpoints.get(checkpoint.LAST)
    equal = digest(weights) == (run.hashes.get(checkpoint.LAST) if run.hashes else last and digest(last))
    if equal != torch.equal(run.logits, new.logits):
        return False, f"only {'weights' if equal else 'outputs'} are equal to the last bit"
    if equal:
        wrong = unlike(new.result, run.result, leave=OF_A_MACHINE)
        for a, b in zip(new.history[start:], run.history[start:], strict=True):
            wrong += [f"epoch {a['epoch']}: {w}" for w in unlike(a, b, leave=OF_A_MACHINE)]
        return not wrong, "; ".join(wrong[:3]) or "weights, results and outputs are equal to the last bit"
    good, why = outputs_alike(run, new.labels, new.logits)
    if last and checkpoint.PREVIOUS in run.checkpoints:
        apart, moved = (distance(weights["model"], c["model"]) for c in (last, run.checkpoints[checkpoint.PREVIOUS]))
        good = good and apart <= WEIGHTS * moved
        why += f"; distance of weights {apart / max(moved, 1e-12):.3f} of that of one epoch (bound {WEIGHTS})"
    return good, why


# ---------------------------------------------------------------- comparing


def outputs_alike(run: Claimed, labels: Tensor, logits: Tensor) -> tuple[bool, str]:
    """Whether outputs [T, N, K] are as recorded, to the last bit or within bounds."""
    if labels.shape != run.labels.shape or not torch.equal(labels, run.labels):
        return False, f"{PREDICTIONS} has other labels than the data"
    if logits.shape != run.logits.shape:
        return False, f"{PREDICTIONS} has outputs of another shape"
    if torch.equal(logits, run.logits):
        return True, "outputs equal to the last bit"
    other = float((logits.argmax(-1) != run.logits.argmax(-1)).float().mean())
    apart = float((logits - run.logits).abs().mean() / run.logits.std().clamp(min=1e-12))
    why = f"{other:.4f} of the predictions differ (bound {LABELS}), logits by {apart:.1e} of their deviation (bound {LOGITS})"
    return other <= LABELS and apart <= LOGITS, why


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Euclidean distance of two networks' floating-point values."""
    return math.sqrt(sum(float((a[k].double() - b[k].double()).square().sum()) for k in a if a[k].is_floating_point()))


def unlike(expected: Mapping[str, Any], given: Mapping[str, Any], leave: set[str]) -> list[str]:
    """In which keys a result is not the expected one."""
    keys = sorted((expected.keys() | given.keys()) - leave)
    return [f"{k}={given.get(k)!r:.40}, not {expected.get(k)!r:.40}" for k in keys if given.get(k) != expected.get(k)]


# ---------------------------------------------------------------- the command


def main() -> None:
    """Run `snn-verify`."""
    parser = Parser("snn-verify", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, or an archive of --pack")
    parser.add_argument("words", metavar="KEY=VALUE", nargs="*", help="data_dir, cache_dir, device; the file of --pack")
    parser.add_argument("--pack", action="store_true", help="write an archive to be checked by others")
    parser.add_argument("--quick", action="store_true", help="train nothing")
    parser.add_argument("--whole", action="store_true", help="train all epochs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_intermixed_args()
    log.setLevel(logging.ERROR)  # training prints no lines
    if args.pack:
        print(pack(args.run, *args.words[:1]))
        return
    checks = verify(args.run, args.words, "whole" if args.whole else "none" if args.quick else "epoch")
    verified = all(check.verdict is not False for check in checks)
    if args.json:
        file = {"sha256": checkpoint.sha256(Path(args.run))} if Path(args.run).is_file() else {}
        print(json.dumps(dict(verified=verified, **file, checks=[vars(check) for check in checks]), indent=1))
    else:
        print("\n".join(map(str, checks)))
    if not verified:
        raise SystemExit(1)


entry = partial(command, "snn-verify", main)  # of the console script

if __name__ == "__main__":
    entry()
