"""Backends of the neurons: the fused kernels give the reference's spikes and gradients, whatever the memory looks like."""

import copy
import functools
import json
import os
import signal
from itertools import product
from pathlib import Path

import pytest
import torch

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.kernels import compiled
from snn_repro.kernels import neuron as fused
from snn_repro.kernels import neuron_cpu as cpu
from snn_repro.neurons import build_neuron, resolve_backend
from snn_repro.runtime import pick_device

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "neurons.json").read_text())
PUBLISHED = {family: build_neuron(family) for family in ("if", "lif", "leaky")}


def case(family, hard, strict, detach, surrogate, **given):
    own = {"lif": {"tau": 3.0}, "leaky": {"retain": 0.3}}.get(family, {})
    fixed = dict(
        v_threshold=0.9, reset="hard" if hard else "soft", v_reset=-0.125 if hard else 0.0, fire_at="gt" if strict else "ge",
        detach_reset=detach, surrogate=surrogate,
    )  # fmt: skip
    return build_neuron(family, **{**fixed, **own, **given})


def run(x, v0, d, backend):
    """Spikes, last potential and recorded potentials of the neuron d by a backend."""
    d.backend = backend
    return d.update(x, v0)


# Every setting with every family, and most pairs: each costs a compilation.
SOME = [
    case("if", True, True, True, "triangle"),
    case("lif", False, True, False, "atan"),
    case("lif", True, False, True, "triangle"),
    case("leaky", False, False, True, "sigmoid"),
]


def name(d) -> str:
    reset, spike = "soft" if d.v_reset is None else "hard", d.surrogate_function
    return f"{d.family}-{reset}-{spike.fire_at}-{spike.surrogate}{'-detach' * d.detach_reset}"


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def differentiate(backend, x, v0, d, weights=None):
    """Spikes, last potential and the gradients of x and v0, of a sum that depends on both outputs."""
    x = x.detach().requires_grad_()
    v0 = None if v0 is None else v0.detach().requires_grad_()
    s, v, _ = run(x, v0, d, backend)
    weights = noise(*x.shape, seed=7, dtype=x.dtype) if weights is None else weights
    ((s * weights).float().sum() + v.cos().sum()).backward()
    return s.detach(), v.detach(), x.grad, None if v0 is None else v0.grad


def assert_same(backend, x, v0, d, weights=None):
    want, got = (differentiate(b, x, v0, d, weights) for b in ("torch", backend))
    assert torch.equal(got[0], want[0]) and got[0].dtype == x.dtype
    for g, w in zip(got[1:], want[1:], strict=True):
        if w is not None:
            assert g.dtype == w.dtype and g.shape == w.shape
            # Gradients reach 5 here; against float64 the reference itself is off by 3e-6, the kernel by 1.5e-6.
            near = dict(atol=1e-2, rtol=1e-2) if g.dtype == torch.bfloat16 else dict(atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(g, w, **near)


# the CPU kernel against the reference


@pytest.mark.parametrize("d", [*PUBLISHED.values(), *SOME, build_neuron("lif", tau=4.0, decay_input=False)], ids=name)
def test_published_neurons_and_other_settings(d):
    v0 = torch.linspace(-1, 1, 7 * 41).view(7, 41)
    for dtype in (torch.float32, torch.bfloat16) if d in PUBLISHED.values() else (torch.float32,):
        assert_same("cpu", noise(5, 3, 7, 41, dtype=dtype), v0, d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 160, 16384 + 32])
def test_neurons_that_do_not_fill_the_registers(size, dtype, monkeypatch):
    """With a shared, an own and no initial potential."""
    for stream in (0, 2**40):
        monkeypatch.setattr(cpu, "STREAM_BYTES", stream)
        x = noise(3, 2, size, dtype=dtype)
        for v0 in (None, noise(size, seed=1), noise(2, size, seed=1)):
            assert_same("cpu", x, v0, PUBLISHED["if"])
        assert_same("cpu", x[:, :1], None, PUBLISHED["if"])


@pytest.mark.parametrize("stream", [False, True], ids=["", "around the cache"])
@pytest.mark.parametrize("steps, size, d, dtype", [(9, 190, 1, torch.bfloat16), (21, 2112, 3, torch.float32)])
def test_many_steps_have_the_bits_of_few(steps, size, d, dtype, stream, monkeypatch):
    """A few at a time against all at once, for inputs of each step and for one that is repeated, by any threads."""
    d = SOME[d]
    monkeypatch.setattr(cpu, "STREAM_BYTES", 0 if stream else 2**40)
    monkeypatch.setattr(cpu, "SHARE", 64)
    for v0 in (None, noise(size, seed=1), noise(3, size, seed=1)):
        for x in (noise(steps, 3, size, dtype=dtype), noise(steps, 4, size, dtype=dtype)[:, 1:]):
            assert_same("cpu", x, v0, d)
            found = []
            for least, at_once in ((cpu.MANY, 1), (cpu.MANY, 3), (2**30, 1)):
                with monkeypatch.context() as patch:
                    patch.setattr(cpu, "MANY", least)
                    patch.setattr(torch, "get_num_threads", lambda n=at_once: n)
                    found.append(differentiate("cpu", x, v0, d))
            for others in zip(*found, strict=True):
                assert all(a is None or torch.equal(a, others[0]) for a in others)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_an_empty_batch(backend):
    neuron = build_neuron("if", imp=True, state_shape=(3, 4), backend=backend)
    x = torch.zeros(4, 0, 3, 4, requires_grad=True)
    neuron(x).sum().backward()
    assert x.grad.shape == x.shape and not neuron.imp.grad.any()


def test_not_a_number_infinity_and_the_exact_threshold():
    below, above = torch.nextafter(torch.tensor(1.0), torch.tensor([0.0, 2.0]))
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0, below, above, 0.0, -0.0, 1e-45, 3e38])
    x = values.repeat(3, 1, 7)
    for d in (*PUBLISHED.values(), *SOME):
        (s, v, _), (s_ref, v_ref, _) = run(x, None, d, "cpu"), run(x, None, d, "torch")
        assert torch.equal(s, s_ref)
        torch.testing.assert_close(v, v_ref, equal_nan=True, atol=0, rtol=0)
    assert_no_gradient_at_infinity("cpu")
    for d in PUBLISHED.values():  # one step: what is not a number stays visible in the gradient
        grads = [differentiate(b, x[:1], None, d)[2] for b in ("torch", "cpu")]
        torch.testing.assert_close(*grads, equal_nan=True)


def assert_no_gradient_at_infinity(backend):
    """The reset of the last step reaches no loss: 0 there, not 0 x infinity."""
    for steps in (1, 9):  # of many steps the CPU has another loop
        x = torch.full((steps, 1, 16), 0.4)
        x[-1, :, :8], x[-1, :, 8:] = torch.inf, -torch.inf
        grads = []
        for b in ("torch", backend):
            given = x.clone().requires_grad_()
            run(given, None, PUBLISHED["leaky"], b)[0].sum().backward()
            grads.append(given.grad)
        torch.testing.assert_close(*grads, atol=1e-6, rtol=0)
        assert not grads[1][-1].any()


def layouts(x):
    """x [T, B, C, H, W] with equal values and another memory each."""
    steps, batch, *rest = x.shape
    yield "contiguous", x.contiguous()
    yield "channels last", x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (steps, batch))
    yield "samples first", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "every second step", x.repeat_interleave(2, 0)[::2]
    yield "every second sample", x.repeat_interleave(2, 1)[:, ::2]
    yield "rows first", x.transpose(2, 3).contiguous().transpose(2, 3)
    yield "every second pixel", x.repeat_interleave(2, 4)[..., ::2]
    yield "shifted by one value", torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape)


@pytest.mark.parametrize("imp", [False, True], ids=["around the cache", "imp"])
def test_memory_layouts(imp, monkeypatch):
    monkeypatch.setattr(cpu, "STREAM_BYTES", 2**40 if imp else 0)
    x = noise(3, 4, 16, 6, 6)
    v0 = torch.linspace(-1, 1, 16 * 36).view(16, 6, 6) if imp else None
    d = PUBLISHED["if"]
    want = differentiate("torch", x, v0, d)
    for layout, same in layouts(x):
        assert torch.equal(same, x), layout
        first = differentiate("cpu", same, v0, d)
        assert torch.equal(first[0], want[0]), layout
        for got, wanted in zip(first[1:], want[1:], strict=True):
            if wanted is not None:
                torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5, msg=layout)
        if layout in ("contiguous", "channels last", "rows first"):
            assert first[0].stride() == same.stride() and first[2].stride() == same.stride(), layout
        for _, weights in layouts(noise(*x.shape, seed=7)):  # gradients come in any layout
            again = differentiate("cpu", same, v0, d, weights)
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, again, strict=True)), layout


def test_repeated_steps_and_samples_are_not_copied(monkeypatch):
    x = noise(1, 1, 6, 5)
    seen = []
    for place, name in ((0, "forward"), (2, "backward")):
        function = getattr(cpu, name)

        def spy(*args, function=function, place=place):
            seen.append(args[place].data_ptr())
            function(*args)

        monkeypatch.setattr(cpu, name, spy)
    for shape in ((4, 1, 6, 5), (4, 3, 6, 5)):
        repeated = x.expand(shape)
        assert_same("cpu", repeated, torch.zeros(6, 5), PUBLISHED["if"])
    assert seen == [x.data_ptr()] * 4


def test_threads_and_addresses_change_no_bit(monkeypatch):
    monkeypatch.setattr(cpu, "SHARE", 1)
    x, v0, d = noise(4, 33, 2001), noise(2001, seed=1), PUBLISHED["if"]
    results = []
    for n, offset in ((1, 0), (2, 1), (3, 16), (7, 5)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        moved = torch.cat([torch.zeros(offset), x.flatten()])[offset:].view(x.shape)
        results.append(differentiate("cpu", moved, v0, d, torch.ones(()).expand(x.shape)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_computes_too(monkeypatch):
    monkeypatch.setattr(cpu, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = noise(4, 8, 3000)
    run(x, None, PUBLISHED["if"], "cpu")  # starts the threads that a fork loses
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        s = run(x, None, PUBLISHED["if"], "cpu")[0]
        os._exit(0 if s.numpy().any() else 1)  # torch's own threads would not survive the fork
    assert os.waitpid(child, 0)[1] == 0


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled._folder.cache_clear()
    try:
        assert compiled._folder(__file__, "") is None
        assert compiled.compiled(lambda a: a + 1)(2) == 3
    finally:
        compiled._folder.cache_clear()


# where outputs lie


def outputs(shape=(4, 2, 2**19)):
    """Spikes, gradient and potential of a layer; 16 MiB of the first two."""
    x = noise(*shape).requires_grad_()
    layer = build_neuron("if", backend="cpu")
    s = layer(x)
    (gx,) = torch.autograd.grad(s, x, torch.ones_like(s))
    return s.detach(), layer.v.detach(), gx


def test_large_outputs_are_on_huge_pages_and_small_ones_are_left_alone(monkeypatch):
    """In anybody's program; in a run, which keeps its memory, and where madvise is missing or refuses, the same numbers."""
    monkeypatch.setattr(fused, "fresh", True)
    asked, real = [], fused._madvise
    monkeypatch.setattr(fused, "_madvise", lambda *a: asked.append((a[0].value, a[1].value)) or real(*a))
    found = outputs()
    for (at, size), x in zip(asked, found, strict=True):
        assert x.data_ptr() <= at < at + size <= x.data_ptr() + x.nbytes, "advice about memory of others"
        assert size >= fused.HUGE_PAGE
    outputs((4, 2, 64))
    assert len(asked) == 3
    monkeypatch.setattr(fused, "_madvise", lambda *a: -1)
    assert all(map(torch.equal, outputs(), found))
    pick_device(load_config(["device=cpu"]))
    assert not fused.fresh and all(map(torch.equal, outputs(), found))


def test_one_input_and_one_potential_are_saved():
    x, v0 = noise(4, 8, 100).requires_grad_(), noise(100).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        s, v, _ = run(x, v0, PUBLISHED["if"], "cpu")
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), v0.data_ptr()]


def test_a_second_derivative_is_refused():
    x = noise(3, 2, 4).requires_grad_()
    (grad,) = torch.autograd.grad(run(x, None, PUBLISHED["if"], "cpu")[0].sum(), x, create_graph=True)
    with pytest.raises(UserError, match="no second derivative; use kernels=off"):
        grad.sum().backward()


def test_a_compiled_layer():
    x = noise(3, 2, 8, 4, 4)
    v0, law = torch.linspace(-1, 1, 128).view(8, 4, 4), PUBLISHED["if"].law()

    @functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    def layer(x, v0):
        return fused.update(2 * x, v0, law, "cpu")[0] * 3

    for same in (x, dict(layouts(x))["channels last"]):
        grads = []
        for f in (layer, lambda x, v0: fused.update(2 * x, v0, law, "cpu")[0] * 3):
            a, b = same.detach().requires_grad_(), v0.detach().requires_grad_()
            y = f(a, b)
            y.cos().sum().backward()
            grads.append((y.detach(), a.grad, b.grad))
        for got, want in zip(*grads, strict=True):
            assert torch.equal(got, want) and got.stride() == want.stride()


class Smooth(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_the_reference_differentiates_any_smooth_spike_exactly():
    x = noise(3, 2, 4, dtype=torch.float64).requires_grad_()
    v0 = noise(4, seed=1, dtype=torch.float64).requires_grad_()
    for d in (*PUBLISHED.values(), *SOME):
        for spike in (lambda z: torch.sigmoid(3 * z), lambda z: torch.atan(3 * z)):
            smooth = copy.deepcopy(d)
            smooth.surrogate_function, smooth.detach_reset = Smooth(spike), False
            assert torch.autograd.gradcheck(lambda x, v0, d=smooth: run(x, v0, d, "auto")[:2], (x, v0))


# reference values


@pytest.mark.parametrize("backend", ["torch", "cpu", "spikingjelly", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", GOLDEN["cases"])
def test_golden_neurons(key, backend):
    if backend == "spikingjelly" and GOLDEN["cases"][key]["settings"]["fire_at"] == "gt":
        pytest.skip("spikingjelly has no such neuron")
    assert_golden(key, backend)


def assert_golden(key, backend):
    golden = GOLDEN["cases"][key]
    settings = golden["settings"] | {"backend": backend}
    neuron = build_neuron(golden["family"], imp=True, state_shape=torch.tensor(GOLDEN["imp"]).shape, **settings)
    with torch.no_grad():
        neuron.imp.copy_(torch.tensor(GOLDEN["imp"]))
    x = torch.tensor(GOLDEN[golden["input"]], requires_grad=True)
    spikes = neuron(x)
    (spikes * torch.tensor(GOLDEN["w"])).sum().backward()
    assert torch.equal(spikes, torch.tensor(golden["spikes"]))
    near = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=0)
    near(neuron.v, torch.tensor(golden["v"])[-1])
    near(x.grad, torch.tensor(golden["grad_x"]))
    near(neuron.imp.grad, torch.tensor(golden["grad_imp"]))


# the choice


def test_auto():
    for dtype in (torch.float32, torch.bfloat16):
        assert resolve_backend("auto", "cpu", dtype) == "cpu"
    assert resolve_backend("auto", "cpu", torch.float64) == resolve_backend("auto", "mps") == "torch"
    assert resolve_backend("auto", "cuda", torch.float64) == "torch"  # for float32 and less see test_triton.py
    for backend in ("torch", "spikingjelly"):
        assert resolve_backend(backend, "cuda", torch.float64) == backend
    neuron = build_neuron("if")
    assert neuron.backend == "auto" and neuron(torch.ones(2, 1, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name="if", backend="cuda"), "neuron.backend='cuda' is not one of auto, torch, cpu, triton, spikingjelly"),
        (dict(name="leaky", backend="spikingjelly"), "spikingjelly fires at h >= v_th only"),
        (dict(name="if", fire_at="gt", backend="spikingjelly"), "spikingjelly fires at h >= v_th only"),
        (dict(name="lif", reset="hard", v_reset=-0.5, backend="spikingjelly"), "leaks towards v_reset=-0.5"),
        (
            dict(name="if", backend="cpu"),
            "neuron.backend=cpu supports float32 and bfloat16 on the CPU, not float64 on cpu",
        ),
        (dict(name="if", backend="triton"), "neuron.backend=triton (needs|supports)"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(UserError, match=message):
        build_neuron(**settings)(torch.zeros(2, 1, 3, dtype=torch.float64))


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "triangle"])
def test_spikingjelly_agrees(surrogate):
    for family, (hard, detach, tau) in product(PUBLISHED, ((False, False, 2.0), (True, True, 3.0), (True, False, 1.0))):
        own = {"tau": tau} if family == "lif" else {"retain": 0.25} if family == "leaky" else {}
        d = case(family, hard, False, detach, surrogate, surrogate_width=1.7, v_reset=0.0, **own)
        for v0 in (None, noise(40, seed=1)):
            assert_same("spikingjelly", noise(4, 3, 40), v0, d)
    assert_same("spikingjelly", noise(4, 3, 40, dtype=torch.bfloat16), noise(40), PUBLISHED["if"])


# Triton, in the interpreter of test_triton.py


def interpret_triton():
    for key in GOLDEN["cases"]:
        assert_golden(key, "triton")
    assert_no_gradient_at_infinity("triton")
    for d in (*PUBLISHED.values(), *SOME, build_neuron("lif", tau=4.0, decay_input=False)):
        assert_same("triton", noise(3, 2, 45), noise(45, seed=1), d)
    d = PUBLISHED["if"]
    x = noise(2, 2, 4, 3, 3)
    for v0 in (None, noise(2, 4, 3, 3, seed=1)):
        assert_same("triton", x, v0, d)
    for _, same in layouts(x):
        assert_same("triton", same, noise(4, 3, 3, seed=1), d)
    assert_same("triton", noise(1, 1, 30).expand(4, 3, 30), noise(30, seed=1), d)
    assert_same("triton", noise(2, 2, 700), noise(700, seed=1), d)  # more than one block
    s = run(noise(4, 3, 45, dtype=torch.bfloat16), None, d, "triton")[0]
    assert torch.equal(s, run(noise(4, 3, 45, dtype=torch.bfloat16), None, d, "torch")[0])
