"""Data sets: from files to batches of event frames or static images.

Frames are [T, B, C, H, W], images [B, C, H, W]. `data/sets/` declares each set; batches.py makes the batches.
"""

from snn_repro.config.schema import Config
from snn_repro.data.batches import MemoryBatches
from snn_repro.data.dataset import Batches, Data, Split
from snn_repro.registry import SETS

__all__ = ["Batches", "Data", "MemoryBatches", "Split", "build_data"]


def build_data(cfg: Config) -> Data:
    """The data set of `cfg.dataset`, ready to train on.

    Raises DataError with one sentence: the file, where it was expected, where its authors publish it.
    """
    return SETS[cfg.dataset.name].build(cfg)
