"""What Hydra calls for every job, and the call of Hydra itself. Worker processes of launchers import this module by name; with
it comes `config.compose`, whose resolvers their configurations need."""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from snn_repro.config import CONF_DIR, ConfigError, check_machine, explain
from snn_repro.config.compose import search_outside, settled
from snn_repro.console import one_line
from snn_repro.errors import Interrupted, UserError
from snn_repro.files import write_error

log = logging.getLogger("snn_repro")

finished: list[str] = []  # the folder of a single run
errors: list[Exception] = []  # of a single run, on their way past Hydra
stopped = False  # this process is a worker of joblib's, and was told to stop: it begins no further run


def task(node: Any) -> float | None:
    """What Hydra calls for every job; in a sweep a failing run is recorded and the rest goes on.

    Returns what a search maximises: the validation accuracy of the epoch that validation chose, or, without a
    validation part, the test accuracy of the last epoch.
    """
    from snn_repro import train
    from snn_repro.runs import gpus
    from snn_repro.runs.sweeps import in_a_sweep

    global stopped
    warnings.formatwarning = one_line  # this may be a worker process
    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    launcher = job.launcher._target_.rsplit(".", 1)[-1]
    if in_sweep and launcher == "JoblibLauncher":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # between two runs the process that launched this one answers
        if stopped:
            return None
    config = settled(node, job.overrides.task, log.warning)
    config.run_dir = job.runtime.output_dir
    sweep = in_sweep and job.sweeper._target_.endswith(".BasicSweeper")
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if in_slurm and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        config.force, config.resume = False, "auto"  # put back into the queue: what it did before counts
    elif not config.skip_finished and Path(config.run_dir, "result.json").exists():
        config.force = True
    try:
        check_machine(config)  # a sweep on a cluster was composed on another one
        gpus.take()
        result = train.run(config, overrides=list(job.overrides.task))
        finished[:] = [config.run_dir]
    except Interrupted as interrupt:
        if not sweep or launcher == "BasicLauncher":
            raise
        log.warning(str(interrupt))
        if in_slurm:
            requeue(interrupt.signum)
        stopped = not in_slurm
        return None
    except Exception as error:
        if not in_sweep:
            errors.append(error)  # raised after Hydra, which would print a line of its own above the sentence
            return None
        if not sweep:
            raise
        log.error(
            in_a_sweep(f"{config.run_dir} failed: {type(error).__name__}: {error}"),
            exc_info=not isinstance(error, UserError),
        )
        return None
    return result.acc_val if result.acc_val is not None else result.acc_last


def requeue(signum: int) -> None:
    """The run is saved: let submitit put its job back into the queue, unless SLURM is ending it for good.

    SIGUSR2, or the signal that submitit was told instead, is the notice before the time limit; SIGTERM comes for `scancel`
    too, but also at the start of a preemption's grace time, after which a job that has ended would not come back.
    """
    from snn_repro.runs.sweeps import still_running

    notice = signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
    if signum == notice or still_running():
        signal.raise_signal(notice)  # submitit's own handler, which was back in place when run() returned


def call_hydra(argv: list[str]) -> None:
    """Let Hydra do what `argv` says. Raises ConfigError for what it cannot read, UserError for a folder it cannot make."""
    search_outside()
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(config_path=str(CONF_DIR), config_name="train", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    except (OSError, ValueError) as error:  # Hydra makes the folder and its log file before our code runs
        cause = error.__cause__ if isinstance(error, ValueError) else error  # logging hides why it has no handler
        if not isinstance(cause, OSError) or cause.filename is None:
            raise
        raise write_error(Path(cause.filename), cause) from error
    finally:
        sys.argv = before
