"""Networks of the compared methods: published sizes, blocks and Spikformer against plain float64 references, other transformers
against spikingjelly's own."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer
from spikingjelly.activation_based.neuron import BaseNode
from torch import nn

from snn_repro.errors import UserError
from snn_repro.models import MODELS, build_model, count_parameters
from snn_repro.models.blocks import Dropout
from snn_repro.models.norms import BN, NORMS
from snn_repro.models.plif_net import TCJA
from snn_repro.models.resnet import BasicBlock, Stage
from snn_repro.neurons import Neuron, build_neuron, firing_rates

IF_IMP = {"name": "if", "imp": True}
# Small forms: input shape, time steps, options
SMALL = {
    "small": ((1, 8, 8), 4, {}),
    "vgg128": ((2, 17, 24), 3, {}),
    "vgg48": ((2, 48, 48), 2, dict(dropout=0.0)),
    "plif_net": ((3, 8, 8), 3, dict(channels=6, hidden=12, voters=3, dropout=0.0)),
    "plif_net_dvs": ((2, 16, 18), 3, dict(channels=6, hidden=12, voters=3, dropout=0.0)),
    "resnet19": ((2, 8, 9), 2, dict(hidden=16)),
    "spiking_resnet34": ((3, 32, 32), 2, {}),
    "vgg16": ((3, 32, 32), 2, dict(hidden=16, dropout=0.0)),
    "vggsnn": ((2, 16, 18), 2, {}),
    "snn7": ((2, 9, 8), 2, {}),
    "wide_7b": ((2, 18, 16), 2, {}),
    "tcja": ((2, 32, 36), 3, dict(hidden=16, voters=2, dropout=0.0)),
    "spikformer": ((1, 8, 8), 3, dict(embed_dims=32, num_heads=4, depths=2, patch_size=4)),
    "spike_driven_transformer": ((1, 8, 8), 3, dict(embed_dims=32, num_heads=4, depths=2, patch_size=4)),
    "qkformer": ((2, 32, 32), 3, dict(embed_dims=32, num_heads=[1, 2, 4], depths=[1, 1, 1])),
    "maxformer": ((2, 32, 32), 3, dict(embed_dims=32, depths=[1, 1, 1])),
    "maxformer_cifar": ((1, 8, 8), 3, dict(embed_dims=32, depths=[1, 1, 1])),
}
SMALL |= {name: ((3, 32, 32), 2, {}) for name in MODELS if name not in SMALL}
LARGE = ("resnet19", "spiking_resnet34", "vgg16", "vggsnn", "vgg48", *(n for n in SMALL if n.startswith("sew_resnet")))
EACH = [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE and n != "sew_resnet18_cifar")) for n in SMALL]


def small(name, neuron=IF_IMP, seed=0, **options):
    torch.manual_seed(seed)
    shape, timesteps, given = SMALL[name]
    options = {"kernels": "off"} | given | options
    return build_model(name, num_classes=5, input_shape=shape, timesteps=timesteps, neuron=dict(neuron), **options)


@torch.no_grad()
def lively(model, x):
    """The model with weights under which all layers fire in evaluation too."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = 1.0
            m.weight.fill_(1.5)
            m.bias.fill_(0.1)
        elif isinstance(m, nn.Linear):
            m.weight.mul_(4)
    model.train()(x)
    return model


def frames(name, batch=2, seed=1):
    shape, timesteps, _ = SMALL[name]
    return 2 * torch.rand(timesteps, batch, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "classes", "shape", "options", "weights", "published"),
    [
        ("plif_net", 10, (3, 32, 32), {}, 36_718_336, 36.72),
        ("plif_net_dvs", 10, (2, 128, 128), {}, 4_691_200, 4.69),
        ("plif_net_dvs", 11, (2, 128, 128), dict(stages=5), 1_698_304, 1.70),
        # Later papers print 12.63 M for ResNet-19: that of a linear layer of 128. tdBN's own text has 256.
        ("resnet19", 10, (3, 32, 32), {}, 12_697_994, 12.70),
        ("resnet19", 10, (3, 32, 32), dict(hidden=128), 12_631_050, 12.63),
        ("spiking_resnet34", 1000, (3, 224, 224), {}, 21_797_672, 21.80),  # papers cut it to 21.79
        # Dspike prints 138.42 M for its VGG-16, whose layers it does not list; torchvision's has 138.37.
        ("vgg16", 1000, (3, 224, 224), {}, 138_365_992, 138.37),
        ("vggsnn", 10, (2, 48, 48), {}, 9_271_498, 9.27),
        ("vggsnn", 10, (1, 28, 28), dict(width=8), 145_754, 0.15),  # ours, by hand
        ("snn7", 10, (3, 32, 32), {}, 2_379_866, 2.38),
        ("wide_7b", 10, (2, 128, 128), {}, 1_192_202, 1.19),
        ("tcja", 101, (2, 180, 240), dict(timesteps=14), 21_907_096, 21.91),
        ("spikformer", 10, (3, 32, 32), dict(embed_dims=384, num_heads=12, depths=4, patch_size=4), 9_310_906, 9.31),
        ("spikformer", 10, (2, 128, 128), dict(embed_dims=256, num_heads=16, depths=2), 2_563_594, 2.56),
        ("qkformer", 1000, (3, 224, 224), {}, 16_472_584, 16.47),
        ("maxformer", 1000, (3, 224, 224), {}, 16_237_240, 16.24),
        ("maxformer_cifar", 10, (3, 32, 32), {}, 6_568_282, 6.57),
        ("spike_driven_transformer", 1000, (3, 224, 224), {}, 29_690_344, 29.69),
        ("spike_driven_transformer", 1000, (3, 224, 224), dict(embed_dims=768), 66_340_072, 66.34),
    ],
)
def test_published_sizes(name, classes, shape, options, weights, published):
    with torch.device("meta"):
        model = build_model(name, num_classes=classes, input_shape=shape, neuron=IF_IMP, **({"timesteps": 4} | options))
    assert count_parameters(model)[0] == weights and round(weights / 1e6, 2) == published


# what a network promises


@pytest.mark.parametrize("name", EACH)
def test_every_parameter_learns_and_every_neuron_has_an_initial_state(name):
    model = lively(small(name), frames(name))
    logits = model(frames(name))
    assert logits.shape == (SMALL[name][1], 2, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    nodes = [m for m in model.modules() if isinstance(m, Neuron)]
    assert len(nodes) >= 3 and all(node.imp.shape == node.v.shape[1:] for node in nodes)


@pytest.mark.parametrize("name", EACH)
def test_weights_do_not_depend_on_imp_and_load_again(name):
    plain, imp = small(name, {"name": "if"}), small(name)
    own = imp.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in plain.state_dict().items())
    again = small(name, seed=9)
    again.load_state_dict(own)
    with torch.no_grad():
        assert torch.equal(again.eval()(frames(name)), imp.eval()(frames(name)))


@pytest.mark.parametrize("name", EACH)
def test_a_static_image_is_seen_at_every_step_and_the_last_step_is_the_last(name):
    model, x = small(name).double().eval(), frames(name)[0].double()
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, model(x.expand(SMALL[name][1], *x.shape)), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(model(x, last_step=True), logits[-1:], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", EACH)
def test_whether_a_step_sees_later_frames_is_as_the_network_says(name):
    """By the gradient of the last frame, which the surrogate keeps above zero wherever a logit depends on it."""
    model, x = lively(small(name), frames(name)).eval(), frames(name).requires_grad_()
    logits = model(x)
    earlier, own = (torch.autograd.grad(part.sum(), x, retain_graph=True)[0][-1] for part in (logits[:-1], logits[-1]))
    assert own.any() and earlier.any() == (not model.causal) and model.causal == (name != "tcja")


@pytest.mark.parametrize("name", EACH)
def test_backends_and_checkpointing_give_the_same_gradients(name):
    expected = None
    sparse = {"kernels": "sparse"}
    for options in ({}, sparse | {"checkpointing": "norms"}, {"checkpointing": "blocks"}):
        model = lively(small(name, **options).double(), frames(name).double())
        logits = model(frames(name).double())
        logits.square().sum().backward()
        found = dict(logits=logits.detach()) | {n: p.grad for n, p in model.named_parameters()}
        found |= {n: b for n, b in model.named_buffers() if "running" in n or "tracked" in n}
        expected = expected or found
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], atol=1e-9, rtol=1e-7, msg=f"{options} {key}")


# against plain references


def plain_if(x):
    """Integrate-and-fire with soft reset over x [T, ...]."""
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        v = v + x_t
        spikes.append((v >= 1).to(x))
        v = v - spikes[-1]
    return torch.stack(spikes)


def batch_norm(channels, summands=1):
    return NORMS["bn"](channels, 3)


def plain_norm(x, norm):
    mean, var = x.mean((0, 1, 3, 4), keepdim=True), x.var((0, 1, 3, 4), unbiased=False, keepdim=True)
    shape = (1, 1, -1, 1, 1)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)


def plain_conv(x, layer):
    return torch.stack([F.conv2d(x_t, layer.weight, layer.bias, layer.stride, layer.padding) for x_t in x])


def spiking_input(*shape):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(3)) < 0.4).double()


@torch.no_grad()
def test_resnets_add_potentials_and_fire_then():
    torch.manual_seed(1)
    for inputs, stride in ((4, 1), (3, 2)):
        block = BasicBlock(inputs, 4, stride, batch_norm, partial(build_neuron, "if")).double()
        nn.init.uniform_(block.bn2.weight, 1, 3)
        x = spiking_input(3, 2, inputs, 6, 5)
        branch = plain_if(plain_norm(plain_conv(x, block.conv1), block.bn1))
        branch = plain_norm(plain_conv(branch, block.conv2), block.bn2)
        shortcut = x if stride == 1 else plain_norm(plain_conv(x, block.downsample[0]), block.downsample[1])
        expected = plain_if(branch + shortcut)
        assert torch.equal(block(x), expected) and 0 < expected.mean() < 1


@torch.no_grad()
def test_wide_7b_adds_spikes_and_pools_their_sums():
    torch.manual_seed(1)
    for inputs, pool in ((4, nn.MaxPool2d(2)), (2, nn.AvgPool2d(2))):
        stage = Stage(inputs, 4, pool, batch_norm, partial(build_neuron, "if")).double()
        x = given = spiking_input(3, 2, inputs, 6, 5)
        if inputs != 4:
            given = plain_if(plain_norm(plain_conv(x, stage.conv0), stage.bn0))
        branch = plain_if(plain_norm(plain_conv(given, stage.conv1), stage.bn1))
        branch = plain_if(plain_norm(plain_conv(branch, stage.conv2), stage.bn2))
        expected = torch.stack([pool(s) for s in given + branch])
        assert torch.equal(stage(x), expected) and 0 < expected.max() <= 2


def test_wide_7b_pools_as_it_is_told():
    build = partial(build_model, "wide_7b", num_classes=5, input_shape=(2, 18, 16), timesteps=2, neuron={"name": "if"})
    for options, pools in ({}, "MMMMIII"), (dict(pool="avg", unpooled=3), "IIIAAAA"):
        model = build(**options)
        assert "".join(type(stage.pool).__name__[0] for stage in model.stages) == pools and model.fc.in_features == 128


def test_initial_weights_of_vgg128_by_fan_out():
    build = partial(build_model, "vgg128", num_classes=5, input_shape=(2, 16, 16), timesteps=2, neuron={"name": "if"})
    for options, like in ({}, False), (dict(conv_init="fan_out"), True):
        convolutions = [m for m in build(**options).modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 8
        for m in convolutions:
            near = abs(m.weight.std().item() / (2 / (9 * m.out_channels)) ** 0.5 - 1) < 0.08
            assert near == like and m.bias.any() != like


@torch.no_grad()
def test_tcja_by_sums():
    torch.manual_seed(1)
    timesteps, channels = 3, 5
    layer = TCJA(channels, 4, 2, timesteps).double()
    x = torch.rand(timesteps, 2, channels, 4, 3).double()
    means = F.pad(x.mean((3, 4)), (1, 2))  # along channels; of an even kernel the longer side looks forward
    windows = torch.stack([means[..., k : k + channels] for k in range(4)], -1)  # [T, B, C, 4]
    along_channels = torch.einsum("tsk,sbck->tbc", layer.conv_t.weight, windows)
    later = torch.cat([x.mean((3, 4)), torch.zeros(1, 2, channels)])
    windows = torch.stack([later[k : k + timesteps] for k in range(2)], -1)
    along_time = torch.einsum("cdk,tbdk->tbc", layer.conv_c.weight, windows)
    torch.testing.assert_close(layer(x), x / (1 + torch.exp(-along_channels * along_time))[..., None, None])


def test_neurons_of_vgg16s_linear_layers_fire_at_first():
    model = small("vgg16", {"name": "if"})
    with torch.no_grad(), firing_rates(model) as rates:
        model(frames("vgg16", batch=8))
    assert min(rates["classifier.1"], rates["classifier.4"]) > 0.05, rates


def test_dropout_over_time_has_one_mask_a_sample():
    torch.manual_seed(0)
    y = Dropout(0.5)(torch.ones(4, 3, 50))
    assert torch.equal(y, y[:1].expand_as(y)) and not torch.equal(y[0, 0], y[0, 1]) and {*y.unique().tolist()} == {0, 2}
    assert Dropout(0.5).eval()(y) is y


SJ_DEFAULT = {"name": "lif", "tau": 2.0, "reset": "hard", "surrogate": "sigmoid", "detach_reset": True}


@pytest.mark.parametrize("name", ["spike_driven_transformer", "qkformer", "maxformer_cifar"])
def test_transformers_are_spikingjellys_with_its_own_neurons(name):
    (c, _, _), timesteps, options = SMALL[name]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    given.pop("patch_size", None)
    theirs = {
        "spike_driven_transformer": lambda: spike_driven_transformer.SpikeDrivenTransformer(
            timesteps, c, 5, pooling_stat="0011", **given
        ),
        "qkformer": lambda: qkformer.QKFormer(timesteps, c, 5, **given),
        "maxformer_cifar": lambda: maxformer.MaxFormer(timesteps, c, 5, cifar=True, **given),
    }[name]().double()
    ours, x = small(name, SJ_DEFAULT).double(), frames(name).double()
    theirs.load_state_dict({k.removeprefix("net."): v for k, v in ours.state_dict().items()})
    for a, b in zip(*([m for m in net.modules() if isinstance(m, BaseNode)] for net in (ours, theirs)), strict=True):
        a.detach_reset = b.detach_reset  # which spikingjelly does in attention alone
    outputs, gradients = [], []
    for model in (ours, theirs):
        for p in model.parameters():
            torch.nn.init.uniform_(p, 0.5, 1.5, torch.Generator().manual_seed(2)) if p.dim() == 1 else None
        functional.reset_net(model)
        y = model(x)
        y = y.mean(0) if y.dim() == 3 else y
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*outputs, atol=1e-9, rtol=1e-9)
    assert outputs[0].std() > 0
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", [name for name in SMALL if "former" in name])
def test_transformers_kernels_equal_torch(name, monkeypatch):
    x, results, normed = frames(name), [], []
    original = BN.forward
    monkeypatch.setattr(BN, "forward", lambda norm, x: normed.append(norm) or original(norm, x))
    for kernels in ("off", "sparse"):
        model = lively(small(name, SJ_DEFAULT, kernels=kernels).to(memory_format=torch.channels_last), x)
        normed.clear()
        y = model(x)
        y.square().sum().backward()
        with torch.no_grad():
            results.append([y.detach(), model.eval()(x), *model.buffers(), *(p.grad for p in model.parameters())])
        by_neurons = [norm for norm in model.modules() if isinstance(norm, BN) and norm.behind]
        assert by_neurons and {norm in normed for norm in by_neurons} == {kernels == "off"}
    largest = max(float(value.abs().max()) for value in results[0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * largest)


def plain_lif(x, threshold=1.0):
    """LIF with tau 2 and hard reset over x [T, ...]: spikingjelly's MultiStepLIFNode, as the transformers' authors use it."""
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        v = v + (x_t - v) / 2
        spikes.append((v >= threshold).to(x))
        v = v * (1 - spikes[-1])
    return torch.stack(spikes)


def learned(x, convolution, norm):
    """Convolution and norm by their running statistics, of x [T, B, C, ...]."""
    x = (F.conv2d if convolution.weight.dim() == 4 else F.conv1d)(
        x.flatten(0, 1), convolution.weight, convolution.bias, padding=convolution.padding
    ).unflatten(0, x.shape[:2])
    mean, var, weight, bias = (
        p.view(-1, *[1] * (x.dim() - 3)) for p in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def plain_attention(x, qkv, heads, scale):
    """x [T, B, C, N] -> spikes of (q k^T) v * scale, which fire at 0.5."""
    q, k, v = (part.unflatten(2, (heads, -1)) for part in plain_lif(learned(x, *qkv)).chunk(3, 2))
    return plain_lif(torch.einsum("tbhcn,tbhcm,tbhdm->tbhdn", q, k, v).flatten(2, 3) * scale, 0.5)


@torch.no_grad()
@pytest.mark.parametrize(("patch", "scale", "pools"), [(4, 0.125, (0, 0, 1, 1)), (16, 0.25, (1, 1, 1, 1))])
def test_spikformer_is_its_authors(patch, scale, pools):
    """SPS.forward, SSA and MLP of ZK-Zhou/spikformer 6212689: cifar10/model.py and cifar10dvs/model.py."""
    given = dict(embed_dims=32, num_heads=4, depths=2, patch_size=patch, scale=scale)
    torch.manual_seed(0)
    model = build_model(
        "spikformer", num_classes=5, input_shape=(2, 32, 48), timesteps=3, neuron=SJ_DEFAULT, **given
    ).double()
    frames = 2 * torch.rand(3, 2, 2, 32, 48, generator=torch.Generator().manual_seed(1)).double()
    net, x = lively(model, frames).eval().net, frames
    for norm in (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.bias += 0.5
    layers = ([m for m in net.patch_embed.modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d))
    *stem, last = zip(*layers, strict=True)
    for layers, pool in zip(stem, pools, strict=True):
        x = plain_lif(learned(x, *layers))
        x = torch.stack([F.max_pool2d(s, 3, 2, 1) for s in x]) if pool else x
    x = (x + plain_lif(learned(x, *last))).flatten(3)
    for block in net.blocks:
        attended = plain_attention(x, block.attn.qkv_conv_bn, 4, scale)
        x = x + plain_lif(learned(attended, *block.attn.proj_conv_bn))
        x = x + plain_lif(learned(plain_lif(learned(x, *block.mlp.fc1)), *block.mlp.fc2))
        assert 0 < attended.mean() < 1
    expected = F.linear(x.mean(-1), net.head.weight, net.head.bias)
    assert (model(frames) - expected).abs().max() <= 4e-16 * expected.abs().max() and expected.std() > 0.01


@torch.no_grad()
def test_maxformers_attention_is_its_authors():
    """SSA of bic-L/MaxFormer 6ddd4cc, imagenet/mixer_hub.py: from spikes to a sum of potentials, one head for 64 channels."""
    given = dict(
        num_classes=5, input_shape=(2, 32, 32), timesteps=3, neuron=SJ_DEFAULT, embed_dims=128, depths=[0, 0, 1]
    )
    model = build_model("maxformer", **given).double()
    attention, found = lively(model, frames("maxformer").double()).eval().net.stage3[0].attn, []
    attention.register_forward_hook(lambda module, given, y: found.extend((given[0], y)))
    model(frames("maxformer").double())
    attended = plain_attention(plain_lif(found[0]), attention.qkv, 2, 0.125)
    torch.testing.assert_close(found[1], learned(attended, *attention.proj), atol=1e-12, rtol=1e-12)
    assert 0 < attended.mean() < 1


def test_transformers_start_from_their_authors_weights():
    """torch's own have the deviation 1 / sqrt(3 inputs), linear layers of ZK-Zhou/spikformer and Max-Former's maps 0.02."""
    spikformers = [small("spikformer", embed_dims=64, patch_size=patch).net for patch in (4, 16)]
    for net, block in zip(spikformers, (0.02, 192**-0.5), strict=True):
        position, mlp = net.patch_embed.positional_encoding.conv_bn.block[0], net.blocks[0].mlp.fc1[0]
        for layer, std in ((position, 1728**-0.5), (mlp, block), (net.head, 0.02)):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    maps = [m.weight for m in small("maxformer").modules() if isinstance(m, nn.Conv2d)]
    assert torch.cat([w.flatten() for w in maps]).std().item() == pytest.approx(0.02, rel=0.1)


def test_attention_fires_at_half_of_any_threshold():
    for neuron, expected in (({"name": "if"}, 0.5), ({"name": "if", "v_threshold": 0.6}, 0.3)):
        model = small("spikformer", neuron)
        found = {n.rsplit(".", 1)[-1]: m.v_threshold for n, m in model.named_modules() if isinstance(m, Neuron)}
        assert found.pop("attn_lif") == expected and {*found.values()} == {2 * expected}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tcja", {}, "a layer built for timesteps=3, but its frames have 4"),
        ("vgg16", dict(shape=(3, 31, 40)), r"needs at least 32x32 pixels \(5 pools\), not 31x40"),
        ("spikformer", dict(num_heads=5), "model.num_heads=5 of spikformer must divide 32, the channels"),
        ("qkformer", dict(num_heads=[3, 2, 2]), "model.num_heads=3, 2, 2 of qkformer must divide 8, 16, 32, the"),
        ("maxformer", dict(num_heads=3), "model.num_heads=3 of maxformer must divide 32"),
    ],
)
def test_what_a_network_cannot_be_is_named(name, options, message):
    shape, timesteps, given = copy.copy(SMALL[name])
    shape = options.pop("shape", shape)
    with pytest.raises(UserError, match=message):
        model = build_model(
            name, num_classes=5, input_shape=shape, timesteps=timesteps, neuron=IF_IMP, **(given | options)
        )
        model(torch.zeros(timesteps + 1, 1, *shape))
