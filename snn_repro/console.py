"""What is shared about the terminal: characters that it cannot print, a reader that has gone, progress, and log lines."""

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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from snn_repro import distributed
from snn_repro.errors import TrainingError, UserError


def harmless(text: object) -> str:
    """`text` for a terminal: of signs that are not printed only line breaks stay, an escape sequence becomes ?[."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def markdown(text: object) -> str:
    """`text` as one line of Markdown that is no HTML, link, image or end of a cell."""
    line = harmless(text).replace("\n", " ").replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)


def _harmless_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = harmless(record.getMessage()), ()
    return True


logging.getLogger("snn_repro").addFilter(_harmless_record)


def prepare() -> None:
    """Let stdout and stderr write ? for a character that they cannot encode; what is written to a closed one is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def told(name: str, main: Callable[[], int]) -> int:
    """The exit code of `main`; what a user can mend, or a signal, is told by one sentence on stderr."""
    try:
        return main()
    except UserError as error:
        code, sentence = 1 if isinstance(error, TrainingError) else 2, str(error)
    except KeyboardInterrupt as stopped:
        code, sentence = 128 + getattr(stopped, "signum", signal.SIGINT), str(stopped) or "stopped"
    if distributed.world().rank == 0:  # of several processes the first one says it, with the others' reasons too
        with contextlib.suppress(OSError):  # the terminal has gone
            print(f"{name}: {harmless(sentence)}", file=sys.stderr)
    return code


def one_sentence(main: Callable[..., int]) -> Callable[..., int]:
    """The `main` of a script, by `told`."""

    @functools.wraps(main)
    def run(*arguments: list[str] | None) -> int:
        return told(Path(main.__code__.co_filename).name, lambda: main(*arguments))

    return run


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """An empty line, the title, and columns: the first `left` of them, and one of words ("most ..."), to the left."""
    lines = [[harmless(cell).replace("\n", "?") for cell in line] for line in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_left = [k < left or name.startswith("most") for k, name in enumerate(columns)]
    table = (
        "  ".join(cell.ljust(n) if to else cell.rjust(n) for cell, n, to in zip(line, widths, to_left, strict=True))
        for line in lines
    )
    return "\n".join(["", harmless(title), *(line.rstrip() for line in table)])


class Parser(argparse.ArgumentParser):
    """The one style of `--help`: what a program does and examples, which its module's docstring says, then its arguments.

    Names are the same everywhere: --output FILE or DIR, --results DIR, --format, --check, --print.
    """

    def __init__(self, prog: str, doc: str | None = None, **more: Any):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, usage=argparse.SUPPRESS, description=doc, formatter_class=style, **more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help says what there is")


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


REFRESH = 0.25  # seconds between two looks of a bar: it is drawn between two steps, and no thread draws beside them


@contextlib.contextmanager
def progress(
    title: str, total: int, say: Callable[[str], None] | None = None, beside: Callable[[int], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields `advance(done)`: it moves a bar on a terminal; elsewhere `say` is told of every tenth, as "3 of 30 files".

    beside: what stands on the right of the bar, in place of how many are done and the time left.
    """
    # several processes would draw on the same terminal
    alone = multiprocessing.current_process().name == "MainProcess" and distributed.world().rank == 0
    if not (alone and sys.stdout is not None and sys.stdout.isatty()):

        def tell(done: int) -> None:
            if say and done * 10 // total > (done - 1) * 10 // total:
                say(f"{done} of {total} {title}")

        yield tell
        return
    text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True))
    width = max(5, min(40, shutil.get_terminal_size().columns - 85)) if beside else 40
    more = (text,) if beside else (MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), BarColumn(width), *more, transient=True, auto_refresh=False)
    task, drawn = bar.add_task(title, total=total, text=""), time.monotonic()

    def draw(done: int) -> None:
        nonlocal drawn
        if done == total or time.monotonic() - drawn >= REFRESH:
            with contextlib.suppress(OSError):  # the terminal has gone, and what is under way is saved
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
    """What stands beside the bar of epoch `epoch` (from 0), which begins at step `start` of `steps`, after so many steps:
    samples/s, the time left of the epoch's training and of the run, and the accuracy at each time step, as the epoch
    before had it."""
    began = time.monotonic()

    def text(done: int) -> str:
        step = (time.monotonic() - began) / max(1, done - start)
        whole = history[-1]["seconds"] if history else steps * step  # with its evaluation
        left, run = (steps - done) * step, whole * (epochs - epoch - done / steps)
        before = "  " + curve(history[-1]["acc_step"]) if history else ""
        return f"{batch_size / max(step, 1e-9):,.0f} samples/s  {clock(left)} left, run {clock(max(left, run))}{before}"

    return text


def clock(seconds: float) -> str:
    """1:05, or 2:01:05."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{s:02}" if minutes >= 60 else f"{minutes}:{s:02}"


BARS = "▁▂▃▄▅▆▇█"


def curve(values: Sequence[float]) -> str:
    """Accuracies in percent as bars from the lowest to the highest between the first and the last."""
    low, span = min(values), max(values) - min(values)
    bars = "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)
    return f"{100 * values[0]:.1f} {bars} {100 * values[-1]:.1f} %"


@contextlib.contextmanager
def audible(log: logging.Logger) -> Iterator[None]:
    """Print the log's lines inside the block, or while the decorated function runs, where nobody has configured logging."""
    if log.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), log.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


_warned: set[str] = set()


def one_line(message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """How warnings are shown: one line, the first time."""
    text = harmless(" ".join(str(message).split()))
    if text in _warned or distributed.world().rank:
        return ""
    _warned.add(text)
    return f"warning: {text}\n"
