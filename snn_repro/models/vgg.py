"""VGG networks: plain stacks of convolutions, norms and neurons.

The literature calls both vgg48 and vgg128 of the event rows VGG11. VGG-16 is for images of ImageNet's size and has the
names of torchvision's vgg16_bn, so its weights load.
"""

from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.kernels.conv import Conv2d
from snn_repro.models import blocks
from snn_repro.models.blocks import AvgPool2d, Dropout, SpikingNetwork, kaiming, over_time, register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import Setting

POOL = "pool"
VGG48_PLAN = (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
VGG128_PLAN = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, 512, 512)


class ConvNorm(nn.Module):
    """A 3x3 convolution and its norm, which the network calls separately."""

    def __init__(self, inputs: int, outputs: int, norm: nn.Module, bias: bool):
        super().__init__()
        self.conv, self.norm = Conv2d(inputs, outputs, 3, padding=1, bias=bias), norm


class OverTime(nn.Module):
    """A stateless layer applied to every time step of [T, B, ...]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return over_time(x, self.layer)


class VGG(SpikingNetwork):
    """Convolutions of a plan, each with norm and neuron, and 2x2 pools.

    plan: widths of convolutions, POOL, and builders layer(C) of other layers over [T, B, C, H, W]. norm: one of NORMS.
    """

    bias = True  # of the convolutions
    pool: type[nn.Module] = AvgPool2d

    def __init__(self, name: str, plan, *, input_shape, timesteps, neuron, norm):
        super().__init__(input_shape, timesteps)
        norm_of = norms(norm, timesteps, neuron)
        channels, *size = input_shape
        pools = plan.count(POOL)
        if min(size) < 2**pools:
            least = f"{2**pools}x{2**pools} pixels ({pools} pools)"
            raise UserError(f"model.name={name} needs at least {least}, not {size[0]}x{size[1]}.")
        layers: list[nn.Module] = []
        for width in plan:
            if width == POOL:
                layers.append(OverTime(self.pool(2)))
            elif callable(width):
                layers.append(width(channels))
            else:
                layers += [*self.convolution(channels, width, norm_of(width)), neuron()]
                channels = width
        self.features = nn.ModuleList(layers)
        self.out_shape = (channels, *(n >> pools for n in size))

    def convolution(self, inputs: int, outputs: int, norm: nn.Module) -> list[nn.Module]:
        """Build a convolution and its norm, named as in checkpoints."""
        return [ConvNorm(inputs, outputs, norm, self.bias)]

    def extract(self, x: Tensor) -> Tensor:
        x, timesteps = self.steps(x)
        parts = (layer.children() if isinstance(layer, ConvNorm) else (layer,) for layer in self.features)
        layers = iter([*chain(*parts)])
        for layer in layers:
            if isinstance(layer, Conv2d):
                norm, neuron = next(layers), next(layers)
                fn = partial(self.spikes, convolution=layer, norm=norm, neuron=neuron, timesteps=timesteps)
                x = self.through(x, fn)
            else:
                x = layer(x) if isinstance(layer, OverTime) else self.through(x, layer)
        return x


CONV_INIT = Setting("torch", "fan_out: N(0, sqrt(2 / (9 outputs))), bias 0", choices=("torch", "fan_out"))
HEAD_INIT = replace(blocks.HEAD_INIT, default=None)
DROPOUT = Setting(0.25, "dropout before the classifier", low=0, below=1)
WIDTH = Setting(64, "width of the first convolution; all are scaled with it", "channels", low=1)


@register_network("vggsnn", {"norm": NORM, "width": WIDTH}, "vggsnn", VGG48_PLAN)
class VGGSNN(VGG):
    """VGGSNN (Deng et al., ICLR 2022), for frames of at least 16x16 pixels.

    64 128 | 256 256 | 512 512 | 512 512 | flatten, linear: the plan of vgg48 with plain batch norm and no dropout, 9.27
    M weights at 48x48 pixels and 10 classes. width=8 divides all widths by 8. Dropout of a subclass draws a mask per time step that reaches it: one
    with last_step=True, T without, so these masks differ.
    """

    kaiming = True

    def __init__(self, name: str, plan, *, num_classes, dropout=0.0, width=64, **given):
        super().__init__(name, [n if n == POOL else n * width // 64 for n in plan], **given)
        if self.kaiming:
            kaiming(self)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(prod(self.out_shape), num_classes)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x.flatten(2)))


@register_network("vgg48", {"norm": replace(NORM, default="tebn"), "dropout": DROPOUT}, "vgg48", VGG48_PLAN)
class VGG48(VGGSNN):
    """VGGSNN's plan with dropout before the classifier, for 48x48 pixels only."""

    def __init__(self, *plan, input_shape, **given):
        if tuple(input_shape[1:]) != (48, 48):
            raise UserError(
                f"model.name=vgg48 accepts only 48x48 pixels, not {input_shape[1]}x{input_shape[2]}; "
                f"resize the frames (dataset.frame_size=48) or use vgg128, which accepts any size."
            )
        super().__init__(*plan, input_shape=input_shape, **given)


@register_network("snn7", {"norm": NORM}, "snn7", (16, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512))
class SNN7(VGGSNN):
    """SNN7, the network with seven convolutions of Shen et al. (arXiv:2301.12356).

    16 64 | 128 128 | 256 256 | 512, flatten, linear. As in the authors' code for static images of 32x32 pixels: max
    pools, no bias.
    """

    bias, pool, kaiming = False, nn.MaxPool2d, False


@register_network("vgg128", {"norm": NORM, "head_init": HEAD_INIT, "conv_init": CONV_INIT})
class VGG128(VGG):
    """vgg128, for frames of at least 8x8 pixels.

    64 | 128 | 256 256 | 512 512 512 512 | global average, linear. conv_init and head_init "torch" keep torch's initial
    weights of convolutions and classifier.
    """

    def __init__(self, *, num_classes, head_init, conv_init, **given):
        super().__init__("vgg128", VGG128_PLAN, **given)
        if conv_init == "fan_out":
            kaiming(self, zero_bias=True)
        self.classifier = nn.Linear(self.out_shape[0], num_classes)
        blocks.init_head(self.classifier, head_init)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((-2, -1)))


VGG16_PLAN = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, *(512, 512, 512, POOL) * 2)
_VGG16 = {
    "norm": NORM,
    "hidden": Setting(4096, "width of the two hidden linear layers", "neurons", low=1),
    "dropout": Setting(0.5, "dropout after each hidden linear layer, one mask for all steps", low=0, below=1),
}


@register_network("vgg16", _VGG16)
class VGG16(VGG):
    """VGG-16, for frames of at least 32x32 pixels; 138.4 M weights.

    64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512 | 4096 4096 linear, with 2x2 max pools. As in torchvision,
    the last map is averaged to 7x7 (or repeated, if smaller).
    """

    pool = nn.MaxPool2d

    def __init__(self, *, num_classes, neuron, hidden, dropout, **given):
        super().__init__("vgg16", VGG16_PLAN, neuron=neuron, **given)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(self.out_shape[0] * 49, hidden), neuron(), Dropout(dropout),
            nn.Linear(hidden, hidden), neuron(), Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        kaiming(self)
        for layer in (self.classifier[0], self.classifier[3]):  # no norm: torch's initial weights leave neurons silent
            nn.init.kaiming_normal_(layer.weight)

    def convolution(self, inputs: int, outputs: int, norm: nn.Module) -> list[nn.Module]:
        return [Conv2d(inputs, outputs, 3, padding=1), norm]

    def extract(self, x: Tensor) -> Tensor:
        return self.classifier[:-1](over_time(super().extract(x), self.avgpool).flatten(2))

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier[-1](x)
