"""A console that cannot print a sign, a reader that leaves, a closed stdout, a terminal: what can be said is said."""

import contextlib
import io
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


def test_a_reader_that_leaves_is_no_error(results):
    read, write = os.pipe()
    os.close(read)  # nobody reads: the first write fails, as after `| head -0`
    words = [sys.executable, SCRIPTS / "compare.py", results / "runs"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_stdout_is_no_error(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of `>&-`
    assert console.script(lambda: script("compare").main([str(results / "runs")])) == 0
    assert capsys.readouterr().err == ""


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


def test_a_curve_is_bars_between_its_ends():
    assert console.curve([0.5, 0.75, 0.7, 1.0]) == "50.0 ▁▅▄█ 100.0 %"
    assert console.curve([0.5, 0.5]) == "50.0 ▁▁ 50.0 %"


def test_the_pace_of_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    first = console.pace(epoch=0, epochs=3, start=0, steps=10, batch_size=64, history=[])
    before = [dict(seconds=3600, acc_step=[0.5, 1])]
    later = console.pace(epoch=1, epochs=3, start=5, steps=10, batch_size=64, history=before)
    now[0] += 8
    assert first(4) == "32 samples/s  0:12 left, run 0:52"  # 6 of 10 steps of 2 s, and 26 of 30
    assert later(9) == "32 samples/s  0:02 left, run 1:06:00  50.0 ▁█ 100.0 %"  # a tenth of this epoch, and another one


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


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, RuntimeError])
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
    assert re.search(r"[\d,]+ samples/s  \d+:\d\d left, run \d+:\d\d  [\d.]+ [▁▂▃▄▅▆▇█]{4} [\d.]+ %", line)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2
    assert shown.rindex("\x1b[2K") > shown.rindex("samples/s  ")
    assert threads == {before}  # nobody draws while a step is computed
    assert bool(done) == (ending is None)


def test_elsewhere_an_epoch_is_one_plain_line(quick, capsys, caplog):
    caplog.set_level("INFO", "snn_repro")
    run(quick())
    lines = [record.getMessage() for record in caplog.records]
    assert [line[:12] for line in lines[1:-1]] == ["epoch   1/2 ", "epoch   2/2 "] and "▁" not in "".join(lines)
    assert capsys.readouterr().out == ""
