"""The entry point, read from top to bottom: compose, check, build, loop, evaluate, record."""

import contextlib
import functools
import gc
import itertools
import logging
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

from snn_repro import console, distributed
from snn_repro.config import (
    CONF_DIR,
    Config,
    ConfigError,
    check_machine,
    checked,
    choices,
    compose_checked,
    config_hash,
    explain,
    help_text,
    multirun_config,
    readable,
    refuse_misplaced,
    search_outside,
    settled,
    to_dict,
)
from snn_repro.errors import Interrupted, UserError

log = logging.getLogger("snn_repro")

# torch, the data sets and the models are imported inside the functions that need them: --help and a typo must answer at once.


class TrainingError(UserError):
    """Training cannot go on: the loss is not finite."""


# ---------------------------------------------------------------- one run


def _audible(function):
    """Print the log lines of a run where nobody has configured logging, as in a notebook."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        if log.hasHandlers():
            return function(*args, **kwargs)
        handler, level = logging.StreamHandler(sys.stdout), log.level
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(level or logging.INFO)
        try:
            return function(*args, **kwargs)
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    return wrapper


@_audible
def run(config: Config, run_dir: str | None = None, overrides: list[str] | None = None):
    """Train and evaluate one network; returns a RunResult, the content of result.json.

    The folder (`run_dir`, else `config.run_dir`) decides what happens: a finished run of the same configuration is
    returned as it is, an unfinished one is continued, another configuration is refused. Raises UserError (one
    sentence), TrainingError when the loss is not finite, Interrupted after Ctrl-C or SIGTERM.
    """
    config = checked(to_dict(config))
    folder = Path(run_dir or config.run_dir or Path("runs", config.name, f"seed{config.seed}"))
    size = distributed.start(config.device).size
    parts_of_a_batch(config, size)
    if distributed.world().rank:
        log.setLevel(logging.ERROR)  # the first process speaks for all
    place = _open(folder, config)
    try:
        if place.finished is not None:
            return _repeated(place, config)
        with _signals() as stop:
            return _run_in(place, config, stop, overrides or [])
    finally:
        place.close()


def _open(folder: Path, config: Config):
    """The run's folder. With several processes the first one holds it, and all hear what it found there."""
    from snn_repro.runs.folder import Follower, Run

    if distributed.world().size == 1:
        return Run(folder, config)
    place, found = None, None
    if distributed.world().rank == 0:
        try:
            place = Run(folder, config)
            found = place.finished
        except UserError as error:
            found = error
    found = distributed.broadcast(found)
    if isinstance(found, UserError):
        raise found
    return place or Follower(folder, found)


def _repeated(place, config: Config):
    """The earlier result of a command that is given again, with its energy if that is asked for now."""
    result = place.finished
    here = {"threads": threads(config), "processes": distributed.world().size}
    other = [f"{k}={result[k]}, here {v}" for k, v in here.items() if result.get(k, v) != v]
    remarks = [*(f"it ran with {text}" for text in other), *([place.remark] if place.remark else [])]
    log.info(f"{place.folder}: already done (force=true to redo): {'; '.join([summary(result), *remarks])}")
    if config.energy and "energy" not in result:
        if distributed.world().rank == 0:
            result["energy"] = _energy_of(place.folder, config, pick_device(config))
            place.finish(result)
            log.info(f"{place.folder}: energy added to result.json")
        result = distributed.broadcast(result)
    return result


def _energy_of(folder: Path, config: Config, device) -> dict:
    """The energy report of a finished run, from the weights that it ended with."""
    from snn_repro.data import build_data
    from snn_repro.runs import checkpoint

    try:
        found = checkpoint.resume(folder, to_dict(config), log.warning)
    except UserError as error:
        raise UserError(f"energy=true needs the run's weights: {error}; or redo the run with force=true") from None
    if found is None:
        raise UserError(
            f"energy=true needs {folder / 'checkpoint_last.pt'}, which is gone; redo the run with force=true"
        )
    data = build_data(config)
    model = _network(config, data).to(device)
    ema = _average(model, config.recipe.ema_decay)
    (ema or model).load_state_dict(found["ema" if ema else "model"])
    return _energy(ema.module if ema else model, data, device)


def _energy(model, data, device) -> dict:
    from snn_repro.energy import energy_report

    images, _ = next(iter(data.test.epoch(0)))
    return energy_report(model, images.to(device))


def _run_in(place, config: Config, stop: "_Stop", overrides: list[str]):
    """Everything that happens while the folder is held; the outcome is recorded in status.json whatever it is."""
    from snn_repro.runs.tracking import Tracker

    tracker, result = None, None
    try:
        check_settings(config)
        device = pick_device(config)
        place.begin(overrides, str(device))
        if distributed.world().rank == 0:
            tracker = Tracker(config, place.folder, log.warning)
        result = fit(place, config, device, tracker, stop)
        place.finish(result)
        place.status("done")
        log.info(f"{place.folder}: {summary(result)}")
        return distributed.broadcast(result)
    except Interrupted as interrupt:
        with contextlib.suppress(UserError):  # the checkpoint is written: a full disk must not hide the signal
            place.status("interrupted", str(interrupt))
        raise
    except BaseException as raised:
        error = raised if isinstance(raised, TrainingError) else distributed.explain(_sentence(raised))
        trace = None if isinstance(error, UserError) else traceback.format_exc()
        with contextlib.suppress(UserError):  # a full disk must not hide the error itself
            place.status("failed", f"{type(error).__name__}: {error}", traceback=trace)
        if error is raised:
            raise
        raise error from raised
    finally:
        if tracker is not None:
            tracker.finish(result)


def _sentence(error: BaseException) -> BaseException:
    """The error itself, or one sentence where torch raises a bare RuntimeError for what a user can mend."""
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return UserError(
            f"a loader process died ({' '.join(str(error).split())[:120]}), killed or out of memory; the same command "
            "continues from the last checkpoint, with dataset.workers=0 if it happens again"
        )
    lacking = isinstance(error, RuntimeError) and re.search(r"out of memory|can't allocate memory", str(error))
    if lacking or isinstance(error, MemoryError):
        said = " ".join(str(error).split())[:120] or "MemoryError"
        return UserError(
            f"out of memory ({said}); recipe.accumulate=2 (or more) splits a batch into parts, model.checkpointing=blocks "
            "keeps less for the backward pass, and recipe.batch_size or recipe.eval_batch_size can be made smaller"
        )
    return error


def fit(place, config: Config, device, tracker, stop: "_Stop"):
    """Build the parts, train epoch by epoch, and return the RunResult."""
    import torch

    from snn_repro.data import build_data
    from snn_repro.losses import build_loss
    from snn_repro.models import count_parameters
    from snn_repro.models.norms import synchronise
    from snn_repro.optim import build_optimizer, build_schedule
    from snn_repro.provenance import code_version
    from snn_repro.runs import checkpoint
    from snn_repro.runs.fingerprint import fingerprint

    initial = checkpoint.find_weights(config.model.weights, config.data_dir) if config.model.weights else None
    seed_everything(config)
    here = distributed.world()
    with distributed.main_first():
        data = build_data(config)
    of_data = distributed.broadcast(fingerprint(config) if here.rank == 0 else None)
    train_part, val_part, test_part = (b and b.shard(here.rank, here.size) for b in (data.train, data.val, data.test))
    model = _network(config, data)
    if initial:
        checkpoint.load_pretrained(model, initial, log.info)
    model = model.to(device)
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # what its convolutions work on
    if config.recipe.sync_bn and here.size > 1:
        synchronise(model)
    if config.compile:
        compile_network(model, device)
    loss_fn = build_loss(config.loss.name, **options(config.loss, "name"))
    imp = dict(imp_lr=config.neuron.imp_lr, imp_weight_decay=config.neuron.imp_weight_decay)
    optimizer = build_optimizer(model, config.recipe, **imp)
    steps = steps_in_epoch(config, train_part)
    schedule = build_schedule(optimizer, config.recipe, steps)
    amp = Precision(config, device)
    ema = _average(model, config.recipe.ema_decay)
    code = code_version()
    conditions = _conditions(config, device, amp.name) | {"code": code["sha256"][:12]}
    state = Training(
        place, config, model, loss_fn, optimizer, schedule, amp, ema, device, stop, steps, of_data, conditions
    )

    weights, imp = count_parameters(model)
    log.info(
        f"{config.name} seed {config.seed}: {data.split.n_train} train, {data.split.n_val} validation, {data.split.n_test} test "
        f"samples; {weights:,} weights + {imp:,} IMP; T={config.timesteps}; {device}, {amp.name}, "
        f"neurons by {neuron_backend(config, device)}"
        f"{f', {here.size} processes' if here.size > 1 else ''}; {place.folder}"
    )
    found = None
    if config.resume == "auto" and here.rank == 0:
        found = checkpoint.resume(place.folder, to_dict(config), log.warning, of_data)
    history = state.restore(*distributed.broadcast((found, place.history() if found else [])))
    if found:
        log.info(f"resuming at epoch {state.epoch + 1}, step {state.step}")
        if state.changed:
            log.warning(
                f"warning: not all is as it was before the stop ({'; '.join(state.changed)}); result.json says so"
            )
    if tracker is not None:
        tracker.start(history)

    for epoch in range(state.epoch, config.recipe.epochs):
        started, seen = time.perf_counter(), state.sums["n"]
        train = state.train_epoch(epoch, train_part)
        trained = time.perf_counter() - started
        shown = ema.module if ema else model
        val = evaluate(shown, val_part, loss_fn, amp, device, config, stop=state.check_stop) if val_part else None
        test = evaluate(shown, test_part, loss_fn, amp, device, config, stop=state.check_stop, rates=True)
        for part, outcome in (("validation", val), ("test", test)):
            if outcome and not math.isfinite(outcome["loss"]):
                raise TrainingError(
                    f"the {part} loss is {outcome['loss']} after epoch {epoch + 1}; {state.kept()}; try a smaller recipe.lr, "
                    "or recipe.clip_norm=1"
                )
        samples = train["n"] - seen
        line = dict(
            epoch=epoch + 1, train_loss=train["loss"], train_acc=train["acc"],
            loss=test["loss"], acc=test["acc"], acc_step=test["acc_step"], acc_cum=test["acc_cum"],
            **({f"val_{k}": val[k] for k in ("loss", "acc", "acc_step", "acc_cum")} if val else {}),
            lr=train["lr"], samples_per_s=samples / trained if samples else None, seconds=time.perf_counter() - started,
            peak_memory_mb=peak_memory(device), firing_rates=test["firing_rates"],
        )  # fmt: skip
        history.append(line)
        place.record(history)
        log.info(epoch_line(line, config.recipe.epochs))
        state.save_epoch(epoch, is_best=selection(history)[-1] == len(history) - 1)
        if tracker is not None:
            tracker.epoch(line)
    if config.recipe.epochs == state.started_at:
        # killed between the last checkpoint and the result: the weights are final, the outputs were lost
        test = evaluate(ema.module if ema else model, test_part, loss_fn, amp, device, config)
    place.predictions(**final_outputs(test))
    result = build_result(config, data, weights, imp, history, amp.name, loss_fn.readout_name, test["n"], device)
    result.update(data=of_data, code=code, changed_on_resume=state.changed)
    if config.energy and here.rank == 0:
        result["energy"] = _energy(ema.module if ema else model, data, device)
    return result


EMPTY = {"loss": 0.0, "correct": 0, "n": 0, "lr": 0.0}  # an epoch's sums before its first step


class Training:
    """What one optimiser step needs and a checkpoint holds."""

    def __init__(
        self, place, config, model, loss_fn, optimizer, schedule, amp, ema, device, stop, steps, of_data=None, conditions=None
    ):  # fmt: skip
        self.place, self.config, self.model, self.loss_fn = place, config, model, loss_fn
        self.net = distributed.wrap(model, device)  # what training calls: `model` itself with one process
        self.optimizer, self.schedule, self.amp, self.ema = optimizer, schedule, amp, ema
        self.device, self.stop, self.steps = device, stop, steps
        self.epoch = self.step = self.started_at = 0
        self.sums = dict(EMPTY)
        self.good = None  # what the last checkpoint holds, in words
        self.parts = parts_of_a_batch(config, distributed.world().size)
        self.of_data, self.conditions = of_data or {}, conditions or {}
        self.changed: list[str] = []  # what was not the same before a stop and after it

    def restore(self, found: dict | None, history: list[dict]) -> list[dict]:
        """Continue from a checkpoint; returns the epochs that it stands behind."""
        from snn_repro.data.batches import derive_seed
        from snn_repro.runs import checkpoint

        rank, size = distributed.world()[:2]
        if rank:  # weights, order and augmentation are everybody's; what the network draws (dropout) is a rank's own
            seed_generators(derive_seed(self.config.seed, rank, *((found["epoch"], found["step"]) if found else ())))
        if found is None:
            return []
        checkpoint.load_model(self.model, found["model"], str(self.place.folder))
        self.optimizer.load_state_dict(found["optimizer"])
        self.schedule.load_state_dict(found["schedule"])
        self.amp.scaler.load_state_dict(found["scaler"])
        if self.ema:
            self.ema.load_state_dict(found["ema"])
        rngs = [found["rng"], *found.get("rng_others", [])]
        if rank == 0 or size == len(rngs):  # with another number of processes the new ones draw anew
            checkpoint.set_rng_state(rngs[rank])
        self.epoch, self.step, self.sums = found["epoch"], found["step"], dict(found["sums"])
        self.started_at = self.epoch
        self.good = f"epoch {self.epoch}, step {self.step}"
        before = found.get("conditions", {})
        now = {k: v for k, v in self.conditions.items() if before.get(k, v) != v}
        self.changed = [
            *found.get("changed", []),
            *(f"{k}: {before[k]} -> {v} from {self.good}" for k, v in now.items()),
        ]
        history = [line for line in history if line["epoch"] <= self.epoch]
        if len(history) != self.epoch:
            raise UserError(
                f"{self.place.folder / 'metrics.jsonl'} has {len(history)} of the {self.epoch} epochs that the checkpoint "
                "stands behind: it was changed or removed; put it back, or start again with resume=never"
            )
        return history

    def content(self, epoch: int, step: int, rngs: list[dict]) -> dict:
        return dict(
            epoch=epoch, step=step, sums=dict(self.sums), config=to_dict(self.config), model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(), schedule=self.schedule.state_dict(), scaler=self.amp.scaler.state_dict(),
            ema=self.ema.state_dict() if self.ema else None, rng=rngs[0], rng_others=rngs[1:],
            data=self.of_data, conditions=self.conditions, changed=self.changed,
        )  # fmt: skip

    def save(self, epoch: int, step: int) -> None:
        from snn_repro.runs import checkpoint

        rngs = distributed.gather(checkpoint.rng_state())
        if rngs is not None:  # the first process writes
            checkpoint.save(self.place.folder, self.content(epoch, step, rngs))
        self.good = f"epoch {epoch}, step {step}"

    def save_epoch(self, epoch: int, is_best: bool) -> None:
        """End of an epoch: the best weights apart, then the checkpoint that a resume starts from."""
        from snn_repro.runs import checkpoint

        self.step, self.sums = 0, dict(EMPTY)
        if is_best and distributed.world().rank == 0:
            shown = self.ema.module if self.ema else self.model
            best = dict(epoch=epoch + 1, config=to_dict(self.config), model=shown.state_dict())
            checkpoint.save(self.place.folder, best, name=checkpoint.BEST)
        self.epoch = epoch + 1
        self.save(self.epoch, 0)

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

    def train_epoch(self, epoch: int, batches) -> dict:
        """One epoch of optimiser steps from `self.step` on; returns mean loss, readout accuracy and the last lr."""
        self.epoch = epoch
        self.model.train()
        every = 1 if self.device.type == "cpu" else 50  # on a GPU, reading the loss makes the host wait
        pending: list = []
        profiler = _profiler(self.config, self.place.folder)
        bar = progress(f"epoch {epoch + 1}/{self.config.recipe.epochs}", self.steps)
        with bar as advance, profiler:
            for x, target in batches.epoch(epoch, start=self.step):
                if self.step >= self.steps:
                    break
                self.sums["lr"] = self.optimizer.param_groups[0]["lr"]
                x, target = x.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
                pending.append(self.train_step(x, target, batches.all_samples(self.step)))
                self.step += 1
                if len(pending) >= every or self.step == self.steps:
                    self.tally(pending)
                    pending = []
                if signum := self.asked_to_stop():
                    self.tally(pending)
                    self.leave(signum)
                if hasattr(profiler, "step"):
                    profiler.step()
                advance(self.step)
        n = max(1, self.sums["n"])
        return {
            "loss": self.sums["loss"] / n,
            "acc": self.sums["correct"] / n,
            "lr": self.sums["lr"],
            "n": self.sums["n"],
        }

    def train_step(self, x, target, n_all: int | None = None):
        """Forward, backward and one optimiser step; returns (loss sum, correct, n) without waiting for the device.

        n_all: samples of this step on all processes (default: of x). The step is theirs together, the sums are of x.
        """
        import torch

        from snn_repro.metrics import count_correct

        recipe, scaler = self.config.recipe, self.amp.scaler
        n, size = len(target), distributed.world().size
        n_all = n_all or n
        total, correct = 0, 0
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

    def kept(self) -> str:
        """What a run that breaks off now leaves to go on from."""
        if not self.good:
            return "no checkpoint was written yet"
        return f"the last good checkpoint is {self.place.folder / 'checkpoint_last.pt'} ({self.good})"

    def tally(self, pending: list) -> None:
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


def evaluate(model, batches, loss_fn, amp, device, config: Config, stop=lambda: None, rates: bool = False) -> dict:
    """Loss, readout accuracy and accuracy at each time step of one part of a data set, in full precision.

    With several processes each sees its share, every sample once, and all get the same numbers.
    Returns loss, acc, acc_step[T], acc_cum[T], n, correct, firing_rates {layer: rate}, and of this process's share
    logits [T, N, K] and labels [N].
    """
    import torch

    from snn_repro.metrics import correct_cumulative, correct_per_step, correct_readout
    from snn_repro.neurons import firing_rates

    distributed.share_buffers(model)
    model.eval()
    step = cumulative = 0
    correct = n = 0
    loss, kept, labels = 0.0, [], []
    count = distributed.largest(len(batches))  # a process may have one batch less than another
    own = batches.epoch(0)
    with torch.inference_mode(), firing_rates(model) if rates else contextlib.nullcontext({}) as measured:
        for _ in range(min(count, config.debug.max_eval_batches or count)):
            for x, target in itertools.islice(own, 1):
                x, target = x.to(device, non_blocking=True), target.to(device, non_blocking=True)
                logits = model(x).float()
                loss += float(loss_fn(logits, target)) * len(target)
                step = step + correct_per_step(logits, target)
                cumulative = cumulative + correct_cumulative(logits, target)
                correct += int(correct_readout(loss_fn.readout(logits), target))
                n += len(target)
                kept.append(logits.cpu())
                labels.append(target.cpu())
            stop()
    rates_seen = {k: float(v) for k, v in measured.items()}
    if distributed.world().size > 1:
        timesteps, own_n = len(step), n
        loss, correct, n, *steps = distributed.sums([loss, correct, n, *step.tolist(), *cumulative.tolist()])
        correct, n, step, cumulative = int(correct), int(n), steps[:timesteps], steps[timesteps:]
        means = distributed.sums([rate * own_n / n for rate in rates_seen.values()])
        rates_seen = dict(zip(rates_seen, means, strict=True))
    return dict(
        loss=loss / n, acc=correct / n, acc_step=[int(c) / n for c in step], acc_cum=[int(c) / n for c in cumulative],
        n=n, correct=correct, logits=torch.cat(kept, dim=1), labels=torch.cat(labels), firing_rates=rates_seen,
    )  # fmt: skip


def final_outputs(test: dict) -> dict:
    """label [N] and logits [N, T, K] (float32, float16 above 256 MB) of the whole test set; empty but on rank 0."""
    import numpy as np

    shares = distributed.gather((test["logits"].transpose(0, 1).contiguous().numpy(), test["labels"].numpy()))
    if shares is None:
        return {}
    logits, label = (np.empty((test["n"], *share.shape[1:]), share.dtype) for share in shares[0])
    for rank, share in enumerate(shares):
        logits[rank :: len(shares)], label[rank :: len(shares)] = share
    return dict(label=label, logits=logits.astype(np.float16) if logits.nbytes > 256 * 2**20 else logits)


# ---------------------------------------------------------------- parts


def options(part, *without: str) -> dict:
    """The keys of a config part that are set (not null), as keyword arguments; settings of its choice's own among them."""
    values = {k: v for k, v in vars(part).items() if k != "own"} | part.own
    return {k: v for k, v in values.items() if v is not None and k not in without}


def check_settings(config: Config) -> None:
    """Raise UserError for what the classes of neuron and loss refuse, before any data is read."""
    import torch

    from snn_repro.losses import build_loss
    from snn_repro.neurons import build_neuron

    build_loss(config.loss.name, **options(config.loss, "name"))
    with torch.random.fork_rng(devices=[]):  # it draws a number
        build_neuron(**options(config.neuron, "imp", "imp_lr", "imp_weight_decay", "backend"))


def parts_of_a_batch(config: Config, processes: int) -> int:
    """Parts in which each process runs its share of a batch, so that batch statistics are over as many images as the
    recipe says: `recipe.accumulate` parts of the batch of all, each on one process (or, with sync_bn, on all).

    Raises ConfigError where that does not come out even.
    """
    recipe = config.recipe
    if recipe.batch_size % processes:
        raise ConfigError(
            f"recipe.batch_size={recipe.batch_size} is the batch of all {processes} processes together and cannot be "
            f"split evenly; use a multiple of {processes}"
        )
    if processes == 1 or recipe.accumulate == 1 or recipe.sync_bn:
        return recipe.accumulate
    parts = -(-recipe.accumulate // processes)
    if max(recipe.accumulate, processes) != parts * processes or recipe.batch_size % (parts * processes):
        raise ConfigError(
            f"recipe.accumulate={recipe.accumulate} parts of a batch of {recipe.batch_size} do not come out even on "
            f"{processes} processes, so batch statistics would be over other numbers of images; start a number of "
            f"processes that divides {recipe.accumulate}, or set recipe.accumulate to a multiple of {processes}"
        )
    return parts


def images_per_statistic(config: Config, processes: int) -> int:
    """Images over which a training step's batch norms take mean and variance (over all their time steps)."""
    together = 1 if config.recipe.sync_bn else processes
    return config.recipe.batch_size // (parts_of_a_batch(config, processes) * together)


def _network(config: Config, data):
    """The network of a configuration, with its initial weights."""
    from snn_repro.models import build_model

    return build_model(
        config.model.name, num_classes=data.num_classes, input_shape=data.input_shape, timesteps=config.timesteps,
        neuron=options(config.neuron, "imp_lr", "imp_weight_decay"), kernels=config.kernels,
        **options(config.model, "name", "weights"),
    )  # fmt: skip


def _conditions(config: Config, device, precision: str) -> dict:
    """What no key of the configuration hash says and yet moves numbers, by rounding at least; result.json keeps it."""
    import torch

    size = distributed.world().size
    return dict(
        device=device.type, precision=precision, threads=torch.get_num_threads(),
        processes=size, images_per_statistic=images_per_statistic(config, size),
        neuron_backend=neuron_backend(config, device), conv_backend=backends(config)[1], compile=config.compile,
        torch=str(torch.__version__),
    )  # fmt: skip


def steps_in_epoch(config: Config, batches) -> int:
    """Optimiser steps in one epoch."""
    return min(len(batches), config.debug.max_steps or len(batches))


def threads(config: Config) -> int:
    """CPU threads of this run."""
    import torch

    return config.threads or (1 if config.model.name == "small" else torch.get_num_threads())


def pick_device(config: Config):
    """torch.device of this run, with the thread count set. Raises ConfigError for cuda without a GPU."""
    import torch

    from snn_repro.data.batches import keep_freed_memory

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda but torch sees no GPU; use device=cpu, or install a CUDA build of torch")
    torch.set_num_threads(threads(config))
    use_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if not use_cuda:
        keep_freed_memory()  # a quarter of a step's time is page faults otherwise
    _, processes, number = distributed.world()
    if not use_cuda or processes == 1:
        return torch.device("cuda" if use_cuda else "cpu")
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"process {number + 1} of this machine has no GPU, torch sees {torch.cuda.device_count()}; "
            "start one process a GPU, or use device=cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def compile_network(model, device) -> None:
    """torch.compile the network in place, so that its weights keep their names. Raises ConfigError without a compiler."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise ConfigError(
                "compile=true needs a C++ compiler on a CPU and none was found; install g++ or use compile=false"
            ) from None
    model.compile()


def backends(config: Config) -> tuple[str, str]:
    """Who is wished to compute the spiking layers and the convolutions."""
    from snn_repro.kernels import KERNELS

    return (config.neuron.backend, config.model.conv_backend) if config.kernels == "auto" else KERNELS[config.kernels]


def neuron_backend(config: Config, device) -> str:
    """The backend that computes the spiking layers in this run ("auto" resolved)."""
    from snn_repro.kernels import resolve_backend

    return resolve_backend(backends(config)[0], device.type)


class Precision:
    """Autocast and gradient scaling of `recipe.amp` on a device; evaluation is always float32.

    Raises ConfigError where the device has no such arithmetic.
    """

    def __init__(self, config: Config, device):
        import torch

        amp = config.recipe.amp
        if amp == "auto":
            amp = "fp16" if device.type == "cuda" else "off"
        if device.type == "cpu" and amp == "fp16":
            raise ConfigError(
                "recipe.amp=fp16 is for a GPU; on a CPU use recipe.amp=off, or bf16 where it has the units"
            )
        if device.type == "cpu" and amp == "bf16" and not has_bf16_units():
            raise ConfigError(
                "recipe.amp=bf16 on this CPU is many times slower than float32: it has no bfloat16 units (AVX512-BF16 or "
                "AMX); use recipe.amp=off or auto"
            )
        if device.type == "cuda" and amp == "bf16" and not torch.cuda.is_bf16_supported():
            raise ConfigError("recipe.amp=bf16 but this GPU has no bfloat16; use recipe.amp=fp16")
        self.name = {"off": "float32", "fp16": "fp16 autocast", "bf16": "bf16 autocast"}[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        dtype = torch.float16 if amp == "fp16" else torch.bfloat16
        self.autocast = lambda: torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as torch can tell."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(found.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    older = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # some versions of torch have both, one or none
    return any(getattr(torch.cpu, name, bool)() for name in older)


def seed_everything(config: Config) -> None:
    """Seed Python, NumPy and torch; data order and augmentation have generators of their own (data/batches.py)."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    seed_generators(config.seed)
    if config.compile:  # tells the compiler too, and imports it: most of a second
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn" if config.deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # our kernels write all they allocate
    torch.backends.cudnn.benchmark = not config.deterministic


def seed_generators(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _average(model, decay: float):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


def _profiler(config: Config, folder: Path):
    if not config.debug.profile or distributed.world().rank:
        return contextlib.nullcontext()
    import torch.profiler as p

    return p.profile(
        schedule=p.schedule(wait=1, warmup=1, active=5, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(folder / "trace.json")),
    )


def peak_memory(device) -> float:
    """Peak memory in MB: allocated on the GPU, or resident of the process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def selection(history: list[dict]) -> list[int]:
    """Positions at which the selection accuracy (validation, else test) rose above all before."""
    best, found = -1.0, []
    for i, line in enumerate(history):
        value = line.get("val_acc", line["acc"])
        if value > best:
            best = value
            found.append(i)
    return found


def build_result(
    config: Config, data, weights: int, imp: int, history: list[dict], precision: str, readout: str, n_test: int, device
):
    """The content of result.json (see the README for every key)."""
    from snn_repro.runs.folder import SCHEMA_VERSION, RunResult

    last = history[-1]
    best = max(history, key=lambda line: line["acc"])
    selected = history[selection(history)[-1]] if "val_acc" in last else None
    tail = [line["acc"] for line in history[-10:]]
    conditions = _conditions(config, device, precision)
    neuron = vars(config.neuron) | {"backend": conditions["neuron_backend"]}
    shown = {k: conditions[k] for k in ("precision", "device", "threads", "processes", "images_per_statistic")}
    return RunResult(
        schema_version=SCHEMA_VERSION,
        name=config.name, experiment=config.name if config.name in choices("experiment") else None,
        paper_row=config.paper_row, seed=config.seed,
        config_hash=config_hash(config), recipe_hash=config_hash(config, without=("seed",)),
        dataset=config.dataset.name, model=config.model.name, loss=config.loss.name, neuron=neuron,
        split_id=data.split.id, split_sha256=data.split.sha256_test,
        n_train=data.split.n_train, n_val=data.split.n_val, n_test=n_test, correct=round(last["acc"] * n_test),
        timesteps=config.timesteps, input_size=list(data.input_shape), num_classes=data.num_classes,
        params_weights=weights, params_imp=imp,
        acc_last=last["acc"], acc_best_test=best["acc"], acc_best_test_epoch=best["epoch"],
        acc_best_test_is_optimistic=True,
        acc_valsel=selected["acc"] if selected else None, acc_valsel_epoch=selected["epoch"] if selected else None,
        acc_val=selected["val_acc"] if selected else None,
        acc_last10_mean=sum(tail) / len(tail),
        acc_step=last["acc_step"], acc_cum=last["acc_cum"], readout=readout,
        loss_last=last["loss"], train_loss_last=last["train_loss"], train_acc_last=last["train_acc"],
        firing_rates=last["firing_rates"], **shown, epochs=len(history),
        seconds=sum(line["seconds"] for line in history), samples_per_s=last["samples_per_s"],
        peak_memory_mb=max(line["peak_memory_mb"] for line in history), config=to_dict(config),
    )  # fmt: skip


# ---------------------------------------------------------------- what a person sees


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def epoch_line(line: dict, epochs: int) -> str:
    """One plain line an epoch."""
    val = f"  val {percent(line['val_acc'])}" if "val_acc" in line else ""
    speed = f"  {line['samples_per_s']:,.0f} samples/s" if line["samples_per_s"] else ""
    return (
        f"epoch {line['epoch']:>3}/{epochs}  loss {line['train_loss']:.4f}  train {percent(line['train_acc'])}{val}  "
        f"test {percent(line['acc'])}  at t=1..{len(line['acc_step'])}: {' '.join(f'{100 * a:.1f}' for a in line['acc_step'])}"
        f"  lr {line['lr']:.2g}{speed}"
    )


def summary(result: dict) -> str:
    """One line a result."""
    steps = " ".join(f"{100 * a:.1f}" for a in result["acc_step"])
    return (
        f"test accuracy {percent(result['acc_last'])} ({result['correct']}/{result['n_test']}, readout: {result['readout']}); "
        f"at t=1..{result['timesteps']}: {steps}; {result['seconds']:.0f} s"
    )


@contextlib.contextmanager
def progress(title: str, total: int):
    """A rich progress bar on a terminal, nothing otherwise; yields `advance(done)`."""
    if not sys.stdout.isatty() or distributed.world().rank:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


# ---------------------------------------------------------------- signals


class _Stop:
    signum: int | None = None


@contextlib.contextmanager
def _signals():
    """Turn the first Ctrl-C, SIGTERM or SIGUSR2 (SLURM's notice) into a request to stop; a second Ctrl-C stops at once."""
    stop = _Stop()

    def ask(signum, frame):
        alone = distributed.world().size == 1  # torchrun passes a Ctrl-C on, so that it arrives twice
        if stop.signum is not None and signum == signal.SIGINT and alone:
            raise KeyboardInterrupt
        stop.signum = signum

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    except ValueError:  # not in the main thread: the caller keeps its own signal handling
        before = {}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


# ---------------------------------------------------------------- command line


def main() -> None:
    """`python -m snn_repro.train`, `snn-train`: exit code 0 done, 1 failed, 2 wrong input, 130/140/143 stopped by a signal."""
    gc.set_threshold(100_000)  # imports make no garbage, and looking for it 600 times takes a quarter of a second
    logging.raiseExceptions = (
        False  # a reader that left (`| head`) costs the lines that it does not read, and no traceback
    )
    warnings.formatwarning = _one_line
    sys.exit(console.script(lambda: _main(sys.argv[1:])))


def _main(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    if "--version" in argv:
        print(version())
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, so that every error passes below
    try:
        return _dispatch(argv)
    except TrainingError as error:
        return _fail(str(error), 1)
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "stopped", 128 + getattr(interrupt, "signum", signal.SIGINT))


def _fail(sentence: str, code: int) -> int:
    if distributed.world().rank == 0:  # of several processes the first one says it, with the others' reasons too
        print(f"snn-train: {sentence}", file=sys.stderr)
    return code


def version() -> str:
    """What `--version` prints: ours, the commit in a clone, torch's and Python's."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from snn_repro import __version__

    try:
        torch = installed("torch")
    except PackageNotFoundError:
        torch = "missing"
    commit, root = "", CONF_DIR.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        with contextlib.suppress(OSError):
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f"snn_repro {__version__}{f' (commit {commit})' if commit else ''}, torch {torch}, Python {platform.python_version()}"


def _arguments(argv: list[str]):
    """Hydra's own flags and the overrides. Raises ConfigError for flags that do not exist or do not go together."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str):
        raise ConfigError(f"{message}; `python -m snn_repro.train --hydra-help` lists the flags")

    parser = get_args_parser()
    parser.error = refuse
    found = parser.parse_args(argv)
    for flag in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(found, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')} is not used here: configurations come from {CONF_DIR}; choose one with experiment=NAME"
            )
    alone = [f for f in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(found, f)]
    if len(alone) > 1:
        refuse(f"--{alone[0].replace('_', '-')} and --{alone[1].replace('_', '-')} do not go together")
    if found.resolve and not found.cfg:
        refuse("--resolve goes with --cfg alone")
    if found.package and not found.cfg:
        refuse("--package goes with --cfg alone")
    return found


def _dispatch(argv: list[str]) -> int:
    from snn_repro.runs import sweeps

    arguments = _arguments(argv)
    if arguments.shell_completion or arguments.hydra_help:
        script = COMPLETION.get(" ".join(arguments.overrides)) if Path(sys.argv[0]).name != "snn-train" else None
        if arguments.shell_completion and script:
            print(script)
            return 0
        try:
            _hydra_task(argv)
        except ValueError as error:  # no such shell, or nothing to do named
            raise ConfigError(f"-sc: {' '.join(str(error).split())}; write -sc install=bash") from None
        return 0
    typed, sweep = arguments.overrides, arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
    overrides = readable(typed, sweep)
    readable_of = dict(zip(typed, overrides, strict=True))
    for_hydra = [readable_of.get(a, a) for a in argv]
    if arguments.cfg or arguments.info:
        return show(overrides, for_hydra)
    if not sweep:
        compose_checked(overrides)  # before Hydra makes a folder
        _hydra_task(for_hydra)
        if _errors:
            raise _errors.pop()
        return 0
    if any(o.startswith("hydra/sweeper=") and o != "hydra/sweeper=basic" for o in overrides):
        refuse_misplaced(overrides, sweep=True)
        with multirun_config(overrides) as (node, _):  # checks hydra.*; another sweeper finds its jobs while it runs
            sweeps.say_what_is_searched(node, overrides)
        with sweeps.stoppable():
            _hydra_task(for_hydra)
        return 0
    return sweeps.run_sweep(overrides, argv, _task)


def show(overrides: list[str], argv: list[str]) -> int:
    """`--cfg` and `--info`, with the same checks as a run; what a run adjusts is shown adjusted."""
    adjusted: list[str] = []
    config = compose_checked(overrides, say=adjusted.append)
    if adjusted:
        log.warning(adjusted[0])
        at = argv.index(overrides[0])  # overrides stand together
        argv = [*argv[:at], f"recipe.warmup_epochs={config.recipe.warmup_epochs}", *argv[at:]]
    try:
        _hydra_task(argv)
    except SystemExit as gone:  # how Hydra refuses a --package that does not exist
        return 2 if gone.code else 0
    return 0


_errors: list[Exception] = []  # of a single run, on their way past Hydra
_stopped = False  # this process is a worker of joblib's, and was told to stop: it begins no further run
_warned: set[str] = set()


def _one_line(message, category, filename, lineno, line=None) -> str:
    """How warnings are shown: one line, the first time."""
    text = " ".join(str(message).split())
    if text in _warned or distributed.world().rank:
        return ""
    _warned.add(text)
    return f"warning: {text}\n"


def _task(node) -> float | None:
    """What Hydra calls for every job; in a sweep a failing run is recorded and the rest goes on.

    Returns what a search maximises: the validation accuracy of the epoch that validation chose, or, without a
    validation part, the test accuracy of the last epoch.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from snn_repro.runs.sweeps import in_a_sweep

    global _stopped
    warnings.formatwarning = _one_line  # this may be a worker process
    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    launcher = job.launcher._target_.rsplit(".", 1)[-1]
    if in_sweep and launcher == "JoblibLauncher":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # between two runs the process that launched this one answers
        if _stopped:
            return None
    config = settled(node, job.overrides.task, log.warning)
    config.run_dir = job.runtime.output_dir
    sweep = in_sweep and job.sweeper._target_.endswith(".BasicSweeper")
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if in_slurm and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        config.force, config.resume = False, "auto"  # put back into the queue: what it did before counts
    elif not config.skip_finished and Path(config.run_dir, "result.json").exists():
        config.force = True
    try:
        check_machine(config)  # a sweep on a cluster was composed on another one
        result = run(config, overrides=list(job.overrides.task))
    except Interrupted as interrupt:
        if not sweep or launcher == "BasicLauncher":
            raise
        log.warning(str(interrupt))
        if in_slurm:
            _requeue(interrupt.signum)
        _stopped = not in_slurm
        return None
    except Exception as error:
        if not in_sweep:
            _errors.append(error)  # raised after Hydra, which would print a line of its own above the sentence
            return None
        if not sweep:
            raise
        log.error(
            in_a_sweep(f"{config.run_dir} failed: {type(error).__name__}: {error}"),
            exc_info=not isinstance(error, UserError),
        )
        return None
    return result["acc_val"] if result["acc_val"] is not None else result["acc_last"]


def _requeue(signum: int) -> None:
    """The run is saved: let submitit put its job back into the queue, unless SLURM is ending it for good.

    SIGUSR2 is the notice before the time limit; SIGTERM comes for `scancel` too, but also at the start of a
    preemption's grace time, after which a job that has ended would not come back.
    """
    from snn_repro.runs.sweeps import still_running

    if signum == signal.SIGUSR2 or still_running():
        signal.raise_signal(signal.SIGUSR2)  # submitit's own handler, which was back in place when run() returned


def _hydra_task(argv: list[str]) -> None:
    """Let Hydra do what `argv` says. Raises ConfigError for what it cannot read, UserError for a folder it cannot make."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from snn_repro.files import write_error

    search_outside()
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(config_path=str(CONF_DIR), config_name="train", version_base="1.3")(_task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    except (OSError, ValueError) as error:  # Hydra makes the folder and its log file before our code runs
        cause = error.__cause__ if isinstance(error, ValueError) else error  # logging hides why it has no handler
        if not isinstance(cause, OSError) or cause.filename is None:
            raise
        raise write_error(Path(cause.filename), cause) from error
    finally:
        sys.argv = before


# ---------------------------------------------------------------- completion


# Bash completion for `python -m snn_repro.train`; other python commands keep the completion of files. (Hydra's own
# script, which `snn-train -sc install=bash` prints, knows commands of one word and script files alone.)
COMPLETION = {
    "install=bash": r"""_snn_repro_train()
{
    COMPREPLY=()
    case "${COMP_WORDS[*]:0:3}" in *python*" -m snn_repro.train") ;; *) return ;; esac
    (( COMP_CWORD > 2 )) || return
    local line="snn-train ${COMP_WORDS[*]:3:COMP_CWORD-2}" found
    found=$(COMP_LINE="$line" COMP_POINT=${#line} "${COMP_WORDS[0]}" -m snn_repro.train -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$found" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o bashdefault -o default -F _snn_repro_train python python3""",
    "uninstall=bash": "complete -r python python3; unset -f _snn_repro_train",
}


if __name__ == "__main__":
    from snn_repro.train import main  # under its own name, as worker processes import it

    main()
