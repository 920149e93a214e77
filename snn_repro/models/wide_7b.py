"""Wide-7B-Net: seven SEW blocks with ADD (Fang et al., NeurIPS 2021, arXiv:2102.04159), the network of CIFAR10-DVS."""

from collections.abc import Callable
from math import prod

from torch import Tensor, nn

from snn_repro.models.blocks import AvgPool2d, Block, SpikingNetwork, over_time, register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import Setting

WIDTHS = (64, 64, 64, 64, 128, 128, 128)


class Stage(Block):
    """Where the width changes a 1x1 convolution to it | x + two 3x3 convolutions | a pool, or none."""

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


_OPTIONS = {
    "norm": NORM,
    "pool": Setting("max", "2x2 pool behind a stage", choices=("max", "avg")),
    "unpooled": Setting(0, "first stages without a pool; GLIF: 3, for 48x48 pixels", low=0, high=7),
}


@register_network("wide_7b", _OPTIONS)
class Wide7B(SpikingNetwork):
    """64 64 64 64 128 128 128, each but the unpooled halving the frame while it has more than one pixel | flatten, linear.

    1.19 M weights for 10 classes at 128x128 pixels, where the last map has one pixel.
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

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(2))
