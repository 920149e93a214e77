"""Load the trained network of a run, from its folder or a safetensors export.

Also loads the teacher of a loss, counts operations of a finished run, and holds what the commands on a run share.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from snn_repro import console, distributed
from snn_repro.build import build_network, loss_of
from snn_repro.config import Config, checked, frame_shape
from snn_repro.data import Data, build_data
from snn_repro.data.dataset import DataSet
from snn_repro.energy import energy_report, neurobench
from snn_repro.errors import UserError, in_one_sentence
from snn_repro.files import write_json
from snn_repro.losses.distill import TORCHVISION, digest
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
    """A trained network, in evaluation mode on the CPU, with the facts of its run."""

    path: Path
    config: Config
    model: nn.Module
    epoch: int  # epoch of the weights, from 1
    input_shape: tuple[int, int, int]  # [C, H, W]
    num_classes: int
    result: RunResult | None  # None while the run is not finished
    weights: str = "last"  # or "best"

    def facts(self, config: Config | None = None) -> DataSet:
        """The data set of the run, or of `config`: its classes, size and statistics."""
        config = config or self.config
        facts, name = SETS[config.dataset.name], config.dataset.name
        if facts.own and not config.dataset.found and name == self.config.dataset.name:
            old = f"{self.path} was trained on dataset={name} by an earlier version"
            raise UserError(f"{old}, which did not store classes and statistics of the data; train it again")
        return facts.of(config)

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of the labels; the labels where there are no names."""
        return list(self.facts().label_names) or [str(k) for k in range(self.num_classes)]

    def transform(self, source: Any, say: Callable[[str], None] = log.info) -> Tensor:
        """Preprocess an image (path, PIL image, array) or recording (path, `Events`) for `model`.

        Returns an image [1, C, H, W] or frames [T, 1, C, H, W], float32, so `model(transform(source))` is [T, 1, K].
        `say` receives what was changed to make it fit. Raises UserError for anything else; see data/raw.py.
        """
        return self.facts().sample(self.config, source, say)


def load_run(path: str | Path, weights: str = "last") -> TrainedRun:
    """Load the network of a run's folder, or of a safetensors export of it.

    weights: "last", the last epoch, or "best", the epoch selected by validation, else (optimistic) by the test part; an
    export has the weights that it was made with. If the run averages weights, the average is loaded, as in its tests.
    Raises UserError if there is no run, CheckpointError if its checkpoint is missing, damaged or of another network.
    """
    path = Path(path)
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights} must be one of: {', '.join(WEIGHTS)}")
    if not any((path / name).is_file() for name in (RESULT, CONFIG, SAFETENSORS, *WEIGHTS.values())):
        raise UserError(f"{path} is not a run: it has no {CONFIG}; give the folder of a run, like runs/NAME/seed0")
    file = path / WEIGHTS[weights]
    content = _exported(path) if (path / SAFETENSORS).is_file() else checkpoint.load(file)
    state, config = checkpoint.weights_of(content, file), checked(content["config"])
    result = read_result(path / RESULT) if (path / RESULT).exists() else None
    shape: Any = tuple(result.input_size if result else frame_shape(config))
    classes = result.num_classes if result else SETS[config.dataset.name].of(config).num_classes
    model = build_network(config, classes, shape)
    checkpoint.load_model(model, state, str(file))
    weights = content.get("weights", weights)
    return TrainedRun(path, config, model.eval(), content["epoch"], shape, classes, result, weights)


def _exported(path: Path) -> dict[str, Any]:
    """Read an exported folder like a checkpoint: config, epoch, weights (last or best) and the values."""
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
        raise checkpoint.CheckpointError(f"{path} is not a complete export: {error}; export the run again") from None


# ---------------------------------------------------------------- a teacher


def load_teacher(config: Config, data: Data, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The frozen teacher of `config.loss`, without gradient: input of the student -> logits [B, K].

    A run's logits are those of its readout. The random generators stay as they were. Raises UserError if the teacher
    cannot be loaded, has changed, or is of other data or test samples, which it may have been trained on.
    """
    name, given, d = config.loss.teacher, config.loss.teacher_digest, config.dataset
    if not (found := digest(name)) or found != given:
        why = f"has other weights ({found}) than loss.teacher_digest={given}" if found else "is no finished run"
        raise UserError(f"loss.teacher={name} {why}; name the folder of one, or torchvision/NAME")
    kinds = ("dataset", "channel order", "classes", "input shape", "test samples")
    ours = (d.name, d.channel_order, data.num_classes, [*data.input_shape], data.split.sha256_test[:12])
    theirs: tuple[Any, ...] = ("imagenet1k", "rgb", 1000)
    with torch.random.fork_rng(devices=[]):
        if run := None if name.startswith(TORCHVISION) else load_run(name):
            its, sha = run.config.dataset, run.result.split_sha256[:12] if run.result else None
            theirs = (its.name, its.channel_order, run.num_classes, [*run.input_shape], sha)
        if wrong := [f"{k} {a} (here {b})" for k, a, b in zip(kinds, theirs, ours, strict=False) if a != b]:
            raise UserError(f"loss.teacher={name} was trained for {', '.join(wrong)}; choose one of the same data")
        network = run.model if run else _torchvision(name.removeprefix(TORCHVISION))
    network.eval().requires_grad_(False).to(device)
    readout = loss_of(run.config).readout if run else nn.Identity()
    return torch.no_grad()(lambda x: readout(network(x)))


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model  # takes seconds to import

    try:
        with distributed.main_first():
            return get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError) as error:  # no network, or a damaged file
        why, folder = " ".join(str(error).split())[:120], f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"torchvision cannot load the teacher {name} ({why}); put its weights in {folder}") from None


# ---------------------------------------------------------------- a finished run


def repeated(folder: RunFolder | Follower, result: RunResult, config: Config) -> RunResult:
    """Return the result of a finished run, counting operations if requested now."""
    now = {"threads": threads(config), "processes": distributed.world().size}
    other = (f"it ran with {k}={result[k]}, here {v}" for k, v in now.items() if result.get(k, v) != v)
    remarks = "; ".join(filter(None, [summary(result), *other, folder.remark]))
    log.info(f"{folder.path}: already done (force=true to redo): {remarks}")
    energy = bool(config.energy) and result.energy is None
    bench = config.neurobench and not (folder.path / NEUROBENCH).exists()
    if (energy or bench) and distributed.world().rank == 0:
        keys = " and ".join(["energy=true"] * energy + ["neurobench=true"] * bench)
        try:
            model = load_run(folder.path).model.to(pick_device(config))
        except UserError as error:
            raise UserError(f"{keys} needs the run's weights: {error}; or repeat the run with force=true") from None
        count_operations(
            folder.path, replace(config, energy=energy, neurobench=bench), result, model, build_data(config)
        )
        folder.finish(result)
        log.info(f"{folder.path}: {keys}: done")
    return distributed.broadcast(result)


def count_operations(path: Path, config: Config, result: RunResult, model: nn.Module, data: Data) -> None:
    """Add energy to a result and write neurobench.json, if requested.

    Energy is also counted when it is nearly free (energy=null).
    """
    device = next(model.parameters()).device
    if config.energy or (config.energy is None and counting_is_cheap(config, data)):
        images, _ = next(iter(data.test.epoch(0)))
        result.energy = energy_report(model, images.to(device))
    if config.neurobench:
        write_json(path / NEUROBENCH, neurobench(model, data.test.epoch(0), loss_of(config).readout, device))


# Cost of counting operations, in forward passes: 6 on a CPU (0.2 s per batch of digits_dvs), plus 1 s once.
COUNTING = 12


def counting_is_cheap(config: Config, data: Data) -> bool:
    """Whether counting the first test batch costs under 2 % of the run."""
    # by numbers of samples, so every machine decides alike; a backward pass costs two forward passes
    if config.debug.max_steps or config.debug.max_eval_batches:
        return False
    split, batch = data.split, data.test.all_samples(0)
    passes = config.recipe.epochs * (3 * split.n_train + split.n_val + split.n_test)
    return COUNTING * batch * distributed.world().size < 0.02 * passes


# ---------------------------------------------------------------- commands


def command(name: str, main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit with code 0 (done), 2 (wrong input) or 130 (Ctrl-C).

    Results go to stdout, log messages to stderr.
    """
    warnings.formatwarning = console.one_line
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)

    def run() -> int:
        try:
            main()
        except Exception as error:
            smaller = "batch_size=32 or less makes batches smaller, " * (name == "snn-eval")
            raise in_one_sentence(error, f"{smaller}device=cpu uses the main memory instead of the GPU's") from None
        return 0

    sys.exit(console.script(lambda: console.told(name, run)))
