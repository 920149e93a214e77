"""All experiments, composed once for all tests: Hydra takes a tenth of a second each."""

from functools import cache

from snn_repro.config import Config, load_config
from snn_repro.paper.rows import experiments

NAMES = experiments()


@cache
def rows() -> dict[str, Config]:
    return {name: load_config([f"experiment={name}"]) for name in NAMES}
