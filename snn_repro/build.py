"""Build the parts that a configuration names: network, loss, weight average; check their combination."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snn_repro.config import Config, ConfigError, frame_shape
from snn_repro.data.augment import GuidedAugmentation
from snn_repro.data.augment.rpg import check_relevance
from snn_repro.losses import Loss, build_loss
from snn_repro.models import build_model
from snn_repro.models.blocks import same_statistics
from snn_repro.neurons import build_neuron
from snn_repro.neurons.surrogates import SURROGATES, Spike
from snn_repro.registry import SETS


def options(part: Any, *without: str) -> dict[str, Any]:
    """Non-null keys of a config part as keyword arguments, its choice's own settings included."""
    return {k: v for k, v in (vars(part) | part.own).items() if v is not None and k not in ("own", *without)}


def loss_of(config: Config) -> Loss:
    """Build the loss of a configuration."""
    return build_loss(config.loss.name, **options(config.loss, "name"))


def build_network(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build the network of a configuration for input_shape (C, H, W), with initial weights."""
    return build_model(
        config.model.name, num_classes=num_classes, input_shape=input_shape, timesteps=config.timesteps,
        neuron=options(config.neuron, "imp_lr", "imp_weight_decay"), kernels=config.kernels,
        **options(config.model, "name", "weights"),
    )  # fmt: skip


def check_settings(config: Config) -> None:
    """Raise UserError for combinations that the loss, neuron or augmentation rejects; reads no data."""
    loss, augment = loss_of(config), config.augment
    for cls in augment.turned_on():
        if cls.soft_targets and not loss.soft_targets:
            key, value = next((k, v) for k, v in augment.of(cls).items() if k in cls.switches and v)
            raise ConfigError(
                f"augment.{key}={value} makes soft targets and loss={config.loss.name} needs labels; set it to 0"
            )
    of_neuron = options(config.neuron, "imp_lr", "imp_weight_decay", "initial_layers")
    with torch.random.fork_rng(devices=[]):  # building draws random numbers
        loss.watch(build_neuron(state_shape=(1,), timesteps=config.timesteps, **of_neuron))
    if config.compile and loss.reads_potentials:
        raise ConfigError(
            f"compile={str(config.compile).lower()} hides the membrane potentials that loss={config.loss.name} reads; use compile=false"
        )
    if guided := augment.turned_on(GuidedAugmentation):
        shape, classes = frame_shape(config), SETS[config.dataset.name].of(config).num_classes
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, classes, shape)
            check_relevance(network, (config.timesteps, 2, *shape), augment.rpg_relevance, guided[0].name)


class Averaged(AveragedModel):
    """Exponential moving average of weights and buffers."""

    def __init__(self, model: nn.Module, decay: float):
        self.average = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=self.average, use_buffers=True)

    def update_parameters(self, model: nn.Module) -> None:
        """Add the current weights of `model` to the average."""
        if self.n_averaged == 0:  # the counter is on the CPU; torch's class copies it to the GPU in each step and waits
            return super().update_parameters(model)
        values = [(*m.parameters(), *m.buffers()) for m in (self.module, model)]
        pairs = [(own.detach(), new.detach()) for own, new in zip(*values, strict=True)]
        for kind in {own.dtype for own, _ in pairs}:
            own, new = zip(*(pair for pair in pairs if pair[0].dtype == kind), strict=True)
            self.average(own, new, self.n_averaged)
        self.n_averaged += 1


def adapt_surrogates(model: nn.Module, loss_fn: Loss, x: Tensor, target: Tensor) -> None:
    """Adapt surrogates that depend on data to one batch; rank 0's buffers reach all ranks."""
    spikes: dict[str, list[Spike]] = {}
    for module in model.modules():
        if isinstance(module, Spike) and SURROGATES[module.surrogate].adapt:
            spikes.setdefault(module.surrogate, []).append(module)
    for name, those in spikes.items():
        loss_fn.begin_batch(x)
        with torch.random.fork_rng(), same_statistics(model):
            SURROGATES[name].adapt(model, those, lambda: loss_fn(model(x, last_step=loss_fn.last_step).float(), target))


def begin_epoch(epoch: int, epochs: int, *parts: Any) -> None:
    """Call `begin_epoch(epoch, epochs)` of every loss and module that has one."""
    for part in parts:
        for thing in part.modules() if hasattr(part, "modules") else (part,):
            if hasattr(thing, "begin_epoch"):
                thing.begin_epoch(epoch, epochs)
