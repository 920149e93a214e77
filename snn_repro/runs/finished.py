"""A finished run: what is said when its command is given again, and what is counted at its end or later."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snn_repro import distributed
from snn_repro.build import loss_of
from snn_repro.config import Config
from snn_repro.data import Data, build_data
from snn_repro.energy import energy_report, neurobench
from snn_repro.errors import UserError
from snn_repro.files import write_json
from snn_repro.runs.folder import NEUROBENCH, Follower, RunFolder
from snn_repro.runs.result import RunResult, summary
from snn_repro.runtime import pick_device, threads
from snn_repro.trained.load import load_run

log = logging.getLogger("snn_repro")


def repeated(folder: RunFolder | Follower, result: RunResult, config: Config) -> RunResult:
    """The earlier result of a command that is given again, with what is counted if that is asked for now."""
    now = {"threads": threads(config), "processes": distributed.world().size}
    remarks = [f"it ran with {k}={result[k]}, here {v}" for k, v in now.items() if result.get(k, v) != v]
    remarks += [folder.remark] if folder.remark else []
    log.info(f"{folder.path}: already done (force=true to redo): {'; '.join([summary(result), *remarks])}")
    energy = bool(config.energy) and result.energy is None
    bench = config.neurobench and not (folder.path / NEUROBENCH).exists()
    if (energy or bench) and distributed.world().rank == 0:
        keys = " and ".join(["energy=true"] * energy + ["neurobench=true"] * bench)
        try:
            model = load_run(folder.path).model.to(pick_device(config))
        except UserError as error:
            raise UserError(f"{keys} needs the run's weights: {error}; or redo the run with force=true") from None
        wanted = dataclasses.replace(config, energy=energy, neurobench=bench)
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
        write_neurobench(path, config, model, data, device)


def write_neurobench(path: Path, config: Config, model: nn.Module, data: Data, device: torch.device) -> dict[str, Any]:
    """NeuroBench's metrics of the whole test part, into the run's folder; returns them."""
    content = neurobench(model, data.test.epoch(0), loss_of(config).readout, device)
    write_json(path / NEUROBENCH, content)
    return content


# Forward passes that counting takes as long as, on a CPU: 6 (0.2 s a batch of digits_dvs), and 1 s for the first call.
COUNTING = 12


def counts_for_little(config: Config, data: Data) -> bool:
    """Whether counting the first test batch takes less than 2 % of the whole run: by its samples, not by a clock, so that every
    machine decides alike. A backward pass takes twice a forward pass."""
    if config.debug.max_steps or config.debug.max_eval_batches:
        return False
    split, batch = data.split, data.test.all_samples(0)
    passes = config.recipe.epochs * (3 * split.n_train + split.n_val + split.n_test)
    return COUNTING * batch * distributed.world().size < 0.02 * passes
