"""Sweeps: which runs are left to do, their launch on this machine or a cluster, and what is said at the end.

A job is one run: its overrides, and its checked configuration with the folder it goes to. What became of it is read
from that folder alone, so it does not matter which process or machine ran it.
"""

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.plugins import Plugins
from omegaconf import read_write

from snn_repro.config import (
    Config,
    ConfigError,
    compose_checked,
    config_hash,
    given_keys,
    idle,
    multirun_config,
    refuse_misplaced,
    sweep_jobs,
)
from snn_repro.data.sets import SETS
from snn_repro.errors import Interrupted, UserError, handled_by
from snn_repro.files import write_error
from snn_repro.runs import gpus
from snn_repro.runs.checkpoint import find_weights
from snn_repro.runs.folder import RESULT, STATUS, fingerprint, in_use, other_data

log = logging.getLogger("snn_repro")


class Job(NamedTuple):
    """One run of a sweep."""

    overrides: list[str]
    config: Config

    @property
    def folder(self) -> Path:
        return Path(str(self.config.run_dir))


def plan(overrides: list[str]) -> list[Job]:
    """Every job of the sweep, checked; raises ConfigError for an empty sweep, a wrong key or a shared folder.

    A key set by hand must have an effect in at least one of them.
    """
    refuse_misplaced(overrides, sweep=True)
    jobs = [Job(o, compose_checked(o, sweep=True)) for o in sweep_jobs(overrides)]
    first, *others = (idle(job.config, job.overrides) for job in jobs)
    for name in set(first).intersection(*others):
        raise ConfigError(first[name])
    folder, number = Counter(job.folder for job in jobs).most_common(1)[0]
    if number > 1:
        raise ConfigError(
            f"several jobs of this sweep would share the folder {folder}: what differs changes no result; run them apart, "
            "each with a name=... of its own"
        )
    return jobs


def run_sweep(overrides: list[str], argv: list[str], task: Callable) -> int:
    """Launch what is not finished, wait for it, report; returns the exit code."""
    _known.clear()
    jobs = plan(overrides)
    left = [job for job in jobs if job.config.force or not (job.config.skip_finished and is_finished(job))]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished already", flush=True)
    check_data(left, elsewhere=any(o.startswith("hydra/launcher=") and "slurm" in o for o in overrides))
    problem = signum = None
    try:
        if left:
            with stoppable(left):
                launch(overrides, left, task)
    except UserError as error:  # a queue that refuses, a missing plugin: the report still says where things stand
        problem = str(error)
    except KeyboardInterrupt as interrupt:
        signum = getattr(interrupt, "signum", signal.SIGINT)
        problem = f"the sweep was stopped by {signal.Signals(signum).name}"
    code = report(jobs, len(jobs) - len(left), argv, problem)
    return 128 + signum if signum else code


def in_a_sweep(sentence: str) -> str:
    """A sentence of a run, with the advice that holds in a sweep."""
    return sentence.replace("hydra.run.dir=...", "hydra.sweep.dir=...")


# ---------------------------------------------------------------- before the first run


def check_data(jobs: list[Job], elsewhere: bool = False) -> None:
    """Raise UserError, with a line for each, when jobs lack their data or cannot have their folder; with `elsewhere`, where
    the runs are on other machines than this one, only warn. Nothing is looked at twice."""
    missing: dict[str, list[Job]] = {}
    for job in jobs:
        if sentence := _once(_lacks, job.config) or _blocked(job.folder):
            missing.setdefault(sentence, []).append(job)
    lines = [f"  {of[0].folder}{f' and {len(of) - 1} more' * (len(of) > 1)}: {why}" for why, of in missing.items()]
    number, rest = sum(map(len, missing.values())), "\n".join(lines)
    if missing and not elsewhere:
        raise UserError(f"{number} of {len(jobs)} runs lack their data or folder, so that none was started:\n{rest}")
    if missing:
        print(f"snn-train: {number} runs would lack their data or folder on this machine:\n{rest}", file=sys.stderr)


_known: dict[tuple, Any] = {}  # of the files of this sweep


def _once(look: Callable[[Config], Any], c: Config) -> Any:
    """`look(c)`, once for all runs of a sweep that read the same files."""
    d = c.dataset
    reads = d.name, str(d.own), c.timesteps, d.integrate_by, d.frame_size, c.data_dir, c.cache_dir, c.model.weights
    if (look, reads) not in _known:
        _known[look, reads] = look(c)
    return _known[look, reads]


def _lacks(c: Config) -> str:
    """The sentence about the first file or folder that a run of this configuration would not find; "" if all is there."""
    try:
        SETS[c.dataset.name].check(c)
        if c.model.weights:
            find_weights(c.model.weights, c.data_dir)
    except UserError as error:
        return str(error)
    return ""


def _blocked(folder: Path) -> str | None:
    """The sentence that says why a run's folder cannot be made, where Hydra would end the whole sweep; None if it can."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    number = errno.EACCES if there.is_dir() else errno.ENOTDIR
    return in_a_sweep(str(write_error(folder, OSError(number, ""))))


def say_what_is_searched(node: Any, overrides: list[str]) -> None:
    """Warn when a search has no validation part to select on."""
    swept = "dataset.validation" in given_keys(overrides) and not isinstance(node.dataset.validation, int | float)
    search = not node.hydra.sweeper._target_.endswith((".BasicSweeper", ".ListSweeper", ".FilterSweeper"))
    if search and not swept and not node.dataset.validation:
        said = "selects on the test set, because dataset.validation=0, so that its best accuracy is optimistic"
        print(f"snn-train: this search {said}; hold a part out with dataset.validation=0.1", file=sys.stderr)


# ---------------------------------------------------------------- stopping

PATIENCE = 60  # seconds that worker processes get to save the runs that they are at


@contextlib.contextmanager
def stoppable(jobs: Sequence[Job] = ()) -> Iterator[None]:
    """The signals of `errors.STOP_SIGNALS` raise Interrupted, after the worker processes of joblib have saved their runs.

    A run in this process answers them itself while it trains. A second Ctrl-C stops at once.
    """
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        asked.append(signum)
        if len(asked) == 1:
            _let_workers_save(jobs)
        raise Interrupted(asked[0], f"stopped by {signal.Signals(asked[0]).name}")

    with handled_by(ask):
        yield


def _let_workers_save(jobs: Sequence[Job]) -> None:
    """Tell the worker processes that are at one of the jobs to stop, and wait until they have."""

    def busy() -> set[int]:
        statuses = [_read(job.folder / STATUS) for job in jobs]
        children = {process.pid for process in multiprocessing.active_children()}
        return {status["pid"] for status in statuses if status.get("state") == "running"} & children

    told: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while (now := busy()) and time.monotonic() < deadline:
        if not told:
            print("stopping: the runs under way are saved first (Ctrl-C again stops at once)", file=sys.stderr)
        for pid in now - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= now
        time.sleep(0.1)


# ---------------------------------------------------------------- what became of a job


def is_finished(job: Job) -> bool:
    """Whether the job's folder holds a result of exactly this configuration, on the data that it names now."""
    result = _read(job.folder / RESULT)
    return result.get("config_hash") == config_hash(job.config) and not _other_data(job, result)


def _other_data(job: Job, result: dict) -> list[str]:
    """How the data of the job's earlier result differ from those that it names now."""
    return other_data(result, job.config, partial(_once, fingerprint))[0]


def state(job: Job) -> tuple[str, str]:
    """(`done`, `failed`, `interrupted`, `stopped`, `running` or `not started`, why)."""
    status = _read(job.folder / STATUS)
    if not status:
        return "not started", ""
    if status.get("config_hash") != config_hash(job.config):
        return "not started", "the folder holds a run of another configuration"
    if status["state"] == "running":
        if in_use(job.folder):
            return "running", "another process is at it"
        if not is_finished(job):
            return "stopped", "its process ended without a word: killed, or out of memory"
    elif status["state"] != "done":
        return status["state"], status["error"] or ""
    changed = _other_data(job, _read(job.folder / RESULT))
    return ("not started", f"the folder holds a run on other data ({'; '.join(changed)})") if changed else ("done", "")


def _read(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(content := json.loads(path.read_text()), dict):
            return content
    return {}


def report(jobs: list[Job], before: int, argv: list[str], problem: str | None = None) -> int:
    """Say how many runs are done, which are not and why, and the command that runs just those; returns the exit code."""
    states = [(job, *state(job)) for job in jobs]
    lines = [
        f"  {what}: {job.folder}{f': {in_a_sweep(why)}' * bool(why)}" for job, what, why in states if what != "done"
    ]
    done = len(jobs) - len(lines)
    print(f"sweep: {done} of {len(jobs)} runs done" + f", {before} of them earlier" * bool(before), flush=True)
    if problem:
        print(f"snn-train: {in_a_sweep(problem)}", file=sys.stderr)
    if lines:
        again = [a for a in argv if a.split("=")[0] not in ("force", "skip_finished", "resume")]
        lines.insert(0, f"{len(jobs) - done} of {len(jobs)} runs did not finish:")
        lines.append("the finished ones are left out when this is typed again:")
        print(
            "\n".join(lines), f"  python -m snn_repro.train {shlex.join(again)}", sep="\n", file=sys.stderr, flush=True
        )
    return int(bool(lines or problem))


# ---------------------------------------------------------------- launching


def launch(overrides: list[str], jobs: list[Job], task: Callable) -> None:
    """Hand the jobs to the launcher that `hydra/launcher=` chose and wait until none is under way any more.

    A run whose process is killed takes the joblib workers beside it along; what was under way then is run again, each
    alone, so that the culprit can hurt no other, and given up the second time. Raises UserError when the queue refuses the jobs.
    """
    with multirun_config(overrides) as (node, context):
        kind = node.hydra.launcher._target_.rsplit(".", 1)[-1]

        def start(batch: list[Job]) -> None:
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=node)
            launcher.launch([job.overrides for job in batch], initial_job_idx=0)

        if kind == "SlurmLauncher":
            with _slurm():
                start(jobs)
        elif kind == "JoblibLauncher":
            on_gpus = node.hydra.runtime.choices["hydra/launcher"] == "gpus"
            places = (
                gpus.places(gpus_for(jobs), node.runs_per_gpu)
                if on_gpus
                else contextlib.nullcontext(node.hydra.launcher.n_jobs)
            )
            with read_write(node.hydra), places as node.hydra.launcher.n_jobs:
                _start_again_after_kills(start, jobs)
        else:
            start(jobs)


def gpus_for(jobs: list[Job]) -> list[str]:
    """The GPUs of this machine, for `hydra/launcher=gpus`. Raises UserError where there are none, or a job names its own device."""
    if own := {job.config.device for job in jobs} - {"auto", "cuda"}:
        raise UserError(f"device={min(own)} does not go with hydra/launcher=gpus, which gives each run its GPU")
    if not (found := gpus.there()):
        raise UserError(
            "hydra/launcher=gpus but torch sees no GPU; use hydra/launcher=joblib for runs side by side on a CPU"
        )
    return found


def _start_again_after_kills(start: Callable, jobs: list[Job]) -> None:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    began = time.time()
    try:
        return start(jobs)
    except TerminatedWorkerError:
        time.sleep(0.5)  # the other workers are being stopped
    touched = [job for job in jobs if (at := job.folder / STATUS).exists() and at.stat().st_mtime >= began]
    hit = [job for job in touched if state(job)[0] == "stopped"]
    if not hit:
        raise UserError("the worker processes die before a run begins; try fewer at once: hydra.launcher.n_jobs=1")
    log.warning(f"a worker was killed; {len(hit)} runs that were under way go on, one at a time")
    for job in hit:
        with contextlib.suppress(TerminatedWorkerError):  # it is reported as stopped
            start([job])
    if rest := [job for job in jobs if job not in touched]:
        _start_again_after_kills(start, rest)


# ---------------------------------------------------------------- SLURM


@contextlib.contextmanager
def _slurm() -> Iterator[None]:
    """submitit, made to wait for every job of the array by squeue, which is there where accounting is not."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmJob

    kind: Any = SlurmJob
    before, kind.results = kind.results, _ended
    try:
        yield
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        text = str(getattr(error, "stderr", None) or error)
        reason = [line for line in text.splitlines() if "error" in line.lower()] or [" ".join(text.split())]
        raise UserError(f"SLURM refused the jobs: {reason[-1].strip()[:300]}") from None
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        raise UserError("hydra/launcher=slurm finds no srun here; run it on a login node of a SLURM cluster") from None
    except KeyboardInterrupt:
        print("the jobs go on in SLURM (squeue --me); the same command later reports on them", file=sys.stderr)
        raise
    finally:
        kind.results = before


ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
LOOK_AGAIN = 10  # seconds


def _ended(job: Any) -> list[None]:
    """Wait until squeue calls a job ended, or has forgotten it. What became of it is in the run's folder."""
    while True:
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%T", "--jobs", job.job_id]
        asked = subprocess.run(command, capture_output=True, text=True)
        state, forgotten = asked.stdout.strip(), "Invalid job id" in asked.stderr
        if state in ENDED or forgotten or not (state or asked.returncode):
            return [None]
        if asked.returncode:
            log.warning(f"squeue: {asked.stderr.strip()}; asking again later")
        time.sleep(LOOK_AGAIN)


def still_running() -> bool:
    """Whether SLURM wants this job to run: not cancelled, not at its end, not being requeued."""
    job = os.environ.get("SLURM_JOB_ID", "")
    asked = subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True)
    return asked.stdout.split() == ["RUNNING"]
