"""`dry_run=true`: what a run would be, before it is one. All is built as for the run, a few steps are measured, nothing is left.

`hours_of_training` needs no data: an estimate for rows that never ran, from a step of their network on random ones.

Times are those of training and evaluation steps on the run's own data after kernels were compiled (the first steps, told
apart), memory is the most that this process had. Multiply-accumulates are PyTorch's count (FlopCounterMode), synaptic operations
spikingjelly's, at the firing rates of a batch of test samples after the measured training steps, batch norms with the
statistics of one training batch.
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
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from snn_repro import distributed
from snn_repro.build import adapt_surrogates, begin_epoch, build_network, check_settings
from snn_repro.config import Config, ConfigError, config_hash, frame_shape
from snn_repro.console import text_table
from snn_repro.data import Data
from snn_repro.energy import energy_report
from snn_repro.errors import StopRequest, UserError
from snn_repro.kernels import KERNELS, door
from snn_repro.losses import build_loss
from snn_repro.models import count_parameters
from snn_repro.models.blocks import same_statistics
from snn_repro.neurons import Neuron, firing_rates, initial_states
from snn_repro.optim import build_optimizer
from snn_repro.registry import SETS
from snn_repro.runs import sweeps
from snn_repro.runs.folder import Follower
from snn_repro.runtime import Precision, channels_last, peak_memory, pick_device
from snn_repro.train import Training, built, evaluate

WARM_UP, FEWEST = 3, 3  # training steps whose time is that of compiling and of first allocations too; measured ones
SECONDS = 6.0  # of measured training steps, and at most a third of it of evaluation
PROBE = 2  # samples of the step that memory is foretold from
COUNTED = 16  # test samples whose operations are counted
REPEATS = 0.5  # seconds of a step on random data
ON_A_GPU = 16  # samples in such a step there
COLUMNS = ("layer", "kind", "output", "weights", "IMP", "neuron-steps", "MACs", "synops", "rate")


class TooLarge(UserError):
    """A step does not fit the memory."""


class Layer(NamedTuple):
    """What one layer does for one sample."""

    name: str
    kind: str
    shape: tuple[int, ...]  # of its output, [T, C, H, W] or [T, features]; T is 1 where a still image passes once
    weights: int
    imp: int
    neuron_steps: int
    macs: float  # multiply-accumulates, all inputs counted
    synops: float  # accumulations that spikes cause, at this batch's rates
    value_macs: float  # multiply-accumulates of inputs that are no spikes: pixels, counts, means, sums
    rate: float | None  # spikes a neuron and step

    def cells(self) -> tuple[str, ...]:
        numbers = self.weights, self.imp, self.neuron_steps, self.macs, self.synops
        rate = "" if self.rate is None else f"{self.rate:.3f}"
        return self.name, self.kind, _by(self.shape), *(_short(n) if n else "" for n in numbers), rate


@dataclasses.dataclass
class Report:
    """Numbers of a run that was not made. Times are seconds, memory is MB."""

    config: Config
    data: Data
    device: str
    layers: list[Layer]
    weights: int
    imp: int
    steps: int  # of an epoch
    step_seconds: float
    warm_up_seconds: float  # what the first steps took more
    epoch_seconds: float
    memory_mb: float

    @property
    def run_seconds(self) -> float:
        return self.warm_up_seconds + self.config.recipe.epochs * self.epoch_seconds

    def total(self, number: str) -> float:
        """The sum of a number of all layers, for one sample."""
        return sum(getattr(layer, number) for layer in self.layers)

    def text(self, overrides: list[str]) -> str:
        """The report as it is printed, and the command that starts the run."""
        c, split = self.config, self.data.split
        macs, synops, value_macs = (_short(self.total(n)) for n in ("macs", "synops", "value_macs"))
        lines = [
            f"{c.name} seed {c.seed}: {split.n_train:,} training, {split.n_val:,} validation, {split.n_test:,} test samples "
            f"({split.id}), {self.data.num_classes} classes, input {_by(self.data.input_shape)}, T={c.timesteps}, {self.device}",
            *text_table("", COLUMNS, [layer.cells() for layer in self.layers], left=3).splitlines()[1:],
            "",
            f"parameters    {self.weights:,} weights + {self.imp:,} IMP",
            f"a sample      {self.total('neuron_steps'):,} neuron-steps; dense {macs} multiply-accumulates, else {synops} synaptic "
            f"operations and {value_macs} multiply-accumulates of inputs that are no spikes, at the rates of one batch now",
            f"an epoch      {self.steps:,} steps of {c.recipe.batch_size}, {self.step_seconds * 1e3:,.1f} ms each;"
            f" with evaluation {_time(self.epoch_seconds)}",
            f"the run       {c.recipe.epochs:,} epochs, {_time(self.run_seconds)} ({_time(self.warm_up_seconds)} of it until"
            " kernels are ready; less when they were compiled before)",
            f"peak memory   {self.memory_mb:,.0f} MB",
            "",
            "nothing was written; start it with",
            f"  {shlex.join(['python', '-m', 'snn_repro.train', *(o for o in overrides if not o.startswith('dry_run='))])}",
        ]
        return "\n".join(lines)


def dry_run(config: Config) -> Report:
    """Build what `config` says and measure it. Raises UserError where a run would, and where a batch fits no memory."""
    if distributed.world().size > 1:
        raise ConfigError("dry_run=true measures one process; start it without torchrun or srun")
    config = dataclasses.replace(config, dry_run=False)
    check_settings(config)
    device = pick_device(config)
    with tempfile.TemporaryDirectory() as scratch:
        state, data, (train, val, test) = built(Follower(Path(scratch), None), config, device, StopRequest())
        x, _ = next(iter(train.epoch(0)))
        probed = _seconds(lambda: enough_memory(state, x))
        try:
            times = _training(state, train)
            step = fmean(times[WARM_UP:])
            with door.off(state.evaluated):  # as after an epoch: after a few steps no neuron would fire
                update_bn([x.to(device)], state.evaluated)
            evaluation = sum(_evaluation(state, part) for part in (val, test) if part is not None)
        except torch.OutOfMemoryError:
            raise _too_large(config, f"does not fit the memory of {device}") from None
        saving = _seconds(lambda: state.save_epoch(0, is_best=True))
        memory = peak_memory(device)
    layers = _layers(state, next(iter(test.epoch(0)))[0][..., :COUNTED, :, :, :])
    return Report(
        config, data, str(device), layers, *count_parameters(state.model), state.steps, step,
        max(0.0, probed + sum(times[:WARM_UP]) - WARM_UP * step), state.steps * step + evaluation + saving, memory,
    )  # fmt: skip


def dry_sweep(overrides: list[str]) -> Iterator[str]:
    """The lines of a sweep's dry run: the hours of what is not finished, seeds apart, and of all of it.

    Runs that differ in the seed alone are measured once. Raises UserError where a sweep would before its first run.
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
    total = f"{len(left)} of {len(jobs)} runs are left: {_time(sum(seconds))} one after another"
    if "hydra/launcher=gpus" in overrides and seconds:
        number = len(sweeps.gpus_for(left))
        total += f", about {_time(max(max(seconds), sum(seconds) / number))} on {number} GPUs"
    unknown = len(left) - len(seconds)
    yield total + (f", and {unknown} runs unknown" if unknown else "") + "; nothing was written"


# ---------------------------------------------------------------- time


def _paced(work: Callable[[], Any], first: int, fewest: int, seconds: float) -> list[float]:
    """Seconds of each call: of the `first` ones, and then of as many as take `seconds`, at least `fewest`."""
    times: list[float] = []
    while len(times) < first + fewest or sum(times[first:]) < seconds:
        times.append(_seconds(work))
    return times


def _training(state: Training, batches: Any) -> list[float]:
    """Seconds of steps as an epoch has them, loading included; the WARM_UP first ones compile too."""
    begin_epoch(0, state.config.recipe.epochs, state.model, state.ema, state.loss_fn)
    state.model.train()
    epochs: Iterator = itertools.chain.from_iterable(batches.epoch(e) for e in itertools.count())

    def step() -> None:
        x, target = (value.to(state.device, non_blocking=True) for value in next(epochs))
        if state.step == 0:
            adapt_surrogates(state.model, state.loss_fn, x, target)
        state.step += 1
        float(state.train_step(x, target, len(target))[0])  # waits for a GPU

    return _paced(step, WARM_UP, FEWEST, SECONDS)


def _evaluation(state: Training, batches: Any) -> float:
    """Seconds of the evaluation of one part of the data."""

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


# ---------------------------------------------------------------- without data

_measured: dict[str, tuple[float, float]] = {}


def network_key(config: Config) -> str:
    """What a step costs by, IMP, loss and number of classes aside: rows with the same key are measured once."""
    shape = "x".join(map(str, frame_shape(config)))
    neuron = " ".join(str(getattr(config.neuron, key, None)) for key in ("name", "reset", "surrogate"))
    norm = getattr(config.model, "norm", None)
    return f"{config.model.name} norm {norm} {shape} T {config.timesteps} {neuron} {config.recipe.optimizer}"


def hours_of_training(config: Config, say: Callable[[str], None] = lambda _: None) -> tuple[float, str, float]:
    """(hours, "cpu" or "cuda", samples a second) of a run's training here, without loading and evaluation.

    Raises TooLarge, or UserError where the device or the network cannot be had.
    """
    device = pick_device(config)
    key = f"{network_key(config)} on {device.type}"
    if key not in _measured:
        say(f"timing a step of {key}")
        _measured[key] = measure(config, device)
    sample, step = _measured[key]
    speed, facts = 1 / (sample + step / config.recipe.batch_size), SETS[config.dataset.name].of(config)
    n_train = config.dataset.train_subset or facts.samples[0] or facts.about or 0
    return config.recipe.epochs * n_train / speed / 3600, device.type, speed


def measure(config: Config, device: torch.device) -> tuple[float, float]:
    """(seconds a sample, forward and backward; seconds an optimiser step), of the row's network from random weights."""
    gpu, (_, height, width) = device.type == "cuda", frame_shape(config)
    if gpu:
        steps, batch = config.timesteps, min(ON_A_GPU, config.recipe.batch_size)
    else:  # its time grows with pixels, samples and steps alike: one step of few samples will do
        steps, batch = 1, min(32, max(2, 224 * 224 // (height * width)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        facts, shape = SETS[config.dataset.name].of(config), frame_shape(config)
        network = build_network(dataclasses.replace(config, timesteps=steps), facts.num_classes, shape)
        if not gpu:
            door.set_backend(network, "dense")  # what is sparse in a trained network is not known
        model: Any = channels_last(network, device)
        x = torch.randn(batch, *shape) if facts.static else torch.poisson(torch.full((steps, batch, *shape), 0.3))
        x, target = x.to(device), torch.randint(facts.num_classes, (batch,)).to(device)
        loss_fn, optimizer, amp = build_loss("sdt"), build_optimizer(model, config.recipe), Precision(config, device)

        def compute() -> None:
            with amp.autocast():
                logits = model(x).float()
            amp.scaler.scale(loss_fn(logits, target)).backward()
            torch.cuda.synchronize() if gpu else None

        def step() -> None:
            amp.scaler.step(optimizer)
            amp.scaler.update()
            torch.cuda.synchronize() if gpu else None

        try:
            computing, stepping = (median(_paced(work, 1, 1, REPEATS)[1:]) for work in (compute, step))
        except torch.OutOfMemoryError:
            raise TooLarge(f"a step of {batch} samples does not fit the memory of {device}") from None
    return computing / batch * config.timesteps / steps, stepping


# ---------------------------------------------------------------- memory


def enough_memory(state: Training, x: Tensor) -> None:
    """Raise UserError where a CPU has not the memory that a training step keeps, by what a step of two samples keeps."""
    if state.device.type != "cpu":
        return  # a GPU says so itself, and the process survives it
    kept = kept_by_a_sample(state, x[..., :PROBE, :, :, :]) * -(-x.shape[-4] // state.parts)
    if kept > (free := available_memory()):
        why = f"keeps {kept / 2**30:.1f} GiB for its backward pass, and {free / 2**30:.1f} are free"
        raise _too_large(state.config, why)


def kept_by_a_sample(state: Training, x: Tensor) -> float:
    """Bytes of the tensors that the forward pass of a sample keeps for the backward pass, each memory once."""
    model = state.model.train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, Tensor] = {}  # alive, so that no memory is counted for two

    def pack(t: Tensor) -> Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    door.set_backend(model, "dense")  # auto would measure for two samples what no run needs
    with (
        torch.random.fork_rng(devices=[]), same_statistics(model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), state.amp.autocast(),
    ):  # fmt: skip
        model(x, last_step=state.loss_fn.last_step)
    door.set_backend(model, KERNELS[state.config.kernels][1])
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own) / x.shape[-4]


def available_memory() -> float:
    """Bytes that this machine has left; infinite where it does not say."""
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+)", info.read_text()) if info.exists() else None
    return float(found[1]) * 1024 if found else math.inf


def _too_large(config: Config, why: str) -> UserError:
    return TooLarge(
        f"a training step of recipe.batch_size={config.recipe.batch_size} {why}; set recipe.accumulate="
        f"{2 * config.recipe.accumulate}, model.checkpointing=norms or a smaller batch"
    )


# ---------------------------------------------------------------- layers


def _layers(state: Training, x: Tensor) -> list[Layer]:
    """Every layer that has weights or neurons, in the order in which they run, for the samples `x` in evaluation."""
    model, x = state.evaluated.eval(), x.to(state.device)
    samples, root = x.shape[-4], type(model).__name__
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(name, tuple(output.shape))

    # layers of their own: neurons, and what has weights that belong to none of its parts
    counted = {
        n: m for n, m in model.named_modules() if n and (isinstance(m, Neuron) or [*m.parameters(recurse=False)])
    }
    for name, module in counted.items():
        module.register_forward_hook(partial(note, name))
    with door.off(model), torch.no_grad(), firing_rates(model) as rates, FlopCounterMode(display=False) as flops:
        model(x)
    operations = energy_report(model, x)["layers"]
    imps = {id(p): name for name, p in initial_states(model).items()}
    by_module = flops.get_flop_counts()

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


# ---------------------------------------------------------------- words


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
