"""Losses: reference values and gradients, their readouts, properties and bad input."""

import json
from pathlib import Path

import pytest
import torch

from snn_repro.errors import UserError
from snn_repro.losses import LOSSES, Loss, build_loss
from snn_repro.neurons import build_neuron

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


def ready(name):
    """A loss as training has it: rmp watches a network, of which no forward pass was made here; a teacher taught."""
    loss = build_loss(name)
    loss.watch(torch.nn.Sequential(build_neuron("if")))
    loss.taught = torch.tensor(GOLDEN["y"])[0]
    return loss


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_targets_equal_labels(name):
    y, labels = torch.tensor(GOLDEN["y"], dtype=torch.float64), TARGETS["hard"]
    one_hot = torch.nn.functional.one_hot(labels, y.shape[-1]).float()  # float32 target beside float64 logits
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
        ("tet_s", {"epsilon": 1.0}, "loss.epsilon=1.0 must be at least 0 and below 1"),
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


def test_a_readout_of_its_own_needs_a_name():
    with pytest.raises(UserError, match="Bad overrides readout and needs a readout_name"):
        type("Bad", (Loss,), {"readout": lambda self, logits: logits[0]})


def test_the_squared_error_is_that_of_rates():
    y = torch.tensor([[[1.0, 0.0, 0.5]], [[0.0, 1.0, 0.5]]], requires_grad=True)  # rates 0.5 everywhere
    loss = build_loss("mse")(y, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.25)  # (0.5 - 1)^2, 0.5^2, 0.5^2
    loss.backward()
    torch.testing.assert_close(y.grad[0], torch.tensor([[-1.0, 1.0, 1.0]]) / 6)  # 2 (r - q) / 3 / T
    assert build_loss("mse")(y.detach(), torch.tensor([[0.5, 0.5, 0.5]])).item() == 0
