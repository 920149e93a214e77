"""The run directory: its files, all written atomically, and how they are read back.

config.yaml overrides.yaml environment.json   everything needed to repeat the run
status.json                                   running | interrupted | failed (with the error) | done (see `in_use`)
metrics.jsonl                                 one line per epoch
predictions.npz                               label and logits of every step for each test sample
neurobench.json                               NeuroBench's metrics, with neurobench=true
result.json                                   written last: without it, the run did not finish
result_<n>_epochs.json                        earlier result of a run that was continued for more epochs
eval/                                         results of `snn-eval`, one file per test
"""

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from snn_repro import __version__, distributed
from snn_repro.config import Config, config_hash, to_dict
from snn_repro.console import harmless
from snn_repro.errors import UserError
from snn_repro.files import hold, replace_atomically, write_error, write_json, write_text
from snn_repro.provenance import git_state
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.result import RunResult, read_file, read_result

RESULT, STATUS, METRICS = "result.json", "status.json", "metrics.jsonl"
PREDICTIONS, CONFIG, LOCK, NEUROBENCH = "predictions.npz", "config.yaml", ".lock", "neurobench.json"
EVALUATIONS = "eval"
PACKAGES = ("torch", "torchvision", "spikingjelly", "timm", "tonic", "numpy", "hydra-core", "wandb")


class RunFolder:
    """One run directory, locked by one process at a time.

    `RunFolder(path, config)` creates and locks the folder. `finished` is the earlier result if this configuration is
    done. Raises UserError if the folder has another configuration (naming the keys), cannot be written or is in use.
    """

    def __init__(self, path: str | Path, config: Config):
        self.path, self.config = Path(path), config
        self.finished: RunResult | None = None
        self.remark = ""  # why the data of an earlier result were not compared
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = hold(self.path / LOCK)
        except OSError as error:
            raise write_error(self.path, error) from None
        if lock is None:
            raise UserError(f"{self.path} is in use by another run; wait for it or choose hydra.run.dir=...")
        self.close = lock.release
        try:
            for left in self.path.glob("*.tmp"):  # from a process killed while writing
                left.unlink()
            if (self.path / CONFIG).exists():
                self._decide()
        except BaseException:
            self.close()
            raise

    def _decide(self) -> None:
        finished, before = (self.path / RESULT).exists(), None
        try:
            stored = yaml.safe_load((self.path / CONFIG).read_text())
            changed, before = checkpoint.unlike(stored, self.config), stored["recipe"]["epochs"]
        except (OSError, LookupError, ValueError, AttributeError, TypeError, yaml.YAMLError):
            changed = [f"{CONFIG} cannot be read"]
        again = self.config.resume == "never" and not finished and not changed
        forced = self.config.force and (finished or changed)  # a forced run that was stopped resumes like any other
        if again or forced:
            self.clear()
        elif changed:
            raise UserError(
                f"{self.path} holds a run of another configuration ({'; '.join(changed)}); choose another folder "
                "(hydra.run.dir=...), another name=..., or redo this one with force=true"
            )
        elif finished and before != self.config.recipe.epochs:
            if not (self.path / checkpoint.LAST).exists():
                raise UserError(
                    f"{self.path} has {before} epochs and no {checkpoint.LAST} to continue to recipe.epochs="
                    f"{self.config.recipe.epochs} from; redo it with force=true"
                )
            os.replace(self.path / RESULT, self.path / f"result_{before}_epochs.json")
        elif finished:
            self.finished = read_result(self.path / RESULT)
            del self.finished["folder"]
            changed, self.remark = other_data(self.finished, self.config)
            if changed:
                raise UserError(
                    f"{self.path} holds a run on other data ({'; '.join(changed)}); set its data_dir and cache_dir, "
                    "choose another folder (hydra.run.dir=...) or name=..., or redo it with force=true"
                )

    def clear(self) -> None:
        """Remove the files of an earlier run before a new start.

        The result and then the configuration go last, so that the folder stays identifiable if this is interrupted.
        """
        files = *checkpoint.FILES, METRICS, PREDICTIONS, NEUROBENCH, STATUS, "result_*_epochs.json", RESULT, CONFIG
        for path in (path for name in files for path in self.path.glob(name)):
            path.unlink()
        shutil.rmtree(self.path / EVALUATIONS, ignore_errors=True)

    def begin(self, overrides: list[str], device: str) -> None:
        """Write everything needed to repeat the run, before any work."""
        self.configured()
        write_text(self.path / "overrides.yaml", yaml.safe_dump(overrides))
        write_json(self.path / "environment.json", environment(device) | {"processes": distributed.world().size})
        self.status("running")

    def configured(self) -> None:
        """Write config.yaml; repeated once the user's own data have been inspected."""
        write_text(self.path / CONFIG, yaml.safe_dump(to_dict(self.config), sort_keys=False))

    def status(self, state: str, error: str | None = None, **more: Any) -> None:
        """Write status.json: running | interrupted | failed | done."""
        config = self.config
        write_json(self.path / STATUS, dict(
            state=state, error=error, config_hash=config_hash(config), name=config.name, seed=config.seed,
            pid=os.getpid(), time=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more,
        ))  # fmt: skip

    def history(self, epochs: int) -> list[dict]:
        """The first `epochs` recorded epochs. Raises UserError if a line is damaged or missing."""
        found = [line for line in read_epochs(self.path / METRICS) if line["epoch"] <= epochs]
        if len(found) != epochs:
            counted = f"{len(found)} of the {epochs} epochs before the checkpoint"
            raise UserError(f"{self.path / METRICS} has {counted}: it was changed or removed; {FIX}")
        return found

    def record(self, history: list[dict]) -> None:
        """Write all of metrics.jsonl (some hundred lines), so that no line is ever truncated."""
        write_text(self.path / METRICS, "".join(json.dumps(line, allow_nan=False) + "\n" for line in history))

    def predictions(self, shares: Any) -> None:
        """Write predictions.npz: `final_outputs` of all processes."""
        with replace_atomically(self.path / PREDICTIONS) as temporary, open(temporary, "wb") as f:
            np.savez_compressed(f, **final_outputs(shares))

    def finish(self, result: RunResult) -> None:
        """Write result.json, the last file of a run."""
        write_json(self.path / RESULT, result)


class Follower:
    """The run directory for all processes but rank 0, which holds and writes it."""

    def __init__(self, path: Path, finished: RunResult | None):
        self.path, self.finished, self.remark = path, finished, ""

    def ignore(self, *_: Any, **__: Any) -> None:
        """Do nothing: rank 0 writes."""

    begin = configured = status = record = predictions = finish = close = ignore


def open_folder(path: Path, config: Config) -> RunFolder | Follower:
    """Open the run's folder on rank 0, a `Follower` elsewhere; errors reach all processes."""
    folder: RunFolder | None = None
    finished: Any = None
    if distributed.world().rank == 0:
        try:
            folder = RunFolder(path, config)
            finished = folder.finished
        except UserError as error:
            finished = error
    finished = distributed.broadcast(finished)
    if isinstance(finished, UserError):
        raise finished
    return folder or Follower(path, finished)


def in_use(folder: Path) -> bool:
    """Whether a living process holds the folder; a killed one leaves `running` in status.json."""
    if not (folder / LOCK).exists():
        return False
    with contextlib.suppress(OSError):  # a folder that we may not lock counts as in use
        if lock := hold(folder / LOCK, patience=0):
            lock.release()
            return False
    return True


def environment(device: str) -> dict:
    """Versions, commit and machine, without host name, user or paths."""
    commit, dirty = git_state()
    return dict(
        snn_repro=__version__, python=platform.python_version(),
        packages={name: next((d.version for d in distributions(name=name)), None) for name in PACKAGES},
        commit=commit, dirty=dirty, device=device, platform=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count(), argv=sys.argv[1:],
    )  # fmt: skip


# ---------------------------------------------------------------- outputs and data of a run


def final_outputs(shares: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """`label` [N] and `logits` [N, T, K] from shares (logits [T, n, K], labels [n])."""
    n = sum(len(labels) for _, labels in shares)
    logits = torch.empty(n, len(shares[0][0]), *shares[0][0].shape[2:])
    label = torch.empty(n, dtype=shares[0][1].dtype)
    for rank, (own, labels) in enumerate(shares):
        logits[rank :: len(shares)], label[rank :: len(shares)] = own.transpose(0, 1), labels
    return dict(label=label.numpy(), logits=(logits.half() if logits.nbytes > 256 * 2**20 else logits).numpy())


def fingerprint(config: Config) -> dict[str, str]:
    """`{what: hash}` of the contents of the data set and of the `model.weights` file.

    A repeated or resumed run must have the same. Raises UserError or DataError if the data are missing.
    """
    hashes = SETS[config.dataset.name].fingerprint(config)
    if config.model.weights:
        weights = checkpoint.find_weights(config.model.weights, config.data_dir)
        hashes["model.weights"] = checkpoint.sha256(weights / checkpoint.LAST if weights.is_dir() else weights)
    return hashes


def other_data(
    result: Mapping[str, Any], config: Config, identify: Callable[[Config], dict] = fingerprint
) -> tuple[list[str], str]:
    """(differences of a finished run's data from those of `config`, why they were not compared)."""
    if not result.get("data"):
        return [], "it was made by a version that recorded no fingerprint of its data"
    try:
        return checkpoint.changes(result["data"], identify(config)), ""
    except UserError as error:
        return [], f"its data were not compared: {error}"


# ---------------------------------------------------------------- read back


FIX = "put it back, or start again with resume=never"  # metrics.jsonl


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; [] without the file. Raises UserError if it is damaged."""
    try:
        lines = [json.loads(line) for line in path.read_text(errors="replace").splitlines()] if path.exists() else []
        for line in lines:
            float(line["epoch"] + line["acc"] + sum(line["acc_step"]))
        return lines
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged: a line is not a JSON object of an epoch's accuracies; {FIX}") from None


def epoch_of(folder: Path, epoch: int) -> dict[str, Any]:
    """The line of metrics.jsonl of an epoch (from 1), or {}. Raises UserError if damaged."""
    return next((line for line in read_epochs(folder / METRICS) if line["epoch"] == epoch), {})


def result_files(root: Path) -> list[Path]:
    """Files with finished runs at or below `root`: result.json, or NAME.jsonl of collected runs.

    NAME.jsonl has one run per line and stands for a folder NAME, so `root` may also be a folder in it.
    """
    if root.is_file():
        return [root]
    lines = (f for f in root.rglob("*.jsonl") if f.name != METRICS and "wandb" not in f.relative_to(root).parts)
    above = (folder.with_name(f"{folder.name}.jsonl") for folder in (root, *root.parents) if folder.name)
    return sorted([*root.rglob(RESULT), *lines]) + [file for file in above if file.is_file()]


def read_files(files: Iterable[Path], root: Path) -> Iterator[RunResult | UserError]:
    """The runs in `files` at or below `root`, or an error for a damaged one."""
    for file in files:
        for found in read_file(file):
            if isinstance(found, UserError) or root.is_file() or root in Path(found.folder, RESULT).parents:
                yield found


def find_results(*roots: str | Path) -> list[RunResult]:
    """Every finished run in the given folders or files, sorted by file, with `folder` added.

    Damaged and foreign results are skipped with a line on stderr. Raises UserError for a missing path, or if there are
    results but none can be read.
    """
    results, left_out = list[RunResult](), dict[str, None]()
    for root in map(Path, roots):
        found = [*read_files(result_files(root), root)]
        if not found and not root.exists():
            raise UserError(f"{root} does not exist; give folders with runs")
        results += [one for one in found if isinstance(one, RunResult)]
        left_out |= {str(one): None for one in found if isinstance(one, UserError)}
    if left_out and not results:
        raise UserError(f"no result can be read: {next(iter(left_out))}")
    for reason in left_out:
        skipped(reason)
    return results


def skipped(reason: str) -> None:
    """Report on stderr, in one line, what was skipped and why."""
    print("skipped: " + harmless(reason.replace("\n", " ")), file=sys.stderr)
