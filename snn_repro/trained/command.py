"""What the commands on trained networks share: help, one sentence for what a user can mend, exit codes."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from snn_repro import console
from snn_repro.errors import UserError, in_one_sentence

log = logging.getLogger("snn_repro")


def command(name: str, usage: str | None, main: Callable[[list[str]], None]) -> NoReturn:
    """Run `main` on what was typed: exit code 0 done, 2 wrong input, 130 Ctrl-C. Remarks go to stderr, results to stdout."""
    warnings.formatwarning = console.one_line
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)

    def run() -> int:
        argv = sys.argv[1:]
        if not argv or {"-h", "--help"} & {*argv}:
            print((usage or "").strip())
            return 0 if argv else 2
        try:
            main(argv)
        except KeyboardInterrupt:
            print(f"{name}: stopped, nothing was written", file=sys.stderr)
            return 128 + signal.SIGINT
        except Exception as raised:
            smaller = "batch_size=32 or less takes fewer samples at a time, " * (name == "snn-eval")
            error = in_one_sentence(raised, f"{smaller}device=cpu takes the machine's memory instead of a GPU's")
            if not isinstance(error, UserError):
                raise
            print(f"{name}: {console.harmless(error)}", file=sys.stderr)
            return 2
        return 0

    sys.exit(console.script(run))


def split(argv: list[str], flags: tuple[str, ...] = ("--json",)) -> tuple[str, list[str], set[str]]:
    """(the run's folder, the other words, the flags) of a command line. Raises UserError for a flag that there is not."""
    given = {word for word in argv if word.startswith("-")}
    for word in given - {*flags}:
        raise UserError(f"there is no {word}; the flags are: --help, {', '.join(flags)}")
    words = [word for word in argv if word not in given]
    # folders of runs have = in their names: runs/NAME/recipe.lr=0.05/seed0, there or mistyped
    run = next((w for w in words if os.sep in w.partition("=")[0] or "=" not in w or os.path.isdir(w)), None)
    if run is None:
        raise UserError("name the folder of a run, like runs/NAME/seed0")
    words.remove(run)
    return run, words, given
