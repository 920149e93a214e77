"""Losses: reference values and gradients, their readouts, properties and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_repro.errors import DataError, UserError
from snn_repro.losses import LOSSES, Loss, build_loss, smooth
from snn_repro.neurons import build_neuron
from snn_repro.paper.results import right_answers

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
TARGETS = {"hard": torch.tensor(GOLDEN["labels"]), "mixup": torch.tensor(GOLDEN["mixup_targets"])}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_golden(case, dtype):
    case = GOLDEN["cases"][case]
    near = dict(atol=TOLERANCE[dtype], rtol=0)
    y = torch.tensor(GOLDEN["y"], dtype=dtype, requires_grad=True)
    target = torch.tensor(GOLDEN["mixup_targets"], dtype=dtype) if case["target"] == "mixup" else TARGETS["hard"]
    loss = build_loss(case["loss_name"], **case["options"])(y, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(case["loss"], dtype=dtype), **near)
    torch.testing.assert_close(y.grad, torch.tensor(case["grad"], dtype=dtype), **near)


@pytest.mark.parametrize("name", LOSSES)
def test_readout(name):
    loss = build_loss(name)
    y = torch.tensor(GOLDEN["y"])
    key = {"mean": "mean_over_T", "last": "last_step"}[loss.readout_name]
    assert loss.readout(y).argmax(-1).tolist() == GOLDEN["predictions"][key]
    assert loss.readout_name == ("last" if name == "lts" else "mean")
    assert loss.readout(y.bfloat16()).dtype == torch.float32


cases = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31), st.booleans())


def draw(case):
    """Random logits [T, B, K] and a hard or soft target."""
    timesteps, batch, classes, seed, soft = case
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(timesteps, batch, classes, generator=g, dtype=torch.float64).mul(3).requires_grad_()
    if soft:
        return y, torch.rand(batch, classes, generator=g, dtype=torch.float64).softmax(-1)
    return y, torch.randint(classes, (batch,), generator=g)


def ready(name):
    """A loss as training has it: rmp watches a network, of which no forward pass was made here."""
    loss = build_loss(name)
    loss.watch(torch.nn.Sequential(build_neuron("if")))
    return loss


@settings(max_examples=40, deadline=None)
@given(cases)
def test_tet_s_without_smoothing_is_tet_to_the_last_bit(case):
    y, target = draw(case)
    results = []
    for loss in (build_loss("tet_s", epsilon=0.0), build_loss("tet")):
        value = loss(y, target)
        results.append((value, *torch.autograd.grad(value, y)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@settings(max_examples=40, deadline=None)
@given(cases, st.floats(0, 0.99))
def test_tet_s_is_the_cross_entropy_of_smoothed_labels(case, epsilon):
    y, target = draw(case)
    q = smooth(target, y.shape[-1], epsilon).double()
    written_out = -(q * y.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(build_loss("tet_s", epsilon=epsilon)(y, target), written_out, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_targets_equal_labels(name):
    y, labels = draw((4, 3, 5, 1, False))
    one_hot = torch.nn.functional.one_hot(labels, 5).float()  # float32 target beside float64 logits
    loss = ready(name)
    if loss.soft_targets:
        torch.testing.assert_close(loss(y, labels), loss(y, one_hot))
        return
    with pytest.raises(UserError, match=f"loss={name} needs labels"):
        loss(y, one_hot)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_give_a_float32_loss(name):
    y = torch.tensor(GOLDEN["y"]).bfloat16().requires_grad_()
    loss = ready(name)(y, TARGETS["hard"])
    loss.backward()
    assert loss.dtype == torch.float32 and y.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.detach(), ready(name)(y.detach().float(), TARGETS["hard"]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tets", {}, "loss.name='tets' is not one of rmp, lts, mse, sdt, tet, .*did you mean 'tet_s'"),
        ("sdt", {"epsilon": 0.1}, "loss.epsilon=0.1 belongs to loss=tet_s; leave it out for 'sdt'"),
        ("tet", {"lambda": 0.1}, "loss.lambda is not a setting of 'tet', which has: lam, phi.*did you mean 'lam'"),
        ("tet_s", {"lam": 0.1}, "loss.lam=0.1 belongs to loss=tet"),
        ("tet_s", {"epsilon": 1.0}, "loss.epsilon=1.0 must be at least 0 and below 1"),
        ("tet", {"lam": 2}, "loss.lam=2.0 must be at least 0 and at most 1"),
        ("tet", {"phi": float("inf")}, "loss.phi=inf must be a finite number"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        build_loss(name, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_do_not_fit_are_named(name):
    y = torch.zeros(4, 3, 5)
    for logits, target in ((y[0], TARGETS["hard"]), (y, torch.zeros(4).long()), (y, torch.zeros(3, 4))):
        with pytest.raises(UserError, match=r"needs logits \[T, B, K\]"):
            build_loss(name)(logits, target)


def test_tables_read_a_loss_as_it_says(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Bad has a readout of its own and needs a readout_name"):
        type("Bad", (Loss,), {"readout": lambda self, logits: logits[0]})
    peak = type("Peak", (Loss,), {"readout": lambda self, logits: logits.amax(0), "readout_name": "peak"})
    monkeypatch.setitem(LOSSES.data, "peak", peak)
    monkeypatch.setitem(LOSSES._owners, "peak", "of this test")
    logits = np.array([[[9, 0], [-20, 1]], [[0, 1], [0, 1]]], "float32")  # [N, T, K]: right at the peak alone
    np.savez(tmp_path / "predictions.npz", logits=logits, label=[0, 1])
    result = dict(folder=tmp_path, loss="peak", readout="peak", correct=2, n_test=2)
    result["config"] = {"loss": {"name": "peak", "lam": None}}
    assert right_answers(result).tolist() == [True, True]
    result["config"] = {"loss": {"name": "gone"}}
    with pytest.raises(DataError, match="predictions.npz cannot be read out: loss.name='gone' is not one of"):
        right_answers(result)


def test_the_squared_error_is_that_of_rates():
    y = torch.tensor([[[1.0, 0.0, 0.5]], [[0.0, 1.0, 0.5]]], requires_grad=True)  # rates 0.5 everywhere
    loss = build_loss("mse")(y, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.25)  # (0.5 - 1)^2, 0.5^2, 0.5^2
    loss.backward()
    torch.testing.assert_close(y.grad[0], torch.tensor([[-1.0, 1.0, 1.0]]) / 6)  # 2 (r - q) / 3 / T
    assert build_loss("mse")(y.detach(), torch.tensor([[0.5, 0.5, 0.5]])).item() == 0
