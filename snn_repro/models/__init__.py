"""Spiking networks: frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K].

    model = build_model("sew_resnet18", num_classes=1000, input_shape=(3, 224, 224), timesteps=4,
                        neuron={"name": "if", "imp": True})

Every parameter, IMP too, exists once the model is built, so an optimiser made next sees them all.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from snn_repro.errors import UserError, nearest
from snn_repro.models.common import Checkpointed, choice
from snn_repro.models.sew_resnet import BasicBlock, Bottleneck, SEWResNet
from snn_repro.models.small import Small
from snn_repro.models.vgg import VGG48, VGG128
from snn_repro.sparse_conv import set_backend

__all__ = ["MODELS", "Model", "build_model", "count_parameters"]


class Model(NamedTuple):
    """How to build a network, and the options it takes with their defaults."""

    build: Callable[..., nn.Module]
    options: dict[str, Any]


SEW_OPTIONS = {"zero_init_residual": False, "head_init": "torch"}
MODELS = {
    "sew_resnet18": Model(partial(SEWResNet, BasicBlock, (2, 2, 2, 2), "imagenet"), SEW_OPTIONS),
    "sew_resnet34": Model(partial(SEWResNet, BasicBlock, (3, 4, 6, 3), "imagenet"), SEW_OPTIONS),
    "sew_resnet50": Model(partial(SEWResNet, Bottleneck, (3, 4, 6, 3), "imagenet"), SEW_OPTIONS),
    "sew_resnet101": Model(partial(SEWResNet, Bottleneck, (3, 4, 23, 3), "imagenet"), SEW_OPTIONS),
    "sew_resnet152": Model(partial(SEWResNet, Bottleneck, (3, 8, 36, 3), "imagenet"), SEW_OPTIONS),
    "sew_resnet18_cifar": Model(partial(SEWResNet, BasicBlock, (2, 2, 2, 2), "cifar"), SEW_OPTIONS),
    "vgg48": Model(VGG48, {"norm": "tebn", "dropout": 0.25}),
    "vgg128": Model(VGG128, {"norm": "bn", "head_init": "torch"}),
    "small": Model(Small, {}),
}


def build_model(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    timesteps: int,
    neuron: Mapping[str, Any],
    conv_backend: str = "auto",
    checkpointing: str = "off",
    **options,
) -> nn.Module:
    """Build a network by name (see MODELS) for frames or images of input_shape (C, H, W).

    neuron holds what `build_neuron` takes, for example {"name": "if", "imp": True}. timesteps is how often a
    static image is seen, and for TEBN the only number of frames that fits. conv_backend "auto", "dense" or "sparse"
    chooses the convolutions' kernel on the CPU (see sparse_conv), checkpointing "off", "norms" or "blocks" trades
    time for memory (see common.Checkpointed); neither changes a result beyond rounding. Options are those of MODELS[name]; None means the default.
    Raises UserError, naming the key, the value and what is allowed.
    """
    if str(name) not in MODELS:
        raise UserError(f"model.name={name!r} is not one of {', '.join(MODELS)}{nearest(name, MODELS)}")
    if not _positive(num_classes):
        raise UserError(f"num_classes={num_classes!r} must be a positive integer")
    if not _positive(timesteps):
        raise UserError(f"timesteps={timesteps!r} must be a positive integer")
    input_shape = tuple(input_shape)
    if len(input_shape) != 3 or not all(_positive(n) for n in input_shape):
        raise UserError(f"input_shape={list(input_shape)} must be three positive integers (channels, height, width)")
    if "name" not in neuron:
        raise UserError(f"neuron={dict(neuron)} needs a name, for example {{'name': 'if', 'imp': True}}")
    model = MODELS[name]
    known = {key for m in MODELS.values() for key in m.options}
    for key, value in options.items():
        if key not in model.options and (value is not None or key not in known):
            has = ", ".join(model.options) or "none"
            raise UserError(
                f"model.{key}={value!r} is not an option of '{name}', whose options are: {has}"
                f"{nearest(key, model.options)}"
            )
    given = {key: value for key, value in options.items() if value is not None}
    network = model.build(
        num_classes=num_classes,
        input_shape=input_shape,
        timesteps=timesteps,
        neuron=dict(neuron),
        **{**model.options, **given},
    )
    set_backend(network, conv_backend)
    choice("checkpointing", checkpointing, ("off", "norms", "blocks"))
    for module in network.modules():
        if isinstance(module, Checkpointed):
            module.checkpointing = checkpointing
    return network


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of (weights, IMP values); IMP is every parameter named `imp`, trainable or not."""
    imp = weights = 0
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] == "imp":
            imp += parameter.numel()
        else:
            weights += parameter.numel()
    return weights, imp


def _positive(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
