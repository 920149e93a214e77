"""Batch norm and neuron as one operator: the values, gradients and statistics of the two apart, with half of what they save."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from snn_repro.errors import UserError
from snn_repro.kernels import neuron_cpu
from snn_repro.models import build_model
from snn_repro.models.blocks import Block
from snn_repro.models.norms import BN, TEBN, GestureTEBN
from snn_repro.neurons import build_neuron


def frames(steps, batch, channels, height, width, seed=0):
    x = torch.randn(steps * batch, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return x.contiguous(memory_format=torch.channels_last).unflatten(0, (steps, batch))


def a_norm(channels, timesteps=None, seed=3):
    draw = torch.Generator().manual_seed(seed)
    norm = BN(channels) if timesteps is None else TEBN(channels, timesteps)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.4, 1.6, generator=draw)
    return norm


def together(neuron, x, affine, timesteps):
    """Spikes of a neuron and the norm before it, by one kernel."""
    plan = neuron.plan(x, affine, timesteps)
    assert plan.backend == "cpu" and plan.norm is affine
    return neuron(x, plan)


def apart(x, norm, neuron, timesteps):
    """The same in double precision by PyTorch: z, spikes and the last potential."""
    z = norm(x).expand(timesteps, *x.shape[1:])
    v0 = None if neuron.imp is None else neuron.imp
    return (z, *neuron.steps(z, v0)[:2])


SHAPES = {
    "vectors": (4, 4, 3, 16, 5, 7),  # timesteps, steps of x, B, C, H, W
    "odd": (5, 5, 2, 3, 9, 9),
    "one channel, one step": (1, 1, 3, 1, 6, 5),
    "many channels": (3, 3, 2, 300, 4, 4),
    "static": (4, 1, 3, 24, 8, 8),
    "blocks": (10, 10, 2, 64, 24, 24),
}


@pytest.mark.parametrize(
    "family, given",
    [
        ("if", dict(reset="hard", v_reset=-0.2)),
        ("lif", dict(surrogate="sigmoid")),
        ("leaky", {}),
        ("lif", dict(decay_input=False, detach_reset=True)),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_of_the_two_apart(family, given, shape):
    timesteps, steps, batch, *rest = SHAPES[shape]
    torch.manual_seed(0)
    for imp, te in product((False, True), repeat=2):
        x = frames(steps, batch, *rest).requires_grad_()
        norm, neuron, *wide = (
            part
            for _ in range(2)
            for part in (
                a_norm(rest[0], timesteps if te else None),
                build_neuron(family, imp=imp, state_shape=rest, **given),
            )
        )
        wide[0].double()
        wide[1].load_state_dict(neuron.state_dict())
        wide[1].double()
        spikes = together(neuron, x, norm.affine_form(), timesteps)
        weights = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1))
        last = torch.randn(neuron.v.shape, generator=torch.Generator().manual_seed(2))
        parameters = [x, *norm.parameters(), *neuron.parameters()]
        _, v, _ = neuron.update(x, neuron.imp, neuron.plan(x, norm.affine_form()._replace(learn=None), timesteps))
        assert torch.equal(v, neuron.v)
        found = torch.autograd.grad((spikes * weights).sum() + (v * last).sum(), parameters)

        other = x.detach().double().requires_grad_()
        _, s, u = apart(other, *wide, timesteps)
        assert torch.equal(s.float(), spikes)  # no potential of these inputs is within rounding of the threshold
        torch.testing.assert_close(v, u.float(), atol=2e-5, rtol=2e-5)
        wanted = torch.autograd.grad(
            (s * weights).sum() + (u * last).sum(), [other, *wide[0].parameters(), *wide[1].parameters()]
        )
        for g, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(
                g, w.float(), atol=max(5e-6 * w.abs().max().item(), 2e-6), rtol=0
            )  # a sum may nearly cancel
        for name, buffer in norm.named_buffers():
            assert torch.allclose(buffer.double(), wide[0].get_buffer(name).double(), atol=1e-6), name


def test_the_arithmetic_is_one_multiplication_and_one_addition():
    """Bit for bit: z = scale * x + shift in float32, then the reference's steps."""
    x, norm, neuron = frames(4, 3, 32, 8, 8), a_norm(32), build_neuron("if", imp=True, state_shape=(32, 8, 8))
    _, _, mean, var, _ = torch.ops.snn_repro.neuron(
        x, neuron.imp, norm.weight, norm.bias, None, None, None, norm.eps, False, 4, "cpu", *neuron.law(), None
    )
    inverse = (var.double() + norm.eps) ** -0.5
    scale, shift = norm.weight * inverse, norm.bias - mean.double() * norm.weight * inverse
    z = scale.float().view(-1, 1, 1) * x + shift.float().view(-1, 1, 1)
    with torch.no_grad():
        spikes, v, _ = neuron.steps(z, neuron.imp)
        assert torch.equal(together(neuron, x, norm.affine_form(), 4), spikes) and torch.equal(neuron.v, v)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    torch.manual_seed(0)
    x, norm, neuron = frames(4, 3, 16, 6, 6).requires_grad_(), a_norm(16).eval(), build_neuron("if")
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    before = {k: v.clone() for k, v in norm.named_buffers()}
    spikes = together(neuron, x, norm.affine_form(), 4)
    other = x.detach().double().requires_grad_()
    wide = a_norm(16).double().eval()
    wide.load_state_dict(norm.state_dict())
    _, s, _ = apart(other, wide, neuron, 4)
    assert torch.equal(spikes, s.float())
    assert all(torch.equal(v, before[k]) for k, v in norm.named_buffers())
    weights = torch.randn(s.shape)
    found = torch.autograd.grad((spikes * weights).sum(), [x, *norm.parameters()])
    wanted = torch.autograd.grad((s * weights).sum(), [other, *wide.parameters()])
    for g, w in zip(found, wanted, strict=True):  # statistics that do not depend on x pass no gradient to it
        torch.testing.assert_close(g, w.float(), atol=3e-6 * w.abs().max().item(), rtol=0)


def test_the_number_of_threads_changes_no_number(monkeypatch):
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        x, norm, neuron = frames(4, 4, 64, 32, 32).requires_grad_(), a_norm(64), build_neuron("if")
        spikes = together(neuron, x, norm.affine_form(), 4)
        found.append([spikes, *torch.autograd.grad(spikes.square().sum(), [x, *norm.parameters()]), norm.running_var])
    assert all(map(torch.equal, *found))


def test_moments_far_from_zero_and_of_constants():
    rng = np.random.RandomState(0)
    x = rng.randn(5000, 7).astype(np.float32) * np.float32(0.01) + np.arange(7, dtype=np.float32) * 1000
    x[:, 3] = 5.5
    for rows in (1, 2, 63, 64, 129, 5000):
        mean, var = np.empty(7), np.empty(7)
        neuron_cpu.moments(x[:rows], mean, var)
        wide = x[:rows].astype(float)
        np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(var, wide.var(0), rtol=1e-5, atol=1e-12)
        assert var[3] == 0


def test_only_the_input_is_saved():
    x, norm, neuron, kept = frames(4, 4, 16, 8, 8).requires_grad_(), a_norm(16), build_neuron("if"), {}
    keep = lambda t: kept.__setitem__(t.data_ptr(), t.numel()) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        together(neuron, x, norm.affine_form(), 4)
    assert sum(kept.values()) == x.numel() + 4 * 16  # and weight, bias, mean, variance


def test_a_network_gives_the_same_by_either_way():
    torch.manual_seed(0)
    networks = [
        build_model(
            "small", num_classes=10, input_shape=(1, 8, 8), timesteps=4,
            neuron={"name": "if", "imp": True, "backend": backend},
        )
        for backend in ("auto", "torch")
    ]  # fmt: skip
    networks[1].load_state_dict(networks[0].state_dict())
    x = torch.rand(16, 1, 8, 8)
    for network in networks:
        network.logits = network(x)
        network.logits.logsumexp(-1).mean().backward()
    torch.testing.assert_close(networks[0].logits, networks[1].logits, atol=1e-4, rtol=1e-4)
    for (name, a), (_, b) in zip(*(n.named_parameters() for n in networks), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4 * b.grad.abs().max().item(), rtol=1e-3, msg=name)
    for (name, a), (_, b) in zip(*(n.named_buffers() for n in networks), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=name)


def used(norm, neuron, x) -> bool:
    """Whether `fire` leaves the norm's own forward out."""
    called = []
    forward = norm.forward
    norm.forward = lambda x: called.append(1) or forward(x)
    Block().fire(x, norm, neuron)
    return not called


def test_where_the_two_stay_apart():
    neuron, x = build_neuron("if"), frames(3, 2, 4, 5, 5)
    assert used(BN(4), neuron, x) and used(TEBN(4, 3), neuron, x)
    assert not used(GestureTEBN(4, 3), neuron, x)
    assert not used(BN(4).double(), neuron, x.double())
    assert not used(BN(4), neuron, x.contiguous())
    assert not used(BN(4), build_neuron("if", backend="torch"), x)
    hooked, cumulative, storing = BN(4), BN(4), build_neuron("if")
    hooked.register_forward_hook(lambda *a: None)
    cumulative.momentum = None
    storing.store_v_seq = True
    assert not used(hooked, neuron, x) and not used(cumulative, neuron, x) and not used(BN(4), storing, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not used(BN(4), neuron, x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Block().fire(x[:1, :1, :, :1, :1].contiguous(memory_format=torch.preserve_format), BN(4), neuron)


def test_the_operator_keeps_torchs_rules():
    x, norm = frames(2, 2, 4, 5, 5).requires_grad_(), a_norm(4)
    imp = torch.rand(4, 5, 5, requires_grad=True)
    settings = (1e-5, False, 2, "cpu", *build_neuron("if").law(), None)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    given = torch.ones(2, requires_grad=True), torch.zeros(4), torch.ones(4)
    for own in ((norm.weight, norm.bias, None, None, None), (norm.weight, norm.bias, *given), [None] * 5):
        torch.library.opcheck(torch.ops.snn_repro.neuron, (x, imp, *own, *settings), test_utils=tests)


def test_what_it_cannot_do_is_said():
    x, neuron = frames(2, 2, 4, 5, 5).requires_grad_(), build_neuron("if")
    with pytest.raises(UserError, match="built for 3 time steps, but its input has 2"):
        together(neuron, x, a_norm(4, 3).affine_form(), 2)
    (gx,) = torch.autograd.grad(together(neuron, x, a_norm(4).affine_form(), 2).square().sum(), x, create_graph=True)
    with pytest.raises(UserError, match="no second derivative; use kernels=off"):
        gx.sum().backward()


def test_a_compiled_network_uses_it_in_one_graph():
    """For the first batch, and for a smaller last one, whose size the compiler then takes as a variable."""
    torch.manual_seed(0)
    model = build_model("small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if", "imp": True})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (6, 4):
        x, results = torch.rand(batch, 1, 8, 8), []
        for run in (model, compiled):
            model.load_state_dict(before)
            logits = run(x)
            results.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
            results[-1] += [b.clone() for b in model.buffers()]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
