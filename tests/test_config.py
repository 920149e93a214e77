"""Every mistake ends in one sentence that names the key, the value and what is allowed; nothing else is started."""

import dataclasses
import subprocess
import sys

import pytest

from snn_repro.config import (
    ADDED,
    CONF_DIR,
    DATASET_FACTS,
    GROUPS,
    Config,
    ConfigError,
    checked,
    choices,
    config_hash,
    differing,
    hashed,
    help_text,
    keys,
    load_config,
    sweep_jobs,
    to_dict,
    tweaks,
)

WRONG = {
    "neurn=if": ["neurn", "neuron"],
    "neuron=fi": ["neuron=fi", "leaky_imp", "if"],
    "neuron.tua=2": ["neuron.tua", "neuron.tau"],
    "recipe.lrr=1": ["recipe.lrr", "recipe.lr"],
    "lr=0.1": ["lr", "recipe.lr"],
    "+typo=1": ["typo"],
    "++recipe.typo=1": ["recipe.typo"],
    "timesteps=0": ["timesteps=0", "at least 1"],
    "timesteps=four": ["timesteps=four", "whole number"],
    "timesteps=null": ["timesteps", "null"],
    "recipe.epochs=1.5": ["recipe.epochs=1.5", "whole number"],
    "recipe.lr=nan": ["recipe.lr=nan", "greater than 0"],
    "recipe.lr=-1": ["recipe.lr=-1", "greater than 0"],
    "recipe.optimizer=sdg": ["recipe.optimizer=sdg", "'sgd'"],
    "recipe.no_decay=[foo]": ["recipe.no_decay", "foo", "norm"],
    "neuron.imp=maybe": ["neuron.imp=maybe", "true or false"],
    "neuron.imp_init=[1,2,3]": ["neuron.imp_init", "low <= high"],
    "neuron.imp_init=[2,1]": ["neuron.imp_init", "low <= high"],
    "loss.epsilon=0.5": ["loss.epsilon=0.5", "tet_s"],
    "loss=[sdt": ["loss=[sdt"],
    "seed=-1": ["seed=-1", "at least 0"],
    "dataset.split=tebn": ["dataset.split=tebn", "official"],
    "dataset.validation=1": ["dataset.validation=1", "less than 1"],
    "model=vgg48": ["vgg48", "48", "dataset.frame_size=48"],
    "augment.nda=true": ["augment.nda", "digits"],
    "augment.mix_prob=0.5": ["augment.mix_prob=0.5", "mixup"],
    "recipe.warmup_epochs=99": ["recipe.warmup_epochs=99", "recipe.epochs"],
    "recipe.min_lr=3": ["recipe.min_lr=3", "recipe.lr"],
    "experiment=table9_nothing": ["experiment=table9_nothing"],
    "logger.mode=onlin": ["logger.mode=onlin", "'online'"],
    "name=a/b": ["name=a/b"],
    "foo": ["foo", "key=value"],
    "~loss": ["loss.name", "tet_s"],
    "paper_row=nothing": ["paper_row=nothing", "paper_tables.yaml", "leave it out"],
    "paper_row=table1_cifar10_std": ["paper_row=table1_cifar10_std", "'table1_cifar10_sdt'"],
    "fidelity=extnded": ["fidelity=extnded", "extended"],
}


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_one_sentence(override):
    with pytest.raises(ConfigError) as error:
        load_config([override])
    sentence = str(error.value)
    assert "\n" not in sentence
    for part in WRONG[override]:
        assert part in sentence


@pytest.mark.parametrize("epsilon", ["1.5", "1.0", "-0.1", "nan"])
def test_epsilon_is_checked(epsilon):
    with pytest.raises(ConfigError, match=f"loss.epsilon={epsilon}"):
        load_config(["loss=tet_s", f"loss.epsilon={epsilon}"])


def test_vgg48_fits_when_frames_are_resized():
    assert load_config(["model=vgg48", "dataset=cifar10_dvs", "dataset.frame_size=48"]).dataset.frame_size == 48


def test_the_command_exits_with_2_and_makes_no_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snn_repro.train", "neuron.tua=2", f"hydra.run.dir={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "snn-train: unknown key 'neuron.tua'; did you mean 'neuron.tau'?"
    assert list(tmp_path.iterdir()) == []


def test_every_choice_composes_and_has_a_line_of_help():
    text = help_text()
    for group in GROUPS:
        for name, line in choices(group).items():
            assert len(line) > 10, f"conf/{group}/{name}.yaml has no first comment line"
            assert line in text
    for group in ("model", "neuron", "loss", "recipe", "debug"):
        for name in choices(group):
            extra = ["dataset=cifar10_dvs", "dataset.frame_size=48"] if name == "vgg48" else []
            if group == "recipe":
                extra = [f"dataset={next(d for d in sorted(DATASET_FACTS, key=len, reverse=True) if name.startswith(d))}"]
            load_config([*extra, f"{group}={name}"])
    for name in choices("dataset"):
        assert load_config([f"dataset={name}"]).dataset.name == name
        assert name in DATASET_FACTS


def test_every_key_has_a_meaning_and_every_default_is_in_range():
    for name, meta in keys().items():
        assert meta.get("help"), name
    assert load_config() == checked(to_dict(load_config()))


def test_timesteps_follow_the_data_set_and_imp_keys_follow_the_neuron():
    assert load_config(["dataset=digits_dvs"]).timesteps == 10
    assert load_config(["dataset=digits_dvs", "timesteps=3"]).timesteps == 3
    assert load_config(["neuron.imp_lr=2"]).recipe.imp_lr == 2
    assert load_config(["recipe.imp_lr=3"]).recipe.imp_lr == 3


def test_the_folder_names_row_tweaks_and_seed():
    assert load_config(["seed=3"]).run_dir.endswith("runs/digits-small-if_imp-lts/seed3")
    tweaked = load_config(["neuron=if", "recipe.lr=0.05", "data_dir=/x", "logger.mode=disabled"])
    assert tweaked.run_dir.endswith("runs/digits-small-if-lts/recipe.lr=0.05/seed0")
    assert load_config(["hydra.run.dir=/x/y"]).run_dir == "/x/y"
    assert tweaks(["experiment=e", "neuron=if", "seed=2"]) == "neuron=if"
    assert len(tweaks([f"recipe.lr={i}" for i in range(99)])) == 16


def test_the_hash_sees_numbers_and_not_places():
    base = load_config()
    assert config_hash(base) == config_hash(load_config(["data_dir=/x", "logger.mode=disabled", "device=cpu", "threads=2"]))
    other = load_config(["recipe.lr=0.2"])
    assert config_hash(base) != config_hash(other)
    assert differing(base, other) == ["recipe.lr: 0.005 -> 0.2"]
    assert config_hash(base, without=("seed",)) == config_hash(load_config(["seed=5"]), without=("seed",))
    assert {f.name for f in dataclasses.fields(Config)} > {"seed"} and "seed" in hashed(base)


def test_a_key_that_was_added_leaves_earlier_hashes_alone():
    base = load_config(["neuron=lif"])
    earlier = to_dict(base)
    for name in ADDED:
        group, _, last = name.rpartition(".")
        del earlier[group][last]
    assert config_hash(earlier) == config_hash(base) and differing(earlier, base) == []
    other = load_config(["neuron=lif", "neuron.decay_input=false"])
    assert config_hash(other) != config_hash(base)
    assert differing(earlier, other) == differing(base, other) == ["neuron.decay_input: True -> False"]
    assert {name: keys()[name] is not None for name in ADDED} == dict.fromkeys(ADDED, True)


def test_extended_is_a_word_and_no_other_recipe():
    published, extended = (load_config([f"fidelity={word}"]) for word in ("published", "extended"))
    assert extended.fidelity == "extended" and config_hash(extended) == config_hash(published)
    assert differing(published, extended) == []
    assert differing(published, load_config(["fidelity=described", "neuron.surrogate=atan"])) != []


def test_sweeps_expand_and_an_empty_one_is_refused():
    assert len(sweep_jobs(["neuron=if,if_imp", "loss=sdt,tet,lts", "seed=0,1,2"])) == 18
    with pytest.raises(ConfigError, match="matches nothing"):
        sweep_jobs(["experiment=glob(no_such_row_*)"])


def test_conf_holds_values_only():
    assert not [f for f in CONF_DIR.rglob("*.yaml") if "_target_" in f.read_text()]
