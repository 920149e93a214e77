"""A console that cannot print a sign, a reader that leaves, a closed stdout: no traceback, and what can be said is said."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro import console

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
