"""A console that cannot print a sign, a reader that leaves, a closed stdout: no traceback, and what can be said is said."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro import cli, console, job
from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.train import Training, run

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "größe"  # scripts print their folders
    for loss in ("sdt", "tet", "lts"):
        for seed in range(2):
            fake_run(folder / "runs" / "small_scale", f"loss={loss}", seed=seed)
    return folder


def test_signs_have_a_word_and_tables_keep_their_corners():
    assert console.plain("1 ± 2, −3 × 4 … ≥ ┏━┓ ö") == "1 +/- 2, -3 x 4 ... >= +-+ ?"


@pytest.mark.parametrize(
    "words, encoding, sign",
    [
        (("compare.py", "RUNS"), "ascii", "+/-"),
        (("compare.py", "RUNS", "--format", "markdown"), "latin-1", "±"),
        (("list_rows.py", "--table", "figures", "--runs", "RUNS"), "ascii", "--+--"),
        (("make_tables.py", "--results", "RESULTS"), "ascii", "gr??e"),
        (("study.py", "small_scale", "report", "--results", "RESULTS"), "ascii", "gr??e"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_a_console_without_the_sign_gets_another(results, words, encoding, sign, monkeypatch):
    places = {"RUNS": str(results / "runs"), "RESULTS": str(results)}
    argv = [places.get(word, word) for word in words[1:]]
    main = script(words[0].removesuffix(".py")).main
    monkeypatch.setenv("COLUMNS", "80")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    assert console.script(lambda: main(argv)) == 0
    assert sign in out.getvalue().decode(encoding)


def test_a_sentence_on_stderr_keeps_its_words(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(out, encoding="ascii", errors="backslashreplace"))
    console.prepare()
    print("3 ± 1", file=sys.stderr, flush=True)
    assert out.getvalue() == b"3 +/- 1\n"


@pytest.mark.parametrize("name", ["compare.py", "list_rows.py", "make_figures.py", "make_tables.py", "study.py"])
def test_every_script_is_run_by_the_helper(name):
    assert (SCRIPTS / name).read_text().endswith('if __name__ == "__main__":\n    sys.exit(console.script(main))\n')


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


def test_a_curve_is_bars_between_its_ends_or_numbers(monkeypatch):
    assert console.curve([0.5, 0.75, 0.7, 1.0]) == "50.0 ▁▅▄█ 100.0 %"
    assert console.curve([0.5, 0.5]) == "50.0 ▁▁ 50.0 %"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert console.curve([0.5, 0.75, 0.7, 1.0]) == "50 75 70 100 %"


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


# ---------------------------------------------------------------- what to type next


def typed(words: list, folder) -> str:
    """The last line on a terminal after a program that ended well, run in `folder`."""
    main, side = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], stdout=side, stderr=side, env=environment, cwd=folder, timeout=120
    )
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):  # the end
        while part := os.read(main, 65536):
            shown += part
    os.close(main)
    assert done.returncode == 0, shown
    return shown.decode().splitlines()[-1]


SHORT = ["logger=none", "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1"]


@pytest.mark.slow
def test_a_run_ends_with_the_command_that_looks_at_it(tmp_path):
    words = ["-m", "snn_repro.train", *SHORT, "hydra.run.dir=my runs/a"]
    assert typed(words, tmp_path) == "next: snn-eval 'my runs/a'"


def test_a_run_that_failed_has_its_own_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("snn_repro.job.call_hydra", lambda argv: job.finished.__setitem__(slice(None), ["runs/a"]))
    assert cli._main([]) == 0 and capsys.readouterr().err == "next: snn-eval runs/a\n"
    monkeypatch.setattr("snn_repro.job.call_hydra", lambda argv: job.errors.append(UserError("the disk is full")))
    assert cli._main([]) == 2 and capsys.readouterr().err == "snn-train: the disk is full\n"


def test_prepared_data_are_followed_by_the_training(tmp_path, monkeypatch, capsys):
    report = SimpleNamespace(samples=40, expected=40, read=40, folder=tmp_path)
    monkeypatch.setattr("snn_repro.data.prepare.prepare", lambda *_, **__: report)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    words = ["dataset=cifar10_dvs", f"data_dir={tmp_path / 'raw'}", f"cache_dir={tmp_path / 'cache'}", "timesteps=2"]
    assert script("prepare_data").main([*words, "frame_size=8", "workers=0"]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("next: "))
    assert line == f"next: python -m snn_repro.train {' '.join(words)} dataset.frame_size=8"
    assert load_config(shlex.split(line)[4:]).dataset.frame_size == 8


def test_a_sweep_ends_with_the_command_that_compares_it(tmp_path, monkeypatch, capsys):
    from snn_repro.runs import sweeps

    jobs = [sweeps.Job([], load_config([f"hydra.run.dir={tmp_path}/runs/{loss}/seed0"])) for loss in ("sdt", "lts")]
    monkeypatch.setattr(sweeps, "state", lambda job: ("done", ""))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.chdir(tmp_path)
    assert sweeps.report(jobs, 0, []) == 0
    assert capsys.readouterr().err == f"next: python {SCRIPTS / 'compare.py'} runs\n"


def test_a_suggestion_is_for_a_person(monkeypatch, capsys):
    console.suggest("snn-eval", Path.cwd() / "a b")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console.suggest("snn-eval", Path.cwd() / "a b", "/elsewhere")
    assert capsys.readouterr() == ("", "next: snn-eval 'a b' /elsewhere\n")
