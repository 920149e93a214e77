"""Spiking networks, built by name with `build_model`.

    model = build_model("sew_resnet18", num_classes=1000, input_shape=(3, 224, 224), timesteps=4,
                        neuron={"name": "if", "imp": True})

Input: frames [T, B, C, H, W] or a static image [B, C, H, W]. Output: logits [T, B, K]. All parameters, IMP included,
exist after construction, so the optimiser can be created next.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.models.blocks import MODELS, Block, Model, Neurons, register_network
from snn_repro.models.init import INITS, register_init
from snn_repro.models.norms import NORMS, register_norm
from snn_repro.neurons import initial_states
from snn_repro.registry import import_all
from snn_repro.settings import Setting

__all__ = [
    "INITS", "MODELS", "NORMS", "Model", "build_model", "count_parameters", "register_init", "register_network",
    "register_norm",
]  # fmt: skip

import_all(__name__, __path__)


def build_model(
    name: str, *, num_classes: int, input_shape: tuple[int, int, int], timesteps: int, neuron: Mapping[str, Any],
    kernels: str = "auto", conv_backend: str = "auto", checkpointing: str = "off", **options,
) -> nn.Module:  # fmt: skip
    """Build a spiking network by name, one of MODELS.

    input_shape: (C, H, W) of a frame or image. timesteps: number of steps T that a static image is shown; networks with
    parameters per step (TEBN, PSN) accept only T frames. neuron: keywords of `build_neuron`, for example
    {"name": "if", "imp": True}; `initial_layers` may list the spiking layers (1 is the first) that use its initial
    state, and the others start at 0. kernels: "auto", "off" (PyTorch) or another of `kernels.KERNELS`; with "auto",
    neuron["backend"] sets the backend of spiking layers and conv_backend ("auto", "dense", "sparse") that of
    convolutions. checkpointing: "off", "norms" or "blocks" (see blocks.Block). These three change results by rounding
    only. options: the network's settings; None selects the default. Raises UserError with the allowed values.
    """
    values = MODELS.checked(name, options)
    Setting(1, "", low=1).checked("num_classes", num_classes)
    Setting(1, "", low=1).checked("timesteps", timesteps)
    input_shape = tuple(Setting((1, 1, 1), "", low=1).checked("input_shape", list(input_shape)))
    for key, value in {"conv_backend": conv_backend, "neuron.backend": neuron.get("backend") or "auto"}.items():
        if kernels != "auto" and value != "auto":
            raise UserError(f"kernels={kernels} and {key}={value} both select a backend; remove one of them")
    Setting("off", "", choices=("off", "norms", "blocks")).checked("model.checkpointing", checkpointing)
    init = values.pop("init")
    draw = partial(INITS[init], **{key: values.pop(key) for key in INITS.own(init)})
    if own := NORMS.own(values.get("norm")):
        values["norm"] = partial(NORMS[values["norm"]], **{key: values.pop(key) for key in own})
    build = partial(MODELS[name].build, num_classes=num_classes, input_shape=input_shape, timesteps=timesteps, **values)
    network = build(neuron=Neurons({"name": None, **neuron, "timesteps": timesteps}, build, input_shape))
    draw(network)
    network.wired = any(getattr(module, "wired", False) for module in network.modules())
    door.set_backend(network, conv_backend)
    if kernels != "auto":
        door.use(network, kernels)
    for module in network.modules():
        if isinstance(module, Block):
            module.checkpointing = checkpointing
    return network


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of (weights, IMP values), IMP trainable or not."""
    imp = sum(p.numel() for p in initial_states(model).values())
    return sum(p.numel() for p in model.parameters()) - imp, imp
