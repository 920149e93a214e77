"""The terminal: safe text, errors in one sentence, progress bars and log lines."""

import argparse
import contextlib
import functools
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from snn_repro import distributed
from snn_repro.errors import TrainingError, UserError


def harmless(text: object) -> str:
    """`text` with ? for each control character but line breaks: an escape sequence becomes ?[."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def markdown(text: object) -> str:
    """`text` as one line of Markdown, with HTML, links, images and | escaped."""
    line = harmless(text).replace("\n", " ").replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


def _harmless_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = harmless(record.getMessage()), ()
    return True


logging.getLogger("snn_repro").addFilter(_harmless_record)


def told(name: str, main: Callable[[], int]) -> int:
    """The exit code of `main`; a UserError or a signal prints one sentence on stderr."""
    try:
        return main()
    except UserError as error:
        code, sentence = 1 if isinstance(error, TrainingError) else 2, str(error)
    except KeyboardInterrupt as stopped:
        code, sentence = 128 + getattr(stopped, "signum", signal.SIGINT), str(stopped) or "stopped"
    if distributed.world().rank == 0:  # its sentence has the reasons of the other processes
        with contextlib.suppress(OSError):  # the terminal has gone
            print(f"{name}: {harmless(sentence)}", file=sys.stderr)
    return code


def one_sentence(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate the `main` of a script with `told`."""

    @functools.wraps(main)
    def run(*arguments: list[str] | None) -> int:
        return told(Path(main.__code__.co_filename).name, lambda: main(*arguments))

    return run


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A plain table; the first `left` columns, and those named "most ...", are left-aligned."""
    lines = [[harmless(cell).replace("\n", "?") for cell in line] for line in (columns, *rows)]
    sides = ["<" if k < left or name.startswith("most") else ">" for k, name in enumerate(columns)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    row = "  ".join(f"{{:{side}{n}}}" for side, n in zip(sides, widths, strict=True))
    return "\n".join(["", harmless(title), *(row.format(*line).rstrip() for line in lines)])


class Parser(argparse.ArgumentParser):
    """Argument parser of every script; `--help` prints the module's docstring first."""

    def __init__(self, prog: str, doc: str | None = None, **more: Any):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, usage=argparse.SUPPRESS, description=doc, formatter_class=style, **more)

    def error(self, message: str) -> NoReturn:
        """Raise UserError where argparse would print the usage and exit."""
        raise UserError(f"{message}; see --help")


def script(main: Callable[[], int]) -> int:
    """Run the `main` of a script; returns its exit code, or SIGPIPE's after `| head`.

    A character that a stream cannot encode becomes ?; output to a closed stream is dropped.
    """
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
    try:
        for stream in (sys.stdout, sys.stderr):
            getattr(stream, "reconfigure", dict)(errors="replace")  # a notebook's has none
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else Python flushes the rest on exit, and fails
        return 128 + signal.SIGPIPE


REFRESH = 0.25  # seconds between two drawings of a bar; no thread draws, so that no training step is slowed


@contextlib.contextmanager
def progress(
    title: str, total: int, say: Callable[[str], None] | None = None, beside: Callable[[int], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields `advance(done)`: a bar on a terminal, else `say("3 of 30 files")` every tenth.

    beside: text on the right of the bar after `done` steps; default the number done and the time left.
    """
    alone = multiprocessing.current_process().name == "MainProcess" and distributed.world().rank == 0
    if not (alone and sys.stdout is not None and sys.stdout.isatty()):
        yield lambda done: say(f"{done} of {total} {title}") if say and done * 10 % total < 10 else None
        return
    width = shutil.get_terminal_size().columns // 16 if beside else 40
    right = (TextColumn("{task.fields[text]}"),) if beside else (MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), BarColumn(width), *right, transient=True, auto_refresh=False)
    task, drawn = bar.add_task(title, total=total, text=""), time.monotonic()

    def draw(done: int) -> None:
        nonlocal drawn
        if done == total or time.monotonic() - drawn >= REFRESH:
            with contextlib.suppress(OSError):  # the terminal has gone; the run goes on
                bar.update(task, completed=done, refresh=True, text=beside(done) if beside else "")
            drawn = time.monotonic()

    try:
        bar.start()
        yield draw
    finally:
        with contextlib.suppress(OSError):
            bar.stop()


def pace(
    epoch: int, epochs: int, start: int, steps: int, batch_size: int, history: Sequence[Mapping[str, Any]]
) -> Callable[[int], str]:
    """Text beside an epoch's bar: samples/s, time left, last accuracies by time step.

    epoch: from 0; it begins at step `start` of `steps`. Time left: of the epoch's training, and of the run.
    """
    began = time.monotonic()

    def text(done: int) -> str:
        step = (time.monotonic() - began) / max(1, done - start)
        whole = history[-1]["seconds"] if history else steps * step  # with its evaluation
        left, run = (steps - done) * step, whole * (epochs - epoch - done / steps)
        times = [timedelta(seconds=round(seconds)) for seconds in (left, max(left, run))]
        line = f"{batch_size / max(step, 1e-9):,.0f} samples/s  {times[0]} left, run {times[1]}"
        room = shutil.get_terminal_size().columns * 15 // 16 - len(f"epoch {epoch + 1}/{epochs}{line}") - 4
        return f"{line}  {by_step([100 * a for a in history[-1]['acc_step']], room) if history else ''}".rstrip()

    return text


def by_step(percent: Sequence[float], width: int) -> str:
    """`t=1,5,10: 82.7 84.2 86.0`: accuracies [T] in percent, as many as fit `width` columns."""
    last = len(percent) - 1
    for n in range(min(last + 1, width // 5), min(last, 1), -1):
        at = [last * i // max(1, n - 1) for i in range(n)]
        steps = ",".join(str(t + 1) for t in at) if n <= last else f"1..{n}"
        text = f"t={steps}: {' '.join(f'{percent[t]:.1f}' for t in at)}"
        if len(text) <= width:
            return text
    return ""


class LogLines(logging.Formatter):
    """Log lines; on a terminal they are coloured and wrapped between words.

    `fit(width)` of a record (logged with `extra`) returns its message for a width in columns.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line as it is printed; unchanged unless stdout is a terminal."""
        line = super().formatMessage(record)
        if sys.stdout is None or not sys.stdout.isatty():
            return line
        width = max(20, shutil.get_terminal_size().columns)
        screen = Console(file=sys.stdout, width=width)  # follows NO_COLOR and TERM
        line = record.fit(width) if hasattr(record, "fit") else line
        line = textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        text = Text(line, {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, ""))
        text.highlight_regex(r"(?<!\S)test\s(accuracy\s+)?[\d.]+%", "green")
        with screen.capture() as shown:
            screen.print(text, soft_wrap=True, end="")
        return shown.get()


@contextlib.contextmanager
def audible(log: logging.Logger) -> Iterator[None]:
    """Print log lines inside the block, unless logging is configured; also a decorator."""
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), log.level
    handler.setFormatter(LogLines("%(message)s"))
    log.addHandler(handler)
    log.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def one_line(message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as one line, printed by the first process only."""
    return "" if distributed.world().rank else f"warning: {harmless(' '.join(str(message).split()))}\n"
