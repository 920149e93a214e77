"""`dry_run=true`: estimate time, memory and operations of a run without training it.

Everything is built as for the run and a few steps are measured; no file remains. Times are of training and evaluation
steps on the run's data, after the first, compiling steps. Memory is the peak of this process. Multiply-accumulates are
counted by PyTorch (FlopCounterMode), synaptic operations by spikingjelly, at the firing rates of one test batch after
the measured steps, with batch norm statistics of one training batch.
"""

import dataclasses
import itertools
import math
import re
import shlex
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from snn_repro import distributed
from snn_repro.build import adapt_surrogates, begin_epoch, check_settings
from snn_repro.config import Config, ConfigError, config_hash
from snn_repro.console import text_table
from snn_repro.data import Data
from snn_repro.energy import energy_report
from snn_repro.errors import StopRequest, UserError
from snn_repro.kernels import KERNELS, door
from snn_repro.models.blocks import same_statistics
from snn_repro.neurons import Neuron, firing_rates, initial_states
from snn_repro.runs import sweeps
from snn_repro.runs.folder import Follower
from snn_repro.runtime import peak_memory, pick_device
from snn_repro.train import Training, built, evaluate

WARM_UP, FEWEST = 3, 3  # warm-up steps (compiling, first allocations); minimum of measured training steps
SECONDS = 6.0  # time budget of the measured training steps; a third of it for evaluation
PROBE = 2  # batch size of the memory probe
COUNTED = 16  # test samples for counting operations
COLUMNS = ("layer", "kind", "output", "weights", "IMP", "neuron-steps", "MACs", "synops", "rate")


class Layer(NamedTuple):
    """Size and operations of one layer, for one sample."""

    name: str
    kind: str
    shape: tuple[int, ...]  # output [T, C, H, W] or [T, features]; T = 1 where a static image passes once
    weights: int
    imp: int
    neuron_steps: int
    macs: float  # multiply-accumulates of the dense layer
    synops: float  # accumulations caused by spikes, at this batch's firing rates
    value_macs: float  # multiply-accumulates of non-spike inputs: pixels, counts, means, sums
    rate: float | None  # spikes per neuron and time step


@dataclasses.dataclass
class Report:
    """Estimates for a run. Times are seconds, memory is MB."""

    config: Config
    data: Data
    device: str
    layers: list[Layer]
    steps_per_epoch: int
    step_seconds: float
    warm_up_seconds: float  # extra time of the first steps
    epoch_seconds: float
    memory_mb: float

    @property
    def run_seconds(self) -> float:
        """Estimated seconds of the whole run."""
        return self.warm_up_seconds + self.config.recipe.epochs * self.epoch_seconds

    def total(self, number: str) -> float:
        """Sum of a number over all layers, for one sample."""
        return sum(getattr(layer, number) for layer in self.layers)

    def text(self, overrides: list[str]) -> str:
        """The printed report, with the command that starts the run."""
        c, split = self.config, self.data.split
        weights, imp, neuron_steps, *operations = (self.total(number) for number in Layer._fields[3:9])
        macs, synops, value_macs = map(_short, operations)
        cells = [
            (name, kind, _by(shape), *(_short(n) if n else "" for n in (*numbers, macs, synops)),
             "" if rate is None else f"{rate:.3f}")
            for name, kind, shape, *numbers, macs, synops, _, rate in self.layers
        ]  # fmt: skip
        return "\n".join([
            f"{c.name} seed {c.seed}: {split.n_train:,} training, {split.n_val:,} validation, {split.n_test:,} test samples "
            f"({split.id}), {self.data.num_classes} classes, input {_by(self.data.input_shape)}, T={c.timesteps}, {self.device}",
            *text_table("", COLUMNS, cells, left=3).splitlines()[1:],
            "",
            f"parameters    {weights:,} weights + {imp:,} IMP",
            f"a sample      {neuron_steps:,} neuron-steps; dense {macs} multiply-accumulates; sparse {synops} synaptic "
            f"operations and {value_macs} multiply-accumulates of non-spike inputs, at the firing rates of one batch (before training)",
            f"an epoch      {self.steps_per_epoch:,} steps of {c.recipe.batch_size}, {self.step_seconds * 1e3:,.1f} ms each;"
            f" with evaluation {_time(self.epoch_seconds)}",
            f"the run       {c.recipe.epochs:,} epochs, {_time(self.run_seconds)} ({_time(self.warm_up_seconds)} of it warm-up;"
            " less with compiled kernels in the cache)",
            f"peak memory   {self.memory_mb:,.0f} MB",
            "",
            "no file was written; start the run with",
            f"  {shlex.join(['python', '-m', 'snn_repro.train', *(o for o in overrides if not o.startswith('dry_run='))])}",
        ])  # fmt: skip


def dry_run(config: Config) -> Report:
    """Build and measure the run of `config`; raises UserError where the run would."""
    if distributed.world().size > 1:
        raise ConfigError("dry_run=true measures one process; start it without torchrun or srun")
    config = dataclasses.replace(config, dry_run=False)
    check_settings(config)
    device = pick_device(config)
    with tempfile.TemporaryDirectory() as scratch:
        state, data, (train, val, test) = built(Follower(Path(scratch), None), config, device, StopRequest())
        x, _ = next(iter(train.epoch(0)))
        probed = _seconds(lambda: require_memory(state, x))
        try:
            times = _training(state, train)
            step = fmean(times[WARM_UP:])
            with door.off(state.evaluated):  # running statistics of a few steps would silence all neurons
                update_bn([x.to(device)], state.evaluated)
            evaluation = sum(_evaluation(state, part) for part in (val, test) if part is not None)
        except torch.OutOfMemoryError:
            raise _too_large(config, f"does not fit the memory of {device}") from None
        saving, memory = _seconds(lambda: state.save_epoch(0, is_best=True)), peak_memory(device)
    return Report(
        config, data, str(device), _layers(state, next(iter(test.epoch(0)))[0][..., :COUNTED, :, :, :]),
        state.steps_per_epoch, step,
        max(0.0, probed + sum(times[:WARM_UP]) - WARM_UP * step), state.steps_per_epoch * step + evaluation + saving, memory,
    )  # fmt: skip


def dry_sweep(overrides: list[str]) -> Iterator[str]:
    """Yield the lines of a sweep's dry run: hours of unfinished runs, and their sum.

    Runs that differ only in the seed are measured once. Raises UserError where a sweep would before its first run.
    """
    jobs = sweeps.plan(overrides)
    left = [job for job in jobs if job.config.force or not (job.config.skip_finished and sweeps.is_finished(job))]
    sweeps.check_data(left)
    alike: dict[str, list[sweeps.Job]] = defaultdict(list)
    for job in left:
        alike[config_hash(dataclasses.replace(job.config, seed=0))].append(job)
    seconds: list[float] = []
    for of in alike.values():
        named = of[0].folder.parent if len(of) > 1 else of[0].folder
        try:
            report = dry_run(of[0].config)
        except UserError as error:
            yield f"{named}: {len(of)} x unknown: {error}"
            continue
        seconds += [report.run_seconds] * len(of)
        yield f"{named}: {len(of)} x {_time(report.run_seconds)} on {report.device}"
    total = f"{len(left)} of {len(jobs)} runs are left: {_time(sum(seconds))} run one after another"
    if "hydra/launcher=gpus" in overrides and seconds:
        number = len(sweeps.gpus_for(left))
        total += f", about {_time(max(max(seconds), sum(seconds) / number))} on {number} GPUs"
    unknown = len(left) - len(seconds)
    yield total + (f", and {unknown} runs unknown" if unknown else "") + "; no file was written"


# ---------------------------------------------------------------- time


def _training(state: Training, batches: Any) -> list[float]:
    """Seconds of training steps with data loading; the first WARM_UP ones also compile."""
    begin_epoch(0, state.config.recipe.epochs, state.model, state.ema, state.loss_fn)
    state.model.train()
    epochs: Iterator = itertools.chain.from_iterable(batches.epoch(e) for e in itertools.count())

    def step() -> None:
        x, target = (value.to(state.device, non_blocking=True) for value in next(epochs))
        if state.step == 0:
            adapt_surrogates(state.model, state.loss_fn, x, target)
        state.step += 1
        float(state.train_step(x, target, len(target))[0])  # synchronises with the GPU

    times: list[float] = []
    while len(times) < WARM_UP + FEWEST or sum(times[WARM_UP:]) < SECONDS:
        times.append(_seconds(step))
    return times


def _evaluation(state: Training, batches: Any) -> float:
    """Seconds to evaluate one part of the data set."""

    def seconds(most: int) -> float:
        config = dataclasses.replace(state.config, debug=dataclasses.replace(state.config.debug, max_eval_batches=most))
        return _seconds(
            lambda: evaluate(state.evaluated, batches, state.loss_fn, state.amp, state.device, config, rates=True)
        )

    seconds(1)
    most = min(len(batches), max(1, int(SECONDS / 3 / seconds(1))))
    return seconds(most) / most * min(len(batches), state.config.debug.max_eval_batches or len(batches))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# ---------------------------------------------------------------- memory


def require_memory(state: Training, x: Tensor) -> None:
    """Raise UserError where a CPU lacks memory, estimated from a step of PROBE samples."""
    if state.device.type != "cpu":
        return  # CUDA raises OutOfMemoryError, which a process survives
    saved = saved_bytes_per_sample(state, x[..., :PROBE, :, :, :]) * -(-x.shape[-4] // state.parts)
    if saved > (free := available_memory()):
        why = f"stores {saved / 2**30:.1f} GiB for its backward pass and only {free / 2**30:.1f} GiB are free"
        raise _too_large(state.config, why)


def saved_bytes_per_sample(state: Training, x: Tensor) -> float:
    """Bytes of the tensors saved for backward per sample; shared storage counts once."""
    model = state.model.train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    saved: dict[int, Tensor] = {}  # held alive, so that no storage is reused and missed

    def pack(t: Tensor) -> Tensor:
        saved.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    door.set_backend(model, "dense")  # auto would time backends for PROBE samples
    with (
        torch.random.fork_rng(devices=[]), same_statistics(model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), state.amp.autocast(),
    ):  # fmt: skip
        model(x, last_step=state.loss_fn.last_step)
    door.set_backend(model, KERNELS[state.config.kernels][1])
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own) / x.shape[-4]


def available_memory() -> float:
    """Free memory of this machine in bytes; infinite where it is unknown."""
    info = Path("/proc/meminfo")
    match = re.search(r"MemAvailable: *(\d+)", info.read_text()) if info.exists() else None
    return float(match[1]) * 1024 if match else math.inf


def _too_large(config: Config, why: str) -> UserError:
    return UserError(
        f"a training step of recipe.batch_size={config.recipe.batch_size} {why}; set recipe.accumulate="
        f"{2 * config.recipe.accumulate}, model.checkpointing=norms or a smaller batch"
    )


# ---------------------------------------------------------------- layers


def _layers(state: Training, x: Tensor) -> list[Layer]:
    """Every layer with weights or neurons, in execution order, measured on samples `x` in evaluation."""
    model, x = state.evaluated.eval(), x.to(state.device)
    samples, root = x.shape[-4], type(model).__name__
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(name, tuple(output.shape))

    # neurons, and modules with weights of their own
    counted = {n: m for n, m in model.named_modules() if n and (isinstance(m, Neuron) or [*m.parameters(False)])}
    for name, module in counted.items():
        module.register_forward_hook(partial(note, name))
    with door.off(model), torch.no_grad(), firing_rates(model) as rates, FlopCounterMode(display=False) as flops:
        model(x)
    operations = energy_report(model, x)["layers"]
    imps, by_module = {id(p) for p in initial_states(model).values()}, flops.get_flop_counts()

    def layer(name: str, shape: tuple[int, ...]) -> Layer:
        module, counts = counted[name], operations.get(name, {})
        own = list(module.parameters(recurse=isinstance(module, Neuron)))
        imp = sum(p.numel() for p in own if id(p) in imps)
        return Layer(
            name, type(module).__name__, _of_a_sample(shape, samples, state.config.timesteps),
            sum(p.numel() for p in own) - imp, imp, math.prod(shape) // samples if isinstance(module, Neuron) else 0,
            sum(by_module.get(f"{root}.{name}", {}).values()) / 2 / samples, counts.get("synops", 0.0), counts.get("macs", 0.0),
            float(rates[name]) if name in rates else None,
        )  # fmt: skip

    return [layer(name, shape) for name, shape in shapes.items()]


def _of_a_sample(shape: tuple[int, ...], samples: int, timesteps: int) -> tuple[int, ...]:
    """[T, ...] of an output [T, B, ...], [T * B, ...] or [B, ...]."""
    if shape[0] == timesteps * samples:
        return timesteps, *shape[1:]
    return (1, *shape[1:]) if shape[0] == samples else (shape[0], *shape[2:])


# ---------------------------------------------------------------- formatting


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(number: float) -> str:
    """1234567 -> "1.23 M"."""
    power = min(3, max(0, int(math.log10(abs(number) or 1) // 3)))
    return f"{number / 1000**power:.3g}{('', ' k', ' M', ' G')[power]}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
