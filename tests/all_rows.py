"""All experiments as their files say them, checked once for all tests of a process; test_rows.py holds them against Hydra."""

from functools import cache

import torch

from list_rows import compared, experiments
from snn_repro.build import options
from snn_repro.config import Config, frame_shape
from snn_repro.data.sets import SETS
from snn_repro.models import build_model
from snn_repro.paper.rows import configs, load_rows

PAPER = load_rows()
COMPARED = [name for name in experiments() if compared(name, PAPER)]
NAMES = [name for name in experiments() if name not in COMPARED]  # those of the paper's authors, and their partners


@cache
def rows(fidelity: str | None = None) -> dict[str, Config]:
    return configs(NAMES, fidelity)


@cache
def compared_rows() -> dict[str, Config]:
    return configs(COMPARED)


MODELS = {}


def model_of(config):
    """The row's network without memory, built once for all rows that have the same: the shapes and names of its parameters."""
    neuron = {k: v for k, v in options(config.neuron).items() if k not in ("imp_lr", "imp_weight_decay")}
    facts = dict(
        name=config.model.name, num_classes=SETS[config.dataset.name].num_classes, input_shape=frame_shape(config),
        timesteps=config.timesteps, neuron=neuron, **options(config.model, "name", "weights"),
    )  # fmt: skip
    if (key := repr(facts)) not in MODELS:
        with torch.device("meta"):
            MODELS[key] = build_model(**facts)
    return MODELS[key]
