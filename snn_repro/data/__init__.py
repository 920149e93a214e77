"""Data sets: files on disk -> frames [T, B, C, H, W] or static images [B, C, H, W], and labels.

`data/sets/` holds what is known of each set, batches.py the way from there to a network.
"""

from snn_repro.config.schema import Config
from snn_repro.data.batches import MemoryBatches
from snn_repro.data.dataset import Batches, Data, Split
from snn_repro.registry import SETS

__all__ = ["Batches", "Data", "MemoryBatches", "Split", "build_data"]


def build_data(cfg: Config) -> Data:
    """The data set that `cfg.dataset` names, ready to train on.

    Raises DataError with one sentence (which file, where it was expected, where its authors publish it).
    """
    return SETS[cfg.dataset.name].build(cfg)
