"""What ends a run early: errors that a user can fix, and signals that ask to stop.

`cli.main` prints them as one sentence and exits with code 2 (TrainingError: 1, Interrupted: 128 + signal). The signals are
Ctrl-C, SIGTERM, SIGHUP of a terminal that closes, and SIGUSR1 and SIGUSR2, a queue's notice.
"""

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class UserError(Exception):
    """One sentence for the user: it names the key or file, the value found and the fix."""


class DataError(UserError):
    """A data file is missing, unreadable or not what its format promises."""


class TrainingError(UserError):
    """Training cannot go on: the loss is not finite."""


class Interrupted(KeyboardInterrupt):
    """A signal that asks to stop arrived; what was under way was saved and the same command continues it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


def nearest(word: str, known) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `known`, or an empty string when nothing is close."""
    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


OF_TRAINING = (
    "recipe.accumulate=2 (or more) splits a batch into parts, model.checkpointing=blocks keeps less for the backward pass, and "
    "recipe.batch_size or recipe.eval_batch_size can be made smaller"
)


def in_one_sentence(error: BaseException, advice: str = OF_TRAINING) -> BaseException:
    """The error itself, or a UserError where torch raises a bare RuntimeError for what a user can mend.

    advice: what saves memory.
    """
    bare = isinstance(error, RuntimeError)
    if bare and "DataLoader worker" in str(error):
        return UserError(
            f"a loader process died ({' '.join(str(error).split())[:120]}), killed or out of memory; the same command "
            "continues from the last checkpoint, with dataset.workers=0 if it happens again"
        )
    if isinstance(error, MemoryError) or (bare and re.search(r"out of memory|can't allocate memory", str(error))):
        said = " ".join(str(error).split())[:120] or "MemoryError"
        return UserError(f"out of memory ({said}); {advice}")
    return error


class StopRequest:
    """Which signal came in, if one did."""

    signum: int | None = None


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler(signum, frame)` answer ASKED inside the block; in another than the main thread the caller's own do."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for one in ASKED:
            if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN:  # nohup: it outlives its terminal
                before[one] = signal.signal(one, handler)
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


@contextlib.contextmanager
def stop_requests(alone: bool) -> Iterator[StopRequest]:
    """Turn the first signal into a request to stop. A second Ctrl-C stops at once, if this process is `alone`:
    torchrun passes a Ctrl-C on, so that it arrives twice."""
    stop = StopRequest()

    def ask(signum: int, frame: Any) -> None:
        if stop.signum is not None and signum == signal.SIGINT and alone:
            raise KeyboardInterrupt
        stop.signum = signum

    with handled_by(ask):
        yield stop
