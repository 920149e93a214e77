"""Distributed training: one process per GPU (or CPU), started by torchrun or srun.

Each process has a share of every batch. With one process every function here does nothing. Numbers and Python objects
are sent over gloo, gradients over NCCL where there are GPUs.
"""

import atexit
import contextlib
import os
import re
import subprocess
import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from snn_repro.errors import UserError


class World(NamedTuple):
    """This process: rank, number of processes (size), and rank on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


class ProcessError(UserError):
    """Another process of this run failed or exited."""


_store = None  # key-value store in which a process reports its error to the others
_broken = False


def world() -> World:
    """Rank and size from torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID, ...).

    Of SLURM's variables only those of a job *step* count: a batch script has SLURM_NTASKS too, but is one process.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    for rank, size, local in names:
        if rank in os.environ and size in os.environ:
            return World(int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, 0)))
    return World()


def cores() -> int:
    """CPU cores for this process: its share of the allowed ones, at most SLURM_CPUS_PER_TASK."""
    share = len(os.sched_getaffinity(0))
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun sets no affinity
        share //= int(os.environ["LOCAL_WORLD_SIZE"])
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(share, int(given) if given.isdecimal() else share))


def start(device: str = "auto") -> World:
    """Join the process group; a second call does nothing.

    device: auto, cpu, cuda or cuda:N, as in the configuration. Raises ProcessError after an earlier run of this sweep
    failed on one process, or without MASTER_ADDR and MASTER_PORT.
    """
    global _store
    here = world()
    if _broken:
        raise ProcessError("an earlier run failed on one process; start the same command again to continue the sweep")
    if here.size == 1 or _store is not None:
        return here

    for name, value in _rendezvous().items():
        os.environ.setdefault(name, value)
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ProcessError(
            f"{missing[0]} is not set, though RANK={here.rank} and WORLD_SIZE={here.size} are: start the processes with "
            "torchrun, or unset RANK and WORLD_SIZE to use one process"
        )
    gpu = device != "cpu" and torch.cuda.is_available()
    _store, *_ = next(dist.rendezvous("env://", here.rank, here.size))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", store=dist.PrefixStore("group", _store), rank=here.rank,
        world_size=here.size,
    )  # fmt: skip
    largest(0)  # until all are in, none goes on: one that fails at once would take the store from those that still join
    atexit.register(_leave)
    return here


def _leave() -> None:
    if not _broken and dist.is_initialized():
        dist.destroy_process_group()


def _rendezvous() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT under srun: the step's first node, a port from the job id."""
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        return {}
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", "localhost"))
    if int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) == 1:
        nodes = "127.0.0.1"
    elif "[" in nodes or "," in nodes:
        command = ["scontrol", "show", "hostnames", nodes]
        nodes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    number = int(os.environ.get("SLURM_JOB_ID", 0)) * 7 + int(os.environ.get("SLURM_STEP_ID", 0))
    return {"MASTER_ADDR": nodes, "MASTER_PORT": str(15000 + number % 15000)}


# ---------------------------------------------------------------- collectives


def broadcast(value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    box = [value]
    if world().size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list | None:
    """The values of all ranks in order, on rank 0; None on the others."""
    here = world()
    values = [value] * here.size if here.rank == 0 else None
    if here.size > 1:
        dist.gather_object(value, values, dst=0)
    return values


def sums(numbers: list[float]) -> list[float]:
    """Sums over all ranks, in double precision; exact for integers below 2**53."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def moments(mean: Tensor, var: Tensor, n: int) -> Tensor:
    """Gather mean [C], biased variance [C] and count n of all ranks: [ranks, 4, C].

    The rows are n, mean, 0 and n * var (the sum of squared deviations), which `_tables` in kernels/neuron_triton.py
    merges (Chan et al. 1979). Non-blocking, on the tensors' device.
    """
    own = torch.stack([torch.full_like(mean, n), mean, torch.zeros_like(mean), var * n])
    if not dist.is_initialized():  # layers may also be called outside of a run
        return own[None]
    rows = own.new_empty(dist.get_world_size(), *own.shape)
    dist.all_gather(list(rows), own)
    return rows


def means(sums: Tensor, n: int) -> Tensor:
    """Divide sums [...] over n values, added over all ranks, by the total n."""
    whole = together(torch.cat([sums.flatten(), sums.new_full((1,), n)]))
    return (whole[:-1] / whole[-1]).view_as(sums)


def together(values: Tensor) -> Tensor:
    """Sum `values` over all ranks in place; non-blocking, on the tensor's device."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def largest(number: int) -> int:
    """Maximum over all ranks."""
    return int(_reduced([number], dist.ReduceOp.MAX)[0])


def _reduced(numbers: list[float], how: Any) -> list[float]:
    values = torch.tensor(numbers, dtype=torch.float64)
    if world().size > 1:
        dist.all_reduce(values, how)
    return values.tolist()


@contextlib.contextmanager
def main_first():
    """Context manager: rank 0 runs the block first, so the others find its cache files."""
    if world().rank:
        broadcast(None)
    yield
    if not world().rank:
        broadcast(None)


# ---------------------------------------------------------------- the network


def wrap(model, device):
    """DistributedDataParallel around `model`, with rank 0's buffers; `model` itself for one process."""
    if world().size == 1:
        return model
    # harmless: for convolutions with one input channel two sets of strides describe the same memory
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def share_buffers(model) -> None:
    """Copy rank 0's buffers to every rank; DistributedDataParallel does so only in training."""
    for buffer in model.buffers() if world().size > 1 else ():
        dist.broadcast(buffer, 0)


# ---------------------------------------------------------------- errors


def explain(error: BaseException) -> BaseException:
    """The error to report: `error` itself, or ProcessError with the first failing rank's message."""
    global _broken
    if (here := world()).size == 1 or _store is None:
        return error
    _broken = True  # the process group cannot be used again
    lost = isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|peer|[Cc]onnection|timed? ?out", str(error))
    with contextlib.suppress(Exception):  # the process that hosts the store may have exited
        if not lost:
            if not isinstance(error, ProcessError):
                where = f"process {here.rank}: " if here.rank else ""
                name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                _store.set("failed", f"{where}{name}{error}")
            return error
        if _store.check(["failed"]):
            return ProcessError(_store.get("failed").decode())
    if not lost:
        return error
    return ProcessError(
        "another process of this run ended without an error message (killed, or out of memory?); start the same command again to resume"
    )
