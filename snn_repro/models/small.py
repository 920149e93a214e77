"""A small network for the embedded data sets: three convolutions and a classifier."""

from dataclasses import replace
from math import prod

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.models.blocks import AvgPool2d, SpikingNetwork, kaiming, over_time, register_network
from snn_repro.models.norms import NORM, norms


@register_network("small", {"norm": replace(NORM, default=None)})
class Small(SpikingNetwork):
    """Small network with about 34,000 weights for digits, 36,000 for digits_dvs.

    conv 24 | conv 48, stride 2 | average pool 2 | SEW block: x + conv 48 | flatten | linear. Above 16x16 pixels the
    first convolution has stride 2 as well, so that the last one sees most of the frame.
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, norm):
        super().__init__(input_shape, timesteps)
        channels, *size = input_shape
        norm_of = norms(norm, timesteps, neuron)
        if min(size) < 4:
            raise UserError(f"model.name=small needs frames of at least 4x4 pixels, not {size[0]}x{size[1]}.")
        stride = 2 if min(size) > 16 else 1
        self.add_stage(1, channels, 24, norm_of, neuron, stride=stride)
        self.add_stage(2, 24, 48, norm_of, neuron, stride=2)
        self.pool = AvgPool2d(2)
        self.add_stage(3, 48, 48, norm_of, neuron)
        self.fc = nn.Linear(48 * prod(-(-n // (2 * stride)) // 2 for n in size), num_classes)
        kaiming(self)

    def extract(self, x: Tensor) -> Tensor:
        x, timesteps = self.steps(x)
        x = self.through(self.stage(1, x, timesteps), lambda x: over_time(self.stage(2, x), self.pool))
        return self.through(x, lambda x: self.stage(3, x, plus=lambda: x))
