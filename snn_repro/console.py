"""What is shared about the terminal: characters that it cannot print, a reader that has gone, progress, and log lines."""

import codecs
import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from snn_repro import distributed
from snn_repro.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

ASCII = {
    "±": "+/-", "−": "-", "×": "x", "·": "*", "…": "...", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "→": "->", "²": "^2",
    "’": "'", "‘": "'", "“": '"', "”": '"', "µ": "u", "τ": "tau", "─": "-", "━": "-", "│": "|", "┃": "|", "▲": "^",
}  # fmt: skip


def plain(text: str) -> str:
    """`text` in ASCII: known signs in words that stand for them, corners of tables as +, anything else as ?."""
    return "".join(c if c.isascii() else ASCII.get(c) or ("+" if "─" <= c <= "╿" else "?") for c in text)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error("snn_repro.plain", _replace)


def prepare() -> None:
    """Let stdout and stderr write what stands for a character that they cannot encode, where they would raise.

    Where one is closed, what is written there is lost and nothing else.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the process ends
        elif getattr(stream, "errors", None) in ("strict", "backslashreplace") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="snn_repro.plain")


def prints(text: str) -> bool:
    """Whether stdout can encode `text`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def one_sentence(main: Callable[..., int]) -> Callable[..., int]:
    """The `main` of a script, told of what a user can mend by one sentence on stderr and exit code 2."""

    @functools.wraps(main)
    def run(*arguments: list[str] | None) -> int:
        try:
            return main(*arguments)
        except UserError as error:
            print(f"{Path(main.__code__.co_filename).name}: {error}", file=sys.stderr)
            return 2

    return run


def script(main: Callable[[], int]) -> int:
    """Run the `main` of a script; returns its exit code, or that of SIGPIPE where nobody reads the rest (`| head`)."""
    prepare()
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else Python flushes what is left at its end, and complains
        return 128 + signal.SIGPIPE


@contextlib.contextmanager
def progress(title: str, total: int, say: Callable[[str], None] | None = None) -> Iterator[Callable[[int], None]]:
    """Yields `advance(done)`: it moves a bar on a terminal; elsewhere `say` hears of every tenth, as "3 of 30 files"."""
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
        return

    def advance(done: int) -> None:
        if say and done * 10 // total > (done - 1) * 10 // total:
            say(f"{done} of {total} {title}")

    yield advance


def audible(log: logging.Logger) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: print the log's lines while the function runs, where nobody has configured logging, as in a notebook."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if log.hasHandlers():
                return function(*args, **kwargs)
            handler, level = logging.StreamHandler(sys.stdout), log.level
            handler.setFormatter(logging.Formatter("%(message)s"))
            log.addHandler(handler)
            log.setLevel(level or logging.INFO)
            try:
                return function(*args, **kwargs)
            finally:
                log.removeHandler(handler)
                log.setLevel(level)

        return wrapper

    return decorate


_warned: set[str] = set()


def one_line(message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """How warnings are shown: one line, the first time."""
    text = " ".join(str(message).split())
    if text in _warned or distributed.world().rank:
        return ""
    _warned.add(text)
    return f"warning: {text}\n"
