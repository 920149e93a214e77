"""hydra/launcher=gpus on a machine that has none: how many workers there are, which GPU each sees, what is refused."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from snn_repro.errors import UserError
from snn_repro.runs import gpus, sweeps

ROOT = Path(__file__).parents[2]
SHORT = ["logger=none", "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1", "threads=1"]


def taking(said):
    """A worker process: it takes a place, says which GPU it sees, and stays."""
    gpus.take()
    said.put(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(60)


def test_workers_share_the_gpus_evenly_and_a_killed_ones_place_is_free_again():
    fork, workers = multiprocessing.get_context("fork"), []

    def next_one() -> str:
        said = fork.SimpleQueue()
        workers.append(fork.Process(target=taking, args=(said,)))
        workers[-1].start()
        return said.get()

    try:
        with gpus.slots(["3", "GPU-8f"], 2) as n:
            assert n == 4 and [next_one() for _ in range(4)] == ["3", "GPU-8f", "3", "GPU-8f"]
            workers[1].kill()
            assert next_one() == "GPU-8f"
        assert gpus.SLOTS not in os.environ
        gpus.take()  # outside nothing happens
    finally:
        for one in workers:
            one.kill()
            one.join()


def test_cores_are_shared_too():
    assert [gpus.share([0, 1, 4, 5, 6, 7], p, 3) for p in range(3)] == [[0, 1], [4, 5], [6, 7]]
    assert [gpus.share([2, 3], p, 4) for p in range(4)] == [[2], [2], [3], [3]]


def test_the_users_own_choice_of_gpus_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.visible() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, MIG-1")
    assert gpus.visible() == ["2", "MIG-1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus.visible() == []


@pytest.mark.parametrize(
    ("there", "more", "sentence"),
    [
        ([], [], "torch sees no GPU; use hydra/launcher=joblib"),
        (["0", "1"], ["device=cuda:1"], "device=cuda:1 cannot be used with hydra/launcher=gpus"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_sentence(tmp_path, monkeypatch, there, more, sentence):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setattr(gpus, "visible", lambda: there)
    with pytest.raises(UserError, match=sentence):
        sweeps.gpus_for(sweeps.plan([*SHORT, *more, "seed=0,1", f"hydra.sweep.dir={tmp_path}", "hydra/launcher=gpus"]))


SITE = """
import os, random
seed = random.seed
def tell(value=None, version=2):
    if value in (0, 1, 2, 3):
        with open(os.environ["TOLD"], "a") as f:
            f.write(f"{value} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getpid()}\\n")
    if value == 1:
        raise ZeroDivisionError("planted")
    seed(value, version)
random.seed = tell
"""
FAKE = """
from snn_repro.runs import gpus
gpus.visible = lambda: ["0", "1"]
if __name__ == "__main__":
    from snn_repro import cli
    cli.main()
"""


@pytest.mark.slow
def test_a_sweep_on_two_gpus_goes_on_after_a_failure(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "fake.py").write_text(FAKE)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "TOLD": str(tmp_path / "told")}
    words = ["-m", *SHORT, "seed=0,1,2,3", f"hydra.sweep.dir={tmp_path / 'runs'}", "hydra/launcher=gpus"]
    done = subprocess.run(
        [sys.executable, tmp_path / "fake.py", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1 and done.stdout.splitlines()[-1:] == ["sweep: 3 of 4 runs done"], done.stderr
    told = [line.split() for line in (tmp_path / "told").read_text().splitlines()]
    assert {seed for seed, _, _ in told} == {"0", "1", "2", "3"}
    of_process = {(pid, gpu) for _, gpu, pid in told}
    assert {gpu for _, gpu in of_process} == {"0", "1"} and len(of_process) == 2, "a GPU a process, and each GPU used"
