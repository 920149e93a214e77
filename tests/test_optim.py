"""The optimisers are torch's, to rounding, whatever the memory order of weights."""

import copy
from types import SimpleNamespace

import pytest
import torch

from snn_repro.config import ConfigError, load_config
from snn_repro.config.schema import hashed
from snn_repro.models import build_model
from snn_repro.optim import _fused, build_optimizer, build_schedule, load_optimizer, parameter_groups

THEIRS = {
    "sgd": lambda groups, r: torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum, nesterov=r.nesterov, foreach=False),
    "adam": lambda groups, r: torch.optim.Adam(groups, lr=r.lr, eps=r.eps, foreach=False),
    "adamw": lambda groups, r: torch.optim.AdamW(groups, lr=r.lr, eps=r.eps, foreach=False),
}


def take_steps(model, optimizer, n):
    torch.manual_seed(1)
    for _ in range(n):
        x, target = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x).mean(0), target).backward()
        optimizer.step()


@pytest.fixture
def two():
    """The same network in double precision twice, its weights channels-last; IMP makes a third group."""
    torch.manual_seed(0)
    model = build_model(
        "small", num_classes=10, input_shape=(1, 8, 8), timesteps=2, neuron={"name": "if", "imp": True}
    ).double()
    model.to(memory_format=torch.channels_last)
    torch.set_default_dtype(torch.float64)
    yield model, copy.deepcopy(model)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", THEIRS)
def test_steps_are_torchs(two, name):
    model, other = two
    recipe = load_config([f"recipe.optimizer={name}", "recipe.no_decay=[bias,norm]"]).recipe
    ours, theirs = build_optimizer(model, recipe, imp_lr=2), THEIRS[name](parameter_groups(other, recipe, 2), recipe)
    assert isinstance(ours, type(theirs))
    take_steps(model, ours, 5)
    take_steps(other, theirs, 5)
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12, msg=key)


def test_one_kernel_updates_all_parameters_on_a_cpu_and_on_cuda():
    def on(*kinds):
        return _fused([{"params": [SimpleNamespace(device=torch.device(kind)) for kind in kinds]}])

    assert on("cpu", "cpu") and on("cuda:0", "cuda:1") and on("mps") is on("cpu", "cuda") is None


def test_the_learning_rate_follows_the_batch(two):
    """Of all processes and parts: accumulation does not change it. min_lr is as given, and so is the hash of old runs."""
    words = ["recipe.lr=0.1", "recipe.batch_size=64", "recipe.min_lr=0.01", "recipe.accumulate=2"]
    plain, config = load_config(words), load_config([*words, "recipe.lr_per=256"])
    optimizer = build_optimizer(two[0], config.recipe, imp_lr=2)
    assert {g["kind"]: g["lr"] for g in optimizer.param_groups} == {"decay": 0.025, "no_decay": 0.025, "imp": 0.05}
    last = build_schedule(optimizer, config.recipe, 1).lr_lambdas[0](config.recipe.epochs)
    assert last == pytest.approx(0.01 / 0.025) and hashed(plain).keys() == hashed(config).keys() - {"recipe.lr_per"}
    with pytest.raises(ConfigError, match=r"min_lr=0.03 is above recipe.lr=0.025 \(scaled by recipe.lr_per\)"):
        load_config([*words, "recipe.lr_per=256", "recipe.min_lr=0.03"])


@pytest.mark.parametrize("name", [*THEIRS, "lamb"])
def test_a_state_of_another_device_goes_on(two, name):
    """Saved where another kernel updated and weights lay otherwise in memory: ours decide, and it goes on bit for bit."""
    model, other = two
    recipe = load_config([f"recipe.optimizer={name}"]).recipe
    ours, restored = build_optimizer(model, recipe), build_optimizer(other, recipe)
    take_steps(model, ours, 2)
    state = copy.deepcopy(ours.state_dict())
    for group in state["param_groups"]:
        if "fused" in group:
            group |= dict(fused=None, foreach=True)
    for values in state["state"].values():
        values |= {k: v.contiguous() for k, v in values.items() if torch.is_tensor(v)}
    other.load_state_dict(model.state_dict())
    load_optimizer(restored, state)
    for mine, theirs in zip(restored.param_groups, ours.param_groups, strict=True):
        assert all(mine[key] == theirs[key] for key in theirs if key != "params")
    for p in other.parameters():
        assert all(v.stride() == p.stride() for v in restored.state[p].values() if getattr(v, "shape", 0) == p.shape)
    take_steps(model, ours, 2)
    take_steps(other, restored, 2)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
