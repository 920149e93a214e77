"""A run's folder gives its network back."""

import copy
import functools
import json

import numpy as np
import pytest
import torch

from snn_repro.config import load_config, to_dict
from snn_repro.data import build_data
from snn_repro.errors import UserError
from snn_repro.train import run
from snn_repro.trained import load_run
from snn_repro.trained.command import split

SHORT = ["recipe.epochs=2", "debug.max_steps=2", "logger.mode=disabled"]


@pytest.mark.parametrize("more", [[], ["recipe.ema_decay=0.9"]])
def test_the_network_answers_as_it_did_in_the_run(tmp_path, more):
    config = load_config([*SHORT, *more])
    result = run(config, str(tmp_path))
    trained = load_run(tmp_path)
    assert trained.epoch == 2 and trained.result.acc_last == result.acc_last and not trained.model.training
    x, _ = next(iter(build_data(trained.config).test.epoch(0)))
    with torch.inference_mode():
        logits = trained.model(x)
    saved = np.load(tmp_path / "predictions.npz")["logits"]
    np.testing.assert_allclose(logits.transpose(0, 1), saved[: logits.shape[1]], atol=1e-5)
    assert load_run(tmp_path, weights="best").epoch in (1, 2)


def test_what_is_no_run_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is no run: give the folder"):
        load_run(tmp_path / "missing")
    with pytest.raises(UserError, match="is no run: it holds no config.yaml"):
        load_run(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="checkpoint_last.pt does not exist"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="weights=first must be one of: last, best"):
        load_run(tmp_path, weights="first")


CONFIG = to_dict(load_config())
FORGED = {
    "config": 3, "config.neuron": 3, "config.dataset": {"name": [1]}, "config.neuron.initial": [1], "epoch": "x", "ema": [1],
    "model": {"a": 1}, "model.fc.weight": torch.eye(2).to_sparse(),
}  # fmt: skip


@pytest.mark.parametrize("key", FORGED)
def test_a_forged_checkpoint_is_one_sentence(tmp_path, key):
    content = {"config": copy.deepcopy(CONFIG), "model": {}, "epoch": 1}
    first, *rest = key.split(".")
    at = functools.reduce(dict.__getitem__, [first, *rest][:-1], content) if first == "config" else content
    if first == "model" and rest:
        at, rest = content["model"], [key]
    at[rest[-1] if rest else first] = FORGED[key]
    torch.save(content, tmp_path / "checkpoint_last.pt")
    with pytest.raises(UserError) as error:
        load_run(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["runs/mine/recipe.lr=0.05/seed0", "recipe.lr=0.05/seed0"])
def test_a_folder_with_keys_in_its_name_is_the_run(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    if word.startswith("runs/"):  # mistyped: it is not there, and is still what was meant
        assert split(["timesteps=6", word]) == (word, ["timesteps=6"], set())
    (tmp_path / word).mkdir(parents=True)
    assert split(["timesteps=6", word, "--json"]) == (word, ["timesteps=6"], {"--json"})
    with pytest.raises(UserError, match="name the folder of a run"):
        split(["timesteps=6"])
