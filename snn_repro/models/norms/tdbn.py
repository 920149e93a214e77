"""Threshold-dependent batch norm."""

import math

from torch import nn

from snn_repro.models.norms.bn import BN
from snn_repro.models.norms.norm import register_norm


@register_norm("tdbn")
class TDBN(BN):
    """Threshold-dependent batch norm (Zheng et al., AAAI 2021, arXiv:2011.05280): BN whose factor starts at alpha V_th.

    alpha is 1, and 1/sqrt(2) for each of two norms that are added before a neuron.
    """

    def begin(self, v_threshold: float, summands: int) -> None:
        nn.init.constant_(self.weight, v_threshold / math.sqrt(summands))
