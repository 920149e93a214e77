"""Methods of others: each row is what its authors' code says, and its twin differs from a row of the paper in the method alone."""

import pytest
import torch
from all_rows import COMPARED, NAMES, PAPER, compared_rows, model_of, rows

from snn_repro.build import options
from snn_repro.config import differing, frame_shape
from snn_repro.neurons import build_neuron

TWINS = [name for name in COMPARED if name.endswith("_same_recipe")]
PUBLISHED = [name for name in COMPARED if name not in TWINS]

# What a method's own code settles, key by key, beside docs/paper_and_code_recipes.md, which has every row with its file.
DETAILS = {
    "table2_cifar10dvs48_glif": {
        "augment.crop_padding": 4, "recipe.drop_last": True, "neuron.v_threshold": 0.99999, "neuron.decay": 0.5,
        "neuron.conduct_init": 0.9, "neuron.surrogate": "rectangle", "model.pool": "avg", "model.unpooled": 3,
    },
    "table3_glif_r34": {"model.norm": "bn", "recipe.sync_bn": True, "augment.rrc_min_area": 0.2, "neuron.decay": 0.25},
    **{
        name: {
            "model.norm": "tdbn", "neuron.v_threshold": 0.5, "neuron.retain": 0.25, "neuron.reset": "hard", "neuron.fire_at": "ge",
            "neuron.surrogate": "rectangle", "neuron.surrogate_width": 1.0, "augment.nda": True, "recipe.no_decay": [],
            "model.conv_init": "fan_out",
        }
        for name in PUBLISHED
        if name.endswith("_nda")
    },
    "table2_cifar10dvs48_tet": {"loss.lam": 1e-3, "neuron.retain": 0.5, "augment.flip": 0.5},
    "table2_cifar10dvs48_tebn": {"model.norm": "tebn", "model.dropout": 0.25, "augment.crop_padding": 4, "augment.flip": 0.5, "recipe.no_decay": []},
    "table2_cifar10dvs48_psn": {"loss.lam": 1e-3, "neuron.order": 2, "model.norm": "bn", "model.dropout": 0.25, "recipe.accumulate": 2},
    "table3_psn_r18": {"loss.lam": 0.0, "model.stem_pool": "avg", "model.weights": "resnet18-f37072fd.pth", "recipe.accumulate": 8},
    "table3_psn_r34": {"loss.lam": 0.0, "model.stem_pool": "avg", "model.weights": "resnet34-b627a593.pth", "recipe.accumulate": 8},
    "table2_cifar10dvs128_plif": {"neuron.tau": 2.0, "neuron.detach_reset": True, "model.voters": 10, "model.hidden": 2048},
    "table2_cifar10dvs128_sew": {"neuron.tau": 2.0, "neuron.detach_reset": True},
    **{
        f"table3_sew_r{n}": {
            "model.stem_pool": "max", "model.weights": None, "neuron.reset": "hard", "neuron.detach_reset": True,
            "neuron.surrogate": "atan", "recipe.accumulate": 8,
        }
        for n in (18, 34, 50, 101, 152)
    },
    **{
        f"table2_cifar10dvs128_spikformer_t{t}": {
            "model.embed_dims": 256, "model.depths": 2, "model.num_heads": 16, "model.scale": 0.25,
            "augment.mixup": 0.5, "augment.mix_prob": 0.5, "augment.label_smoothing": 0.1,
            "recipe.warmup_epochs": 10, "neuron.reset": "hard", "neuron.detach_reset": True, "recipe.drop_last": True,
        }
        for t in (10, 16)
    },
    **{
        f"table3_spikformer_{depth}_512": {
            "model.embed_dims": 512, "model.depths": depth, "model.scale": 0.125, "augment.mixup": 0.8,
            "augment.cutmix": 1.0, "augment.randaugment_level": 9, "augment.label_smoothing": 0.1,
            "recipe.warmup_epochs": 20, "recipe.min_lr": 1e-5, "recipe.drop_last": True,
        }
        for depth in (6, 8)
    },
    "table2_ncaltech48_tcja": {"neuron.tau": 2.0, "neuron.surrogate": "atan", "neuron.detach_reset": True, "recipe.drop_last": True},
    "table2_ncaltech48_tks": {
        "loss.alpha": 0.7, "loss.temperature": 3.0, "neuron.v_threshold": 0.5, "neuron.tau": 2.0, "neuron.fire_at": "gt",
        "neuron.surrogate": "triangle", "neuron.surrogate_width": 0.5, "recipe.warmup_epochs": 5, "dataset.integrate_by": "braincog",
        "recipe.drop_last": True, "recipe.class_balanced": True,
    },
    "table2_ncaltech128_eventdrop": {"loss.lam": 1e-3, "neuron.retain": 0.5, "augment.eventdrop": True, "augment.eventdrop_area": "eventrpg"},
    "table2_ncaltech128_eventrpg": {"loss.lam": 1e-3, "neuron.retain": 0.5, "augment.rpg_mix": 0.5, "augment.rpg_drop": 0.1},
}  # fmt: skip


def test_every_row_as_published_stands_in_the_table_of_facts():
    assert sorted(DETAILS) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_as_published_is_what_its_authors_code_says(name):
    c = compared_rows()[name]
    size = (180, 240) if "tcja" in name else 2 * (224 if "table3" in name else 48 if "48_" in name else 128,)
    assert frame_shape(c)[1:] == size
    assert c.recipe.schedule == "cosine" and c.recipe.momentum == 0.9 and not c.recipe.clip_norm
    for key, value in DETAILS[name].items():
        part, _, last = key.partition(".")
        assert getattr(getattr(c, part), last) == value, key
    row = {p.id: p for p in PAPER}[name]
    assert c.paper_row == name and row.dataset == c.dataset.name and c.baselines == [] and not row.own
    # the table's T is another one where a caveat says so
    assert (row.T == c.timesteps) != any(caveat.startswith("T") and caveat[1] in ": " for caveat in c.caveats)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_data_and_the_recipe_of_its_baseline(name):
    """That it changes nothing but what docs/sources.yaml says, tests/docs/test_paper_and_code.py sees."""
    config = compared_rows()[name]
    base = rows()[config.baselines[0]]
    assert config.dataset == base.dataset and config.recipe == base.recipe and config.timesteps == base.timesteps
    if config.neuron.name not in (base.neuron.name, "trsg", "lifb", "qb_lif"):
        shared = ("surrogate", "surrogate_width", "fire_at")  # those three have their own
        assert [getattr(config.neuron, k) for k in shared] == [getattr(base.neuron, k) for k in shared]
    assert config.paper_row is None and config.fidelity == "extended" and set(base.caveats) <= set(config.caveats)


def test_the_bursts_of_esps_twin_are_all_that_it_adds():
    """Without bursts, which begin above h = 2, it spikes as its baseline does: leak, input, threshold and reset are the same."""
    pair = compared_rows()["table2_ncaltech48_esp_same_recipe"], rows()["table2_ncaltech48_t10_tet"]
    twin, base = (build_neuron(**options(row.neuron, "imp_lr", "imp_weight_decay")) for row in pair)
    x = 3.5 * torch.rand(10, 400, generator=torch.Generator().manual_seed(0)).double() - 2
    spikes = twin(x), base(x)
    assert torch.equal(*spikes) and 0.1 < spikes[0].mean() < 0.9 and twin.detach_reset == base.detach_reset


def test_baselines_of_more_than_one_step_lack_one_part_each():
    both = compared_rows()["rivals_cifar10dvs48_mp_init_trsg_same_recipe"]
    trsg, mp_init = (compared_rows()[name] for name in both.baselines[1:])
    assert {d.split(":")[0] for d in differing(trsg, both)} == {"name", "neuron.initial"}
    assert mp_init.neuron.initial == both.neuron.initial == "mp_init" != trsg.neuron.initial


def test_each_quoted_number_has_a_row_or_a_reason():
    quoted = [row for row in PAPER if not row.own and row.table != "code"]
    assert {row.id for row in quoted if not row.absent} == set(PUBLISHED)
    assert not any(row.absent for row in PAPER if row.own)
    for row in quoted:  # a reason that points to a row points to one that is
        for word in row.absent.replace(",", " ").split():
            assert not word.startswith(("table", "rivals_")) or word in (*NAMES, *COMPARED), word
    assert len(quoted) - len(PUBLISHED) == 27 and len(PUBLISHED) == 26
    (unidentified,) = [row.id for row in quoted if row.absent.startswith("unidentified")]
    assert unidentified == "table2_ncaltech128_str"


QUICK = "table2_cifar10dvs48_glif table2_cifar10dvs128_plif table3_tebn_r34_same_recipe table2_ncaltech48_tcja".split()
# Parameters of the networks that the authors' code builds: cifar10dvs/smodels.py at T=16; codes/models.py
COUNTS = {"table2_cifar10dvs48_glif": 1_236_298, "table2_cifar10dvs128_plif": 17_427_718}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in COMPARED])
def test_the_network_has_the_parameters_that_are_printed(name):
    count = sum(p.numel() for p in model_of(compared_rows()[name]).parameters())
    assert count == COUNTS.get(name, count)
    printed = {row.id: row.params_M for row in PAPER}.get(name)
    assert printed is None or abs(count / 1e6 - printed) < (0.3 if "glif" in name else 0.03), count
