"""Short trainings in forked processes that can be broken at a chosen instruction, and what they left behind.

The parent imports torch once and never trains itself, so a child costs a fork instead of a start of Python.
"""

import errno
import json
import logging
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]  # the fixtures, the repository

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from snn_repro import console, files, train  # noqa: E402
from snn_repro.config import Config, load_config  # noqa: E402
from snn_repro.runs import checkpoint  # noqa: E402

SHORT = [
    "logger.mode=disabled", "timesteps=2", "recipe.epochs=5", "debug.max_steps=5", "debug.max_eval_batches=1",
    "recipe.eval_batch_size=64", "recipe.ema_decay=0.9", "recipe.warmup_epochs=1", "augment.crop_padding=1",
    "augment.mixup=0.2",
]  # fmt: skip
CLOCK = {"seconds", "samples_per_s", "peak_memory_mb"}  # may differ between two runs of one configuration
WRITTEN = (
    "config.yaml", "overrides.yaml", "environment.json", "status.json", "metrics.jsonl", "checkpoint_best.pt",
    "checkpoint_previous.pt", "checkpoint_last.pt", "predictions.npz", "result.json",
)  # fmt: skip
STAGES = ("not flushed", "not renamed", "renamed")


class Outcome(NamedTuple):
    """How a process ended: exit code (negative: the signal that killed it) and what it said on stderr and stdout."""

    code: int
    said: str
    log: str

    @property
    def sentence(self) -> bool:
        """One line for the user, no traceback."""
        return self.code in (1, 2) and self.said.count("\n") == 1 and self.said.startswith("snn-train: ")


class Child:
    """One training in a process of its own. `broken` is called in it before the training starts.

    What it prints goes to files beside `folder`, under its name and `label`.
    """

    def __init__(self, folder: Path, config: Config, broken: Callable[[], None] | None = None, label: str = ""):
        self.log = folder.with_name(folder.name + label + ".log")
        self.errors = folder.with_name(folder.name + label + ".err")
        for path in (self.log, self.errors):
            path.write_text("")  # the child may be killed before it opens them
        self.started = time.perf_counter()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            for path, number in ((self.log, 1), (self.errors, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
            code = _train(folder, config, broken)
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)  # the parent's clean-up is not ours

    def running(self) -> bool:
        """Whether it has not ended yet; it stays to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self, limit: float = 120) -> Outcome:
        """Raises AssertionError when it hangs."""
        while self.running():
            if time.perf_counter() - self.started > limit:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"a run hung for {limit} s: {self.errors.read_text()}")
            time.sleep(0.003)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Outcome(code, self.errors.read_text(), self.log.read_text())


def _train(folder: Path, config: Config, broken: Callable[[], None] | None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    def main() -> int:
        if broken is not None:
            broken()
        train.run(config, str(folder))
        return 0

    try:
        return console.told("snn-train", main)
    except BaseException:
        traceback.print_exc()
        return 70


def run_to_end(folder: Path, config: Config, broken: Callable[[], None] | None = None) -> Outcome:
    return Child(folder, config, broken).wait()


# ---------------------------------------------------------------- what a folder holds


def unsound(folder: Path) -> list[str]:
    """Files under a final name that cannot be read whole."""
    bad = []
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
                assert path.read_text().endswith("\n")
            elif path.suffix == ".yaml":
                assert yaml.safe_load(path.read_text()) is not None
            elif path.suffix == ".pt":
                checkpoint.load(path)
            elif path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    [arrays[name] for name in arrays]
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


def temporary(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.tmp")]


def content(folder: Path) -> dict:
    """Every number of a finished run that must be the same in two runs: result, history, weights, predictions."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last, best = (checkpoint.load(folder / name) for name in (checkpoint.LAST, checkpoint.BEST))
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        predictions = {name: arrays[name] for name in arrays}
    strip = lambda d: {k: v for k, v in d.items() if k not in CLOCK | {"config"}}  # noqa: E731
    states = {k: last[k] for k in ("epoch", "step", "model", "optimizer", "schedule", "ema")}
    # not Python's own generator: libraries draw from it while they are imported, training does not
    states["rng"] = {k: last["rng"][k] for k in ("torch", "numpy")}
    return dict(
        result=strip(result),
        lines=[strip(line) for line in lines],
        last=states,
        best=best["model"],
        predictions=predictions,
    )


def same(a, b) -> bool:
    """Equal to the last bit, containers and arrays included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def said(outcome: Outcome, folder: Path) -> str:
    """The sentence, without what differs from machine to machine."""
    text = outcome.said.removeprefix("snn-train: ").strip().replace(str(folder.parent) + "/", "")
    return re.sub(r"pid\(?s?\)? [\d, ]+", "pid N", text)


# ---------------------------------------------------------------- breaking a write


def at_write(name: str, stage: str, count: int, act: Callable[[], None]) -> Callable[[], None]:
    """A `broken` that calls `act` at the `count`-th write (from 0) of `name`, when it has come to `stage`."""

    def broken():
        left = [count]

        def reached(path, now: str) -> bool:
            if now == stage and re.sub(r"(\.\w+)?\.tmp$", "", Path(path).name) == name:
                left[0] -= 1
                return left[0] == -1
            return False

        real_fsync, real_replace = os.fsync, os.replace

        def fsync(number):
            if reached(os.readlink(f"/proc/self/fd/{number}"), "not flushed"):
                act()
            real_fsync(number)

        def replace(source, target):
            if reached(target, "not renamed"):
                act()
            real_replace(source, target)
            if reached(target, "renamed"):
                act()

        os.fsync, os.replace = fsync, replace

    return broken


def kill_self(sig: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), sig)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def configuration(*more: str) -> Config:
    mine = {o.split("=")[0] for o in more}
    return load_config([o for o in SHORT if o.split("=")[0] not in mine] + list(more))


def warm_up() -> None:
    """Import what a training imports, so that children need not."""
    import snn_repro.optim
    import snn_repro.runs.folder
    import snn_repro.runs.loggers.wandb  # noqa: F401
    from snn_repro.data import build_data
    from snn_repro.models import build_model

    assert files.os is os
    torch.use_deterministic_algorithms(True, warn_only=True)  # these two import torch's compiler
    torch.optim.AdamW([torch.zeros(1)])
    data = build_data(configuration())
    build_model("small", num_classes=10, input_shape=data.input_shape, timesteps=2, neuron={"name": "if", "imp": True})
