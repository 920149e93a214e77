"""Spiking transformers from spikingjelly's layers, with our neurons and logits of every step.

spikingjelly builds all neurons with one factory that does not know their position. So the model is built with
placeholders, which `fill` replaces. Neurons of attention (`attn_lif`) have half the threshold of the others, as in all
four papers.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from spikingjelly.activation_based.layer import attention
from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer, spikformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_repro.errors import UserError
from snn_repro.kernels.conv import StepConv1d, StepConv2d
from snn_repro.models.blocks import Neurons, SpikingNetwork, register_network, repeat_steps
from snn_repro.models.norms import BN
from snn_repro.models.vgg import OverTime
from snn_repro.neurons import Setting

WIDTH = Setting(384, "token width in the last stage; a quarter of it in the first", "channels", low=8, multiple=8)
STAGES = Setting((1, 2, 7), "number of blocks in the three stages", low=0)
SIZES = {
    "embed_dims": Setting(512, "token width in the last stage", "channels", low=8, multiple=8),
    "num_heads": Setting(8, "attention heads", low=1),
    "depths": Setting(8, "number of blocks", low=1),
    "patch_size": Setting(16, "side of a patch, 4 (CIFAR) or 16", "pixels", choices=(4, 16)),
}
SCALE = Setting(0.125, "scale of the attention; 0.25 in the authors' code for events", above=0)
QKFORMER = {"embed_dims": WIDTH, "num_heads": Setting((6, 6, 6), "attention heads per stage", low=1), "depths": STAGES}
MAX_FORMER = {"embed_dims": WIDTH, "depths": STAGES}
HEADS = Setting(0, "attention heads; 0: one per 64 channels", low=0)


class Placeholder(nn.Identity):
    """Placeholder for a neuron until `Transformer.fill`."""


class StepNorm(BN):
    """Batch norm of maps or (`axes` 3) tokens, which the neuron behind may compute.

    `behind`: (parent, name) of the neuron that alone reads the output; where its CPU kernel can, it normalises instead.
    """

    behind: tuple[Any, ...] = ()
    axes = 4  # of maps [N, C, H, W]; tokens [N, C, L] have 3. With T and B instead of N, they are folded
    affine_form = BN.affine_form

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > self.axes:
            return self.forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.behind and not torch.compiler.is_compiling() and hasattr(neuron := getattr(*self.behind), "plan"):
            affine, neuron.before = self.affine_form(), None
            if affine is not None and (plan := neuron.plan(x[None], affine)).norm and plan.backend == "cpu":
                neuron.before = affine
                return x
        # torch's norm knows channels-last memory of four axes only
        return super().forward(x[None])[0] if self.axes == 4 else super().forward(x[None, :, :, None])[0].squeeze(2)


OURS = {nn.Conv1d: StepConv1d, nn.Conv2d: StepConv2d, _BatchNorm: StepNorm}
# Norms of spikingjelly's classes, each with the neuron that alone reads its output.
BEHIND: dict[type[nn.Module], dict[str, str]] = {
    spikformer.SpikformerConv2dBNLIF: {"conv_bn.block.1": "neuron"}, qkformer._MLP: {"bn1": "lif1", "bn2": "lif2"},
    spikformer.SpikformerMLP: {"fc1.1": "neuron1", "fc2.1": "neuron2"},
    attention.SpikingSelfAttention: {"qkv_conv_bn.1": "qkv_lif", "proj_conv_bn.1": "proj_lif"},
    attention.SpikeDrivenSelfAttention: {"q_bn": "q_lif", "k_bn": "k_lif", "v_bn": "v_lif"},
    attention.QKAttention: {"qk_conv_bn.1": "qk_lif", "proj_conv_bn.1": "proj_lif"},
    maxformer._MaxCifarSSA: {"qkv.1": "qkv_lif"}, maxformer._MaxEmbedInit: {"bn1": "lif1", "bn2": "lif2"},
    **dict.fromkeys((maxformer._SpatialMLP, spike_driven_transformer._MLP), {"bn1": "lif2"}),
}  # fmt: skip


class Transformer(SpikingNetwork):
    """Base class of transformers: spikingjelly's `net`, classified at every step."""

    def fill(self, neuron: Neurons) -> None:
        """Replace each placeholder in `net` by a neuron, and layers by those that kernels run."""
        for name in [name for name, module in self.named_modules() if isinstance(module, Placeholder)]:
            parent, _, last = name.rpartition(".")
            half = {"v_threshold": neuron.v_threshold / 2} if last == "attn_lif" else {}
            setattr(self.get_submodule(parent), last, neuron(**half))
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm1d):
                vars(module)["axes"] = 3
            module.__class__ = next((ours for kind, ours in OURS.items() if isinstance(module, kind)), type(module))
        for parent in self.net.modules():
            for name, reader in BEHIND.get(type(parent), {}).items():
                parent.get_submodule(name).behind = parent, reader

    def through_all(self, x: Tensor, *layers: nn.Module) -> Tensor:
        """Run x through layers and average over tokens: features [T, B, embed_dims]."""
        x = repeat_steps(*self.steps(x))
        for layer in layers:
            x = self.through(x, layer)
        return x.flatten(3).mean(-1)

    def classify(self, x: Tensor) -> Tensor:
        return self.net.head(x)


def _check_heads(name: str, widths: Sequence[int], heads: Sequence[int]) -> None:
    if any(width % n for width, n in zip(widths, heads, strict=True)):
        raise UserError(
            f"model.num_heads={', '.join(map(str, heads))} of {name} must divide {', '.join(map(str, widths))}, the "
            f"channels of its attention (model.embed_dims={widths[-1]})"
        )


@register_network("spikformer", SIZES | {"scale": SCALE})
class Spikformer(Transformer):
    """Spikformer-depths-embed_dims: spiking self-attention without softmax (Zhou et al., ICLR 2023, arXiv:2209.15425).

    As in the authors' code, ZK-Zhou/spikformer 6212689 (imagenet, cifar10 and cifar10dvs/model.py), the stem pools
    after each neuron (spikingjelly: before it), and layers keep torch's initial weights, except the classifier and with
    4x4 patches, the linear layers of the blocks. Biases before norms, which have no effect, are left out. A checkpoint
    in spikingjelly's order is rejected, since each pool is a stage of its own here.
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, scale, **sizes):
        super().__init__(input_shape, timesteps)
        _check_heads("spikformer", [sizes["embed_dims"]], [sizes["num_heads"]])
        channels, height, width = input_shape
        self.net = spikformer.Spikformer(
            timesteps, channels, height, width, num_classes=num_classes, spiking_neuron=Placeholder, **sizes
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
    """Spike-driven transformer: attention by masking and addition, membrane shortcuts (Yao et al., NeurIPS 2023).

    arXiv:2307.01694. The equations of BICLab/Spike-Driven-Transformer 3faa822 (module/sps.py, module/ms_conv.py) for
    images, without the pools of its attention for events (dvs_mode). Convolutions keep torch's initial weights; the
    authors draw them from N(0, 0.02) (model/spikeformer.py).
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, **sizes):
        super().__init__(input_shape, timesteps)
        _check_heads("spike_driven_transformer", [sizes["embed_dims"]], [sizes["num_heads"]])
        pooling = "1111" if sizes.pop("patch_size") == 16 else "0011"
        self.net = spike_driven_transformer.SpikeDrivenTransformer(
            timesteps, input_shape[0], num_classes, pooling_stat=pooling, spiking_neuron=Placeholder, **sizes
        )
        self.fill(neuron)

    def extract(self, x: Tensor) -> Tensor:
        return self.net.head_lif(self.through_all(x, self.net.patch_embed, *self.net.blocks))


class Hierarchical(Transformer):
    """Base class of transformers with three stages, each an embedding and blocks."""

    def extract(self, x: Tensor) -> Tensor:
        stages = ((getattr(self.net, f"patch_embed{i}"), *getattr(self.net, f"stage{i}")) for i in "123")
        return self.through_all(x, *chain(*stages))


@register_network("qkformer", QKFORMER)
class QKFormer(Hierarchical):
    """QKFormer: query-key attention in the first two stages (Zhou et al., NeurIPS 2024, arXiv:2403.16552).

    The equations of zhouchenlin2096/QKFormer c2a00e8, imagenet/qkformer.py, with two exceptions. There the last neuron
    of Spiking_Self_Attention treats time and batch as one axis, so each sample starts from the state of the previous
    one; and the classifier is initialised from N(0, 0.02). The stems for CIFAR and events are not included.
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, embed_dims, num_heads, depths):
        super().__init__(input_shape, timesteps)
        _check_heads("qkformer", (embed_dims // 4, embed_dims // 2, embed_dims), num_heads)
        self.net = qkformer.QKFormer(
            timesteps, input_shape[0], num_classes, embed_dims, num_heads, depths, spiking_neuron=Placeholder
        )
        self.fill(neuron)


@register_network("maxformer", MAX_FORMER | {"num_heads": HEADS}, False)
@register_network("maxformer_cifar", MAX_FORMER | {"depths": replace(STAGES, default=(1, 1, 2))}, True)
class MaxFormer(Hierarchical):
    """Max-Former: max pools and depthwise convolutions keep high frequencies (Fang et al., 2025, arXiv:2505.18608).

    The equations of bic-L/MaxFormer 6ddd4cc (imagenet and cifar10-100/max_former.py), without its network for events.
    Attention reads spikes and ends in a sum of potentials. spikingjelly's attention for ImageNet reads potentials and
    ends in a neuron, so its attention for CIFAR is used for both. The CIFAR form has 8 heads, and a stem that keeps the
    frame's size.
    """

    def __init__(self, cifar: bool, *, input_shape, timesteps, neuron, num_heads=8, **given):
        super().__init__(input_shape, timesteps)
        width, heads = given["embed_dims"], num_heads or max(1, given["embed_dims"] // 64)
        _check_heads("maxformer", [width], [heads])
        build = partial(maxformer.MaxFormer, timesteps, input_shape[0], spiking_neuron=Placeholder, **given)
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
