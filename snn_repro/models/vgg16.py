"""VGG-16 with batch norm for images of ImageNet's size. Names follow torchvision's vgg16_bn, so that its weights load."""

from functools import partial

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.kernels.conv import Conv2d
from snn_repro.models.blocks import Dropout, SpikingNetwork, kaiming_fan_out, over_time
from snn_repro.models.networks import register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import Setting

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_OPTIONS = {
    "norm": NORM,
    "hidden": Setting(4096, "width of the two hidden linear layers", "neurons", low=1),
    "dropout": Setting(0.5, "dropout behind each hidden linear layer, one mask for all steps", low=0, below=1),
}


@register_network("vgg16", _OPTIONS)
class VGG16(SpikingNetwork):
    """64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512 | 4096 4096 linear, with 2x2 max pools; 138.4 M weights.

    For frames of 32x32 pixels and more: as in torchvision's, the last map is averaged to 7x7 (or repeated, where smaller).
    """

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, norm, hidden, dropout):
        super().__init__(input_shape, timesteps)
        norm_of = norms(norm, timesteps, neuron)
        channels, *size = input_shape
        if min(size) < 2 ** len(STAGES):
            raise UserError(
                f"model.name=vgg16 halves its frames 5 times and needs at least 32x32 pixels, not {size[0]}x{size[1]}."
            )
        layers: list[nn.Module] = []
        for stage in STAGES:
            for width in stage:
                layers += [Conv2d(channels, width, 3, padding=1), norm_of(width), neuron()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.ModuleList(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden), neuron(), Dropout(dropout),
            nn.Linear(hidden, hidden), neuron(), Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        kaiming_fan_out(self)
        for layer in (self.classifier[0], self.classifier[3]):  # without a norm torch's own leave their neurons silent
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        x, timesteps = self.steps(x)
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                x = self.through(x, partial(self._stage, i, timesteps))
            elif isinstance(layer, nn.MaxPool2d):
                x = over_time(x, layer)
        *hidden, head = self.classifier
        x = over_time(x, self.avgpool).flatten(2)
        for layer in hidden:
            x = layer(x)
        return head(x[-1:] if last_step else x)

    def _stage(self, first: int, timesteps: int, x: Tensor) -> Tensor:
        convolution, norm, neuron = self.features[first : first + 3]
        return self.spikes(x, convolution, norm, neuron, timesteps)
