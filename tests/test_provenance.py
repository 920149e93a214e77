"""Provenance of a result: the version of its numbers, what moved since, the commit."""

import subprocess

import pytest
from numbers_since import main, unannounced

from snn_repro import provenance
from snn_repro.config import load_config, to_dict
from snn_repro.paper.differences import is_older
from snn_repro.provenance import NUMBERS, code_version, git_state


def test_commit_and_dirty_flag_of_the_repository_alone(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    package, collected = tmp_path / "snn_repro", tmp_path / "results/runs.jsonl"
    for file in (package / "__init__.py", collected):
        file.parent.mkdir()
        file.write_text("")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    state = git_state.__wrapped__
    assert state() == (None, None)  # no repository
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    assert state() == (None, None)  # a repository around an installed package
    git("add", ".")
    git("commit", "-q", "-m", "y")
    collected.write_text("a run")
    commit, dirty = state()
    assert len(commit) == 40 and dirty is False
    (package / "__init__.py").write_text("# changed")
    assert state() == (commit, True)


def test_a_result_keeps_the_version_of_its_numbers():
    version = code_version()
    assert version["numbers"] == NUMBERS == max(provenance.MOVED)
    assert (version["commit"], version["dirty"]) == git_state()


CELLS = ("", "neuron=clif", "neuron=clif loss=tet", "neuron=leaky", "model=spikformer_cifar")


@pytest.fixture(scope="module")
def made():
    return {words: dict(config=to_dict(load_config(words.split()))) for words in CELLS}


@pytest.mark.parametrize(
    "moved, older",
    [("neuron=clif", CELLS[1:3]), ("model=spikformer*, neuron.surrogate=triangle", CELLS[3:]),
     ("neuron=clif loss=tet", CELLS[2:3]), ("*", CELLS)],
)  # fmt: skip
def test_only_runs_of_what_moved_are_older(monkeypatch, made, moved, older):
    monkeypatch.setattr(provenance, "MOVED", {1: "*", 2: moved})
    assert {w for w in made if is_older(made[w] | {"code": {"numbers": 1}})} == {*older}
    assert not any(is_older(result | {"code": {"numbers": 2}}) for result in made.values())
    assert all(is_older(result | {"code": {"sha256": "0"}}) and is_older(result) for result in made.values())
    assert is_older({"code": {"numbers": 1}, "loss": "tet"})  # measured data that do not name their neuron


def test_numbers_that_moved_unannounced_are_named(monkeypatch, capsys):
    monkeypatch.setattr(provenance, "MOVED", {1: "*"})
    before = {name: dict(config={"neuron": {"name": name}}, numbers=1) for name in ("if", "clif")}
    assert unannounced(before, before, 1) == []
    after = before | {"clif": before["clif"] | {"numbers": 2}}
    assert unannounced(before, after, 1) == ["clif"] and unannounced(before, {}, 1) == ["if", "clif"]
    monkeypatch.setattr(provenance, "MOVED", {1: "*", 2: "neuron=clif"})
    assert unannounced(before, after, 1) == [] and unannounced(before, {}, 1) == ["if"]
    assert main("no-such-commit") == 0 and "held against nothing" in capsys.readouterr().out
