"""`model.weights=RUN`: another training starts where a run ended."""

import logging

import pytest
import torch

from snn_repro.config import load_config
from snn_repro.models import build_model
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import fingerprint
from snn_repro.train import run
from snn_repro.trained import load_run


def network(**more):
    arguments = dict(num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if", "imp": True})
    return build_model("small", **(arguments | more))


def started(folder, **more):
    """(a network's state before and after it was started from a run, what was said)."""
    model, said = network(**more), []
    before = {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint.load_pretrained(model, checkpoint.find_weights(str(folder), None), said.append)
    return before, model.state_dict(), said[0]


def test_it_starts_from_the_weights_that_the_run_tests(digits):
    _, after, said = started(digits)
    tested, trained = load_run(digits).model.state_dict(), checkpoint.load(digits / checkpoint.LAST)["model"]
    assert all(torch.equal(after[k], v) for k, v in tested.items())
    assert not torch.equal(trained["fc.weight"], after["fc.weight"])  # that run averages its weights
    assert said == (
        f"weights from {digits / 'checkpoint_last.pt'}: {len(after)} of {len(after)} tensors; of epoch 2 of 2, averaged as the "
        "run tests them"
    )
    model = network()
    checkpoint.load_pretrained(model, checkpoint.find_weights(str(digits / checkpoint.LAST), None), lambda _: None)
    assert torch.equal(model.fc.weight, trained["fc.weight"])  # a file is taken as it is


def test_imp_is_left_out_where_the_network_learns_none(digits):
    tested = load_run(digits).model.state_dict()
    _, after, said = started(digits, neuron={"name": "if"})
    assert "sn1.imp" not in after and torch.equal(after["conv1.weight"], tested["conv1.weight"])
    assert "3 IMP tensors of the file are dropped" in said


def test_frames_of_another_size_change_imp_and_the_classifier_alone(digits):
    before, after, said = started(digits, input_shape=(1, 28, 28))
    tested = load_run(digits).model.state_dict()
    kept = {"sn1.imp", "sn2.imp", "sn3.imp", "fc.weight", "fc.bias"}
    for name, value in after.items():
        assert torch.equal(value, before[name] if name in kept else tested[name]), name
    assert "3 IMP tensors have another shape here" in said and "the classifier has another" in said


def test_a_run_goes_on_from_another_with_another_loss(digits, quick, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    with pytest.raises(checkpoint.CheckpointError, match="is a folder without checkpoint_last.pt"):
        run(quick(f"model.weights={tmp_path}", f"hydra.run.dir={tmp_path / 'no'}"))
    assert not (tmp_path / "no/checkpoint_last.pt").exists()
    config = quick(f"model.weights={digits}", "loss=sdt", "neuron=if", "recipe.epochs=1")
    result = run(config)
    assert f"weights from {digits / 'checkpoint_last.pt'}" in caplog.text
    assert set(result.data) == {"digits", "model.weights"} and result.data == fingerprint(config)
    assert run(config).acc_last == result.acc_last  # it knows itself again
    file = load_config([f"model.weights={digits / 'checkpoint_last.pt'}"])
    assert fingerprint(file)["model.weights"] == result.data["model.weights"]
