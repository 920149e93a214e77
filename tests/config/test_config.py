"""Every mistake ends in one sentence that names the key, the value and what is allowed; nothing else is started."""

import dataclasses

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from snn_repro.config import (
    ADDED,
    GROUPS,
    Config,
    ConfigError,
    checked,
    choices,
    compose_checked,
    config_hash,
    differing,
    hashed,
    help_text,
    idle,
    keys,
    load_config,
    readable,
    sweep_jobs,
    to_dict,
    tweaks,
)
from snn_repro.runs.sweeps import plan

WRONG = {
    "neurn=if": ["neurn", "neuron"],
    "neuron=fi": ["neuron=fi", "leaky_imp", "if"],
    "neuron.tua=2": ["neuron.tua", "neuron.tau"],
    "lr=0.1": ["lr", "recipe.lr"],
    "+typo=1": ["typo"],
    "++recipe.typo=1": ["recipe.typo"],
    "timesteps=0": ["timesteps=0", "at least 1"],
    "timesteps=four": ["timesteps=four", "whole number"],
    "recipe.lr=nan": ["recipe.lr=nan", "finite number"],
    "recipe.optimizer=sdg": ["recipe.optimizer='sdg'", "'sgd'"],
    "recipe.no_decay=[foo]": ["recipe.no_decay", "foo", "norm"],
    "neuron.imp=maybe": ["neuron.imp=maybe", "true or false"],
    "neuron.tau=3": ["neuron.tau=3", "belongs to neuron=lif or ", "leave it out for 'if'"],
    "neuron.initial=half": ["neuron.imp=true and neuron.initial=half both set the initial potential", "use neuron=if"],
    "neuron.initial=half neuron=psn": ["neuron.initial='half'", "leave it out for 'psn'"],
    "recipe.imp_lr=3": ["recipe.imp_lr is now called neuron.imp_lr", "neuron.imp_lr=..."],
    "neuron.backend=cpu": ["neuron.backend is no longer a key", "write kernels= one of: "],
    "dataset.split=tebn": ["dataset.split=tebn", "official"],
    "model=vgg48": ["vgg48", "48x48", "8x8", "choose model=vgg128 or small"],
    "dataset.frame_size=48": ["dataset.frame_size=48", "digits has 8 pixels", "leave it out"],
    "augment.nda=true": ["augment.nda", "digits"],
    "recipe.warmup_epochs=99": ["recipe.warmup_epochs=99", "recipe.epochs"],
    "name=a/b": ["name=a/b"],
    f"name={'x' * 300}": ["name=xxx", "up to 200"],
    "foo": ["foo", "key=value"],
    "logger.project=a=b": ["logger.project=a=b", """type 'logger.project="a=b"'"""],
    "++neuron.name=lif": ["write neuron=lif"],
    "hydra.run.dir=": ["hydra.run.dir=", "names no folder"],
    "hydra.sweep.dir=x": ["is for sweeps (-m)", "hydra.run.dir=DIR"],
    "hydra/launcher=joblib": ["hydra/launcher=joblib is for sweeps (-m)"],
    "hydra.verbose=true": ["hydra.verbose=true is for sweeps (-m)"],
    "~loss": ["loss.name", "tet_s"],
    "paper_row=table1_cifar10_std": ["paper_row=table1_cifar10_std", "'table1_cifar10_sdt'", "leave it out"],
}  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_one_sentence(override):
    with pytest.raises(ConfigError) as error:
        load_config(override.split() if override.startswith(("neuron.", "recipe.", "loss.")) else [override])
    sentence = str(error.value)
    assert "\n" not in sentence
    for part in WRONG[override]:
        assert part in sentence


def test_vgg48_fits_when_frames_are_resized():
    assert load_config(["model=vgg48", "dataset=cifar10_dvs", "dataset.frame_size=48"]).dataset.frame_size == 48


def test_every_choice_composes_and_has_a_line_of_help():
    text = help_text()
    for group in GROUPS:
        for name, line in choices(group).items():
            assert len(line) > 10, f"conf/{group}/{name}.yaml has no first comment line"
            assert line in text


def test_every_key_has_a_meaning_and_every_default_is_in_range():
    for name, setting in keys().items():
        assert setting.help, name
    assert load_config() == checked(to_dict(load_config()))


def test_timesteps_follow_the_data_set():
    assert load_config(["dataset=digits_dvs"]).timesteps == 10
    assert load_config(["dataset=digits_dvs", "timesteps=3"]).timesteps == 3


def test_the_folder_names_row_tweaks_and_seed():
    assert load_config(["seed=3"]).run_dir.endswith("runs/digits-small-if_imp-lts/seed3")
    tweaked = load_config(["neuron=if", "recipe.lr=0.05", "data_dir=/x", "logger.mode=disabled"])
    assert tweaked.run_dir.endswith("runs/digits-small-if-lts/recipe.lr=0.05/seed0")
    assert load_config(["hydra.run.dir=/x/y"]).run_dir == "/x/y"
    assert tweaks(["experiment=e", "neuron=if", "seed=2"]) == "neuron=if"
    assert len(tweaks([f"recipe.lr={i}" for i in range(99)])) == 16


def test_the_hash_sees_numbers_and_not_places():
    base = load_config()
    assert config_hash(base) == config_hash(
        load_config(["data_dir=/x", "logger.mode=disabled", "device=cpu", "threads=2"])
    )
    other = load_config(["recipe.lr=0.2"])
    assert config_hash(base) != config_hash(other)
    assert differing(base, other) == ["recipe.lr: 0.005 -> 0.2"]
    assert config_hash(base, without=("seed",)) == config_hash(load_config(["seed=5"]), without=("seed",))
    assert {f.name for f in dataclasses.fields(Config)} > {"seed"} and "seed" in hashed(base)


def test_a_learned_initial_state_has_two_names_and_one_hash():
    """Under one name of the row, which is hashed too and says which file was chosen."""

    def composed(words: str):
        return load_config(["name=mine", *words.split()])

    by_file, *others = map(composed, ("neuron=if_imp", "neuron=if neuron.imp=true", "neuron=if neuron.initial=imp"))
    for other in others:
        assert other.neuron == by_file.neuron and other.neuron.imp
        assert config_hash(other) == config_hash(by_file) and differing(by_file, other) == []
    config = composed("neuron=if neuron.initial=half")
    assert not config.neuron.imp and config_hash(config) != config_hash(by_file)


def test_a_key_that_was_added_leaves_earlier_hashes_alone():
    base = load_config(["neuron=lif"])
    earlier = to_dict(base)
    for name in ADDED:
        group, _, last = name.rpartition(".")
        earlier[group].pop(last, None)
    assert config_hash(earlier) == config_hash(base) and differing(earlier, base) == []
    other = load_config(["neuron=lif", "neuron.decay_input=false"])
    assert config_hash(other) != config_hash(base)
    assert differing(earlier, other) == differing(base, other) == ["neuron.decay_input: True -> False"]


def test_extended_is_a_word_and_no_other_recipe():
    published, extended = (load_config([f"fidelity={word}"]) for word in ("published", "extended"))
    assert extended.fidelity == "extended" and config_hash(extended) == config_hash(published)
    assert differing(published, extended) == []
    assert differing(published, load_config(["fidelity=described", "neuron.surrogate=atan"])) != []


def test_sweeps_expand_and_an_empty_one_is_refused():
    assert len(sweep_jobs(["neuron=if,if_imp", "loss=sdt,tet,lts", "seed=0,1,2"])) == 18
    with pytest.raises(ConfigError, match="matches nothing"):
        sweep_jobs(["experiment=glob(no_such_row_*)"])


IDLE = {  # {set by hand, with effect: {set by hand on top of it, without effect: what it would need}}
    "": {
        "recipe.momentum=0.5": "recipe.optimizer=adamw; it needs recipe.optimizer=sgd",
        "recipe.warmup_factor=0.1": "recipe.warmup_epochs=0",
        "neuron.initial=zero": "neuron.imp=true; use neuron=if with it",
        "neuron.tau=2.0": "neuron=if; leave it out",  # what lif has: it says nothing, and is no mistake in a file
        "neuron.v_reset=0.1": "neuron.reset=soft; it needs neuron.reset=hard",
        "dataset.integrate_by=time": "dataset=digits; it needs a data set of events",
        "dataset.channel_order=bgr": "dataset=digits; it needs colour images",
        "augment.test_resize=200": "dataset=digits; it needs dataset=imagenet1k",
        "augment.rpg_relevance=sltrp": "augment.rpg_drop=0.0; it needs augment.rpg_drop",
        "augment.cutmix_axes=published": "augment.cutmix=0.0",
    },
    "recipe.optimizer=sgd recipe.momentum=0.5 recipe.schedule=step recipe.step_epochs=3 recipe.warmup_factor=0.1 recipe.warmup_epochs=2": {
        "recipe.eps=1": "recipe.optimizer=sgd; it needs recipe.optimizer=adam, adamw or lamb",
    },
    "neuron=if loss=tet recipe.eps=1 recipe.weight_decay=0 dataset.validation=0 logger=none timesteps=2": {
        "neuron.imp_lr=2": "neuron.imp=false; it needs a neuron with IMP",
        "loss.phi=2": "loss.lam=0.0; it needs loss.lam above 0",
        "recipe.no_decay=[bias]": "recipe.weight_decay=0.0; it needs recipe.weight_decay above 0",
        "dataset.split_seed=3": "dataset.validation=0.0",
        "logger.project=mine": "logger.to={}; it needs logger=wandb or trackio",
        "dataset.timesteps=3": "timesteps=2; it needs timesteps left out",
    },
    "neuron.imp_trainable=false": {"neuron.imp_lr=2": "neuron.imp_trainable=false"},
    "neuron=psn": {"neuron.initial=zero": "neuron=psn; leave it out"},
    "augment.cutmix=1": {"augment.cutmix_axes=published": "dataset=digits; it needs a data set of events"},
    "neuron=lif neuron.tau=3 neuron.imp=true neuron.imp_lr=2 dataset.split_seed=3 augment.mix_prob=0.5 augment.mixup=1": {},
    "dataset=digits_dvs dataset.integrate_by=time augment.cutmix_axes=published augment.cutmix=1": {},
    "experiment=table3_sew_r18_imp_lts augment.test_resize=240": {},
}  # fmt: skip


@pytest.mark.parametrize("words", IDLE)
def test_a_key_without_effect_is_found_when_it_is_typed_and_no_other(words):
    overrides = [*words.split(), *IDLE[words]]
    found = idle(compose_checked(overrides, sweep=True), overrides)
    assert found.keys() == {typed.split("=")[0] for typed in IDLE[words]}
    for typed, needs in IDLE[words].items():
        assert found[typed.split("=")[0]].startswith(f"{typed} has no effect with {needs}")


@pytest.mark.parametrize(
    "typed, needs", [("slurm.account=lab", "basic; it needs -m and hydra/launcher=slurm"), ("runs_per_gpu=2", "basic; it needs -m and hydra/launcher=gpus"),
                     ("recipe.momentum=0.5", "")],
)  # fmt: skip
def test_a_key_without_effect_is_refused(typed, needs):
    with pytest.raises(ConfigError, match=f"^{typed} has no effect with {'hydra/launcher=' * bool(needs)}{needs}"):
        load_config([typed])


def test_in_a_sweep_a_key_needs_an_effect_in_one_of_the_runs():
    assert len(plan(["neuron=if,if_imp", "neuron.imp_lr=2"])) == 2
    with pytest.raises(ConfigError, match="neuron.imp_lr=2 has no effect"):
        plan(["neuron=if,lif", "neuron.imp_lr=2"])


def test_a_shorter_training_shortens_the_recipes_warm_up(caplog):
    """Its share of the training stays; the configuration and its hash hold the shorter one; by hand it stays an error."""
    config = load_config(["dataset=cifar10", "recipe.epochs=1"])
    assert (config.recipe.epochs, config.recipe.warmup_epochs) == (1, 0)
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == "recipe.warmup_epochs is 0 instead of the recipe's 5 (of 300 epochs), because of recipe.epochs=1"
    assert config_hash(config) == config_hash(
        load_config(["dataset=cifar10", "recipe.epochs=1", "recipe.warmup_epochs=0"])
    )
    assert load_config(["dataset=cifar10", "recipe.epochs=6"]).recipe.warmup_epochs == 5  # it fits: as it was
    for wrong in (["recipe.epochs=5", "recipe.warmup_epochs=5"], ["recipe.warmup_epochs=300"]):
        with pytest.raises(ConfigError, match="leaves no epoch"):
            load_config(["dataset=cifar10", *wrong])
    assert [job.config.recipe.warmup_epochs for job in plan(["dataset=cifar10", "recipe.epochs=1,7"])] == [0, 5]


PATHS = (
    "/a=b", "~/x", "/with space/y", "/caf\u00e9", "/a(b)[c]{d}", "/a,b", "/it's", '/say "hi"', "/back\\slash", "123",
)  # fmt: skip


def test_a_path_is_taken_as_typed(monkeypatch):
    """In quotes too; null and interpolations stay what they are."""
    monkeypatch.setenv("HOME", "/home of=me")
    parse = OverridesParser.create().parse_override
    for path in PATHS:
        wanted = path.replace("~", "/home of=me")
        for typed in (path, f"'{path}'") if "'" not in path and "\\" not in path else (path,):
            assert parse(*readable([f"model.weights={typed}"])).value() == wanted
    assert load_config(["data_dir=null"]).data_dir is None
    assert load_config(["data_dir=${oc.env:HOME}/x", "hydra.run.dir=~/r n"]).data_dir == "/home of=me/x"
    swept = sweep_jobs(readable(["data_dir=~/a=1,~/b"], sweep=True))
    assert [load_config(job).data_dir for job in swept] == ["/home of=me/a=1", "/home of=me/b"]


def test_a_path_in_quotes_names_the_same_folder():
    assert tweaks(['model.weights="a.pt"']) == tweaks(["model.weights=a.pt"]) == "model.weights=a.pt"


def test_a_label_for_a_sweep_keeps_its_runs_apart():
    folders = [str(job.folder) for job in plan(["name=mine", "neuron=if,if_imp"])]
    assert [f.split("/runs/")[1] for f in folders] == [f"mine/neuron={n}/seed0" for n in ("if", "if_imp")]
    assert tweaks(["name=mine", "experiment=table1_cifar10_sdt"]) == "experiment=table1_cifar10_sdt"
    assert tweaks(["name=mine", "seed=1"]) == ""
