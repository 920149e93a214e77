"""All experiments, composed once for all tests: Hydra takes a tenth of a second each."""

from functools import cache

from snn_repro.config import Config
from snn_repro.rows import compose, experiments

NAMES = experiments()


@cache
def rows() -> dict[str, Config]:
    return compose(NAMES)
