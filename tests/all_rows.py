"""All experiments as their files say them, checked once for all tests of a process; test_rows.py holds them against Hydra."""

from functools import cache

from snn_repro.config import Config
from snn_repro.paper.rows import compared, configs, experiments, load_rows

PAPER = load_rows()
COMPARED = [name for name in experiments() if compared(name, PAPER)]
NAMES = [name for name in experiments() if name not in COMPARED]  # those of the paper's authors, and their partners


@cache
def rows(fidelity: str | None = None) -> dict[str, Config]:
    return configs(NAMES, fidelity)


@cache
def compared_rows() -> dict[str, Config]:
    return configs(COMPARED)
