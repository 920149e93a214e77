"""All experiments, composed once for all tests of a process: Hydra takes a tenth of a second each."""

from functools import cache

from snn_repro.config import Config
from snn_repro.paper.rows import compared, compose, experiments, load_rows

COMPARED = [name for name in experiments() if compared(name, load_rows())]
NAMES = [name for name in experiments() if name not in COMPARED]  # those of the paper's authors, and their partners


@cache
def rows() -> dict[str, Config]:
    return compose(NAMES)


@cache
def described_rows() -> dict[str, Config]:
    return compose(NAMES, ["fidelity=described"])


@cache
def compared_rows() -> dict[str, Config]:
    return compose(COMPARED)
