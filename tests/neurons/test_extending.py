"""A neuron, a surrogate and a norm from a file outside of the package: each is one class or function, and everything knows it."""

import copy
import importlib
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint as again

from snn_repro.config import load_config
from snn_repro.energy import energy_report
from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.models import NORMS, build_model, count_parameters
from snn_repro.neurons import NEURONS, SURROGATES, Setting, build_neuron, firing_rates, register, register_surrogate
from snn_repro.neurons.lif import LIF
from snn_repro.optim import build_optimizer, parameter_groups
from snn_repro.runs import checkpoint

IDEAS = '''
import math

import torch
from torch import nn

from snn_repro.models import register_norm
from snn_repro.neurons import Neuron, Setting, register, register_surrogate, settings


@register_surrogate("box", width=1.0)
def box(z, width):
    return (z.abs() < width / 2).to(z.dtype) / width


@register("mylif")
class MyLIF(Neuron):
    """h = v + (x - v) / tau, 1 / tau = sigmoid(w) learned (Fang et al., ICCV 2021)."""

    settings = settings(
        dict(reset="soft", surrogate="box", detach_reset=True, imp_init=(-0.1, 0.1)),
        tau=Setting(2.0, "initial membrane time constant", "time steps", above=1),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        self.w = nn.Parameter(torch.tensor(-math.log(self.tau - 1)))

    def charge(self, v, x):
        return v + (x - v) * self.w.sigmoid()


@register("adaptive")
class Adaptive(Neuron):
    """A second state: each spike raises the threshold for a while."""

    decayed = ("gain",)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def begin(self, x):
        self.fatigue = torch.zeros_like(x[0], dtype=torch.float32)

    def charge(self, v, x):
        return v + x

    def fire(self, h):
        s = super().fire(h - self.gain * self.fatigue)
        self.fatigue = 0.5 * self.fatigue + s
        return s


@register_norm("rms")
class RMS(nn.Module):
    def __init__(self, channels, timesteps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * x.square().mean((0, 1, 3, 4), keepdim=True).add(1e-5).rsqrt() * self.weight.view(-1, 1, 1)

    def parameter_kind(self, name):
        return "norm"
'''


@pytest.fixture
def ideas(tmp_path, monkeypatch):
    """The file above, imported from a folder of its own, and forgotten behind the test."""
    (tmp_path / "ideas.py").write_text(IDEAS)
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = [(registry, dict(registry), dict(registry._owners)) for registry in (NEURONS, SURROGATES, NORMS)]
    yield importlib.import_module("ideas")
    sys.modules.pop("ideas", None)
    for registry, things, owners in kept:
        registry.clear()
        registry.update(things)
        registry._owners.clear()
        registry._owners.update(owners)


def network(neuron="mylif", **options):
    torch.manual_seed(0)
    given = dict(norm="rms", neuron={"name": neuron, "imp": True}, **options)
    return build_model("small", num_classes=5, input_shape=(2, 16, 16), timesteps=3, **given)


def train(model, recipe, steps=3, optimizer=None, amp=False):
    optimizer = optimizer or build_optimizer(model, recipe)
    x = torch.rand(3, 2, 2, 16, 16, generator=torch.Generator().manual_seed(1)) * 2
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = build_loss("tet")(model(x), torch.tensor([1, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def test_they_train_checkpoint_and_reload(ideas, tmp_path):
    recipe = load_config(["recipe.lr=0.05", "recipe.weight_decay=0.1", "recipe.no_decay=[bias]"]).recipe
    model = network()
    before = copy.deepcopy(model.state_dict())
    losses, optimizer = train(model, recipe)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"bn1.weight", "sn1.w", "sn1.imp"} <= moved and losses[0] != losses[-1]
    checkpoint.save(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    onward, _ = train(model, recipe, optimizer=optimizer)

    found, other = checkpoint.load(tmp_path / checkpoint.LAST), network()
    checkpoint.load_model(other, found["model"], "the file")
    optimizer = build_optimizer(other, recipe)
    optimizer.load_state_dict(found["optimizer"])
    assert train(other, recipe, optimizer=optimizer)[0] == onward  # resumed bit for bit

    without = {k: v for k, v in found["model"].items() if not k.endswith(".imp")}
    checkpoint.save(tmp_path, without)
    said = []
    checkpoint.load_pretrained(network(), tmp_path / checkpoint.LAST, said.append)
    assert "3 IMP tensors are not in it and keep their random start" in said[0]
    odd = found["model"] | {"sn1.imp": torch.zeros(3)}
    with pytest.raises(checkpoint.CheckpointError, match="IMP has one value a neuron"):
        checkpoint.load_model(other, odd, "the file")


def test_their_parameters_are_known_by_who_owns_them(ideas):
    recipe = load_config(["recipe.weight_decay=0.1", "recipe.no_decay=[norm]"]).recipe
    for name, own, kind in (("mylif", "w", "no_decay"), ("adaptive", "gain", "decay")):
        model = network(name)
        groups = {g["kind"]: {id(p) for p in g["params"]} for g in parameter_groups(model, recipe, imp_lr=3)}
        owned = {n: id(p) for n, p in model.named_parameters()}
        assert {i for n, i in owned.items() if n.endswith(".imp")} == groups["imp"]
        assert {i for n, i in owned.items() if n.endswith(f".{own}")} <= groups[kind]
        assert {i for n, i in owned.items() if n.startswith("bn")} <= groups["no_decay"]
        assert owned["conv1.weight"] in groups["decay"]
        imp = sum(p.numel() for n, p in model.named_parameters() if n.endswith(".imp"))
        assert count_parameters(model) == (sum(p.numel() for p in model.parameters()) - imp, imp)


@pytest.mark.parametrize("neuron", ["mylif", "adaptive"])
def test_without_a_kernel_the_reference_runs_everywhere(ideas, neuron):
    """Behind a batch norm, with IMP, under AMP and checkpointing, and wherever else layers are counted."""
    recipe = load_config(["recipe.lr=0.05"]).recipe
    plain, _ = train(network(neuron), recipe)
    for checkpointing in ("norms", "blocks"):
        assert train(network(neuron, checkpointing=checkpointing), recipe)[0] == plain
    assert train(network(neuron, kernels="off"), recipe)[0] == plain
    assert all(map(torch.isfinite, map(torch.tensor, train(network(neuron), recipe, amp=True)[0])))
    layer, x = build_neuron(neuron, imp=True, state_shape=(4,)), torch.rand(3, 2, 4)
    torch.testing.assert_close(again(layer, x, use_reentrant=False), layer(x), rtol=0, atol=0)
    small = network(neuron)
    frames = torch.rand(3, 2, 2, 16, 16).unflatten(1, (2,))
    with firing_rates(small) as rates:
        small(frames).sum().backward()
    assert rates.keys() == {"sn1", "sn2", "sn3"} and all(p.grad is not None for p in small.parameters())
    report = energy_report(small, frames)
    assert report["imp"]["parameters"] == count_parameters(small)[1]
    with pytest.raises(
        UserError, match=f"neuron.backend=cpu has no kernel for '{neuron}' with these settings; use auto"
    ):
        build_neuron(neuron, backend="cpu")


def test_its_settings_are_checked(ideas):
    assert build_neuron("mylif_imp", state_shape=(3,), tau=4.0).w.sigmoid().item() == pytest.approx(0.25)
    with pytest.raises(UserError, match="neuron.tau=1.0 must be above 1"):
        build_neuron("mylif", tau=1)
    with pytest.raises(UserError, match="neuron.tau=3.0 belongs to neuron=lif or .*mylif; leave it out for 'if'"):
        build_neuron("if", tau=3.0)
    with pytest.raises(UserError, match="neuron.name='mylifs' is not one of if, lif, .*mylif, .*did you mean 'mylif'"):
        build_neuron("mylifs")
    assert "tau=2.0" in repr(build_neuron("mylif")) and "imp=None" in repr(build_neuron("mylif"))


def test_a_kernel_stands_for_the_class_that_names_it(monkeypatch):
    """Who changes a step has no kernel until it names one again, so the fast path never computes something else."""

    class Other(LIF):
        def charge(self, v, x):
            return v + 2 * x

    class Resets(LIF):
        def reset_potential(self, h, s):
            return h - 0.5 * s

    class Named(Other):
        def kernel(self):
            return "lif", self.tau

    class Mixin:
        def fire(self, h):
            return (h > 0.3).float()

    class Mixed(Mixin, LIF):
        pass

    class Same(LIF):
        """Another name alone."""

    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    for cls, fast in ((Other, False), (Resets, False), (Named, True), (Mixed, False), (Same, True)):
        layer = cls(tau=2.0, decay_input=True)
        assert layer.plan(x).backend == ("cpu" if fast else "torch"), cls
        if cls is not Named:
            assert torch.equal(layer(x), layer.steps(x, None)[0])
    learned = build_neuron("lif")
    learned.v_threshold = torch.nn.Parameter(torch.tensor(0.8))
    learned(x).sum().backward()
    assert learned.v_threshold.grad is not None
    other = build_neuron("if")
    monkeypatch.setitem(SURROGATES, "atan", SURROGATES["atan"]._replace(kernel=None))
    assert other.plan(x).backend == "torch"


def test_a_name_is_given_once():
    with pytest.raises(
        UserError, match="there is a neuron 'lif' already, snn_repro.neurons.lif.LIF; choose another name"
    ):

        @register("lif")
        class Mine(LIF):
            pass

    assert LIF.family == "lif" and NEURONS["lif"] is LIF
    with pytest.raises(UserError, match="there is a surrogate 'atan' already"):
        register_surrogate("atan", width=1.0)(lambda z, width: z)
    with pytest.raises(UserError, match="ending _imp stands for a learned initial potential"):
        register("my_imp")


def test_every_setting_says_what_it_means():
    for name, cls in NEURONS.items():
        for key, setting in cls.settings.items():
            assert isinstance(setting, Setting) and setting.help, (name, key)
            if setting.default is not None:
                setting.checked(key, setting.default)
