"""SEW-ResNet (Fang et al., NeurIPS 2021, arXiv:2102.04159) with ADD as its element-wise function.

Names follow torchvision's ResNet (conv1, bn1, layer1.0.conv1, downsample.0, fc), so that its weights load;
spiking layers are sn1, sn2, sn3 and downsample_sn. A block adds spikes to spikes, so its output is not binary.
The checkpoints of the paper's authors load too (`own_names`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.kernels.conv import Conv2d
from snn_repro.models.blocks import (
    HEAD_INIT,
    AvgPool2d,
    Block,
    SpikingNetwork,
    init_head,
    kaiming_fan_out,
    last,
    output_size,
    over_time,
)
from snn_repro.models.networks import register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import Setting, build_neuron

NormOf = Callable[..., nn.Module]  # channels -> the norm behind a convolution
WIDTH = 64  # of the stem and the first stage; each stage doubles it


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class SEWBlock(Block):
    """shortcut(x) + branch(x); where shapes change, the shortcut has a convolution, a norm and a neuron too."""

    expansion: int
    last_norm: str

    def _add_downsample(self, inputs: int, outputs: int, stride: int, size, neuron: dict, norm: NormOf) -> None:
        self.downsample = self.downsample_sn = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
            self.downsample_sn = build_neuron(state_shape=(outputs, *size), **neuron)

    def shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        convolution, norm = self.downsample
        return self.spikes(x, convolution, norm, self.downsample_sn)


class BasicBlock(SEWBlock):
    """Two 3x3 convolutions; the first one strides. `size` is (H, W) of the input."""

    expansion = 1
    last_norm = "bn2"

    def __init__(self, inputs: int, width: int, stride: int, size: Sequence[int], neuron: dict, norm: NormOf):
        super().__init__()
        size = output_size(size, 3, stride, 1)
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.sn1 = build_neuron(state_shape=(width, *size), **neuron)
        self.conv2 = conv(width, width, 3)
        self.bn2 = norm(width)
        self.sn2 = build_neuron(state_shape=(width, *size), **neuron)
        self._add_downsample(inputs, width, stride, size, neuron, norm)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.spikes(x, self.conv1, self.bn1, self.sn1)
        return self.spikes(branch, self.conv2, self.bn2, self.sn2, plus=lambda: self.shortcut(x))


class Bottleneck(SEWBlock):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one strides. `size` is (H, W) of the input."""

    expansion = 4
    last_norm = "bn3"

    def __init__(self, inputs: int, width: int, stride: int, size: Sequence[int], neuron: dict, norm: NormOf):
        super().__init__()
        strided, outputs = output_size(size, 3, stride, 1), width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = norm(width)
        self.sn1 = build_neuron(state_shape=(width, *size), **neuron)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.sn2 = build_neuron(state_shape=(width, *strided), **neuron)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = norm(outputs)
        self.sn3 = build_neuron(state_shape=(outputs, *strided), **neuron)
        self._add_downsample(inputs, outputs, stride, strided, neuron, norm)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.spikes(x, self.conv1, self.bn1, self.sn1)
        branch = self.spikes(branch, self.conv2, self.bn2, self.sn2)
        return self.spikes(branch, self.conv3, self.bn3, self.sn3, plus=lambda: self.shortcut(x))


_OPTIONS = {
    "norm": replace(NORM, default=None),
    "zero_init_residual": Setting(False, "start the last norm of each branch at 0"),
    "head_init": HEAD_INIT,
}
_IMAGENET = _OPTIONS | {"stem_pool": Setting("avg", "pool of the stem", choices=("avg", "max"))}


def by_authors(
    weights: Mapping[str, Any], settings: Mapping[str, Any], downsample: str
) -> tuple[Mapping[str, Any], str]:
    """Weights under torchvision's names, from those of the SEW-ResNet's authors, whose layers hold a convolution and a norm.

    downsample is what they call the shortcut's; settings are those that they wrote into the file. Other weights pass as they
    are. Also returns what their accuracy needs. Raises UserError for blocks that do not add.
    """
    joined = settings.get("connect_f") or "ADD"
    if joined != "ADD":
        raise UserError(f"these weights are of blocks joined by {joined}, and ours add: they are of another model")
    pattern = re.compile(rf"(conv(\d)|{re.escape(downsample)})\.module\.(\d)\.")

    def own(found: re.Match) -> str:
        return f"{('conv', 'bn')[int(found[3])]}{found[2]}." if found[2] else f"downsample.{found[3]}."

    named = {pattern.sub(own, name): value for name, value in weights.items()}
    needs = "; their authors' network has a max-pool stem and hard resets: model.stem_pool=max neuron.reset=hard"
    return named, needs if named.keys() != weights.keys() else ""


@register_network("sew_resnet18", _IMAGENET, BasicBlock, (2, 2, 2, 2), "imagenet")
@register_network("sew_resnet34", _IMAGENET, BasicBlock, (3, 4, 6, 3), "imagenet")
@register_network("sew_resnet50", _IMAGENET, Bottleneck, (3, 4, 6, 3), "imagenet")
@register_network("sew_resnet101", _IMAGENET, Bottleneck, (3, 4, 23, 3), "imagenet")
@register_network("sew_resnet152", _IMAGENET, Bottleneck, (3, 8, 36, 3), "imagenet")
@register_network("sew_resnet18_cifar", _OPTIONS, BasicBlock, (2, 2, 2, 2), "cifar")
class SEWResNet(SpikingNetwork):
    """block and depths choose the network; stem "imagenet" is 7x7, stride 2 and a pool, "cifar" 3x3.

    stem_pool is "avg", the paper's, or "max", that of the SEW-ResNet's authors. zero_init_residual starts the last norm of
    each branch at weight 0; head_init is "torch" or "normal01" (N(0, 0.01), bias 0).
    """

    def __init__(
        self,
        block: type[SEWBlock],
        depths: tuple[int, int, int, int],
        stem: str,
        *,
        num_classes: int,
        input_shape: tuple[int, int, int],
        timesteps: int,
        neuron: dict,
        norm: str,
        zero_init_residual: bool,
        head_init: str,
        stem_pool: str = "avg",
    ):
        super().__init__(input_shape, timesteps)
        norm_of = norms(norm, timesteps, neuron)
        channels, *size = input_shape
        if stem == "imagenet":
            self.conv1 = conv(channels, WIDTH, 7, 2)
            size = output_size(size, 7, 2, 3)
        else:
            self.conv1 = conv(channels, WIDTH, 3)
        self.bn1 = norm_of(WIDTH)
        self.sn1 = build_neuron(state_shape=(WIDTH, *size), **neuron)
        self.pool: nn.Module = nn.Identity()
        if stem == "imagenet":
            self.pool = nn.MaxPool2d(3, 2, 1) if stem_pool == "max" else AvgPool2d(3, 2, 1, count_include_pad=True)
            size = output_size(size, 3, 2, 1)

        inputs = WIDTH
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(inputs, WIDTH * 2**stage, stride, size, neuron, norm_of))
                size = output_size(size, 3, stride, 1)
                inputs = WIDTH * 2**stage * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

        kaiming_fan_out(self)
        init_head(self.fc, head_init)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, SEWBlock):
                    for name, parameter in getattr(module, module.last_norm).named_parameters():
                        if name.rpartition(".")[2] == "weight":
                            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        x, timesteps = self.steps(x)
        x = self.spikes(x, self.conv1, self.bn1, self.sn1, timesteps)
        x = over_time(x, self.pool)
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = self.through(x, block)
        return self.fc((last(x) if last_step else x).mean((-2, -1)))

    def own_names(self, weights: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """A file's weights under our names, and what to say of them; see `by_authors`."""
        return by_authors(weights, settings, "downsample.0")
