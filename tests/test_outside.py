"""A package from outside: one Python file and one yaml an idea, as CONTRIBUTING.md tells it, installed by its entry point alone."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from snn_repro.outside import _package

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests/example_package"
QUICK = ["logger.mode=disabled", "threads=1"]


def recipes() -> dict[str, str]:
    """{file: content} of CONTRIBUTING.md's code blocks that have a file's name above them."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return dict(re.findall(r"^`(snn_ideas/[\w./]+)`\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder as pip leaves it: the example package with CONTRIBUTING's files in it, and its dist-info; data beside it."""
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
    np.savez(
        root / "data/blobs.npz", **{f"x_{k}": x for k, x in images.items()}, **{f"y_{k}": y for k, y in labels.items()}
    )
    for k, c in enumerate(("left", "right")):
        (root / "data/sparks" / c).mkdir(parents=True)
        for i in range(10):
            rows = zip(
                rng.integers(0, 8, 40) + 8 * k, rng.integers(0, 12, 40), rng.integers(0, 2, 40), range(40), strict=True
            )
            data = struct.pack("<I", 40) + b"".join(struct.pack("<BBBI", *map(int, row)) for row in rows)
            (root / "data/sparks" / c / f"{c}_{i}.spk").write_bytes(data)
    return root


def environment(site: Path, installed: bool = True) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([*[str(site / "site")] * installed, str(ROOT)])}


def command(site: Path, *words: str, code: int = 0, installed: bool = True) -> str:
    """What `python WORDS` prints, in the folder of the data and runs."""
    where = dict(cwd=site, env=environment(site, installed), timeout=300)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **where)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(site: Path, *words: str, **options) -> str:
    return command(site, "-m", "snn_repro.train", "data_dir=data", "cache_dir=cache", *QUICK, *words, **options)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_an_idea_is_one_file_and_one_yaml():
    names = [*recipes(), *(str(p.relative_to(EXAMPLE)) for p in EXAMPLE.rglob("*/*") if p.suffix in (".py", ".yaml"))]
    python = sorted(Path(n).stem for n in names if n.endswith(".py") and not n.endswith("__init__.py"))
    yamls = sorted(Path(n).stem for n in names if n.endswith(".yaml"))
    assert python == [
        "alif", "blobs", "count_section", "dense", "epochs_figure", "mylif", "peak", "rms", "sparks", "start_and_slope", "steps",
        "swap_polarity",
    ]  # fmt: skip
    assert yamls == ["alif", "blobs", "blobs_mylif", "dense", "mylif", "peak", "sparks"]


def test_help_lists_choices_and_their_settings(site):
    told = command(site, "-m", "snn_repro.train", "--help")
    for line in (
        r"  mylif +leaky with a learned time constant", r"  peak +cross entropy of each class's highest", r"  dense +one hidden layer",
        r"  blobs +three classes", r"  sparks +two classes of sparks", r"  blobs_mylif +Blobs: MyLIF",
        r"  neuron.tau_init +neuron=mylif: membrane time constant to start from \(time steps\) \[above 1\]",
        r"  loss.sharpness +loss=peak: factor on the outputs \[above 0\]", r"  model.width +model=dense: neurons \[at least 1\]",
        r"  dataset.brightness +dataset=blobs: factor on the grey values \[above 0\]",
        r"  augment.swap_polarity +events: chance that a sample's polarities change places \[at least 0 and at most 1\]",
    ):  # fmt: skip
        assert re.search(f"^{line}", told, re.MULTILINE), line
    assert "mylif" not in command(site, "-m", "snn_repro.train", "--help", installed=False)


def test_a_row_trains_is_killed_resumes_is_tabulated_and_its_weights_load(site):
    row = ["experiment=blobs_mylif", "dataset.validation=0.1"]
    train(site, *row, "hydra.run.dir=whole/seed0")
    killed = subprocess.Popen(
        [sys.executable, "-m", "snn_repro.train", "data_dir=data", *QUICK, *row, "hydra.run.dir=killed/seed0"], cwd=site,
        env=environment(site), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics, until = site / "killed/seed0/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (site / "killed/seed0/result.json").exists()
    assert "resuming at epoch" in train(site, *row, "hydra.run.dir=killed/seed0")
    whole, again = result(site / "whole/seed0"), result(site / "killed/seed0")
    assert (again["loss_last"], again["acc_step"]) == (whole["loss_last"], whole["acc_step"])
    assert whole["readout"] == "peak" and whole["acc_last"] > 0.9
    assert whole["config"]["neuron"]["tau_init"] == 3.0 and whole["config"]["loss"]["sharpness"] == 1.0

    train(site, *row, "loss=tet", "neuron.tau_init=5", "recipe.epochs=2", "hydra.run.dir=other/seed0")
    table = command(site, str(ROOT / "scripts/compare.py"), "whole", "other")
    assert "peak" in table and "mean" in table and "neuron.tau_init" in table
    assert "whole" not in command(site, str(ROOT / "scripts/compare.py"), "whole", installed=False).split("\n")[0]
    assert "blobs_mylif" in command(site, str(ROOT / "scripts/list_rows.py"))

    weights = f"model.weights={site}/whole/seed0/checkpoint_last.pt"
    told = train(site, *row, weights, "recipe.epochs=1", "recipe.lr=1e-6", "hydra.run.dir=loaded/seed0")
    assert (
        str(site / "whole/seed0/checkpoint_last.pt") in told
        and result(site / "loaded/seed0")["acc_last"] == whole["acc_last"]
    )
    said = train(site, *row, "neuron.tau_init=4", "hydra.run.dir=whole/seed0", code=2)
    assert "holds a run of another configuration (neuron.tau_init: 3.0 -> 4" in said


def test_one_of_each_kind_is_found(site):
    script = """
from snn_repro import registry as r
for kind, name in ((r.SETS, "blobs"), (r.NEURONS, "alif"), (r.SURROGATES, "cauchy"), (r.INITIAL_STATES, "below"), (r.NORMS, "rms"),
                   (r.MODELS, "dense"), (r.LOSSES, "peak"), (r.AUGMENTATIONS, "swap_polarity"), (r.OPTIMIZERS, "nadam"),
                   (r.SCHEDULES, "linear"), (r.FIGURES, "epochs"), (r.SECTIONS, "count")):
    assert name in kind and name in list(kind) and name not in kind.ours(), name
"""
    command(site, "-c", script)


def test_an_event_set_is_prepared_and_trains_with_one_of_each(site):
    words = ["dataset=sparks", "data_dir=data", "cache_dir=cache"]
    command(site, str(ROOT / "scripts/prepare_data.py"), *words, "workers=0")
    run = [
        "dataset=sparks", "model=vgg128", "model.norm=rms", "model.rms_eps=0.001", "neuron=alif", "neuron.surrogate=cauchy",
        "neuron.floor=0.1", "neuron.initial=below", "neuron.distance=0.25", "loss=peak", "augment.swap_polarity=0.5",
        "recipe.optimizer=nadam", "recipe.momentum_decay=0.01", "recipe.schedule=linear",
    ]  # fmt: skip
    train(site, *run, "recipe=digits", "recipe.batch_size=8", "recipe.epochs=1", "debug.max_steps=1")
    (file,) = site.glob("runs/sparks-vgg128-alif-peak/*/seed0/result.json")
    config = result(file.parent)["config"]
    assert (config["model"]["rms_eps"], config["neuron"]["floor"], config["neuron"]["distance"]) == (0.001, 0.1, 0.25)
    assert config["recipe"]["momentum_decay"] == 0.01


def test_what_is_wrong_with_their_settings_is_one_sentence(site):
    script = """
import sys
from snn_repro.config import ConfigError, load_config
for words in ("neuron=mylif neuron.tau_innit=3", "neuron=if neuron.tau_init=3", "neuron=mylif loss=peak loss.sharpnes=2",
              "neuron=mylif +neuron.tau_init={a:1}", "neuron=mylif neuron.retain=0.1",
              "neuron=mylif neuron.tau_init=0.5", "dataset=blobs recipe=digits dataset.brightness=dark", "dataset.brightness=2",
              "augment.swap_polarity=2", "augment.swap_polarty=1", "neuron=mylif neuron.surrogate=atann",
              "augment.swap_polarity=0.5", "model.rms_eps=1", "neuron.floor=0.1", "recipe.momentum_decay=1",
              "neuron.initial=below neuron.distance=-1 neuron=if", "recipe.momentm_decay=1",
              "recipe.optimizer=nadam recipe.momentum=0.5"):
    try:
        load_config(words.split())
        print("accepted:", words)
    except ConfigError as error:
        print(error)
"""
    told = command(site, "-c", script).splitlines()
    assert told == [
        "unknown key 'neuron.tau_innit'; did you mean 'neuron.tau_init'?",
        "neuron.tau_init=3 belongs to neuron=mylif; leave it out for 'if'",
        "unknown key 'loss.sharpnes'; did you mean 'loss.sharpness'?",
        "neuron.tau_init={'a': 1} must be a finite number",
        "neuron.retain=0.1 belongs to neuron=leaky; leave it out for 'mylif'",
        "neuron.tau_init=0.5 must be above 1 (time steps)",
        "dataset.brightness='dark' must be a finite number",
        "dataset.brightness=2 belongs to dataset=blobs; leave it out for 'digits'",
        "augment.swap_polarity=2.0 must be at least 0 and at most 1",
        "unknown key 'augment.swap_polarty'; did you mean 'augment.swap_polarity'?",
        "neuron.surrogate='atann' is not one of atan, dspike, sigmoid, triangle, rectangle, dspike_adaptive, rectangle_closed, cauchy; did you mean 'atan'?",
        "augment.swap_polarity=0.5 works on event frames and dataset=digits has images; leave it out",
        "model.rms_eps=1 belongs to model.norm=rms; leave it out for 'small'",
        "neuron.floor=0.1 belongs to neuron.surrogate=cauchy; leave it out for 'if'",
        "recipe.momentum_decay=1 belongs to recipe.optimizer=nadam; leave it out for 'adamw and cosine'",
        "neuron.distance=-1.0 must be at least 0",
        "unknown key 'recipe.momentm_decay'; did you mean 'recipe.momentum_decay'?",
        "recipe.momentum=0.5 has no effect with recipe.optimizer=nadam; it needs recipe.optimizer=sgd, or leave it out",
    ]
    wrong = ["neuron=mylif", "neuron.tau_init=0.5"]
    for words in (wrong, [*wrong, "seed=0,1", "-m"], [*wrong, "--cfg", "job"]):
        assert "neuron.tau_init=0.5 must be above 1" in train(site, *words, code=2)


def test_an_augmentation_works_on_batches_and_is_part_of_a_runs_identity(site):
    script = """
import torch
from snn_repro.config import checked, config_hash, load_config, to_dict
from snn_repro.data.augment import batch_transforms
from snn_repro.data.sets import SETS
plain, off, on = (load_config(["dataset=digits_dvs", *words]) for words in ([], ["augment.swap_polarity=0"], ["augment.swap_polarity=1"]))
assert config_hash(plain) == config_hash(off) != config_hash(on) == config_hash(checked(to_dict(on)))
assert "swap_polarity" not in to_dict(off)["augment"] and to_dict(on)["augment"]["swap_polarity"] == 1
(step,) = batch_transforms(on.augment, SETS["digits_dvs"])[-1:]
x = torch.rand(3, 2, 2, 4, 4)
assert torch.equal(step(x, torch.arange(2), torch.Generator())[0], x.flip(2)), step
"""
    command(site, "-c", script)
    assert "unknown key 'augment.swap_polarity'" in train(site, "augment.swap_polarity=1", code=2, installed=False)


def test_only_what_is_installed_counts(site):
    assert "neuron=mylif does not exist" in train(site, "neuron=mylif", code=2, installed=False)
    script = """
import sys
from snn_repro.config import ConfigError, checked, load_config, to_dict
plain = to_dict(load_config())
for part, value in (("neuron", "snn_ideas.mylif"), ("neuron", "mylif"), ("loss", "os:system")):
    try:
        checked(plain | {part: plain[part] | {"name": value}})
        print("accepted", value)
    except ConfigError as error:
        assert "is not one of" in str(error), error
assert "snn_ideas" not in sys.modules
"""
    path = {"PYTHONPATH": os.pathsep.join([str(site / "hidden"), str(ROOT)])}
    shutil.copytree(site / "site/snn_ideas", site / "hidden/snn_ideas")  # can be imported, and has no entry point
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


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
    words = ["neuron=lif", "debug.max_steps=1", "debug.max_eval_batches=1", "recipe.epochs=1", *QUICK]
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
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    versions, *asked = done.stdout.splitlines()[-4:]
    assert versions == "{'bad': '1', 'gone': '1', 'torn': '1'}"
    for said in asked:
        assert "Error" in said.split()[0] and "KeyError" not in said, said
        for name, why in (("bad", "ModuleNotFoundError"), ("torn", "SyntaxError"), ("gone", "ImportError")):
            assert f"the package '{name}' (entry point '{name}' of snn_repro) cannot be imported: {why}" in said
            assert done.stderr.count(f"the package '{name}'") <= 1
    assert (package := _package("json", "json.tool")) and package.folder.name == "json"
