"""A configuration is what it was: results and checkpoints of earlier versions go on belonging to it."""

import json
from pathlib import Path

import pytest
import torch
from all_rows import rows

from snn_repro.config import ConfigError, checked, config_hash, differing, load_config, to_dict
from snn_repro.runs import checkpoint, sweeps

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = json.loads((GOLDEN / "old_config.json").read_text())  # of a run that was made when all choices had all keys
WORDS = ["dataset=digits_dvs", "neuron=lif", "loss=tet_s"]


def test_rows_and_choices_have_the_hashes_that_they_had():
    """config_hashes.json: of commands, as the version computed them that had a key for every setting of any choice."""
    golden = json.loads((GOLDEN / "config_hashes.json").read_text())
    found = {f"experiment={name}": config for name, config in rows().items()}
    for words, before in golden.items():
        assert config_hash(found.get(words) or load_config(words.split())) == before, words


def test_a_stored_configuration_is_that_of_the_same_command():
    now = load_config(WORDS)
    assert OLD["config"]["neuron"]["retain"] == 0.25 and OLD["config"]["recipe"]["imp_lr"] == 1.0
    assert not {"retain", "lam"} & {**now.neuron.own, **now.loss.own}.keys() and "imp_lr" not in to_dict(now)["recipe"]
    assert config_hash(OLD["config"]) == config_hash(now) == OLD["config_hash"]
    assert config_hash(OLD["config"], without=("seed",)) == config_hash(now, without=("seed",)) == OLD["recipe_hash"]
    assert differing(OLD["config"], now) == []
    former = to_dict(now)
    former["debug"]["profile"], former["model"]["conv_backend"] = True, "torch"
    assert checked(former) == now
    assert differing(OLD["config"], load_config([*WORDS, "neuron.imp_lr=2", "neuron.imp=true"])) == [
        "neuron.imp: False -> True", "neuron.imp_lr: 1.0 -> 2.0",
    ]  # fmt: skip
    other = {**OLD["config"], "recipe": OLD["config"]["recipe"] | {"imp_lr": 3.0}}
    assert differing(other, now) == ["recipe.imp_lr: 3.0 -> 1.0"]


def test_what_was_finished_is_done_and_what_was_begun_resumes(tmp_path):
    (job,) = sweeps.plan([*WORDS, f"hydra.sweep.dir={tmp_path}"])
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text(json.dumps(OLD))
    assert sweeps.is_finished(job)
    checkpoint.save(job.folder, {"config": OLD["config"], "model": {"w": torch.zeros(1)}, "epoch": 3})
    assert checkpoint.resume(job.folder, to_dict(job.config))["epoch"] == 3


def test_a_row_of_the_users_own_with_a_key_that_was_renamed_is_told_its_name():
    with pytest.raises(ConfigError, match="recipe.imp_lr is now called neuron.imp_lr; write neuron.imp_lr="):
        load_config(["+recipe.imp_lr=2"])
