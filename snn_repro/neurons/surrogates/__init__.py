"""Spike functions: an exact threshold comparison forward, a smooth surrogate derivative backward. One surrogate is one file.

With z = h - v_threshold, the forward value is the Heaviside step of z. Its derivative is replaced by that of a file here.
Each integrates to 1 over z, so the width alone sets how far from the threshold a neuron still learns.
"""

from snn_repro.neurons.surrogates.spike import SURROGATES, Spike, Surrogate, register_surrogate
from snn_repro.registry import import_all

__all__ = ["SURROGATES", "Spike", "Surrogate", "register_surrogate"]

import_all(__name__, __path__)
