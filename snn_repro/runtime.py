"""On what a run computes: device, threads, precision, seeds, compiler, and how processes share a batch."""

import os
import random
import resource
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from snn_repro import distributed
from snn_repro.config import Config, ConfigError
from snn_repro.data.batches import keep_freed_memory
from snn_repro.kernels import KERNELS, neuron
from snn_repro.kernels.door import prepare
from snn_repro.models.norms import synchronise
from snn_repro.neurons import initial_states


def threads(config: Config) -> int:
    """CPU threads of this run."""
    return config.threads or (1 if config.model.name == "small" else torch.get_num_threads())


def pick_device(config: Config) -> torch.device:
    """The device of this run, with the thread count set. Raises ConfigError for a GPU that is not there."""
    kind, _, index = config.device.partition(":")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not there:
        raise ConfigError(
            f"device={config.device} but torch sees no GPU; use device=cpu, or install a CUDA build of torch"
        )
    torch.set_num_threads(threads(config))
    keep_freed_memory()  # a quarter of a step's time on a CPU is page faults otherwise, and most of making a batch
    neuron.fresh = False
    _, processes, number = distributed.world()
    if kind == "cpu" or not there:
        return torch.device("cpu")
    if index and processes > 1:
        raise ConfigError(
            f"device={config.device} is one GPU for {processes} processes; device=cuda gives each its own"
        )
    if index and int(index) >= there:
        seen = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(there))
        raise ConfigError(f"device={config.device} is not there; torch sees {seen}")
    if not index and processes == 1:
        return torch.device("cuda")
    if not index and number >= there:
        raise ConfigError(
            f"process {number + 1} of this machine has no GPU, torch sees {there}; start one process a GPU, or use device=cpu"
        )
    device = torch.device("cuda", int(index or number))
    torch.cuda.set_device(device.index)
    return device


class Precision:
    """Autocast and gradient scaling of `recipe.amp` on a device; evaluation is always float32.

    Raises ConfigError where the device has no such arithmetic.
    """

    def __init__(self, config: Config, device: torch.device):
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
        self.kind, self.dtype = device.type, {"fp16": torch.float16, "bf16": torch.bfloat16}.get(amp)

    def autocast(self) -> torch.autocast:
        """The context in which training's forward pass runs."""
        return torch.autocast(self.kind, dtype=self.dtype, enabled=self.dtype is not None)


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as torch can tell."""
    if hasattr(torch.cpu, "get_capabilities"):
        units = torch.cpu.get_capabilities()
        return any(units.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    older = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # some versions of torch have both, one or none
    return any(getattr(torch.cpu, name, bool)() for name in older)


def seed_everything(config: Config) -> None:
    """Seed Python, NumPy and torch; data order and augmentation have generators of their own (data/batches.py)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    seed_generators(config.seed)
    if config.compile:  # tells the compiler too, and imports it: most of a second
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn" if config.deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # our kernels write all they allocate
    benchmark = config.cudnn_benchmark
    torch.backends.cudnn.benchmark = not config.deterministic if benchmark == "auto" else benchmark == "always"


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def placed(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """The network as it trains on a device: in its order of memory, with synchronised norms, compiled."""
    model = channels_last(model, device)
    if config.recipe.sync_bn and distributed.world().size > 1:
        synchronise(model)
    if config.compile:
        compile_network(model, device, config.compile)
    return model


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, with weights (on CUDA initial states [C, H, W] too) in the memory order that its layers work
    in."""
    model = model.to(device)
    if device.type not in ("cpu", "cuda"):
        return model
    if device.type == "cuda":  # the kernels would reorder them in every pass
        for state in initial_states(model).values():
            if state.dim() == 3:
                state.data = state.data[None].contiguous(memory_format=torch.channels_last)[0]
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_network(model: nn.Module, device: torch.device, mode: bool | str = True) -> None:
    """torch.compile the network in place, so that its weights keep their names; mode: `compile` of the configuration.

    Raises ConfigError without a compiler.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise ConfigError(
                f"compile={str(mode).lower()} needs a C++ compiler on a CPU and none was found; install g++ or use compile=false"
            ) from None
    model.compile(**({"mode": mode} if isinstance(mode, str) else {}))


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


def conditions(config: Config, device: torch.device, precision: str, model: nn.Module) -> dict[str, Any]:
    """What no key of the configuration hash says and yet moves numbers, by rounding at least; result.json keeps it.

    neuron_backend: of the spiking layers, "auto" resolved; on CUDA kernels that were never checked on this GPU are checked now,
    by the first process. tf32_convolutions: those in float32, as evaluation's are, keep 10 bits of the mantissa on Ampere and later,
    unless `torch.backends.cudnn.allow_tf32` is switched off.
    """
    trained = {"fp16 autocast": torch.float16, "bf16 autocast": torch.bfloat16}.get(precision, torch.float32)
    with distributed.main_first():
        backend = prepare(model, device, tuple({trained: 0, torch.float32: 0}), config.timesteps)
    processes = distributed.world().size
    here = dict(
        device=device.type, precision=precision, threads=torch.get_num_threads(), processes=processes,
        images_per_statistic=images_per_statistic(config, processes), neuron_backend=backend,
        conv_backend=KERNELS[config.kernels][1], compile=config.compile, torch=str(torch.__version__),
    )  # fmt: skip
    if device.type == "cuda":
        here["cuda"] = dict(
            gpu=torch.cuda.get_device_name(device), cudnn_benchmark=torch.backends.cudnn.benchmark,
            tf32_convolutions=torch.backends.cudnn.allow_tf32, tf32_matmuls=torch.backends.cuda.matmul.allow_tf32,
        )  # fmt: skip
    return here


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: allocated on the GPU, or resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
