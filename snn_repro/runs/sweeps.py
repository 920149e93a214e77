"""Sweeps: plan the jobs, launch unfinished ones here or on a cluster, report.

A job is one run: its overrides and its checked configuration, with its folder. Its status is read from that folder
alone, so it does not matter which process or machine ran it.
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

from snn_repro import config as conf
from snn_repro.config import Config, config_hash
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
        """The run's folder."""
        return Path(str(self.config.run_dir))


def plan(overrides: list[str]) -> list[Job]:
    """All jobs of a sweep, with checked configurations.

    Raises ConfigError for an empty sweep, a wrong key, a key without effect in any job, or a folder shared by two jobs.
    """
    conf.refuse_misplaced(overrides, sweep=True)
    jobs = [Job(o, conf.compose_checked(o, sweep=True)) for o in conf.sweep_jobs(overrides)]
    first, *others = (conf.idle(job.config, job.overrides) for job in jobs)
    for name in set(first).intersection(*others):
        raise conf.ConfigError(first[name])
    folder, number = Counter(job.folder for job in jobs).most_common(1)[0]
    if number > 1:
        why = "their differences change no result; run them separately, each with its own name=..."
        raise conf.ConfigError(f"several jobs of this sweep would share the folder {folder}: {why}")
    return jobs


def run_sweep(overrides: list[str], argv: list[str], task: Callable) -> int:
    """Launch the unfinished jobs, wait for them and report; returns the exit code."""
    _known.clear()
    jobs = plan(overrides)
    left = [job for job in jobs if job.config.force or not (job.config.skip_finished and is_finished(job))]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished already", flush=True)
    check_data(left, elsewhere=any(o.startswith("hydra/launcher=") and "slurm" in o for o in overrides))
    problem = signum = None
    flag = Path(os.path.commonpath([job.folder for job in jobs]), f".failed-{os.getpid()}-{time.time_ns()}")
    try:
        if left:
            with stoppable(left):
                launch(overrides, left, task, flag if any(job.config.fail_fast for job in left) else None)
    except UserError as error:  # a refused submission, a missing plugin: the report still gives every status
        problem = str(error)
    except KeyboardInterrupt as interrupt:
        signum = getattr(interrupt, "signum", signal.SIGINT)
        problem = f"the sweep was stopped by {signal.Signals(signum).name}"
    if flag.exists():
        problem = f"fail_fast=true: {flag.read_text()} failed, so no further run was started"
        flag.unlink()
    code = report(jobs, len(jobs) - len(left), argv, problem)
    return 128 + signum if signum else code


def in_a_sweep(sentence: str) -> str:
    """A message of a run, with its advice adapted to a sweep."""
    return sentence.replace("hydra.run.dir=...", "hydra.sweep.dir=...")


# ---------------------------------------------------------------- before the first run


def check_data(jobs: list[Job], elsewhere: bool = False) -> None:
    """Raise UserError if jobs lack their data or cannot create their folder.

    With `elsewhere` (jobs run on other machines) only warn. The same files are checked only once.
    """
    missing: dict[str, list[Job]] = {}
    for job in jobs:
        if sentence := _once(_lacks, job.config) or _blocked(job.folder):
            missing.setdefault(sentence, []).append(job)
    lines = [f"  {of[0].folder}{f' and {len(of) - 1} more' * (len(of) > 1)}: {why}" for why, of in missing.items()]
    number, rest = sum(map(len, missing.values())), "\n".join(lines)
    if missing and not elsewhere:
        raise UserError(f"{number} of {len(jobs)} runs lack their data or folder, so none was started:\n{rest}")
    if missing:
        print(f"snn-train: {number} runs would lack their data or folder on this machine:\n{rest}", file=sys.stderr)


_known: dict[tuple, Any] = {}  # results of `_once` for the files of this sweep


def _once(look: Callable[[Config], Any], c: Config) -> Any:
    """`look(c)`, evaluated once for all jobs of a sweep that read the same files."""
    d = c.dataset
    reads = d.name, str(d.own), c.timesteps, d.integrate_by, d.frame_size, c.data_dir, c.cache_dir, c.model.weights
    if (look, reads) not in _known:
        _known[look, reads] = look(c)
    return _known[look, reads]


def _lacks(c: Config) -> str:
    """Message on the first file or folder that a run of `c` lacks; "" if none."""
    try:
        SETS[c.dataset.name].check(c)
        if c.model.weights:
            find_weights(c.model.weights, c.data_dir)
    except UserError as error:
        return str(error)
    return ""


def _blocked(folder: Path) -> str | None:
    """Why a run's folder cannot be created, which would make Hydra end the sweep; None if it can."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return in_a_sweep(str(write_error(folder, OSError(errno.EACCES if there.is_dir() else errno.ENOTDIR, ""))))


def warn_without_validation(node: Any, overrides: list[str]) -> None:
    """Warn if a search has no validation part and therefore selects on the test set."""
    swept = "dataset.validation" in conf.given_keys(overrides) and not isinstance(node.dataset.validation, int | float)
    search = not node.hydra.sweeper._target_.endswith((".BasicSweeper", ".ListSweeper", ".FilterSweeper"))
    if search and not swept and not node.dataset.validation:
        why = "selects on the test set, because dataset.validation=0, so its best accuracy is optimistic"
        print(f"snn-train: this search {why}; hold out a part with dataset.validation=0.1", file=sys.stderr)


# ---------------------------------------------------------------- stopping

PATIENCE = 60  # seconds that worker processes get to save their runs


@contextlib.contextmanager
def stoppable(jobs: Sequence[Job] = ()) -> Iterator[None]:
    """Signals of `errors.STOP_SIGNALS` raise Interrupted, after joblib's workers have saved their runs.

    A run in this process handles them itself while it trains. A second Ctrl-C stops at once.
    """
    received: list[int] = []

    def interrupt(signum: int, frame: Any) -> None:
        received.append(signum)
        if len(received) == 1:
            _let_workers_save(jobs)
        raise Interrupted(received[0], f"stopped by {signal.Signals(received[0]).name}")

    with handled_by(interrupt):
        yield


def _let_workers_save(jobs: Sequence[Job]) -> None:
    """Send SIGTERM to the worker processes of the jobs, and wait until they have stopped."""

    def busy() -> set[int]:
        running = {s["pid"] for s in (_read(job.folder / STATUS) for job in jobs) if s.get("state") == "running"}
        return running & {process.pid for process in multiprocessing.active_children()}

    signalled: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while (now := busy()) and time.monotonic() < deadline:
        if not signalled:
            print("stopping: the active runs are saved first (Ctrl-C again stops at once)", file=sys.stderr)
        for pid in now - signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        signalled |= now
        time.sleep(0.1)


# ---------------------------------------------------------------- status of a job


def is_finished(job: Job) -> bool:
    """Whether the job's folder has a result of this configuration on the current data."""
    result = _read(job.folder / RESULT)
    return result.get("config_hash") == config_hash(job.config) and not _other_data(job, result)


def _other_data(job: Job, result: dict) -> list[str]:
    """Differences of the data of the job's earlier result from the current ones."""
    return other_data(result, job.config, partial(_once, fingerprint))[0]


def status(job: Job) -> tuple[str, str]:
    """(`done`, `failed`, `interrupted`, `stopped`, `running` or `not started`, why)."""
    if not (content := _read(job.folder / STATUS)):
        return "not started", ""
    if content.get("config_hash") != config_hash(job.config):
        return "not started", "the folder holds a run of another configuration"
    if content["state"] == "running":
        if in_use(job.folder):
            return "running", "another process runs it"
        if not is_finished(job):
            return "stopped", "its process ended without an error message: killed, or out of memory"
    elif content["state"] != "done":
        return content["state"], content["error"] or ""
    changed = _other_data(job, _read(job.folder / RESULT))
    return ("not started", f"the folder holds a run on other data ({'; '.join(changed)})") if changed else ("done", "")


def _read(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(content := json.loads(path.read_text()), dict):
            return content
    return {}


def report(jobs: list[Job], before: int, argv: list[str], problem: str | None = None) -> int:
    """Print how many runs are done and why others are not; returns the exit code."""
    left = [(job.folder, what, why) for job in jobs for what, why in [status(job)] if what != "done"]
    lines = [f"  {what}: {folder}{f': {in_a_sweep(why)}' * bool(why)}" for folder, what, why in left]
    done = len(jobs) - len(lines)
    print(f"sweep: {done} of {len(jobs)} runs done" + f", {before} of them earlier" * bool(before), flush=True)
    if problem:
        print(f"snn-train: {in_a_sweep(problem)}", file=sys.stderr)
    if lines:
        again = [a for a in argv if a.split("=")[0] not in ("force", "skip_finished", "resume")]
        lines.insert(0, f"{len(jobs) - done} of {len(jobs)} runs did not finish:")
        lines += ["run the rest with the same command:", f"  python -m snn_repro.train {shlex.join(again)}"]
        print("\n".join(lines), file=sys.stderr, flush=True)
    return int(bool(lines or problem))


# ---------------------------------------------------------------- launching


def launch(overrides: list[str], jobs: list[Job], task: Callable, flag: Path | None = None) -> None:
    """Run the jobs with the launcher chosen by `hydra/launcher=`, and wait for them.

    flag: see `cli.task`. A killed joblib worker ends the workers beside it. The interrupted jobs are then run again one
    at a time, so that the cause cannot affect the others, and given up the second time. Raises UserError if the queue
    refuses the jobs.
    """
    with conf.multirun_config(overrides) as (node, context):
        kind = node.hydra.launcher._target_.rsplit(".", 1)[-1]

        def start(batch: list[Job]) -> None:
            function = partial(task, flag=flag) if flag else task
            launcher = Plugins.instance().instantiate_launcher(context, function, node)
            launcher.launch([job.overrides for job in batch], initial_job_idx=0)

        if kind == "SlurmLauncher":
            with _slurm():
                start(jobs)
        elif kind == "JoblibLauncher":
            workers: Any = contextlib.nullcontext(node.hydra.launcher.n_jobs)
            if node.hydra.runtime.choices["hydra/launcher"] == "gpus":
                workers = gpus.slots(gpus_for(jobs), node.runs_per_gpu)
            with read_write(node.hydra), workers as node.hydra.launcher.n_jobs:
                _start_again_after_kills(start, jobs, flag)
        else:
            start(jobs)


def gpus_for(jobs: list[Job]) -> list[str]:
    """GPUs for `hydra/launcher=gpus`. Raises UserError without GPUs, or if `device` names one."""
    if own := {job.config.device for job in jobs} - {"auto", "cuda"}:
        raise UserError(f"device={min(own)} cannot be used with hydra/launcher=gpus, which gives each run its GPU")
    if not (found := gpus.visible()):
        raise UserError("hydra/launcher=gpus, but torch sees no GPU; use hydra/launcher=joblib for parallel CPU runs")
    return found


def _start_again_after_kills(start: Callable, jobs: list[Job], flag: Path | None) -> None:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    began = time.time()
    try:
        return start(jobs)
    except TerminatedWorkerError:
        time.sleep(0.5)  # meanwhile the other workers are stopped
    touched = [job for job in jobs if (at := job.folder / STATUS).exists() and at.stat().st_mtime >= began]
    if not (hit := [job for job in touched if status(job)[0] == "stopped"]):
        raise UserError("the worker processes die before a run starts; use fewer of them: hydra.launcher.n_jobs=1")
    log.warning(f"a worker was killed; {len(hit)} interrupted runs continue, one at a time")
    for job in hit:
        try:
            start([job])
        except TerminatedWorkerError:  # reported as stopped
            if flag:
                flag.write_text(str(job.folder))
    if rest := [job for job in jobs if job not in touched]:
        _start_again_after_kills(start, rest, flag)


# ---------------------------------------------------------------- SLURM


@contextlib.contextmanager
def _slurm() -> Iterator[None]:
    """Make submitit wait for the jobs with squeue, which works without SLURM accounting."""
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
        print("the jobs continue in SLURM (squeue --me); run the same command later for their report", file=sys.stderr)
        raise
    finally:
        kind.results = before


ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
LOOK_AGAIN = 10  # seconds between two calls of squeue


def _ended(job: Any) -> list[None]:
    """Wait until squeue reports a job as ended or unknown; its status is in the run's folder."""
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
    """Whether SLURM still runs this job: not cancelled, out of time or being requeued."""
    job = os.environ.get("SLURM_JOB_ID", "")
    asked = subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True)
    return asked.stdout.split() == ["RUNNING"]
