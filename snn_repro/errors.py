"""Errors that a user can fix, and signals that stop a run.

`cli.main` prints each as one sentence and exits with code 2 (TrainingError: 1, Interrupted: 128 + signal). Signals are
Ctrl-C, SIGTERM, SIGHUP of a closing terminal, and SIGUSR1 and SIGUSR2, a queue's notice.
"""

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class UserError(Exception):
    """One sentence for the user: the key or file, the value and the fix."""


class DataError(UserError):
    """A data file is missing, unreadable or in the wrong format."""


class TrainingError(UserError):
    """Training cannot continue: the loss is not finite."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run after its state was saved; the same command resumes it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


def nearest(word: str, known) -> str:
    """`"; did you mean 'x'?"` for the closest word of `known`, else an empty string."""
    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def brief(error: object, named: bool = False) -> str:
    """An error in one line of at most 300 letters, with its class if `named`."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if named else text or type(error).__name__


LESS_MEMORY = (
    "recipe.accumulate=2 (or more) splits a batch into parts, model.checkpointing=blocks stores less for the backward pass, and "
    "recipe.batch_size or recipe.eval_batch_size can be reduced"
)


def in_one_sentence(error: BaseException, advice: str = LESS_MEMORY) -> BaseException:
    """Turn torch's RuntimeErrors that a user can fix into a UserError; advice: saving memory."""
    bare = isinstance(error, RuntimeError)
    if bare and "DataLoader worker" in str(error):
        return UserError(
            f"a loader process died ({brief(error)}), killed or out of memory; the same command "
            "continues from the last checkpoint, with dataset.workers=0 if it happens again"
        )
    if isinstance(error, MemoryError) or (bare and re.search(r"out of memory|can't allocate memory", str(error))):
        return UserError(f"out of memory ({brief(error)}); {advice}")
    return error


class StopRequest:
    """The signal that arrived, if any."""

    signum: int | None = None


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Context manager: `handler(signum, frame)` handles STOP_SIGNALS in the main thread."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for one in STOP_SIGNALS:
            if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN:  # nohup ignores it
                before[one] = signal.signal(one, handler)
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


@contextlib.contextmanager
def stop_requests(alone: bool) -> Iterator[StopRequest]:
    """Context manager: the first signal requests a stop; a second Ctrl-C stops at once."""
    stop = StopRequest()

    def ask(signum: int, frame: Any) -> None:
        if stop.signum is not None and signum == signal.SIGINT and alone:  # torchrun's Ctrl-C arrives twice
            raise KeyboardInterrupt
        stop.signum = signum

    with handled_by(ask):
        yield stop
