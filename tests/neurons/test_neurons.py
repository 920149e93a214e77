"""Neurons: reference values, properties of the state equation, settings, and life among spikingjelly's tools."""

import json
import math
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import monitor
from spikingjelly.activation_based.neuron import BaseNode, IFNode, LIFNode
from torch import nn

from snn_repro.errors import UserError
from snn_repro.neurons import NEURONS, build_neuron, firing_rates
from snn_repro.neurons.surrogates import SURROGATES, Spike

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((GOLDEN_DIR / "neurons.json").read_text())
FAMILIES = sorted(n for n, cls in NEURONS.items() if "kernel" in vars(cls))  # the others: test_every_neuron.py


def neuron_with(imp_values, family, **overrides):
    neuron = build_neuron(family, imp=True, state_shape=imp_values.shape, **overrides).to(imp_values.dtype)
    with torch.no_grad():
        neuron.imp.copy_(imp_values)
    return neuron


# reference values


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_golden(case):
    """In float64; float32 by every backend: kernels/test_neuron_kernels.py."""
    case, dtype = GOLDEN["cases"][case], torch.float64
    near = lambda got, want: torch.testing.assert_close(  # noqa: E731
        got, torch.tensor(want, dtype=dtype), atol=1e-6, rtol=0
    )
    x = torch.tensor(GOLDEN[case["input"]], dtype=dtype, requires_grad=True)
    imp = torch.tensor(GOLDEN["imp"], dtype=dtype)
    neuron = neuron_with(imp, case["family"], **case["settings"])
    neuron.store_v_seq = True

    spikes = neuron(x)
    (spikes * torch.tensor(GOLDEN["w"], dtype=dtype)).sum().backward()

    assert spikes.dtype == dtype
    assert torch.equal(spikes, torch.tensor(case["spikes"], dtype=dtype))
    near(neuron.v_seq, case["v"])
    before = torch.cat([imp.expand(1, 2, 6), neuron.v_seq[:-1]])
    near(neuron.charge(before, x.detach()), case["h"])
    near(x.grad, case["grad_x"])
    near(neuron.imp.grad, case["grad_imp"])


# surrogates


@pytest.mark.parametrize(
    "name", ["atan", "sigmoid", "rectangle", "rectangle_closed", "dspike", "dspike_adaptive", "triangle"]
)
@pytest.mark.parametrize("width", [None, 0.7, 3.0])
def test_surrogate_derivative_matches_its_primitive(name, width):
    """The derivative equals the numerical slope of the function whose derivative it stands for."""
    a = SURROGATES[name].width if width is None else width
    primitive = {  # of a new one: whether it integrates to one, in test_surrogates.py
        "atan": lambda z: torch.atan(math.pi / 2 * a * z) / math.pi + 0.5,
        "sigmoid": lambda z: torch.sigmoid(a * z),
        "rectangle": lambda z: (z / a + 0.5).clamp(0, 1),
        "rectangle_closed": lambda z: (z / a + 0.5).clamp(0, 1),
        "dspike_adaptive": lambda z: torch.tanh(a * z.clamp(-0.5, 0.5)) / (2 * math.tanh(a / 2)) + 0.5,
        "dspike": lambda z: torch.tanh(a * z.clamp(-0.5, 0.5)) / (2 * math.tanh(a / 2)) + 0.5,
        "triangle": lambda z: torch.where(z.abs() > a, (z > 0).double(), 0.5 + z / a - z.sign() * z**2 / (2 * a**2)),
    }[name]
    z = torch.linspace(-4, 4, 201, dtype=torch.float64) + 1e-3
    z.requires_grad_()
    Spike(name, width)(z).sum().backward()
    step = 1e-6
    slope = (primitive(z.detach() + step) - primitive(z.detach() - step)) / (2 * step)
    torch.testing.assert_close(z.grad, slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_threshold_is_compared_exactly(dtype):
    z = torch.tensor([-1e-30, 0.0, 1e-30], dtype=dtype)
    assert Spike(fire_at="ge")(z).tolist() == [0, 1, 1]
    assert Spike(fire_at="gt")(z).tolist() == [0, 0, 1]
    assert Spike()(z).dtype == dtype


# the parameter


@pytest.mark.parametrize("family", FAMILIES)
def test_imp_is_drawn_at_construction_within_its_range(family):
    neuron = build_neuron(family, imp=True, state_shape=(3, 4, 4))
    low, high = NEURONS[family].settings["imp_init"].default
    assert [n for n, _ in neuron.named_parameters()] == ["imp"]
    assert neuron.imp.shape == (3, 4, 4) and neuron.imp.requires_grad
    assert low <= neuron.imp.min() < neuron.imp.max() <= high
    fixed = build_neuron(f"{family}_imp", state_shape=(2000,), imp_init=[-3, -2], imp_trainable=False).imp
    assert -3 <= fixed.min() < -2.9 and -2.1 < fixed.max() <= -2 and not fixed.requires_grad


def test_same_seed_same_imp_and_imp_shifts_no_later_draw():
    def build(imp):
        torch.manual_seed(3)
        neuron = build_neuron("if", imp=imp, state_shape=(10,))
        return neuron.imp, torch.rand(5)

    (imp, after), (again, _), (_, without) = build(True), build(True), build(False)
    assert torch.equal(imp, again) and torch.equal(after, without)


# bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="iff"), r"neuron.name='iff' is not one of if, lif, .*leaky.*did you mean 'if'"),
        (dict(name="if", v_treshold=2.0), r"neuron.v_treshold .*did you mean 'v_threshold'"),
        (dict(name="if", tau=3.0), "neuron.tau=3.0 belongs to neuron=lif"),
        (dict(name="if", v_threshold=0), "neuron.v_threshold=0.0 must be above 0"),
        (dict(name="if", v_threshold=float("nan")), "neuron.v_threshold=nan must be a finite number"),
        (dict(name="if", imp_init=[0.6, 0.4]), r"neuron.imp_init=\[0.6, 0.4\] must have low <= high"),
        (dict(name="if", imp_init=[0, True]), "neuron.imp_init=True must be a finite number"),
        (dict(name="if", surrogate="arctan"), r"neuron.surrogate='arctan' is not one of.*did you mean 'atan'"),
        (dict(name="if", v_reset=-1.0), "neuron.v_reset=-1.0 has no meaning with reset='soft'"),
        (dict(name="if", reset="hard", v_reset=2.0), "neuron.v_reset=2.0 must be below v_threshold=1.0"),
        (dict(name="if", initial="imp_layer"), "neuron.imp=true needs state_shape"),
        (
            dict(name="if", initial="half", imp=True),
            "neuron.imp=true and neuron.initial=half both say where a neuron starts",
        ),
        (dict(name="if_imp", state_shape=(3, 0)), r"state_shape=\(3, 0\) must hold positive integers"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        build_neuron(**arguments)


def test_settings_of_other_families_pass_at_their_defaults():
    build_neuron("if", tau=2.0, decay_input=True, retain=0.25, imp_init=None, surrogate_width=None, v_reset=0.0)
    assert build_neuron("lif", tau=1.0).tau == 1.0


def test_a_lif_with_undecayed_input_is_leaky():
    assert build_neuron("lif", tau=4.0, decay_input=False).law()[:2] == ("leaky", 0.75)
    assert build_neuron("lif", decay_input=True).law().charge == "lif"
    theirs = LIFNode(tau=4.0, decay_input=False, v_reset=None, step_mode="m")
    x = torch.randn(6, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(build_neuron("lif", tau=4.0, decay_input=False)(x), theirs(x))


def test_a_learned_threshold_resets_as_a_fixed_one_of_its_value():
    fixed, learned = (build_neuron("if", imp=False, v_threshold=0.75, backend="torch") for _ in range(2))
    learned.v_threshold = nn.Parameter(torch.tensor(0.75))
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    assert torch.equal(learned(x), fixed(x)) and torch.equal(learned.v.detach(), fixed.v) and fixed.v.max() < 1
    assert fixed(x).sum() > 3


def test_a_burst_has_five_levels_and_its_gradient_ends_half_a_level_beyond_them():
    neuron, far = build_neuron("lifb", imp=False), torch.tensor([-0.6, -0.4, 0.2, 4.4, 4.6, 9.0], requires_grad=True)
    n = neuron.count(far + neuron.v_threshold)
    assert n.tolist() == [0, 0, 1, 5, 5, 5]
    assert torch.autograd.grad(n.sum(), far)[0].tolist() == [0, 1, 1, 1, 0, 0]


def test_wrong_state_shape_is_named():
    neuron = build_neuron("leaky", imp=True, state_shape=(3, 8, 8))
    with pytest.raises(
        UserError, match=r"'leaky' layer has one IMP value for each of \[3, 8, 8\] neurons.*\[4, 2, 3, 8, 9\]"
    ):
        neuron(torch.zeros(4, 2, 3, 8, 9))
    for bad in (torch.zeros(5), torch.zeros(0, 2, 3, 8, 8)):
        with pytest.raises(UserError, match="at least one time step"):
            neuron(bad)


# spikingjelly


def test_families_are_spikingjelly_nodes():
    assert issubclass(NEURONS["if"], IFNode) and issubclass(NEURONS["lif"], LIFNode)
    for family, cls in NEURONS.items():
        assert cls.family == family and issubclass(cls, BaseNode)
        assert build_neuron(family, state_shape=(1,), timesteps=1).step_mode == "m"


def test_monitors_record_spikes_and_potentials():
    net = nn.Sequential(build_neuron("if"), build_neuron("lif", imp=True, state_shape=(4,)))
    for node in net:
        node.store_v_seq = True
    spikes = monitor.OutputMonitor(net, BaseNode)
    potentials = monitor.AttributeMonitor("v_seq", False, net, BaseNode)
    x = torch.ones(3, 2, 4)
    y = net(x)
    assert torch.equal(spikes.records[-1], y)
    assert [p.shape for p in potentials.records] == [(3, 2, 4)] * 2
    assert torch.equal(potentials.records[-1][-1], net[1].v)


def test_step_by_step_mode_is_refused():
    with pytest.raises(ValueError, match="step_mode"):
        build_neuron("if").step_mode = "s"


# firing rates


def test_firing_rates_weigh_every_neuron_step_alike():
    net = nn.Sequential(build_neuron("if"), nn.Identity(), build_neuron("leaky"))
    ones, zeros = torch.full((2, 1, 3), 2.0), torch.zeros(2, 3, 3)
    with firing_rates(net) as rates:
        net(ones)
        net(zeros)
        assert rates == {}
    assert rates == {"0": 0.25, "2": 0.125}  # the second layer keeps a quarter and fires above 1, at its second step
    net(ones)
    assert rates["0"] == 0.25
    assert not any(m._forward_hooks for m in net.modules())
