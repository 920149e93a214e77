"""What the data of a run are, in a few hashes: a repeat, or a run that goes on, must see the same data.

Paths do not count, contents do: a data set that was moved, or unpacked, is still the same one.
"""

from __future__ import annotations

import hashlib

from snn_repro.config import Config
from snn_repro.data.sets import SETS
from snn_repro.runs.checkpoint import LAST, find_weights


def fingerprint(config: Config) -> dict[str, str]:
    """{what: hash} of the data set that the configuration names, and of the file that `model.weights` names (of a
    run's folder: its last checkpoint).

    Images: their contents (ImageNet: names, sizes and a sample of contents); recordings: the index of their prepared
    frames, which holds a checksum of every row. Raises UserError or DataError where the data are not at hand.
    """
    hashes = SETS[config.dataset.name].fingerprint(config)
    if config.model.weights:
        weights = find_weights(config.model.weights, config.data_dir)
        with open(weights / LAST if weights.is_dir() else weights, "rb") as file:
            hashes["model.weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
