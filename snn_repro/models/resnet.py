"""Spiking ResNets: SEW-ResNet, Wide-7B-Net, and ResNet-19 and ResNet-34 with tdBN.

Blocks of SEW-ResNet and Wide-7B-Net add spikes (ADD; Fang et al., NeurIPS 2021, arXiv:2102.04159), those of ResNet-19
and ResNet-34 add potentials (Zheng et al., AAAI 2021, arXiv:2011.05280).

Names follow torchvision's ResNet (conv1, bn1, layer1.0.conv1, downsample.0, fc), so its weights load; spiking layers
are sn1, sn2, sn3 and downsample_sn. Checkpoints of the SEW-ResNet's authors load too (`own_names`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.models import blocks
from snn_repro.models.blocks import AvgPool2d, Block, SpikingNetwork, conv, over_time, register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import Setting


class SEWBlock(Block):
    """Spike-element-wise block: shortcut(x) + branch(x), a sum of spikes.

    Where shapes change, the shortcut has a convolution, a norm and a neuron. norm_of(channels) and neuron() build
    layers. sizes: kernel sizes of the branch; strided: number of its convolution with the stride, from 1.
    """

    def __init__(self, inputs: int, width: int, stride: int, norm_of: Callable, neuron: Callable):
        super().__init__()
        outputs, channels = width * self.expansion, inputs
        for i, kernel in enumerate(self.sizes, 1):
            after = outputs if i == len(self.sizes) else width
            self.add_stage(i, channels, after, norm_of, neuron, kernel, stride if i == self.strided else 1)
            channels = after
        changes = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), norm_of(outputs)) if changes else None
        self.downsample_sn = neuron() if changes else None

    def shortcut(self, x: Tensor) -> Tensor:
        """Return x, or its projection to the shape of the branch."""
        if self.downsample is None:
            return x
        return self.spikes(x, self.downsample[0], self.downsample[1], self.downsample_sn)

    def forward(self, x: Tensor) -> Tensor:
        branch, end = x, len(self.sizes)
        for i in range(1, end):
            branch = self.stage(i, branch)
        return self.stage(end, branch, plus=lambda: self.shortcut(x))


class SEWBasicBlock(SEWBlock):
    """SEW block of two 3x3 convolutions."""

    sizes, strided, expansion = (3, 3), 1, 1


class SEWBottleneck(SEWBlock):
    """SEW block of 1x1, 3x3 and 1x1 convolutions; the last has four times the width."""

    sizes, strided, expansion = (1, 3, 1), 2, 4


class BasicBlock(Block):
    """Residual block that adds potentials: neuron(shortcut(x) + norm(conv(neuron(norm(conv(x))))))."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm_of: Callable, neuron: Callable):
        super().__init__()
        self.add_stage(1, inputs, width, norm_of, neuron, stride=stride)
        self.conv2, self.bn2 = conv(width, width, 3), norm_of(width, summands=2)
        changes = stride != 1 or inputs != width
        self.downsample = nn.Sequential(conv(inputs, width, 1, stride), norm_of(width, summands=2)) if changes else None
        self.sn2 = neuron()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(over_time(self.stage(1, x), self.conv2))
        if self.downsample is not None:
            x = self.downsample[1](over_time(x, self.downsample[0]))
        return self.sn2(branch if branch.is_meta else x + branch)


class Plan(NamedTuple):
    """Blocks of a ResNet and its stem, "imagenet" (7x7, stride 2, pool) or "cifar" (3x3)."""

    block: Any  # SEWBlock or BasicBlock
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = "imagenet"


class ResNet(SpikingNetwork):
    """A ResNet of a stem, stages of blocks, global average pooling and a classifier."""

    downsample_name = "downsample"  # of a block's shortcut in the authors' files
    needs = "; their authors' network has a max-pool stem and hard resets: model.stem_pool=max neuron.reset=hard"

    def __init__(self, plan: Plan, *, num_classes, neuron, norm, stem_pool="max", hidden=0, **frames):
        super().__init__(**frames)
        norm_of, inputs = norms(norm, self.timesteps, neuron), plan.widths[0]
        kernel, stride = (7, 2) if plan.stem == "imagenet" else (3, 1)
        self.add_stage(1, self.input_shape[0], inputs, norm_of, neuron, kernel, stride)
        pool = nn.MaxPool2d(3, 2, 1) if stem_pool == "max" else AvgPool2d(3, 2, 1, count_include_pad=True)
        self.pool: nn.Module = pool if plan.stem == "imagenet" else nn.Identity()
        for stage, (width, depth) in enumerate(zip(plan.widths, plan.depths, strict=True), 1):
            layer = nn.Sequential()
            for i in range(depth):
                layer.append(plan.block(inputs, width, 2 if stage > 1 and i == 0 else 1, norm_of, neuron))
                inputs = width * plan.block.expansion
            self.add_module(f"layer{stage}", layer)
        self.stages = len(plan.widths)
        self.fc1 = nn.Linear(inputs, hidden) if hidden else None
        self.sn_fc1: Any = neuron() if hidden else None
        self.fc = nn.Linear(hidden or inputs, num_classes)
        blocks.kaiming(self)

    def extract(self, x: Tensor) -> Tensor:
        x, timesteps = self.steps(x)
        x = over_time(self.stage(1, x, timesteps), self.pool)
        for block in chain(*(getattr(self, f"layer{i + 1}") for i in range(self.stages))):
            x = self.through(x, block)
        return x if self.fc1 is None else self.sn_fc1(self.fc1(x.mean((-2, -1))))

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((-2, -1)) if self.fc1 is None else x)

    def own_names(self, weights: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Rename weights of the SEW-ResNet's authors as in torchvision; others pass unchanged.

        settings: those stored in the authors' file. Also returns the settings that their accuracy needs, as text.
        Raises UserError for blocks that do not add.
        """
        if (joined := settings.get("connect_f") or "ADD") != "ADD":
            raise UserError(f"these weights are of another model: its blocks are joined by {joined}, ours by ADD")
        pattern = re.compile(rf"(conv(\d)|{re.escape(self.downsample_name)})\.module\.(\d)\.")

        def own(match: re.Match) -> str:
            return f"{('conv', 'bn')[int(match[3])]}{match[2]}." if match[2] else f"downsample.{match[3]}."

        named = {pattern.sub(own, name): value for name, value in weights.items()}
        return named, self.needs if named.keys() != weights.keys() else ""


_ZERO_INIT = Setting(False, "start the last norm of each branch at weight 0")
_OPTIONS = {"norm": replace(NORM, default=None), "zero_init_residual": _ZERO_INIT, "head_init": blocks.HEAD_INIT}
_IMAGENET = _OPTIONS | {"stem_pool": Setting("avg", "pool of the stem", choices=("avg", "max"))}


@register_network("sew_resnet18", _IMAGENET, Plan(SEWBasicBlock, (2, 2, 2, 2)))
@register_network("sew_resnet34", _IMAGENET, Plan(SEWBasicBlock, (3, 4, 6, 3)))
@register_network("sew_resnet50", _IMAGENET, Plan(SEWBottleneck, (3, 4, 6, 3)))
@register_network("sew_resnet101", _IMAGENET, Plan(SEWBottleneck, (3, 4, 23, 3)))
@register_network("sew_resnet152", _IMAGENET, Plan(SEWBottleneck, (3, 8, 36, 3)))
@register_network("sew_resnet18_cifar", _OPTIONS, Plan(SEWBasicBlock, (2, 2, 2, 2), stem="cifar"))
class SEWResNet(ResNet):
    """SEW-ResNet for ImageNet (18 to 152 layers) and CIFAR (18 layers).

    stem_pool: "avg" as in the paper, or "max" as in the SEW-ResNet authors' code. zero_init_residual: the last norm of
    each branch starts with weight 0. head_init: "torch" or "normal01" (N(0, 0.01), bias 0).
    """

    downsample_name = "downsample.0"

    def __init__(self, plan: Plan, *, zero_init_residual, head_init, **given):
        super().__init__(plan, **given)
        blocks.init_head(self.fc, head_init)
        for block in self.modules() if zero_init_residual else ():
            if isinstance(block, SEWBlock):
                for name, parameter in getattr(block, f"bn{len(block.sizes)}").named_parameters():
                    if name.rpartition(".")[2] == "weight":
                        nn.init.zeros_(parameter)


_TDBN = replace(NORM, default="tdbn")
_HIDDEN = Setting(256, "width of a spiking linear layer before the classifier; 0: none", "neurons", low=0)


@register_network("spiking_resnet34", {"norm": _TDBN}, Plan(BasicBlock, (3, 4, 6, 3)))
@register_network("resnet19", {"norm": _TDBN, "hidden": _HIDDEN}, Plan(BasicBlock, (3, 3, 2), (128, 256, 512), "cifar"))
class SpikingResNet(ResNet):
    """ResNet-19 and ResNet-34 with tdBN; resnet19 has a spiking linear layer of width `hidden`."""

    needs = ResNet.needs.replace("model.stem_pool=max ", "")


WIDTHS = (64, 64, 64, 64, 128, 128, 128)  # of Wide-7B-Net


class Stage(Block):
    """1x1 convolution if the width changes | x + two 3x3 convolutions | pool."""

    def __init__(self, inputs: int, width: int, pool: nn.Module, norm_of: Callable, neuron: Callable):
        super().__init__()
        self.widened = inputs != width
        if self.widened:
            self.add_stage(0, inputs, width, norm_of, neuron, kernel=1)
        self.add_stage(1, width, width, norm_of, neuron)
        self.add_stage(2, width, width, norm_of, neuron)
        self.pool = pool

    def forward(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        if self.widened:
            x = self.stage(0, x, timesteps)
        return over_time(self.stage(2, self.stage(1, x), plus=lambda: x), self.pool)


_WIDE = {
    "norm": NORM,
    "pool": Setting("max", "2x2 pool after a stage", choices=("max", "avg")),
    "unpooled": Setting(0, "number of first stages without a pool; GLIF: 3, for 48x48 pixels", low=0, high=7),
}


@register_network("wide_7b", _WIDE)
class Wide7B(SpikingNetwork):
    """Wide-7B-Net: seven SEW stages 64 64 64 64 128 128 128 | flatten, linear.

    Every stage except the first `unpooled` halves the frame while it has more than one pixel. 1.19 M weights for 10
    classes at 128x128 pixels, where the last map has one pixel.
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, norm, pool, unpooled):
        super().__init__(input_shape, timesteps)
        norm_of = norms(norm, timesteps, neuron)
        channels, *size = input_shape
        stages = []
        for i, width in enumerate(WIDTHS):
            pools = i >= unpooled and min(size) > 1
            pool_of = nn.Identity() if not pools else AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(2)
            stages.append(Stage(channels, width, pool_of, norm_of, neuron))
            size, channels = [n // 2 for n in size] if pools else size, width
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Linear(channels * prod(size), num_classes)

    def extract(self, x: Tensor) -> Tensor:
        x, timesteps = self.steps(x)
        first, *rest = self.stages
        x = first(x, timesteps)
        for stage in rest:
            x = self.through(x, stage)
        return x
