"""The Triton kernels without a GPU: in Triton's interpreter, compiled for GPUs that are not here, and the check that lets them run.

The interpreter is chosen when Triton is imported, so those tests run in a process of their own (`test_in_the_interpreter`).
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from snn_repro.errors import UserError
from snn_repro.kernels import Affine, door, selfcheck
from snn_repro.kernels import compiled as kept
from snn_repro.kernels import neuron as fused
from snn_repro.models import build_model
from snn_repro.models.blocks import Block
from snn_repro.models.norms import BN, TEBN
from snn_repro.neurons import build_neuron

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in test_in_the_interpreter")
outside = pytest.mark.skipif(INTERPRETED, reason="not in the interpreter")
CPU = torch.device("cpu")


def needs_interpreter() -> None:
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of older versions does not know NumPy 2.4")


def interpreter(**more: str) -> dict[str, str]:
    """The environment of a process in the interpreter."""
    return {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path), **more}


@outside
@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_the_interpreter(marks):
    needs_interpreter()
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", marks, __file__]
    done = subprocess.run(command, env=interpreter(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 3, done.stdout


@outside
def test_statistics_of_two_processes():
    """Fused, not fused, and one so and the other so: spikes, gradients and running statistics of one over all samples."""
    needs_interpreter()
    script = Path(__file__).with_name("two_processes.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    environments = [interpreter(**shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    both = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ranks = [subprocess.Popen([sys.executable, str(script)], env=e, **both) for e in environments]
    answers = [rank.communicate(timeout=600) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), answers
    for out, _ in answers:
        gaps = json.loads(out)
        assert len(gaps) == 5
        for case, found in gaps.items():
            near = 2e-3 if case == "half" else 2e-5
            exact = found["spikes"] == found["evaluation"] == 0
            assert exact and all(gap < near for gap in found.values()), (case, found)


# ---------------------------------------------------------------- in the interpreter: what the kernels compute


def frames(steps, batch, c, h, w, dtype=torch.float32, last=True, seed=0):
    x = torch.randn(steps * batch, c, h, w, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return x.unflatten(0, (steps, batch)).to(dtype)


def numbers(c, steps, te, given, seed=1):
    draw = torch.Generator().manual_seed(seed)
    rand = lambda n: torch.rand(n, generator=draw) + 0.5  # noqa: E731
    weight, bias, factors, mean, var = rand(c), rand(c) - 0.8, rand(steps), rand(c), rand(c)
    own = [weight, bias, factors if te else None]
    for parameter in own:
        if parameter is not None:
            parameter.requires_grad_()
    return Affine(*own, *((mean, var) if given else (None, None)), 1e-5)


def compute(x, v0, law, norm, steps, plus):
    """Spikes, last potential and gradients of all inputs, by the kernels."""
    s, v = fused.update(x, v0, law, "triton", norm, steps, plus)
    draw = torch.Generator().manual_seed(7)
    weights, of_last = (torch.randn(a.shape, generator=draw).to(a.dtype) for a in (s, v))
    inputs = [a for a in (x, v0, plus, *(norm or ())[:3]) if a is not None]
    return s.detach(), v.detach(), torch.autograd.grad([s, v], inputs, [weights, of_last]), (weights, of_last)


def agree(
    d, shape, dtype=torch.float32, last=True, imp=True, te=False, given=False, static=False, plus=False, normed=True
):
    """The kernels against autograd in double precision: no potential of these inputs is within rounding of the threshold."""
    steps, batch, c, h, w = shape
    x = frames(1 if static else steps, batch, c, h, w, dtype, last).requires_grad_()
    norm, law = numbers(c, steps, te, given) if normed else None, d.law()
    v0 = torch.linspace(-0.5, 0.5, c * h * w).view(c, h, w).requires_grad_() if imp else None
    more = frames(steps, batch, c, h, w, dtype, last, seed=3).round().requires_grad_() if plus else None
    s, v, found, (weights, of_last) = compute(x, v0, law, norm, steps, more)

    wide = [
        None if a is None else a.detach().double().requires_grad_() for a in (x, v0, more, *(norm or [None] * 3)[:3])
    ]
    z, u, add, weight, bias, factors = wide
    if normed:
        mean, var = (None if a is None else a.double().view(-1, 1, 1) for a in norm[3:5])
        if mean is None:
            mean = z.mean((0, 1, 3, 4), keepdim=True)
            var = (z - mean).square().mean((0, 1, 3, 4), keepdim=True)
        z = (z - mean) / (var + 1e-5).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    z = z.expand(steps, *z.shape[1:])
    z = z if factors is None else z * factors.view(-1, 1, 1, 1, 1)
    spikes, last_v, _ = d.steps(z, u)
    total = spikes if add is None else spikes + add
    assert torch.equal(s.double(), total.detach())
    torch.testing.assert_close(v.double(), last_v.detach(), atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(
        [total, last_v], [a for a in wide if a is not None], [weights.double(), of_last.double()]
    )
    near = {torch.float32: 5e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b).abs().max() <= near[a.dtype] * b.abs().max()


IF, LIF, LEAKY = build_neuron("if"), build_neuron("lif", tau=3.0), build_neuron("leaky")
HARD = build_neuron("lif", reset="hard", v_reset=-0.125, fire_at="gt", detach_reset=True, surrogate="triangle")


@interpreted
@pytest.mark.parametrize(
    ("d", "shape", "how"),
    [
        (IF, (4, 3, 24, 5, 3), dict(plus=True)),
        (LIF, (3, 2, 7, 3, 3), dict(last=False, te=True, dtype=torch.float16)),
        (LEAKY, (5, 2, 40, 3, 2), dict(static=True, te=True, imp=False, dtype=torch.bfloat16)),
        (HARD, (1, 2, 130, 3, 1), dict(given=True, plus=True)),
        (LIF, (3, 2, 5, 3, 3), dict(normed=False, plus=True)),
    ],
)
def test_values_and_gradients(d, shape, how):
    agree(d, shape, **how)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_random_cases(seed):
    draw = random.Random(seed)
    some = lambda *of: draw.choice(of)  # noqa: E731
    d = build_neuron(
        some("if", "lif", "leaky"), reset=some("soft", "hard"), fire_at=some("ge", "gt"), detach_reset=some(True, False),
        surrogate=some("atan", "sigmoid", "triangle"), v_threshold=some(1.0, 0.9),
    )  # fmt: skip
    steps = (1, 2, 3, 4, 6, 10, 17, 32)[seed % 8]
    shape = (steps, some(1, 2, 3), some(1, 3, 24, 65, 140), some(1, 3, 5), some(1, 2, 7))
    if shape[1] * shape[3] * shape[4] < 4:  # a variance of one or two values
        shape = (steps, 3, *shape[2:])
    flags = {name: some(True, False) for name in ("last", "imp", "te", "given", "static", "plus")}
    agree(d, shape, some(torch.float32, torch.float16, torch.bfloat16), **flags)


@interpreted
def test_everything_that_the_cpu_kernel_is_tested_by():
    from test_neuron_kernels import interpret_triton

    interpret_triton()


@contextlib.contextmanager
def guarded():
    """Within, whatever the kernels fill is not-a-number, framed by a pattern that must be whole at the end."""
    from snn_repro.kernels import neuron_triton

    frames, margin, pattern = [], 64, 12345.0

    def framed(shape, strides, dtype):
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        memory = torch.full((span + 2 * margin,), torch.nan, dtype=dtype)
        frames.extend([memory[:margin].fill_(pattern), memory[margin + span :].fill_(pattern)])
        return memory.as_strided(shape, strides, margin)

    def empty_as(x, layout, lead=0, dtype=None):
        return framed(x.shape[lead:], layout.strides[lead:], dtype or x.dtype)

    def new(x, *shape):
        return framed(shape, torch.empty(shape).stride(), torch.float32)

    with mock.patch.object(fused, "empty_as", empty_as), mock.patch.object(neuron_triton, "_new", new):
        yield
    assert all((frame == torch.tensor(pattern, dtype=frame.dtype)).all() for frame in frames), "written outside"


@interpreted
def test_nothing_is_written_outside_and_nothing_read_unwritten(monkeypatch):
    from snn_repro.kernels import neuron_triton as nt

    monkeypatch.setattr(nt, "PROGRAMS", 2)  # each walks over several samples
    monkeypatch.setattr(nt, "_values", lambda x, steps: 32)
    x = frames(2, 3, 12, 3, 2).requires_grad_()
    v0 = torch.rand(12, 3, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with guarded():
        s, v, gradients, _ = compute(x, v0, IF.law(), numbers(12, 2, True, False), 2, None)
    assert all(torch.isfinite(a).all() for a in (s, v, *gradients))


@interpreted
def test_the_operator_keeps_torchs_rules():
    x = frames(2, 2, 4, 3, 3).requires_grad_()
    norm, plus = numbers(4, 2, True, False), frames(2, 2, 4, 3, 3, seed=3).requires_grad_()
    imp = torch.rand(4, 3, 3, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    arguments = (x, imp, *norm[:5], 1e-5, False, 2, "triton", *IF.law(), plus)
    torch.library.opcheck(torch.ops.snn_repro.neuron.default, arguments, test_utils=tests)


@interpreted
def test_a_network_computes_the_same_with_its_shortcut_inside():
    torch.manual_seed(0)
    given = dict(num_classes=10, input_shape=(1, 4, 4), timesteps=2, neuron={"name": "if", "imp": True})
    networks = [build_model("small", **given, kernels=word) for word in ("off", "triton")]
    networks[1].load_state_dict(networks[0].state_dict())
    networks = [n.to(memory_format=torch.channels_last) for n in networks]
    x, called = torch.rand(4, 1, 4, 4), []
    networks[1].bn3.forward = lambda x: called.append(1)
    logits = [network(x) for network in networks]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), list(n.parameters())) for y, n in zip(logits, networks, strict=True)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item() + 1e-7, rtol=1e-3)
    for a, b in zip(*(n.buffers() for n in networks), strict=True):
        torch.testing.assert_close(a, b)
    assert not called


@interpreted
def test_what_is_computed_together():
    """By layout, dtype and number of steps; the rest stays apart, and is right."""

    def together(norm, x, neuron=None):
        neuron = neuron or build_neuron("if", backend="triton")
        return neuron.plan(x, norm.affine_form()).norm is not None

    assert together(BN(4), frames(3, 2, 4, 5, 5)) and together(TEBN(4, 3), frames(3, 2, 4, 5, 5, torch.float16))
    assert together(BN(4), frames(3, 2, 4, 4, 4, last=False))
    assert not together(BN(4), frames(3, 2, 4, 5, 5, last=False))  # planes that are no whole vectors
    assert not together(BN(4), frames(65, 2, 4, 5, 5)) and not together(BN(4).half(), frames(3, 2, 4, 5, 5))
    assert not together(BN(4), frames(3, 2, 4, 5, 5)[..., ::2])
    watched = build_neuron("if", backend="triton")
    watched.store_v_seq = True
    assert not together(BN(4), frames(3, 2, 4, 5, 5), watched)
    x, plus, neuron = frames(3, 2, 4, 5, 5), frames(3, 2, 4, 5, 5, seed=2), build_neuron("if", backend="triton")
    alone = Block().fire(x, BN(4), neuron)
    assert torch.equal(Block().fire(x, BN(4), neuron, plus=lambda: plus), plus + alone)
    assert torch.equal(Block().fire(x, BN(4), neuron, plus=lambda: plus.double()), plus.double() + alone)


# the check, where a kernel is wrong


@interpreted
@pytest.mark.parametrize(
    "law", [LIF.law(), *(pytest.param(d.law(), marks=pytest.mark.slow) for d in (IF, LEAKY, HARD))]
)
def test_the_check_passes(law):
    """Of memory that is only mapped, some steps begin 2^31 values behind the first."""
    assert selfcheck.examine(law, torch.float16, 2, CPU) == ""
    assert not selfcheck.compare(law, torch.float16, 3, CPU, (2, 5, 3, 3), "wide norm imp")


@interpreted
def test_a_wrong_kernel_is_refused(monkeypatch):
    from snn_repro.kernels import neuron_triton as nt

    with monkeypatch.context() as patch:
        patch.setattr(nt, "_settings", lambda law, of=nt._settings: of(law) | {"V_THRESHOLD": 1.25})
        assert "fire differently than on the CPU" in selfcheck.examine(IF.law(), torch.float32, 2, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(nt, "SLOPES", ("sigmoid", "atan", "triangle"))
        assert "gradients are wrong" in selfcheck.examine(IF.law(), torch.float32, 2, CPU)


# ---------------------------------------------------------------- the verdict


@pytest.fixture
def verdicts(tmp_path, monkeypatch):
    """An empty cache, and a function that makes the check's process run other code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "_measured", {})
    door._verdict.cache_clear()
    door._warn_once.cache_clear()
    asked = []

    def child(code):
        asked.clear()
        monkeypatch.setattr(selfcheck, "_command", lambda case: asked.append(case) or [sys.executable, "-c", code])
        monkeypatch.setattr(kept, "_measured", {})  # as in the next process
        door._verdict.cache_clear()
        return asked

    return child


CASE = (IF.law(), torch.float32, 4, CPU)


@outside
def test_a_verdict_is_kept_until_a_kernel_changes(verdicts, monkeypatch):
    asked = verdicts("print('\"\"')")
    assert selfcheck.refusal(*CASE) is None and len(asked) == 1
    asked = verdicts("print('\"it is wrong\"')")
    assert selfcheck.refusal(*CASE) is None and not asked
    assert selfcheck.refusal(IF.law(), torch.float16, 4, CPU) == "it is wrong" and len(asked) == 1
    monkeypatch.setattr(selfcheck, "fingerprint", lambda: "changed")
    asked = verdicts("print('\"it is wrong\"')")
    assert selfcheck.refusal(*CASE) == "it is wrong" and len(asked) == 1


@outside
def test_a_crash_is_a_refusal_and_auto_stays_with_torch(verdicts, monkeypatch):
    asked = verdicts("import os, sys; print('an illegal access', file=sys.stderr, flush=True); os.abort()")
    reason = selfcheck.refusal(*CASE)
    assert f"code {-signal.SIGABRT}" in reason and "an illegal access" in reason
    monkeypatch.setattr(door, "resolve_backend", lambda *a: "triton")
    with pytest.warns(RuntimeWarning, match="not used on .*an illegal access.*using PyTorch") as said:
        for _ in range(3):
            assert build_neuron("if").plan(torch.zeros(4, 2, 3)).backend == "torch"
    assert len(said) == 1 and len(asked) == 2  # the call above and the first layer; what broke off is not kept
    assert build_neuron("if", backend="triton").plan(torch.zeros(4, 2, 3)).backend == "triton"  # by name: as asked
    with pytest.warns(RuntimeWarning, match="65 time steps do not fit"):
        assert build_neuron("if").plan(torch.zeros(65, 2, 3)).backend == "torch" and len(asked) == 2
    model = torch.nn.Sequential(build_neuron("if"))
    assert door.prepare(model, CPU, (torch.float32,), 4) == "torch"
    verdicts("print('\"\"')")
    monkeypatch.setattr(selfcheck, "fingerprint", lambda: "mended")
    assert door.prepare(model, CPU, (torch.float32,), 4) == "triton"
    assert build_neuron("if").plan(torch.zeros(4, 2, 3)).backend == "triton"


@outside
def test_a_check_that_broke_off_is_made_again(verdicts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # which cannot be written to
    asked = verdicts("import sys; sys.exit('out of memory')")
    assert "ended with code 1 (out of memory)" in selfcheck.refusal(*CASE) and len(asked) == 1
    asked = verdicts("print('\"\"')")
    assert selfcheck.refusal(*CASE) is None and selfcheck.refusal(*CASE) is None and len(asked) == 1
    monkeypatch.setattr(selfcheck, "TIMEOUT", 0.01)
    asked = verdicts("import time; time.sleep(5)")
    assert "did not finish" in selfcheck.refusal(*CASE) and len(asked) == 1


# ---------------------------------------------------------------- the door


@outside
def test_an_old_triton_is_refused_in_words(monkeypatch):
    door._warn_once.cache_clear()
    assert door.resolve_backend("auto", "cuda", torch.float16) == "triton"
    assert door.resolve_backend("auto", "cuda", torch.float64) == "torch"
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    with pytest.raises(UserError, match="neuron.backend=triton needs triton 3.3 or newer.* not 3.2.0; update torch"):
        door.resolve_backend("triton", "cuda")
    with pytest.warns(RuntimeWarning, match="needs triton 3.3 or newer.*using PyTorch") as said:
        for _ in range(3):
            assert door.resolve_backend("auto", "cuda", torch.float16) == "torch"
    assert len(said) == 1
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match="needs the package triton"):
        door.resolve_backend("triton", "cuda")


# ---------------------------------------------------------------- compiled for GPUs that are not here


def compile_for(monkeypatch, capability, steps, dtype, d, normed=True, last=True, plus=False, te=False, static=False):
    """Compile all that a layer launches, by a driver that launches nothing: no registers are spilled."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from snn_repro.kernels import neuron_triton as nt

    class Nothing:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", capability, 32))
        get_current_device = staticmethod(lambda: capability)
        get_current_stream = staticmethod(lambda device: 0)

    found = []

    class Compile:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **how: found.append((self.kernel, self.kernel.warmup(*args, grid=grid, **how)))

    before = dict(vars(driver))
    driver.set_active(Nothing())
    try:
        with monkeypatch.context() as patch:
            for name in ("_forward", "_backward", "_moments", "_tables", "_gradients"):
                patch.setattr(nt, name, Compile(getattr(nt, name)))
            x = frames(1 if static else steps, 8, 64, 4, 4, dtype, last)
            law, number = d.law(), torch.ones(64)
            norm = nt.norm(x, number, number, torch.ones(steps) if te else None, None, None, 1e-5) if normed else None
            x, v0, shape = x.expand(steps, *x.shape[1:]), torch.ones(64, 4, 4), (steps, 8, 1024)
            gx = x[:1] if static else x
            nt.forward(x, v0, 0, x, x[0].float(), shape, law, norm, x if plus else None)
            nt.backward(
                x, None, x, v0, 0, gx, v0, shape, law, norm, True, (number, number, torch.ones(steps) if te else None)
            )
    finally:
        vars(driver).clear()
        vars(driver).update(before)
    disassemble = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    for kernel, binary in found:
        file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
        file.write_bytes(binary.asm["cubin"])
        sass = subprocess.run([disassemble, "-c", file], capture_output=True, text=True, check=True).stdout
        assert len(re.findall(r"\bLDL\b", sass)) <= 2, (kernel.__name__, "spills")
    assert len(found) == (6 if normed else 2)


CASES = [(90, 16, torch.float16, IF, dict(plus=True))] + [
    pytest.param(*given, marks=pytest.mark.slow)
    for given in (
        *((80, 16, dtype, d, dict(plus=True)) for d in (LIF, LEAKY, HARD) for dtype in (torch.float16, torch.float32)),
        (80, 4, torch.float32, LIF, dict(plus=True)),
        (90, 10, torch.bfloat16, IF, dict(te=True)),
        (90, 16, torch.float16, IF, dict(te=True, last=False)),
        (80, 16, torch.float16, LEAKY, dict(te=True, static=True)),
        (90, 16, torch.float32, LEAKY, dict(normed=False)),
    )
]


@outside
@pytest.mark.skipif(
    not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists(), reason="no ptxas here"
)
@pytest.mark.parametrize(("capability", "steps", "dtype", "d", "how"), CASES)
def test_kernels_compile_without_spills(capability, steps, dtype, d, how, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compile_for(monkeypatch, capability, steps, dtype, d, **how)
