"""Losses with a teacher or between steps against references in NumPy, and runs with a teacher."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_rivals import softmax
from torchvision import models

from snn_repro import train
from snn_repro.build import check_settings
from snn_repro.config import config_hash, load_config
from snn_repro.errors import Interrupted, UserError
from snn_repro.losses import build_loss
from snn_repro.neurons import build_neuron
from snn_repro.runs import checkpoint
from snn_repro.train import run
from snn_repro.trained.load import load_run, load_teacher

T, B, K = 4, 5, 6
EYE = np.eye(K)


def ce(y, q):
    return -(q * np.log(softmax(y))).sum(-1).mean()


def kl(z, y, temperature):
    p, q = softmax(z / temperature), softmax(y / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


def distill(y, frozen, z, labels):
    return 0.3 * ce(y.mean(0), EYE[labels]) + 0.7 * kl(z, y.mean(0), 2.0)


def sta(y, frozen, z, labels):
    p, total = softmax(frozen), 0.0
    confidence = 1 + (p * np.log(p + 1e-8)).sum(-1) / np.log(K)
    for b in range(B):
        for t in range(T):
            a = frozen[:, b] / np.linalg.norm(frozen[:, b], axis=-1, keepdims=True)
            others = [s for s in range(T) if s != t]
            weights = softmax(np.array([confidence[s, b] * a[t] @ a[s] for s in others]))
            total += kl(weights @ frozen[others, b], y[t, b], 3.0) / (T * B)
    return ce(y, EYE[labels]) + 0.4 * total


def seal_kd(y, frozen, z, labels):
    total = 0.0
    for t in range(T):
        for b, label in enumerate(labels):
            student, teacher, said = y[t, b].copy(), z[b].copy(), y[t, b].argmax()
            student[said] = student[label]
            teacher[[label, said]] = min(teacher[label], teacher[said])
            total += kl(teacher, student, 3.0) / (T * B)
    return sta(y, frozen, z, labels) + 0.6 * total


WEIGHTS = {"fc.weight": [[1.5, -0.5]], "fc.bias": [3.0], "sn.imp": [2.0]}


def trt(y, frozen, z, labels):
    fading = [w**2 * 0.1 / (1 + (np.exp(0.7 * t) - 1) * (abs(w) + 1e-5)) for w in (1.5, -0.5) for t in range(T)]
    return 0.8 * ce(y, EYE[labels]) + 0.2 * ((y - EYE[labels]) ** 2).mean() + sum(fading) / T


REFERENCES = {
    distill: dict(alpha=0.7, temperature=2.0), sta: dict(beta=0.4), seal_kd: dict(beta=0.4), trt: dict(lam=0.1, decay=0.7, eta=0.2),
}  # fmt: skip


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda f: f.__name__)
def test_values_and_gradients_are_those_of_a_float64_reference(reference):
    torch.manual_seed(1)
    y, z, labels = torch.randn(T, B, K).double().mul(2), torch.randn(B, K).double(), torch.randint(K, (B,))
    loss, model = build_loss(reference.__name__, **REFERENCES[reference]), torch.nn.Module()
    for name, value in WEIGHTS.items():
        part, _, last = name.partition(".")
        model.add_module(part, getattr(model, part, torch.nn.Module()))
        getattr(model, part).register_parameter(last, torch.nn.Parameter(torch.tensor(value).double()))
    loss.watch(model)
    loss.teach = lambda x: z
    loss.begin_batch(y)
    value = loss(y.requires_grad_(), labels)
    value.backward()
    plain, others = y.detach().numpy(), (y.detach().numpy(), z.numpy(), labels.numpy())
    assert value.item() == pytest.approx(reference(plain, *others), rel=1e-9)
    assert loss(y, torch.nn.functional.one_hot(labels, K)).item() == pytest.approx(value.item())
    way = np.random.default_rng(0).standard_normal(plain.shape)
    slope = (reference(plain + 1e-6 * way, *others) - reference(plain - 1e-6 * way, *others)) / 2e-6
    assert slope == pytest.approx(float((y.grad.numpy() * way).sum()), rel=1e-6)
    with torch.no_grad():  # what belongs to training is left out
        rest = {sta: ce(plain, EYE[labels]), seal_kd: ce(plain, EYE[labels]), distill: ce(plain.mean(0), EYE[labels])}
        assert reference is trt or loss(y, labels).item() == pytest.approx(rest[reference])
    if reference is trt:  # gradient of the penalty, by the weight
        w = torch.tensor([1.5, -0.5]).double().requires_grad_()
        sum((0.1 / T * w**2 / (1 + (np.exp(0.7 * t) - 1) * (w.abs() + 1e-5))).sum() for t in range(T)).backward()
        torch.testing.assert_close(model.fc.weight.grad[0], w.grad)
        assert model.fc.bias.grad is None and model.sn.imp.grad is None


def test_one_step_has_no_others():
    y = torch.randn(1, B, K)
    assert build_loss("sta")(y, torch.arange(B)) == build_loss("tet")(y, torch.arange(B))


def test_energy_counts_the_spikes_of_a_learned_scale():
    from snn_repro.energy import energy_report

    torch.manual_seed(0)
    sn = build_neuron("qb_lif", v_threshold=0.7)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), sn, torch.nn.Linear(6, 7))
    x = 8 * torch.randn(T, B, 1, 1, 6)
    counts = sn.counts(sn(model[0](x)).detach())
    assert counts.unique().tolist() == [0, 1, 2, 3, 4]
    assert energy_report(model, x)["layers"]["2"] == {"macs": 0, "synops": pytest.approx(7 * counts.sum().item() / B)}


# in a run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    run(
        load_config(
            ["logger.mode=disabled", "recipe.epochs=1", "loss=sdt", "debug.max_steps=8", f"hydra.run.dir={folder}"]
        )
    )
    return folder


def state(folder):
    return checkpoint.load(folder / checkpoint.LAST)


@pytest.mark.parametrize("loss", ["distill", "seal_kd"])
def test_a_student_resumes_bit_for_bit_and_stores_no_teacher(loss, teacher, quick, tmp_path, monkeypatch):
    words = [f"loss={loss}", f"loss.teacher={teacher}", "recipe.epochs=1", "device=cpu"]
    before = state(teacher)["model"]
    whole = run(quick(*words), str(tmp_path / "whole"))
    original = train.Training.train_step

    def stopping(self, *batch):
        self.stop.signum = signal.SIGTERM if self.step == 1 else None
        return original(self, *batch)

    monkeypatch.setattr(train.Training, "train_step", stopping)
    with pytest.raises(Interrupted):
        run(quick(*words), str(tmp_path / "cut"))
    monkeypatch.undo()
    again, (a, b) = run(quick(*words), str(tmp_path / "cut")), (state(tmp_path / name) for name in ("cut", "whole"))
    assert again.acc_step == whole.acc_step and again.config_hash == whole.config_hash
    assert a["model"].keys() == b["model"].keys() == before.keys()
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in before)
    assert all(torch.equal(v, state(teacher)["model"][k]) for k, v in before.items())
    other = run(quick("loss=sdt", "recipe.epochs=1"), str(tmp_path / "alone"))
    assert other.params_weights == whole.params_weights and state(tmp_path / "alone")["rng"]["torch"].equal(
        a["rng"]["torch"]
    )


def test_the_teacher_is_frozen_and_its_weights_are_in_the_hash(teacher, quick, tmp_path):
    import shutil

    config = quick("loss=distill", f"loss.teacher={teacher}")
    data = train.build_data(config)
    x, _ = next(data.train.epoch(0))
    torch.manual_seed(7)
    teach, drawn = load_teacher(config, data, torch.device("cpu")), torch.rand(1)
    z = teach(x)
    assert torch.equal(drawn, torch.rand(1, generator=torch.manual_seed(7))) and not z.requires_grad
    torch.testing.assert_close(z, load_run(teacher).model(x).mean(0).detach())
    moved = shutil.copytree(teacher, tmp_path / "moved")
    same = quick("loss=distill", f"loss.teacher={moved}")
    assert same.loss.teacher_digest == config.loss.teacher_digest != ""
    checkpoint.save(moved, state(teacher) | {"epoch": 2})
    assert config_hash(quick("loss=distill", f"loss.teacher={moved}")) != config_hash(same)
    with pytest.raises(UserError, match="has other weights .* than loss.teacher_digest"):
        load_teacher(same, data, torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "loss.teacher= is none; give the folder of a finished run, or torchvision/NAME"),
        ("loss.teacher=nowhere", "loss.teacher=nowhere is none"),
        ("loss.teacher=torchvision/resnet34", r"dataset imagenet1k \(here digits\), classes 1000 \(here 10\)"),
        ("loss.teacher=torchvision/resnet35", "loss.teacher=torchvision/resnet35 is no network of torchvision"),
        ("dataset=digits_dvs loss.teacher={}", r"trained for dataset digits \(here digits_dvs\), input shape \[1, 8, 8\]"),
    ],
)  # fmt: skip
def test_a_wrong_teacher_is_one_sentence(words, sentence, teacher, quick, tmp_path):
    with pytest.raises(UserError, match=sentence) as error:
        run(quick("loss=distill", f"cache_dir={tmp_path}", *words.format(teacher).split()))
    assert "\n" not in str(error.value)


def test_torchvision_loads_its_own_weights(monkeypatch):
    config = load_config(
        ["loss=seal_kd", "loss.teacher=torchvision/resnet18", "dataset=imagenet1k", "model=sew_resnet18"]
    )
    assert config.loss.teacher_digest == "f37072fd"
    check_settings(config)
    data = SimpleNamespace(num_classes=1000, input_shape=(3, 224, 224), split=SimpleNamespace(sha256_test="0"))
    known = models.resnet18()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: known.state_dict())
    x = torch.rand(2, 3, 32, 32)
    z = load_teacher(config, data, torch.device("cpu"))(x)
    torch.testing.assert_close(z, known.eval()(x).detach())

    def missing(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", missing)
    with pytest.raises(UserError, match=r"cannot load the teacher resnet18 \(no network\); put its weights in"):
        load_teacher(config, data, torch.device("cpu"))
