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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.plugins import Plugins
from omegaconf import read_write

from snn_repro import signals
from snn_repro.config import (
    CONF_DIR,
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
from snn_repro.console import suggest
from snn_repro.data.sets import SETS
from snn_repro.errors import Interrupted, UserError
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
    without_effect = [idle(job.config, job.overrides) for job in jobs]
    for name, sentence in without_effect[0].items():
        if all(name in idle_keys for idle_keys in without_effect):
            raise ConfigError(sentence)
    folders = [job.folder for job in jobs]
    shared = sorted({f for f in folders if folders.count(f) > 1})
    if shared:
        raise ConfigError(
            f"several jobs of this sweep would share the folder {shared[0]}: what differs changes no result; run them apart, each with a name=... of its own"
        )
    return jobs


def run_sweep(overrides: list[str], argv: list[str], task: Callable) -> int:
    """Launch what is not finished, wait for it, report; returns the exit code."""
    _fingerprints.clear()
    jobs = plan(overrides)
    left = [job for job in jobs if job.config.force or not (job.config.skip_finished and is_finished(job))]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} runs are finished already", flush=True)
    check_data(left, elsewhere=any(o.startswith("hydra/launcher=") and "slurm" in o for o in overrides))
    blocked = {job.folder: why for job in left if (why := _blocked(job.folder))}
    free = [job for job in left if job.folder not in blocked]
    problem = signum = None
    try:
        if free:
            with stoppable(free):
                launch(overrides, free, task)
    except UserError as error:  # a queue that refuses, a missing plugin: the report still says where things stand
        problem = str(error)
    except OSError as error:  # Hydra's launchers make the sweep's folder
        if error.filename is None:
            raise
        problem = str(write_error(Path(error.filename).absolute(), error)).replace("hydra.run.dir", "hydra.sweep.dir")
    except KeyboardInterrupt as interrupt:
        signum = getattr(interrupt, "signum", signal.SIGINT)
        problem = f"the sweep was stopped by {signal.Signals(signum).name}"
    code = report(jobs, len(jobs) - len(left), argv, problem, stopped=signum is not None, blocked=blocked)
    return 128 + signum if signum else code


def in_a_sweep(sentence: str) -> str:
    """A sentence of a run, with the advice that holds in a sweep."""
    return sentence.replace("hydra.run.dir=...", "hydra.sweep.dir=...")


# ---------------------------------------------------------------- before the first run


def check_data(jobs: list[Job], elsewhere: bool = False) -> None:
    """Raise UserError, with a line for each, when data of the jobs are missing; with `elsewhere`, where the runs are on
    other machines than this one, only warn. Nothing is looked at twice."""
    alike: dict[tuple, list[Job]] = {}
    for job in jobs:
        alike.setdefault(_reads(job.config), []).append(job)
    missing: dict[str, list[Job]] = {}
    for of in alike.values():
        if sentence := _lacks(of[0].config):
            missing.setdefault(sentence, []).extend(of)
    if not missing:
        return
    lines = [
        f"  {of[0].folder}{f' and {len(of) - 1} more' if len(of) > 1 else ''}: {sentence}"
        for sentence, of in missing.items()
    ]
    number = sum(map(len, missing.values()))
    if elsewhere:
        print("\n".join([f"snn-train: {number} runs would lack their data on this machine:", *lines]), file=sys.stderr)
        return
    raise UserError("\n".join([f"{number} of {len(jobs)} runs lack their data, so that none was started:", *lines]))


def _reads(c: Config) -> tuple:
    """What decides which files a run reads."""
    d = c.dataset
    return d.name, str(d.own), c.timesteps, d.integrate_by, d.frame_size, c.data_dir, c.cache_dir, c.model.weights


def _blocked(folder: Path) -> str | None:
    """The sentence that says why a run's folder cannot be made, where Hydra would end the whole sweep; None if it can."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        return str(write_error(folder, OSError(errno.ENOTDIR, "")))
    if not os.access(there, os.W_OK | os.X_OK):
        return str(write_error(folder, OSError(errno.EACCES, "")))
    return None


def _lacks(c: Config) -> str | None:
    """The sentence about the first file or folder that a run of this configuration would not find; None if all is there."""
    try:
        SETS[c.dataset.name].check(c)
        if c.model.weights:
            find_weights(c.model.weights, c.data_dir)
    except UserError as error:
        return str(error)
    return None


def is_search(sweeper: str) -> bool:
    """Whether the sweeper of this `_target_` looks for the best value, rather than running what it was given."""
    return sweeper.rsplit(".", 1)[-1] not in ("BasicSweeper", "ListSweeper", "FilterSweeper")


def say_what_is_searched(node: Any, overrides: list[str]) -> None:
    """Warn when a search has no validation part to select on."""
    swept = "dataset.validation" in given_keys(overrides) and not isinstance(node.dataset.validation, int | float)
    if is_search(node.hydra.sweeper._target_) and not swept and not node.dataset.validation:
        print(
            "snn-train: this search selects on the test set, because dataset.validation=0, so that its best accuracy is "
            "optimistic; hold a part out with dataset.validation=0.1",
            file=sys.stderr,
        )


# ---------------------------------------------------------------- stopping

PATIENCE = 60  # seconds that worker processes get to save the runs that they are at


@contextlib.contextmanager
def stoppable(jobs: Sequence[Job] = ()) -> Iterator[None]:
    """The signals of `signals.ASKED` raise Interrupted, after the worker processes of joblib have saved their runs.

    A run in this process answers them itself while it trains. A second Ctrl-C stops at once.
    """
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        first = not asked
        asked.append(signum)
        if first:
            _let_workers_save(jobs)
        raise Interrupted(asked[0], f"stopped by {signal.Signals(asked[0]).name}")

    with signals.handled_by(ask):
        yield


def _let_workers_save(jobs: Sequence[Job]) -> None:
    """Tell the worker processes that are at one of the jobs to stop, and wait until they have."""
    workers = _children()
    told: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while workers and time.monotonic() < deadline:
        statuses = [_read(job.folder / STATUS) for job in jobs]
        running = {int(status["pid"]) for status in statuses if status.get("state") == "running"} & workers
        for pid in running - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if running and not told:
            print("stopping: the runs under way are saved first (Ctrl-C again stops at once)", file=sys.stderr)
        told |= running
        if not running & _children():
            return
        time.sleep(0.1)


def _children() -> set[int]:
    return {process.pid or 0 for process in multiprocessing.active_children()}


# ---------------------------------------------------------------- what became of a job


def is_finished(job: Job) -> bool:
    """Whether the job's folder holds a result of exactly this configuration, on the data that it names now."""
    result = _read(job.folder / RESULT)
    return result.get("config_hash") == config_hash(job.config) and not _other_data(job, result)


def _other_data(job: Job, result: dict) -> list[str]:
    """How the data of the job's earlier result differ from those that it names now; a data set is looked at once a sweep."""

    def once(config: Config) -> dict:
        key = _reads(config)
        if key not in _fingerprints:
            try:
                _fingerprints[key] = fingerprint(config)
            except UserError as error:
                _fingerprints[key] = error
        if isinstance(_fingerprints[key], UserError):
            raise _fingerprints[key]
        return _fingerprints[key]

    return other_data(result, job.config, once)[0]


_fingerprints: dict = {}  # of the data sets of this sweep, or why there is none


def state(job: Job) -> tuple[str, str]:
    """(`done`, `failed`, `interrupted`, `stopped`, `running` or `not started`, why)."""
    status = _read(job.folder / STATUS)
    if not status:
        return "not started", "see the messages above"
    if status.get("config_hash") != config_hash(job.config):
        return "not started", "the folder holds a run of another configuration; see the messages above"
    if status["state"] == "running":
        if in_use(job.folder):
            return "running", "another process is at it"
        return (
            ("done", "")
            if is_finished(job)
            else ("stopped", "its process ended without a word: killed, or out of memory")
        )
    if status["state"] == "done" and (changed := _other_data(job, _read(job.folder / RESULT))):
        return "not started", f"the folder holds a run on other data ({'; '.join(changed)}); see the messages above"
    return status["state"], status["error"] or ""


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def report(
    jobs: list[Job],
    before: int,
    argv: list[str],
    problem: str | None = None,
    stopped: bool = False,
    blocked: dict[Path, str] | None = None,
) -> int:
    """Say how many runs are done, which are not and why, and the command that runs just those; returns the exit code.

    stopped: by a signal, so that no message above says why a run was not started. blocked: folders that cannot be made.
    """
    blocked, compare = blocked or {}, CONF_DIR.parent / "scripts" / "compare.py"  # a wheel has no scripts
    states = [(job, *(("failed", blocked[job.folder]) if job.folder in blocked else state(job))) for job in jobs]
    missing = [(job, w, "" if stopped and w == "not started" else why) for job, w, why in states if w != "done"]
    done = len(jobs) - len(missing)
    print(f"sweep: {done} of {len(jobs)} runs done" + (f", {before} of them earlier" if before else ""), flush=True)
    if problem:
        print(f"snn-train: {in_a_sweep(problem)}", file=sys.stderr)
    if not missing:
        if compare.exists() and not problem:
            suggest("python", compare, os.path.commonpath([job.folder for job in jobs]))
        return 1 if problem else 0
    again = [a for a in argv if a.split("=")[0] not in ("force", "skip_finished", "resume")]
    lines = [f"{len(missing)} of {len(jobs)} runs did not finish:"]
    lines += [f"  {what}: {job.folder}" + (f": {in_a_sweep(why)}" if why else "") for job, what, why in missing]
    lines += [
        "the finished ones are left out when this is typed again:",
        f"  python -m snn_repro.train {shlex.join(again)}",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
    return 1


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
        elif node.hydra.runtime.choices["hydra/launcher"] == "gpus":
            with gpus.places(gpus_for(jobs), node.runs_per_gpu) as places, read_write(node.hydra):
                node.hydra.launcher.n_jobs = places
                _start_again_after_kills(start, jobs)
        elif kind == "JoblibLauncher":
            _start_again_after_kills(start, jobs)
        else:
            start(jobs)


def gpus_for(jobs: list[Job]) -> list[str]:
    """The GPUs of this machine, for `hydra/launcher=gpus`. Raises UserError where there are none, or a job names its own device."""
    for job in jobs:
        if job.config.device not in ("auto", "cuda"):
            raise UserError(
                f"device={job.config.device} does not go with hydra/launcher=gpus, which gives each run its GPU"
            )
    if not (found := gpus.there()):
        raise UserError(
            "hydra/launcher=gpus but torch sees no GPU; use hydra/launcher=joblib for runs side by side on a CPU"
        )
    return found


def _start_again_after_kills(start: Callable, jobs: list[Job]) -> None:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    began, alone, waiting = time.time(), list[Job](), list(jobs)
    while waiting:
        try:
            start(waiting)
            break
        except TerminatedWorkerError:
            time.sleep(0.5)  # the other workers are being stopped
        hit = [job for job in waiting if state(job)[0] == "stopped" and _touched(job, began)]
        if not hit:
            raise UserError("the worker processes die before a run begins; try fewer at once: hydra.launcher.n_jobs=1")
        alone += hit
        waiting = [job for job in waiting if not _touched(job, began)]
    if alone:
        log.warning(f"a worker was killed; {len(alone)} runs that were under way go on, one at a time")
    for job in alone:
        with contextlib.suppress(TerminatedWorkerError):  # it is reported as stopped
            start([job])


def _touched(job: Job, since: float) -> bool:
    status = job.folder / STATUS
    return status.exists() and status.stat().st_mtime >= since


# ---------------------------------------------------------------- SLURM


@contextlib.contextmanager
def _slurm() -> Iterator[None]:
    """submitit, made to wait for every job of the array and to ask squeue, which is there where accounting is not."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm import slurm

    kind: Any = slurm.SlurmJob
    before = kind.watcher, kind.results
    kind.watcher = _queue_watcher()
    kind.results = lambda job: job.wait() or [None]  # the outcome is in the run's folder
    try:
        yield
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        reason = [line for line in str(text).splitlines() if "error" in line.lower()] or [" ".join(str(text).split())]
        raise UserError(f"SLURM refused the jobs: {reason[-1].strip()[:300]}") from None
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        raise UserError("hydra/launcher=slurm finds no srun here; run it on a login node of a SLURM cluster") from None
    except KeyboardInterrupt:
        print("the jobs go on in SLURM (squeue --me); the same command later reports on them", file=sys.stderr)
        raise
    finally:
        kind.watcher, kind.results = before


ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}


def _queue_watcher() -> Any:
    from submitit.slurm.slurm import SlurmInfoWatcher

    class QueueWatcher(SlurmInfoWatcher):
        """States of jobs from squeue; one that squeue has forgotten is over."""

        def update(self) -> None:
            arrays = {job.split("_")[0] for job in self._registered - self._finished}
            if not arrays:
                return
            self._last_status_check = time.time()
            command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", "--jobs", ",".join(arrays)]
            asked = subprocess.run(command, capture_output=True, text=True)
            if asked.returncode and "Invalid job id" not in asked.stderr:
                log.warning(f"squeue: {asked.stderr.strip()}; asking again later")
                return
            states = dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())
            for job in self._registered - self._finished:
                self._info_dict[job] = {"State": states.get(job, "FORGOTTEN").strip()}
                if self.is_done(job, mode="cache"):
                    self._finished.add(job)

        def is_done(self, job_id: str, mode: str = "standard") -> bool:
            return self.get_state(job_id, mode=mode) in ENDED | {"FORGOTTEN"}

    return QueueWatcher(delay_s=30)


def still_running() -> bool:
    """Whether SLURM wants this job to run: not cancelled, not at its end, not being requeued."""
    job = os.environ.get("SLURM_JOB_ID", "")
    asked = subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True)
    return asked.stdout.split() == ["RUNNING"]
