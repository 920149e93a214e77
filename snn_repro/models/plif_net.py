"""PLIF-Net and TCJA-SNN: convolutions, two spiking linear layers, and voting neurons.

PLIF-Net: Fang et al., ICCV 2021, arXiv:2007.05785. TCJA-SNN adds joint attention over time and channels: Zhu et al.,
IEEE TNNLS 2024, arXiv:2206.10177.
"""

from functools import partial
from math import prod

from torch import Tensor, nn

from snn_repro.models.blocks import Dropout, register_network
from snn_repro.models.norms import NORM
from snn_repro.models.vgg import POOL, VGG
from snn_repro.neurons import Setting


class Voting(VGG):
    """Convolutions and max pools, two spiking linear layers with dropout, and voting.

    Logits of a step: the fraction of each class's voters that fire, in 0..1. No layer has a bias.
    """

    bias, pool = False, nn.MaxPool2d

    def __init__(self, name: str, plan, *, num_classes, neuron, hidden, voters, dropout, **given):
        super().__init__(name, plan, neuron=neuron, **given)
        self.voters = voters
        self.dropout1 = Dropout(dropout)
        self.fc1, self.sn1 = nn.Linear(prod(self.out_shape), hidden, bias=False), neuron()
        self.dropout2 = Dropout(dropout)
        self.fc2, self.sn2 = nn.Linear(hidden, num_classes * voters, bias=False), neuron()

    def extract(self, x: Tensor) -> Tensor:
        x = super().extract(x).flatten(2)
        x = self.sn1(self.fc1(self.dropout1(x)))
        return self.sn2(self.fc2(self.dropout2(x)))

    def classify(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.voters)).mean(-1)


def _options(channels: int, hidden: int) -> dict[str, Setting]:
    return {
        "norm": NORM,
        "channels": Setting(channels, "width of each convolution", "channels", low=1),
        "hidden": Setting(hidden, "width of the first linear layer", "neurons", low=1),
        "dropout": Setting(0.5, "dropout before each linear layer, one mask for all steps", low=0, below=1),
        "voters": Setting(10, "voting neurons per class", "neurons", low=1),
    }


@register_network("plif_net_dvs", _options(128, 512) | {"stages": Setting(4, "stages of one convolution", low=1)}, 1)
@register_network("plif_net", _options(256, 2048), 3)
class PLIFNet(Voting):
    """PLIF-Net for CIFAR-10 (`plif_net`) and for events (`plif_net_dvs`).

    plif_net: c c c | c c c | 2048 | vote; c = 256 gives 36.7 M weights at 32x32 pixels. plif_net_dvs: stages of one
    convolution, 4 for CIFAR10-DVS and 5 for DVS128 Gesture (1.70 M weights), both at 128x128 pixels. For 4 stages the
    paper's text has hidden=512 (4.69 M), its code hidden=2048 (17.43 M).
    """

    def __init__(self, convolutions: int, *, channels, stages=2, **given):
        name = "plif_net" if convolutions == 3 else "plif_net_dvs"
        super().__init__(name, (*[channels] * convolutions, POOL) * stages, **given)


class TCJA(nn.Module):
    """Temporal-channel joint attention: y = x * sigmoid(A * B).

    x is [T, B, C, H, W]. A and B convolve its means [B, T, C] over H and W without bias: A along the channels (size
    kernel_t), mixing all time steps, B along time (kernel_c), mixing all channels. Every step depends on all others.
    """

    wired = True

    def __init__(self, channels: int, kernel_t: int, kernel_c: int, timesteps: int):
        super().__init__()
        self.conv_t = nn.Conv1d(timesteps, timesteps, kernel_t, padding="same", bias=False)
        self.conv_c = nn.Conv1d(channels, channels, kernel_c, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((-2, -1)).transpose(0, 1)  # [B, T, C]
        joint = self.conv_t(means) * self.conv_c(means.transpose(1, 2)).transpose(1, 2)
        return x * joint.sigmoid().transpose(0, 1)[..., None, None]


@register_network(
    "tcja",
    {key: setting for key, setting in _options(1, 1024).items() if key != "channels"}
    | {
        "voters": Setting(1, "voting neurons per class; the released network has one", "neurons", low=1),
        "spiking_output": Setting(True, "logits are spikes of the last neurons; false: their inputs"),
    },
)
class TCJANet(Voting):
    """TCJA-SNN for N-Caltech101, built for one number of time steps.

    64 | 128 | 256 | 256 TCJA(4, 4) | 512 TCJA(2, 4) | 1024 | spikes: 21.9 M weights at 180x240 pixels and 14 steps.
    Cross entropy needs spiking_output=false: with spikes, 0 or 1 per class, it cannot fall below log(K - 1 + e) - 1,
    3.63 for 101 classes.
    """

    causal = False

    def __init__(self, *, timesteps, spiking_output, **given):
        fourth, fifth = (partial(TCJA, kernel_t=t, kernel_c=4, timesteps=timesteps) for t in (4, 2))
        plan = (64, POOL, 128, POOL, 256, POOL, 256, fourth, POOL, 512, fifth, POOL)
        super().__init__("tcja", plan, timesteps=timesteps, **given)
        if not spiking_output:
            self.sn2 = nn.Identity()
