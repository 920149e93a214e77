"""One small network for the embedded data: three convolutions, the last in a SEW block; ~ 32,000 weights."""

from torch import Tensor, nn

from snn_repro.models.common import SpikingNetwork, kaiming_fan_out, output_size, over_time, repeat_steps
from snn_repro.neurons import build_neuron


class Small(SpikingNetwork):
    """conv 24 | conv 48, stride 2 | SEW block: x + conv 48 | global average | linear."""

    def __init__(self, *, num_classes: int, input_shape: tuple[int, int, int], timesteps: int, neuron: dict):
        super().__init__(input_shape, timesteps)
        channels, *size = input_shape
        self.conv1 = nn.Conv2d(channels, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.sn1 = build_neuron(state_shape=(24, *size), **neuron)
        size = output_size(size, 3, 2, 1)
        self.conv2 = nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(48)
        self.sn2 = build_neuron(state_shape=(48, *size), **neuron)
        self.conv3 = nn.Conv2d(48, 48, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(48)
        self.sn3 = build_neuron(state_shape=(48, *size), **neuron)
        self.fc = nn.Linear(48, num_classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K]."""
        x, timesteps = self.steps(x)
        x = self.sn1(repeat_steps(over_time(x, self.conv1, self.bn1), timesteps))
        x = self.sn2(over_time(x, self.conv2, self.bn2))
        x = x + self.sn3(over_time(x, self.conv3, self.bn3))
        return self.fc(x.mean((-2, -1)))
