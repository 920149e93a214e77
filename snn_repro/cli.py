"""Train one network or a sweep of them, from the command line.

`snn-train`, `python -m snn_repro.train`: help, one run by Hydra, sweeps, exit codes, completion.
"""

import contextlib
import gc
import logging
import os
import platform
import signal
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import NoReturn

import torch
from hydra._internal.utils import get_args_parser

from snn_repro import __version__, console, distributed
from snn_repro.config import (
    CONF_DIR,
    ConfigError,
    compose_checked,
    help_text,
    multirun_config,
    readable,
    refuse_misplaced,
)
from snn_repro.errors import TrainingError, UserError

log = logging.getLogger("snn_repro")


def main() -> NoReturn:
    """`python -m snn_repro.train`, `snn-train`: exit code 0 done, 1 failed, 2 wrong input, 128 + number: stopped by a signal."""
    gc.set_threshold(100_000)  # imports make no garbage, and looking for it 600 times takes a quarter of a second
    logging.raiseExceptions = False  # a reader that left (`| head`) costs the lines it does not read, and no traceback
    warnings.formatwarning = console.one_line
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
        with contextlib.suppress(OSError):  # the terminal has gone
            print(f"snn-train: {console.harmless(sentence)}", file=sys.stderr)
    return code


def version() -> str:
    """What `--version` prints: ours, the commit in a clone, torch's and Python's."""
    commit, root = "", CONF_DIR.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        with contextlib.suppress(OSError):
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f"snn_repro {__version__}{f' (commit {commit})' if commit else ''}, torch {torch.__version__}, Python {platform.python_version()}"


def _arguments(argv: list[str]) -> Namespace:
    """Hydra's own flags and the overrides. Raises ConfigError for flags that do not exist or do not go together."""

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
    from snn_repro import job
    from snn_repro.runs import sweeps

    arguments = _arguments(argv)
    if arguments.shell_completion or arguments.hydra_help:
        script = COMPLETION.get(" ".join(arguments.overrides)) if Path(sys.argv[0]).name != "snn-train" else None
        if arguments.shell_completion and script:
            print(script)
            return 0
        try:
            job.call_hydra(argv)
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
        adjusted: list[str] = []
        config = compose_checked(overrides, say=adjusted.append)  # before Hydra makes a folder
        if config.dry_run:
            from snn_repro.dry_run import dry_run

            print("\n".join([*adjusted, dry_run(config).text(typed)]))
            return 0
        job.call_hydra(for_hydra)
        if job.errors:
            raise job.errors.pop()
        if distributed.world().rank == 0:
            console.suggest("snn-eval", *job.finished)
        return 0
    dry = any(o.lower() == "dry_run=true" for o in overrides)
    if any(o.startswith("hydra/sweeper=") and o != "hydra/sweeper=basic" for o in overrides):
        refuse_misplaced(overrides, sweep=True)
        if dry:
            raise ConfigError(
                "dry_run=true measures runs that are named; a search finds them as it goes, so leave hydra/sweeper out"
            )
        with multirun_config(overrides) as (node, _):  # checks hydra.*; another sweeper finds its jobs while it runs
            sweeps.say_what_is_searched(node, overrides)
        with sweeps.stoppable():
            job.call_hydra(for_hydra)
        return 0
    if dry:
        from snn_repro.dry_run import dry_sweep

        for line in dry_sweep(overrides):
            print(line, flush=True)
        return 0
    return sweeps.run_sweep(overrides, argv, job.task)


def show(overrides: list[str], argv: list[str]) -> int:
    """`--cfg` and `--info`, with the same checks as a run; what a run adjusts is shown adjusted."""
    from snn_repro.job import call_hydra

    adjusted: list[str] = []
    config = compose_checked(overrides, say=adjusted.append)
    if adjusted:
        log.warning(adjusted[0])
        at = argv.index(overrides[0])  # overrides stand together
        argv = [*argv[:at], f"recipe.warmup_epochs={config.recipe.warmup_epochs}", *argv[at:]]
    try:
        call_hydra(argv)
    except SystemExit as gone:  # how Hydra refuses a --package that does not exist
        return 2 if gone.code else 0
    return 0


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
