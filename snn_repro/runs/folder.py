"""The run directory: what is written where, whole or not at all, and how it is read back.

config.yaml overrides.yaml environment.json   everything needed to run it again
status.json                                   running | interrupted | failed (with the error) | done
metrics.jsonl                                 a line an epoch
predictions.npz                               per test sample: label and logits of every step
result.json                                   written last: a run without one did not finish
"""

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from snn_repro import __version__, distributed
from snn_repro.config import Config, config_hash, differing, to_dict
from snn_repro.errors import UserError
from snn_repro.files import replace_atomically, write_error, write_json, write_text
from snn_repro.provenance import git_state

SCHEMA_VERSION = 1
RESULT, STATUS, METRICS, PREDICTIONS, CONFIG = (
    "result.json",
    "status.json",
    "metrics.jsonl",
    "predictions.npz",
    "config.yaml",
)


class RunResult(dict):
    """The content of result.json; keys are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Run:
    """One run directory, held by one process at a time.

    `Run(folder, config)` makes the folder, takes its lock and decides: `finished` holds the earlier result when this
    configuration is already done. Raises UserError when the folder belongs to another configuration (naming the keys),
    cannot be written, or is in use.
    """

    def __init__(self, folder: str | Path, config: Config):
        self.folder = Path(folder)
        self.config = config
        self.hash = config_hash(config)
        self.finished: RunResult | None = None
        self.remark = ""  # on an earlier result: what could not be compared
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115  held for the life of the run
        except OSError as error:
            raise write_error(self.folder, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UserError(
                f"{self.folder} is in use by another run; wait for it or choose hydra.run.dir=..."
            ) from None
        _locks.add(self._lock)
        try:
            for left in self.folder.glob("*.tmp"):  # by a process that was killed while it wrote
                left.unlink()
            self._decide()
        except BaseException:
            self.close()
            raise

    def _decide(self) -> None:
        earlier, result = self.folder / CONFIG, self.folder / RESULT
        if not earlier.exists():
            return
        finished = result.exists()
        if self.config.resume == "never" and not finished:
            return self.clear()
        try:
            changed = differing(_read_config(earlier), to_dict(self.config))
        except UserError:
            if self.config.force:
                return self.clear()
            raise
        if self.config.force and (finished or changed):  # a forced run that was stopped goes on, as any other
            return self.clear()
        if changed:
            raise UserError(
                f"{self.folder} holds a run of another configuration ({'; '.join(changed)}); choose another folder "
                "(hydra.run.dir=...), another name=..., or redo this one with force=true"
            )
        if finished:
            found = RunResult(_read_json(result, result.read_text(), "remove it and start the same command again"))
            changed, self.remark = other_data(found, self.config)
            if changed:
                raise UserError(
                    f"{self.folder} holds a run on other data ({'; '.join(changed)}); give the data_dir and cache_dir that "
                    "it was trained on, choose another folder (hydra.run.dir=...) or name=..., or redo it with force=true"
                )
            self.finished = found

    def clear(self) -> None:
        """Remove what an earlier run left, so that a new start cannot mix with it.

        The configuration goes last and the result before it: killed in between, the folder still says what it holds.
        """
        from snn_repro.runs import checkpoint  # with torch, which those who only read results need not wait for

        for name in (*checkpoint.FILES, METRICS, PREDICTIONS, STATUS, RESULT, CONFIG):
            (self.folder / name).unlink(missing_ok=True)

    def begin(self, overrides: list[str], device: str) -> None:
        """Write what is needed to run this again, before any work."""
        import yaml

        write_text(self.folder / CONFIG, yaml.safe_dump(to_dict(self.config), sort_keys=False))
        write_text(self.folder / "overrides.yaml", yaml.safe_dump(overrides))
        write_json(self.folder / "environment.json", environment(device) | {"processes": distributed.world().size})
        self.status("running")

    def status(self, state: str, error: str | None = None, **more: Any) -> None:
        """Record running | interrupted | failed | done."""
        content = dict(state=state, error=error, config_hash=self.hash, name=self.config.name, seed=self.config.seed,
                       pid=os.getpid(), time=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more)  # fmt: skip
        write_json(self.folder / STATUS, content)

    def history(self) -> list[dict]:
        """The epochs recorded so far. Raises UserError when a line does not parse."""
        path = self.folder / METRICS
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [_read_json(path, line, "put it back, or start again with resume=never") for line in lines]

    def record(self, history: list[dict]) -> None:
        """Write metrics.jsonl anew: a file of some hundred lines, so that a cut line can never be left."""
        write_text(self.folder / METRICS, "".join(json.dumps(line, allow_nan=False) + "\n" for line in history))

    def predictions(self, **arrays: Any) -> None:
        """Write predictions.npz."""
        import numpy as np

        with replace_atomically(self.folder / PREDICTIONS) as temporary, open(temporary, "wb") as f:
            np.savez_compressed(f, **arrays)

    def finish(self, result: RunResult) -> None:
        """Write result.json, the very last file of a run."""
        write_json(self.folder / RESULT, result)

    def close(self) -> None:
        """Give the folder free for another process."""
        _locks.discard(self._lock)
        self._lock.close()


_locks: set = set()


def _forget_locks() -> None:
    for lock in _locks:
        lock.close()
    _locks.clear()


# A loader process shares its parent's open files. It must not hold the folder of a run that was killed.
os.register_at_fork(after_in_child=_forget_locks)


def other_data(result: dict, config: Config, identify: Callable[[Config], dict] | None = None) -> tuple[list[str], str]:
    """(how the data of a finished run differ from those that `config` names now, what kept us from comparing them).

    identify: `fingerprint`, or a cached one.
    """
    from snn_repro.runs.checkpoint import changes
    from snn_repro.runs.fingerprint import fingerprint

    if not result.get("data"):
        return [], "it was made by a version that kept no fingerprint of its data"
    try:
        return changes(result["data"], (identify or fingerprint)(config)), ""
    except UserError as error:
        return [], f"its data were not compared: {error}"


class Follower:
    """The run directory as the other processes of a run see it: rank 0 holds and writes it, they only know its name."""

    def __init__(self, folder: Path, finished: RunResult | None):
        self.folder, self.finished, self.remark = folder, finished, ""

    def ignore(self, *_: Any, **__: Any) -> None:
        """What rank 0's `Run` writes."""

    begin = status = record = predictions = finish = close = ignore


def _read_config(path: Path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        if isinstance(content, dict):
            return content
    except (OSError, yaml.YAMLError):
        pass
    raise UserError(f"{path} cannot be read as the configuration of a run; remove it, or redo the run with force=true")


def _read_json(path: Path, text: str, fix: str) -> dict:
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise UserError(f"{path} is damaged: it does not parse as JSON, or holds no object; {fix}")


NEEDED = (
    "name", "seed", "recipe_hash", "split_id", "split_sha256", "precision", "timesteps", "readout", "acc_last",
    "acc_valsel", "acc_best_test", "acc_step", "n_train", "n_test", "correct", "params_weights", "params_imp", "epochs",
    "dataset", "model", "loss", "neuron", "paper_row", "device", "config",
)  # fmt: skip


def find_results(*roots: str | Path) -> list[RunResult]:
    """Every finished run under the given folders (or given result.json files), sorted by path; `folder` is added.

    A result that is damaged, or not ours, is left out, and a line on stderr says so. Raises UserError for a path that
    does not exist, and where results were found but none can be read.
    """
    found: list[RunResult] = []
    left_out: dict[str, None] = {}  # in order, each once
    for root in map(Path, roots):
        if not root.exists():
            raise UserError(f"{root} does not exist; give folders that hold runs")
        for path in sorted(root.rglob(RESULT)) if root.is_dir() else [root]:
            try:
                found.append(read_result(path))
            except UserError as error:
                left_out[str(error)] = None
    if left_out and not found:
        more = f" (and {len(left_out) - 1} more like it)" if len(left_out) > 1 else ""
        raise UserError(f"no result can be read: {next(iter(left_out))}{more}")
    for sentence in left_out:
        skipped(sentence)
    return found


def skipped(sentence: str) -> None:
    """Say in one line on stderr that something was left out, and why."""
    print("skipped: " + sentence.replace("\n", " "), file=sys.stderr)


def read_result(path: Path) -> RunResult:
    """One result.json, with `folder` added. Raises UserError where it is damaged or no result of this version."""
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        content = json.loads(path.read_text("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        why = f"it holds {error}" if isinstance(error, NotStrict) else "it does not parse as JSON"
        raise UserError(f"{path} is damaged or no result of snn_repro: {why}; remove it, or run it again") from None
    complaint = _complaint(content)
    if complaint:
        raise UserError(f"{path} {complaint}")
    return RunResult(content, folder=str(path.parent))


class NotStrict(ValueError):
    """NaN or an infinity, which strict JSON does not have."""


def _no_number(word: str) -> None:
    raise NotStrict(word)


def _complaint(content: Any) -> str | None:
    """What keeps parsed JSON from being a result that tables can read; None where nothing does."""
    if not isinstance(content, dict):
        return "is no result of snn_repro: it holds no JSON object"
    if content.get("schema_version") != SCHEMA_VERSION:
        given = content.get("schema_version")
        return f"has schema_version={given}; this version reads {SCHEMA_VERSION}, so run it again"
    missing = [key for key in NEEDED if key not in content]
    if missing:
        return f"lacks the keys {', '.join(missing)}; it is no complete result, so run it again"
    kinds = {
        "a text": (str, ("name", "recipe_hash", "split_id", "split_sha256", "precision", "readout", "dataset", "model", "loss", "device")),
        "a whole number": (int, ("seed", "timesteps", "n_train", "n_test", "correct", "params_weights", "params_imp", "epochs")),
        "a JSON object": (dict, ("neuron", "config")),
    }  # fmt: skip
    for what, (kind, keys) in kinds.items():
        for key in keys:
            if not isinstance(content[key], kind) or isinstance(content[key], bool):
                return f"has {key}={content[key]!r:.60}, which is not {what}; it is damaged, so run it again"
    parts = [part for part in ("dataset", "recipe", "debug") if not isinstance(content["config"].get(part), dict)]
    if parts or not isinstance(content["neuron"].get("imp"), bool):
        return f"has a config without {', '.join(parts) or 'neuron.imp'}; it is no complete result, so run it again"
    steps = content["acc_step"]
    if not isinstance(steps, list) or len(steps) != content["timesteps"]:
        return f"has acc_step={steps!r:.60}, not one number a time step; it is damaged, so run it again"
    optional = [content["acc_valsel"]] if content["acc_valsel"] is not None else []
    for value in [content["acc_last"], content["acc_best_test"], *steps, *optional]:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            return f"has an accuracy of {value!r:.60}, not in 0..1; it is damaged, so run it again"
    return None


def environment(device: str) -> dict:
    """Versions, commit and machine, without host name, user or paths."""
    commit, dirty = git_state()
    packages = ("torch", "torchvision", "spikingjelly", "timm", "tonic", "numpy", "hydra-core", "wandb")
    return dict(
        snn_repro=__version__,
        python=platform.python_version(),
        packages={p: _version(p) for p in packages},
        commit=commit,
        dirty=dirty,
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
        cpus=os.cpu_count(),
        argv=sys.argv[1:],
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
