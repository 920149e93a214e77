"""Sweeps: planted failures, killed workers, what is left out, what is said, the notice of a queue."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snn_repro import cli, train
from snn_repro.config import ConfigError, config_hash
from snn_repro.errors import stop_requests
from snn_repro.runs import sweeps
from snn_repro.runs.folder import RunFolder, find_results

ROOT = Path(__file__).parents[2]
SHORT = ["logger.mode=disabled", "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1"]
TWEAKS = "debug.max_eval_batches=1,debug.max_steps=1,recipe.epochs=1"


def test_a_sweep_reports_what_failed_and_then_runs_just_that(tmp_path, monkeypatch, typed):
    """A failing run leaves its traceback and the rest go on; a folder that cannot be made is named before anything starts."""
    root, name, seed = tmp_path / "runs", "digits-small-if_imp-lts", random.seed
    words = ["-m", *SHORT, f"hydra.sweep.dir={root}", "seed=5,6,7"]
    (root / name / TWEAKS).mkdir(parents=True)
    (root / name / TWEAKS / "seed5").write_text("in the way")
    code, _, err = typed(*words)
    assert code == 2 and "1 of 3 runs lack their data or folder, so none was started" in err
    assert "choose another folder with hydra.sweep.dir=..." in err and "hydra.run.dir" not in err
    (root / name / TWEAKS / "seed5").unlink()
    (root / name / TWEAKS / "seed6").mkdir()
    (root / name / TWEAKS / "seed6/checkpoint_last.pt").write_bytes(b"not a checkpoint")

    def fail(value=None, version=2):
        if value == 7:
            raise ZeroDivisionError("planted")
        seed(value, version)

    monkeypatch.setattr(random, "seed", fail)
    code, out, err = typed(*words)
    assert code == 1 and out.splitlines()[-1] == "sweep: 1 of 3 runs done"
    status = json.loads((root / name / TWEAKS / "seed7/status.json").read_text())
    assert status["state"] == "failed" and status["error"] == "ZeroDivisionError: planted"
    assert "test_sweeps.py" in status["traceback"]
    report = err.splitlines()[-5:]
    assert report[0] == "2 of 3 runs did not finish:" and report[-1].startswith("  python -m snn_repro.train -m ")
    assert report[1].startswith("  failed: ") and "seed6: " in report[1] and "damaged" in report[1]
    assert report[2].startswith("  failed: ") and report[2].endswith("seed7: ZeroDivisionError: planted")
    monkeypatch.undo()
    (root / name / TWEAKS / "seed6/checkpoint_last.pt").unlink()
    before = os.stat(root / name / TWEAKS / "seed5/result.json").st_mtime_ns
    code, out, _ = typed(*words)
    assert code == 0 and out.splitlines()[0] == "1 of 3 runs are finished already"
    assert out.splitlines()[-1] == "sweep: 3 of 3 runs done, 1 of them earlier" and len(find_results(root)) == 3
    assert os.stat(root / name / TWEAKS / "seed5/result.json").st_mtime_ns == before


def test_fail_fast_ends_the_sweep_at_the_first_failed_run(tmp_path, monkeypatch, typed):
    monkeypatch.setattr(random, "seed", lambda *_: 1 / 0)
    code, out, err = typed("-m", *SHORT, f"hydra.sweep.dir={tmp_path}", "seed=5,6", "fail_fast=true")
    failed = next(tmp_path.rglob("seed5"))
    assert code == 1 and out.splitlines()[-1] == "sweep: 0 of 2 runs done"
    assert f"snn-train: fail_fast=true: {failed} failed, so no further run was started" in err.splitlines()
    assert f"  not started: {failed.with_name('seed6')}" in err and not list(tmp_path.rglob(".failed*"))


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
    done = subprocess.run(
        [sys.executable, "-m", "snn_repro.train", "-m", *SHORT, f"hydra.sweep.dir={root}", *what],
        capture_output=True, text=True, timeout=1500, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
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


def status(config, state="done", error=None):
    return json.dumps({"state": state, "error": error, "config_hash": config_hash(config)})


def test_finished_means_the_same_configuration(tmp_path, monkeypatch, capsys):
    """skip_finished and force decide what is launched; another configuration's result does not count."""
    first, second = jobs(tmp_path)
    for job, known in ((first, config_hash(first.config)), (second, "another")):
        job.folder.mkdir(parents=True)
        (job.folder / "result.json").write_text(json.dumps({"config_hash": known}))
    (first.folder / "status.json").write_text(status(first.config))
    launched = []
    monkeypatch.setattr(sweeps, "launch", lambda overrides, jobs, *_: launched.append([j.folder for j in jobs]))
    base = [*SHORT, "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    for more in ([], ["skip_finished=false"], ["force=true"]):
        assert sweeps.run_sweep([*base, *more], ["-m", *more, "x"], None) == 1
    assert launched == [[second.folder], [first.folder, second.folder], [first.folder, second.folder]]
    command = [line for line in capsys.readouterr().err.splitlines() if "python -m" in line]
    assert command == ["  python -m snn_repro.train -m x"] * 3  # not with force=true: that would run all again


def test_what_a_folder_says_about_its_run(tmp_path):
    job = jobs(tmp_path)[0]
    assert sweeps.status(job)[0] == "not started"
    job.folder.mkdir(parents=True)
    path = job.folder / "status.json"
    path.write_text(status(job.config, "running"))
    assert sweeps.status(job)[0] == "stopped"
    held = RunFolder(job.folder, job.config)
    assert sweeps.status(job)[0] == "running"
    held.close()
    path.write_text(status(job.config, "failed", "why"))
    assert sweeps.status(job) == ("failed", "why")
    for other in (status(job.config).replace(config_hash(job.config), "another"), "[]"):
        path.write_text(other)
        assert sweeps.status(job)[0] == "not started"


def test_slurm_without_slurm_is_one_sentence(tmp_path, monkeypatch, typed):
    pytest.importorskip("submitit", reason="pip install 'snn_repro[slurm]'")
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = typed("-m", *SHORT, f"hydra.sweep.dir={tmp_path}", "hydra/launcher=slurm", "seed=0,1")
    assert code == 1 and "finds no srun here" in err and "Traceback" not in err


def test_the_notice_of_slurm_saves_and_resumes(quick, tmp_path, monkeypatch):
    """It stops like SIGTERM: saved, and the handler that was there before is back in place to requeue the job."""
    heard, notice = [], signal.SIGUSR1
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
        cli.requeue(stopped.value.signum)
        assert heard == ["submitit"]
        monkeypatch.setattr(sweeps, "still_running", lambda: False)
        cli.requeue(signal.SIGTERM)  # scancel: the job is not wanted any more
        assert heard == ["submitit"]
        monkeypatch.setattr(sweeps, "still_running", lambda: True)
        cli.requeue(signal.SIGTERM)  # the grace time of a preemption
        assert heard == ["submitit"] * 2
    finally:
        signal.signal(notice, before)


def test_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests(alone=True) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)
