"""Regularised membrane potentials (RMP)."""

from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.losses.loss import Loss, cross_entropy_of_mean, register_loss
from snn_repro.neurons import Neuron
from snn_repro.settings import Setting


@register_loss("rmp")
class RMP(Loss):
    """SDT with potentials pulled towards their spikes (Guo et al., ICCV 2023, arXiv:2308.06787).

        CE(mean_t y[t], q) + weight(epoch) mean |h - s|^power

    The mean of |h - s| is over the neurons of a layer, samples and steps, then over layers; h is the potential before
    the reset, s its spike. power, weight and its schedule are from memory, not verified against the paper's text or
    code. The term is used in training only. It needs `watch`, and one backward pass per forward pass in training.
    """

    settings = {
        "weight": Setting(0.1, "largest weight of the term", low=0),
        "power": Setting(2.0, "power of |h - s|", low=1),
        "schedule": Setting(
            "triangle", "weight over epochs: triangle rises from 0, then falls", choices=("triangle", "constant")
        ),
    }
    reads_potentials = True
    factor = 1.0
    # terms of the layers: a list from the start of a forward to the loss, else (); None: `watch` was not called
    terms: Any = None

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        part = epoch / epochs
        self.factor = 1.0 if self.schedule == "constant" else 2 * min(part, 1 - part)

    def watch(self, model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, Neuron)]
        for layer in layers:
            if type(layer).steps is not Neuron.steps:
                raise UserError(
                    f"loss=rmp needs the potential before the reset, which neuron={layer.family} does not provide; "
                    "choose another neuron or loss"
                )
            layer.watch = self._collect
        if not layers:
            raise UserError("loss=rmp needs spiking layers, and this network has none; choose another loss")
        self.terms = ()
        model.register_forward_pre_hook(lambda *_: setattr(self, "terms", []))  # drop terms of earlier passes

    def _collect(self, layer: Neuron, potentials: list[Tensor], spikes: list[Tensor]) -> None:
        if layer.training and torch.is_grad_enabled():
            gaps = [(h - s).abs() ** self.power for h, s in zip(potentials, spikes, strict=True)]
            term = torch.stack([gap.mean() for gap in gaps]).mean()
            # computed in any case: activation checkpointing recomputes layers and needs the same operations
            if isinstance(self.terms, list):
                self.terms.append(term)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy_of_mean(logits, target)
        if not torch.is_grad_enabled():
            return loss
        if self.terms is None:
            raise UserError("loss=rmp needs potentials: call watch(model) once before training")
        terms, self.terms = self.terms, ()
        weight = self.weight * self.factor
        return loss + weight * torch.stack(terms).mean() if terms and weight else loss
