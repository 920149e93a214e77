"""TCJA-SNN (Zhu et al., IEEE TNNLS 2024, arXiv:2206.10177): convolutions with attention over time and channels at once."""

from functools import partial

from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.models.blocks import register_network
from snn_repro.models.norms import NORM
from snn_repro.models.plif_net import Voting
from snn_repro.models.vgg import POOL
from snn_repro.neurons import Setting


class TCJA(nn.Module):
    """y = x * sigmoid(A * B) over x [T, B, C, H, W], from its means [B, T, C] over H and W.

    A convolves along the channels (kernel_t long) and mixes all time steps, B along time (kernel_c long) and mixes all
    channels; both keep their length and have no bias. Every step sees all others.
    """

    causal = False

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
    {
        "norm": NORM,
        "hidden": Setting(1024, "width of the first linear layer", "neurons", low=1),
        "dropout": Setting(0.5, "dropout before each linear layer, one mask for all steps", low=0, below=1),
        "voters": Setting(1, "output neurons that vote for each class; the released network has one", "neurons", low=1),
        "spiking_output": Setting(True, "logits are spikes of last neurons; false: what these would receive"),
    },
)
class TCJANet(Voting):
    """64 | 128 | 256 | 256 TCJA(4, 4) | 512 TCJA(2, 4) | 1024 | spikes: the network of N-Caltech101.

    21.9 M weights for frames of 180x240 pixels and 14 steps; the number of time steps is wired in. Cross entropy needs
    spiking_output=false: of spikes, 0 or 1 a class, it cannot fall below log(K - 1 + e) - 1, 3.63 with 101 classes.
    """

    causal = False

    def __init__(self, *, timesteps, spiking_output, **given):
        fourth, fifth = (partial(TCJA, kernel_t=t, kernel_c=4, timesteps=timesteps) for t in (4, 2))
        plan = (64, POOL, 128, POOL, 256, POOL, 256, fourth, POOL, 512, fifth, POOL)
        super().__init__("tcja", plan, timesteps=timesteps, **given)
        if not spiking_output:
            self.sn2 = nn.Identity()

    def steps(self, x: Tensor) -> tuple[Tensor, int]:
        x, timesteps = super().steps(x)
        if timesteps != self.timesteps:
            raise UserError(
                f"model.name=tcja attends over all timesteps={self.timesteps} that it was built for, but its frames have "
                f"{timesteps}; use the same timesteps."
            )
        return x, timesteps
