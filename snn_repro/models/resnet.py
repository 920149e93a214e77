"""Spiking ResNets whose blocks add potentials, not spikes: ResNet-19 and ResNet-34 of Zheng et al. (AAAI 2021,
arXiv:2011.05280). Beside them stand the SEW-ResNets, whose blocks add spikes.

Names follow torchvision's ResNet (conv1, bn1, layer1.0.conv1, downsample.0, fc), so that resnet34's weights load.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from snn_repro.models.blocks import Block, SpikingNetwork, kaiming_fan_out, last, output_size, over_time
from snn_repro.models.networks import register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.models.sew_resnet import by_authors, conv
from snn_repro.neurons import Setting, build_neuron


class BasicBlock(Block):
    """neuron(shortcut(x) + norm(conv(neuron(norm(conv(x)))))); the shortcut has a convolution and a norm where shapes change.

    `size` is (H, W) of the input.
    """

    def __init__(self, inputs: int, width: int, stride: int, size: Sequence[int], neuron: dict, norm_of: Callable):
        super().__init__()
        size = output_size(size, 3, stride, 1)
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = norm_of(width)
        self.sn1 = build_neuron(state_shape=(width, *size), **neuron)
        self.conv2 = conv(width, width, 3)
        self.bn2 = norm_of(width, summands=2)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(conv(inputs, width, 1, stride), norm_of(width, summands=2))
        self.sn2 = build_neuron(state_shape=(width, *size), **neuron)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.spikes(x, self.conv1, self.bn1, self.sn1)
        branch = self.bn2(over_time(branch, self.conv2))
        if self.downsample is not None:
            convolution, norm = self.downsample
            x = norm(over_time(x, convolution))
        return self.sn2(x + branch)


_TDBN = replace(NORM, default="tdbn")
_HIDDEN = Setting(256, "width of the spiking linear layer before the classifier; 0: none", "neurons", low=0)


@register_network("spiking_resnet34", {"norm": _TDBN}, (64, 128, 256, 512), (3, 4, 6, 3), "imagenet")
@register_network("resnet19", {"norm": _TDBN, "hidden": _HIDDEN}, (128, 256, 512), (3, 3, 2), "cifar")
class SpikingResNet(SpikingNetwork):
    """widths and depths choose the network; stem "imagenet" is 7x7, stride 2 and a max pool, "cifar" 3x3.

    hidden is the width of a spiking linear layer before the classifier, 0 for none.
    """

    def __init__(
        self, widths, depths, stem: str, *, num_classes, input_shape, timesteps, neuron, norm, hidden=0,
    ):  # fmt: skip
        super().__init__(input_shape, timesteps)
        norm_of = norms(norm, timesteps, neuron)
        channels, *size = input_shape
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = conv(channels, widths[0], kernel, stride)
        size = output_size(size, kernel, stride, kernel // 2)
        self.bn1 = norm_of(widths[0])
        self.sn1 = build_neuron(state_shape=(widths[0], *size), **neuron)
        self.pool: nn.Module = nn.Identity()
        if stem == "imagenet":
            self.pool = nn.MaxPool2d(3, 2, 1)
            size = output_size(size, 3, 2, 1)

        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(BasicBlock(inputs, width, stride, size, neuron, norm_of))
                size, inputs = output_size(size, 3, stride, 1), width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(widths)
        self.fc1: Any = None
        self.sn_fc1: Any = None
        if hidden:
            self.fc1 = nn.Linear(inputs, hidden)
            self.sn_fc1 = build_neuron(state_shape=(hidden,), **neuron)
        self.fc = nn.Linear(hidden or inputs, num_classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        x, timesteps = self.steps(x)
        x = self.spikes(x, self.conv1, self.bn1, self.sn1, timesteps)
        x = over_time(x, self.pool)
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = self.through(x, block)
        if self.fc1 is not None:
            x = self.sn_fc1(self.fc1(x.mean((-2, -1))))
            return self.fc(x[-1:] if last_step else x)
        return self.fc((last(x) if last_step else x).mean((-2, -1)))

    def own_names(self, weights: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """A file's weights under our names, and what to say of them: those of the SEW-ResNet's authors have others."""
        named, needs = by_authors(weights, settings, "downsample")
        return named, needs.replace("model.stem_pool=max ", "")
