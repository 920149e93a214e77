"""Methods of others: each row is what its authors' code says, and its twin differs from a row of the paper in the method alone."""

import json
import sys

import pytest
import torch
from all_rows import COMPARED, NAMES, PAPER, compared_rows, rows

from snn_repro.build import options
from snn_repro.config import CONF_DIR, differing, frame_shape, keys, load_config
from snn_repro.data.sets import SETS
from snn_repro.models import build_model
from snn_repro.neurons import NEURONS, build_neuron
from snn_repro.paper.rows import compared
from snn_repro.train import run

sys.path.insert(0, str(CONF_DIR.parent / "scripts"))
import list_rows  # noqa: E402

TWINS = [name for name in COMPARED if name.endswith("_same_recipe")]
PUBLISHED = [name for name in COMPARED if name not in TWINS]

# Of the authors' own repositories: network, neuron, loss, T, frame (pixels), split, epochs, batch, optimiser, lr, weight decay.
FACTS = {
    # Ikarosy/Gated-LIF: cifar10dvs/train.py, README: -epochs 200 -T 16 -lr 0.01 -b 32 --dsr_da (48 pixels); train.py
    "table2_cifar10dvs48_glif": ("wide_7b", "glif", "sdt", 16, 48, "front90", 200, 32, "sgd", 0.01, 0),
    "table3_glif_r34": ("spiking_resnet34", "glif", "sdt", 4, 224, "official", 150, 400, "sgd", 0.1, 4e-5),
    # Intelligent-Computing-Lab-Yale/NDA_SNN: the defaults of main.py; LIFSpike and tdBatchNorm of models/layers.py
    "table2_cifar10dvs48_nda": ("vgg128", "leaky", "sdt", 10, 48, "tail", 200, 256, "adam", 1e-3, 1e-4),
    "table2_cifar10dvs128_nda": ("vgg128", "leaky", "sdt", 10, 128, "tail", 200, 256, "adam", 1e-3, 1e-4),
    "table2_ncaltech48_nda": ("vgg128", "leaky", "sdt", 10, 48, "seeded", 200, 256, "adam", 1e-3, 1e-4),
    "table2_ncaltech128_nda": ("vgg128", "leaky", "sdt", 10, 128, "seeded", 200, 256, "adam", 1e-3, 1e-4),
    # Gus-Lab/temporal_efficient_training: the defaults of main_training_parallel.py, lambda 1e-3
    "table2_cifar10dvs48_tet": ("vggsnn", "leaky", "tet", 10, 48, "tail", 150, 128, "adam", 1e-3, 0),
    # ChaotengDuan/TEBN: main.py, DVSCifar10 of dataloader.py; its VGGSNN: Parallel-Spiking-Neuron, cifar10dvs/models.py
    "table2_cifar10dvs48_tebn": ("vgg48", "leaky", "sdt", 10, 48, "tebn", 200, 64, "sgd", 0.02, 5e-4),
    # fangwei123456/Parallel-Spiking-Neuron: cifar10dvs/run_cmd.txt, train_vgg.py; imagenet/readme.md
    "table2_cifar10dvs48_psn": ("vgg48", "sliding_psn", "tet", 10, 48, "tebn", 200, 32, "sgd", 0.1, 5e-4),
    "table3_psn_r18": ("sew_resnet18", "psn", "tet", 4, 224, "official", 320, 512, "sgd", 0.1, 0),
    "table3_psn_r34": ("sew_resnet34", "psn", "tet", 4, 224, "official", 320, 256, "sgd", 0.1, 0),
    # fangwei123456/Parametric-Leaky-Integrate-and-Fire-Spiking-Neuron: README, the defaults of codes/train.py
    "table2_cifar10dvs128_plif": ("plif_net_dvs", "plif", "mse", 20, 128, "front90", 512, 16, "adam", 1e-3, 0),
    # fangwei123456/Spike-Element-Wise-ResNet: origin_logs/*/args.txt
    "table2_cifar10dvs128_sew": ("wide_7b", "plif", "sdt", 16, 128, "front90", 64, 16, "sgd", 0.01, 0),
    **{
        f"table3_sew_r{n}": (f"sew_resnet{n}", "if", "sdt", 4, 224, "official", 320, 256, "sgd", 0.1, 0)
        for n in (18, 34, 50, 101, 152)
    },
    # ZK-Zhou/spikformer: the defaults of cifar10dvs/train.py; imagenet/imagenet.yml, eight processes in the README
    "table2_cifar10dvs128_spikformer_t10": ("spikformer", "lif", "sdt", 10, 128, "front90", 96, 16, "adamw", 1e-3, 0.06),
    "table2_cifar10dvs128_spikformer_t16": ("spikformer", "lif", "sdt", 16, 128, "front90", 96, 16, "adamw", 1e-3, 0.06),
    "table3_spikformer_6_512": ("spikformer", "lif", "sdt", 4, 224, "official", 300, 192, "adamw", 5e-4, 0.05),
    "table3_spikformer_8_512": ("spikformer", "lif", "sdt", 4, 224, "official", 300, 192, "adamw", 5e-4, 0.05),
    # ridgerchu/TCJA: README, src/caltech101.py
    "table2_ncaltech48_tcja": ("tcja", "lif", "mse", 14, (180, 240), "front90", 1024, 16, "adam", 1e-3, 0),
    # Brain-Cog-Lab/TKS: README, the defaults of train_main.py; its lr is 5e-3 * 128 / 1024
    "table2_ncaltech48_tks": ("vggsnn", "lif", "tks", 10, 48, "front90_rounded", 600, 128, "adamw", 6.25e-4, 0.01),
    # myuansun/EventRPG: the defaults of snn_train.py for NCaltech101 with vgg11, TET_loss with lambda 1e-3
    "table2_ncaltech128_eventdrop": ("vggsnn", "leaky", "tet", 10, 128, "seeded", 100, 16, "adam", 1e-3, 0),
    "table2_ncaltech128_eventrpg": ("vggsnn", "leaky", "tet", 10, 128, "seeded", 100, 16, "adam", 1e-3, 0),
}  # fmt: skip
# What else a method's own code settles, key by key, from the same files.
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
        for name in FACTS
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


def test_every_row_as_published_stands_in_the_tables_of_facts():
    assert sorted(FACTS) == sorted(DETAILS) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_as_published_is_what_its_authors_code_says(name):
    c = compared_rows()[name]
    network, neuron, loss, timesteps, size, *rest = FACTS[name]
    assert (c.model.name, c.neuron.name, c.loss.name, c.timesteps) == (network, neuron, loss, timesteps)
    assert frame_shape(c)[1:] == (size if isinstance(size, tuple) else (size, size))
    r = c.recipe
    assert [c.dataset.split, r.epochs, r.batch_size, r.optimizer, r.lr, r.weight_decay] == rest
    assert r.schedule == "cosine" and r.momentum == 0.9 and not r.clip_norm
    for key, value in DETAILS[name].items():
        part, _, last = key.partition(".")
        assert getattr(getattr(c, part), last) == value, key
    row = {p.id: p for p in PAPER}[name]
    assert c.paper_row == name and row.dataset == c.dataset.name and c.baselines == [] and not row.own
    # the table's T is another one where a caveat says so
    assert (row.T == c.timesteps) != any(caveat.startswith("T") and caveat[1] in ": " for caveat in c.caveats)


# ---------------------------------------------------------------- twins

# What a twin changes of the row that it is compared with; a name ends in _same_recipe.
MAY_CHANGE = {
    "neuron": (
        "table2_cifar10dvs48_glif", "table2_cifar10dvs48_psn", "table2_cifar10dvs128_plif", "table2_cifar10dvs128_klif",
        "table2_ncaltech48_esp", "table3_psn_r18", "table3_psn_r34", "table3_glif_r34", "rivals_cifar10dvs48_trsg",
        "rivals_cifar10dvs48_mp_init_trsg",
    ),
    "neuron.initial": ("rivals_cifar10dvs48_mp_init", "rivals_sew_r34_mp_init", "rivals_cifar10_mp_init"),
    "neuron.surrogate": ("table2_cifar10dvs128_dspike", "table3_dspike_r34"),
    "model": ("table2_cifar10dvs128_sew", "table2_cifar10dvs128_spikformer_t16", "table2_ncaltech48_tcja"),
    "model.norm": ("table3_tebn_r34",),
    "loss": (
        "table2_cifar10dvs48_tet", "table2_ncaltech48_tks",
        *(f"rivals_{row}_{loss}" for row in ("cifar10dvs48", "sew_r34", "cifar10") for loss in ("strong2weak", "weak2strong")),
    ),
    "augment": (
        "table2_cifar10dvs48_nda", "table2_cifar10dvs128_nda", "table2_ncaltech48_nda", "table2_ncaltech48_eventmix",
        "table2_ncaltech128_nda", "table2_ncaltech128_eventdrop", "table2_ncaltech128_eventrpg",
    ),
}  # fmt: skip
ABOUT = {f"{name}_same_recipe": part for part, names in MAY_CHANGE.items() for name in names}


def test_every_twin_stands_in_the_table_of_what_it_changes():
    assert sorted(ABOUT) == sorted(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_the_method_alone(name):
    config, part = compared_rows()[name], ABOUT[name]
    base = rows()[config.baselines[0]]
    changed = {d.split(":")[0] for d in differing(base, config)} - {"name", "paper_row"}
    assert changed and all(f"{key}.".startswith((f"{part}.", "neuron.surrogate_" if "surrogate" in part else f"{part}."))
                           for key in changed), changed  # fmt: skip
    assert config.dataset == base.dataset and config.recipe == base.recipe and config.timesteps == base.timesteps
    if part == "neuron" and not name.removesuffix("_same_recipe").endswith(("trsg", "esp")):  # these have their own
        shared = ("surrogate", "surrogate_width", "fire_at")
        assert [getattr(config.neuron, k) for k in shared] == [getattr(base.neuron, k) for k in shared]
    assert config.paper_row is None and config.fidelity == "extended"
    assert all(b in (*NAMES, *TWINS) for b in config.baselines) and set(base.caveats) <= set(config.caveats)


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


# ---------------------------------------------------------------- what is quoted, and what nothing reproduces


def test_each_quoted_number_has_a_row_or_a_reason():
    quoted = [row for row in PAPER if not row.own and row.table != "code"]
    assert {row.id for row in quoted if not row.absent} == set(PUBLISHED)
    assert not any(row.absent for row in PAPER if row.own)
    for row in quoted:  # a reason that points to a row points to one that is
        for word in row.absent.replace(",", " ").split():
            assert not word.startswith(("table", "rivals_")) or word in (*NAMES, *COMPARED), word
    assert len(quoted) - len(PUBLISHED) == 21 and len(PUBLISHED) == 26
    (unidentified,) = [row.id for row in quoted if row.absent.startswith("unidentified")]
    assert unidentified == "table2_ncaltech128_str"


@pytest.mark.parametrize("name", COMPARED)
def test_the_file_says_what_it_is(name):
    config, text = compared_rows()[name], (CONF_DIR / "experiment" / f"{name}.yaml").read_text()
    first, *lines = text.splitlines()
    assert first == "# @package _global_" and config.name == name and compared(name, PAPER)
    head = "\n".join(line for line in lines if line.startswith("#"))
    for word in ("# Claim: ", "# Cost: ", f"# Run: python -m snn_repro.train experiment={name} "):
        assert word in head
    assert ("# Extended: " in head) == (name in TWINS) and ("# Source: github.com/" in head) == (name in PUBLISHED)
    caltech = {"front90": 7886, "front90_rounded": 7839} if config.dataset.name == "ncaltech101" else {}
    n = caltech.get(config.dataset.split, SETS[config.dataset.name].samples[0])
    steps = n // config.recipe.batch_size if config.recipe.drop_last else -(-n // config.recipe.batch_size)
    epochs = config.recipe.epochs
    assert f"{epochs} epochs of {n:,} " in head and f"T={config.timesteps} ({steps * epochs:,} " in head
    assert ("# unspecified: " in head) == bool(config.unspecified) and set(config.unspecified) <= keys().keys()
    assert ("prepare_data.py" in head) == (not SETS[config.dataset.name].static)
    unknown = bool(caltech) and config.dataset.split != "front90"  # which recordings they tested
    assert any("test list" in caveat for caveat in config.caveats) == unknown
    twin = f"{name}_same_recipe"
    assert (twin in head or f"{name.rsplit('_', 1)[0]}_t16_same_recipe" in head) if twin in TWINS else True


def test_the_list_shows_every_row_of_tables_2_and_3(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for table in (2, 3):
        assert list_rows.main(["--table", str(table), "--json"]) == 0
        lines = json.loads(capsys.readouterr().out)
        assert {row.id for row in PAPER if row.table == table} <= {line["paper_row"] for line in lines}
        nothing = [line for line in lines if line["experiment"] is None]
        assert nothing and all(line["missing"] and line["command"] is None for line in nothing)
    assert list_rows.main(["--table", "2"]) == 0
    text = capsys.readouterr().out
    assert "(table2_ncaltech128_str)" in text and "unidentified: no text found has STR" in text
    assert "6 quoted numbers without a row" in text
    assert list_rows.main(["--table", "2", "--commands"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len([n for n in (*NAMES, *COMPARED) if n.startswith("table2_")])
    assert list_rows.main(["--table", "2", "--own", "--json"]) == 0
    assert {line["experiment"] for line in json.loads(capsys.readouterr().out)} == {n for n in NAMES if "table2_" in n}
    assert list_rows.main(["--table", "rivals", "--csv"]) == 0
    assert "rivals_sew_r34_strong2weak_same_recipe" in capsys.readouterr().out


def test_the_papers_equations_are_about_its_own_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list_rows.main(["--table", "rivals", "--json", "fidelity=described"]) == 0
    assert json.loads(capsys.readouterr().out) == []


QUICK = "table2_cifar10dvs48_glif table2_cifar10dvs128_plif table3_tebn_r34_same_recipe table2_ncaltech48_tcja".split()
# Parameters of the networks that the authors' code builds: cifar10dvs/smodels.py at T=16; codes/models.py
COUNTS = {"table2_cifar10dvs48_glif": 1_236_298, "table2_cifar10dvs128_plif": 17_427_718}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in COMPARED])
def test_the_network_is_built(name):
    """On the meta device, so that it costs neither memory nor draws."""
    c = compared_rows()[name]
    neuron = {k: v for k, v in options(c.neuron).items() if k not in ("imp_lr", "imp_weight_decay")}
    with torch.device("meta"):
        model = build_model(
            c.model.name, num_classes=SETS[c.dataset.name].num_classes, input_shape=frame_shape(c), timesteps=c.timesteps,
            neuron=neuron, **options(c.model, "name", "weights"),
        )  # fmt: skip
    params = {row.id: row.params_M for row in PAPER}.get(name)
    count = sum(p.numel() for p in model.parameters())
    assert count == COUNTS.get(name, count)
    counted = count / 1e6
    assert params is None or abs(counted - params) < (0.3 if "glif" in name else 0.03), counted


@pytest.mark.slow
@pytest.mark.parametrize("neuron", NEURONS)
def test_each_neuron_learns_the_digits_as_each_row_sets_it(neuron, tmp_path):
    """Once for every surrogate, threshold, reset and initial state; as published where no row has it."""
    words = ["dataset=digits", f"neuron={neuron}", "loss=sdt", "recipe.epochs=5", "logger.mode=disabled"]
    neurons = {"default": load_config(words).neuron} | {row: c.neuron for row, c in compared_rows().items()}
    distinct = {json.dumps(options(n)): row for row, n in neurons.items() if n.name == neuron}
    accuracies = {}
    for row in distinct.values():
        config = load_config(words)
        config.neuron = neurons[row]
        accuracies[row] = run(config, str(tmp_path / row)).acc_last
    assert min(accuracies.values()) > 0.9, accuracies
