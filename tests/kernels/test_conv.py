"""Sparse convolution: equal to torch's, whatever the sizes and inputs; the choice between the two; operators."""

import json

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from snn_repro.errors import UserError
from snn_repro.kernels import compiled
from snn_repro.kernels import conv as sparse_conv
from snn_repro.kernels.conv import Conv2d, StepConv1d, StepConv2d, channels_last, density
from snn_repro.kernels.door import set_backend

KINDS = {
    "spikes": lambda rand: (rand < 0.2).to(rand.dtype),
    "sums": lambda rand: (rand * 3.4 - 0.4).clamp(min=0).floor(),
    "averages": lambda rand: nn.functional.avg_pool2d((rand < 0.2).to(rand.dtype), 2, 1, 0),
    "numbers": lambda rand: torch.where(rand < 0.3, rand - 0.15, 0),
    "zeros": torch.zeros_like,
    "dense": lambda rand: rand + 0.1,
}
SIZES = {  # images, inputs, outputs, height, width, kernel, stride
    "3x3": (3, 16, 32, 8, 8, 3, 1),
    "3x3, stride 2": (2, 24, 48, 9, 7, 3, 2),
    "1x1": (2, 16, 40, 5, 6, 1, 1),
    "1x1, stride 2": (3, 8, 64, 7, 8, 1, 2),
    "odd numbers": (5, 13, 19, 5, 3, 3, 1),
    "many channels": (2, 160, 256, 4, 4, 3, 1),
    "one pixel": (4, 8, 8, 1, 1, 3, 1),
    "7x7": (1, 9, 5, 12, 12, 7, 2),
    "long lines": (2, 20, 72, 5, 18, 3, 1),
}


def layer_and_input(size="3x3", kind="spikes", bias=True):
    n, inputs, outputs, height, width, kernel, stride = SIZES[size]
    torch.manual_seed(0)
    layer = Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    more = 1 if kind == "averages" else 0
    return layer, KINDS[kind](torch.rand(n, inputs, height + more, width + more))


def run(layer, x, backend):
    """Output and all gradients under a fixed gradient of the output."""
    layer.backend = backend
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).norm() <= 1e-5 * b.norm().clamp(min=1e-30)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("kernel", "stride", "width"), [(3, 1, 17), (2, 1, 16), (5, 1, 16), (3, 4, 16)])
def test_equals_the_dense_convolution_at_every_padding(kernel, stride, width, padding):
    torch.manual_seed(0)
    layer = Conv2d(11, 64, kernel, stride, padding)
    x = (torch.rand(3, 11, 6, width) < 0.3).float()
    assert_close(run(layer, x, "sparse"), run(layer, x, "dense"))


@pytest.mark.parametrize("of_the_input", [0.03, 0.3])  # either side of kernels.FEW
@pytest.mark.parametrize(
    "sizes", [(2, 160, 64, 16, 16), (2, 500, 256, 4, 4), (3, 64, 64, 33, 32), (40, 16, 32, 8, 8)],
    ids=["groups of channels", "many groups", "many rows", "many images"],
)  # fmt: skip
def test_equals_the_dense_convolution_however_it_is_cut(sizes, of_the_input, monkeypatch):
    n, inputs, outputs, height, width = sizes
    layer = Conv2d(inputs, outputs, 3, padding=1)
    x = (torch.rand(n, inputs, height, width) < of_the_input).float()
    monkeypatch.setattr(sparse_conv._kernels(), "_cache_size", lambda index, default: 2**15 if index == 0 else 2**19)
    assert_close(run(layer, x, "sparse"), run(layer, x, "dense"))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dense_convolution_for_every_kind_of_input(kind):
    layer, x = layer_and_input(kind=kind, bias=kind == "sums")
    assert_close(run(layer, x, "sparse"), run(layer, x, "dense"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_the_dense_convolution_by_any_threads_and_memory_format(threads, size, monkeypatch):
    layer, x = layer_and_input(size)
    x = x.repeat(4, 1, 1, 1)
    expected = run(layer, x, "dense")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for form in (torch.contiguous_format, torch.channels_last):
        layer = layer.to(memory_format=form)
        y, *gradients = run(layer, x.contiguous(memory_format=form), "sparse")
        assert layer.weight.grad.is_contiguous(memory_format=form)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close([y, *gradients], expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("ours", "plain", "size"), [(StepConv1d, nn.Conv1d, (18,)), (StepConv2d, nn.Conv2d, (6, 5))])
def test_layers_over_tokens_and_over_steps_equal_torchs(ours, plain, size, bias):
    torch.manual_seed(0)
    layer, theirs = (kind(24, 40, 1, bias=bias) for kind in (ours, plain))
    x = (torch.rand(2, 3, 24, *size) < 0.2).float()
    theirs.load_state_dict(layer.state_dict())
    expected = run(layer, x, "torch")
    assert torch.equal(expected[0].flatten(0, 1), theirs(x.flatten(0, 1)))
    assert_close(run(layer, x, "sparse"), expected)
    assert_close(run(layer, x.movedim(2, -1).contiguous().movedim(-1, 2), "sparse"), expected)
    assert layer(x[0]).movedim(1, -1).is_contiguous() and not StepConv1d(8, 8, 3).fits(torch.zeros(1, 8, 9))


def test_an_infinite_or_undefined_input_is_not_hidden():
    layer, x = layer_and_input()
    for value in (float("nan"), float("inf")):
        x[0, 0, 3, 3] = value
        layer.backend = "sparse"
        assert not layer(x)[0, :, 3, 3].isfinite().any()


def test_operators_say_what_they_do():
    layer, x = layer_and_input("3x3, stride 2")
    arguments = (x.requires_grad_(), layer.weight, layer.bias, layer.stride[0], layer.padding[0], "sparse")
    torch.library.opcheck(torch.ops.snn_repro.conv, arguments)


def test_only_what_needs_a_gradient_gets_one():
    layer, x = layer_and_input()
    layer.backend = "sparse"
    layer.weight.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and layer.bias.grad is not None
    with torch.inference_mode():
        assert layer(x).shape == x.shape[:1] + (32, 8, 8)


def test_other_convolutions_are_left_to_torch():
    x = (torch.rand(2, 8, 9, 9) < 0.2).float()
    for options in (dict(groups=2), dict(dilation=2), dict(stride=(1, 2)), dict(padding="same"),
                    dict(padding=1, padding_mode="circular")):  # fmt: skip
        layer = Conv2d(8, 8, 3, **options)
        layer.backend = "sparse"
        plain = nn.Conv2d(8, 8, 3, **options)
        plain.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x), plain(x))
    layer = Conv2d(8, 8, 3)
    layer.backend = "sparse"
    assert layer.double()(x.double()).dtype == torch.float64 and layer.float()
    assert layer(x[:0]).shape == (0, 8, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.fixture
def no_least_work(monkeypatch):
    monkeypatch.setattr(sparse_conv, "LEAST_WORK", 0)
    monkeypatch.setattr(sparse_conv, "LEAST_IMAGE_WORK", 0)


# what is kept for the backward pass


@pytest.mark.parametrize("size", [(3, 16, 5, 4), (1, 5, 3, 3), (2, 40, 16, 16)])  # with and without whole vectors
@pytest.mark.parametrize("unit", [1, 0.25])
def test_bytes_are_the_input_again(size, unit, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = channels_last(torch.randint(0, 256, size).float() * unit)
    x[0, 0, 0, 0] = unit
    packed, worth = torch.ops.snn_repro.to_bytes(x)
    assert worth == unit and packed.dtype == torch.uint8 and packed.stride() == x.stride()
    assert torch.equal(packed.float() * worth, x)


@pytest.mark.parametrize("value", [0.3, -1.0, -0.0, 256.0, 63.8, 64.25, 1e-30, float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, -1])
def test_what_does_not_fit_into_bytes_is_refused(value, place):
    x = channels_last((torch.rand(3, 13, 13, 13) < 0.2).float())
    x.permute(0, 2, 3, 1).view(-1)[place] = value
    assert torch.ops.snn_repro.to_bytes(x)[1] == 0


@pytest.mark.usefixtures("no_least_work")
@pytest.mark.parametrize("backend", ["sparse", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_change_no_bit_of_a_gradient(kind, backend, monkeypatch):
    layer, x = layer_and_input("odd numbers", kind)
    with_bytes = run(layer, x, backend)
    monkeypatch.setattr(sparse_conv._kernels(), "to_bytes", lambda x, threads: (x.to(torch.uint8), 0.0))
    without = run(layer, x, backend)
    assert all(torch.equal(a, b) for a, b in zip(with_bytes, without, strict=True))


def kept(layer, x):
    """Bytes kept for the backward pass, the weights left out, and the output."""
    sizes = []

    def note(t):
        sizes.append(t.nbytes if t.shape != layer.weight.shape else 0)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = layer(x)
    return sum(sizes), y


@pytest.mark.usefixtures("no_least_work")
@pytest.mark.parametrize("backend", ["auto", "sparse", "dense"])
@pytest.mark.parametrize(("kind", "each"), [("spikes", 1), ("sums", 1), ("averages", 1), ("numbers", 4)])
def test_a_quarter_of_the_memory_is_kept(kind, each, backend):
    layer, x = layer_and_input(kind=kind)
    layer.backend = backend
    assert kept(layer, x)[0] == each * x.numel()
    layer.weight.requires_grad_(False)
    x.requires_grad_()
    assert kept(layer, x)[0] == 4 * x.numel()  # autograd keeps it by reference, and nothing reads it


@pytest.mark.usefixtures("no_least_work")
def test_an_input_changed_in_place_does_not_change_the_gradient():
    layer, x = layer_and_input()
    expected = run(layer, x, "sparse")
    layer.zero_grad()
    y = layer(x)
    x.zero_()
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(layer.weight.grad, expected[2])
    layer, x = layer_and_input(kind="numbers")  # kept as it is: autograd notices
    layer.backend, x = "sparse", channels_last(x)
    y = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.usefixtures("no_least_work")
@pytest.mark.parametrize("kind", ["spikes", "averages", "numbers"])
def test_checkpointing_and_compiling_give_the_same_gradients(kind):
    layer, x = layer_and_input(kind=kind, bias=False)
    expected = run(layer, x, "sparse")
    for function in (
        lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False),
        torch.compile(layer, backend="aot_eager", fullgraph=True),
    ):
        layer.zero_grad()
        x = x.detach().requires_grad_()
        y = function(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
        found = [y.detach(), x.grad, layer.weight.grad]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# the choice


def test_density_is_sampled():
    x = channels_last((torch.rand(16, 64, 32, 32) < 0.1).float())
    assert density(x) == pytest.approx(0.1, abs=0.02)
    assert density(torch.zeros(1, 8, 2, 2)) == 0 and density(torch.ones(1, 8, 2, 2)) == 1


@pytest.fixture
def counted(monkeypatch):
    """Counts calls of the sparse kernels."""
    compiled.ready(False, sparse_conv.rehearse, "auto")  # calls them too
    calls = {"forward": 0, "weight_gradient": 0}
    kernels = sparse_conv._kernels()
    for name in calls:
        function = getattr(kernels, name)

        def counting(*arguments, name=name, original=function):
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(kernels, name, counting)
    return calls


@pytest.mark.usefixtures("no_least_work")
@pytest.mark.parametrize("limits", [(0.0, 1.0), (1.0, 0.0)])
def test_each_pass_is_chosen_by_its_own_limit(limits, counted, monkeypatch):
    layer, x = layer_and_input()
    monkeypatch.setattr(sparse_conv, "limits", lambda *_: limits)
    auto = run(layer, x, "auto")
    assert counted == {"forward": limits[0], "weight_gradient": limits[1]}
    assert_close(auto, run(layer, x, "dense"))


def test_few_channels_and_little_work_are_dense_without_a_look(counted, monkeypatch):
    monkeypatch.setattr(sparse_conv, "density", None)
    Conv2d(2, 16, 3, padding=1)(torch.zeros(64, 2, 64, 64)).sum().backward()
    Conv2d(16, 16, 3, padding=1)(torch.zeros(1, 16, 8, 8)).sum().backward()
    assert counted == {"forward": 0, "weight_gradient": 0}


def test_limits_are_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layer, x = layer_and_input()
    measured, original = [], sparse_conv._measure
    monkeypatch.setattr(sparse_conv, "_measure", lambda *a: measured.append(a) or original(*a))

    def limits():
        """In the next process."""
        monkeypatch.setattr(compiled, "_measured", {})
        return sparse_conv.limits(x, layer.weight, 1, 1)

    draws = torch.get_rng_state()
    first = limits()
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(0 <= limit <= 0.8 for limit in first)
    assert limits() == first and len(measured) == 1
    (file,) = tmp_path.glob("snn_repro/*.json")
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: [0.25, 0.5]}))
    assert limits() == (0.25, 0.5)
    file.write_text("{damaged")
    assert len(limits()) == 2 == len(measured)
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a folder that cannot be made is no obstacle
    assert len(limits()) == 2


def test_a_limit_lies_between_the_densities_that_were_tried(monkeypatch):
    """The sparse kernel takes as long as the dense one, less 5 %, at 0.5; where it never or always does: 0 and the highest."""
    times = {"forward": [1, 2, 3, 5, 4], "gradient": [9, 9, 9, 9, 9]}
    answers = iter([4 / sparse_conv.MARGIN, 4, *times["forward"], *times["gradient"]])
    monkeypatch.setattr(sparse_conv, "seconds", lambda function, threads: next(answers))
    assert sparse_conv._measure(1, 8, 4, 4, 8, 3, 1, 1, 1) == [pytest.approx(0.5), 0]
    answers = iter([9, 9, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5])
    assert sparse_conv._measure(1, 8, 4, 4, 8, 3, 1, 1, 1) == [0.8, 0.8]


def test_a_wrong_backend_is_named():
    with pytest.raises(UserError, match="model.conv_backend='sparce' is not one of.*did you mean 'sparse'"):
        set_backend(nn.Identity(), "sparce")
