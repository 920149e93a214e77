"""kernels=compile: the steps of any neuron as graphs, which give the reference's spikes and gradients."""

import pytest
import torch
from test_neuron_kernels import noise

from snn_repro.errors import UserError
from snn_repro.kernels import door, steps
from snn_repro.models import build_model
from snn_repro.neurons import NEURONS, Neuron, build_neuron, settings

T, SHAPE = 4, (3, 5, 2)


class TwoStates(Neuron):
    """A neuron from outside whose threshold rises with its spikes; it leaves its second state behind."""

    family, settings = "two_states", settings({})

    def __init__(self, **given):
        super().__init__(**given)
        self.rise = torch.nn.Parameter(torch.tensor(0.2))

    def begin(self, x):
        self.a = 0.0

    def charge(self, v, x):
        return v / 2 + x

    def fire(self, h):
        s = self.surrogate_function(h - self.v_threshold - self.a)
        self.a = 0.9 * self.a + self.rise * s
        return s


WITHOUT_GRAPHS = {
    "counts its calls": dict(begin=lambda self, x: vars(self).update(a=0.0, calls=vars(self).get("calls", 0) + 1)),
    "keeps a state": dict(begin=lambda self, x: vars(self).setdefault("a", torch.zeros(()))),
    "is random": dict(charge=lambda self, v, x: v / 2 + x + 0.1 * torch.rand_like(x)),
    "connects neurons": dict(charge=lambda self, v, x: v / 2 + x + 0.1 * v.mean(-1, keepdim=True)),
}


def build(name, **given):
    if name not in NEURONS:
        return TwoStates(**given)
    return build_neuron(name, imp="imp_init" in NEURONS[name].settings, state_shape=SHAPE, timesteps=T, **given)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that torch runs as they are traced; returns them."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda graph, **how: made.append(graph) or graph)
    monkeypatch.setattr(steps, "_found", {})
    monkeypatch.setattr(steps, "_compiled", {})
    return made


def results(layer, x, backend):
    layer.backend = backend
    x = x.detach().requires_grad_()
    s = layer(x)
    learned = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return s, layer.v, *torch.autograd.grad(s, learned, noise(*x.shape, seed=7, dtype=x.dtype))


def assert_same(layer, x):
    (s, *wanted), (s_graphs, *found) = (results(layer, x, backend) for backend in ("torch", "compile"))
    assert torch.equal(s_graphs, s) and s_graphs.dtype == s.dtype
    for got, want in zip(found, wanted, strict=True):
        near = 3e-2 if want.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(got, want, atol=near, rtol=near)


def assert_same_in_all_memory(name):
    layer, x = build(name), 0.5 + noise(T, 2, *SHAPE)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 2))
    for given in (x, last, x[:1].expand(T, 2, *SHAPE), x.bfloat16()):
        assert_same(layer, given)


QUICK = ("glif", "two_states")  # both forms of graphs


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in (*NEURONS, "two_states")]
)
def test_graphs_are_the_reference(name, graphs):
    assert_same_in_all_memory(name)


@pytest.mark.slow
def test_every_neuron_compiled():
    """In one process: no family meets the limit on recompilations of another."""
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        for name in (*NEURONS, "two_states"):
            assert_same_in_all_memory(name)


def test_one_family_compiled_for_all_sizes_and_modes(monkeypatch):
    monkeypatch.setattr(steps, "_found", {})
    made, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda graph, **how: made.append(graph) or real(graph, **how))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for shape in ((2, 7), (3, 4, 5, 5)):
            layer = build_neuron("if", state_shape=shape[1:])
            for layer.training in (True, False):
                assert_same(layer, noise(2, *shape))
    assert len(made) == 2, "one graph of the outputs, one of the gradients"


@pytest.mark.parametrize("kind", WITHOUT_GRAPHS)
def test_without_graphs_the_reference_runs(kind, graphs):
    """With one line, or an error where graphs were requested by name."""
    x, layer = noise(T, 2, *SHAPE), type("Kind", (TwoStates,), WITHOUT_GRAPHS[kind])()
    layer.repays = True
    door._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="the steps of 'two_states' are not compiled .*using PyTorch: same results"):
        layer(x)
    assert not door.compiles(layer)
    with pytest.raises(
        UserError, match="kernels=compile: the steps of 'two_states' are not compiled .*use kernels=auto"
    ):
        results(layer, x, "compile")


def test_auto_compiles_in_a_run_that_repays_it(graphs, monkeypatch):
    model = build_model("small", num_classes=2, input_shape=(1, 8, 8), timesteps=T, neuron={"name": "plif"})

    def backend():
        return door.prepare(model, torch.device("cpu"), (torch.float32,), T)

    for steps_, samples, how, chosen in (
        (T, 100, "by PyTorch", "torch"),
        (40, 10**8, "T=40", "torch"),
        (T, 10**8, "compiles the steps of plif", "compile"),
    ):
        assert how in door.compile_if_repaid(model, steps_, samples) and backend() == chosen
    with door.off(model):
        assert backend() == "torch"
    monkeypatch.setattr(steps, "_compare", lambda *given: False)
    door._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="'plif' are not compiled .*not faster here"):
        model(torch.rand(2, 1, 8, 8))
    assert backend() == "torch"
    plain = build_model("small", num_classes=2, input_shape=(1, 8, 8), timesteps=T, neuron={"name": "if"})
    assert door.compile_if_repaid(plain, T, 10**8) is None


def test_gradients_of_the_last_potential_and_of_gradients(graphs):
    layer, grads = build("plif", detach_reset=False), []
    x = noise(T, 2, *SHAPE).requires_grad_()
    for layer.backend in ("torch", "compile"):
        s, v, _ = layer.update(x, layer.imp)
        grads.append(torch.autograd.grad(v.cos().sum() + s.sum(), [x, layer.imp, layer.w]))
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="no second derivative; use kernels=off"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
