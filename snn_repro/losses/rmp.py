"""Regularised membrane potentials."""

from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.losses.loss import Loss, of_the_mean, register_loss
from snn_repro.neurons import Neuron
from snn_repro.settings import Setting


@register_loss("rmp")
class RMP(Loss):
    """CE(mean_t y[t]) + weight(epoch) mean |h - s|^power over the neurons of a layer, samples and steps, then over layers: pulls
    the potential h before the reset to the spike s that it makes (Guo et al., ICCV 2023, arXiv:2308.06787).

    Power, weight and its rise and fall over the epochs are from memory, not held against the paper's text or code. The term
    is training's alone. It needs `watch`, and a backward pass for every forward pass in training.
    """

    settings = {
        "weight": Setting(0.1, "largest weight of the term", low=0),
        "power": Setting(2.0, "power of |h - s|", low=1),
        "schedule": Setting(
            "triangle", "weight: rises from 0 to half of the epochs, then falls; or constant", choices=("triangle", "constant")
        ),
    }  # fmt: skip
    reads_potentials = True
    factor = 1.0
    # a list of a term a layer from the start of a forward pass to the loss, otherwise (); None: not watched
    heard: Any = None

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        part = epoch / epochs
        self.factor = 1.0 if self.schedule == "constant" else 2 * min(part, 1 - part)

    def watch(self, model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, Neuron)]
        for layer in layers:
            if type(layer).steps is not Neuron.steps:
                raise UserError(
                    f"loss=rmp reads the potential before the reset, and neuron={layer.family} computes its steps without "
                    "showing it; choose another neuron or loss"
                )
            layer.watch = self._hear
        if not layers:
            raise UserError("loss=rmp reads the potential of spiking layers, and this network has none of ours")
        self.heard = ()
        model.register_forward_pre_hook(lambda *_: setattr(self, "heard", []))  # what another pass made does not count

    def _hear(self, layer: Neuron, potentials: list[Tensor], spikes: list[Tensor]) -> None:
        if layer.training and torch.is_grad_enabled():
            gaps = [(h - s).abs() ** self.power for h, s in zip(potentials, spikes, strict=True)]
            term = torch.stack([gap.mean() for gap in gaps]).mean()
            # checkpointing runs layers once more and must find the same operations
            if isinstance(self.heard, list):
                self.heard.append(term)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = of_the_mean(logits, target)
        if not torch.is_grad_enabled():
            return loss
        if self.heard is None:
            raise UserError("loss=rmp reads potentials: call watch(model) once before training")
        heard, self.heard = self.heard, ()
        weight = self.weight * self.factor
        return loss + weight * torch.stack(heard).mean() if heard and weight else loss
