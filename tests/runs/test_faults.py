"""Killed and broken runs go on with the same numbers or say one sentence; the harness is tests/faults/run.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "faults" / "run.py"


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_every_kill_is_recovered_with_the_same_numbers(tmp_path, kills):
    command = [sys.executable, str(HARNESS), "--kills", str(kills), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["kills"]) >= kills and all(k["recovered"] for k in found["kills"])
    assert found["faults"] and all(f["ok"] for f in found["faults"]) and found["corrupt"] == []
