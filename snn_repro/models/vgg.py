"""Plain stacks of convolutions: the two VGGs of the event rows (both called VGG11 in the literature, different networks),
VGGSNN and SNN7."""

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.kernels.conv import Conv2d
from snn_repro.models.blocks import HEAD_INIT, AvgPool2d, SpikingNetwork, init_head, kaiming_fan_out, last, over_time
from snn_repro.models.networks import register_network
from snn_repro.models.norms import NORM, norms
from snn_repro.neurons import Neuron, Setting

POOL = "pool"
VGG48_PLAN = (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
VGG128_PLAN = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, 512, 512)


class ConvNorm(nn.Module):
    """A 3x3 convolution, and the norm over [T, B, C, H, W] behind it; the network calls each by itself."""

    def __init__(self, inputs: int, outputs: int, norm: nn.Module, bias: bool):
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm = norm


class OverTime(nn.Module):
    """A stateless layer applied to every time step of [T, B, ...]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return over_time(x, self.layer)


class VGG(SpikingNetwork):
    """Convolutions as planned, each with its norm and neuron; 2x2 pools between the stages.

    plan holds the convolutions' widths, POOL, and builders of other layers over [T, B, C, H, W], called with C. norm is one
    of NORMS.
    """

    bias = True  # of the convolutions
    pool: type[nn.Module] = AvgPool2d

    def __init__(self, name: str, plan, *, input_shape, timesteps, neuron, norm):
        super().__init__(input_shape, timesteps)
        norm_of = norms(norm, timesteps, neuron)
        channels, *size = input_shape
        pools = plan.count(POOL)
        if min(size) < 2**pools:
            raise UserError(
                f"model.name={name} halves its frames {pools} times and needs at least "
                f"{2**pools}x{2**pools} pixels, not {size[0]}x{size[1]}."
            )
        layers: list[nn.Module] = []
        for width in plan:
            if width == POOL:
                layers.append(OverTime(self.pool(2)))
            elif callable(width):
                layers.append(width(channels))
            else:
                layers += [ConvNorm(channels, width, norm_of(width), self.bias), neuron()]
                channels = width
        self.features = nn.ModuleList(layers)
        self.out_shape = (channels, *(n >> pools for n in size))

    def extract(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Return the last feature maps [T, B, C, H, W] of frames or of a static image, or the last step's [1, ...]."""
        x, timesteps = self.steps(x)
        first, neuron, *rest = list[Any](self.features)
        x = self.spikes(x, first.conv, first.norm, neuron, timesteps)
        for layer, following in zip(rest, [*rest[1:], None], strict=True):
            if isinstance(layer, ConvNorm):
                x = self.through(x, partial(self._stage, layer, following))
            elif isinstance(layer, OverTime):
                x = layer(last(x) if last_step and following is None else x)
            elif not isinstance(layer, Neuron):
                x = self.through(x, layer)
        return last(x) if last_step else x

    def _stage(self, layer: ConvNorm, neuron: nn.Module, x: Tensor) -> Tensor:
        return self.spikes(x, layer.conv, layer.norm, neuron)


CONV_INIT = Setting("torch", "fan_out: N(0, sqrt(2 / (9 outputs))), bias 0", choices=("torch", "fan_out"))
DROPOUT = Setting(0.25, "dropout before the classifier", low=0, below=1)


class FlatVGG(VGG):
    """A VGG | flatten, dropout, linear.

    Dropout draws a mask of its own for every time step that reaches it: with last_step=True one, of T without, so the
    masks of the two differ.
    """

    def __init__(self, name: str, plan, *, num_classes, dropout=0.0, kaiming=True, **given):
        super().__init__(name, plan, **given)
        if kaiming:
            kaiming_fan_out(self)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(prod(self.out_shape), num_classes)

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        return self.classifier(self.dropout(self.extract(x, last_step).flatten(2)))


@register_network("vgg48", {"norm": replace(NORM, default="tebn"), "dropout": DROPOUT})
class VGG48(FlatVGG):
    """64 128 | 256 256 | 512 512 | 512 512 | flatten, dropout, linear, for frames of 48x48 pixels alone."""

    def __init__(self, *, input_shape, **given):
        if tuple(input_shape[1:]) != (48, 48):
            raise UserError(
                f"model.name=vgg48 is wired for 48x48 pixels, not {input_shape[1]}x{input_shape[2]}; "
                f"resize the frames (dataset.frame_size=48) or use vgg128, which takes any size."
            )
        super().__init__("vgg48", VGG48_PLAN, input_shape=input_shape, **given)


@register_network("vgg128", {"norm": NORM, "head_init": replace(HEAD_INIT, default=None), "conv_init": CONV_INIT})
class VGG128(VGG):
    """64 | 128 | 256 256 | 512 512 512 512 | global average, linear, for frames of 8x8 pixels and more.

    With conv_init "torch" convolutions, with head_init "torch" the classifier keep torch's initial weights.
    """

    def __init__(self, *, num_classes, head_init, conv_init, **given):
        super().__init__("vgg128", VGG128_PLAN, **given)
        if conv_init == "fan_out":
            kaiming_fan_out(self, zero_bias=True)
        self.classifier = nn.Linear(self.out_shape[0], num_classes)
        init_head(self.classifier, head_init)

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        return self.classifier(self.extract(x, last_step).mean((-2, -1)))


@register_network("vggsnn", {"norm": NORM})
class VGGSNN(FlatVGG):
    """64 128 | 256 256 | 512 512 | 512 512 | flatten, linear, for frames of 16x16 pixels and more (Deng et al., ICLR 2022).

    The plan of vgg48 with a plain batch norm and no dropout; 9.27 M weights at 48x48 pixels and 10 classes.
    """

    def __init__(self, **given):
        super().__init__("vggsnn", VGG48_PLAN, **given)


@register_network("snn7", {"norm": NORM})
class SNN7(FlatVGG):
    """16 64 | 128 128 | 256 256 | 512, flatten, linear: the seven convolutions of Shen et al. (arXiv:2301.12356).

    After the network that its authors released, which is for static images of 32x32 pixels: max pools, no bias.
    """

    bias, pool = False, nn.MaxPool2d

    def __init__(self, **given):
        super().__init__("snn7", (16, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512), kaiming=False, **given)
