"""What norms there are, and how a network builds the one that it was asked for."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from snn_repro.neurons import NEURONS, Neuron
from snn_repro.registry import NORMS
from snn_repro.settings import Setting

register_norm = NORMS.register
NORM = Setting("bn", "norm behind each convolution; null is bn", choices=NORMS)


def norms(name: Any, timesteps: int, neuron: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """A builder: build(channels, summands=1) makes a norm of that name, or as name(channels, timesteps) does where it has
    settings, before neurons as `neuron` says (see build_neuron).

    summands: of how many norms the neurons' input is the sum, 2 where a shortcut is added before they fire. A norm that starts
    from the threshold has a method `begin(v_threshold, summands)`.
    """
    family = NEURONS.get(str(neuron["name"]).removesuffix("_imp"), Neuron)  # build_neuron refuses an unknown one
    threshold = family.settings["v_threshold"]
    given = neuron.get("v_threshold")
    v_threshold = threshold.default if given is None else threshold.checked("neuron.v_threshold", given)
    make = name if callable(name) else NORMS[name or "bn"]

    def build(channels: int, summands: int = 1) -> nn.Module:
        if place := getattr(neuron, "norms", None):
            return place()
        norm = make(channels, timesteps)
        if hasattr(norm, "begin"):
            norm.begin(v_threshold, summands)
        return norm

    return build
