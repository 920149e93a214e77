"""What `pip install` gives: a wheel that runs from any folder, and an editable install that reads the clone's conf/."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_everything_that_a_run_reads_is_package_data():
    """Each package folder is listed, and each file in them that is no module matches a pattern."""
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "snn_repro").rglob("*.py")}
    assert {".".join(f.parts) for f in folders} <= set(SETUP["packages"])
    places = {"snn_repro": ROOT / "snn_repro", **{name: ROOT / place for name, place in SETUP["package-dir"].items()}}
    packed = {f for name, patterns in SETUP["package-data"].items() for p in patterns for f in places[name].glob(p)}
    files = [f for place in ("snn_repro", "conf") for f in (ROOT / place).rglob("*") if f.is_file()]
    wanted = {f for f in files if f.suffix != ".py" and f.parent.name != "__pycache__"}
    assert wanted <= packed and ROOT / "results/paper_tables.yaml" in packed


def sources(tmp_path: Path) -> Path:
    """A copy to build from, so that nothing is built into the clone."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in ("snn_repro", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "results").mkdir()
    shutil.copy(ROOT / "results/paper_tables.yaml", copy / "results")
    return copy


def run(folder: Path, *command: str, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True, timeout=3600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(tmp_path: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it."""
    copy, out = sources(tmp_path), tmp_path / "dist"
    run(copy, sys.executable, "-m", "build", "-o", out)
    shutil.rmtree(copy)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_runs_from_another_folder(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    sdist, wheel = built(tmp_path)
    assert "PASSED" in run(other, sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    run(other, sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", tmp_path / "site", wheel)
    python, site = (
        [sys.executable, "-m", "snn_repro.train"],
        {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
    )
    where = (
        "from snn_repro import config; from snn_repro.paper import rows; print(config.CONF_DIR, len(rows.load_rows()))"
    )
    conf, rows = run(other, sys.executable, "-c", where, **site).split()
    assert conf == str(tmp_path / "site/snn_repro/conf") and int(rows) > 50
    assert "table1_cifar10_sdt" in run(other, *python, "--help", **site)
    assert "recipe:\n" in run(other, *python, "--cfg", "job", "experiment=table1_cifar10_sdt", **site)
    run(other, *python, "recipe.epochs=1", "logger.mode=disabled", **site)
    assert (other / "runs/digits-small-if_imp-lts/recipe.epochs=1/seed0/result.json").exists()
