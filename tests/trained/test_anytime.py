"""Stopping early: curves against a brute force, the guarantee's coverage, operations of each step, the command."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from snn_repro.data import build_data
from snn_repro.energy import neurobench
from snn_repro.errors import UserError
from snn_repro.train import run as train
from snn_repro.trained import anytime as a
from snn_repro.trained.evaluate import anytime_run, entry, evaluate_run, prepared
from snn_repro.trained.load import load_run


def outputs(n, generator, steps=4, classes=5):
    """Random scores of which later steps are surer and more often right."""
    labels = generator.integers(0, classes, n)
    z = generator.normal(size=(steps, n, classes)) * np.arange(1, steps + 1)[:, None, None]
    z[np.arange(steps)[:, None], np.arange(n), labels] += 1.5 * np.arange(1, steps + 1)[:, None]
    return dict(
        labels=labels, mean=z.cumsum(0), readout=z, operations=generator.integers(1, 99, (n, steps)).astype(float)
    )


def test_curves_equal_a_brute_force():
    test = outputs(20, np.random.default_rng(0))
    found = a.anytime(test, None)
    assert len(found["rules"]) == 6 and all(len(r["curve"]) == 101 for r in found["rules"])
    for r in found["rules"]:
        for threshold, point in zip(np.linspace(0, 1, 101), r["curve"], strict=True):
            right = steps = spent = 0
            for i, label in enumerate(test["labels"]):
                for t in range(4):
                    p = torch.tensor(test[r["scores"]][t, i]).softmax(0)
                    top = p.sort(descending=True).values
                    value = dict(
                        confidence=top[0],
                        margin=top[0] - top[1],
                        entropy=1 - torch.distributions.Categorical(p).entropy() / np.log(5),
                    )[r["rule"]]
                    if float(value) >= threshold or t == 3:
                        break
                right += int(p.argmax()) == label
                steps += t + 1
                spent += test["operations"][i, : t + 1].sum()
            assert point == pytest.approx(dict(acc=right / 20, steps=steps / 20, operations=spent / 20))


def test_area_is_the_mean_of_the_best_accuracy_so_far():
    assert a.area([(1, 0.5), (2, 0.8), (4, 0.6)], 1, 4) == pytest.approx((0.5 * 1 + 0.8 * 2) / 3)
    assert a.area([(1, 0.5)], 1, 1) is None


def test_the_guarantee_holds_as_often_as_it_says():
    generator, eps, delta, repeats = np.random.default_rng(1), 0.03, 0.2, 200
    world = outputs(40_000, generator)  # so large that its accuracy is the true one
    right, p = a.judged(world, "mean")
    sure, spent = a.RULES["confidence"](p), world["operations"].cumsum(1)
    broken = stopped = 0
    for _ in range(repeats):
        own = generator.choice(40_000, 300, replace=False)
        g = a.guarantee(sure[:, own], right[:, own], sure, right, spent, eps, delta)
        broken += g["lost"] > eps
        stopped += g["steps"] < 3.9
    assert broken <= stats.binom.ppf(0.999, repeats, delta) and stopped > repeats / 2


def test_no_threshold_where_the_validation_part_is_too_small():
    test = outputs(50, np.random.default_rng(2))
    g = a.anytime(test, {k: v[..., :5] if k == "labels" else v[:, :5] for k, v in test.items()}, epsilon=0.001)[
        "rules"
    ][0]["guarantee"]
    assert g["threshold"] is None and g["lost"] == 0 and g["steps"] == 4


@pytest.mark.parametrize(
    ("name", "size"), [("digits", None), ("recorded", None), ("digits", 4), ("recorded", 3), ("recorded", 1)]
)
def test_operations_of_each_step_add_up_to_neurobenchs(name, size, request):  # also batches of T samples and of one
    folder = request.getfixturevalue(name)
    run = load_run(folder)
    x, y = next(iter(build_data(run.config).test.epoch(0)))
    x, y = (x if size is None else x.narrow(-4, 0, size)), y[:size]
    with a.counted_operations(run.model, run.config.timesteps) as counted, torch.no_grad():
        run.model(x)
    total = neurobench(run.model, [(x, y)], lambda logits: logits[-1], torch.device("cpu"))["SynapticOperations"]
    assert counted[0].shape == (len(y), run.config.timesteps)
    assert float(counted[0].sum()) / len(y) == pytest.approx(total["Effective_ACs"] + total["Effective_MACs"])
    assert (counted[0][:, 1:] > 0).all()
    if size:  # each sample counts as in a batch of all
        with a.counted_operations(run.model, run.config.timesteps) as whole, torch.no_grad():
            run.model(next(iter(build_data(run.config).test.epoch(0)))[0])
        assert torch.equal(counted[0], whole[0][:size])


def test_a_run(digits, recorded):
    found, plain = anytime_run(digits), evaluate_run(digits)
    ends = {(r["rule"], r["scores"]): (r["curve"][0], r["curve"][-1]) for r in found["rules"]}
    first, last = ends["confidence", "readout"]
    assert first["acc"] == pytest.approx(plain.acc_step[0]) and first["steps"] == 1 < last["steps"]
    assert found["n_val"] == 136 and all(r["guarantee"] for r in found["rules"])
    assert "which need 230" in found["remarks"][0]
    assert not anytime_run(digits, epsilon=0.02)["remarks"]
    assert {e["threshold"]: (e["acc"], e["mean_steps"]) for e in plain.early_exit}[0.5] == pytest.approx(
        tuple(found["rules"][3]["curve"][50][k] for k in ("acc", "steps"))
    )


def test_the_command(digits, entered):
    code, out, _ = entered(entry, digits, "anytime=true", "epsilon=0.05")
    assert code == 0 and "at most 5.00 % lost with probability 0.9" in out
    assert json.loads((digits / "eval" / "anytime.json").read_text())["epsilon"] == 0.05
    for words, sentence in {
        ("epsilon=0.1",): "need anytime=true",
        ("anytime=yes",): "must be true or false",
        ("anytime=true", "delta=2"): "between 0 and 1",
        ("anytime=true", "epsilon=x"): "are numbers",
    }.items():
        code, _, err = entered(entry, digits, *words)
        assert code == 2 and sentence in err and err.count("\n") == 1


def test_networks_that_see_the_future_are_refused(tmp_path, quick):
    train(quick("neuron=psn"), str(tmp_path / "psn"))
    with pytest.raises(UserError, match="depend on later steps"):
        anytime_run(tmp_path / "psn")


def test_without_a_validation_part(tmp_path, quick):
    train(quick("dataset.validation=0", "timesteps=2"), str(tmp_path / "run"))
    found = anytime_run(tmp_path / "run")
    assert "dataset.validation" in found["remarks"][0] and found["rules"][0]["guarantee"] is None
    assert prepared(tmp_path / "run").data.val is None
