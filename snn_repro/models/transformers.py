"""Spiking transformers of spikingjelly's parts, with our neurons, initial states, and logits of every step.

spikingjelly builds a model with one factory for all of its neurons, which is not told where a neuron stands. So the model is
built with an identity for each, and then gets its neurons. Those of attention (`attn_lif`) fire at half the threshold of the
others, as all four papers have it.
"""

from dataclasses import replace
from functools import partial

from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer, spikformer
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.models.blocks import Neurons, SpikingNetwork, register_network, repeat_steps
from snn_repro.models.vgg import OverTime
from snn_repro.neurons import Setting

WIDTH = Setting(384, "channels of a token in the last stage; a quarter in the first", "channels", low=8, multiple=8)
STAGES = Setting((1, 2, 7), "blocks of the three stages", low=0)
SIZES = {
    "embed_dims": Setting(512, "channels of a token in the last stage", "channels", low=8, multiple=8),
    "num_heads": Setting(8, "heads of the attention", low=1),
    "depths": Setting(8, "blocks", low=1),
    "patch_size": Setting(16, "pixels a token spans, 4 (CIFAR) or 16", "pixels", choices=(4, 16)),
}


class Place(nn.Identity):
    """Where a neuron will stand."""


class Transformer(SpikingNetwork):
    """spikingjelly's `net`, whose head a subclass feeds with features of every step."""

    def fill(self, neuron: Neurons) -> None:
        """Put a neuron into each place of `net`."""
        for name in [name for name, module in self.named_modules() if isinstance(module, Place)]:
            parent, _, last = name.rpartition(".")
            half = {"v_threshold": neuron.v_threshold / 2} if last == "attn_lif" else {}
            setattr(self.get_submodule(parent), last, neuron(**half))

    def through_all(self, x: Tensor, *layers: nn.Module) -> Tensor:
        """Tokens of all steps behind layers, and their mean: x [T, B, C, H, W] -> [T, B, embed_dims]."""
        x = repeat_steps(*self.steps(x))
        for layer in layers:
            x = self.through(x, layer)
        return x.flatten(3).mean(-1)

    def classify(self, x: Tensor) -> Tensor:
        return self.net.head(x)


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"model.embed_dims={width} of {name} must be a multiple of {heads}, the heads of its attention")


@register_network(
    "spikformer",
    SIZES | {"scale": Setting(0.125, "factor of the attention's sums; its authors' code has 0.25 for events", above=0)},
)
class Spikformer(Transformer):
    """Spiking self-attention without softmax (Zhou et al., ICLR 2023, arXiv:2209.15425): Spikformer-depths-embed_dims.

    As its authors' code, ZK-Zhou/spikformer 6212689 (imagenet, cifar10 and cifar10dvs/model.py): each convolution of the stem
    has norm, neuron and then its pool, where spikingjelly pools before the neuron; and layers keep torch's initial weights but
    for the classifier and, with tokens of 4x4 pixels, the linear layers of the blocks. It lacks biases before norms, which have
    no effect. A checkpoint of spikingjelly's order is refused, since a pool is a stage of its own here.
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, scale, **sizes):
        super().__init__(input_shape, timesteps)
        _check_heads("spikformer", sizes["embed_dims"], sizes["num_heads"])
        channels, height, width = input_shape
        self.net = spikformer.Spikformer(
            timesteps, channels, height, width, num_classes=num_classes, spiking_neuron=Place, **sizes
        )
        stages = nn.Sequential()
        for stage in self.net.patch_embed.stages:
            stages.append(stage)
            if isinstance(stage.conv_bn.block[-1], nn.MaxPool2d):
                stages.append(OverTime(stage.conv_bn.block.pop(-1)))
        self.net.patch_embed.stages = stages
        for block in self.net.blocks:
            block.attn.scale = scale
        for layer in self.net.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d) if sizes["patch_size"] == 16 else nn.Conv2d):
                layer.reset_parameters()
        self.fill(neuron)

    def extract(self, x: Tensor) -> Tensor:
        return self.through_all(x, self.net.patch_embed, *self.net.blocks)


@register_network("spike_driven_transformer", SIZES)
class SpikeDrivenTransformer(Transformer):
    """Attention of masks and additions, shortcuts between potentials (Yao et al., NeurIPS 2023, arXiv:2307.01694).

    The equations of BICLab/Spike-Driven-Transformer 3faa822 (module/sps.py, module/ms_conv.py) for images; the pools that its
    attention has for events (dvs_mode) are not here, and convolutions keep torch's initial weights, where its code draws them
    from N(0, 0.02) (model/spikeformer.py).
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, **sizes):
        super().__init__(input_shape, timesteps)
        _check_heads("spike_driven_transformer", sizes["embed_dims"], sizes["num_heads"])
        pooling = "1111" if sizes.pop("patch_size") == 16 else "0011"
        self.net = spike_driven_transformer.SpikeDrivenTransformer(
            timesteps, input_shape[0], num_classes, pooling_stat=pooling, spiking_neuron=Place, **sizes
        )
        self.fill(neuron)

    def extract(self, x: Tensor) -> Tensor:
        return self.net.head_lif(self.through_all(x, self.net.patch_embed, *self.net.blocks))


class Hierarchical(Transformer):
    """Three stages, each an embedding that doubles the channels, and blocks."""

    def extract(self, x: Tensor) -> Tensor:
        return self.through_all(
            x, *(m for i in "123" for m in (getattr(self.net, "patch_embed" + i), *getattr(self.net, "stage" + i)))
        )


@register_network(
    "qkformer",
    {
        "embed_dims": WIDTH,
        "num_heads": Setting((6, 6, 6), "heads of the attention in the three stages", low=1),
        "depths": STAGES,
    },
)
class QKFormer(Hierarchical):
    """Attention of queries and keys alone in the first two stages (Zhou et al., NeurIPS 2024, arXiv:2403.16552).

    The equations of zhouchenlin2096/QKFormer c2a00e8, imagenet/qkformer.py, with two exceptions: there the last neuron of
    Spiking_Self_Attention runs over time and batch as one axis, so a sample starts from the state of the one before it, and
    the classifier starts from N(0, 0.02). The stems of its networks for CIFAR and events are not here.
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, embed_dims, num_heads, depths):
        super().__init__(input_shape, timesteps)
        for width, heads in zip((embed_dims // 4, embed_dims // 2, embed_dims), num_heads, strict=True):
            if width % heads:
                raise UserError(
                    f"model.num_heads={list(num_heads)} of qkformer must divide the channels of its three stages, "
                    f"{embed_dims // 4}, {embed_dims // 2} and {embed_dims} with model.embed_dims={embed_dims}"
                )
        self.net = qkformer.QKFormer(
            timesteps, input_shape[0], num_classes, embed_dims, num_heads, depths, spiking_neuron=Place
        )
        self.fill(neuron)


MAX_FORMER = {"embed_dims": WIDTH, "depths": STAGES}
HEADS = Setting(0, "heads of the attention; 0 is one for 64 channels", low=0)


@register_network("maxformer", MAX_FORMER | {"num_heads": HEADS}, False)
@register_network("maxformer_cifar", MAX_FORMER | {"depths": replace(STAGES, default=(1, 1, 2))}, True)
class MaxFormer(Hierarchical):
    """Max pools and depthwise convolutions before attention keep high frequencies (Fang et al., 2025, arXiv:2505.18608).

    The equations of bic-L/MaxFormer 6ddd4cc (imagenet and cifar10-100/max_former.py), whose network for events is not here.
    Its attention reads spikes and ends in a sum of potentials; that of spikingjelly's form for ImageNet reads the potentials
    and ends in a neuron, so its form for CIFAR stands there too. The form for CIFAR has 8 heads, and a stem that keeps the
    frame's size.
    """

    def __init__(self, cifar: bool, *, input_shape, timesteps, neuron, num_heads=8, **given):
        super().__init__(input_shape, timesteps)
        width, heads = given["embed_dims"], num_heads or max(1, given["embed_dims"] // 64)
        _check_heads("maxformer", width, heads)
        build = partial(maxformer.MaxFormer, timesteps, input_shape[0], spiking_neuron=Place, **given)
        self.net = build(cifar=cifar)
        if not cifar:
            self.net.stage3 = build(cifar=True).stage3
            for block in self.net.stage3:
                block.attn.num_heads = heads
            for place, layer in self.net.named_modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    if place.startswith("patch_embed"):  # a norm follows
                        layer.bias = None
                    elif layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        self.fill(neuron)

    def extract(self, x: Tensor) -> Tensor:
        return self.net.head_lif(super().extract(x))
