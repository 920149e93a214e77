"""What is shared about the terminal: characters that it cannot print, a reader that has gone, progress, and log lines."""

import argparse
import codecs
import contextlib
import functools
import logging
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

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
            code, sentence = 2, str(error)
        except KeyboardInterrupt as stopped:
            code, sentence = 128 + getattr(stopped, "signum", signal.SIGINT), str(stopped) or "stopped"
        print(f"{Path(main.__code__.co_filename).name}: {harmless(sentence)}", file=sys.stderr)
        return code

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


def suggest(command: str, *paths: Path | str) -> None:
    """Tell a person at a terminal what to type next; logs and pipes get results alone. Paths stand as typed from here."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    here = Path.cwd()
    near = (path.relative_to(here) if path.is_relative_to(here) else path for path in map(Path, paths))
    with contextlib.suppress(OSError, AttributeError):  # stdout is what comes before
        sys.stdout.flush()
    words = ["next:", command, *(shlex.quote(harmless(path)) for path in near)]
    print(" ".join(words), file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """The one style of `--help`: what a program does and examples, which its module's docstring says, then its arguments.

    Names are the same everywhere: --output FILE or DIR, --results DIR, --format, --check, --print.
    """

    def __init__(self, prog: str, doc: str | None = None, **more: Any):
        super().__init__(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help()

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
    """Yields `advance(done)`: it moves a bar on a terminal; elsewhere `say` hears of every tenth, as "3 of 30 files".

    beside: what stands on the right of the bar, in place of how many are done and the time left.
    """
    # several processes would draw on the same terminal
    alone = multiprocessing.current_process().name == "MainProcess" and distributed.world().rank == 0
    if alone and sys.stdout is not None and sys.stdout.isatty():
        narrow = max(5, shutil.get_terminal_size().columns - 85)
        columns = TextColumn("{task.description}"), BarColumn(min(40, narrow) if beside else 40)
        more = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True))
        rest = (more,) if beside else (MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, *rest, transient=True, auto_refresh=False)
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
        return

    def advance(done: int) -> None:
        if say and done * 10 // total > (done - 1) * 10 // total:
            say(f"{done} of {total} {title}")

    yield advance


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
    """Accuracies in percent as bars from the lowest to the highest between the first and the last; as numbers where stdout
    cannot print bars."""
    if not prints(BARS):
        return " ".join(f"{100 * value:.0f}" for value in values) + " %"
    low, span = min(values), max(values) - min(values)
    bars = "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)
    return f"{100 * values[0]:.1f} {bars} {100 * values[-1]:.1f} %"


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
    text = harmless(" ".join(str(message).split()))
    if text in _warned or distributed.world().rank:
        return ""
    _warned.add(text)
    return f"warning: {text}\n"
