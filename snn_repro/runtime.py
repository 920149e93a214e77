"""Execution of a run: device, threads, precision, seeds, compiler, split of a batch over processes."""

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
from snn_repro.kernels.door import compile_if_repaid as compile_if_repaid
from snn_repro.kernels.door import prepare
from snn_repro.models.norms import synchronise
from snn_repro.neurons import initial_states


def threads(config: Config) -> int:
    """CPU threads of this run."""
    return config.threads or (1 if config.model.name == "small" else torch.get_num_threads())


def pick_device(config: Config) -> torch.device:
    """Select the device and set the thread count; raises ConfigError for a missing GPU."""
    kind, _, index = config.device.partition(":")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not there:
        raise ConfigError(
            f"device={config.device} but torch sees no GPU; use device=cpu, or install a CUDA build of torch"
        )
    torch.set_num_threads(threads(config))
    keep_freed_memory()  # page faults would take a quarter of a step on a CPU, and most of making a batch
    neuron.fresh = False
    _, processes, number = distributed.world()
    if kind == "cpu" or not there:
        return torch.device("cpu")
    if index and processes > 1:
        raise ConfigError(
            f"device={config.device} is one GPU for {processes} processes; use device=cuda for one GPU each"
        )
    if index and int(index) >= there:
        seen = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(there))
        raise ConfigError(f"device={config.device} does not exist; torch sees {seen}")
    if not index and processes == 1:
        return torch.device("cuda")
    if not index and number >= there:
        raise ConfigError(
            f"process {number + 1} of this machine has no GPU: torch sees {there}; start one process per GPU, or use device=cpu"
        )
    device = torch.device("cuda", int(index or number))
    torch.cuda.set_device(device.index)
    return device


class Precision:
    """Autocast and gradient scaling for `recipe.amp`; evaluation is always float32.

    Raises ConfigError where the device does not support the precision.
    """

    def __init__(self, config: Config, device: torch.device):
        usual = "fp16" if device.type == "cuda" else "off"
        amp = usual if config.recipe.amp == "auto" else config.recipe.amp
        wrong = {
            "fp16 needs a GPU; on a CPU use recipe.amp=off, or bf16 with hardware support":
                device.type == "cpu" and amp == "fp16",
            "bf16 on this CPU is many times slower than float32: it has no bfloat16 units (AVX512-BF16 or AMX); use "
            "recipe.amp=off or auto": device.type == "cpu" and amp == "bf16" and not has_bf16_units(),
            "bf16 but this GPU has no bfloat16; use recipe.amp=fp16":
                device.type == "cuda" and amp == "bf16" and not torch.cuda.is_bf16_supported(),
        }  # fmt: skip
        for why in (why for why, holds in wrong.items() if holds):
            raise ConfigError(f"recipe.amp={why}")
        self.name = {"off": "float32", "fp16": "fp16 autocast", "bf16": "bf16 autocast"}[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.kind, self.dtype = device.type, {"fp16": torch.float16, "bf16": torch.bfloat16}.get(amp)

    def autocast(self) -> torch.autocast:
        """Autocast context of the training forward pass."""
        return torch.autocast(self.kind, dtype=self.dtype, enabled=self.dtype is not None)


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as torch reports it."""
    if hasattr(torch.cpu, "get_capabilities"):
        return any(map(torch.cpu.get_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")))
    older = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # some versions of torch have both, one or none
    return any(getattr(torch.cpu, name, bool)() for name in older)


def seed_everything(config: Config) -> None:
    """Seed Python, NumPy and torch and set determinism; data/batches.py has its own generators."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed for a deterministic cuBLAS
    seed_generators(config.seed)
    if config.compile:  # also sets the compiler, whose import takes most of a second
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
    """The network ready to train: on its device, channels last, norms synchronised, compiled."""
    model = channels_last(model, device)
    if config.recipe.sync_bn and distributed.world().size > 1:
        synchronise(model)
    if config.compile:
        compile_network(model, device, config.compile)
    return model


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the network to the device, channels last (on CUDA initial states too)."""
    model = model.to(device)
    if device.type not in ("cpu", "cuda"):
        return model
    if device.type == "cuda":  # else the kernels would reorder them in every pass
        for state in initial_states(model).values():
            if state.dim() == 3:
                state.data = state.data[None].contiguous(memory_format=torch.channels_last)[0]
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_network(model: nn.Module, device: torch.device, mode: bool | str = True) -> None:
    """torch.compile in place, which keeps parameter names; raises ConfigError without a C++ compiler."""
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
    """Number of parts in which each process runs its share of a batch.

    Keeps the images per batch statistic of the recipe: `recipe.accumulate` parts of the whole batch, each on one
    process (with sync_bn on all). Raises ConfigError where the batch cannot be divided so.
    """
    recipe = config.recipe
    if recipe.batch_size % processes:
        raise ConfigError(
            f"recipe.batch_size={recipe.batch_size} is the total of {processes} processes and cannot be "
            f"divided evenly; use a multiple of {processes}"
        )
    if processes == 1 or recipe.accumulate == 1 or recipe.sync_bn:
        return recipe.accumulate
    parts = -(-recipe.accumulate // processes)
    if max(recipe.accumulate, processes) != parts * processes or recipe.batch_size % (parts * processes):
        raise ConfigError(
            f"recipe.accumulate={recipe.accumulate} parts of a batch of {recipe.batch_size} cannot be divided evenly among "
            f"{processes} processes, and batch statistics would cover another number of images; use a number of "
            f"processes that divides {recipe.accumulate}, or set recipe.accumulate to a multiple of {processes}"
        )
    return parts


def images_per_statistic(config: Config, processes: int) -> int:
    """Images per batch statistic of a training step, each with all its time steps."""
    together = 1 if config.recipe.sync_bn else processes
    return config.recipe.batch_size // (parts_of_a_batch(config, processes) * together)


def conditions(config: Config, device: torch.device, precision: str, model: nn.Module) -> dict[str, Any]:
    """Conditions outside the configuration hash that change results, at least by rounding.

    neuron_backend: backend of the spiking layers, "auto" resolved; unverified CUDA kernels are verified now, by rank 0.
    tf32_convolutions: float32 convolutions, evaluation included, keep 10 bits of the mantissa on Ampere and later,
    unless `torch.backends.cudnn.allow_tf32` is off.
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
    """Peak memory in MB: allocated on the GPU, or resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
