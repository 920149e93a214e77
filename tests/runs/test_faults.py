"""Killed and broken runs go on with the same numbers or say one sentence; the harness is tests/faults/run.py."""

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "faults" / "run.py"


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_every_kill_is_recovered_with_the_same_numbers(kills):
    command = [sys.executable, str(HARNESS), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0 and f"{kills} kills, 0 problems" in done.stdout, done.stdout + done.stderr
