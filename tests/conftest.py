"""Shared by all tests: small runs, no W&B, one thread."""

import logging
import os
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["MPLBACKEND"] = "Agg"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from snn_repro import cli  # noqa: E402
from snn_repro.config import load_config  # noqa: E402

settings.register_profile("any machine", deadline=None)  # a loaded one is slow
settings.load_profile("any machine")
QUICK = ["logger.mode=disabled", "recipe.epochs=2", "debug.max_steps=3", "debug.max_eval_batches=1"]


@pytest.fixture
def quick(tmp_path):
    """A configuration of two short epochs on digits, in a folder of its own: quick("loss=sdt", ...)."""

    def make(*overrides: str):
        mine = {o.split("=")[0] for o in overrides}
        base = [o for o in QUICK if o.split("=")[0] not in mine]
        folder = [] if "hydra.run.dir" in mine else [f"hydra.run.dir={tmp_path / 'run'}"]
        return load_config([*base, *folder, *overrides])

    return make


@pytest.fixture
def typed(capsys, monkeypatch):
    """The command in this process: typed("seed=1", ...) returns exit code, stdout and stderr."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return cli._main([*words]), *capsys.readouterr()

    yield run
    root.handlers[:] = before[0]
    root.setLevel(before[1])
