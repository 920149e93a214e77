"""The recipes and the rows are those of the paper's released code, and every departure is a named key.

That no other key of a row moves, tests/config/test_hashes.py sees.
"""

import json
from pathlib import Path

import pytest
import torch
from all_rows import NAMES, model_of, rows

from snn_repro.build import options
from snn_repro.config import ConfigError, differing, load_config
from snn_repro.data.augment import batch_transforms
from snn_repro.data.augment.smooth_labels import SmoothLabels
from snn_repro.data.sets import SETS
from snn_repro.models import count_parameters
from snn_repro.neurons import build_neuron
from snn_repro.optim import build_schedule, lr_factor, parameter_groups

GOLDEN = Path(__file__).parents[1] / "golden"
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


# Weight decay of IMP where the row trains it; the rows not named here with "imp" in their name do not train it.
IMP_DECAY = {
    "table2_cifar10dvs48_t10_": 0.0, "table2_cifar10dvs48_t8_": 5e-4, "table2_ncaltech48_": 5e-4,
    "table2_cifar10dvs128_": 0.0, "table3_": 0.0, "figure4_": 0.0, "code_imagenet100_": 1e-4,
}  # fmt: skip


def longest(table: dict, name: str):
    """The value of the longest key that `name` begins with, or None."""
    found = [k for k in table if name.startswith(k)]
    return table[max(found, key=len)] if found else None


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
    recipe = config.recipe
    spared = set(recipe.no_decay)
    imp = dict(imp_lr=config.neuron.imp_lr, imp_weight_decay=config.neuron.imp_weight_decay)
    groups = {g["kind"]: g for g in parameter_groups(model, recipe, **imp)}
    kind = kinds(model)
    assert {kind[p] for p in groups["decay"]["params"]} == set(kind.values()) - spared - {"imp"}
    assert groups["decay"]["weight_decay"] == recipe.weight_decay
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
    assert {g["lr"] for g in groups.values()} == {recipe.lr}
    grouped = [p for g in groups.values() for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in kind)


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


def test_labels_are_smoothed_after_mixing():
    augment = load_config(["experiment=table1_dvs_gesture_sdt"]).augment
    assert [type(t).__name__ for t in batch_transforms(augment, SETS["dvs_gesture"])][-2:] == ["Mix", "SmoothLabels"]
    x, generator = torch.zeros(2, 3, 4, 4), torch.Generator()
    _, target = SmoothLabels(4, 0.1)(x, torch.tensor([0, 3]), generator)
    assert torch.allclose(target[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))
    mixed = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert torch.allclose(SmoothLabels(4, 0.1)(x, mixed, generator)[1], torch.tensor([[0.475, 0.475, 0.025, 0.025]]))
    with pytest.raises(ConfigError, match="smooth labels twice"):
        load_config(["experiment=table2_cifar10dvs48_t10_imp_tet_s", "augment.label_smoothing=0.1"])
