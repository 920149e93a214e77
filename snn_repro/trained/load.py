"""A run's folder, or what `export --to safetensors` made of it, read back as the network that it trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from snn_repro.config import Config, checked, frame_shape
from snn_repro.errors import UserError
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import RESULT
from snn_repro.runs.result import RunResult, read_result
from snn_repro.train import build_network

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
    exported = (path / SAFETENSORS).is_file()
    file = path / (SAFETENSORS if exported else WEIGHTS[weights])
    content = _exported(path) if exported else checkpoint.load(file)
    if not {"config", "model", "epoch"} <= content.keys():
        raise checkpoint.CheckpointError(f"{file} was not written by snn_repro; give the folder of a run")
    config = checked(content["config"])
    result = read_result(path / RESULT) if (path / RESULT).exists() else None
    facts = SETS[config.dataset.name]
    channels, height, width = result.input_size if result else frame_shape(config)
    shape = (channels, height, width)
    classes = result.num_classes if result else facts.num_classes
    model = build_network(config, classes, shape)
    state = content["model"]
    if content.get("ema"):  # of the last checkpoint; the best one holds nothing but the average
        state = {k.removeprefix("module."): v for k, v in content["ema"].items() if k.startswith("module.")}
    checkpoint.load_model(model, state, str(file))
    return TrainedRun(path, config, model.eval(), content["epoch"], shape, classes, result)


def _exported(path: Path) -> dict[str, Any]:
    """The content of a folder of safetensors, as that of a checkpoint."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path / SAFETENSORS} needs safetensors: pip install 'snn_repro[export]'") from None
    try:
        return json.loads((path / SAVED).read_text("utf-8")) | {"model": load_file(path / SAFETENSORS)}
    except (OSError, ValueError, SafetensorError) as error:
        raise checkpoint.CheckpointError(
            f"{path} is no whole export as safetensors: {error}; export the run again"
        ) from None
