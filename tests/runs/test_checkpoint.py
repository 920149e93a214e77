"""Checkpoints: whole or not at all, damage is found, a foreign one is refused with the key that differs."""

import argparse
import copy
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from snn_repro.config import load_config, to_dict
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.runs import checkpoint

CONFIG = to_dict(load_config())


def content(epoch: int, **config) -> dict:
    plain = copy.deepcopy(CONFIG)
    plain["recipe"] |= config
    return dict(epoch=epoch, config=plain, model={"w": torch.arange(5000.0) + epoch})


def small(**more):
    arguments = dict(num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if", "imp": True})
    return build_model("small", **(arguments | more))


def resnet(name, imp=True):
    neuron = {"name": "if", "imp": imp}
    return build_model(name, num_classes=5, input_shape=(3, 32, 32), timesteps=2, neuron=neuron)


def test_the_newest_sound_checkpoint_is_taken(tmp_path):
    assert checkpoint.resume(tmp_path, CONFIG) is None
    checkpoint.save(tmp_path, content(1))
    checkpoint.save(tmp_path, content(2))
    assert checkpoint.resume(tmp_path, CONFIG)["epoch"] == 2 and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damage_is_found_and_the_previous_one_is_used(tmp_path, damage):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, content(epoch))
    last = tmp_path / checkpoint.LAST
    data = bytearray(last.read_bytes())
    os.unlink(last)  # it may share its bytes with another name
    if damage == "flip":
        data[len(data) // 2] ^= 1
    last.write_bytes({"truncate": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    said = []
    assert checkpoint.resume(tmp_path, CONFIG, said.append)["epoch"] == 1
    assert len(said) == 1 and str(last) in said[0] and "epoch 1" in said[0]
    (tmp_path / checkpoint.PREVIOUS).write_bytes(b"")
    with pytest.raises(UserError, match="resume=never"):
        checkpoint.resume(tmp_path, CONFIG, said.append)


def test_another_configuration_is_refused_by_key(tmp_path):
    checkpoint.save(tmp_path, content(1, lr=0.7))
    with pytest.raises(UserError, match="recipe.lr: 0.7 -> 0.005"):
        checkpoint.resume(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "change, hint",
    [
        (dict(input_shape=(1, 12, 12)), "same frame size"),
        (dict(num_classes=3), "another model"),
        (dict(neuron={"name": "if"}), "imp.*this model lacks"),
    ],
)
def test_weights_of_another_model_are_named(change, hint):
    with pytest.raises(UserError, match=hint):
        checkpoint.load_model(small(**change), small().state_dict(), "x.pt")


def test_tebn_is_tied_to_timesteps():
    with torch.device("meta"):
        ten, eight = (small(timesteps=t, norm="tebn") for t in (10, 8))
    with pytest.raises(UserError, match="same timesteps"):
        checkpoint.load_model(eight, ten.state_dict(), "x.pt")


def test_pretrained_weights_of_torchvision_keep_imp_and_foreign_heads(tmp_path):
    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "tv.pt")
    model = resnet("sew_resnet18")
    imp, head, said = model.sn1.imp.clone(), model.fc.weight.clone(), []
    checkpoint.load_pretrained(model, tmp_path / "tv.pt", said.append)
    assert torch.equal(model.sn1.imp, imp) and torch.equal(model.fc.weight, head)
    assert torch.equal(model.conv1.weight, torch.load(tmp_path / "tv.pt", weights_only=True)["conv1.weight"])
    assert "classifier" in said[0] and "IMP" in said[0]
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "no.pt")
    with pytest.raises(UserError, match="another model"):
        checkpoint.load_pretrained(model, tmp_path / "no.pt")
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_pretrained(model, tmp_path / "gone.pt")


def test_imp_of_another_shape_and_a_classifier_of_other_classes_keep_their_start(tmp_path):
    theirs, said = small(num_classes=3), []
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    ours = small(neuron={"name": "if", "initial": "imp_channel"})
    before, given = {k: v.clone() for k, v in ours.state_dict().items()}, theirs.state_dict()
    checkpoint.load_pretrained(ours, tmp_path / "x.pt", said.append)
    kept = {"sn1.imp", "sn2.imp", "sn3.imp", "fc.weight", "fc.bias"}
    assert all(torch.equal(v, before[k] if k in kept else given[k]) for k, v in ours.state_dict().items())
    assert f": {len(given) - 5} of {len(given)} tensors; 3 IMP tensors have another shape here" in said[0]
    ours = small(num_classes=3)
    checkpoint.load_pretrained(ours, tmp_path / "x.pt", said.append)
    assert torch.equal(ours.sn1.imp, theirs.sn1.imp) and said[1].endswith(f"{len(given)} of {len(given)} tensors")


def as_its_authors_write_it(ours, connect_f="ADD", downsample="downsample.0"):
    """The content of a checkpoint of SEW-ResNet's authors: containers of two modules, and the command line."""
    weights = {}
    for name, value in ours.state_dict().items():
        name = re.sub(r"downsample\.(\d)", rf"{downsample}.module.\1", name)
        name = re.sub(r"^(layer.*)conv(\d)", r"\1conv\2.module.0", name)
        weights[re.sub(r"^(layer.*)bn(\d)", r"\1conv\2.module.1", name)] = value
    command_line = argparse.Namespace(model="sew_resnet", connect_f=connect_f, T=4, output_dir="./logs", adam=False)
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 320).state_dict()
    return {"model": weights, "optimizer": optimizer.state_dict(), "lr_scheduler": schedule, "epoch": 319, "args": command_line}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "downsample"),
    [
        ("sew_resnet18", "downsample.0"),
        pytest.param("sew_resnet50", "downsample.0", marks=pytest.mark.slow),
        pytest.param("spiking_resnet34", "downsample", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_of_sew_resnets_authors_start_a_network(name, downsample, tmp_path):
    theirs, ours, said = resnet(name, imp=False), resnet(name), []
    content = as_its_authors_write_it(theirs, downsample=downsample)
    assert "layer1.0.conv1.module.1.running_mean" in content["model"]
    assert f"layer2.0.{downsample}.module.0.weight" in content["model"]
    torch.save(content, tmp_path / "checkpoint_319.pth")
    checkpoint.load_pretrained(ours, tmp_path / "checkpoint_319.pth", said.append)
    own = ours.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in theirs.state_dict().items())
    layers = sum(key.endswith(".imp") for key in own)
    assert said == [
        f"weights from {tmp_path / 'checkpoint_319.pth'}: {len(own) - layers} of {len(own)} tensors; {layers} IMP tensors are "
        "not in it and keep their random initial values; their authors' network has a max-pool stem and hard resets: "
        + ("model.stem_pool=max " if name.startswith("sew") else "") + "neuron.reset=hard"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "ours", "options", "message"),
    [
        ("sew_resnet34", "sew_resnet18", {}, "holds 'layer1.2.bn1.bias', which this model lacks"),
        ("sew_resnet34", "spiking_resnet34", {}, "'layer2.0.downsample.0.weight', which this model needs"),
        ("sew_resnet18", "sew_resnet18", dict(connect_f="IAND"), "joined by IAND, ours by ADD"),
    ],
)  # fmt: skip
def test_published_weights_of_another_network_are_named(theirs, ours, options, message, tmp_path):
    with torch.device("meta"):
        ours, theirs = resnet(ours, imp=False), resnet(theirs, imp=False)
    content = as_its_authors_write_it(theirs, **options)
    content["model"] = {name: torch.zeros(()).expand(value.shape) for name, value in content["model"].items()}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(checkpoint.CheckpointError, match=message) as error:
        checkpoint.load_pretrained(ours, tmp_path / "x.pth")
    assert "x.pth" in str(error.value) and "another model" in str(error.value)


def test_a_command_line_is_the_only_object_in_a_checkpoint_and_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for value in (argparse.Namespace(path=Path("x")), Evil()):
        torch.save({"model": {}, "args": value}, tmp_path / "x.pth")
        with pytest.raises(UserError, match="damaged or no checkpoint"):
            checkpoint.load(tmp_path / "x.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals() and not (tmp_path / "ran").exists()


def test_random_generators_continue_where_they_were(tmp_path):
    checkpoint.save(tmp_path, content(1) | {"rng": checkpoint.rng_state()})
    first = torch.rand(3), np.random.rand(3).tolist(), random.random()
    checkpoint.set_rng_state(checkpoint.load(tmp_path / checkpoint.LAST)["rng"])
    again = torch.rand(3), np.random.rand(3).tolist(), random.random()
    assert torch.equal(first[0], again[0]) and first[1:] == again[1:]
