"""Sweeps: 48 runs with 6 planted failures, killed workers, what is left out, what is said, and what a run's start costs."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snn_repro import job, signals, train
from snn_repro.config import ConfigError, config_hash
from snn_repro.errors import UserError
from snn_repro.runs import sweeps
from snn_repro.runs.folder import RunFolder, find_results

ROOT = Path(__file__).parents[2]
SHORT = ["logger.mode=disabled", "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1"]
TWEAKS = "debug.max_eval_batches=1,debug.max_steps=1,recipe.epochs=1"


def sweep(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "snn_repro.train", "-m", *SHORT, f"hydra.sweep.dir={root}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=1500, env={**os.environ, **environment},
    )  # fmt: skip


def plant(root: Path, name: str, seed: int) -> None:
    """A folder whose checkpoint belongs to something else: the run there fails, and says why."""
    folder = root / name / TWEAKS / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "checkpoint_last.pt").write_bytes(b"not a checkpoint")


@pytest.mark.slow
def test_48_runs_with_6_planted_failures(tmp_path):
    """42 finish, 6 are reported with the command that runs them; the same command then runs just the 6."""
    root = tmp_path / "runs"
    what = ["neuron=if,if_imp", "loss=sdt,tet,tet_s,lts", "seed=0,1,2,3,4,5"]
    planted = [("if-sdt", 0), ("if_imp-tet", 1), ("if-tet_s", 2), ("if_imp-lts", 3), ("if-lts", 4), ("if_imp-sdt", 5)]
    for name, seed in planted:
        plant(root, f"digits-small-{name}", seed)

    first = sweep(root, *what)
    assert first.returncode == 1
    assert first.stdout.splitlines()[-1] == "sweep: 42 of 48 runs done"
    assert len(find_results(root)) == 42
    report = first.stderr.strip().splitlines()[-9:]
    assert report[0] == "6 of 48 runs did not finish:"
    for name, seed in planted:
        (line,) = [line for line in report if f"digits-small-{name}/{TWEAKS}/seed{seed}:" in line]
        assert line.startswith("  failed: ") and "damaged" in line
    assert report[-1].startswith("  python -m snn_repro.train -m ") and "'neuron=if,if_imp'" not in report[-1]
    assert "neuron=if,if_imp" in report[-1]

    for name, seed in planted:
        (root / f"digits-small-{name}" / TWEAKS / f"seed{seed}" / "checkpoint_last.pt").unlink()
    before = {r.folder: os.stat(Path(r.folder, "result.json")).st_mtime_ns for r in find_results(root)}
    second = sweep(root, *what)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[0] == "42 of 48 runs are finished already"
    assert "Launching 6 jobs" in second.stdout
    assert second.stdout.splitlines()[-1] == "sweep: 48 of 48 runs done, 42 of them earlier"
    assert all(os.stat(Path(f, "result.json")).st_mtime_ns == t for f, t in before.items())


def test_a_failing_run_leaves_its_traceback_and_the_rest_go_on(tmp_path, monkeypatch, typed):
    root, seed = tmp_path / "runs", random.seed

    def fail(value=None, version=2):
        if value == 7:
            raise ZeroDivisionError("planted")
        seed(value, version)

    monkeypatch.setattr(random, "seed", fail)
    code, out, err = typed("-m", *SHORT, f"hydra.sweep.dir={root}", "seed=7,8")
    assert code == 1 and out.splitlines()[-1] == "sweep: 1 of 2 runs done"
    status = json.loads((root / "digits-small-if_imp-lts" / TWEAKS / "seed7/status.json").read_text())
    assert status["state"] == "failed" and status["error"] == "ZeroDivisionError: planted"
    assert "test_sweeps.py" in status["traceback"]
    assert "failed: " in err and "ZeroDivisionError: planted" in err


@pytest.mark.slow
def test_joblib_runs_side_by_side_and_survives_a_killed_worker(tmp_path):
    """One run kills its own process each time, as a lack of memory would: the others finish, it is reported."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'snn_repro[parallel]'")
    root = tmp_path / "runs"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, random, signal\n"
        "seed = random.seed\n"
        "def kill(value=None, version=2):\n"
        "    if value == 7:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    seed(value, version)\n"
        "random.seed = kill\n"
    )
    what = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "threads=1", "seed=6,7,8"]
    done = sweep(root, *what, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "sweep: 2 of 3 runs done"
    assert f"  stopped: {root}/digits-small-if_imp-lts/{TWEAKS}/seed7: its process ended" in done.stderr


def test_an_empty_sweep_is_an_error(tmp_path, typed):
    code, _, err = typed("-m", *SHORT, f"hydra.sweep.dir={tmp_path / 'runs'}", "experiment=glob(no_such_row_*)")
    assert code == 2 and "matches nothing" in err and not (tmp_path / "runs").exists()


def test_two_jobs_with_one_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="would share the folder"):
        sweeps.plan(["device=auto,cpu", f"hydra.sweep.dir={tmp_path}"])


def jobs(tmp_path, *more):
    return sweeps.plan([*SHORT, "seed=0,1", f"hydra.sweep.dir={tmp_path}", *more])


def test_finished_means_the_same_configuration(tmp_path, monkeypatch, capsys):
    """skip_finished and force decide what is launched; another configuration's result does not count."""
    first, second = jobs(tmp_path)
    first.folder.mkdir(parents=True)
    (first.folder / "result.json").write_text(json.dumps({"config_hash": config_hash(first.config)}))
    (first.folder / "status.json").write_text(
        json.dumps({"state": "done", "error": None, "config_hash": config_hash(first.config)})
    )
    second.folder.mkdir(parents=True)
    (second.folder / "result.json").write_text(json.dumps({"config_hash": "another"}))
    launched = []
    monkeypatch.setattr(sweeps, "launch", lambda overrides, jobs, task: launched.append([j.folder for j in jobs]))
    base = [*SHORT, "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    for more in ([], ["skip_finished=false"], ["force=true"]):
        assert sweeps.run_sweep([*base, *more], ["-m", *more, "x"], None) == 1
    assert launched == [[second.folder], [first.folder, second.folder], [first.folder, second.folder]]
    command = [line for line in capsys.readouterr().err.splitlines() if "python -m" in line]
    assert command == ["  python -m snn_repro.train -m x"] * 3  # not with force=true: that would run all again


def test_what_a_folder_says_about_its_run(tmp_path):
    job = jobs(tmp_path)[0]
    assert sweeps.state(job)[0] == "not started"
    job.folder.mkdir(parents=True)
    status = {"state": "running", "error": None, "config_hash": config_hash(job.config)}
    (job.folder / "status.json").write_text(json.dumps(status))
    assert sweeps.state(job)[0] == "stopped"
    held = RunFolder(job.folder, job.config)
    assert sweeps.state(job)[0] == "running"
    held.close()
    (job.folder / "status.json").write_text(json.dumps({**status, "state": "failed", "error": "why"}))
    assert sweeps.state(job) == ("failed", "why")
    (job.folder / "status.json").write_text(json.dumps({**status, "config_hash": "another"}))
    assert sweeps.state(job)[0] == "not started"
    (job.folder / "status.json").write_text("[]")
    assert sweeps.state(job)[0] == "not started"


def test_a_queue_that_refuses_is_one_sentence(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise UserError("SLURM refused the jobs: invalid partition")

    monkeypatch.setattr(sweeps, "launch", refuse)
    assert sweeps.run_sweep([*SHORT, "seed=0,1", f"hydra.sweep.dir={tmp_path}"], ["-m"], None) == 1
    assert "snn-train: SLURM refused the jobs: invalid partition" in capsys.readouterr().err


def test_slurm_without_slurm_is_one_sentence(tmp_path, monkeypatch, typed):
    pytest.importorskip("submitit", reason="pip install 'snn_repro[slurm]'")
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = typed("-m", *SHORT, f"hydra.sweep.dir={tmp_path}", "hydra/launcher=slurm", "seed=0,1")
    assert code == 1 and "finds no srun here" in err and "Traceback" not in err


@pytest.mark.parametrize("notice", [signal.SIGUSR2, signal.SIGUSR1])
def test_the_notice_of_slurm_saves_and_resumes(notice, quick, tmp_path, monkeypatch):
    """It stops like SIGTERM: saved, and the handler that was there before is back in place to requeue the job."""
    heard = []
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", notice.name[3:])
    before = signal.signal(notice, lambda *_: heard.append("submitit"))
    try:
        original = train.Training.train_step

        def step(self, *batch):
            if (self.epoch, self.step) == (1, 1):
                signal.raise_signal(notice)
            return original(self, *batch)

        monkeypatch.setattr(train.Training, "train_step", step)
        with pytest.raises(train.Interrupted) as stopped:
            train.run(quick())
        assert stopped.value.signum == notice and heard == []
        assert (tmp_path / "run/checkpoint_last.pt").exists()
        job.requeue(stopped.value.signum)
        assert heard == ["submitit"]
        monkeypatch.setattr(sweeps, "still_running", lambda: False)
        job.requeue(signal.SIGTERM)  # scancel: the job is not wanted any more
        assert heard == ["submitit"]
        monkeypatch.setattr(sweeps, "still_running", lambda: True)
        job.requeue(signal.SIGTERM)  # the grace time of a preemption
        assert heard == ["submitit"] * 2
    finally:
        signal.signal(notice, before)


def test_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stop_requests(alone=True) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)
