"""Initial weights, `model.init=NAME`: functions init(network, **settings), called once on the built network.

They replace what the network's class draws. `settings` of a function are its keys.
"""

import math
from itertools import accumulate

import torch
from torch import nn

from snn_repro.errors import UserError
from snn_repro.models import blocks
from snn_repro.neurons import Neuron
from snn_repro.registry import INITS
from snn_repro.settings import Setting

register_init = INITS.register
WEIGHTED = nn.Conv1d | nn.Conv2d | nn.Linear


@register_init("torch")
def keep(network: nn.Module) -> None:
    """The weights that the network's class draws: torch's, or those of its authors."""


@register_init("kaiming")
def kaiming(network: nn.Module) -> None:
    """He's: N(0, 2 / fan-in) for convolutions and linear layers, biases 0 (arXiv:1502.01852)."""
    blocks.kaiming(network, zero_bias=True, mode="fan_in", kinds=WEIGHTED)


@register_init("nda")
def nda(network: nn.Module) -> None:
    """NDA's (Li et al., ECCV 2022): N(0, 2 / fan-out), bias 0, for convolutions."""
    blocks.kaiming(network, zero_bias=True)


@register_init("fluctuation")
def fluctuation(network: nn.Module, init_xi: float, init_rate: float) -> None:
    """Fluctuation-driven, centred (Rossbroich et al., Neuromorph. Comput. Eng. 2022, arXiv:2206.10226).

        w ~ N(0, s^2),  s = v_th / (xi sqrt(n rate e)),  e = sum over t < T of k[t]^2

    n: inputs of a neuron; k: its `response` in time steps, where the paper integrates over time. Biases and the
    classifier, which no spiking layer follows, keep their weights. A norm between a layer and its neurons undoes s.
    """
    neuron = None
    for module in reversed([*network.modules()]):
        if isinstance(module, Neuron):
            neuron = module
        elif isinstance(module, WEIGHTED) and neuron is not None:
            variance = module.weight[0].numel() * init_rate * response(neuron).square().sum().item()  # for s = 1
            threshold = torch.as_tensor(neuron.v_threshold).mean().item()
            nn.init.normal_(module.weight, std=threshold / (init_xi * math.sqrt(variance)))


fluctuation.settings = {  # type: ignore[attr-defined]
    "init_xi": Setting(1.0, "distance from mean potential to threshold, in standard deviations", above=0),
    "init_rate": Setting(0.1, "expected firing rate of the inputs", "spikes per time step", above=0),
}


@torch.no_grad()
def response(neuron: Neuron) -> torch.Tensor:
    """Mean potential [T] after the input 1 at the first step, without spikes. Raises UserError."""
    if type(neuron).charge is Neuron.charge:
        raise UserError(f"model.init=fluctuation needs a potential over time, which neuron={neuron.family} lacks")
    x = torch.zeros(neuron.timesteps or 1, 1, *neuron.state_shape or (1,))
    neuron.begin(x)
    potentials = [*accumulate(x[1:], neuron.charge, initial=neuron.charge(x[0], x[0] + 1))]
    neuron.end()
    return torch.stack(potentials).flatten(1).mean(1)
