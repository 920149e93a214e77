"""The oldest and the newest packages on each Python, in a fresh environment: the first command and a few tests.

Needs `uv`; `pytest -m slow -s tests/test_versions.py` prints the rows of `results/benchmarks/versions.md`. Lowest: the oldest
versions that pyproject.toml allows and this Python has wheels of; highest: the newest, with prereleases of Hydra and OmegaConf.
"""

import json
import shutil
import subprocess

import pytest
from test_packaging import ROOT, built, run

UV = shutil.which("uv")
SOURCES = [f"--no-binary={name}" for name in ("antlr4-python3-runtime", "expelliarmus")]  # all others as wheels
ASKED = {
    "lowest": ["--resolution=lowest-direct", "--no-binary=snn-repro"],
    "highest": ["hydra-core>=1.4.0rc1", "omegaconf>=2.4.0rc1"],
}
SHOWN = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "numba", "scipy", "spikingjelly", "wandb")
TESTS = ("tests/config", "tests/losses/test_losses.py", "tests/neurons/test_neurons.py")
FACTS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), *map(version, {SHOWN})]))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist for the lowest versions, the wheel for the highest."""
    return dict(zip(ASKED, built(tmp_path_factory.mktemp("built")), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="pip install uv")
@pytest.mark.parametrize("versions", ASKED)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_a_fresh_environment_trains_and_passes(python, versions, distributions, tmp_path):
    venv, other = tmp_path / "venv", tmp_path / "other"
    other.mkdir()
    if subprocess.run([UV, "venv", "-q", "--no-python-downloads", "--python", python, venv]).returncode:
        pytest.skip(f"Python {python} is not installed")
    install = [UV, "pip", "install", "-q", "--python", venv, "--only-binary=:all:", *SOURCES, *ASKED[versions]]
    run(other, *install, "-r", ROOT / "pyproject.toml", distributions[versions], "pytest>=8", "hypothesis>=6.100")
    inside = venv / "bin/python"
    run(other, inside, "-m", "snn_repro.train", "recipe.epochs=1", "hydra.run.dir=run", WANDB_MODE="offline")
    accuracy = 100 * json.loads((other / "run/result.json").read_text())["acc_last"]
    tests = run(ROOT, inside, "-m", "pytest", "-p", "no:cacheprovider", *TESTS).strip().splitlines()[-1]
    facts = json.loads(run(other, inside, "-c", FACTS))
    print("\n|", " | ".join([versions, *facts, f"{accuracy:.2f} %", tests.strip("= ")]), "|")
    shutil.rmtree(venv)  # gigabytes, which pytest would keep
