"""The command line: what is typed, what is printed, and what a shell or a notebook sees of it."""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from snn_repro import cli, console, distributed, signals, train
from snn_repro import job as job_module
from snn_repro.config import ConfigError, config_hash, load_config, to_dict
from snn_repro.errors import UserError
from snn_repro.runs import sweeps

ROOT = Path(__file__).parents[1]
SHORT = ["logger.mode=disabled", "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1"]


def command(*arguments: str, **more) -> subprocess.CompletedProcess:
    """`python -m snn_repro.train ...`, with `environment` on top of ours."""
    more["env"] = {**os.environ, **more.pop("environment", {})}
    return subprocess.run(
        [sys.executable, "-m", "snn_repro.train", *arguments], capture_output=True, text=True, timeout=120, **more
    )


@pytest.fixture
def refused(typed):
    """refused("seed=x") returns the one sentence with which the command refuses that."""

    def run(*words: str) -> str:
        code, out, err = typed(*words)
        assert code == 2 and out == "" and err.startswith("snn-train: ") and err.count("\n") == 1, err
        return err.strip()

    return run


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    "wrong", ["neuron.tua=1", "recipe.epochs=-3", "recipe.epochs=x", "model=vgg48", "recipe.momentum=0.8"]
)
@pytest.mark.parametrize(
    "flags", [["--cfg", "job"], ["--info", "config"], ["--cfg", "job", "--resolve", "-p", "recipe"]]
)
def test_looking_is_checked_as_a_run_is(wrong, flags, capsys, monkeypatch):
    monkeypatch.setattr(job_module, "call_hydra", lambda _: pytest.fail("Hydra was asked"))
    assert cli._main([*flags, wrong]) == 2
    err = capsys.readouterr().err
    assert wrong.split("=")[0] in err and err.count("\n") == 1
    with pytest.raises(ConfigError, match=re.escape(err[len("snn-train: ") : 40])):
        load_config([wrong])


@pytest.mark.parametrize(
    "flags", ["--cfg foo", "-m --cfg job", "--resolve", "-p recipe", "--nothing", "-sc", "-sc install=foo"]
)
def test_flags_that_do_not_exist_or_go_together_are_one_sentence(flags, refused):
    assert refused(*flags.split())


def test_a_package_that_does_not_exist_exits_with_2(typed):
    assert typed("--cfg", "job", "-p", "nosuch") == (2, "", "package 'nosuch' not found in config\n")


def test_version_is_ours(capsys):
    assert cli._main(["--version"]) == 0
    assert re.fullmatch(r"snn_repro \d[\w.]*( \(commit \w+\))?, torch \d\S+, Python 3\S+\n", capsys.readouterr().out)


def test_help_into_a_closed_pipe_is_quiet():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m snn_repro.train --help | (exec <&-; true)"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""


def test_a_run_into_a_closed_pipe_ends_well(tmp_path):
    folder = tmp_path / "run"
    line = f"{sys.executable} -m snn_repro.train {' '.join(SHORT)} hydra.run.dir={folder}"
    done = subprocess.run(["bash", "-c", f"{line} | (exec <&-; true)"], capture_output=True, text=True, timeout=120)
    assert (folder / "result.json").exists() and done.stderr == ""


def test_a_console_without_the_signs_shows_all_else(tmp_path):
    ascii_only = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    (tmp_path / "sitecustomize.py").write_text(
        "import snn_repro.config as c\nc.help_text = lambda said=c.help_text: said() + 'mean \\u00b1 sd'\n"
    )
    done = command("--help", environment={**ascii_only, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 0 and "recipe.lr" in done.stdout and done.stdout.endswith("mean +/- sd\n")
    folder = tmp_path / "r\u00fcn"
    done = command(*SHORT, f"hydra.run.dir={folder}", environment=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout and (folder / "result.json").exists()


@pytest.fixture
def snn_train(tmp_path):
    """The console script as an installation makes it; returns the PATH on which it is."""
    program = tmp_path / "snn-train"
    program.write_text(f"#!{sys.executable}\nfrom snn_repro.cli import main\nmain()\n")
    program.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_bash_completes_the_console_script(snn_train):
    """What a shell does after `eval "$(snn-train -sc install=bash)"`: loggers are a choice like all others."""
    program = """
    eval "$(snn-train -sc install=bash)"
    complete -p snn-train
    COMP_LINE="snn-train logger=te" COMP_POINT=19 COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[*]}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=snn_train, timeout=240)
    registered, found = done.stdout.splitlines()
    assert "-F hydra_bash_completion snn-train" in registered and found == "logger=tensorboard", done


def test_fish_and_zsh_get_what_hydra_has(monkeypatch, capsys):
    """fish has a script of its own; zsh takes bash's, by its bashcompinit."""

    def said(words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["snn-train"])
        assert cli._main(["-sc", words]) == 0
        return capsys.readouterr().out

    assert "complete -c snn-train -x -a '(hydra_fish_completion)'" in said("install=fish")
    monkeypatch.setenv("COMP_LINE", "snn-train loss=s")
    assert said("query=fish").split() == ["loss=sdt", "loss=strong2weak"]
    assert said("install=zsh") == said("install=bash")


# ---------------------------------------------------------------- what is printed


def test_run_prints_in_a_notebook(tmp_path):
    """Nobody has configured logging: each line appears once, in the second call too. Nothing is imported that is not used."""
    code = f"""
import logging
import sys
from snn_repro.config import load_config
from snn_repro.train import run
for seed in (0, 1):
    run(load_config([*{SHORT!r}, f"seed={{seed}}"]), f"{tmp_path}/{{seed}}")
heavy = {{"sklearn", "pandas", "matplotlib", "timm", "tonic", "torchvision", "wandb", "torch._dynamo"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not logging.getLogger("snn_repro").handlers and not logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch   1/1") for line in lines) == 2 and len(lines) == len(set(lines)) == 6


def test_run_leaves_a_configured_logging_alone(quick, tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO):
        train.run(quick("recipe.epochs=1"))
    assert sum("epoch   1/1" in r.getMessage() for r in caplog.records) == 1
    assert "epoch   1/1" not in capsys.readouterr().out


def test_a_warning_is_one_line_and_said_once(monkeypatch):
    monkeypatch.setattr(console, "_warned", set())
    where = (UserWarning, "/some/where.py", 7)
    assert console.one_line("two\n  lines", *where) == "warning: two lines\n"
    assert console.one_line("two\n  lines", *where) == ""
    monkeypatch.setattr(distributed, "world", lambda: SimpleNamespace(rank=1, size=2))
    assert console.one_line("of another process", *where) == ""


def test_a_run_shows_warnings_in_one_line(tmp_path):
    """A cache that cannot be written costs one line, not a block with a source line."""
    (tmp_path / "file").write_text("")
    done = command(
        *SHORT, "dataset=digits_dvs", "timesteps=1", f"cache_dir={tmp_path}/file/x", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.returncode == 0
    assert re.fullmatch(r"warning: cannot keep frames, [^\n]+\n", done.stderr), done.stderr


# ---------------------------------------------------------------- places


def test_a_folder_with_any_name_is_used_as_typed(tmp_path, monkeypatch, typed):
    """= and accents, brackets, spaces, commas; ~ is the home."""
    home = tmp_path / "a=b, \u00e9 (x)"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert typed(*SHORT, "hydra.run.dir=~/run 1")[0] == 0
    assert json.loads((home / "run 1/result.json").read_text())["epochs"] == 1
    code, out, _ = typed(*SHORT, f"hydra.run.dir={home}/run 1")
    assert code == 0 and "already done" in out


def test_folders_that_are_none_or_of_the_other_kind_are_refused(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert "hydra.run.dir= names no folder; write hydra.run.dir=DIR" in refused("hydra.run.dir=")
    assert "hydra.sweep.dir= names no folder" in refused("-m", "seed=0,1", "hydra.sweep.dir=")
    for more in ([], ["hydra/sweeper=other"]):
        said = refused("-m", "seed=0,1", f"hydra.run.dir={tmp_path}/x", *more)
        assert "in a sweep use hydra.sweep.dir=DIR" in said
    assert "for a single run use hydra.run.dir=DIR" in refused(f"hydra.sweep.dir={tmp_path}/x")
    assert list(tmp_path.iterdir()) == []


def test_more_threads_than_a_machine_takes_are_refused(tmp_path, monkeypatch, refused):
    assert "threads=100000" in refused("threads=100000", f"hydra.run.dir={tmp_path / 'x'}")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert load_config(["threads=32"]).threads == 32
    with pytest.raises(
        ConfigError, match="threads=33 is more than this machine takes: it has 8 CPU cores, the limit is 32"
    ):
        load_config(["threads=33"])


# ---------------------------------------------------------------- searching


def job(sweeper: str, tmp_path, launcher: str = "BasicLauncher"):
    return SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(tmp_path)), mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=[]),
        sweeper=SimpleNamespace(_target_=sweeper), launcher=SimpleNamespace(_target_=f"x.{launcher}"),
    )  # fmt: skip


@pytest.mark.parametrize("acc_val, returned", [(0.7, 0.7), (0.0, 0.0), (None, 0.9)])
def test_a_search_is_given_the_validation_accuracy(tmp_path, monkeypatch, acc_val, returned):
    """Not the test accuracy of the epoch that validation chose; without a validation part the last test accuracy."""
    config = load_config([])
    result = SimpleNamespace(acc_val=acc_val, acc_valsel=0.8, acc_last=0.9)
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: job("hydra_plugins.x.OptunaSweeper", tmp_path)))
    monkeypatch.setattr(train, "run", lambda config, overrides: result)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert job_module.task(OmegaConf.create(to_dict(config))) == returned


def test_a_real_sweeper_is_given_the_validation_accuracy(tmp_path):
    plugin = tmp_path / "hydra_plugins" / "tiny"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("")
    (plugin / "tiny.py").write_text(
        "import json\n"
        "from dataclasses import dataclass\n"
        "from hydra.core.config_store import ConfigStore\n"
        "from hydra.core.plugins import Plugins\n"
        "from hydra.plugins.sweeper import Sweeper\n"
        "@dataclass\n"
        "class Conf:\n"
        "    _target_: str = 'hydra_plugins.tiny.tiny.TinySweeper'\n"
        "ConfigStore.instance().store(group='hydra/sweeper', name='tiny', node=Conf, provider='tiny')\n"
        "class TinySweeper(Sweeper):\n"
        "    def setup(self, *, hydra_context, task_function, config):\n"
        "        self.launcher = Plugins.instance().instantiate_launcher(\n"
        "            hydra_context=hydra_context, task_function=task_function, config=config)\n"
        "    def sweep(self, arguments):\n"
        "        done = self.launcher.launch([[*arguments, 'seed=1']], initial_job_idx=0)\n"
        "        print('FOUND', json.dumps([job.return_value for job in done]))\n"
    )
    places = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    base = ["-m", *SHORT, "hydra/sweeper=tiny", f"hydra.sweep.dir={tmp_path / 'runs'}"]
    done = command(*base, "dataset.validation=0.2", environment=places)
    assert done.returncode == 0, done.stderr
    found = json.loads(re.search(r"FOUND (.*)", done.stdout)[1])
    results = [json.loads(p.read_text()) for p in sorted((tmp_path / "runs").rglob("result.json"))]
    assert found == [r["acc_val"] for r in results] and found != [r["acc_valsel"] for r in results]
    assert "selects on the test set" not in done.stderr


@pytest.mark.parametrize(
    "sweeper, validation, says", [("Optuna", 0.0, 1), ("Optuna", 0.1, 0), ("List", 0.0, 0), ("Basic", 0.0, 0)]
)
def test_a_search_without_a_validation_part_says_so(sweeper, validation, says, capsys, monkeypatch):
    node = SimpleNamespace(
        hydra=SimpleNamespace(sweeper=SimpleNamespace(_target_=f"hydra_plugins.x.{sweeper}Sweeper")),
        dataset=SimpleNamespace(validation=validation),
    )
    monkeypatch.setattr(cli, "multirun_config", lambda overrides: contextlib.nullcontext((node, None)))
    monkeypatch.setattr(job_module, "call_hydra", lambda argv: None)
    assert cli._main(["-m", "hydra/sweeper=x"]) == 0
    err = capsys.readouterr().err
    assert err.count("this search selects on the test set, because dataset.validation=0") == says == err.count("\n")


# ---------------------------------------------------------------- stopping a sweep


def jobs(tmp_path, *more):
    return [*SHORT, "seed=0,1,2", f"hydra.sweep.dir={tmp_path}", *more]


@pytest.mark.parametrize("sig", signals.ASKED)
def test_a_stopped_sweep_reports_as_any_other(tmp_path, monkeypatch, capsys, sig):
    before = signal.getsignal(sig)

    def launch(overrides, jobs, task):
        folder, config = jobs[0].folder, jobs[0].config
        folder.mkdir(parents=True)
        done = {"state": "done", "error": None, "config_hash": config_hash(config)}
        (folder / "status.json").write_text(json.dumps(done))
        signal.raise_signal(sig)

    monkeypatch.setattr(sweeps, "launch", launch)
    assert sweeps.run_sweep(jobs(tmp_path), ["-m", "seed=0,1,2"], None) == 128 + sig
    out, err = capsys.readouterr()
    assert out == "sweep: 1 of 3 runs done\n"
    lines = err.splitlines()
    assert lines[:2] == [f"snn-train: the sweep was stopped by {sig.name}", "2 of 3 runs did not finish:"]
    assert lines[2].startswith("  not started: ") and lines[2].endswith("seed1")
    assert lines[-1] == "  python -m snn_repro.train -m seed=0,1,2"
    assert signal.getsignal(sig) == before


def stop(tmp_path, sig, *more) -> tuple[int, str, str]:
    """Start a sweep of three long runs, stop it in the first one; returns exit code, stdout and stderr."""
    long = [
        "-m",
        "logger.mode=disabled",
        "recipe.epochs=3000",
        "seed=0,1,2",
        "threads=1",
        f"hydra.sweep.dir={tmp_path / 'runs'}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "snn_repro.train", *long, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list((tmp_path / "runs").rglob("metrics.jsonl"))) < (2 if more else 1):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sig)
    out, err = process.communicate(timeout=90)
    return process.returncode, out, err


def test_sigterm_stops_a_sweep_in_the_middle_of_a_run(tmp_path):
    code, out, err = stop(tmp_path, signal.SIGTERM)
    assert code == 143 and out.splitlines()[-1] == "sweep: 0 of 3 runs done"
    assert err.startswith("snn-train: the sweep was stopped by SIGTERM\n3 of 3 runs did not finish:\n  interrupted: ")
    assert err.count("  not started: ") == 2 and "Traceback" not in err
    assert (tmp_path / "runs/digits-small-if_imp-lts/recipe.epochs=3000/seed0/checkpoint_last.pt").exists()


@pytest.mark.slow
def test_ctrl_c_stops_side_by_side_runs_and_saves_them(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'snn_repro[parallel]'")
    code, out, err = stop(tmp_path, signal.SIGINT, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert code == 130 and out.splitlines()[-1] == "sweep: 0 of 3 runs done"
    assert "snn-train: the sweep was stopped by SIGINT" in err and "Traceback" not in err
    assert err.count("  interrupted: ") == 2 and err.count("  not started: ") == 1
    states = [json.loads(p.read_text())["state"] for p in (tmp_path / "runs").rglob("status.json")]
    assert states == ["interrupted"] * 2


# ---------------------------------------------------------------- data of a sweep


def test_a_sweep_looks_for_all_its_data_first(tmp_path, typed):
    """Each folder once; what is missing is listed, and no run starts, not even those whose data are there."""
    places = f"data_dir={tmp_path / 'none'}", f"hydra.sweep.dir={tmp_path / 'runs'}"
    code, _, err = typed("-m", *SHORT, "dataset=digits,cifar10,cifar10_dvs", "seed=0,1", *places)
    assert code == 2 and not (tmp_path / "runs").exists()
    head, *lines = err.splitlines()
    assert head == "snn-train: 4 of 6 runs lack their data, so that none was started:"
    assert len(lines) == 2 and all(" and 1 more: " in line for line in lines)
    assert "cifar10 was not found in data_dir=" in lines[0] and "cache_dir is not set" in lines[1]


def test_data_that_are_there_are_looked_at_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sweeps, "_lacks", lambda c: seen.append(c.dataset.name))
    plan = sweeps.plan(
        [*SHORT, "dataset=digits,cifar10", "seed=0,1,2", f"data_dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    )
    sweeps.check_data(plan)
    assert seen == ["digits", "cifar10"]
    (tmp_path / "cifar-10-python.tar.gz").write_text("")
    monkeypatch.undo()
    sweeps.check_data(plan)
    with pytest.raises(UserError, match="model.weights=nothing.pt was not found"):
        weights = sweeps.plan([*SHORT, "model.weights=nothing.pt", "seed=0,1", f"hydra.sweep.dir={tmp_path}"])
        sweeps.check_data(weights)


def test_a_cluster_may_have_what_this_machine_lacks(tmp_path, capsys):
    plan = sweeps.plan([*SHORT, "dataset=cifar10", "seed=0,1", f"data_dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"])
    sweeps.check_data(plan, elsewhere=True)
    assert "2 runs would lack their data on this machine" in capsys.readouterr().err
