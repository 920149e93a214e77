"""Data sets: files on disk -> frames [T, B, C, H, W] or static images [B, C, H, W], and labels.

`data/sets/` holds what is known of each set. The configuration asks there, so that importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snn_repro.config.schema import Config
    from snn_repro.data.batches import Batches, Data, MemoryBatches, Split

__all__ = ["Batches", "Data", "MemoryBatches", "Split", "build_data"]


def build_data(cfg: Config) -> Data:
    """The data set that `cfg.dataset` names, ready to train on.

    Raises DataError with one sentence (which file, where it was expected, where its authors publish it).
    """
    from snn_repro.data.sets import SETS

    return SETS[cfg.dataset.name].build(cfg)


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("snn_repro.data.batches"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
