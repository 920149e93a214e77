"""Models: reference networks and counts, both kinds of input, IMP in the optimiser, saving and loading, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.neuron import BaseNode
from test_networks import SMALL
from torch import nn

from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.models import MODELS, build_model, count_parameters
from snn_repro.models.blocks import AvgPool2d
from snn_repro.models.norms import NORMS
from snn_repro.neurons import firing_rates

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
ARCHITECTURES = json.loads((GOLDEN_DIR / "architectures.json").read_text())["architectures"]
NETWORKS = json.loads((GOLDEN_DIR / "networks.json").read_text())["networks"]
IF_IMP = {"name": "if", "imp": True}
# A small input that each model takes, (input shape, time steps), and the neuron that it is used with.
TINY = {name: ((3, 32, 32), 2) for name in MODELS if name not in SMALL} | {
    "vgg48": ((2, 48, 48), 2),
    "vgg128": ((2, 17, 24), 3),
    "small": ((1, 8, 8), 4),
}
NEURON = {"vgg48": "leaky", "vgg128": "lif"}


def tiny(name, neuron=None, seed=0, **options):
    torch.manual_seed(seed)
    shape, timesteps = TINY[name]
    neuron = neuron or {"name": NEURON.get(name, "if"), "imp": True}
    return build_model(name, num_classes=10, input_shape=shape, timesteps=timesteps, neuron=neuron, **options)


def frames(name, batch=2, seed=1):
    shape, timesteps = TINY[name]
    return torch.rand(timesteps, batch, *shape, generator=torch.Generator().manual_seed(seed))


def neurons(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, BaseNode)}


# reference values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_golden_architecture(name):
    a = ARCHITECTURES[name]
    with torch.device("meta"):  # shapes and counts need no memory
        model = build_model(
            a["model"],
            num_classes=a["num_classes"],
            input_shape=a["input_shape"],
            timesteps=a["timesteps"],
            neuron=IF_IMP,
            **a["options"],
        )
    assert count_parameters(model) == (a["weights"], a["imp"])
    shapes = {name: list(node.imp.shape) for name, node in neurons(model).items()}
    if a["names"]:
        assert shapes == dict(zip(a["names"], a["shapes"], strict=True))
    else:
        assert list(shapes.values()) == a["shapes"]


def test_paper_totals():
    """The paper prints 11.69 -> 14.17, 21.79 -> 25.54 and 25.56 -> 36.67 million."""
    totals = {n: (a["weights"], a["weights"] + a["imp"]) for n, a in ARCHITECTURES.items() if "in1k" in n}
    assert sorted(totals.values()) == [(11689512, 14173224), (21797672, 25535784), (25557032, 36671016)]


def sine(tensor, a, c, s):
    i = torch.arange(tensor.numel(), dtype=torch.float64)
    return (a * torch.sin(c * i + s)).view_as(tensor)


@torch.no_grad()
def fill(model):
    """Fill every parameter by the rules in golden/networks.json."""
    layers = imps = norms = 0
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            fan_in = m.weight[0].numel()
            m.weight.copy_(sine(m.weight, 1.5 * math.sqrt(2 / fan_in), 0.7, 1 + 0.3 * layers))
            if m.bias is not None:
                m.bias.copy_(sine(m.bias, 0.05, 1.1, 0.2 * layers))
            layers += 1
        elif isinstance(m, nn.BatchNorm2d):
            m.weight.fill_(1)
            m.bias.copy_(sine(m.bias, 0.2, 0.9, 0.5 * layers))
            if hasattr(m, "te"):
                m.te.copy_(1 + 0.2 * torch.sin(torch.arange(len(m.te), dtype=torch.float64) + norms))
                norms += 1
        elif isinstance(m, BaseNode):
            m.imp.copy_(sine(m.imp, 0.3, 0.5, imps))
            imps += 1


@pytest.mark.parametrize("conv_backend", ["dense", "sparse"])
@pytest.mark.parametrize("name", NETWORKS)
def test_golden_network(name, conv_backend):
    g = NETWORKS[name]
    model = build_model(
        g["model"], num_classes=10, input_shape=g["input_shape"], timesteps=4, neuron=g["neuron"],
        conv_backend=conv_backend, **({"dropout": 0.0} if g["model"] == "vgg48" else {}),
    ).double()  # fmt: skip
    fill(model)
    if g["input"] == "static":
        x = sine(torch.empty(2, *g["input_shape"]), 1, 0.05, 0)
    else:
        x = (4 * sine(torch.empty(4, 2, *g["input_shape"]), 1, 0.05, 0).abs()).floor()

    with firing_rates(model) as rates:
        logits = model(x)
    loss = build_loss(g["loss_name"])(logits, torch.tensor([3, 7]))
    loss.backward()

    near = dict(abs=1e-6, rel=1e-6)
    layers = neurons(model)
    assert {n: list(m.imp.shape) for n, m in layers.items()} == g["neuron_shapes"]
    counts = {n: round(rates[n] * 4 * 2 * m.imp.numel()) for n, m in layers.items()}
    assert counts == g["spike_counts"]
    assert logits.sum((1, 2)).tolist() == pytest.approx(g["logits_sum_per_step"], **near)
    assert logits[..., :5].flatten().tolist() == pytest.approx(
        torch.tensor(g["logits_first5"], dtype=torch.float64).flatten().tolist(), **near
    )
    assert loss.item() == pytest.approx(g["loss"], **near)
    for layer, (total, norm) in g["imp_grad_sum_norm"].items():
        grad = layers[layer].imp.grad
        assert (grad.sum().item(), grad.norm().item()) == pytest.approx((total, norm), **near), layer
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weights[0].grad.norm().item() == pytest.approx(g["first_weight_grad_norm"], **near)
    assert weights[-1].grad.norm().item() == pytest.approx(g["last_weight_grad_norm"], **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("norm", "key"), [("tebn", "tebn_out"), ("tebn_gesture", "gesture_quirk_out")])
def test_golden_tebn(norm, key, dtype):
    g = json.loads((GOLDEN_DIR / "tebn.json").read_text())
    tensor = lambda k: torch.tensor(g[k], dtype=dtype)  # noqa: E731
    layer = NORMS[norm](2, 3).to(dtype)
    with torch.no_grad():
        for k in ("weight", "bias", "te"):
            getattr(layer, k).copy_(tensor(k))
    near = dict(atol=1e-6 if dtype == torch.float64 else 1e-5, rtol=0)
    torch.testing.assert_close(layer(tensor("x")).detach(), tensor(key), **near)
    torch.testing.assert_close(layer.running_mean, tensor("running_mean_after"), **near)
    torch.testing.assert_close(layer.running_var, tensor("running_var_after"), **near)


def test_a_real_forward_at_full_size():
    model = build_model("sew_resnet18", num_classes=1000, input_shape=(3, 224, 224), timesteps=2, neuron=IF_IMP)
    assert count_parameters(model) == (11689512, 2483712)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 224, 224)).shape == (2, 1, 1000)


# every model


@pytest.mark.parametrize("name", TINY)
def test_an_optimiser_step_moves_every_imp_and_a_saved_model_is_the_same_model(name, tmp_path):
    model = tiny(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    logits = model(frames(name))
    assert logits.shape == (TINY[name][1], 2, 10) and logits.isfinite().all()
    build_loss("tet")(logits, torch.tensor([3, 7])).backward()
    optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert sum(n.endswith(".imp") for n in before) == len(neurons(model)) >= 3

    model.eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = tiny(name, seed=9).eval()
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(again(frames(name)), model(frames(name)))


@pytest.mark.parametrize("name", TINY)
def test_a_static_image_equals_its_repetition(name):
    model = tiny(name).eval()
    shape, timesteps = TINY[name]
    image = frames(name)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(image.expand(timesteps, *image.shape)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["small", "sew_resnet18_cifar", "vgg48"])
def test_the_stem_runs_once_for_a_static_image(name):
    model = tiny(name)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    seen = []
    stem.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    model(frames(name)[0])
    model(frames(name))
    assert seen == [2, 2 * TINY[name][1]]


@pytest.mark.parametrize("name", ["small", "sew_resnet18", "sew_resnet50", "vgg48", "vgg128"])
def test_weights_do_not_depend_on_imp(name):
    """Under one seed a network starts from the same weights with and without IMP: a paired comparison."""
    plain, imp = tiny(name, {"name": "if"}), tiny(name)
    assert count_parameters(plain) == (count_parameters(imp)[0], 0)
    weights = {n: p for n, p in imp.named_parameters() if not n.endswith(".imp")}
    assert all(torch.equal(p, weights[n]) for n, p in plain.named_parameters())


@pytest.mark.parametrize("family", ["if", "lif", "leaky"])
@pytest.mark.parametrize(("shape", "static"), [((1, 8, 8), True), ((2, 24, 24), False), ((3, 32, 32), True)])
def test_small_runs_on_embedded_data_shapes(family, shape, static):
    model = build_model("small", num_classes=10, input_shape=shape, timesteps=4, neuron={"name": family, "imp": True})
    x = torch.rand(*(() if static else (4,)), 5, *shape)
    build_loss("tet_s")(model(x), torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert 18_000 <= count_parameters(model)[0] <= 40_000


def test_vgg128_takes_the_odd_frames_of_ncaltech101():
    model = build_model(
        "vgg128", num_classes=101, input_shape=(2, 45, 61), timesteps=2, neuron={"name": "lif", "imp": True}
    )
    assert [tuple(n.imp.shape[1:]) for n in neurons(model).values()] == [
        (45, 61), (22, 30), (11, 15), (11, 15), (5, 7), (5, 7), (5, 7), (5, 7),
    ]  # fmt: skip
    assert model(torch.rand(2, 1, 2, 45, 61)).shape == (2, 1, 101)


def test_reset_net_changes_nothing():
    model = tiny("small").eval()
    first = model(frames("small"))
    functional.reset_net(model)
    assert torch.equal(model(frames("small")), first)


def test_fewer_frames_run_without_tebn():
    x = frames("small")
    model = tiny("small").eval()
    assert torch.equal(model(x[:2]), model(x)[:2])


# how the networks run on a CPU


WIDE = [pytest.param(name, marks=pytest.mark.slow) for name in ("sew_resnet50", "vgg48")]


@pytest.mark.parametrize("name", ["small", "sew_resnet18", "sew_resnet18_cifar", "vgg128", *WIDE])
def test_every_backend_and_checkpointing_give_the_same_gradients(name):
    """In float64, where rounding cannot turn a spike over. The running statistics agree too."""
    x = frames(name).double()
    expected = None
    for options in (
        {"conv_backend": "dense"}, {"conv_backend": "sparse"}, {"checkpointing": "norms"}, {"checkpointing": "blocks"},
    ):  # fmt: skip
        model = tiny(name, **options).double()
        torch.manual_seed(5)  # dropout
        logits = model(x)
        build_loss("sdt")(logits, torch.tensor([3, 7])).backward()
        found = dict(logits=logits.detach()) | {n: p.grad for n, p in model.named_parameters()}
        found |= {n: b for n, b in model.named_buffers() if "running" in n or "tracked" in n}
        expected = expected or found
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], atol=1e-9, rtol=1e-9, msg=f"{options} {key}")


@pytest.mark.parametrize("checkpointing", ["off", "blocks"])
@pytest.mark.parametrize("name", ["small", "sew_resnet18", "sew_resnet18_cifar", "sew_resnet50", "vgg48", "vgg128"])
def test_the_last_step_alone_has_the_same_loss_and_gradients(name, checkpointing):
    model = tiny(name, checkpointing=checkpointing, **({"dropout": 0.0} if name == "vgg48" else {})).double()
    x, target, loss = frames(name).double(), torch.tensor([3, 7]), build_loss("lts")
    rows = []
    head = next(m for n, m in model.named_modules() if n in ("fc", "classifier"))
    head.register_forward_hook(lambda m, i, o: rows.append(o.shape[0]))
    found = []
    for last_step in (False, True):
        logits = model(x, last_step=last_step)
        found.append((loss(logits, target), loss.readout(logits)))
        found[-1] += torch.autograd.grad(found[-1][0], list(model.parameters()))
    assert rows == [len(x), 1] and loss.last_step and not build_loss("tet").last_step
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", ["sew_resnet18_cifar", "vgg48"])
def test_checkpointing_saves_less_and_recomputes(name):
    saved = {}
    for checkpointing in ("off", "norms", "blocks"):
        model, sizes = tiny(name, checkpointing=checkpointing).double(), {}  # in float32 the fused operator keeps less
        keep = lambda t, sizes=sizes: sizes.__setitem__(t.data_ptr(), t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(frames(name).double())
        saved[checkpointing] = sum(sizes.values()) - sum(p.numel() for p in model.parameters())
    assert saved["blocks"] < 0.5 * saved["off"] and saved["norms"] < 0.8 * saved["off"]


def test_the_network_runs_channels_last():
    model = tiny("sew_resnet18_cifar")
    forms = []
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.BatchNorm2d):
            m.register_forward_hook(
                lambda m, i, o: forms.append(o.view(-1, *o.shape[-3:]).is_contiguous(memory_format=torch.channels_last))
            )
    model(frames("sew_resnet18_cifar"))
    assert all(forms) and len(forms) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("conv_backend", ["dense", "sparse"])
def test_a_compiled_network_computes_the_same(conv_backend):
    model = tiny("small", conv_backend=conv_backend).double()
    x = frames("small").double()
    names = list(model.state_dict())
    gradients = lambda: [  # noqa: E731
        torch.autograd.grad(model(x, last_step=last).square().sum(), list(model.parameters())) for last in (False, True)
    ]
    eager = gradients()
    torch._dynamo.utils.counters.clear()
    model.compile()
    compiled = gradients()
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(model.state_dict()) == names
    for a, b in zip([g for part in compiled for g in part], [g for part in eager for g in part], strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


# options


def test_zero_init_residual_starts_each_branch_at_zero():
    for name, last in (("sew_resnet18_cifar", "bn2"), ("sew_resnet50", "bn3")):
        model = tiny(name, zero_init_residual=True)
        blocks = [m for n, m in model.named_modules() if n.startswith("layer") and n.count(".") == 1]
        assert blocks and all(not getattr(b, last).weight.any() and b.bn1.weight.all() for b in blocks)


@pytest.mark.parametrize("name", ["sew_resnet18", "vgg128"])
def test_head_init(name):
    head = list(tiny(name, head_init="normal01").children())[-1]
    assert not head.bias.any() and 0.008 < head.weight.std() < 0.012
    assert list(tiny(name).children())[-1].bias.any()


def test_dropout_draws_a_mask_for_every_time_step():
    model = tiny("vgg48", dropout=0.5)
    masks = []
    model.dropout.register_forward_hook(lambda m, i, o: masks.append((o == 0) & (i[0] != 0)))
    model(frames("vgg48"))
    model(frames("vgg48"), last_step=True)
    model.eval()(frames("vgg48"))
    assert not torch.equal(masks[0][0], masks[0][1]) and not masks[2].any()
    assert masks[1].shape[0] == 1 and masks[1].any()


def test_sew_resnet_takes_torchvision_weights():
    from torchvision.models import resnet18

    model = build_model(
        "sew_resnet18", num_classes=1000, input_shape=(3, 32, 32), timesteps=1, neuron={"name": "if", "imp": True}
    )
    missing, unexpected = model.load_state_dict(resnet18().state_dict(), strict=False)
    assert not unexpected and all(n.endswith(".imp") for n in missing) and len(missing) == 20


# bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="sew_resnet19"), "model.name='sew_resnet19' is not one of.*did you mean 'sew_resnet1"),
        (dict(num_classes=0), "num_classes=0 must be a positive integer"),
        (dict(timesteps=0), "timesteps=0 must be a positive integer"),
        (dict(timesteps=2.5), "timesteps=2.5 must be a positive integer"),
        (dict(input_shape=(8, 8)), r"input_shape=\[8, 8\] must be three positive integers"),
        (dict(neuron={"imp": True}), "needs a name"),
        (dict(neuron={"name": "if", "taus": 2.0}), "neuron.taus .*did you mean 'tau'"),
        (dict(dropout=0.1), "model.dropout=0.1 belongs to model=.*vgg48.*leave it out for 'small'"),
        (dict(name="vgg48", input_shape=(2, 48, 48), drop=0.1), "model.drop is not .*did you mean 'dropout'"),
        (dict(name="vgg48", input_shape=(2, 48, 48), dropout=1.0), "model.dropout=1.0 must be"),
        (dict(name="vgg48", input_shape=(2, 128, 128)), "model.name=vgg48 is wired for 48x48 pixels, not 128x128"),
        (dict(input_shape=(1, 3, 8)), "model.name=small needs frames of at least 4x4 pixels, not 3x8"),
        (dict(name="vgg128", norm="batch"), "model.norm='batch' is not one of bn, .*tebn, tebn_gesture"),
        (dict(name="vgg128", input_shape=(2, 7, 7)), "needs at least 8x8 pixels, not 7x7"),
        (dict(conv_backend="spars"), "model.conv_backend='spars' is not one of auto, dense, sparse; did you"),
        (dict(checkpointing="norm"), "model.checkpointing='norm' is not one of off, norms, blocks; did you mean"),
        (dict(name="sew_resnet18", head_init="zero"), "model.head_init='zero' is not one of torch, normal01"),
        (dict(name="sew_resnet18", zero_init_residual="yes"), "model.zero_init_residual='yes' must be true or false"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    defaults = dict(name="small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if"})
    with pytest.raises(UserError, match=message):
        build_model(**{**defaults, **arguments})


def test_options_left_at_none_take_the_default():
    build_model(
        "small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron={"name": "if"}, dropout=None, norm=None
    )
    with pytest.raises(UserError, match="model.widht"):
        tiny("small", widht=None)


@pytest.mark.parametrize("norm", ["tebn", "tebn_gesture"])
@pytest.mark.parametrize("steps", [1, 4])
def test_tebn_wires_the_time_steps(norm, steps):
    model = build_model(
        "vgg128", num_classes=10, input_shape=(2, 16, 16), timesteps=3, neuron={"name": "if"}, norm=norm
    )
    with pytest.raises(UserError, match=f"a norm that is wired to timesteps=3 but its frames have {steps} time steps"):
        model(torch.zeros(steps, 1, 2, 16, 16))


@pytest.mark.parametrize("name", ["small", "sew_resnet18_cifar", "vgg128"])
def test_input_that_does_not_fit_is_named(name):
    model = tiny(name)
    c, h, w = TINY[name][0]
    for bad in (torch.zeros(c, h, w), torch.zeros(2, c + 1, h, w)):
        with pytest.raises(UserError, match=rf"images \[B, {c}, {h}, {w}\]"):
            model(bad)
    with pytest.raises(UserError, match="one IMP value for each of"):
        model(torch.zeros(2, c, h + 8, w))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels-last"])
@pytest.mark.parametrize("settings", [(2,), (3, 2, 1), ((2, 3), None, (1, 0), True, False), (2, 1, 0, False, True, 3)])
def test_the_pool_is_torchs_and_keeps_nothing(settings, form):
    ours, torchs = AvgPool2d(*settings), nn.AvgPool2d(*settings)
    x = torch.randn(3, 8, 9, 7).contiguous(memory_format=form).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ours(x)
    expected = torchs(x)
    assert torch.equal(y, expected) and y.stride() == expected.stride() and not kept
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for gy in (torch.randn_like(y), torch.randn(y.shape).contiguous()):
        (wanted,) = torch.autograd.grad(torchs(x), x, gy)
        for pool in (ours, compiled):
            (found,) = torch.autograd.grad(pool(x), x, gy)
            assert torch.equal(found, wanted) and found.is_contiguous(memory_format=form)
    with torch.inference_mode():
        assert torch.equal(ours(x), expected)


# one image, one time step: a batch of one sample, whose first stride means nothing


def formats(x):
    """x [1, 1, C, H, W] in both memory formats, each with regular strides and with those that a view leaves on axes of size 1."""
    _, _, c, h, w = x.shape
    rows, last = x.contiguous(), x.movedim(2, -1).contiguous().movedim(-1, 2)
    for values, regular in ((rows, (h * w, w, 1)), (last, (1, w * c, c))):
        for stride in (c * h * w, c, h * w):
            yield values.as_strided(x.shape, (stride, stride, *regular))


class _Gradient(torch.autograd.Function):
    """Identity whose backward pass hands on `gradient` itself, strides and all."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return x.view_as(x)

    @staticmethod
    def backward(ctx, _):
        return ctx.gradient, None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_of_one_sample_does_not_hang_on_its_strides(name, training, dtype):
    torch.manual_seed(0)
    norm = NORMS[name](4, 1).to(dtype).train(training)
    batch_norm = norm.bn[0] if name == "tab" else norm
    with torch.no_grad():
        batch_norm.weight.uniform_(0.5, 2)
    values, gradients = torch.randn(2, 1, 1, 4, 5, 6, dtype=dtype)

    def plain(x):
        axes, shape = (0, 1, 3, 4), (1, 1, -1, 1, 1)
        mean = x.mean(axes, keepdim=True) if training else batch_norm.running_mean.view(shape)
        var = x.var(axes, unbiased=False, keepdim=True) if training else batch_norm.running_var.view(shape)
        y = (x - mean) / (var + batch_norm.eps).sqrt() * batch_norm.weight.view(shape) + batch_norm.bias.view(shape)
        return y * {"tebn_gesture": x}.get(name, 1)

    def found(forward, x, gradient):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(_Gradient.apply(forward(x), gradient).sum(), [x, batch_norm.weight, batch_norm.bias])

    expected = found(plain, values, gradients)
    for x in formats(values):
        for gradient in formats(gradients):
            for a, b in zip(found(norm, x, gradient), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)
    if dtype == torch.float64:
        for x in formats(values):
            assert torch.autograd.gradcheck(norm, x.detach().requires_grad_())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize(
    "name, backend",
    [
        ("small", "torch"),
        ("small", "spikingjelly"),
        ("small", "auto"),
        ("sew_resnet18_cifar", "torch"),
        ("vgg128", "torch"),
    ],
)
def test_one_static_image_has_the_gradients_of_the_same_image_twice(name, memory_format, backend):
    shape, _ = TINY[name]
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for x in (image, image.expand(2, -1, -1, -1)):
        neuron = {"name": NEURON.get(name, "if"), "imp": True, "backend": backend}
        model = tiny(name, neuron=neuron).double().to(memory_format=memory_format)
        logits = model(x.contiguous(memory_format=memory_format))
        build_loss("sdt")(logits, torch.tensor([3]).expand(len(x))).backward()
        found.append({"logits": logits[:, :1].detach()} | {n: p.grad for n, p in model.named_parameters()})
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], atol=1e-9, rtol=1e-7, msg=f"{name} {key}")
