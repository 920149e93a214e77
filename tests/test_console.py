"""A console that cannot print a sign, a reader that leaves, a closed stdout, a terminal: what can be said is said."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro import console
from snn_repro.runs.result import epoch_line
from snn_repro.train import Training, run

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for seed in range(2):
        fake_run(folder / "runs" / "small_scale", seed=seed)
    return folder


def test_a_console_without_the_sign_shows_all_else(results, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert console.script(lambda: script("compare").main([str(results / "runs")])) == 0
    print("3 ± 1", file=sys.stderr, flush=True)
    assert b" ? " in sys.stdout.buffer.getvalue() and sys.stderr.buffer.getvalue() == b"3 ? 1\n"
    monkeypatch.setattr(sys, "stdout", None)  # closed: what Python makes of `>&-`
    assert console.script(lambda: script("compare").main([str(results / "runs")])) == 0


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)  # nobody reads: the first write fails, as after `| head -0`
    program = "import sys; from snn_repro import console; sys.exit(console.script(lambda: print('x') or 0))"
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_progress_is_a_line_every_tenth_and_a_bar_on_a_terminal(monkeypatch, capsys):
    said = []
    with console.progress("files", 25, said.append) as advance:
        for done in range(1, 26):
            advance(done)
    assert said[0] == "3 of 25 files" and said[-1] == "25 of 25 files" and len(said) == 10
    with console.progress("files", 0, said.append), console.progress("epoch 1/2", 3) as advance:
        advance(1)
    assert len(said) == 10 and capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("files", 25, said.append) as advance:
        advance(25)
    assert len(said) == 10 and "files" in capsys.readouterr().out


@pytest.mark.parametrize(
    "T, at_80", [(4, "1..4: 10.0 32.5 55.0 77.5"), (10, "1,5,10: 10.0 46.0 91.0"), (100, "1,50,100: ")]
)
def test_an_epoch_fits_the_terminal_and_a_file_has_all_of_it(T, at_80):
    line = dict(epoch=1, train_loss=1.2094, train_acc=0.6804, val_acc=0.8676, acc=0.86, lr=0.005, samples_per_s=1124.0)
    line["acc_step"] = [0.1 + 0.9 * t / T for t in range(T)]
    start, steps = "epoch   1/300  loss 1.2094", " ".join(f"{100 * a:.1f}" for a in line["acc_step"])
    middle, end = "train 68.04%  val 86.76%  test 86.00%", "1,124 samples/s"
    assert epoch_line(line, 300) == f"{start}  {middle}  at t=1..{T}: {steps}  lr 0.005  {end}"
    assert epoch_line(line, 300, 80).startswith(f"{start}  val 86.76%  test 86.00%  t={at_80}")
    assert middle in (wide := epoch_line(line, 300, 160)) and wide.endswith(end) and (T == 100) == (steps not in wide)
    assert all(len(epoch_line(line, 300, width)) <= width for width in range(40, 200))


@pytest.mark.parametrize("no_color", ["", "1"])
def test_log_lines_are_wrapped_and_coloured_on_a_terminal_alone(monkeypatch, no_color):
    monkeypatch.setenv("NO_COLOR", no_color)
    record = logging.makeLogRecord(dict(msg="test accuracy 97.78% " + "12,345 " * 20))
    assert console.LogLines("%(message)s").format(record) == record.msg
    with terminal(monkeypatch):
        shown = console.LogLines("%(message)s").format(record)
    assert ("\x1b[32mtest accuracy 97.78%\x1b[0m" in shown, "\x1b" in shown) == (not no_color, not no_color)
    assert shown.count("12,345") == 20 and max(map(len, shown.splitlines()[1:])) <= 100 and shown.count("\n") == 1


def test_the_pace_of_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    first = console.pace(epoch=0, epochs=3, start=0, steps=10, batch_size=64, history=[])
    before = [dict(seconds=3600, acc_step=[0.5, 1])]
    later = console.pace(epoch=1, epochs=3, start=5, steps=10, batch_size=64, history=before)
    now[0] += 8
    assert first(4) == "32 samples/s  0:00:12 left, run 0:00:52"  # 6 of 10 steps of 2 s, and 26 of 30
    # a tenth of this epoch, and another one
    assert later(9) == "32 samples/s  0:00:02 left, run 1:06:00  t=1..2: 50.0 100.0"


@contextlib.contextmanager
def terminal(monkeypatch):
    """sys.stdout is a terminal; yields a function that reads what it has been sent."""
    main, side = os.openpty()  # stays open: numba's colorama asks the stdout that it found again when Python ends
    os.set_blocking(main, False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", open(side, "w", encoding="utf-8"))
        yield lambda: os.read(main, 1_000_000).decode()


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt])
def test_a_terminal_shows_training_and_is_left_as_it_was(quick, monkeypatch, ending):
    """Pace and the accuracies of the epoch before; whatever ends it, the line is wiped and the cursor is back."""
    step, threads, done = Training.train_step, set(), []

    def train_step(self, *arguments):
        threads.add(threading.active_count())
        if ending and (self.epoch, self.step) == (1, 2):
            raise ending
        return step(self, *arguments)

    monkeypatch.setattr(Training, "train_step", train_step)
    monkeypatch.setattr(console, "REFRESH", 0)
    before = threading.active_count()
    with terminal(monkeypatch) as sent:
        with pytest.raises(ending) if ending else contextlib.nullcontext():
            done.append(run(quick()))
        shown = sent()
    (line, *_) = [part for part in shown.split("\x1b[2K") if part.startswith("epoch 2/2") and "samples/s" in part]
    assert re.search(r"[\d,]+ samples/s  [\d:]+ left, run [\d:]+  t=1..4:( [\d.]+){4}", line)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2
    assert shown.rindex("\x1b[2K") > shown.rindex("samples/s  ")
    assert threads == {before}  # nobody draws while a step is computed
    assert bool(done) == (ending is None)
