"""What networks there are, and the settings that they take."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import nn

from snn_repro.registry import MODELS
from snn_repro.settings import Setting


class Model(NamedTuple):
    """How to build a network, and the settings it takes."""

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]


def register_network(name: str, settings: Mapping[str, Setting], *leading):
    """A decorator of a network's class or builder, which is then called with `leading` and, by name, num_classes, input_shape,
    timesteps, neuron and its settings. One class may have several names.
    """

    def add(build):
        MODELS.add(name, Model(partial(build, *leading), settings), build)
        return build

    return add
