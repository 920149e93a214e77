"""Gated leaky integrate-and-fire (GLIF)."""

import math

import torch
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.neurons.node import Neuron, register, settings
from snn_repro.settings import Setting

_RATE = "initial value, 0..1, learned through a sigmoid: "


@register("glif")
class GLIF(Neuron):
    """Gated LIF: learned gates mix leaks and resets (Yao et al., NeurIPS 2022, arXiv:2210.13768).

        h[t] = (1 - a (1 - tau)) v[t-1] (1 - c s[t-1]) - (1 - a) leak + (1 - b (1 - g[t])) x[t] - (1 - c) v_re s[t-1]
        s[t] = step(h[t] - v_th),  v[t] = h[t]: the reset is part of the next charge

    All are sigmoids of parameters, per channel as published or per layer (share=layer): the gates alpha, beta, gamma
    (a, b, c; within 0.1 of 0 before the sigmoid at first), tau, v_th, leak, v_re and conduct [T] (g).
    """

    wired = True
    states = 2  # v and the last spike
    settings = settings(
        dict(fire_at="gt", surrogate="rectangle", imp_init=(0.2, 0.3)),
        without=("reset", "v_reset", "detach_reset"),
        v_threshold=Setting(0.5, _RATE + "threshold", above=0, below=1, why="a sigmoid of what 'glif' learns"),
        decay=Setting(0.25, _RATE + "fraction of v kept by the exponential leak", above=0, below=1),
        conduct_init=Setting(0.5, _RATE + "conductance of each time step", above=0, below=1),
        share=Setting("channel", "parameters per channel or per layer", choices=("channel", "layer")),
    )

    def __init__(self, **settings):
        super().__init__(**settings)
        if self.share == "channel" and not self.state_shape:
            raise UserError("neuron.share=channel needs state_shape, for example (C, H, W); or use neuron.share=layer")
        shape = (self.state_shape[0],) if self.share == "channel" else ()
        for gate in ("alpha", "beta", "gamma"):
            self.register_parameter(gate, nn.Parameter(0.2 * (torch.rand(shape) - 0.5)))
        starts = {
            "tau": self.decay, "v_th": self.v_threshold, "leak": self.v_threshold / (2 * self.timesteps),
            "v_re": self.v_threshold,
        }  # fmt: skip
        for name, start in starts.items():
            self.register_parameter(name, nn.Parameter(torch.full(shape, _logit(start))))
        self.conduct = nn.Parameter(torch.full((self.timesteps, *shape), _logit(self.conduct_init)))

    def begin(self, x: Tensor) -> None:
        def wide(p: Tensor) -> Tensor:
            return p.sigmoid().view((*p.shape, *[1] * (x.dim() - 3 if self.share == "channel" else 0)))

        alpha, beta, gamma, tau, leak, v_re, self._th, conduct = map(
            wide, (self.alpha, self.beta, self.gamma, self.tau, self.leak, self.v_re, self.v_th, self.conduct)
        )
        self._keep, self._leak = 1 - alpha * (1 - tau), (1 - alpha) * leak
        self._gamma, self._soft = gamma, (1 - gamma) * v_re
        self._weights = iter((1 - beta * (1 - conduct)).unbind(0))
        self._s: Tensor | float = 0.0

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        h = self._keep * v * (1 - self._gamma * self._s) - self._leak + next(self._weights) * x
        return h - self._soft * self._s

    def fire(self, h: Tensor) -> Tensor:
        return self.surrogate_function(h - self._th)

    def reset_potential(self, h: Tensor, s: Tensor) -> Tensor:
        self._s = s
        return h

    def end(self) -> None:
        del self._keep, self._leak, self._gamma, self._soft, self._weights, self._s, self._th


def _logit(p: float) -> float:
    return -math.log(1 / p - 1)
