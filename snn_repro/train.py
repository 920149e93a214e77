"""Train and evaluate one network, from its configuration to result.json."""

import contextlib
import importlib
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
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from snn_repro import distributed, runtime
from snn_repro.build import Averaged, adapt_surrogates, begin_epoch, build_network, check_settings, loss_of
from snn_repro.config import Config, ConfigError, checked, to_dict
from snn_repro.console import audible, pace, progress
from snn_repro.data import Batches, Data, build_data
from snn_repro.data.augment import GuidedAugmentation
from snn_repro.data.augment.augmentation import sent
from snn_repro.data.augment.rpg import relevance
from snn_repro.data.batches import derive_seed, feed
from snn_repro.errors import Interrupted, StopRequest, TrainingError, UserError, in_one_sentence, stop_requests
from snn_repro.losses import Loss
from snn_repro.losses.distill import Taught
from snn_repro.metrics import correct_cumulative, correct_per_step, count_correct, sees_future
from snn_repro.models import count_parameters
from snn_repro.neurons import firing_rates
from snn_repro.optim import build_optimizer, build_schedule
from snn_repro.provenance import code_version
from snn_repro.registry import SETS
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import Follower, RunFolder, fingerprint, open_folder
from snn_repro.runs.loggers import Loggers
from snn_repro.runs.result import RunResult, build_result, epoch_line, selection, summary
from snn_repro.runtime import Precision, parts_of_a_batch, pick_device
from snn_repro.trained.load import count_operations, load_teacher, repeated

log = logging.getLogger("snn_repro")
_running = threading.Lock()


@audible(log)
def run(config: Config, run_dir: str | None = None, overrides: list[str] | None = None) -> RunResult:
    """Train and evaluate one network; returns a RunResult, the content of result.json.

    The folder (`run_dir`, else `config.run_dir`) decides: a finished run of the same configuration is returned, an
    unfinished one is resumed, another configuration is an error. Raises UserError, TrainingError when the loss is not
    finite, Interrupted after a signal.
    """
    config = checked(to_dict(config))
    config.dataset.found = None  # may come from an earlier run
    config.data_dir, config.cache_dir = (p and os.path.abspath(p) for p in (config.data_dir, config.cache_dir))
    if config.dry_run:
        raise ConfigError("dry_run=true does not train: use snn_repro.dry_run.dry_run(config), or leave it out")
    path = Path(run_dir or config.run_dir or Path("runs", config.name, f"seed{config.seed}"))
    world = distributed.start(config.device)
    parts_of_a_batch(config, world.size)
    if world.rank:
        log.setLevel(logging.ERROR)  # only the first process logs
    if not _running.acquire(blocking=False):
        raise UserError("another thread of this process is training; start one run after the other")
    try:
        with contextlib.closing(open_folder(path, config)) as folder:
            if folder.finished is not None:
                return repeated(folder, folder.finished, config)
            with stop_requests(alone=world.size == 1) as stop:
                return recorded(folder, config, stop, overrides or [])
    finally:
        _running.release()


def recorded(folder: RunFolder | Follower, config: Config, stop: StopRequest, overrides: list[str]) -> RunResult:
    """Run in the open folder and record the outcome, success or failure, in status.json."""
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
        with contextlib.suppress(UserError):  # a full disk must not hide the signal
            folder.status("interrupted", str(interrupt))
        raise
    except BaseException as raised:
        error = raised if isinstance(raised, TrainingError) else distributed.explain(in_one_sentence(raised))
        trace = None if isinstance(error, UserError) else traceback.format_exc()
        with contextlib.suppress(UserError):  # a full disk must not hide the error itself
            folder.status("failed", f"{type(error).__name__}: {error}", traceback=trace)
        raise error from (None if error is raised else raised)
    finally:
        if loggers is not None:
            loggers.finish(result)


def fit(
    folder: RunFolder | Follower, config: Config, device: torch.device, loggers: Loggers | None, stop: StopRequest
) -> RunResult:
    """Build the parts, train epoch by epoch, and return the result."""
    state, data, (train_part, val_part, test_part) = built(folder, config, device, stop)
    world, split, (weights, imp) = distributed.world(), data.split, count_parameters(state.model)
    r, lr = config.recipe, config.recipe.scaled().lr
    log.info(
        f"{config.name} seed {config.seed}: {split.n_train} train, {split.n_val} validation, {split.n_test} test samples; "
        f"{weights:,} weights + {imp:,} IMP; T={config.timesteps}; {device}, {state.amp.name}, "
        f"neurons by {state.conditions['neuron_backend']}"
        f"{f', {world.size} processes' if world.size > 1 else ''}"
        f"{f'; lr {lr:g} = {r.lr:g} x {r.batch_size} / {r.lr_per}' if r.lr_per else ''}; {folder.path}"
    )
    history = state.resume()
    if loggers is not None:
        loggers.start(history)
    test = None
    for epoch in range(state.epoch, config.recipe.epochs):
        started, seen = time.perf_counter(), state.sums["n"]
        train = state.train_epoch(epoch, train_part, history)
        trained = time.perf_counter() - started
        val = state.evaluate(val_part, "validation") if val_part else None
        test = state.evaluate(test_part, "test")
        line = dict(
            epoch=epoch + 1, train_loss=train["loss"], train_acc=train["acc"],
            loss=test["loss"], acc=test["acc"], acc_step=test["acc_step"], acc_cum=test["acc_cum"],
            **({f"val_{k}": v for k, v in val.items() if k in ("loss", "acc", "acc_step", "acc_cum")} if val else {}),
            lr=train["lr"], samples_per_s=(train["n"] - seen) / trained or None, seconds=time.perf_counter() - started,
            peak_memory_mb=runtime.peak_memory(device), firing_rates=test["firing_rates"],
        )  # fmt: skip
        history.append(line)
        folder.record(history)
        shown = partial(epoch_line, line, config.recipe.epochs)
        log.info(shown(), extra={"fit": shown})
        state.save_epoch(epoch, is_best=selection(history)[-1] == len(history) - 1)
        if loggers is not None:
            loggers.epoch(line)
    if test is None:  # killed between the last checkpoint and the result: the weights are final, the outputs were lost
        test = evaluate(state.evaluated, test_part, state.loss_fn, state.amp, device, config)
    folder.predictions(distributed.gather((test["logits"], test["labels"])))
    # the conditions at the end: a backend that failed earlier is not in use
    ran_under = runtime.conditions(config, device, state.amp.name, state.model)
    result = build_result(config, data, weights, imp, history, ran_under, state.loss_fn.readout_name, test["n"])
    result.data, result.code, result.changed_on_resume = state.data_hashes, code_version(), state.changed
    result.causal = not sees_future(state.model)
    if world.rank == 0:
        count_operations(folder.path, config, result, state.evaluated, data)
    return result


def built(
    folder: RunFolder | Follower, config: Config, device: torch.device, stop: StopRequest
) -> tuple["Training", Data, tuple[Batches, Batches | None, Batches]]:
    """The training state, the data, and this process's share of train, validation and test."""
    initial = checkpoint.find_weights(config.model.weights, config.data_dir) if config.model.weights else None
    runtime.seed_everything(config)
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
    model = runtime.placed(model, config, device)
    for step in getattr(train_part, "transforms", ()):
        if isinstance(step, GuidedAugmentation):
            step.relevance = partial(relevance, model, parts=config.recipe.accumulate)
    loss_fn = loss_of(config)
    if isinstance(loss_fn, Taught):
        loss_fn.teach = load_teacher(config, data, device)
    imp = dict(imp_lr=config.neuron.imp_lr, imp_weight_decay=config.neuron.imp_weight_decay)
    optimizer = build_optimizer(model, config.recipe, **imp)
    loss_fn.watch(model)
    steps = min(len(train_part), config.debug.max_steps or len(train_part))
    amp, code = Precision(config, device), code_version()
    samples = steps * config.recipe.batch_size * config.recipe.epochs
    if compiled := runtime.compile_if_repaid(model, config.timesteps, samples):
        log.info(compiled)
    state = Training(
        folder, config, model, loss_fn, optimizer, build_schedule(optimizer, config.recipe, steps), amp,
        Averaged(model, config.recipe.ema_decay) if config.recipe.ema_decay else None, device, stop, steps, data_hashes,
        runtime.conditions(config, device, amp.name, model) | {k: code[k] for k in ("numbers", "outside")},
    )  # fmt: skip
    return state, data, (train_part, val_part, test_part)


# Sums of an epoch over all processes: loss times samples, correct predictions, samples; lr of the last step.
EMPTY: dict[str, Any] = {"loss": 0.0, "correct": 0, "n": 0, "lr": 0.0}
Step = tuple[Any, Any, int]  # this process's loss times samples, correct predictions and samples of one step


@dataclass
class Training:
    """State of training: all that an optimiser step needs and a checkpoint stores."""

    folder: RunFolder | Follower
    config: Config
    model: nn.Module
    loss_fn: Loss
    optimizer: Optimizer
    schedule: LRScheduler
    amp: Precision
    ema: Averaged | None
    device: torch.device
    stop: StopRequest
    steps_per_epoch: int
    data_hashes: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.net = distributed.wrap(self.model, self.device)  # called in training; `model` itself with one process
        self.parts = parts_of_a_batch(self.config, distributed.world().size)
        self.epoch = self.step = 0
        self.sums = EMPTY.copy()
        parts: Any = (self.model, self.optimizer, self.schedule, self.amp.scaler, self.ema)
        self.stateful = dict(zip(checkpoint.PARTS, parts, strict=True))
        self.saved = ""  # epoch and step of the last checkpoint
        self.changed: list[str] = []  # conditions that changed when the run was resumed

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: the weight average if there is one."""
        return self.ema.module if self.ema else self.model

    def train_epoch(self, epoch: int, batches: Batches, history: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Train the rest of an epoch from `self.step`; returns mean loss, accuracy, n, lr."""
        self.epoch, epochs = epoch, self.config.recipe.epochs
        begin_epoch(epoch, epochs, self.model, self.ema, self.loss_fn)
        self.model.train()
        every = 1 if self.device.type == "cpu" else 50  # reading the loss synchronises with the GPU
        pending: list[Step] = []
        beside = pace(epoch, epochs, self.step, self.steps_per_epoch, self.config.recipe.batch_size, history)
        bar = progress(f"epoch {epoch + 1}/{epochs}", self.steps_per_epoch, beside=beside)
        with bar as advance:
            for x, target in itertools.islice(batches.epoch(epoch, start=self.step), self.steps_per_epoch - self.step):
                self.sums["lr"] = self.optimizer.param_groups[0]["lr"]
                x, target = sent(x, self.device), sent(target, self.device)
                if self.step == 0:
                    adapt_surrogates(self.model, self.loss_fn, x, target)
                pending.append(self.train_step(x, target, batches.all_samples(self.step)))
                self.step += 1
                if len(pending) >= every or self.step == self.steps_per_epoch:
                    self.tally(pending)
                    pending = []
                self.stop_if_requested(pending)
                advance(self.step)
        n = max(1, self.sums["n"])
        return dict(loss=self.sums["loss"] / n, acc=self.sums["correct"] / n, n=self.sums["n"], lr=self.sums["lr"])

    def train_step(self, x: Tensor, target: Tensor, n_all: int | None = None) -> Step:
        """One optimiser step; returns this process's sums without synchronising.

        x: frames [T, B, C, H, W] or images [B, C, H, W]. n_all: samples of this step on all processes (default: of x).
        """
        recipe, scaler = self.config.recipe, self.amp.scaler
        n, size = len(target), distributed.world().size
        n_all = n_all or n
        total: Any = 0
        correct: Any = 0
        parts = min(self.parts, n_all // size)  # the same number on every process
        split = zip(x.tensor_split(parts, dim=-4), target.tensor_split(parts), strict=True)
        for i, (part_x, part_target) in enumerate(split):
            last = i == parts - 1 or not hasattr(self.net, "no_sync")  # gradients are synchronised with the last part
            with contextlib.nullcontext() if last else self.net.no_sync():
                with self.amp.autocast():
                    self.loss_fn.begin_batch(part_x)
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
        """Add finished steps to the epoch's sums; raises TrainingError for a non-finite loss."""
        sums = distributed.sums([float(value) for step in pending for value in step])
        for i, (loss, correct, n) in enumerate(zip(sums[::3], sums[1::3], sums[2::3], strict=True)):
            if not math.isfinite(loss):
                step = self.step - len(pending) + i + 1
                self.diverged(f"the loss is {loss} at epoch {self.epoch + 1}, step {step} of {self.steps_per_epoch}")
            self.sums["loss"] += loss
            self.sums["correct"] += int(correct)
            self.sums["n"] += int(n)

    def diverged(self, what: str) -> None:
        """Raise TrainingError that names the checkpoint to resume from."""
        last = self.folder.path / checkpoint.LAST
        state = f"the last good checkpoint is {last} ({self.saved})" if self.saved else "no checkpoint was written yet"
        raise TrainingError(f"{what}; {state}; try a smaller recipe.lr, recipe.clip_norm=1, or recipe.amp=off")

    def evaluate(self, batches: Batches, part: str) -> dict[str, Any]:
        """Evaluate one part, interruptible; raises TrainingError for a loss that is not finite."""
        parts = self.loss_fn, self.amp, self.device, self.config
        outcome = evaluate(self.evaluated, batches, *parts, stop=self.stop_if_requested, rates=part == "test")
        if not math.isfinite(outcome["loss"]):
            self.diverged(f"the {part} loss is {outcome['loss']} after epoch {self.epoch + 1}")
        return outcome

    def resume(self) -> list[dict[str, Any]]:
        """Resume from the folder's checkpoint, if any; returns the metrics of the finished epochs."""
        rank, size, _ = distributed.world()
        content, history = None, []
        if rank == 0 and isinstance(self.folder, RunFolder) and self.config.resume == "auto":
            content = checkpoint.resume(self.folder.path, self.config, log.warning, self.data_hashes)
            history = self.folder.history(content["epoch"]) if content else []
        content, history = distributed.broadcast((content, history))
        if rank:  # dropout and other draws of the network differ by rank; data order and augmentation do not
            at = (content["epoch"], content["step"]) if content else ()
            runtime.seed_generators(derive_seed(self.config.seed, rank, *at))
        if content is None:
            return []
        last = self.folder.path / checkpoint.LAST
        self.epoch, self.step, sums = checkpoint.restore(self.stateful, content, last, rank, size)
        self.sums = EMPTY | sums
        self.saved = f"epoch {self.epoch}, step {self.step}"
        before = content.get("conditions", {}) | {"recipe.epochs": content["config"]["recipe"]["epochs"]}
        self.changed = content.get("changed", []) + [
            f"{k}: {before[k]} -> {v} from {self.saved}"
            for k, v in [*self.conditions.items(), ("recipe.epochs", self.config.recipe.epochs)]
            if before.get(k, v) != v
        ]
        log.info(f"resuming at epoch {self.epoch + 1}, step {self.step}")
        if self.changed:
            changed = "; ".join(self.changed)
            log.warning(f"warning: conditions changed since the run was stopped ({changed}); result.json records them")
        return history

    def save(self, epoch: int, step: int) -> None:
        """Write the checkpoint to resume from."""
        if (rngs := distributed.gather(checkpoint.rng_state())) is not None:  # the first process writes
            content = dict(
                epoch=epoch, step=step, sums=self.sums.copy(), config=to_dict(self.config),
                **{name: part.state_dict() if part else None for name, part in self.stateful.items()},
                rng=rngs[0], rng_others=rngs[1:], data=self.data_hashes, conditions=self.conditions, changed=self.changed,
            )  # fmt: skip
            checkpoint.save(self.folder.path, content)
        self.saved = f"epoch {epoch}, step {step}"

    def save_epoch(self, epoch: int, is_best: bool) -> None:
        """Write the best weights (in the best epoch), then the checkpoint."""
        self.epoch, self.step, self.sums = epoch + 1, 0, EMPTY.copy()
        if is_best and distributed.world().rank == 0:
            best = dict(epoch=self.epoch, config=to_dict(self.config), model=self.evaluated.state_dict())
            checkpoint.save(self.folder.path, best, name=checkpoint.BEST)
        self.save(self.epoch, 0)

    def stop_if_requested(self, pending: Sequence[Step] = ()) -> None:
        """After a signal to any process, save and raise Interrupted; called after every step."""
        if signum := distributed.largest(self.stop.signum or 0):
            self.tally(list(pending))
            self.save(self.epoch, self.step)
            where = f"stopped at epoch {self.epoch + 1}, step {self.step}"
            raise Interrupted(signum, f"{where}; the same command continues")


def evaluate(
    model: nn.Module, batches: Batches, loss_fn: Loss, amp: Precision, device: torch.device, config: Config,
    stop: Callable[[], None] = lambda: None, rates: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate one part of a data set in float32: loss, accuracies, logits, firing rates.

    Accuracies: at the readout, of each step, of the mean up to each step. Each process evaluates its share and all get
    the same numbers; `logits` [T, N, K] and `labels` [N] are of its own share.
    """
    distributed.share_buffers(model)
    model.eval()
    # Read at the end, so that the host does not wait for a GPU in between. counts: correct at readout, by step, up to step
    counts: Any = 0
    losses: list[tuple[Any, int]] = []
    n, outputs, labels = 0, [], []
    batch_count = distributed.largest(len(batches))  # processes may differ by one batch
    own = batches.epoch(0)
    meter: Any = firing_rates(model) if rates else contextlib.nullcontext({})
    with torch.inference_mode(), meter as measured:
        for _ in range(min(batch_count, config.debug.max_eval_batches or batch_count)):
            for x, target in itertools.islice(own, 1):
                labels.append(target.cpu())
                x, target = sent(x, device), sent(target, device)
                logits = model(x).float()
                outputs.append(logits.to("cpu", non_blocking=True))
                losses.append((loss_fn(logits, target), len(target)))
                right = count_correct(loss_fn.readout(logits), target)[None]
                counts += torch.cat([right, correct_per_step(logits, target), correct_cumulative(logits, target)])
                n += len(target)
            stop()
    loss = 0.0
    for value, size in losses:  # synchronised: async copies have finished
        loss += float(value) * size
    loss, total, correct, *steps = distributed.sums([loss, n, *counts.tolist()])
    acc = [int(c) / int(total) for c in steps]
    means = distributed.sums([float(rate) * (n / total) for rate in measured.values()])
    return dict(
        loss=loss / int(total), acc=int(correct) / int(total), acc_step=acc[: len(acc) // 2], acc_cum=acc[len(acc) // 2 :],
        n=int(total), correct=int(correct), logits=torch.cat(outputs, dim=1), labels=torch.cat(labels),
        firing_rates=dict(zip(measured, means, strict=True)),
    )  # fmt: skip


if __name__ == "__main__":
    importlib.import_module("snn_repro.cli").main()
