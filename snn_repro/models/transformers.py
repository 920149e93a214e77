"""Spiking transformers: spikingjelly's models with our neurons, initial states, and logits of every step.

spikingjelly builds a model with one factory for all of its neurons, which is told neither where a neuron stands nor what
shape it sees. So the model is built with places first, runs once on the meta device, which costs nothing, and then gets its
neurons. Those of attention (`attn_lif`) fire at half the threshold of the others, as all four papers have it.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from snn_repro.errors import UserError
from snn_repro.models.blocks import SpikingNetwork, repeat_steps
from snn_repro.models.networks import register_network
from snn_repro.neurons import NEURONS, Setting, build_neuron

EMBED_DIMS = Setting(512, "channels of a token in the last stage", "channels", low=1)
NUM_HEADS = Setting(8, "heads of the attention", low=1)
DEPTHS = Setting(8, "blocks", low=1)
PATCH_SIZE = Setting(16, "pixels a token spans, 4 (CIFAR) or 16", "pixels", low=4)


class Place(nn.Module):
    """Where a neuron will stand: hands x [T, B, ...] on and keeps the shape of the state, without T and B."""

    shape: tuple[int, ...] | None = None

    def __init__(self, step_mode: str):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape[2:])
        return x


class Transformer(SpikingNetwork):
    """spikingjelly's `net`, whose head a subclass feeds with `features` of every step."""

    net: Any

    def fill(self, neuron: dict) -> None:
        """Put a neuron into each place of `net`."""
        places = {name: module for name, module in self.named_modules() if isinstance(module, Place)}
        tensors = {name: t.to("meta") for name, t in chain(self.named_parameters(), self.named_buffers())}
        self.eval()
        with torch.no_grad():
            functional_call(self, tensors, torch.zeros(1, 1, *self.input_shape, device="meta"))
        self.train()
        for name, place in places.items():
            parent, _, last = name.rpartition(".")
            given = neuron | (_half_threshold(neuron) if last == "attn_lif" else {})
            setattr(self.get_submodule(parent), last, build_neuron(state_shape=place.shape, **given))

    def features(self, x: Tensor) -> Tensor:
        """Frames [T, B, C, H, W] -> what the classifier reads [T, B, embed_dims]."""
        raise NotImplementedError

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        x = self.features(repeat_steps(*self.steps(x)))
        return self.net.head(x[-1:] if last_step else x)


def _half_threshold(neuron: dict) -> dict:
    threshold = neuron.get("v_threshold")
    family = NEURONS.get(str(neuron["name"]).removesuffix("_imp"))
    if threshold is None and family is not None:
        threshold = family.settings["v_threshold"].default
    return {"v_threshold": threshold / 2} if isinstance(threshold, int | float) else {}


def _check(name: str, key: str, value, divisor: int, why: str) -> None:
    if value % divisor:
        raise UserError(f"model.{key}={value} of {name} must be a multiple of {divisor}, {why}")


def _check_patch(name: str, patch_size: int) -> None:
    if patch_size not in (4, 16):
        raise UserError(f"model.patch_size={patch_size} of {name} must be 4 or 16")


@register_network(
    "spikformer",
    {"embed_dims": EMBED_DIMS, "num_heads": NUM_HEADS, "depths": DEPTHS, "patch_size": PATCH_SIZE},
)
class Spikformer(Transformer):
    """Spiking self-attention without softmax (Zhou et al., ICLR 2023, arXiv:2209.15425): Spikformer-depths-embed_dims."""

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, embed_dims, num_heads, depths, patch_size):
        from spikingjelly.activation_based.model import spikformer

        super().__init__(input_shape, timesteps)
        _check("spikformer", "embed_dims", embed_dims, 8, "since its stem starts with an eighth of them")
        _check("spikformer", "embed_dims", embed_dims, num_heads, "model.num_heads")
        _check_patch("spikformer", patch_size)
        self.net = spikformer.Spikformer(
            timesteps, *input_shape, patch_size, num_classes, embed_dims, num_heads, depths=depths, spiking_neuron=Place
        )
        self.fill(neuron)

    def features(self, x: Tensor) -> Tensor:
        x = self.through(x, self.net.patch_embed)
        for block in self.net.blocks:
            x = self.through(x, block)
        return x.flatten(3).mean(-1)


@register_network(
    "spike_driven_transformer",
    {"embed_dims": EMBED_DIMS, "num_heads": NUM_HEADS, "depths": DEPTHS, "patch_size": PATCH_SIZE},
)
class SpikeDrivenTransformer(Transformer):
    """Attention of masks and additions, shortcuts between potentials (Yao et al., NeurIPS 2023, arXiv:2307.01694)."""

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, embed_dims, num_heads, depths, patch_size):
        from spikingjelly.activation_based.model import spike_driven_transformer as sdt

        super().__init__(input_shape, timesteps)
        _check("spike_driven_transformer", "embed_dims", embed_dims, 8, "since its stem starts with an eighth of them")
        _check("spike_driven_transformer", "embed_dims", embed_dims, num_heads, "model.num_heads")
        _check_patch("spike_driven_transformer", patch_size)
        self.net = sdt.SpikeDrivenTransformer(
            timesteps, input_shape[0], num_classes, embed_dims, num_heads, depths,
            pooling_stat="1111" if patch_size == 16 else "0011", spiking_neuron=Place,
        )  # fmt: skip
        self.fill(neuron)

    def features(self, x: Tensor) -> Tensor:
        x = self.through(x, self.net.patch_embed)
        for block in self.net.blocks:
            x = self.through(x, block)
        return self.net.head_lif(x.flatten(3).mean(-1))


class Hierarchical(Transformer):
    """Three stages, each an embedding that doubles the channels, and blocks."""

    def _stages(self, x: Tensor) -> Tensor:
        net = self.net
        for embed, blocks in zip(
            (net.patch_embed1, net.patch_embed2, net.patch_embed3), (net.stage1, net.stage2, net.stage3), strict=True
        ):
            x = self.through(x, embed)
            for block in blocks:
                x = self.through(x, block)
        return x.flatten(3).mean(-1)


@register_network(
    "qkformer",
    {
        "embed_dims": Setting(384, "channels of a token in the last stage; a quarter in the first", "channels", low=4),
        "num_heads": Setting((6, 6, 6), "heads of the attention in the three stages", low=1),
        "depths": Setting((1, 2, 7), "blocks of the three stages", low=0),
    },
)
class QKFormer(Hierarchical):
    """Attention of queries and keys alone in the first two stages (Zhou et al., NeurIPS 2024, arXiv:2403.16552)."""

    def __init__(self, *, num_classes, input_shape, timesteps, neuron, embed_dims, num_heads, depths):
        from spikingjelly.activation_based.model import qkformer

        super().__init__(input_shape, timesteps)
        _check("qkformer", "embed_dims", embed_dims, 8, "since its stem starts with an eighth of them")
        for width, heads in zip((embed_dims // 4, embed_dims // 2, embed_dims), num_heads, strict=True):
            if width % heads:
                raise UserError(
                    f"model.num_heads={list(num_heads)} of qkformer must divide the channels of its three stages, "
                    f"{embed_dims // 4}, {embed_dims // 2} and {embed_dims} with model.embed_dims={embed_dims}"
                )
        self.net = qkformer.QKFormer(
            timesteps, input_shape[0], num_classes, embed_dims, num_heads, depths, spiking_neuron=Place
        )
        self.fill(neuron)

    def features(self, x: Tensor) -> Tensor:
        return self._stages(x)


def _max_former(embed_dims: int, depths: tuple[int, int, int]) -> dict[str, Setting]:
    return {
        "embed_dims": Setting(embed_dims, "channels of a token in the last stage; a quarter in the first", "channels", low=8),
        "depths": Setting(depths, "blocks of the three stages", low=0),
    }  # fmt: skip


@register_network("maxformer", _max_former(384, (1, 2, 7)), False)
@register_network("maxformer_cifar", _max_former(384, (1, 1, 2)), True)
class MaxFormer(Hierarchical):
    """Max pools and depthwise convolutions before attention keep high frequencies (Fang et al., 2025, arXiv:2505.18608).

    The form for CIFAR has a stem that keeps the frame's size.
    """

    def __init__(self, cifar: bool, *, num_classes, input_shape, timesteps, neuron, embed_dims, depths):
        from spikingjelly.activation_based.model import maxformer

        super().__init__(input_shape, timesteps)
        _check("maxformer", "embed_dims", embed_dims, 8, "since its stem starts with an eighth of them")
        if not cifar:
            _check("maxformer", "embed_dims", embed_dims, max(1, embed_dims // 64), "its heads, one for 64 channels")
        self.net = maxformer.MaxFormer(
            timesteps, input_shape[0], num_classes, embed_dims, depths, spiking_neuron=Place, cifar=cifar
        )
        self.fill(neuron)

    def features(self, x: Tensor) -> Tensor:
        return self.net.head_lif(self._stages(x))
