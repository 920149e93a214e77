"""A run's folder, or what `export.py --to safetensors` made of it, read back as the network that it trained."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snn_repro.build import build_network
from snn_repro.config import Config, checked, frame_shape
from snn_repro.data.dataset import DataSet
from snn_repro.errors import UserError
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import CONFIG, RESULT, other_data
from snn_repro.runs.result import RunResult, read_result

log = logging.getLogger("snn_repro")

SAFETENSORS, SAVED = "model.safetensors", "config.json"  # of an exported folder
WEIGHTS = {"last": checkpoint.LAST, "best": checkpoint.BEST}


@dataclass
class TrainedRun:
    """A network as a run left it. `model` is in evaluation mode, on the CPU; `result` is None while the run is not finished."""

    path: Path
    config: Config
    model: nn.Module
    epoch: int  # whose weights these are, from 1
    input_shape: tuple[int, int, int]  # [C, H, W]
    num_classes: int
    result: RunResult | None
    weights: str = "last"  # or "best"
    data: dict[str, str] | None = None  # the fingerprint of what it was trained on

    def facts(self, config: Config | None = None) -> DataSet:
        """The data set of the run (or of a test, `config`), with what the run found in it: classes, size, statistics.

        A run of an earlier version kept none of it: then they are those of data_dir now, and a line says so. Raises UserError
        where the data are missing, or not those that it was trained on.
        """
        config = config or self.config
        facts = SETS[config.dataset.name]
        if facts.own and not config.dataset.found and config.dataset.name == self.config.dataset.name:
            where = (
                f"an earlier version trained {self.path}, which does not keep the classes and statistics of its data"
            )
            changed, _ = other_data({"data": self.data}, config)
            if changed:
                raise UserError(
                    f"{where}, and data_dir={config.data_dir} has changed since ({'; '.join(changed)}): give the data as they "
                    "were, or train again"
                )
            config.dataset.found = facts.of(config).found
            log.warning(f"{where}: those of data_dir={config.data_dir} are used")
        return facts.of(config)

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels; their numbers where nobody says how they are called."""
        names: Sequence[str] = ()
        with contextlib.suppress(UserError):  # own data of an older run that lie elsewhere now
            names = self.facts().label_names
        return list(names) or [str(k) for k in range(self.num_classes)]

    def transform(self, source: Any, say: Callable[[str], None] = log.info) -> Tensor:
        """One image (path, PIL image or array) or recording (path or `Events`) as the run's test gives it to the network: image
        [1, C, H, W] or frames [T, 1, C, H, W], float32, so that `model(transform(source))` is [T, 1, K].

        `say` hears what was changed to make it fit. Raises UserError with one sentence where it is neither; see data/raw.py.
        """
        return self.facts().sample(self.config, source, say)


def load_run(path: str | Path, weights: str = "last") -> TrainedRun:
    """The network of a run's folder with the weights of its last epoch, or (`weights="best"`) of the epoch that was selected:
    by validation, else (optimistic) by the test part. Where a run averages its weights the average is taken, as in its tests.
    A folder that was exported as safetensors has the weights that it was exported with.

    Raises UserError where there is no such run, CheckpointError where its checkpoint is missing, damaged or of another network.
    """
    path = Path(path)
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights} must be one of: {', '.join(WEIGHTS)}")
    if not path.is_dir():
        raise UserError(f"{path} is no run: give the folder that holds a run's {RESULT}, like runs/NAME/seed0")
    if not any((path / name).is_file() for name in (RESULT, CONFIG, SAFETENSORS, *WEIGHTS.values())):
        raise UserError(f"{path} is no run: it holds no {CONFIG}; give a folder like runs/NAME/seed0")
    file = path / WEIGHTS[weights]
    if (path / SAFETENSORS).is_file():
        content, state = _exported(path)
        weights = content["weights"]
    else:
        content, state = checkpoint.load_evaluated(file)
    config = checked(content["config"])
    result = read_result(path / RESULT) if (path / RESULT).exists() else None
    channels, height, width = result.input_size if result else frame_shape(config)
    shape = (channels, height, width)
    classes = result.num_classes if result else SETS[config.dataset.name].of(config).num_classes
    model = build_network(config, classes, shape)
    checkpoint.load_model(model, state, str(file))
    data = content.get("data") or (result.data if result else None)
    return TrainedRun(path, config, model.eval(), content["epoch"], shape, classes, result, weights, data)


def _exported(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, epoch, weights; the values) of an exported folder."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path / SAFETENSORS} needs safetensors: pip install 'snn_repro[export]'") from None
    try:
        content, state = json.loads((path / SAVED).read_text("utf-8")), load_file(path / SAFETENSORS)
        checkpoint.check_content(content, path / SAVED)
        if content.get("weights") not in WEIGHTS:
            raise ValueError(f"its weights are {content.get('weights')!r:.60}")
        return content, state
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise checkpoint.CheckpointError(
            f"{path} is no whole export as safetensors: {error}; export the run again"
        ) from None
