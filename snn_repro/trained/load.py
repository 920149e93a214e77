"""A run's folder, or what `export.py --to safetensors` made of it, read back as the network that it trained.

Also what is said and counted of a finished run, and what the commands on one share.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from snn_repro import console, distributed
from snn_repro.build import build_network, loss_of
from snn_repro.config import Config, checked, frame_shape
from snn_repro.data import Data, build_data
from snn_repro.data.dataset import DataSet
from snn_repro.energy import energy_report, neurobench
from snn_repro.errors import UserError, in_one_sentence
from snn_repro.files import write_json
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import CONFIG, NEUROBENCH, RESULT, Follower, RunFolder
from snn_repro.runs.result import RunResult, read_result, summary
from snn_repro.runtime import pick_device, threads

log = logging.getLogger("snn_repro")

SAFETENSORS, SAVED = "model.safetensors", "config.json"  # of an exported folder
WEIGHTS = {"last": checkpoint.LAST, "best": checkpoint.BEST, "previous": checkpoint.PREVIOUS}


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

    def facts(self, config: Config | None = None) -> DataSet:
        """The data set of the run (or of a test, `config`), with what the run found in it: classes, size, statistics."""
        config = config or self.config
        facts, name = SETS[config.dataset.name], config.dataset.name
        if facts.own and not config.dataset.found and name == self.config.dataset.name:
            raise UserError(
                f"{self.path} was trained on dataset={name} by an earlier version, which kept no classes and statistics of the data: "
                "train it again"
            )
        return facts.of(config)

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels; their numbers where nobody says how they are called."""
        return list(self.facts().label_names) or [str(k) for k in range(self.num_classes)]

    def transform(self, source: Any, say: Callable[[str], None] = log.info) -> Tensor:
        """One image (path, PIL image or array) or recording (path or `Events`) as the run's test gives it to the network: image
        [1, C, H, W] or frames [T, 1, C, H, W], float32, so that `model(transform(source))` is [T, 1, K].

        `say` is told what was changed to make it fit. Raises UserError with one sentence where it is neither; see data/raw.py.
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
    if not any((path / name).is_file() for name in (RESULT, CONFIG, SAFETENSORS, *WEIGHTS.values())):
        raise UserError(f"{path} is no run: it holds no {CONFIG}; give the folder of a run, like runs/NAME/seed0")
    file = path / WEIGHTS[weights]
    content = _exported(path) if (path / SAFETENSORS).is_file() else checkpoint.load(file)
    state = checkpoint.weights_of(content, file)
    config = checked(content["config"])
    result = read_result(path / RESULT) if (path / RESULT).exists() else None
    shape: Any = tuple(result.input_size if result else frame_shape(config))
    classes = result.num_classes if result else SETS[config.dataset.name].of(config).num_classes
    model = build_network(config, classes, shape)
    checkpoint.load_model(model, state, str(file))
    return TrainedRun(
        path, config, model.eval(), content["epoch"], shape, classes, result, content.get("weights", weights)
    )


def _exported(path: Path) -> dict[str, Any]:
    """What an exported folder holds, as a checkpoint does: config, epoch, weights (last or best) and the values."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path / SAFETENSORS} needs safetensors: pip install 'snn_repro[export]'") from None
    try:
        content = json.loads((path / SAVED).read_text("utf-8")) | {"model": load_file(path / SAFETENSORS)}
        if content["weights"] not in WEIGHTS:
            raise ValueError(f"its weights are {content['weights']!r:.60}")
        return content
    except (OSError, ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise checkpoint.CheckpointError(
            f"{path} is no whole export as safetensors: {error}; export the run again"
        ) from None


# ---------------------------------------------------------------- a finished run


def repeated(folder: RunFolder | Follower, result: RunResult, config: Config) -> RunResult:
    """The earlier result of a command that is given again, with what is counted if that is asked for now."""
    now = {"threads": threads(config), "processes": distributed.world().size}
    remarks = [f"it ran with {k}={result[k]}, here {v}" for k, v in now.items() if result.get(k, v) != v]
    said = "; ".join(filter(None, [summary(result), *remarks, folder.remark]))
    log.info(f"{folder.path}: already done (force=true to redo): {said}")
    energy = bool(config.energy) and result.energy is None
    bench = config.neurobench and not (folder.path / NEUROBENCH).exists()
    if (energy or bench) and distributed.world().rank == 0:
        keys = " and ".join(["energy=true"] * energy + ["neurobench=true"] * bench)
        try:
            model = load_run(folder.path).model.to(pick_device(config))
        except UserError as error:
            raise UserError(f"{keys} needs the run's weights: {error}; or redo the run with force=true") from None
        wanted = replace(config, energy=energy, neurobench=bench)
        count_operations(folder.path, wanted, result, model, build_data(config))
        folder.finish(result)
        log.info(f"{folder.path}: {keys}: counted")
    return distributed.broadcast(result)


def count_operations(path: Path, config: Config, result: RunResult, model: nn.Module, data: Data) -> None:
    """A run's energy into its result, its neurobench.json, where asked for or, for energy, nearly free."""
    device = next(model.parameters()).device
    if config.energy or (config.energy is None and counts_for_little(config, data)):
        images, _ = next(iter(data.test.epoch(0)))
        result.energy = energy_report(model, images.to(device))
    if config.neurobench:
        write_json(path / NEUROBENCH, neurobench(model, data.test.epoch(0), loss_of(config).readout, device))


# Cost of counting operations, in forward passes on a CPU: 6 (0.2 s a batch of digits_dvs), and 1 s for the first call.
COUNTING = 12


def counts_for_little(config: Config, data: Data) -> bool:
    """Whether counting the first test batch takes less than 2 % of the whole run: by its samples, not by a clock, so that every
    machine decides alike. A backward pass takes twice a forward pass."""
    if config.debug.max_steps or config.debug.max_eval_batches:
        return False
    split, batch = data.split, data.test.all_samples(0)
    passes = config.recipe.epochs * (3 * split.n_train + split.n_val + split.n_test)
    return COUNTING * batch * distributed.world().size < 0.02 * passes


# ---------------------------------------------------------------- commands


def command(name: str, main: Callable[[], None]) -> NoReturn:
    """Run `main`: exit code 0 done, 2 wrong input, 130 Ctrl-C. Remarks go to stderr, results to stdout."""
    warnings.formatwarning = console.one_line
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)

    def run() -> int:
        try:
            main()
        except Exception as error:
            smaller = "batch_size=32 or less takes fewer samples at a time, " * (name == "snn-eval")
            raise in_one_sentence(error, f"{smaller}device=cpu takes the machine's memory instead of a GPU's") from None
        return 0

    sys.exit(console.script(lambda: console.told(name, run)))
