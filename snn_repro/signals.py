"""Signals that ask to stop: Ctrl-C, SIGTERM, SIGHUP of a terminal that closes, and SIGUSR1 and SIGUSR2, a queue's notice."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Which signal came in, if one did."""

    signum: int | None = None


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler(signum, frame)` answer them inside the block; in another than the main thread the caller's own do."""
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
