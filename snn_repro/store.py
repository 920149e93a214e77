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
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from snn_repro import __version__, distributed
from snn_repro.config import Config, config_hash, differing, to_dict
from snn_repro.errors import UserError
from snn_repro.files import replace_atomically, write_error, write_json, write_text

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
            self.finished = RunResult(_read_json(result, result.read_text(), "remove it and start the same command again"))

    def clear(self) -> None:
        """Remove what an earlier run left, so that a new start cannot mix with it.

        The configuration goes last and the result before it: killed in between, the folder still says what it holds.
        """
        from snn_repro import checkpoint  # with torch, which those who only read results need not wait for

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
        write_text(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in history))

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


class Follower:
    """The run directory as the other processes of a run see it: rank 0 holds and writes it, they only know its name."""

    def __init__(self, folder: Path, finished: RunResult | None):
        self.folder, self.finished = folder, finished

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


def find_results(*roots: str | Path) -> list[RunResult]:
    """Every finished run under the given folders (or given result.json files), sorted by path; `folder` is added.

    Raises UserError for a path that does not exist or a result that is no JSON.
    """
    found = []
    for root in map(Path, roots):
        if not root.exists():
            raise UserError(f"{root} does not exist; give folders that hold runs")
        for path in [root] if root.is_file() else sorted(root.rglob(RESULT)):
            try:
                result = RunResult(json.loads(path.read_text()))
            except (ValueError, TypeError):
                raise UserError(f"{path} is no result of snn_repro: it does not parse as a JSON object") from None
            result["folder"] = str(path.parent)
            found.append(result)
    return found


def environment(device: str) -> dict:
    """Versions, commit and machine, without host name, user or paths."""
    packages = ("torch", "torchvision", "spikingjelly", "timm", "tonic", "numpy", "hydra-core", "wandb")
    return dict(
        snn_repro=__version__,
        python=platform.python_version(),
        packages={p: _version(p) for p in packages},
        commit=_git("rev-parse", "HEAD"),
        dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
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


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
