"""A package from outside, as in CONTRIBUTING.md and docs/extending.md, installed by its entry point alone."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from snn_repro.outside import _folder

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests/example_package"


def recipes() -> dict[str, str]:
    """{file: content} of the code blocks that have a file's name above them, in both pages."""
    text = "".join((ROOT / page).read_text("utf-8") for page in ("CONTRIBUTING.md", "docs/extending.md"))
    return dict(re.findall(r"^`(snn_ideas/[\w./]+)`\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder as pip leaves it: the example package with the files of both pages in it, and its dist-info; data beside it."""
    root = tmp_path_factory.mktemp("outside")
    shutil.copytree(EXAMPLE / "snn_ideas", root / "site/snn_ideas", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in recipes().items():
        (root / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "site" / name).write_text(content)
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = root / f"site/{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"{name} = {module}\n" for name, module in project["entry-points"]["snn_repro"].items()]
    (info / "entry_points.txt").write_text("".join(["[snn_repro]\n", *points]))
    rng, labels = np.random.default_rng(0), {"train": np.arange(60) % 3, "test": np.arange(30) % 3}
    images = {k: (rng.integers(0, 60, (len(y), 1, 8, 8)) + 80 * y[:, None, None, None]).astype("uint8") for k, y in labels.items()}  # fmt: skip
    (root / "data").mkdir()
    np.savez(root / "data/blobs.npz", **{f"{a}_{k}": of[k] for a, of in (("x", images), ("y", labels)) for k in of})
    for k, c in enumerate(("left", "right")):
        (root / "data/sparks" / c).mkdir(parents=True)
        for i in range(10):
            rows = zip(
                rng.integers(0, 8, 40) + 8 * k, rng.integers(0, 12, 40), rng.integers(0, 2, 40), range(40), strict=True
            )
            data = struct.pack("<I", 40) + b"".join(struct.pack("<BBBI", *map(int, row)) for row in rows)
            (root / "data/sparks" / c / f"{c}_{i}.spk").write_bytes(data)
    return root


def python(site: Path, script: str, path: str = "site") -> str:
    """What a script prints that runs in the folder of the data and runs, where `path` is installed; commands are `typed(WORDS)`."""
    start = f"""
import runpy, sys
from snn_repro import cli
def typed(*words, code=0):
    assert cli._main(["data_dir=data", "cache_dir=cache", "logger.mode=disabled", "threads=1", *words]) == code, words
def scripted(name, *words):
    sys.argv, sys.path[:0] = [name, *words], ["{ROOT}/scripts"]
    try:
        runpy.run_path("{ROOT}/scripts/" + name, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site / path), str(ROOT)])}
    command = [sys.executable, "-c", start + script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=site, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


WRONG = {  # what is typed, and its sentence
    "neuron=mylif neuron.tau_innit=3": "unknown key 'neuron.tau_innit'; did you mean 'neuron.tau_init'?",
    "neuron=if neuron.tau_init=3": "neuron.tau_init=3 belongs to neuron=mylif; leave it out for 'if'",
    "neuron=mylif +neuron.tau_init={a:1}": "neuron.tau_init={'a': 1} must be a finite number",
    "augment.swap_polarity=0.5": "augment.swap_polarity=0.5 works on event frames and dataset=digits has images; leave it out",
    "model.rms_eps=1": "model.rms_eps=1 belongs to model.norm=rms; leave it out for 'small'",
    "neuron.floor=0.1": "neuron.floor=0.1 belongs to neuron.surrogate=cauchy; leave it out for 'if'",
    "recipe.momentum_decay=1": "recipe.momentum_decay=1 belongs to recipe.optimizer=nadam; leave it out for 'adamw and cosine'",
    "recipe.optimizer=nadam recipe.momentum=0.5": "recipe.momentum=0.5 has no effect with recipe.optimizer=nadam; it needs "
    "recipe.optimizer=sgd, or leave it out",
}


def test_one_of_each_kind_is_found_with_its_settings(site):
    script = f"""
import torch
from snn_repro import registry as r
from snn_repro.config import ConfigError, checked, config_hash, help_text, load_config, to_dict
from snn_repro.data.augment import batch_transforms
for kind, name in ((r.SETS, "blobs"), (r.SETS, "dim_blobs"), (r.NEURONS, "alif"), (r.SURROGATES, "cauchy"), (r.INITIAL_STATES, "below"), (r.NORMS, "rms"),
                   (r.MODELS, "dense"), (r.LOSSES, "peak"), (r.AUGMENTATIONS, "swap_polarity"), (r.OPTIMIZERS, "nadam"),
                   (r.SCHEDULES, "linear"), (r.FIGURES, "epochs"), (r.SECTIONS, "count")):
    assert name in kind and name in list(kind) and name not in kind.ours(), name
print(help_text())
for words, sentence in {WRONG!r}.items():
    try:
        load_config(words.split())
        print("accepted:", words)
    except ConfigError as error:
        assert str(error) == sentence, error
plain, off, on = (load_config(["dataset=digits_dvs", *words]) for words in ([], ["augment.swap_polarity=0"], ["augment.swap_polarity=1"]))
assert config_hash(plain) == config_hash(off) != config_hash(on) == config_hash(checked(to_dict(on)))
assert "swap_polarity" not in to_dict(off)["augment"] and to_dict(on)["augment"]["swap_polarity"] == 1
(step,) = batch_transforms(on.augment, r.SETS["digits_dvs"])[-1:]
x = torch.rand(3, 2, 2, 4, 4)
assert torch.equal(step(x, torch.arange(2), torch.Generator())[0], x.flip(2)), step
of = lambda name: r.SETS[name].parts(load_config([f"dataset={{name}}", "recipe=digits", "data_dir=data"]))[0].images
assert (of("dim_blobs") == of("blobs") // 2).all()
"""
    told = python(site, script)
    assert "accepted" not in told
    for line in (
        r"  mylif +leaky with a learned time constant", r"  sparks +two classes of sparks", r"  blobs_mylif +Blobs: MyLIF",
        r"  neuron.tau_init +neuron=mylif: membrane time constant to start from \(time steps\) \[above 1\]",
        r"  loss.sharpness +loss=peak: factor on the outputs \[above 0\]", r"  model.width +model=dense: neurons \[at least 1\]",
        r"  dataset.brightness +dataset=dim_blobs: factor on the grey values \[above 0\]",
        r"  augment.swap_polarity +events: chance that a sample's polarities change places \[at least 0 and at most 1\]",
    ):  # fmt: skip
        assert re.search(f"^{line}", told, re.MULTILINE), line


def test_a_row_trains_is_tabulated_and_its_weights_load(site):
    script = """
row = ["experiment=blobs_mylif", "dataset.validation=0.1"]
typed(*row, "hydra.run.dir=whole/seed0")
typed(*row, "loss=tet", "neuron.tau_init=5", "recipe.epochs=2", "hydra.run.dir=other/seed0")
weights = "model.weights=whole/seed0/checkpoint_last.pt"
typed(*row, weights, "recipe.epochs=1", "recipe.lr=1e-6", "hydra.run.dir=loaded/seed0")
typed(*row, "neuron.tau_init=4", "hydra.run.dir=whole/seed0", code=2)
scripted("list_rows.py")
print("TABLE")
scripted("compare.py", "whole", "other")
"""
    told, _, table = python(site, script).partition("TABLE")
    whole = result(site / "whole/seed0")
    assert whole["readout"] == "peak" and whole["acc_last"] > 0.9
    assert whole["config"]["neuron"]["tau_init"] == 3.0 and whole["config"]["loss"]["sharpness"] == 1.0
    assert result(site / "loaded/seed0")["acc_last"] == whole["acc_last"] and "blobs_mylif" in told
    assert "holds a run of another configuration (neuron.tau_init: 3.0 -> 4" in table  # what went to stderr
    assert "peak" in table and "mean" in table and "neuron.tau_init" in table


def test_an_event_set_is_prepared_and_trains_with_one_of_each(site):
    run = [
        "dataset=sparks", "model=vgg128", "model.norm=rms", "model.rms_eps=0.001", "neuron=alif", "neuron.surrogate=cauchy",
        "neuron.floor=0.1", "neuron.initial=below", "neuron.distance=0.25", "loss=peak", "augment.swap_polarity=0.5",
        "recipe.optimizer=nadam", "recipe.momentum_decay=0.01", "recipe.schedule=linear", "recipe=digits",
        "recipe.batch_size=8", "recipe.epochs=1", "debug.max_steps=1", "model.init=orthogonal", "model.init_gain=0.5",
    ]  # fmt: skip
    prepare = ["prepare_data.py", "dataset=sparks", "data_dir=data", "cache_dir=cache", "workers=0"]
    python(site, f"scripted(*{prepare})\ntyped(*{run})")
    (file,) = site.glob("runs/sparks-vgg128-alif-peak/*/seed0/result.json")
    config = result(file.parent)["config"]
    assert (config["model"]["rms_eps"], config["neuron"]["floor"], config["neuron"]["distance"]) == (0.001, 0.1, 0.25)
    assert (config["recipe"]["momentum_decay"], config["model"]["init_gain"]) == (0.01, 0.5)


def test_only_what_is_installed_counts(site):
    shutil.copytree(site / "site/snn_ideas", site / "hidden/snn_ideas")  # can be imported, and has no entry point
    script = """
from snn_repro.config import ConfigError, checked, help_text, load_config, to_dict
plain = to_dict(load_config())
for part, value in (("neuron", "snn_ideas.mylif"), ("neuron", "mylif"), ("loss", "os:system")):
    try:
        checked(plain | {part: plain[part] | {"name": value}})
        print("accepted", value)
    except ConfigError as error:
        assert "is not one of" in str(error), error
typed("neuron=mylif", code=2)
typed("augment.swap_polarity=1", code=2)
assert "snn_ideas" not in sys.modules and "mylif" not in help_text()
"""
    told = python(site, script, "hidden")
    assert (
        "neuron=mylif does not exist" in told
        and "unknown key 'augment.swap_polarity'" in told
        and "accepted" not in told
    )


def test_a_damaged_package_is_named_and_harms_only_who_asks_for_it(tmp_path):
    """`bad` cannot be imported, `torn` is no Python, and `gone` has no module."""
    neuron = (
        "import no_such_thing\nfrom snn_repro.neurons import LIF, register\n@register('badlif')\nclass Bad(LIF): ...\n"
    )
    for name, content in {"bad": neuron, "torn": "def (", "gone": None}.items():
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[snn_repro]\n{name} = {name}\n")
        if content:
            (tmp_path / f"{name}.py").write_text(content)
    words = ["neuron=lif", "debug.max_steps=1", "debug.max_eval_batches=1", "recipe.epochs=1", "logger.mode=disabled"]
    script = f"""
from snn_repro.config import load_config, to_dict, checked
from snn_repro.losses import build_loss
from snn_repro.neurons import build_neuron
from snn_repro.train import run
print(run(load_config({words}), {str(tmp_path / "run")!r}).code["outside"])
for ask in (lambda: build_loss("sdd"), lambda: build_neuron("badlif"), lambda: load_config(["neuron=bad"])):
    try:
        ask()
    except Exception as error:
        print(type(error).__name__, error)
"""
    told = python(tmp_path, script, "")
    versions, *asked = [line for line in told.splitlines() if line.startswith(("{", "UserError", "ConfigError"))]
    assert versions == "{'bad': '1', 'gone': '1', 'torn': '1'}"
    assert len(asked) == 3
    for said in asked:
        for name, why in (("bad", "ModuleNotFoundError"), ("torn", "SyntaxError"), ("gone", "ImportError")):
            assert f"the package '{name}' (entry point '{name}' of snn_repro) cannot be imported: {why}" in said
            assert told.count(f"the package '{name}'") <= 4  # a warning, and once a sentence
    assert _folder("json.tool") == _folder("json") and _folder("json").name == "json" and _folder("json.none") is None
