"""Commands look alike: one style of --help, the same names for the same things, and a list of all."""

import contextlib
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from scripts_of_ours import script

from snn_repro.__main__ import main, purpose

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py"))


def helped(name: str, capsys) -> str:
    """What a script prints for --help."""
    with contextlib.suppress(SystemExit):
        assert script(name).main(["--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_one_style(name, capsys, monkeypatch):
    """What it does in a line, examples to be typed, its arguments; the same things have the same names."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    text = helped(name, capsys)
    lines = text.splitlines()
    assert lines[0] == script(name).__doc__.splitlines()[0] and lines[1] == ""
    assert re.fullmatch(r"[A-Z].{20,130}\.", lines[0])
    assert lines[2].startswith(f"python scripts/{name}.py"), "examples come first"
    assert re.search(r"^(positional arguments|options):$", text, re.MULTILINE) and "-h, --help" in text
    assert not OTHERS & set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE))


OTHERS = {  # what other programs call --output, --results, --check, --format and --print
    "--out", "-o", "--output-file", "--output-dir", "--dest", "--results-dir", "--result", "--verify", "--csv", "--json",
    "--markdown", "--as", "--show",
}  # fmt: skip


def test_a_wrong_option_is_one_sentence():
    for name in ("compare", "list_rows", "make_tables", "study", "make_figures"):
        assert script(name).main(["--nothing"]) == 2, name


def test_the_list_of_commands(capsys):
    """Console scripts, modules and scripts of a clone, each with what it does."""
    assert main() == 0
    said = capsys.readouterr().out
    listed = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in said.splitlines() if line[:2] == "  ")
    assert all(listed.values())
    assert {name for name in listed if "/" in name} == {f"python scripts/{name}.py" for name in SCRIPTS}
    assert "python -m snn_repro.train" in listed and "snn_repro.runs.loggers" not in said


def test_every_console_script_does_what_its_module_says():
    """What `python -m snn_repro` shows of it once installed."""
    for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values():
        module, _, name = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        place = ROOT.joinpath(*module.split("."))
        assert purpose(place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).endswith("."), entry
