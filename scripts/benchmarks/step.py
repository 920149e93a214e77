"""Training and evaluation steps of whole networks at several spike densities, against spikingjelly or kernels=off.

The peer is the same network with the same weights on spikingjelly's nodes and torch's convolutions; the ReLU twin has
the same convolutions on T*B images, channels-last. The norms' bias sets the density. Memory is measured too.

device=cuda measures whole batches of the paper's rows on a GPU, training in float16 autocast and evaluation in float32,
ours with PyTorch only, with our kernels and with torch.compile, in channels-last and contiguous memory; without
optimiser and data loading.
"""

import re
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from benchmarks._harness import Place, in_own_process, in_words, memory, place, saved_bytes, timings
from benchmarks._report import Report, Table, rated
from benchmarks.neuron import TheirIF
from snn_repro.data.batches import keep_freed_memory
from snn_repro.kernels import KERNELS, door
from snn_repro.models import build_model
from snn_repro.runs.folder import find_results

RUNS = Path(__file__).resolve().parents[2] / "results" / "runs"
GOALS = {6: ("2x", "3x"), 27: ("1.5x", "2.1x")}  # training and evaluation, density in per cent
OURS, THEIRS, TWIN = "ours", "the same weights on spikingjelly's nodes", "ReLU twin on T*B images"
THEIRS_LAST = f"{THEIRS}, channels-last"
DENSE, SMALL = "ours, conv_backend=dense", "ours, checkpointing=blocks"
KINDS = (OURS, SMALL, DENSE, THEIRS, THEIRS_LAST, TWIN)
OFF, COMPILED, CONTIGUOUS = "ours, kernels=off", "ours, compile=true kernels=off", ", contiguous"
BY_NAME = [f"ours, kernels={name}" for name in ("compile",) if name in KERNELS]
GPU_KINDS = (
    *(kind + layout for kind in (OURS, OFF, *BY_NAME, COMPILED) for layout in ("", CONTIGUOUS)), THEIRS, THEIRS_LAST, TWIN,
)  # fmt: skip
OPTIONS: dict[str, dict] = {OURS: {}, SMALL: {"checkpointing": "blocks"}}  # of the other networks: dense


class Network(NamedTuple):
    """A network of the benchmark and its input."""

    title: str
    name: str
    shape: tuple[int, int, int]
    timesteps: int
    static: bool  # images, or frames
    options: dict = {}


SEW = Network("SEW-ResNet-18 CIFAR", "sew_resnet18_cifar", (3, 32, 32), 4, True)
VGG = Network("VGG-48", "vgg48", (2, 48, 48), 10, False, {"dropout": 0.0})
SPIKFORMER = Network(
    "Spikformer-4-384 CIFAR", "spikformer", (3, 32, 32), 4, True,
    {"embed_dims": 384, "num_heads": 12, "depths": 4, "patch_size": 4},
)  # fmt: skip
MAX_FORMER = Network("Max-Former-4-384 CIFAR", "maxformer_cifar", (3, 32, 32), 4, True)
LARGE = Network("SEW-ResNet-18 ImageNet", "sew_resnet18", (3, 224, 224), 4, True)
TOY = Network("small", "small", (1, 4, 4), 2, True)


def measure(rounds: int = 7, quick: bool = False, device: str = "cpu") -> Report:
    """Run the benchmark and return its report."""
    if device != "cpu":
        return on_gpu(place(device), 3 * rounds, quick)
    keep_freed_memory()
    plan = [(SEW, 8, (6, 27, 50)), (SEW, 32, (6,)), (VGG, 2, (6, 27, 50))]
    tables = []
    for network, batch, percents in [(TOY, 2, (27,))] if quick else plan:
        for percent in percents:
            tables += _at_density(network, batch, percent, rounds if batch < 32 else 3, quick)
    for network, batch in [(TOY, 2)] if quick else [(SPIKFORMER, 8), (MAX_FORMER, 4)]:
        tables += _against_torch(network, batch, 10, rounds)
    tables += _trained_densities()
    how = "malloc keeps freed memory, for the peers as well. A step is forward and backward, without the optimiser."
    return Report("Whole steps of a network", how, tables, ("torch", "numba", "spikingjelly"))


GPU_PLAN = ((LARGE, 64), (SEW, 256), (VGG, 32))


def on_gpu(on: Place, rounds: int, quick: bool, plan: tuple[tuple[Network, int], ...] = GPU_PLAN) -> Report:
    """Whole batches on a GPU (in a test, on a CPU); with a plan of one's own nothing compiled is evaluated."""
    tables = []
    for network, batch in ((TOY, 2),) if quick else plan:
        tables += _batches(network, batch, rounds, quick, on, plan != GPU_PLAN)
    how = "A step is forward and backward, without the optimiser and without loading."
    return Report("Whole steps of a network on a GPU", how, tables, ("torch", "triton", "spikingjelly"), gpu=on.facts)


def _batches(network: Network, batch: int, rounds: int, quick: bool, on: Place, short: bool) -> list[Table]:
    title = f"{network.title}, B={batch}, T={network.timesteps}"
    mixed = torch.autocast("cuda", torch.float16, enabled=on.device != "cpu")
    steps: dict[str, Callable] = {}
    evaluations: dict[str, Callable] = {}
    wrong: list[str] = []
    for kind in GPU_KINDS:
        if quick and kind.startswith(COMPILED):
            continue
        x = _input(network, batch, kind).to(on.device)
        try:
            model = _build(kind, network, 0.0).to(on.device)
            if named := re.search(r"kernels=(\w+)", kind):
                door.use(model, named[1])
            if kind.startswith(COMPILED):
                model.compile()
            step = _training(model, x, mixed)
            step()
        except Exception as error:  # no compiler, too little memory, ...
            wrong.append(f"{title}: {kind} does not run ({in_words(error)})")
            continue
        steps[kind] = step
        if not (short and kind.startswith(COMPILED)):
            evaluations[kind] = _evaluation(model, x)
    goal = "Goal: 1.2x spikingjelly's nodes, 0.75x the ReLU twin."
    if not steps:
        return [Table(f"{title}: training", {}, goal, wrong=wrong)]
    rows = rated(timings(steps, rounds, on.clock), batch, "samples")
    for kind in steps if on.facts else ():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[kind]()
        rows[kind]["peak MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    evaluated = rated(timings(evaluations, rounds, on.clock), batch, "samples")
    return [Table(f"{title}: training", rows, goal, wrong=wrong), Table(f"{title}: evaluation", evaluated)]


# ------------------------------------------------------------------ the networks


def _plain(ours: nn.Conv2d) -> nn.Conv2d:
    sizes: dict = {
        key: getattr(ours, key) for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    }
    plain = nn.Conv2d(**sizes, bias=ours.bias is not None)
    plain.load_state_dict(ours.state_dict())
    return plain


def _build(kind: str, network: Network, shift: float) -> nn.Module:
    """The network of `kind`, always with the same weights and every norm's bias at `shift`."""
    torch.manual_seed(0)
    options = {**network.options, **OPTIONS.get(kind, {"conv_backend": "dense"})}
    sizes: dict = {"num_classes": 10, "input_shape": network.shape, "timesteps": network.timesteps}
    model = build_model(network.name, **sizes, neuron={"name": "if"}, **options)
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, shift)
        for name, child in list(module.named_children()):
            if kind in (THEIRS, THEIRS_LAST) and isinstance(child, nn.Conv2d):
                setattr(module, name, _plain(child))
            elif kind in (THEIRS, THEIRS_LAST, TWIN) and isinstance(child, neuron.BaseNode):
                setattr(module, name, nn.ReLU() if kind == TWIN else TheirIF())
    contiguous = kind == THEIRS or kind.endswith(CONTIGUOUS)
    return model if contiguous else model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as train does


def _input(network: Network, batch: int, kind: str) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if not network.static:
        return torch.poisson(torch.full((network.timesteps, batch, *network.shape), 0.3), generator=draw)
    x = torch.randn(batch, *network.shape, generator=draw)
    return x.expand(network.timesteps, *x.shape).contiguous() if kind == TWIN else x


def _with_statistics(kind: str, network: Network, shift: float, x: torch.Tensor) -> nn.Module:
    """The network with running statistics of this batch, so that evaluation has the same densities."""
    model = _build(kind, network, shift)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.0
    return model


def _training(model: nn.Module, x: torch.Tensor, mixed: AbstractContextManager | None = None) -> Callable[[], None]:
    """One training step without the optimiser, whose cost is the same for all."""

    def step() -> None:
        model.train()
        functional.reset_net(model)
        with mixed or nullcontext():
            logits = model(x).float()
        logits.mean(0).logsumexp(-1).mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def _evaluation(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        model.eval()
        functional.reset_net(model)
        with torch.inference_mode():
            return model(x)

    return step


# ------------------------------------------------------------------ counting


def _watched(model: nn.Module, x: torch.Tensor, modules: dict[str, nn.Module], count: Callable) -> dict:
    """name -> count(inputs, output) of these modules in one training forward."""
    counts: dict = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: counts.__setitem__(name, count(i, o)))
        for name, module in modules.items()
    ]
    with torch.inference_mode():
        model.train()(x)
    for hook in hooks:
        hook.remove()
    return counts


def _input_densities(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Fraction of nonzero inputs of each convolution except the first (images, counts)."""
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d)][1:]
    counts = _watched(model, x, dict(convolutions), lambda i, o: (int(i[0].count_nonzero()), i[0].numel()))
    mean = sum(c for c, _ in counts.values()) / sum(n for _, n in counts.values())
    return {"mean over all inputs": mean, **{name: c / n for name, (c, n) in counts.items()}}


def _neuron_steps(model: nn.Module, x: torch.Tensor) -> int:
    """Neuron-steps of one forward: the maximum number of spikes."""
    neurons = {n: m for n, m in model.named_modules() if isinstance(m, neuron.BaseNode)}
    return sum(_watched(model, x, neurons, lambda i, o: o.numel()).values())


def _shift_for(network: Network, target: float, x: torch.Tensor) -> float:
    """The norms' bias at which the mean input density of the convolutions is `target`."""
    low, high = -2.0, 2.0
    for _ in range(9):
        middle = (low + high) / 2
        density = _input_densities(_build(OURS, network, middle), x)["mean over all inputs"]
        low, high = (middle, high) if density < target else (low, middle)
    return middle


def _peak_memory(kind: str, network: Network, batch: int, shift: float) -> float:
    """In a fresh process: MiB of one training step beyond the network and its input."""
    one = _input(network, 1, kind)
    model = _with_statistics(kind, network, shift, one)
    _training(model, one)()  # load and compile what is needed
    step = _training(model, _input(network, batch, kind))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    step()
    return memory("VmHWM") - before


# ------------------------------------------------------------------ measurements


def _at_density(network: Network, batch: int, percent: int, rounds: int, quick: bool) -> list[Table]:
    shift = _shift_for(network, percent / 100, _input(network, min(batch, 4), OURS))
    inputs = {kind: _input(network, batch, kind) for kind in KINDS}
    models = {kind: _with_statistics(kind, network, shift, x) for kind, x in inputs.items()}
    one = _input(network, 1, OURS).double()  # in double precision rounding flips no spike
    a, b = (_evaluation(_build(kind, network, shift).double(), one)() for kind in (OURS, THEIRS))
    assert torch.allclose(a, b, atol=1e-8), "our network computes something else than spikingjelly's"
    densities = _input_densities(models[OURS], inputs[OURS])
    mean = densities["mean over all inputs"]
    title = f"{network.title}, B={batch}, T={network.timesteps}, mean input density {mean:.1%}"
    print(f"# {title}", file=sys.stderr, flush=True)
    tables = []
    goals = [f"at least {g} spikingjelly's nodes, and faster than the ReLU twin" for g in GOALS.get(percent, ())]
    parts: dict[str, Callable] = {"training": _training, "evaluation": _evaluation}
    for i, (what, make) in enumerate(parts.items()):
        kinds = [kind for kind in KINDS if (what, kind) != ("evaluation", SMALL)]
        rows = timings({kind: make(models[kind], inputs[kind]) for kind in kinds}, rounds)
        goal = goals[i] if goals else "not slower than dense"
        tables.append(Table(f"{title}: {what}", rated(rows, batch, "samples"), f"Goal: {goal}."))
    if percent == 27:  # saved memory does not depend on the density
        compared = (OURS, SMALL, THEIRS, TWIN)
        steps = _neuron_steps(models[OURS], inputs[OURS])
        rows = {kind: {} for kind in compared}
        for kind in compared:
            own = (*models[kind].parameters(), *models[kind].buffers(), inputs[kind])
            rows[kind]["saved_bytes"] = saved_bytes(models[kind].train(), inputs[kind], own) / steps
        del models
        for kind in compared:
            asked = (kind, network, batch, shift)
            rows[kind]["peak MiB"] = _peak_memory(*asked) if quick else in_own_process(_peak_memory, *asked)
        for key in ("saved_bytes", "peak MiB"):
            for row in rows.values():
                row[f"{key.split('_')[0]} / spikingjelly's"] = row[key] / max(rows[THEIRS][key], 1e-9)
        goal = "Goal: at most 0.75 of spikingjelly's peak and half of what it saves."
        tables.append(Table(f"{title}: memory of a training step beyond the network", rows, goal))
    rates = {name: {"per cent": 100 * density} for name, density in densities.items()}
    goal = f"Goal: a mean of {percent} per cent, set by the norms' bias ({shift:.2f})."
    return [*tables, Table(f"{title}: density of each convolution's input", rates, goal)]


def _against_torch(network: Network, batch: int, percent: int, rounds: int) -> list[Table]:
    """A transformer's steps with our kernels, with dense convolutions and with PyTorch only."""
    x = _input(network, batch, OURS)
    shift = _shift_for(network, percent / 100, x[:2])
    models = {kind: _with_statistics(kind, network, shift, x) for kind in (OURS, DENSE, OFF)}
    door.use(models[OFF], "off")
    densities = _input_densities(models[OURS], x)
    title = f"{network.title}, B={batch}, T={network.timesteps}, {densities['mean over all inputs']:.1%} against torch"
    print(f"# {title}", file=sys.stderr, flush=True)
    tables = []
    for what, make, goal in (("training", _training, "1.8x"), ("evaluation", _evaluation, "3x")):
        rows = timings({kind: make(model, x) for kind, model in models.items()}, rounds)
        tables.append(Table(f"{title}: {what}", rated(rows, batch, "samples"), f"Goal: {goal} kernels=off."))
    rates = {name: {"per cent": 100 * density} for name, density in densities.items()}
    return [*tables, Table(f"{title}: density of each convolution's input", rates)]


def _trained_densities() -> list[Table]:
    """Firing rates of trained networks, from results/runs/."""
    values: dict[str, list[float]] = {}
    for result in find_results(RUNS):
        for layer, rate in result.get("firing_rates", {}).items():
            values.setdefault(f"{result['name']}: {layer}", []).append(100 * rate)
    rows = {name: {"per cent": statistics.mean(rates)} for name, rates in values.items()}
    title, goal = "Firing rates of trained networks (mean over seeds)", "To know which of the densities above are real."
    return [Table(title, rows, goal)] if rows else []
