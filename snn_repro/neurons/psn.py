"""Parallel spiking neurons (Fang et al., NeurIPS 2023): no reset, one matrix product over time."""

import math

import torch
from torch import Tensor, nn

from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting

# Settings without meaning for neurons that carry no potential from step to step.
STATEFUL = ("reset", "v_reset", "detach_reset", "initial", "initial_value", "imp_init", "imp_trainable")


def parallel_settings(**own: Setting) -> dict[str, Setting]:
    """Return the settings of a neuron without reset and initial state, and its own."""
    return settings(dict(fire_at="ge", surrogate="atan"), without=STATEFUL, **own)


class Parallel(Neuron):
    """Base class of parallel neurons: s = step(W x + b) over the time axis.

    Subclasses define `weight`, `bias` ([T, 1] or []) and `matrix`. No reset, no initial potential; `v` is W x + b.
    """

    settings = parallel_settings()
    states = None

    def matrix(self, timesteps: int) -> Tensor:
        """Return W [T, T]: the weight of input step j in output step i."""
        raise NotImplementedError

    def steps(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        last = x.movedim(2, -1) if x.dim() == 5 else x  # images are channels last: no copy
        with torch.autocast(x.device.type, enabled=False):
            z = torch.addmm(self.bias.to(dtype), self.matrix(len(x)).to(dtype), last.to(dtype).flatten(1))
        z = z.view(last.shape).movedim(-1, 2) if x.dim() == 5 else z.view(last.shape)
        return self.surrogate_function(z).to(x.dtype), z[-1], z if self.store_v_seq else None


@register("psn")
class PSN(Parallel):
    """Parallel spiking neuron (Fang et al., NeurIPS 2023, arXiv:2304.12760): non-causal.

    W [T, T] and b [T] are learned, one of each per layer; b starts at -v_threshold.
    """

    wired, causal = True, False

    def __init__(self, **settings):
        super().__init__(**settings)
        weight = torch.empty(self.timesteps, self.timesteps)
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(weight, a=math.sqrt(5)))  # as in nn.Linear
        self.bias = nn.Parameter(torch.full((self.timesteps, 1), -self.v_threshold))

    def matrix(self, timesteps: int) -> Tensor:
        return self.weight


@register("masked_psn")
class MaskedPSN(PSN):
    """PSN that becomes causal in the course of training (arXiv:2304.12760).

        W = weight (lambda mask + 1 - lambda)

    mask is 1 for the last `order` input steps. Training sets lambda (a buffer) at the start of each epoch, as
    published, to min(1, ramp epoch / (epochs - 1)): at 0 an output sees every step, at 1 only those of the mask.
    """

    settings = parallel_settings(
        order=Setting(4, "input steps per output step after the ramp", "time steps", low=1),
        ramp=Setting(8.0, "lambda = min(1, ramp epoch / (epochs - 1))", low=1, why="lambda must reach 1"),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        ones = torch.ones(self.timesteps, self.timesteps)
        self.register_buffer("mask", ones.tril().triu(1 - self.order), persistent=False)
        self.register_buffer("lambda_", torch.zeros(()))

    @property
    def causal(self) -> bool:  # type: ignore[override]  # it changes with the epochs
        """Whether the mask is complete: lambda = 1."""
        return bool(self.lambda_ >= 1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set lambda; called before the first batch of each epoch (from 0)."""
        self.lambda_.fill_(min(1.0, self.ramp * epoch / (epochs - 1)) if epochs > 1 else 1.0)

    def matrix(self, timesteps: int) -> Tensor:
        return self.weight * (self.lambda_ * self.mask + (1 - self.lambda_))


@register("sliding_psn")
class SlidingPSN(Parallel):
    """Causal PSN over the last `order` steps, for any T (arXiv:2304.12760).

        z[t] = sum over j < order of weight[order - 1 - j] x[t - j] + b

    weight [order] starts at ..., 1/4, 1/2, 1 and b at -v_threshold; both are learned, one of each per layer.
    """

    settings = parallel_settings(order=Setting(4, "input steps per output step", "time steps", low=1))

    def __init__(self, **settings):
        super().__init__(**settings)
        self.weight = nn.Parameter(0.5 ** torch.arange(self.order - 1, -1, -1, dtype=torch.get_default_dtype()))
        self.bias = nn.Parameter(torch.tensor(-self.v_threshold))

    def matrix(self, timesteps: int) -> Tensor:
        t = torch.arange(timesteps, device=self.weight.device)
        delay = t.unsqueeze(1) - t
        seen = (delay >= 0) & (delay < self.order)
        return self.weight[(self.order - 1 - delay).clamp(0, self.order - 1)] * seen
