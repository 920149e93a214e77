"""The command line of `python -m snn_repro.train` and `snn-train`: help, one run by Hydra, sweeps, exit codes, completion."""

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, NoReturn

from snn_repro import console, distributed
from snn_repro.config import (
    CONF_DIR,
    ConfigError,
    check_machine,
    compose_checked,
    explain,
    help_text,
    multirun_config,
    readable,
    refuse_misplaced,
    search_outside,
    settled,
)
from snn_repro.errors import Interrupted, TrainingError, UserError

log = logging.getLogger("snn_repro")

# Training, and torch with it, is imported by the run that needs it: --help and a typo must answer at once.


def main() -> NoReturn:
    """`python -m snn_repro.train`, `snn-train`: exit code 0 done, 1 failed, 2 wrong input, 130/140/143 stopped by a signal."""
    gc.set_threshold(100_000)  # imports make no garbage, and looking for it 600 times takes a quarter of a second
    logging.raiseExceptions = False  # a reader that left (`| head`) costs the lines it does not read, and no traceback
    warnings.formatwarning = _one_line
    sys.exit(console.script(lambda: _main(sys.argv[1:])))


def _main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    if "--version" in argv:
        print(version())
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, so that every error passes below
    try:
        return _dispatch(argv)
    except TrainingError as error:
        return _fail(str(error), 1)
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "stopped", 128 + getattr(interrupt, "signum", signal.SIGINT))


def _fail(sentence: str, code: int) -> int:
    if distributed.world().rank == 0:  # of several processes the first one says it, with the others' reasons too
        print(f"snn-train: {sentence}", file=sys.stderr)
    return code


def version() -> str:
    """What `--version` prints: ours, the commit in a clone, torch's and Python's."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from snn_repro import __version__

    try:
        torch = installed("torch")
    except PackageNotFoundError:
        torch = "missing"
    commit, root = "", CONF_DIR.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        with contextlib.suppress(OSError):
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f"snn_repro {__version__}{f' (commit {commit})' if commit else ''}, torch {torch}, Python {platform.python_version()}"


def _arguments(argv: list[str]) -> Namespace:
    """Hydra's own flags and the overrides. Raises ConfigError for flags that do not exist or do not go together."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; `python -m snn_repro.train --hydra-help` lists the flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    for flag in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(given, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')} is not used here: configurations come from {CONF_DIR}; choose one with experiment=NAME"
            )
    alone = [f for f in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(given, f)]
    if len(alone) > 1:
        refuse(f"--{alone[0].replace('_', '-')} and --{alone[1].replace('_', '-')} do not go together")
    if given.resolve and not given.cfg:
        refuse("--resolve goes with --cfg alone")
    if given.package and not given.cfg:
        refuse("--package goes with --cfg alone")
    return given


def _dispatch(argv: list[str]) -> int:
    from snn_repro.runs import sweeps

    arguments = _arguments(argv)
    if arguments.shell_completion or arguments.hydra_help:
        script = COMPLETION.get(" ".join(arguments.overrides)) if Path(sys.argv[0]).name != "snn-train" else None
        if arguments.shell_completion and script:
            print(script)
            return 0
        try:
            _hydra_task(argv)
        except ValueError as error:  # no such shell, or nothing to do named
            raise ConfigError(f"-sc: {' '.join(str(error).split())}; write -sc install=bash") from None
        return 0
    typed, sweep = arguments.overrides, arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
    overrides = readable(typed, sweep)
    readable_of = dict(zip(typed, overrides, strict=True))
    for_hydra = [readable_of.get(a, a) for a in argv]
    if arguments.cfg or arguments.info:
        return show(overrides, for_hydra)
    if not sweep:
        compose_checked(overrides)  # before Hydra makes a folder
        _hydra_task(for_hydra)
        if _errors:
            raise _errors.pop()
        return 0
    if any(o.startswith("hydra/sweeper=") and o != "hydra/sweeper=basic" for o in overrides):
        refuse_misplaced(overrides, sweep=True)
        with multirun_config(overrides) as (node, _):  # checks hydra.*; another sweeper finds its jobs while it runs
            sweeps.say_what_is_searched(node, overrides)
        with sweeps.stoppable():
            _hydra_task(for_hydra)
        return 0
    return sweeps.run_sweep(overrides, argv, _task)


def show(overrides: list[str], argv: list[str]) -> int:
    """`--cfg` and `--info`, with the same checks as a run; what a run adjusts is shown adjusted."""
    adjusted: list[str] = []
    config = compose_checked(overrides, say=adjusted.append)
    if adjusted:
        log.warning(adjusted[0])
        at = argv.index(overrides[0])  # overrides stand together
        argv = [*argv[:at], f"recipe.warmup_epochs={config.recipe.warmup_epochs}", *argv[at:]]
    try:
        _hydra_task(argv)
    except SystemExit as gone:  # how Hydra refuses a --package that does not exist
        return 2 if gone.code else 0
    return 0


_errors: list[Exception] = []  # of a single run, on their way past Hydra
_stopped = False  # this process is a worker of joblib's, and was told to stop: it begins no further run
_warned: set[str] = set()


def _one_line(message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """How warnings are shown: one line, the first time."""
    text = " ".join(str(message).split())
    if text in _warned or distributed.world().rank:
        return ""
    _warned.add(text)
    return f"warning: {text}\n"


def _task(node: Any) -> float | None:
    """What Hydra calls for every job; in a sweep a failing run is recorded and the rest goes on.

    Returns what a search maximises: the validation accuracy of the epoch that validation chose, or, without a
    validation part, the test accuracy of the last epoch.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from snn_repro import train
    from snn_repro.runs.sweeps import in_a_sweep

    global _stopped
    warnings.formatwarning = _one_line  # this may be a worker process
    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    launcher = job.launcher._target_.rsplit(".", 1)[-1]
    if in_sweep and launcher == "JoblibLauncher":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # between two runs the process that launched this one answers
        if _stopped:
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
        result = train.run(config, overrides=list(job.overrides.task))
    except Interrupted as interrupt:
        if not sweep or launcher == "BasicLauncher":
            raise
        log.warning(str(interrupt))
        if in_slurm:
            _requeue(interrupt.signum)
        _stopped = not in_slurm
        return None
    except Exception as error:
        if not in_sweep:
            _errors.append(error)  # raised after Hydra, which would print a line of its own above the sentence
            return None
        if not sweep:
            raise
        log.error(
            in_a_sweep(f"{config.run_dir} failed: {type(error).__name__}: {error}"),
            exc_info=not isinstance(error, UserError),
        )
        return None
    return result.acc_val if result.acc_val is not None else result.acc_last


def _requeue(signum: int) -> None:
    """The run is saved: let submitit put its job back into the queue, unless SLURM is ending it for good.

    SIGUSR2 is the notice before the time limit; SIGTERM comes for `scancel` too, but also at the start of a
    preemption's grace time, after which a job that has ended would not come back.
    """
    from snn_repro.runs.sweeps import still_running

    if signum == signal.SIGUSR2 or still_running():
        signal.raise_signal(signal.SIGUSR2)  # submitit's own handler, which was back in place when run() returned


def _hydra_task(argv: list[str]) -> None:
    """Let Hydra do what `argv` says. Raises ConfigError for what it cannot read, UserError for a folder it cannot make."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from snn_repro.files import write_error

    search_outside()
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(config_path=str(CONF_DIR), config_name="train", version_base="1.3")(_task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    except (OSError, ValueError) as error:  # Hydra makes the folder and its log file before our code runs
        cause = error.__cause__ if isinstance(error, ValueError) else error  # logging hides why it has no handler
        if not isinstance(cause, OSError) or cause.filename is None:
            raise
        raise write_error(Path(cause.filename), cause) from error
    finally:
        sys.argv = before


# Bash completion for `python -m snn_repro.train`; other python commands keep the completion of files. (Hydra's own
# script, which `snn-train -sc install=bash` prints, knows commands of one word and script files alone.)
COMPLETION = {
    "install=bash": r"""_snn_repro_train()
{
    COMPREPLY=()
    case "${COMP_WORDS[*]:0:3}" in *python*" -m snn_repro.train") ;; *) return ;; esac
    (( COMP_CWORD > 2 )) || return
    local line="snn-train ${COMP_WORDS[*]:3:COMP_CWORD-2}" found
    found=$(COMP_LINE="$line" COMP_POINT=${#line} "${COMP_WORDS[0]}" -m snn_repro.train -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$found" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o bashdefault -o default -F _snn_repro_train python python3""",
    "uninstall=bash": "complete -r python python3; unset -f _snn_repro_train",
}
