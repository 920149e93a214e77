"""A real SLURM of one node: an array of six runs, one preempted, one killed, one out of time, all six as if nothing happened.

Started here from Debian's packages (tests/slurm/up.sh); skipped where they are missing.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snn_repro.runs.folder import find_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))),
        reason="SLURM is not installed: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting slurmd and munged needs root"),
]
ROOT = Path(__file__).parents[2]
SHORT = ["logger.mode=disabled", "debug.max_steps=8", "debug.max_eval_batches=1"]
NODE = ["hydra/launcher=slurm", "slurm.gpus=0", "slurm.cpus=1", "slurm.memory=1", "slurm.time=10", "slurm.notice=50"]
TIMES = {"seconds", "samples_per_s", "peak_memory_mb", "folder", "config"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    pytest.importorskip("submitit", reason="pip install 'snn_repro[slurm]'")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([ROOT / "tests/slurm/up.sh", folder], capture_output=True, text=True)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        assert started.returncode == 0, started.stderr
        yield
    finally:
        subprocess.run([ROOT / "tests/slurm/down.sh", folder], capture_output=True)
        del os.environ["SLURM_CONF"]


def start(*arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "snn_repro.train", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more,
    )  # fmt: skip


def wait_for(what, process=None, seconds=300):
    """The first true value of `what()`; fails after `seconds`, or when the process has ended."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)
    return found


def slurm_says(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def array_of(process) -> str:
    listed = "squeue", "--noheader", "--array", "--format=%i"
    return wait_for(lambda: re.findall(r"^(\d+)_", slurm_says(*listed), re.M), process)[0]


def preempt(job: str) -> None:
    """Send the notice once: scancel repeats it when the job is on its way back into the queue before it could answer."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=USR2", job], timeout=2, capture_output=True)


def restarts(array: str, i: int) -> int:
    return int(re.search(r"Restarts=(\d+)", slurm_says("scontrol", "show", "job", f"{array}_{i}"))[1])


def epochs(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def numbers(root: Path) -> dict:
    return {
        Path(r.folder).relative_to(root): {k: v for k, v in r.items() if k not in TIMES} for r in find_results(root)
    }


def test_an_array_with_one_preempted_one_killed_and_one_out_of_time(slurm, tmp_path):
    root = tmp_path / "slurm"
    lengths = [400, 40, 41, 42, 43, 44]
    sweep = ["-m", *SHORT, "recipe.epochs=" + ",".join(map(str, lengths))]
    process = start(*sweep, *NODE, f"hydra.sweep.dir={root}")
    whole = start(*sweep, f"hydra.sweep.dir={tmp_path / 'whole'}")  # the same runs, left in peace
    folder = {
        n: root / f"digits-small-if_imp-lts/debug.max_eval_batches=1,debug.max_steps=8,recipe.epochs={n}/seed0"
        for n in lengths
    }
    array = array_of(process)
    accidents = {
        # Out of time: a limit of one minute, so that the notice (50 s before it) comes while the run is under way.
        400: lambda: slurm_says("scontrol", "update", f"JobId={array}_0", "TimeLimit=1"),
        # Preempted: the notice comes by hand, in mid-run.
        40: lambda: preempt(f"{array}_1"),
        # Killed: what the kernel does when memory runs out.
        41: lambda: os.kill(json.loads((folder[41] / "status.json").read_text())["pid"], signal.SIGKILL),
    }
    try:
        while accidents:
            under_way = wait_for(lambda: [n for n in accidents if epochs(folder[n]) > 1], process)
            for n in under_way:
                accidents.pop(n)()
        wait_for(lambda: restarts(array, 0) == 1, process)
        slurm_says("scontrol", "update", f"JobId={array}_0", "TimeLimit=10")  # once is enough
        out, err = process.communicate(timeout=1200)
        said = whole.communicate(timeout=1200)[1]
    finally:
        subprocess.run(["scancel", array])
        process.kill()
        whole.kill()
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "sweep: 6 of 6 runs done"
    assert [restarts(array, i) for i in range(6)] == [1, 1, 1, 0, 0, 0]
    logs = "".join(p.read_text() for p in sorted((root / ".submitit").rglob("*_log.out")))
    assert logs.count("resuming at epoch") == 3

    assert whole.returncode == 0, said
    assert numbers(root) == numbers(tmp_path / "whole")
    assert len(numbers(root)) == 6

    # Nothing is left: the same command submits nothing.
    again = start(*sweep, *NODE, f"hydra.sweep.dir={root}")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0 and out.startswith("6 of 6 runs are finished already"), err


def test_a_cancelled_job_is_saved_and_stays_cancelled(slurm, tmp_path):
    """`scancel` ends one run for good: the sweep does not wait for it, and the same command continues it."""
    process = start("-m", *SHORT, "recipe.epochs=3,500", *NODE, f"hydra.sweep.dir={tmp_path}")
    folder = tmp_path / "digits-small-if_imp-lts/debug.max_eval_batches=1,debug.max_steps=8,recipe.epochs=500/seed0"
    array = array_of(process)
    try:
        wait_for(lambda: epochs(folder) > 1, process)
        slurm_says("scancel", f"{array}_1")
        out, err = process.communicate(timeout=300)
    finally:
        subprocess.run(["scancel", array])
        process.kill()
    assert process.returncode == 1
    assert out.splitlines()[-1] == "sweep: 1 of 2 runs done"
    assert f"  interrupted: {folder}: stopped at epoch" in err
    assert (folder / "checkpoint_last.pt").exists() and restarts(array, 1) == 0


def test_a_batch_script_requeues_and_resumes(slurm, tmp_path):
    rows = tmp_path / "rows.txt"
    rows.write_text(
        f"{sys.executable} -m snn_repro.train {' '.join(SHORT)} recipe.epochs=60 hydra.run.dir={tmp_path / 'run'}\n"
    )
    said = slurm_says(
        "sbatch", "--array=1-1", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=10", f"--chdir={ROOT}",
        f"--output={tmp_path / 'log'}", str(ROOT / "scripts/cluster/rows.sbatch"), str(rows), "seed=3",
    )  # fmt: skip
    array = said.split()[-1]
    try:
        wait_for(lambda: epochs(tmp_path / "run") > 1)
        preempt(f"{array}_1")
        wait_for((tmp_path / "run/result.json").exists)
    finally:
        subprocess.run(["scancel", array])
    assert restarts(array, 1) == 1 and "resuming at epoch" in (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "run/result.json").read_text())["seed"] == 3
