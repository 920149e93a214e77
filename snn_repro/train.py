"""One run, read from top to bottom: open its folder, build the parts, train epoch by epoch, evaluate, record."""

if __name__ == "__main__":  # `python -m snn_repro.train`; the command line imports what is below when a run begins
    from snn_repro.cli import main

    main()

import contextlib
import itertools
import logging
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snn_repro import distributed, signals
from snn_repro.causality import sees_future
from snn_repro.config import Config, ConfigError, checked, frame_shape, to_dict
from snn_repro.console import audible, pace, progress
from snn_repro.data import Batches, Data, build_data
from snn_repro.data.augment import GuidedAugmentation, turned_on, values_of
from snn_repro.data.augment.augmentation import sent
from snn_repro.data.batches import derive_seed
from snn_repro.data.feed import feed
from snn_repro.errors import Interrupted, TrainingError, UserError, in_one_sentence
from snn_repro.files import write_json
from snn_repro.losses import Loss, build_loss
from snn_repro.metrics import correct_cumulative, correct_per_step, count_correct
from snn_repro.models import build_model, count_parameters
from snn_repro.models.blocks import same_statistics
from snn_repro.models.norms import synchronise
from snn_repro.models.relevance import check as check_relevance
from snn_repro.models.relevance import relevance
from snn_repro.neurons import build_neuron, firing_rates
from snn_repro.neurons.surrogates import SURROGATES, Spike
from snn_repro.optim import build_optimizer, build_schedule, load_optimizer
from snn_repro.provenance import code_version
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.fingerprint import fingerprint
from snn_repro.runs.folder import NEUROBENCH, Follower, RunFolder
from snn_repro.runs.loggers import Loggers
from snn_repro.runs.result import RunResult, build_result, epoch_line, selection, summary
from snn_repro.runtime import (
    Precision,
    channels_last,
    compile_network,
    conditions,
    parts_of_a_batch,
    peak_memory,
    pick_device,
    profiler,
    seed_everything,
    seed_generators,
    threads,
)

log = logging.getLogger("snn_repro")


@audible(log)
def run(config: Config, run_dir: str | None = None, overrides: list[str] | None = None) -> RunResult:
    """Train and evaluate one network; returns a RunResult, the content of result.json.

    The folder (`run_dir`, else `config.run_dir`) decides what happens: a finished run of the same configuration is
    returned as it is, an unfinished one is continued, another configuration is refused. Raises UserError (one
    sentence), TrainingError when the loss is not finite, Interrupted after a signal that asks to stop.
    """
    config = checked(to_dict(config))
    config.dataset.found = None  # of an earlier run, say
    config.data_dir, config.cache_dir = (p and os.path.abspath(p) for p in (config.data_dir, config.cache_dir))
    if config.dry_run:
        raise ConfigError("dry_run=true trains nothing: use snn_repro.dry_run.dry_run(config), or leave it out")
    path = Path(run_dir or config.run_dir or Path("runs", config.name, f"seed{config.seed}"))
    world = distributed.start(config.device)
    parts_of_a_batch(config, world.size)
    if world.rank:
        log.setLevel(logging.ERROR)  # the first process speaks for all
    if not _running.acquire(blocking=False):
        raise UserError(
            "another thread of this process trains, and two runs would share its random generators; start them one after the "
            "other, or each in a process of its own"
        )
    try:
        with contextlib.closing(open_folder(path, config)) as folder:
            if folder.finished is not None:
                return repeated(folder, folder.finished, config)
            with signals.stop_requests(alone=world.size == 1) as stop:
                return recorded(folder, config, stop, overrides or [])
    finally:
        _running.release()


_running = threading.Lock()


def open_folder(path: Path, config: Config) -> RunFolder | Follower:
    """The run's folder. With several processes the first one holds it, and all hear whether it is finished or refused."""
    if distributed.world().size == 1:
        return RunFolder(path, config)
    folder: RunFolder | None = None
    finished: RunResult | UserError | None = None
    if distributed.world().rank == 0:
        try:
            folder = RunFolder(path, config)
            finished = folder.finished
        except UserError as error:
            finished = error
    finished = distributed.broadcast(finished)
    if isinstance(finished, UserError):
        raise finished
    return folder or Follower(path, finished)


def repeated(folder: RunFolder | Follower, result: RunResult, config: Config) -> RunResult:
    """The earlier result of a command that is given again, with what is counted if that is asked for now."""
    now = {"threads": threads(config), "processes": distributed.world().size}
    remarks = [f"it ran with {k}={result[k]}, here {v}" for k, v in now.items() if result.get(k, v) != v]
    remarks += [folder.remark] if folder.remark else []
    log.info(f"{folder.path}: already done (force=true to redo): {'; '.join([summary(result), *remarks])}")
    if config.energy or config.neurobench:
        if distributed.world().rank == 0:
            count_later(folder, result, config)
        result = distributed.broadcast(result)
    return result


def recorded(
    folder: RunFolder | Follower, config: Config, stop: signals.StopRequest, overrides: list[str]
) -> RunResult:
    """Everything that happens while the folder is held; the outcome is recorded in status.json whatever it is."""
    loggers, result = None, None
    try:
        check_settings(config)
        device = pick_device(config)
        folder.begin(overrides, str(device))
        if distributed.world().rank == 0:
            loggers = Loggers(config, folder.path, log.warning)
        result = fit(folder, config, device, loggers, stop)
        folder.finish(result)
        folder.status("done")
        log.info(f"{folder.path}: {summary(result)}")
        return distributed.broadcast(result)
    except Interrupted as interrupt:
        with contextlib.suppress(UserError):  # the checkpoint is written: a full disk must not hide the signal
            folder.status("interrupted", str(interrupt))
        raise
    except BaseException as raised:
        error = raised if isinstance(raised, TrainingError) else distributed.explain(in_one_sentence(raised))
        trace = None if isinstance(error, UserError) else traceback.format_exc()
        with contextlib.suppress(UserError):  # a full disk must not hide the error itself
            folder.status("failed", f"{type(error).__name__}: {error}", traceback=trace)
        if error is raised:
            raise
        raise error from raised
    finally:
        if loggers is not None:
            loggers.finish(result)


def built(
    folder: RunFolder | Follower, config: Config, device: torch.device, stop: signals.StopRequest
) -> tuple["Training", Data, tuple[Batches, Batches | None, Batches]]:
    """All that trains, the data, and this process's share of the training, validation and test part."""
    initial = checkpoint.find_weights(config.model.weights, config.data_dir) if config.model.weights else None
    seed_everything(config)
    world = distributed.world()
    with distributed.main_first():
        facts = SETS[config.dataset.name].of(config)
        config.dataset.found = facts.found if facts.own else None
        data = build_data(config)
    folder.configured()
    data_hashes = distributed.broadcast(fingerprint(config) if world.rank == 0 else None)
    shares = [part and part.shard(world.rank, world.size) for part in (data.train, data.val, data.test)]
    train_part, val_part, test_part = feed(shares, device, config.dataset.on_device, config.dataset.ahead)
    model = build_network(config, data.num_classes, data.input_shape)
    if initial:
        checkpoint.load_pretrained(model, initial, log.info)
    model = channels_last(model, device)
    for step in getattr(train_part, "transforms", ()):
        if isinstance(step, GuidedAugmentation):
            step.relevance = partial(relevance, model, parts=config.recipe.accumulate)
    if config.recipe.sync_bn and world.size > 1:
        synchronise(model)
    if config.compile:
        compile_network(model, device, config.compile)
    loss_fn = build_loss(config.loss.name, **options(config.loss, "name"))
    optimizer = build_optimizer(
        model, config.recipe, imp_lr=config.neuron.imp_lr, imp_weight_decay=config.neuron.imp_weight_decay
    )
    loss_fn.watch(model)
    steps = min(len(train_part), config.debug.max_steps or len(train_part))
    amp = Precision(config, device)
    code = code_version()
    ran_under = conditions(config, device, amp.name, model)
    state = Training(
        folder, config, model, loss_fn, optimizer, build_schedule(optimizer, config.recipe, steps), amp,
        averaged(model, config.recipe.ema_decay), device, stop, steps, data_hashes,
        ran_under | {"numbers": code["numbers"], "outside": code["outside"]},
    )  # fmt: skip
    return state, data, (train_part, val_part, test_part)


def fit(
    folder: RunFolder | Follower, config: Config, device: torch.device, loggers: Loggers | None,
    stop: signals.StopRequest,
) -> RunResult:  # fmt: skip
    """Build the parts, train epoch by epoch, and return the result."""
    state, data, (train_part, val_part, test_part) = built(folder, config, device, stop)
    model, loss_fn, amp, world = state.model, state.loss_fn, state.amp, distributed.world()
    data_hashes, code, ran_under = state.data_hashes, code_version(), state.conditions
    weights, imp = count_parameters(model)
    log.info(
        f"{config.name} seed {config.seed}: {data.split.n_train} train, {data.split.n_val} validation, {data.split.n_test} test "
        f"samples; {weights:,} weights + {imp:,} IMP; T={config.timesteps}; {device}, {amp.name}, "
        f"neurons by {ran_under['neuron_backend']}"
        f"{f', {world.size} processes' if world.size > 1 else ''}; {folder.path}"
    )
    history = state.resume()
    if loggers is not None:
        loggers.start(history)

    for epoch in range(state.epoch, config.recipe.epochs):
        started, seen = time.perf_counter(), state.sums["n"]
        train = state.train_epoch(epoch, train_part, history)
        trained = time.perf_counter() - started
        val = state.evaluate(val_part, "validation") if val_part else None
        test = state.evaluate(test_part, "test")
        samples = train["n"] - seen
        line = dict(
            epoch=epoch + 1, train_loss=train["loss"], train_acc=train["acc"],
            loss=test["loss"], acc=test["acc"], acc_step=test["acc_step"], acc_cum=test["acc_cum"],
            **({f"val_{k}": v for k, v in val.items() if k in ("loss", "acc", "acc_step", "acc_cum")} if val else {}),
            lr=train["lr"], samples_per_s=samples / trained if samples else None, seconds=time.perf_counter() - started,
            peak_memory_mb=peak_memory(device), firing_rates=test["firing_rates"],
        )  # fmt: skip
        history.append(line)
        folder.record(history)
        log.info(epoch_line(line, config.recipe.epochs))
        state.save_epoch(epoch, is_best=selection(history)[-1] == len(history) - 1)
        if loggers is not None:
            loggers.epoch(line)
    if config.recipe.epochs == state.started_at:
        # killed between the last checkpoint and the result: the weights are final, the outputs were lost
        test = evaluate(state.evaluated, test_part, loss_fn, amp, device, config)
    folder.predictions(**final_outputs(test))
    ran_under = conditions(config, device, amp.name, model)  # a backend that failed in between is not named
    result = build_result(config, data, weights, imp, history, ran_under, loss_fn.readout_name, test["n"])
    result.data, result.code, result.changed_on_resume = data_hashes, code, state.changed
    result.causal = not sees_future(model)
    if world.rank == 0:
        count_operations(folder, config, result, state.evaluated, data, device)
    return result


class Sums(TypedDict):
    """What an epoch has added up: loss times samples, right answers and samples of all processes; lr of the last step."""

    loss: float
    correct: int
    n: int
    lr: float


EMPTY: Sums = {"loss": 0.0, "correct": 0, "n": 0, "lr": 0.0}
Step = tuple[
    Tensor | int, Tensor | int, int
]  # loss times samples, right answers and samples of one step of this process


@dataclass
class Training:
    """What one optimiser step needs and a checkpoint holds."""

    folder: RunFolder | Follower
    config: Config
    model: nn.Module
    loss_fn: Loss
    optimizer: Optimizer
    schedule: LRScheduler
    amp: Precision
    ema: AveragedModel | None
    device: torch.device
    stop: signals.StopRequest
    steps: int  # in an epoch
    data_hashes: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net = distributed.wrap(self.model, self.device)  # what training calls: `model` itself with one process
        self.parts = parts_of_a_batch(self.config, distributed.world().size)
        self.epoch = self.step = self.started_at = 0
        self.sums: Sums = EMPTY.copy()
        self.saved = ""  # what the last checkpoint holds, in words
        self.changed: list[str] = []  # what was not the same before a stop and after it

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the average of the weights, where there is one."""
        return self.ema.module if self.ema else self.model

    # -- from checkpoint to checkpoint

    def resume(self) -> list[dict[str, Any]]:
        """Continue from the folder's checkpoint, if it has one; returns the lines of the epochs that it stands behind."""
        rank, size, _ = distributed.world()
        content, history = None, []
        if rank == 0 and isinstance(self.folder, RunFolder) and self.config.resume == "auto":
            content = checkpoint.resume(self.folder.path, to_dict(self.config), log.warning, self.data_hashes)
            history = self.folder.history() if content else []
        content, history = distributed.broadcast((content, history))
        if rank:  # weights, order and augmentation are everybody's; what the network draws (dropout) is a rank's own
            at = (content["epoch"], content["step"]) if content else ()
            seed_generators(derive_seed(self.config.seed, rank, *at))
        if content is None:
            return []
        try:
            checkpoint.load_model(self.model, content["model"], str(self.folder.path))
            load_optimizer(self.optimizer, content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.amp.scaler.load_state_dict(content["scaler"])
            if self.ema:
                self.ema.load_state_dict(content["ema"])
            rngs = [content["rng"], *content.get("rng_others", [])]
            if rank == 0 or size == len(rngs):  # with another number of processes the new ones draw anew
                checkpoint.set_rng_state(rngs[rank])
            self.epoch, self.step, self.sums = content["epoch"], content["step"], EMPTY | content["sums"]
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise checkpoint.CheckpointError(
                f"{self.folder.path / checkpoint.LAST} does not fit this run, or was changed ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:120]}); start again with resume=never"
            ) from error
        self.started_at = self.epoch
        self.saved = f"epoch {self.epoch}, step {self.step}"
        before = content.get("conditions", {})
        self.changed = content.get("changed", []) + [
            f"{k}: {before[k]} -> {v} from {self.saved}" for k, v in self.conditions.items() if before.get(k, v) != v
        ]
        history = [line for line in history if line["epoch"] <= self.epoch]
        if len(history) != self.epoch:
            raise UserError(
                f"{self.folder.path / 'metrics.jsonl'} has {len(history)} of the {self.epoch} epochs that the checkpoint "
                "stands behind: it was changed or removed; put it back, or start again with resume=never"
            )
        log.info(f"resuming at epoch {self.epoch + 1}, step {self.step}")
        if self.changed:
            log.warning(
                f"warning: not all is as it was before the stop ({'; '.join(self.changed)}); result.json says so"
            )
        return history

    def save(self, epoch: int, step: int) -> None:
        """Write the checkpoint that a resume starts from."""
        rngs = distributed.gather(checkpoint.rng_state())
        if rngs is not None:  # the first process writes
            content = dict(
                epoch=epoch, step=step, sums=self.sums.copy(), config=to_dict(self.config),
                model=self.model.state_dict(), optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(), scaler=self.amp.scaler.state_dict(),
                ema=self.ema.state_dict() if self.ema else None, rng=rngs[0], rng_others=rngs[1:],
                data=self.data_hashes, conditions=self.conditions, changed=self.changed,
            )  # fmt: skip
            checkpoint.save(self.folder.path, content)
        self.saved = f"epoch {epoch}, step {step}"

    def save_epoch(self, epoch: int, is_best: bool) -> None:
        """End of an epoch: the best weights apart, then the checkpoint."""
        self.epoch, self.step, self.sums = epoch + 1, 0, EMPTY.copy()
        if is_best and distributed.world().rank == 0:
            best = dict(epoch=self.epoch, config=to_dict(self.config), model=self.evaluated.state_dict())
            checkpoint.save(self.folder.path, best, name=checkpoint.BEST)
        self.save(self.epoch, 0)

    def kept(self) -> str:
        """What a run that breaks off now leaves to go on from."""
        if not self.saved:
            return "no checkpoint was written yet"
        return f"the last good checkpoint is {self.folder.path / checkpoint.LAST} ({self.saved})"

    def asked_to_stop(self) -> int:
        """The signal that came in on any process, the same answer on all; 0 for none."""
        return distributed.largest(self.stop.signum or 0)

    def leave(self, signum: int) -> None:
        """Save and raise Interrupted."""
        self.save(self.epoch, self.step)
        raise Interrupted(signum, f"stopped at epoch {self.epoch + 1}, step {self.step}; the same command continues")

    def check_stop(self) -> None:
        """Save and leave when a signal came in; called after each evaluation batch."""
        if signum := self.asked_to_stop():
            self.leave(signum)

    # -- an epoch

    def train_epoch(self, epoch: int, batches: Batches, history: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """One epoch of optimiser steps from `self.step` on; returns mean loss, readout accuracy, n and the last lr."""
        self.epoch = epoch
        begin_epoch(epoch, self.config.recipe.epochs, self.model, self.ema, self.loss_fn)
        self.model.train()
        every = 1 if self.device.type == "cpu" else 50  # on a GPU, reading the loss makes the host wait
        pending: list[Step] = []
        epochs = self.config.recipe.epochs
        beside = pace(epoch, epochs, self.step, self.steps, self.config.recipe.batch_size, history)
        bar: Any = contextlib.nullcontext(lambda done: None)
        if distributed.world().rank == 0:
            bar = progress(f"epoch {epoch + 1}/{epochs}", self.steps, beside=beside)
        with bar as advance, profiler(self.config, self.folder.path) as profile:
            for x, target in batches.epoch(epoch, start=self.step):
                if self.step >= self.steps:
                    break
                self.sums["lr"] = self.optimizer.param_groups[0]["lr"]
                x, target = sent(x, self.device), sent(target, self.device)
                if self.step == 0:
                    self.adapt_surrogates(x, target)
                pending.append(self.train_step(x, target, batches.all_samples(self.step)))
                self.step += 1
                if len(pending) >= every or self.step == self.steps:
                    self.tally(pending)
                    pending = []
                if signum := self.asked_to_stop():
                    self.tally(pending)
                    self.leave(signum)
                if profile is not None:
                    profile.step()
                advance(self.step)
        n = max(1, self.sums["n"])
        return dict(loss=self.sums["loss"] / n, acc=self.sums["correct"] / n, n=self.sums["n"], lr=self.sums["lr"])

    def adapt_surrogates(self, x: Tensor, target: Tensor) -> None:
        """Let surrogates that adapt do so on the first batch of an epoch: rank 0's choice is everybody's, as buffers are."""
        spikes: dict[str, list[Spike]] = {}
        for module in self.model.modules():
            if isinstance(module, Spike) and SURROGATES[module.surrogate].adapt:
                spikes.setdefault(module.surrogate, []).append(module)
        loss = lambda: self.loss_fn(self.model(x, last_step=self.loss_fn.last_step).float(), target)  # noqa: E731
        for name, those in spikes.items():
            with torch.random.fork_rng(), same_statistics(self.model):
                SURROGATES[name].adapt(self.model, those, loss)

    def train_step(self, x: Tensor, target: Tensor, n_all: int | None = None) -> Step:
        """Forward, backward and one optimiser step; returns the sums without waiting for the device.

        n_all: samples of this step on all processes (default: of x). The step is theirs together, the sums are of x.
        """
        recipe, scaler = self.config.recipe, self.amp.scaler
        n, size = len(target), distributed.world().size
        n_all = n_all or n
        total: Tensor | int = 0
        correct: Tensor | int = 0
        parts = min(self.parts, n_all // size)  # as many on every process
        for i, (part_x, part_target) in enumerate(
            zip(x.tensor_split(parts, dim=-4), target.tensor_split(parts), strict=True)
        ):
            with contextlib.nullcontext() if i == parts - 1 else distributed.without_sync(self.net):
                with self.amp.autocast():
                    logits = self.net(part_x, last_step=self.loss_fn.last_step).float()
                # gradients are averaged over the processes, so this weighs every sample by 1 / n_all
                loss = self.loss_fn(logits, part_target) * (len(part_target) * size / n_all)
                scaler.scale(loss).backward()
            total = total + loss.detach() * (n_all / size)
            correct = correct + count_correct(self.loss_fn.readout(logits.detach()), part_target)
        if recipe.clip_norm > 0:
            scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema:
            self.ema.update_parameters(self.model)
        return total, correct, n

    def tally(self, pending: list[Step]) -> None:
        """Add finished steps to the epoch's sums; raises TrainingError at the first loss that is not finite."""
        sums = distributed.sums([float(value) for step in pending for value in step])
        for i, (loss, correct, n) in enumerate(zip(sums[::3], sums[1::3], sums[2::3], strict=True)):
            if not math.isfinite(loss):
                step = self.step - len(pending) + i + 1
                raise TrainingError(
                    f"the loss is {loss} at epoch {self.epoch + 1}, step {step} of {self.steps}; {self.kept()}; "
                    "try a smaller recipe.lr, recipe.clip_norm=1, or recipe.amp=off"
                )
            self.sums["loss"] += loss
            self.sums["correct"] += int(correct)
            self.sums["n"] += int(n)

    def evaluate(self, batches: Batches, part: str) -> "Outcome":
        """`evaluate`, that a signal can stop. Raises TrainingError where the loss is not finite."""
        outcome = evaluate(
            self.evaluated, batches, self.loss_fn, self.amp, self.device, self.config,
            stop=self.check_stop, rates=part == "test",
        )  # fmt: skip
        if not math.isfinite(outcome["loss"]):
            raise TrainingError(
                f"the {part} loss is {outcome['loss']} after epoch {self.epoch + 1}; {self.kept()}; try a smaller recipe.lr, "
                "or recipe.clip_norm=1"
            )
        return outcome


class Outcome(TypedDict):
    """An evaluation: numbers of all processes, and of this one's share logits [T, N, K] and labels [N]."""

    loss: float
    acc: float  # at the loss's readout
    acc_step: list[float]  # [T]
    acc_cum: list[float]  # [T]
    n: int
    correct: int
    firing_rates: dict[str, float]
    logits: Tensor
    labels: Tensor


def evaluate(
    model: nn.Module, batches: Batches, loss_fn: Loss, amp: Precision, device: torch.device, config: Config,
    stop: Callable[[], None] = lambda: None, rates: bool = False,
) -> Outcome:  # fmt: skip
    """Loss, readout accuracy and accuracy at each time step of one part of a data set, in full precision.

    With several processes each sees its share, every sample once, and all get the same numbers.
    """
    distributed.share_buffers(model)
    model.eval()
    step: Any = 0
    cumulative: Any = 0
    n = 0
    losses: list[tuple[Any, int]] = []  # read at the end, as all else: nobody waits for a GPU in between
    right: list[Any] = []
    kept, labels = [], []
    count = distributed.largest(len(batches))  # a process may have one batch less than another
    own = batches.epoch(0)
    meter: contextlib.AbstractContextManager[dict[str, float]] = contextlib.nullcontext({})
    with torch.inference_mode(), firing_rates(model) if rates else meter as measured:
        for _ in range(min(count, config.debug.max_eval_batches or count)):
            for x, target in itertools.islice(own, 1):
                labels.append(target.cpu())
                x, target = sent(x, device), sent(target, device)
                logits = model(x).float()
                kept.append(logits.to("cpu", non_blocking=True))
                losses.append((loss_fn(logits, target), len(target)))
                step = step + correct_per_step(logits, target)
                cumulative = cumulative + correct_cumulative(logits, target)
                right.append(count_correct(loss_fn.readout(logits), target))
                n += len(target)
            stop()
    loss, correct = 0.0, sum(map(int, right))  # from here on all is done that was told: `kept` is there too
    for value, size in losses:
        loss += float(value) * size
    rates_seen = {k: float(v) for k, v in measured.items()}
    if distributed.world().size > 1:
        timesteps, own_n = len(step), n
        loss, *counts = distributed.sums([loss, correct, n, *step.tolist(), *cumulative.tolist()])
        correct, n, *steps = map(int, counts)
        step, cumulative = steps[:timesteps], steps[timesteps:]
        means = distributed.sums([rate * own_n / n for rate in rates_seen.values()])
        rates_seen = dict(zip(rates_seen, means, strict=True))
    return Outcome(
        loss=loss / n, acc=correct / n, acc_step=[int(c) / n for c in step], acc_cum=[int(c) / n for c in cumulative],
        n=n, correct=correct, logits=torch.cat(kept, dim=1), labels=torch.cat(labels), firing_rates=rates_seen,
    )  # fmt: skip


def begin_epoch(epoch: int, epochs: int, *parts: Any) -> None:
    """Tell every loss and module that has a schedule over epochs where training is, in a resumed epoch too."""
    for part in parts:
        for thing in part.modules() if hasattr(part, "modules") else (part,):
            if hasattr(thing, "begin_epoch"):
                thing.begin_epoch(epoch, epochs)


def final_outputs(test: Outcome) -> dict[str, np.ndarray]:
    """label [N] and logits [N, T, K] (float32, float16 above 256 MB) of the whole test set; empty but on rank 0."""
    shares = distributed.gather((test["logits"].transpose(0, 1).contiguous().numpy(), test["labels"].numpy()))
    if shares is None:
        return {}
    logits, label = (np.empty((test["n"], *share.shape[1:]), share.dtype) for share in shares[0])
    for rank, share in enumerate(shares):
        logits[rank :: len(shares)], label[rank :: len(shares)] = share
    return dict(label=label, logits=logits.astype(np.float16) if logits.nbytes > 256 * 2**20 else logits)


# ---------------------------------------------------------------- parts


def options(part: Any, *without: str) -> dict[str, Any]:
    """The keys of a config part that are set (not null), as keyword arguments; settings of its choice's own among them."""
    values = {k: v for k, v in vars(part).items() if k != "own"} | part.own
    return {k: v for k, v in values.items() if v is not None and k not in without}


def check_settings(config: Config) -> None:
    """Raise UserError for what the classes of neuron and loss refuse, before any data is read."""
    loss, augment = build_loss(config.loss.name, **options(config.loss, "name")), config.augment
    for cls in turned_on(augment):
        if cls.soft_targets and not loss.soft_targets:
            key, value = next((k, v) for k, v in values_of(cls, augment).items() if k in cls.switches and v)
            raise ConfigError(
                f"augment.{key}={value} makes soft targets and loss={config.loss.name} needs labels; set it to 0"
            )
    with torch.random.fork_rng(devices=[]):  # it draws a number
        neuron = build_neuron(
            state_shape=(1,),
            timesteps=config.timesteps,
            **options(config.neuron, "imp_lr", "imp_weight_decay", "initial_layers", "backend"),
        )
    loss.watch(neuron)
    if config.compile and loss.reads_potentials:
        raise ConfigError(
            f"compile={str(config.compile).lower()} does not show the potentials that loss={config.loss.name} reads; use compile=false"
        )
    if guided := turned_on(augment, GuidedAugmentation):
        shape, classes = frame_shape(config), SETS[config.dataset.name].of(config).num_classes
        with torch.random.fork_rng(devices=[]):
            network = build_network(config, classes, shape)
            check_relevance(network, (config.timesteps, 2, *shape), augment.rpg_relevance, guided[0].name)


def build_network(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """The network of a configuration, with its initial weights."""
    return build_model(
        config.model.name, num_classes=num_classes, input_shape=input_shape, timesteps=config.timesteps,
        neuron=options(config.neuron, "imp_lr", "imp_weight_decay"), kernels=config.kernels,
        **options(config.model, "name", "weights"),
    )  # fmt: skip


class Averaged(AveragedModel):
    """torch's moving average of weights and buffers, less its copy of a counter to the GPU in each step, for which it waits."""

    def __init__(self, model: nn.Module, decay: float):
        average = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=average, use_buffers=True)
        self.average = average

    def update_parameters(self, model: nn.Module) -> None:
        if self.n_averaged == 0:  # it lies on the CPU
            return super().update_parameters(model)
        values = [(*m.parameters(), *m.buffers()) for m in (self.module, model)]
        pairs = [(own.detach(), new.detach()) for own, new in zip(*values, strict=True)]
        for kind in {own.dtype for own, _ in pairs}:
            own, new = zip(*(pair for pair in pairs if pair[0].dtype == kind), strict=True)
            self.average(own, new, self.n_averaged)
        self.n_averaged += 1


def averaged(model: nn.Module, decay: float) -> Averaged | None:
    """The exponential moving average of the network's weights and buffers; None without decay."""
    return Averaged(model, decay) if decay else None


def count_operations(
    folder: RunFolder | Follower, config: Config, result: RunResult, model: nn.Module, data: Data, device: torch.device
) -> None:
    """At the end of a run: its energy into the result, its neurobench.json, where asked for or, for energy, nearly free."""
    if config.energy or (config.energy is None and counts_for_little(config, data)):
        result.energy = energy(model, data, device)
    if config.neurobench:
        write_neurobench(folder.path, config, model, data, device)


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


def count_later(folder: RunFolder | Follower, result: RunResult, config: Config) -> None:
    """Add to a finished run what is asked for now and was not counted then, from the weights that it ended with."""
    there = {"energy": result.energy is not None, "neurobench": (folder.path / NEUROBENCH).exists()}
    wanted = [key for key, done in there.items() if getattr(config, key) and not done]
    if not wanted:
        return
    path, device = folder.path, pick_device(config)
    try:
        content = checkpoint.resume(path, to_dict(config), log.warning)
    except UserError as error:
        raise UserError(f"{wanted[0]}=true needs the run's weights: {error}; or redo the run with force=true") from None
    if content is None:
        raise UserError(f"{wanted[0]}=true needs {path / checkpoint.LAST}, which is gone; redo the run with force=true")
    data = build_data(config)
    model = build_network(config, data.num_classes, data.input_shape).to(device)
    ema = averaged(model, config.recipe.ema_decay)
    (ema or model).load_state_dict(content["ema" if ema else "model"])
    model = ema.module if ema else model
    if "energy" in wanted:
        result.energy = energy(model, data, device)
        folder.finish(result)
        log.info(f"{path}: energy added to result.json")
    if "neurobench" in wanted:
        write_neurobench(path, config, model, data, device)
        log.info(f"{path}: {NEUROBENCH} written")


def energy(model: nn.Module, data: Data, device: torch.device) -> dict[str, Any]:
    """The energy report of the first test batch."""
    from snn_repro.energy import energy_report  # spikingjelly's counters

    images, _ = next(iter(data.test.epoch(0)))
    return energy_report(model, images.to(device))


def write_neurobench(path: Path, config: Config, model: nn.Module, data: Data, device: torch.device) -> dict[str, Any]:
    """NeuroBench's metrics of the whole test part, into the run's folder; returns them."""
    from snn_repro.neurobench import neurobench

    loss = build_loss(config.loss.name, **options(config.loss, "name"))
    content = neurobench(model, data.test.epoch(0), loss.readout, device)
    write_json(path / NEUROBENCH, content)
    return content
