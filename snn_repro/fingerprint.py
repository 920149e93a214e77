"""What the data of a run are, in a few hashes: a repeat, or a run that goes on, must see the same data.

Paths do not count, contents do: a data set that was moved, or unpacked, is still the same one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from snn_repro.checkpoint import find_weights
from snn_repro.config import Config
from snn_repro.errors import DataError, UserError


def fingerprint(config: Config) -> dict[str, str]:
    """{what: hash} of the data set that the configuration names, and of the file that `model.weights` names.

    Images: their contents (ImageNet: names, sizes and a sample of contents); recordings: the index of their prepared
    frames, which holds a checksum of every row. Raises UserError or DataError where the data are not at hand.
    """
    found = _of_data(config)
    if config.model.weights:
        with open(find_weights(config.model.weights, config.data_dir), "rb") as file:
            found["model.weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _of_data(config: Config) -> dict[str, str]:
    name = config.dataset.name
    if name.startswith("digits"):
        from snn_repro.data.digits import _table

        return {"digits": hashlib.sha256(_table().tobytes()).hexdigest()}
    from snn_repro.data.event_sets import EVENT_SETS

    if name not in EVENT_SETS:
        from snn_repro.data import static

        return static.fingerprint(config)
    from snn_repro.data.prepare import Settings

    settings = Settings(name, config.timesteps, config.dataset.integrate_by, config.dataset.frame_size)
    if not config.cache_dir:
        raise UserError(f"cache_dir is not set: {name} is read from prepared frames")
    manifest = Path(config.cache_dir, settings.folder, "manifest.json")
    try:
        return {"prepared frames": json.loads(manifest.read_text())["index_sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest} cannot be read: {error}") from None
