"""The hash of what computes a run: comments do not count, code does, and every Python gives the same."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from snn_repro import provenance
from snn_repro.provenance import PACKAGE, SOURCES, code_version, git_state, normalised, source_hash, sources

CODE = '''
"""Module."""
import os

def f(x, *, y=1.5):
    """Doc."""
    # comment
    if x < 0:
        raise ValueError(f"x={x} is bad")
    return [x, f"{y:.2f}", "a" "b", b"c", None, ...]
'''


def test_words_and_layout_do_not_count():
    other = """import os
def f(x,
      *, y = 1.5):
    if x < 0: raise ValueError("another sentence")  # why
    return [ x, f"{y:.2f}", 'ab', b'c', None, ... ]
"""
    assert normalised(CODE) == normalised(other)


@pytest.mark.parametrize(
    "old, new",
    [("x < 0", "x <= 0"), ("1.5", "1.25"), ("ValueError", "OSError"), (":.2f", ":.3f"), ('"a"', '"A"'), ("None", "0")],
)
def test_code_counts(old, new):
    assert normalised(CODE) != normalised(CODE.replace(old, new))


def test_what_only_speaks_does_not_count():
    code = "A = 1\ndef say():\n    print(1)\n"
    assert (
        normalised(code, ("say",)) == normalised(code.replace("print(1)", "print(2)"), ("say",)) == normalised("A = 1")
    )
    assert normalised(code, ("A",)) == normalised(code.replace("1\n", "2\n", 1), ("A",))


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "snn_repro", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "snn_repro"


def test_sources_with_their_data_files_are_hashed_in_any_place(copy):
    assert all((PACKAGE / name).exists() for name in SOURCES)
    names = {p.relative_to(PACKAGE).as_posix() for p in sources()}
    assert {
        "kernels/neuron_cpu.py",
        "data/sets/digits_test.txt",
        "losses/sdt.py",
        "train.py",
        "runtime.py",
        "runs/checkpoint.py",
        "runs/result.py",
    } <= names and not names & {"paper/tables.py", "cli.py", "runs/folder.py"}
    first = provenance.source_hash.__wrapped__(copy)
    assert first == source_hash()
    for name, change in {"losses/sdt.py": "\nX = 1\n", "data/sets/digits_test.txt": "\n1\n"}.items():
        text = (copy / name).read_text()
        (copy / name).write_text(text + change)
        assert provenance.source_hash.__wrapped__(copy) != first, name
        (copy / name).write_text(text + ("" if name.endswith("txt") else "\n# a remark\n"))
    (copy / "paper" / "tables.py").write_text("")
    (copy / "__pycache__").mkdir()
    assert provenance.source_hash.__wrapped__(copy) == first


def test_every_python_gives_the_same_hash():
    program = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('p', sys.argv[1]); m = u.module_from_spec(s); "
        "s.loader.exec_module(m); print(m.source_hash())"
    )
    found = [
        p for p in (shutil.which(f"python3.{minor}", path=os.defpath + ":/usr/bin") for minor in range(11, 16)) if p
    ]
    for python in {sys.executable, *found}:
        done = subprocess.run([python, "-c", program, provenance.__file__], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == source_hash(), (python, done.stderr)


def test_commit_and_dirty_flag_of_the_repository_alone(tmp_path, copy, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    monkeypatch.setattr(provenance, "PACKAGE", copy)
    state = provenance.git_state.__wrapped__
    assert state() == (None, None)  # no repository
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    assert state() == (None, None)  # a repository around an installed package
    git("add", "snn_repro/__init__.py")
    git("commit", "-q", "-m", "y")
    commit, dirty = state()
    assert len(commit) == 40 and dirty is False
    (copy / "__init__.py").write_text("# changed")
    assert state() == (commit, True)


def test_the_version_of_the_code_is_cheap():
    started = time.process_time()
    version = code_version()
    assert time.process_time() - started < 1 and code_version() == version  # some 0.1 s the first time
    assert len(version["sha256"]) == 64 and (version["commit"], version["dirty"]) == git_state()
    version["sha256"] = "mine"
    assert code_version()["sha256"] == source_hash()


def test_code_that_computes_the_same_numbers_is_not_older(tmp_path):
    """Pairs are followed backwards from today's code, and no further."""
    known = tmp_path / "same_code.json"
    pairs = [("a", "b"), ("b", source_hash()), ("c", "d")]
    known.write_text(json.dumps([dict(before=before, after=after, runs=1, date="") for before, after in pairs]))
    assert provenance.same_code(known) == {source_hash(), "a", "b"}
    assert provenance.same_code(tmp_path / "none") == {source_hash()}
