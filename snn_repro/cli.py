"""Train one network or a sweep of them, from the command line.

`snn-train` and `python -m snn_repro.train`: help, single runs, sweeps, exit codes. Hydra provides tab completion for
`snn-train`. Worker processes of launchers import this module by name, which also registers the OmegaConf resolvers.
"""

import logging
import os
import platform
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from snn_repro import __version__, console, train
from snn_repro import config as conf
from snn_repro.config.compose import VERSION_BASE, WHITELIST, get_args_parser
from snn_repro.dry_run import dry_run, dry_sweep
from snn_repro.errors import Interrupted, UserError, brief
from snn_repro.files import write_error
from snn_repro.provenance import git_state
from snn_repro.runs import gpus, sweeps

log = logging.getLogger("snn_repro")


def main() -> NoReturn:
    """Run the command; exit code 0 done, 1 failed, 2 wrong input, 128 + signal."""
    logging.raiseExceptions = False  # a closed pipe (`| head`) gives no traceback
    warnings.formatwarning = console.one_line
    sys.exit(console.script(lambda: _main(sys.argv[1:])))


def _main(argv: list[str]) -> int:
    if {"--help", "-h"} & {*argv}:
        print(conf.help_text())
        return 0
    if "--version" in argv:
        commit = git_state()[0]
        ours = f"snn_repro {__version__}{f' (commit {commit[:7]})' if commit else ''}"
        print(f"{ours}, torch {torch.__version__}, Python {platform.python_version()}")
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    return console.told("snn-train", lambda: _dispatch(argv))


def _arguments(argv: list[str]) -> Any:
    """Parse Hydra's flags and the overrides. Raises ConfigError for invalid flags."""

    def refuse(message: str) -> NoReturn:
        raise conf.ConfigError(f"{message}; `python -m snn_repro.train --hydra-help` lists the flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    for name in ("config-path", "config-name", "config-dir", "experimental-rerun"):
        if getattr(given, name.replace("-", "_")):
            raise conf.ConfigError(
                f"--{name} is not supported: configurations are read from {conf.CONF_DIR}; choose one with experiment=NAME"
            )
    if sum(map(bool, (given.run, given.multirun, given.cfg, given.info, given.shell_completion))) > 1:
        refuse("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if (given.resolve or given.package) and not given.cfg:
        refuse("--resolve and --package need --cfg")
    return given


def _dispatch(argv: list[str]) -> int:
    if (given := _arguments(argv)).shell_completion or given.hydra_help:
        try:
            return call_hydra(argv)
        except ValueError as error:  # unknown shell, or no action named
            raise conf.ConfigError(f"-sc: {brief(error)}; write -sc install=bash") from None
    overrides = conf.readable(given.overrides, given.multirun)
    flags = [word for word in argv if word not in given.overrides]
    if given.multirun:
        return _sweep(overrides, argv, flags)
    config = conf.compose_checked(overrides)
    if given.cfg or given.info:
        if "recipe.epochs" in conf.given_keys(overrides):  # it may shorten the warm-up; show the value of the run
            overrides = [*overrides, f"recipe.warmup_epochs={config.recipe.warmup_epochs}"]
        return call_hydra([*overrides, *flags])
    if config.dry_run:
        print(dry_run(config).text(given.overrides))
        return 0
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    logging.getLogger().handlers[0].setFormatter(console.LogLines("%(message)s"))
    train.run(config, overrides=[o for o in overrides if not o.lstrip("+~").startswith("hydra")])
    return 0


def _sweep(overrides: list[str], argv: list[str], flags: list[str]) -> int:
    dry = any(o.lower() == "dry_run=true" for o in overrides)
    search = any(o.startswith("hydra/sweeper=") and o != "hydra/sweeper=basic" for o in overrides)
    if not (search or dry):
        return sweeps.run_sweep(overrides, argv, task)
    if not search:
        for line in dry_sweep(overrides):
            print(line, flush=True)
        return 0
    conf.refuse_misplaced(overrides, sweep=True)
    if dry:
        raise conf.ConfigError(
            "dry_run=true measures configurations known in advance, and a search chooses them as it runs; leave hydra/sweeper out"
        )
    with conf.multirun_config(overrides) as (node, _):  # checks hydra.*; a search sweeper has no list of jobs yet
        sweeps.warn_without_validation(node, overrides)
    with sweeps.stoppable():
        return call_hydra([*overrides, *flags])


def call_hydra(argv: list[str]) -> int:
    """Run Hydra with `argv` and return its exit code; raises ConfigError or UserError."""
    conf.search_outside()
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(config_path=str(conf.CONF_DIR), config_name="train", **VERSION_BASE, **WHITELIST)(task)()
    except SystemExit as gone:  # Hydra exits so for an unknown --package
        return 2 if gone.code else 0
    except (HydraException, OmegaConfBaseException) as error:
        raise conf.ConfigError(conf.explain(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise write_error(Path(error.filename), error) from error
    finally:
        sys.argv = before
    return 0


# ---------------------------------------------------------------- a job of a sweep

_stopped = False  # in a joblib worker: a signal asked to stop, so no further run starts


def task(node: Any, flag: Path | None = None) -> float | None:
    """Run one job of a sweep; a failure is recorded and the sweep continues.

    flag: with fail_fast, the file in which a failed run writes its folder; once it exists, no run starts. Returns the
    value that a search maximises: the validation accuracy of the epoch selected by validation, or, without a validation
    part, the test accuracy of the last epoch.
    """
    global _stopped
    warnings.formatwarning = console.one_line  # this may be a worker process
    job = HydraConfig.get()
    launcher = job.launcher._target_.rsplit(".", 1)[-1]
    if launcher == "JoblibLauncher":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs the parent process handles it
    if _stopped or (flag and flag.exists()):
        return None
    config = conf.settled(node, job.overrides.task)
    config.run_dir = job.runtime.output_dir
    sweep = job.sweeper._target_.endswith(".BasicSweeper")
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if in_slurm and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        config.force, config.resume = False, "auto"  # requeued: resume it
    elif not config.skip_finished and Path(config.run_dir, "result.json").exists():
        config.force = True
    try:
        gpus.take()
        result = train.run(config, overrides=list(job.overrides.task))
    except Interrupted as interrupt:
        if not sweep or launcher == "BasicLauncher":
            raise
        log.warning(str(interrupt))
        if in_slurm:
            requeue(interrupt.signum)
        _stopped = not in_slurm
        return None
    except Exception as error:
        if not sweep:
            raise
        message = sweeps.in_a_sweep(f"{config.run_dir} failed: {type(error).__name__}: {error}")
        log.error(message, exc_info=not isinstance(error, UserError))
        if flag:
            flag.write_text(config.run_dir)
        return None
    return result.acc_val if result.acc_val is not None else result.acc_last


def requeue(signum: int) -> None:
    """Let submitit requeue the job of a saved run, unless SLURM ends it for good.

    SIGUSR2, or the signal set for submitit, is the notice before the time limit. SIGTERM comes with `scancel`, but also
    at the start of a preemption's grace time, after which a job that has ended would not be requeued.
    """
    notice = signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]
    if signum == notice or sweeps.still_running():
        signal.raise_signal(notice)  # submitit's handler, restored when run() returned
