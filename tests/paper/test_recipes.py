"""The recipes and the rows are those of the paper's released code, and every departure is a named key."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from all_rows import NAMES, rows

from snn_repro.build import options
from snn_repro.config import CONF_DIR, ConfigError, differing, frame_shape, load_config
from snn_repro.data.augment import batch_transforms
from snn_repro.data.augment.smooth_labels import SmoothLabels
from snn_repro.data.sets import SETS
from snn_repro.models import build_model, count_parameters
from snn_repro.neurons import build_neuron
from snn_repro.optim import build_schedule, lr_factor, parameter_groups
from snn_repro.registry import AUGMENTATIONS

GOLDEN = Path(__file__).parents[1] / "golden"
# ---------------------------------------------------------------- learning rates

SCHEDULES = {  # golden schedule -> (row, iterations an epoch)
    "cifar10_lamb_0.005_300ep_L196": [("table1_cifar10_sdt", 196), ("figure4_cifar10_imp_lts", 196)],
    "in100_or_dvs48_sgd_0.1_200ep": [("table1_imagenet100_tet", 10), ("table2_cifar10dvs48_t8_imp_tet_s", 10),
                                     ("table2_ncaltech48_t10_imp", 10)],
    "c10dvs128_adamw_1e-3_200ep_L563": [("table2_cifar10dvs128_t16_imp", 563), ("table1_cifar10_dvs_sdt", 563)],
}  # fmt: skip


@pytest.mark.parametrize("golden, name, per_epoch", [(g, *row) for g, found in SCHEDULES.items() for row in found])
def test_learning_rates_are_those_of_the_released_schedules(golden, name, per_epoch):
    recipe = rows()[name].recipe
    expected = json.loads((GOLDEN / "lr_schedules.json").read_text())[golden]
    assert len(expected) > 6
    for epoch, iteration, lr in expected:
        assert recipe.lr * lr_factor(recipe, per_epoch, epoch * per_epoch + iteration) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize("golden", SCHEDULES)
def test_the_scheduler_applies_them_step_by_step(golden):
    (name, per_epoch), *_ = SCHEDULES[golden]
    recipe = rows()[name].recipe
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = build_schedule(optimizer, recipe, per_epoch)
    seen = []
    for _ in range(2 * per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    for epoch, iteration, lr in json.loads((GOLDEN / "lr_schedules.json").read_text())[golden]:
        if epoch < 2:
            assert seen[epoch * per_epoch + iteration] == pytest.approx(lr, rel=1e-6)


# ---------------------------------------------------------------- optimisers

# Of a row's name: optimiser, lr, weight decay, what is spared, batch, epochs, clip. The longest beginning counts.
RECIPES = {
    "table1_cifar10_": ("lamb", 0.005, 1e-4, {"bias", "norm"}, 256, 300, 0.0),
    "figure4_cifar10_": ("lamb", 0.005, 1e-4, {"bias", "norm"}, 256, 300, 0.0),
    "table1_cifar100_": ("lamb", 0.008, 0.02, {"bias", "norm"}, 256, 200, 0.0),
    "table1_imagenet100_": ("sgd", 0.1, 1e-4, set(), 128, 200, 0.0),
    "code_imagenet100_": ("sgd", 0.1, 1e-4, set(), 128, 200, 0.0),
    "table1_imagenet1k_": ("sgd", 0.05, 0.0, set(), 768, 320, 0.0),
    "table3_sew_r18_": ("sgd", 0.05, 0.0, set(), 768, 320, 0.0),
    "table3_sew_r34_": ("sgd", 0.05, 0.0, set(), 512, 320, 0.0),
    "table3_sew_r50_": ("sgd", 0.05, 0.0, set(), 192, 320, 0.0),
    "table2_cifar10dvs48_": ("sgd", 0.1, 5e-4, {"bias", "norm", "te"}, 32, 200, 0.0),
    "table2_ncaltech48_": ("sgd", 0.1, 5e-4, {"bias", "norm", "te"}, 16, 200, 0.0),
    "table1_cifar10_dvs_": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table2_cifar10dvs128_": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table1_ncaltech101_": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 150, 1.0),
    "table2_ncaltech128_": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table2_ncaltech128_t16_tet": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 150, 1.0),
    "table2_ncaltech128_t16_tet_200ep": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table2_ncaltech128_t16_tet_s": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table2_ncaltech128_t16_imp": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 150, 1.0),
    "table2_ncaltech128_t16_imp_200ep": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table2_ncaltech128_t16_imp_tet_s": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 200, 1.0),
    "table1_dvs_gesture_": ("adamw", 1e-3, 0.06, {"bias", "norm"}, 16, 250, 1.0),
}  # fmt: skip
# Weight decay of IMP where the row trains it; the rows not named here with "imp" in their name do not train it.
IMP_DECAY = {
    "table2_cifar10dvs48_t10_": 0.0, "table2_cifar10dvs48_t8_": 5e-4, "table2_ncaltech48_": 5e-4,
    "table2_cifar10dvs128_": 0.0, "table3_": 0.0, "figure4_": 0.0, "code_imagenet100_": 1e-4,
}  # fmt: skip


def longest(table: dict, name: str):
    """The value of the longest key that `name` begins with, or None."""
    found = [k for k in table if name.startswith(k)]
    return table[max(found, key=len)] if found else None


@pytest.mark.parametrize("name", NAMES)
def test_the_optimiser_is_the_published_one(name):
    r = rows()[name].recipe
    optimizer, lr, decay, spared, batch, epochs, clip = longest(RECIPES, name)
    assert (r.optimizer, r.lr, r.weight_decay, set(r.no_decay)) == (optimizer, lr, decay, spared)
    assert (r.batch_size, r.epochs, r.clip_norm, r.schedule) == (batch, epochs, clip, "cosine")
    assert r.repeated_augmentation == (
        3 if "cifar10_" in name + "_" and optimizer == "lamb" or "cifar100" in name else 1
    )
    assert r.momentum == 0.9 and not r.nesterov and not r.ema_decay and not r.drop_last
    assert r.eps == (1e-6 if optimizer == "lamb" else 1e-8)


@cache
def meta_model(name: str, shape, classes: int, timesteps: int, neuron: tuple, model: tuple):
    """The row's network without memory: the shapes and names of its parameters."""
    neuron = {k: list(v) if isinstance(v, tuple) else v for k, v in neuron}
    with torch.device("meta"):
        return build_model(
            name, num_classes=classes, input_shape=shape, timesteps=timesteps, neuron=neuron, **dict(model)
        )


def model_of(config):
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in options(config.neuron).items()}
    neuron = tuple((k, v) for k, v in frozen.items() if k not in ("imp_lr", "imp_weight_decay"))
    model = tuple(options(config.model, "name", "weights").items())
    classes = SETS[config.dataset.name].num_classes
    return meta_model(config.model.name, frame_shape(config), classes, config.timesteps, neuron, model)


def kinds(model) -> dict[torch.nn.Parameter, str]:
    """What each parameter is, told by its name and its module alone."""
    found = {}
    for path, parameter in model.named_parameters():
        owner, _, last = path.rpartition(".")
        is_norm = isinstance(model.get_submodule(owner), torch.nn.BatchNorm2d)
        found[parameter] = last if last in ("imp", "te") else "norm" if is_norm else last
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decayed_and_what_is_not(name):
    config = rows()[name]
    model = model_of(config)
    _, lr, decay, spared, *_ = longest(RECIPES, name)
    imp = dict(imp_lr=config.neuron.imp_lr, imp_weight_decay=config.neuron.imp_weight_decay)
    groups = {g["kind"]: g for g in parameter_groups(model, config.recipe, **imp)}
    kind = kinds(model)
    assert {kind[p] for p in groups["decay"]["params"]} == set(kind.values()) - spared - {"imp"}
    assert groups["decay"]["weight_decay"] == decay
    if spared:
        assert {kind[p] for p in groups["no_decay"]["params"]} == spared & set(kind.values())
        assert groups["no_decay"]["weight_decay"] == 0
    trained = config.neuron.imp and not name.startswith("table2_ncaltech128_")
    assert config.neuron.imp == ("_imp" in name) == any(k == "imp" for k in kind.values())
    assert ("imp" in groups) == trained
    if trained:
        assert {kind[p] for p in groups["imp"]["params"]} == {"imp"}
        assert len(groups["imp"]["params"]) == sum(k == "imp" for k in kind.values())
        assert groups["imp"]["weight_decay"] == longest(IMP_DECAY, name)
    assert {g["lr"] for g in groups.values()} == {lr}
    grouped = [p for g in groups.values() for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in kind)


# ---------------------------------------------------------------- neurons, data, networks


@pytest.mark.parametrize("name", NAMES)
def test_the_neuron_is_the_datasets(name):
    c, n = rows()[name], rows()[name].neuron
    if c.dataset.name in ("cifar10", "cifar100"):
        expected = ("if", "soft", "ge", False, "atan", [0.4, 0.6])
    elif c.dataset.name.startswith("imagenet"):
        expected = ("if", "hard", "ge", False, "atan", [0.4, 0.6])
    elif "48" in name:
        expected = ("leaky", "hard", "gt", False, "triangle", [-0.2, 0.2])
    else:
        expected = ("lif", "soft", "ge", c.dataset.name != "dvs_gesture", "sigmoid", [0.4, 0.6])
    assert (n.name, n.reset, n.fire_at, n.detach_reset, n.surrogate, n.imp_init) == expected
    assert (n.v_threshold, n.v_reset) == (1.0, 0.0)
    leak = {"if": {}, "lif": {"tau": 2.0, "decay_input": True}, "leaky": {"retain": 0.25}}
    assert {k: v for k, v in n.own.items() if k in ("tau", "decay_input", "retain")} == leak[n.name]
    assert n.surrogate_width == {"atan": 2.0, "sigmoid": 4.0, "triangle": 1.0}[n.surrogate]
    assert n.imp_trainable != (n.imp and name.startswith("table2_ncaltech128_"))


@pytest.mark.parametrize("name", NAMES)
def test_time_steps_frames_and_split(name):
    c = rows()[name]
    event = not SETS[c.dataset.name].static
    expected_t = 4 if not event else 10 if "_t10_" in name else 8 if "_t8_" in name else 16
    assert c.timesteps == expected_t
    shape = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "dvs_gesture": (2, 128, 128)}.get(
        c.dataset.name, (3, 224, 224)
    )
    if event and "48" in name:
        shape = (2, 48, 48)
    elif event:
        shape = (2, 180, 240) if c.dataset.name == "ncaltech101" else (2, 128, 128)
    assert frame_shape(c) == shape
    split = {"cifar10_dvs": "tebn" if "48" in name else "random", "ncaltech101": "seeded"}.get(
        c.dataset.name, "official"
    )
    assert c.dataset.split == split and c.dataset.validation == 0 and c.dataset.integrate_by == "number"
    assert c.dataset.channel_order == ("bgr" if c.dataset.name in ("cifar10", "cifar100") else "rgb")


@pytest.mark.parametrize("name", NAMES)
def test_losses(name):
    c = rows()[name]
    words = name.removesuffix("_200ep")
    if words.endswith("_tet_s"):
        assert (c.loss.name, c.loss.epsilon) == ("tet_s", 0.01)
    elif words.endswith("_imp"):
        assert (c.loss.name, c.loss.lam) == ("tet", 0.0)  # the IMP rows of Table 2 are trained with TET
    else:
        assert c.loss.name == words.rsplit("_", 1)[1]
    smoothed = {"table1_dvs_gesture_": 0.1, "table1_ncaltech101_": 0.1, "table1_cifar10_dvs_": 0.01}
    assert c.augment.label_smoothing == (longest(smoothed, name) or 0.0)


def test_augmentation():
    def of(name):
        defaults = AUGMENTATIONS.all_settings()
        return {k: v for k, v in rows()[name].augment.own.items() if v != defaults[k].default}

    randaugment = dict(rrc_min_area=0.875, flip=0.5, randaugment_ops=2)
    policy = dict(flip=0.5, event_policy=True)
    mixed = dict(mixup=0.5, cutmix=1.0, cutmix_axes="published")
    assert of("table1_cifar10_sdt") == randaugment
    assert of("table1_cifar100_sdt") == randaugment | dict(mixup=0.1, cutmix=1.0)
    assert of("table1_imagenet100_sdt") == randaugment | dict(rrc_min_area=0.08, randaugment_level=6, test_resize=236)
    assert of("code_imagenet100_imp_lts") == of("table1_imagenet100_sdt")
    assert of("table3_sew_r50_lts") == dict(rrc_min_area=0.08, flip=0.5, interpolation="bilinear", test_resize=256)
    assert of("table2_cifar10dvs48_t10_imp") == dict(crop_padding=4, flip=0.5)
    assert of("table2_cifar10dvs128_t16_imp") == policy | mixed
    assert of("table2_ncaltech48_t10_imp") == policy
    assert of("table2_ncaltech128_t16_imp") == policy | dict(mixup=0.5)
    assert of("table1_dvs_gesture_sdt") == policy | mixed | dict(label_smoothing=0.1)


# golden/architectures.json -> a row with IMP
COUNTED = {
    "in1k_sew_resnet18_224": "table3_sew_r18_imp_lts", "in1k_sew_resnet34_224": "table3_sew_r34_imp_lts",
    "in1k_sew_resnet50_224": "table3_sew_r50_imp_lts", "cifar_sew18_10": "figure4_cifar10_imp_lts",
    "vgg48_c10dvs_T10": "table2_cifar10dvs48_t10_imp", "vgg48_c10dvs_T8": "table2_cifar10dvs48_t8_imp_tet_s",
    "vgg48_ncal_T10": "table2_ncaltech48_t10_imp", "vgg11_c10dvs_128": "table2_cifar10dvs128_t16_imp",
    "vgg11_ncal_180x240": "table2_ncaltech128_t16_imp",
}  # fmt: skip
COUNTED_WEIGHTS = {  # rows without IMP
    "cifar_sew18_100": "table1_cifar100_sdt", "in100_sew18_224": "table1_imagenet100_sdt",
    "vgg11_gesture_tebn16_128": "table1_dvs_gesture_sdt",
}  # fmt: skip


def test_parameter_counts_are_exact():
    golden = json.loads((GOLDEN / "architectures.json").read_text())["architectures"]
    for architecture, name in (COUNTED | COUNTED_WEIGHTS).items():
        weights, imp = count_parameters(model_of(rows()[name]))
        facts = golden[architecture]
        assert (weights, imp) == (facts["weights"], facts["imp"] if architecture in COUNTED else 0)


# ---------------------------------------------------------------- partners

METHOD = ("name", "paper_row", "neuron.imp", "recipe.imp_", "loss.")  # what IMP and a loss change


@pytest.mark.parametrize("name", NAMES)
def test_baselines_differ_in_the_method_alone(name):
    config = rows()[name]
    for baseline in config.baselines:
        other = rows()[baseline]
        changed = [d.split(":")[0] for d in differing(other, config)]
        assert all(key.startswith(METHOD) for key in changed), changed
        assert other.neuron.imp <= config.neuron.imp
        assert (other.neuron.imp, other.loss.name) != (config.neuron.imp, config.loss.name)


def test_every_row_with_imp_or_a_new_loss_has_its_partner_without():
    for name, config in rows().items():
        method = (config.neuron.imp, config.loss.name)
        partners = {(rows()[b].neuron.imp, rows()[b].loss.name) for b in config.baselines}
        plain = {"tet_s": "tet", "lts": "sdt"}.get(method[1], method[1])
        if method[0]:
            assert (False, method[1]) in partners, f"{name} lacks its partner without IMP"
        if plain != method[1]:
            assert (method[0], plain) in partners, f"{name} lacks its partner with {plain}"
        if partners:  # the first one lacks all that the row adds
            first = rows()[config.baselines[0]]
            assert (first.neuron.imp, first.loss.name) in {(False, plain), (False, "sdt")}
        if config.paper_row and "code" in config.paper_row:
            assert not config.neuron.imp


# ---------------------------------------------------------------- fidelity


@pytest.mark.parametrize("name", ["table3_sew_r18_imp_lts", "table2_cifar10dvs48_t8_imp_tet_s", "table1_dvs_gesture_sdt",
                                  "table2_ncaltech128_t16_imp", "table1_cifar10_sdt"])  # fmt: skip
def test_described_is_the_papers_equations(name):
    published, described = rows()[name], rows("described")[name]
    n = described.neuron
    assert [n.reset, n.fire_at, n.surrogate, n.surrogate_width] == [
        "soft",
        "gt",
        "triangle",
        1.0,
    ] and not n.detach_reset
    assert n.imp_trainable and n.imp_weight_decay == 0
    assert described.dataset.channel_order == "rgb" and described.augment.cutmix_axes == "spatial"
    assert described.augment.label_smoothing == 0
    assert published.fidelity != "described" == described.fidelity
    assert described.name == name
    assert n.name == published.neuron.name and described.recipe.lr == published.recipe.lr


@pytest.mark.parametrize("name", NAMES)
def test_described_takes_the_input_whole(name):
    """h = (1 - tau) s + I: no row halves its input; where the family decays none, nothing is set."""
    published, described = rows()[name].neuron, rows("described")[name].neuron
    assert [getattr(n, "decay_input", None) for n in (published, described)] == (
        [True, False] if described.name == "lif" else [None, None]
    )
    neuron = build_neuron(**{k: v for k, v in options(described).items() if not k.startswith(("imp", "initial"))})
    charge, retain = neuron.law()[:2]
    assert charge == "if" or (charge == "leaky" and retain == {"lif": 0.5, "leaky": 0.25}[described.name])


# Rows of the paper's Table 2 and 3 whose code was released and runs; Table 1's all are.
RELEASED = {
    "table2_cifar10dvs48_t10_imp", "table2_cifar10dvs48_t10_imp_tet_s", "table2_cifar10dvs48_t8_imp_tet_s",
    "table2_ncaltech48_t10_imp", "table2_ncaltech48_t10_imp_tet_s", "table2_ncaltech128_t16_imp",
    "table2_ncaltech128_t16_imp_tet_s", "table3_sew_r18_lts", "code_imagenet100_lts",
    *(f"table3_sew_r{n}_{loss}" for n in (34, 50) for loss in ("sdt", "tet", "lts")),
}  # fmt: skip
CRASHING = {"table2_cifar10dvs128_t16_imp", "table2_cifar10dvs128_t16_imp_tet_s"} | {
    f"code_imagenet100_imp_{loss}" for loss in ("sdt", "tet", "lts")
}


def test_rows_without_code_that_runs_are_extended():
    """23 rows have no released configuration, 5 one that stops at its first step."""
    said = {name: config.fidelity for name, config in rows().items()}
    assert set(said.values()) == {"published", "extended"}
    extended = {name for name, word in said.items() if word == "extended"}
    assert extended == {n for n in NAMES if n not in RELEASED and not n.startswith("table1_")}
    assert len(extended - CRASHING) == 23 and extended > CRASHING
    for name in NAMES:
        head = (CONF_DIR / "experiment" / f"{name}.yaml").read_text()
        assert ("\n# Extended: " in head) == (name in extended)
        assert ("stops at its first step; this is" in head) == (name in CRASHING)
    for word in ("published", "described"):
        assert load_config(["experiment=figure4_cifar10_lts", f"fidelity={word}"]).fidelity == word


# ---------------------------------------------------------------- small parts


def test_labels_are_smoothed_after_mixing():
    augment = load_config(["experiment=table1_dvs_gesture_sdt"]).augment
    assert [type(t).__name__ for t in batch_transforms(augment, SETS["dvs_gesture"])][-2:] == ["Mix", "SmoothLabels"]
    x, generator = torch.zeros(2, 3, 4, 4), torch.Generator()
    _, target = SmoothLabels(4, 0.1)(x, torch.tensor([0, 3]), generator)
    assert torch.allclose(target[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))
    mixed = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert torch.allclose(SmoothLabels(4, 0.1)(x, mixed, generator)[1], torch.tensor([[0.475, 0.475, 0.025, 0.025]]))
    with pytest.raises(ConfigError, match="smooth twice"):
        load_config(["experiment=table2_cifar10dvs48_t10_imp_tet_s", "augment.label_smoothing=0.1"])
