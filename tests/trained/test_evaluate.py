"""A finished run is tested again: as it was to the last sample, and otherwise in what was asked for alone."""

import json
import shutil

import numpy as np
import pytest
import torch

from snn_repro import outside
from snn_repro.data.sets import SETS, register
from snn_repro.data.sets import digits as embedded
from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.trained import evaluate, load_run
from snn_repro.trained.evaluate import calibration, confusion_matrix, early_exit, evaluate_run, running_scores

SAME = ("acc", "loss", "acc_step", "acc_cum", "firing_rates")


@pytest.mark.parametrize("which", ["digits", "recorded"])
@pytest.mark.parametrize("weights", ["last", "best"])
def test_with_nothing_else_said_it_is_the_runs_own_test(which, weights, request):
    folder = request.getfixturevalue(which)
    run = load_run(folder, weights)
    found, result = evaluate_run(run), run.result
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[found.epoch - 1])
    assert {k: found[k] for k in SAME} == {k: line[k] for k in SAME} and found.weights == weights
    assert found.changes == [] and found.remarks == []
    if weights == "last":
        assert (found.epoch, found.correct, found.n) == (2, result.correct, result.n_test)
        assert found.split_sha256 == result.split_sha256
        saved = np.load(folder / "predictions.npz")
        np.testing.assert_array_equal(found.logits, saved["logits"])
        np.testing.assert_array_equal(found.labels, saved["label"])
    other = "best" if weights == "last" else "last"
    assert which == "digits" or evaluate_run(run, [f"weights={other}"]).weights == other


def test_what_is_derived_belongs_together(recorded):
    found = evaluate_run(recorded, ["recipe.batch_size=100", "debug.max_eval_batches=0"])
    assert found.changes == ["debug.max_eval_batches: 1 -> 0"] and found.n == 450
    confusion, classes = np.array(found.confusion), found.classes
    assert confusion.trace() == found.correct == sum(c["correct"] for c in classes) and confusion.sum() == 450
    assert [c["n"] for c in classes] == np.bincount(found.labels).tolist()
    assert [c["predicted"] for c in classes] == confusion.sum(0).tolist()
    assert found.early_exit[-1] == dict(threshold=None, acc=found.acc, mean_steps=3.0, exits=[0, 0, 1])
    assert sum(b["n"] for b in found.calibration["bins"]) == 450


def test_another_number_of_steps(digits):
    found, trained = evaluate_run(digits, ["timesteps=6"]), load_run(digits)
    assert found.changes == ["timesteps: 4 -> 6"] and len(found.acc_step) == 6
    assert found.acc_step[:4] == pytest.approx(trained.result.acc_step)  # an image: the first steps are the same
    assert trained.result.split_sha256 == found.split_sha256


@pytest.mark.parametrize(
    ("options", "parameter"),
    [(dict(neuron={"name": "psn"}), "sn1.bias"), (dict(norm="tebn"), "bn1.te"), (dict(norm="tab"), "bn1.bn.4.bias")],
)
def test_parameters_that_are_tied_to_t_are_named(options, parameter, digits):
    trained = load_run(digits)
    arguments = dict(num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if"}) | options
    trained.config.model.own["norm"] = options.get("norm")
    trained.config.neuron.name = arguments["neuron"]["name"]
    trained.config.neuron.own, trained.config.neuron.imp = {}, False
    trained.model = build_model("small", **arguments)
    with pytest.raises(UserError, match=rf"timesteps=5: {parameter} is sized for the T=4 .*; remove timesteps"):
        evaluate_run(trained, ["timesteps=5"])


def test_imp_left_out_starts_the_neurons_from_zero(digits):
    found, trained = evaluate_run(digits, ["initial=zero"]), load_run(digits)
    assert found.changes == ["neuron.imp: True -> False"]
    own = evaluate_run(trained)
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if name.endswith(".imp"):
                assert parameter.abs().max() > 0
                parameter.zero_()
    same = evaluate_run(trained)
    np.testing.assert_allclose(found.logits, same.logits, atol=1e-5)
    assert found.correct == same.correct and not np.allclose(found.logits, own.logits, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("neuron=if", "neuron=if has no effect on a test, or would change the trained network"),
        ("dataset.validation=0.1", "dataset.validation=0.1 has no effect on a test"),
        ("dataset.integrate_by=time", "dataset.integrate_by=time has no effect with dataset=digits"),
        ("timestep=6", "unknown key 'timestep'; did you mean 'timesteps'"),
        ("timesteps=x", "timesteps=x has the wrong type"),
        ("timesteps", "cannot read 'timesteps': write key=value"),
        ("weights=first", "weights=first must be one of: last, best"),
        ("initial=mp_init", "neuron.initial=mp_init is learned, but this run has no sn1.running_v"),
        ("neuron.initial_value=0.3", "neuron.initial_value=0.3 has no effect with neuron.initial=imp"),
        ("dataset=digits_dvs", "digits_dvs has 2x24x24 and 10 classes, but the run's network accepts 1x8x8 and 10"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, sentence, digits, monkeypatch):
    monkeypatch.setattr(evaluate, "build_data", lambda _: pytest.fail("data were read"))
    with pytest.raises(UserError, match=sentence) as error:
        evaluate_run(digits, [words])
    assert "\n" not in str(error.value)


def test_another_data_set_of_the_same_shape(digits, tmp_path, monkeypatch):
    @register("upside_down")
    class UpsideDown(embedded.Digits):
        def read(self):
            return [(images[:, :, ::-1].copy(), labels, names) for images, labels, names in super().read()]

    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/upside_down.yaml").write_text("# digits that stand on their heads\nname: upside_down\n")
    monkeypatch.setattr(outside, "conf_dirs", lambda: [tmp_path / "conf"])
    try:
        found, own = evaluate_run(digits, ["dataset=upside_down"]), evaluate_run(digits)
    finally:
        SETS.pop("upside_down")
    assert found.dataset == "upside_down" and "dataset.name: digits -> upside_down" in found.changes
    assert found.n == 450 and not np.array_equal(found.logits, own.logits) and not found.remarks


def test_other_data_and_a_run_without_a_result_are_said(digits, monkeypatch, tmp_path):
    shutil.copytree(digits, tmp_path / "run", ignore=shutil.ignore_patterns("result.json", "eval"))
    found = evaluate_run(tmp_path / "run")
    assert found.remarks == ["the run is not finished: these are the weights of epoch 2 of 2"]
    table = embedded._table().copy()
    table[:, :20] = 7
    monkeypatch.setattr(embedded, "_table", lambda: table)
    (said,) = evaluate_run(digits).remarks
    assert said.startswith("warning: the data differ from the run's (digits: ")


def test_augmentation_and_initial_weights_of_the_training_are_not_asked_for(digits):
    trained = load_run(digits)
    trained.config.model.weights = "gone.pt"
    trained.config.augment.own |= {"mixup": 0.5, "mix_prob": 0.5}
    assert evaluate_run(trained).correct == trained.result.correct


def test_calibration_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.1, 0.2], [0.1, 0.5, 0.4], [0.34, 0.33, 0.33]])
    found = calibration(p.log(), torch.tensor([0, 1, 1, 2]), bins=10)
    # 0.7 twice, one of two right; 0.5 right (on the edge: the lower bin); 0.34 wrong
    assert [(b["n"], b["acc"]) for b in found["bins"]] == [(1, 0.0), (1, 1.0), (2, 0.5)]
    assert found["ece"] == pytest.approx((0.34 + 0.5 + 2 * 0.2) / 4, abs=1e-6)
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.1, 0.5, 0.33]).mean(), abs=1e-6)
    brier = [0.3**2 + 0.2**2 + 0.1**2, 0.7**2 + 0.9**2 + 0.2**2, 0.1**2 + 0.5**2 + 0.4**2, 0.34**2 + 0.33**2 + 0.67**2]
    assert found["brier"] == pytest.approx(np.mean(brier), abs=1e-6)


def test_early_exit_by_hand():
    p = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.05, 0.95]]])  # [T, N, K]
    by = {e["threshold"]: e for e in early_exit(p.log(), torch.tensor([0, 1]), (0.5, 0.85, 0.99))}
    assert (by[0.5]["acc"], by[0.5]["mean_steps"], by[0.5]["exits"]) == (1.0, 1.0, [1.0, 0.0])
    assert (by[0.85]["acc"], by[0.85]["mean_steps"], by[0.85]["exits"]) == (1.0, 1.5, [0.5, 0.5])
    assert by[0.99] == by[None] | {"threshold": 0.99} and by[None]["acc"] == 0.5


def test_running_scores_are_what_the_loss_reads():
    logits = torch.randn(4, 3, 5)
    torch.testing.assert_close(running_scores(build_loss("tet"), logits)[2], logits[:3].mean(0))
    assert torch.equal(running_scores(build_loss("lts"), logits), logits)


def test_rows_of_the_confusion_matrix_are_labels():
    found = confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([1, 0, 2]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_the_command_writes_beside_the_runs_own_files(digits, monkeypatch, entered):
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in digits.iterdir() if p.is_file()}
    code, out, err = entered(evaluate.entry, digits, "timesteps=2", "weights=best")
    file = digits / "eval" / "best,timesteps=2.json"
    assert code == 0 and "early exit" in out and "Brier" in out and err == f"written to {file}\n"
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in digits.iterdir() if p.is_file()} == before
    found = json.loads(entered(evaluate.entry, digits, "--json", "timesteps=2", "weights=best")[1])
    assert found == json.loads(file.read_text()) and found["timesteps"] == 2 and len(found["confusion"]) == 10
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert entered(evaluate.entry, digits, "timesteps=3") == (130, "", "snn-eval: stopped\n")
    assert "last,timesteps=3.json" not in {p.name for p in (digits / "eval").iterdir()}


def test_the_command_refuses_in_one_sentence(digits, entered):
    for words, sentence in (([digits, "--jsn"], "unrecognized arguments: --jsn"), (["timesteps=3"], "is not a run")):
        code, out, err = entered(evaluate.entry, *words)
        assert code == 2 and not out and err.startswith("snn-eval: ") and err.count("\n") == 1 and sentence in err
