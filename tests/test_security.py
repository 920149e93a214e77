"""Nothing that a user is handed runs code: configurations, checkpoints, caches. (Archives: tests/data/test_prepare.py; CIFAR's
pickles: tests/data/test_formats.py; W&B's key: tests/runs/test_wandb.py.)"""

import ast
import logging
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

import snn_repro
from compare import to_text
from snn_repro import console
from snn_repro.cli import _main
from snn_repro.config import CONF_DIR, ConfigError, checked, load_config, multirun_config, to_dict
from snn_repro.console import text_table
from snn_repro.errors import UserError
from snn_repro.paper.formats import Column, Table, to_csv, to_markdown
from snn_repro.runs import checkpoint

ROOT = Path(snn_repro.__file__).parent

CODE = [  # every way into Hydra's or our own objects
    "+_target_=os.system", "+neuron._target_=os.system", "neuron.name={_target_: os.system}", "+model={_target_: os.system}",
    "+hydra.callbacks.x={_target_: os.system, command: id}", "hydra.launcher._target_=os.getcwd",
    "+hydra.launcher.x={_target_: os.system}", "hydra.sweeper._target_=os.getcwd",
    "+hydra.sweeper.x={_target_: os.system}",
    "hydra.job_logging.handlers.console.class=subprocess.Popen",
    "hydra.job_logging.handlers.console.stream='ext://os.environ'", '+hydra.callbacks.x="${oc.decode:${oc.env:EVIL}}"',
    '+hydra.launcher.x="${oc.decode:${oc.env:EVIL}}"', "slurm.account='lab\nid'", "slurm.account=${oc.env:LINES_}",
    "+hydra.launcher.submitit_folder=${oc.env:LINES_}", "+hydra.launcher.setup=[id]",
    "+hydra.launcher.additional_parameters={export: 'LD_PRELOAD=evil.so'}", "+hydra.job.env_set.PATH=/evil",
]  # fmt: skip


@pytest.mark.parametrize("override", CODE)
def test_a_configuration_cannot_name_code(override, monkeypatch):
    monkeypatch.setenv("EVIL", "{_target_: os.system, command: id}")
    monkeypatch.setenv("LINES_", "lab\nid")
    with pytest.raises(ConfigError) as error:
        if deep := "hydra" in override or "slurm" in override:
            multirun_config([override]).__enter__()
        load_config([override])
    assert "\n" not in str(error.value) and ("would run code" in str(error.value)) == deep


def test_a_launcher_of_hydra_and_plain_values_are_no_code():
    with multirun_config(["seed=0,1", "hydra/launcher=basic", "hydra.sweep.dir=x", "+hydra.sweeper.p={seed: [1]}"]) as (
        node,
        _,
    ):
        assert node.hydra.launcher._target_.endswith("BasicLauncher") and node.hydra.sweep.dir == "x"


def test_a_stored_configuration_is_checked_too():
    config = to_dict(load_config())
    config["neuron"]["_target_"] = "os.system"
    with pytest.raises(ConfigError, match="neuron._target_"):
        checked(config)


@pytest.mark.parametrize("flag", ["--config-dir", "--config-path", "--config-name", "--experimental-rerun"])
def test_configurations_come_from_the_project_alone(flag, tmp_path, capsys):
    """--experimental-rerun would even unpickle the file that it is given."""
    assert _main([flag, str(tmp_path)]) == 2
    assert f"{flag} is not supported" in capsys.readouterr().err


def test_conf_names_no_code():
    assert not [f for f in CONF_DIR.rglob("*.yaml") if "_target_" in f.read_text()]


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def poisoned(path: Path, trace: Path, kind: str) -> None:
    content = {"model": {}, "config": {}, "x": Evil(trace)}
    if kind == "torch":
        torch.save(content, path)
    elif kind == "torch before 1.6":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
            archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("kind", ["torch", "torch before 1.6", "pickle", "zip"])
def test_a_poisoned_checkpoint_does_nothing(tmp_path, kind):
    trace, folder = tmp_path / "trace", tmp_path / "run"
    folder.mkdir()
    poisoned(folder / "checkpoint_last.pt", trace, kind)
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(folder / "checkpoint_last.pt")
    with pytest.raises(UserError) as error:
        checkpoint.load_pretrained(torch.nn.Linear(1, 1), folder / "checkpoint_last.pt", print)
    assert "\n" not in str(error.value) and not trace.exists()


def test_names_do_nothing_where_they_are_printed(caplog):
    evil = "\x1b[2J<script>![x](http://y)|\n=1+1"
    assert console.harmless(evil) == "?[2J<script>![x](http://y)|\n=1+1"
    with caplog.at_level("INFO", "snn_repro"):
        logging.getLogger("snn_repro").info("%s", evil)
    table = Table(evil, [Column("a", "a")], [{"a": evil}, {"a": "=1+1"}], [evil])
    for text in (caplog.text, to_text(table), to_markdown(table), text_table(evil, ["a"], [[evil]])):
        assert "\x1b" not in text
    assert "<script" not in to_markdown(table) and "](" not in to_markdown(table)
    assert to_csv(table).endswith("\n'=1+1\n")


def test_a_configuration_nested_a_thousand_deep_is_one_sentence():
    with pytest.raises(ConfigError, match="too deep"):
        load_config([f"recipe.lr={'{a:' * 1000}1{'}' * 1000}"])


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            safe = any(re.search("Safe|LOADER", ast.unparse(argument)) for argument in node.args[1:])
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node.lineno, safe


def test_the_source_keeps_to_it():
    """No loader without its lock, no unpickling but CIFAR's, which calls nothing; no eval, no instantiate."""
    found = []
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "scripts").glob("*.py")]:
        for name, keywords, line, safe in calls(path):
            at = f"{path.name}:{line}: {name}"
            if name.endswith("np.load") and keywords.get("allow_pickle", "False") != "False":  # as is the default
                found.append(at)
            if name.endswith("torch.load") and keywords.get("weights_only") != "True":
                found.append(at)
            if name in ("eval", "exec", "__import__", "os.system") or keywords.get("shell") == "True":
                found.append(at)
            if name.endswith(("instantiate", "pickle.load", "pickle.loads")) or (name == "yaml.load" and not safe):
                found.append(at)
            if name.endswith("extractall") and keywords.get("filter") != "'data'":
                found.append(at)
    assert found == []
