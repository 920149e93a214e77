"""Losses with a teacher or between steps against references in NumPy, and runs with a teacher."""

import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_rivals import softmax
from torchvision import models

from snn_repro import train
from snn_repro.config import config_hash, load_config
from snn_repro.errors import Interrupted, UserError
from snn_repro.losses import build_loss
from snn_repro.runs import checkpoint
from snn_repro.train import run
from snn_repro.trained.load import load_run, load_teacher

T, B, K = 4, 5, 6
CPU = torch.device("cpu")


def ce(y, labels):
    return -(np.eye(K)[labels] * np.log(softmax(y))).sum(-1).mean()


def kl(z, y, temperature=3.0):
    p, q = softmax(z / temperature), softmax(y / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


def distill(y, z, labels, start):
    return 0.3 * ce(y.mean(0), labels) + 0.7 * kl(z, y.mean(0), 2.0)


def sta(y, z, labels, start):
    """start: y at the point of differentiation, since the steps teach without gradient."""
    p, total = softmax(start), ce(y, labels)
    confidence = 1 + (p * np.log(p + 1e-8)).sum(-1) / np.log(K)
    unit = start / np.linalg.norm(start, axis=-1, keepdims=True)
    for t, b in np.ndindex(T, B):
        others = [s for s in range(T) if s != t]
        weights = softmax(np.array([confidence[s, b] * unit[t, b] @ unit[s, b] for s in others]))
        total += 0.4 * kl(weights @ start[others, b], y[t, b]) / (T * B)
    return total


def seal_kd(y, z, labels, start):
    total = sta(y, z, labels, start)
    for t, b in np.ndindex(T, B):
        student, teacher, said, label = y[t, b].copy(), z[b].copy(), y[t, b].argmax(), labels[b]
        student[said], teacher[[label, said]] = student[label], min(teacher[label], teacher[said])
        total += 0.6 * kl(teacher, student) / (T * B)
    return total


def penalty(w):
    return 0.1 / T * sum((w**2 / (1 + (np.exp(0.7 * t) - 1) * (abs(w) + 1e-5))).sum() for t in range(T))


def trt(y, z, labels, start):
    return 0.8 * ce(y, labels) + 0.2 * ((y - np.eye(K)[labels]) ** 2).mean() + penalty(np.array([1.5, -0.5]))


SETTINGS = {distill: dict(alpha=0.7, temperature=2.0), sta: dict(beta=0.4), seal_kd: dict(beta=0.4), trt: dict(lam=0.1, decay=0.7, eta=0.2)}  # fmt: skip


@pytest.mark.parametrize("reference", SETTINGS, ids=lambda f: f.__name__)
def test_values_and_gradients_are_those_of_a_float64_reference(reference):
    torch.manual_seed(1)
    y, z, labels = torch.randn(T, B, K).double().mul(2), torch.randn(B, K).double(), torch.randint(K, (B,))
    loss, model = build_loss(reference.__name__, **SETTINGS[reference]), torch.nn.Linear(2, 1).double()
    model.weight.data[:] = torch.tensor([[1.5, -0.5]])
    model.imp = torch.nn.Parameter(torch.ones(3))
    loss.watch(model)
    loss.teach = lambda x: z
    loss.begin_batch(y)
    value = loss(y.requires_grad_(), labels)
    value.backward()
    plain, others = y.detach().numpy(), (z.numpy(), labels.numpy(), y.detach().numpy())
    assert value.item() == pytest.approx(reference(plain, *others), rel=1e-9)
    assert loss(y, torch.nn.functional.one_hot(labels, K)).item() == pytest.approx(value.item())
    way = np.random.default_rng(0).standard_normal(plain.shape)
    slope = (reference(plain + 1e-6 * way, *others) - reference(plain - 1e-6 * way, *others)) / 2e-6
    assert slope == pytest.approx(float((y.grad.numpy() * way).sum()), rel=1e-6)
    assert model.bias.grad is model.imp.grad is None and (model.weight.grad is None) == (reference is not trt)
    with torch.no_grad():  # what belongs to training is left out
        left = {distill: ce(plain.mean(0), others[1]), trt: value.item() - penalty(model.weight).item()}
        assert loss(y, labels).item() == pytest.approx(left.get(reference, ce(plain, others[1])))
    if reference is trt:
        torch.testing.assert_close(model.weight.grad, torch.autograd.grad(penalty(model.weight), model.weight)[0])
    one = build_loss("sta")(y[:1], labels)  # one step has no others
    assert one == build_loss("tet")(y[:1], labels)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    words = ["logger.mode=disabled", "recipe.epochs=1", "loss=sdt", "debug.max_steps=8", "debug.max_eval_batches=1"]
    run(load_config(words), str(folder := tmp_path_factory.mktemp("teacher")))
    return folder


def test_a_student_resumes_bit_for_bit_and_stores_no_teacher(teacher, quick, tmp_path, monkeypatch):
    def student(folder, words=("loss=seal_kd", f"loss.teacher={teacher}")):
        result = run(quick(*words, "recipe.epochs=1", "device=cpu"), str(tmp_path / folder))
        return result, checkpoint.load(tmp_path / folder / checkpoint.LAST)

    def stopping(self, *batch):
        self.stop.signum = signal.SIGTERM if self.step == 1 else None
        return original(self, *batch)

    original, before = train.Training.train_step, checkpoint.load(teacher / checkpoint.LAST)["model"]
    whole, expected = student("whole")
    monkeypatch.setattr(train.Training, "train_step", stopping)
    with pytest.raises(Interrupted):
        student("cut")
    monkeypatch.undo()
    again, found = student("cut")
    assert again.acc_step == whole.acc_step and again.config_hash == whole.config_hash
    assert found["model"].keys() == expected["model"].keys() == before.keys()
    assert all(torch.equal(v, expected["model"][k]) for k, v in found["model"].items())
    assert torch.equal(found["rng"]["torch"], student("alone", ["loss=sdt"])[1]["rng"]["torch"])


def test_a_teacher_is_frozen_and_its_weights_are_in_the_hash(teacher, quick, tmp_path):
    config = quick("loss=distill", f"loss.teacher={shutil.copytree(teacher, tmp_path / 'copy')}")
    data = train.build_data(config)
    x, _ = next(data.train.epoch(0))
    torch.manual_seed(7)
    teach, drawn = load_teacher(config, data, CPU), torch.rand(1)
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(7)))
    assert not teach(x).requires_grad and torch.equal(teach(x), load_run(teacher).model(x).mean(0))
    other = SimpleNamespace(num_classes=11, input_shape=(1, 8, 8), split=SimpleNamespace(sha256_test="0"))
    with pytest.raises(UserError, match=r"trained for classes 10 \(here 11\), test samples .* \(here 0\); choose"):
        load_teacher(config, other, CPU)
    checkpoint.save(tmp_path / "copy", checkpoint.load(teacher / checkpoint.LAST) | {"epoch": 2})
    changed = quick("loss=distill", f"loss.teacher={tmp_path / 'copy'}")
    assert config_hash(changed) != config_hash(config) and changed.loss.teacher_digest != config.loss.teacher_digest
    with pytest.raises(UserError, match="has other weights .* than loss.teacher_digest"):
        load_teacher(config, data, CPU)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "loss.teacher= is no finished run; name the folder of one, or torchvision/NAME"),
        ("loss.teacher=torchvision/resnet34", r"for dataset imagenet1k \(here digits\), classes 1000 \(here 10\)"),
        ("loss.teacher=torchvision/resnet35", "loss.teacher=torchvision/resnet35 is not in torchvision"),
    ],
)
def test_a_wrong_teacher_is_one_sentence(words, sentence, quick):
    with pytest.raises(UserError, match=sentence) as error:
        run(quick("loss=distill", *words.split()))
    assert "\n" not in str(error.value)


def test_torchvision_loads_its_own_weights(monkeypatch):
    def weights(*_, **__):
        return known.state_dict() if known else (_ for _ in ()).throw(OSError("no network"))

    config = load_config(["loss=seal_kd", "loss.teacher=torchvision/resnet18", "dataset=imagenet1k"])
    data = SimpleNamespace(num_classes=1000, input_shape=(3, 224, 224), split=SimpleNamespace(sha256_test="0"))
    known, x = models.resnet18().eval(), torch.rand(2, 3, 32, 32)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", weights)
    assert config.loss.teacher_digest == "f37072fd" and torch.equal(load_teacher(config, data, CPU)(x), known(x))
    known = None
    with pytest.raises(UserError, match=r"cannot load the teacher resnet18 \(no network\); put its weights in"):
        load_teacher(config, data, CPU)
