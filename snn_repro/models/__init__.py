"""Spiking networks: frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K].

    model = build_model("sew_resnet18", num_classes=1000, input_shape=(3, 224, 224), timesteps=4,
                        neuron={"name": "if", "imp": True})

Every parameter, IMP too, exists once the model is built, so an optimiser made next sees them all.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.models.blocks import MODELS, Block, Model, Neurons, register_network
from snn_repro.models.norms import NORMS, register_norm
from snn_repro.neurons import initial_states
from snn_repro.registry import import_all
from snn_repro.settings import Setting

__all__ = ["MODELS", "NORMS", "Model", "build_model", "count_parameters", "register_network", "register_norm"]

import_all(__name__, __path__)


def build_model(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    timesteps: int,
    neuron: Mapping[str, Any],
    kernels: str = "auto",
    conv_backend: str = "auto",
    checkpointing: str = "off",
    **options,
) -> nn.Module:
    """Build a network by name (see MODELS) for frames or images of input_shape (C, H, W).

    neuron holds what `build_neuron` takes, for example {"name": "if", "imp": True}, and may hold `initial_layers`: the numbers, from 1
    at the input, of the spiking layers that start from its initial state, while the others start at 0. timesteps is how often a
    static image is seen, and for TEBN and PSN, say, the only number of frames that fits. kernels is "auto", "off" (PyTorch alone) or
    another word of `kernels.KERNELS`; with "auto", neuron's backend and conv_backend ("auto", "dense" or "sparse") choose
    apart for spiking layers and convolutions. checkpointing "off", "norms" or "blocks" trades time for
    memory (see blocks.Block). None of these changes a result beyond rounding. Options are the network's settings; None means
    the default. Raises UserError, naming the key, the value and what is allowed.
    """
    values = MODELS.checked(name, options)
    Setting(1, "", low=1).checked("num_classes", num_classes)
    Setting(1, "", low=1).checked("timesteps", timesteps)
    input_shape = tuple(Setting((1, 1, 1), "", low=1).checked("input_shape", list(input_shape)))
    for key, value in {"conv_backend": conv_backend, "neuron.backend": neuron.get("backend") or "auto"}.items():
        if kernels != "auto" and value != "auto":
            raise UserError(f"kernels={kernels} and {key}={value} both choose kernels; leave one of them out")
    Setting("off", "", choices=("off", "norms", "blocks")).checked("model.checkpointing", checkpointing)
    if own := NORMS.own(values.get("norm")):
        values["norm"] = partial(NORMS[values["norm"]], **{key: values.pop(key) for key in own})
    build = partial(MODELS[name].build, num_classes=num_classes, input_shape=input_shape, timesteps=timesteps, **values)
    network = build(neuron=Neurons({"name": None, **neuron, "timesteps": timesteps}, build, input_shape))
    network.wired = any(getattr(module, "wired", False) for module in network.modules())
    door.set_backend(network, conv_backend)
    if kernels != "auto":
        door.use(network, kernels)
    for module in network.modules():
        if isinstance(module, Block):
            module.checkpointing = checkpointing
    return network


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of (weights, IMP values); IMP is every initial state of a neuron, trainable or not."""
    imp = sum(p.numel() for p in initial_states(model).values())
    return sum(p.numel() for p in model.parameters()) - imp, imp
