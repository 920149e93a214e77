"""One small network for the embedded data: three convolutions, the last in a SEW block."""

from dataclasses import replace

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.kernels.conv import Conv2d
from snn_repro.models.blocks import AvgPool2d, SpikingNetwork, kaiming_fan_out, last, output_size, over_time
from snn_repro.models.networks import register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import build_neuron


@register_network("small", {"norm": replace(NORM, default=None)})
class Small(SpikingNetwork):
    """conv 24 | conv 48, stride 2 | average pool 2 | SEW block: x + conv 48 | flatten | linear.

    The first convolution strides too where frames are larger than 16x16, so that the last one sees most of them;
    some 34,000 weights for digits, 36,000 for their events.
    """

    def __init__(self, *, num_classes: int, input_shape: tuple[int, int, int], timesteps: int, neuron: dict, norm: str):
        super().__init__(input_shape, timesteps)
        channels, *size = input_shape
        norm_of = norms(norm, timesteps, neuron)
        if min(size) < 4:
            raise UserError(f"model.name=small needs frames of at least 4x4 pixels, not {size[0]}x{size[1]}.")
        stride = 2 if min(size) > 16 else 1
        size = output_size(size, 3, stride, 1)
        self.conv1 = Conv2d(channels, 24, 3, stride, padding=1, bias=False)
        self.bn1 = norm_of(24)
        self.sn1 = build_neuron(state_shape=(24, *size), **neuron)
        size = output_size(size, 3, 2, 1)
        self.conv2 = Conv2d(24, 48, 3, stride=2, padding=1, bias=False)
        self.bn2 = norm_of(48)
        self.sn2 = build_neuron(state_shape=(48, *size), **neuron)
        self.pool = AvgPool2d(2)
        size = output_size(size, 2, 2, 0)
        self.conv3 = Conv2d(48, 48, 3, padding=1, bias=False)
        self.bn3 = norm_of(48)
        self.sn3 = build_neuron(state_shape=(48, *size), **neuron)
        self.fc = nn.Linear(48 * size[0] * size[1], num_classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        x, timesteps = self.steps(x)
        x = self.spikes(x, self.conv1, self.bn1, self.sn1, timesteps)
        x = self.through(x, self._second)
        x = self.through(x, self._third)
        return self.fc((last(x) if last_step else x).flatten(2))

    def _second(self, x: Tensor) -> Tensor:
        return over_time(self.spikes(x, self.conv2, self.bn2, self.sn2), self.pool)

    def _third(self, x: Tensor) -> Tensor:
        return self.spikes(x, self.conv3, self.bn3, self.sn3, plus=lambda: x)
