"""Commands look alike: one style of --help, the same names for the same things, and a list of all."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from snn_repro.__main__ import purpose

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py"))

EVERY_HELP = """
import contextlib, io, json, sys
sys.path[:0] = ["tests", "scripts"]
from scripts_of_ours import script
found = {}
for name in sys.argv[1:]:
    out, sys.argv = io.StringIO(), [f"{name}.py", "--help"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            module = script(name)
            code = module.main(["--help"])
        except SystemExit as gone:
            code = gone.code or 0
    found[name] = [code, out.getvalue(), module.__doc__]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps():
    """{script: (exit code, what it printed, its docstring)}, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, *SCRIPTS], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_one_style(helps, name):
    """What it does in a line, examples to be typed, its arguments; the same things have the same names."""
    code, text, doc = helps[name]
    lines = text.splitlines()
    assert code == 0 and lines[0] == doc.splitlines()[0] and lines[1] == ""
    assert re.fullmatch(r"[A-Z].{20,130}\.", lines[0])
    assert lines[2].startswith(f"python scripts/{name}.py"), "examples come first"
    assert re.search(r"^(positional arguments|options):$", text, re.MULTILINE) and "-h, --help" in text
    assert not OTHERS & set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE))


OTHERS = {  # what other programs call --output, --results, --check, --format and --print
    "--out", "-o", "--output-file", "--output-dir", "--dest", "--results-dir", "--result", "--verify", "--csv", "--json",
    "--markdown", "--as", "--show",
}  # fmt: skip


def test_a_wrong_option_is_one_sentence():
    sys.path.append(str(ROOT / "tests"))
    from scripts_of_ours import script

    for name in ("compare", "list_rows", "make_tables", "study", "make_figures"):
        assert script(name).main(["--nothing"]) == 2, name


def test_the_list_of_commands():
    """Console scripts, modules and scripts of a clone, each with what it does."""
    done = subprocess.run([sys.executable, "-m", "snn_repro"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines() if line[:2] == "  ")
    assert all(listed.values())
    assert {name for name in listed if "/" in name} == {f"python scripts/{name}.py" for name in SCRIPTS}
    assert "python -m snn_repro.train" in listed and "snn_repro.runs.loggers" not in done.stdout


def test_every_console_script_does_what_its_module_says():
    """What `python -m snn_repro` shows of it once installed."""
    for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values():
        module, _, name = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        place = ROOT.joinpath(*module.split("."))
        assert purpose(place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).endswith("."), entry
