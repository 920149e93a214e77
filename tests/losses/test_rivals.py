"""Losses of other papers against float64 references in NumPy and differences, and what training does with them."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.losses import LOSSES, build_loss
from snn_repro.models import build_model
from snn_repro.neurons import Neuron, build_neuron
from snn_repro.train import check_settings, run

Y = torch.tensor(
    [[[1, 0, 0], [0, 1, 0]], [[2, 0, 0], [0, 0, 1]], [[3, 1, 0], [0, 3, 0]]], dtype=torch.float64
)  # [T, B, K]
LABELS = torch.tensor([0, 1])


def softmax(y):
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tks_reference(y, labels, a, te, temper):
    total, (timesteps, batch, _) = 0.0, y.shape
    for b in range(batch):
        z = sum((y[t, b] for t in range(timesteps) if y[t, b].argmax() == labels[b]), np.zeros(y.shape[2]))
        student = np.log(softmax(y[:, b] / (te if temper else 1)))
        total += -(1 - a) * te**2 * (softmax(z / te) * student).sum(-1).mean() / batch
        total += -a * np.log(softmax(y[:, b].mean(0)))[labels[b]] / batch
    return total


def pair_reference(y, labels, weight, alpha, strong, cascade):
    confidence = softmax(y).max(-1).mean(1)
    order = np.argsort(-confidence if strong else confidence, kind="stable")
    pairs = list(zip(order, order[1:], strict=False)) if cascade else [(order[0], order[-1])]
    p = softmax(y / alpha)
    kl = np.mean([(p[a] * np.log(p[a] / p[b])).sum(-1).mean() for a, b in pairs])
    return -np.log(softmax(y.mean(0)))[np.arange(len(labels)), labels].mean() + weight * kl


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_a_float64_reference_and_gradients_of_differences(seed):
    torch.manual_seed(seed)
    y, labels = torch.randn(4, 5, 6, dtype=torch.float64).mul(2).requires_grad_(), torch.randint(6, (5,))
    plain, numbers = y.detach().numpy(), labels.numpy()
    for temper in (False, True):
        loss = build_loss("tks", temperature=2.0, temper_student=temper)
        loss.begin_epoch(3, 4)
        assert loss(y, labels).item() == pytest.approx(tks_reference(plain, numbers, 1 - 0.7 * 3 / 4, 2.0, temper))
        assert gradcheck(lambda y, loss=loss: loss(y, labels), y)
    for name in ("strong2weak", "weak2strong"):
        for cascade in (False, True):
            loss = build_loss(name, weight=0.5, temperature=3.0, cascade=cascade)
            expected = pair_reference(plain, numbers, 0.5, 3.0, name == "strong2weak", cascade)
            assert loss(y, labels).item() == pytest.approx(expected)
            assert gradcheck(lambda y, loss=loss: loss(y, labels), y)
            loss.weight, loss.squared = 0.5 / 9, True
            assert loss(y, labels).item() == pytest.approx(expected)
            with torch.no_grad():  # the term belongs to a batch of training
                assert loss(y, labels).item() == pytest.approx(pair_reference(plain, numbers, 0, 3.0, True, False))


@pytest.mark.parametrize("name", ["tks", "strong2weak"])
def test_a_detached_teacher_changes_gradients_alone(name):
    found = []
    for detach in (False, True):
        loss, y = build_loss(name, detach_teacher=detach), Y.clone().requires_grad_()
        loss.begin_epoch(1, 2)
        value = loss(y, LABELS)
        found.append((value.item(), torch.autograd.grad(value, y)[0]))
    assert found[0][0] == found[1][0] and not torch.allclose(found[0][1], found[1][1])
    if name == "strong2weak":  # the strongest step then learns by the labels alone
        strong, y = found[1][1][2], Y.clone().requires_grad_()
        (labels,) = torch.autograd.grad(build_loss("sdt")(y, LABELS), y)
        torch.testing.assert_close(strong, labels[2])


def small(**options):
    torch.manual_seed(0)
    given = dict(num_classes=10, input_shape=(1, 8, 8), timesteps=3, neuron={"name": "if", "imp": True})
    return build_model("small", **given | options).double()


def a_step(model, loss, x, labels):
    loss.begin_epoch(1, 4)
    value = loss(model(x), labels)
    model.zero_grad()
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


X, CLASSES = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.arange(6)


def test_rmp_adds_the_gaps_of_all_layers():
    """Against potentials that are computed here, from what went into each layer."""
    model, loss, inputs = small(), build_loss("rmp", power=1.5), {}
    loss.watch(model)
    for name, module in model.named_modules():
        if isinstance(module, Neuron):
            module.register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0].detach()}))
    value, gradients = a_step(model, loss, X, CLASSES)
    terms = []
    for name, x in inputs.items():
        v, gaps = model.get_submodule(name).imp.detach(), []
        for x_t in x:
            h = v + x_t
            s = (h >= 1).double()
            v = h - s
            gaps.append((h - s).abs() ** 1.5)
        terms.append(torch.stack(gaps).mean().item())
    plain = small()
    with torch.no_grad():
        logits = plain(X)
        expected = build_loss("sdt")(logits, CLASSES).item() + 0.1 * 2 * 1 / 4 * np.mean(terms)
    assert value == pytest.approx(expected, rel=1e-12) and len(terms) == 3
    other = a_step(small(), build_loss("sdt"), X, CLASSES)[1]
    assert not torch.allclose(gradients["sn1.imp"], other["sn1.imp"])


@pytest.mark.parametrize("checkpointing", ["norms", "blocks"])
def test_rmp_under_checkpointing(checkpointing):
    found = []
    for how in ("off", checkpointing):
        model, loss = small(checkpointing=how), build_loss("rmp")
        loss.watch(model)
        found.append([a_step(model, loss, X, CLASSES) for _ in range(2)])
        assert not loss.terms  # the backward pass left nothing behind
    for (a, grads), (b, others) in zip(*found, strict=True):
        assert a == b
        for name in grads:
            torch.testing.assert_close(grads[name], others[name], rtol=1e-12, atol=1e-15)


def test_rmp_is_trainings_alone_and_needs_watching():
    model, loss = small().float(), build_loss("rmp", schedule="constant")
    with pytest.raises(UserError, match=r"loss=rmp needs potentials: call watch\(model\) once before training"):
        loss(Y, LABELS)
    loss.watch(model)
    x = X.float()
    with torch.no_grad():
        model(x)
        assert not loss.terms
    model.eval()
    assert loss(model(x), CLASSES) == build_loss("sdt")(model(x), CLASSES)
    with pytest.raises(UserError, match="this network has none"):
        loss.watch(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="which neuron=psn does not provide"):
        loss.watch(build_neuron("psn", timesteps=2))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("loss=tks augment.mixup=0.2", "augment.mixup=0.2 makes soft targets and loss=tks needs labels; set it to 0"),
        ("loss=rmp compile=true", "compile=true hides the membrane potentials that loss=rmp reads"),
        ("loss=rmp loss.schedule=cosine", "loss.schedule='cosine' is not one of triangle, constant"),
    ],
)
def test_what_cannot_be_is_refused_before_data_is_read(words, sentence):
    with pytest.raises(UserError, match=sentence):
        check_settings(load_config(words.split()))


@pytest.mark.slow
@pytest.mark.parametrize("loss", [n for n in LOSSES if n not in ("sdt", "lts", "tet_s", "distill", "seal_kd")])
def test_digits_are_learned(loss, tmp_path):
    found = run(load_config(["logger.mode=disabled", "recipe.epochs=8", f"loss={loss}", f"hydra.run.dir={tmp_path}"]))
    print(f"{loss}: {100 * found.acc_last:.2f} %")
    assert found.acc_last > 0.9 and found.readout == "mean"
