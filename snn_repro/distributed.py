"""Several processes, one run: started by torchrun or srun, one process a GPU (or CPU), each with a share of every batch.

With one process every function here does nothing. Numbers and Python objects travel over gloo, gradients over NCCL
where there are GPUs.
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
    """This process among those of the run: its number, their number, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


class ProcessError(UserError):
    """Another process of this run failed or went away."""


_store = None  # where the processes leave each other a last word
_broken = False


def world() -> World:
    """What torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID and its like) says; alone without them.

    Of SLURM's variables only those of a job *step* count: a batch script has SLURM_NTASKS too, but is one process.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    for rank, size, local in names:
        if rank in os.environ and size in os.environ:
            return World(int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, 0)))
    return World()


def cores() -> int:
    """The processor cores that this process of the job has: its share of those it may run on, and no more than SLURM gave."""
    share = len(os.sched_getaffinity(0))
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's processes may all run on all of the machine's
        share //= int(os.environ["LOCAL_WORLD_SIZE"])
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(share, int(given) if given.isdecimal() else share))


def start(device: str = "auto") -> World:
    """Meet the other processes; a second call does nothing. `device` is the configuration's: auto, cpu, cuda or cuda:N.

    Raises ProcessError when an earlier run of this sweep broke off on one process.
    """
    global _store
    here = world()
    if _broken:
        raise ProcessError("an earlier run ended on one process alone; start the same command again for the rest")
    if here.size == 1 or _store is not None:
        return here

    for name, value in _rendezvous().items():
        os.environ.setdefault(name, value)
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ProcessError(
            f"{missing[0]} is not set, though RANK={here.rank} and WORLD_SIZE={here.size} are: start the processes with "
            "torchrun, or take RANK and WORLD_SIZE out of the environment for one process"
        )
    gpu = device != "cpu" and torch.cuda.is_available()
    _store, *_ = next(dist.rendezvous("env://", here.rank, here.size))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo", store=dist.PrefixStore("group", _store), rank=here.rank,
        world_size=here.size,
    )  # fmt: skip
    atexit.register(_leave)
    return here


def _leave() -> None:
    if not _broken and dist.is_initialized():
        dist.destroy_process_group()


def _rendezvous() -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT under srun: the first node of the step, a port made of the job's number."""
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        return {}
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", "localhost"))
    first = nodes
    if int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) == 1:
        first = "127.0.0.1"
    elif "[" in nodes or "," in nodes:
        first = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    number = int(os.environ.get("SLURM_JOB_ID", 0)) * 7 + int(os.environ.get("SLURM_STEP_ID", 0))
    return {"MASTER_ADDR": first, "MASTER_PORT": str(15000 + number % 15000)}


# ---------------------------------------------------------------- saying and hearing


def broadcast(value: Any) -> Any:
    """Rank 0's value, on all."""
    box = [value]
    if world().size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list | None:
    """Every rank's value in order of rank, on rank 0; None elsewhere."""
    here = world()
    values = [value] * here.size if here.rank == 0 else None
    if here.size > 1:
        dist.gather_object(value, values, dst=0)
    return values


def sums(numbers: list[float]) -> list[float]:
    """The numbers added up over the ranks, in double precision; integers below 2**53 stay exact."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def moments(mean: Tensor, var: Tensor, n: int) -> Tensor:
    """Of every rank: n, the mean [C] of its n values, 0, and the sum of their squared distances from it: [ranks, 4, C].

    As `_tables` in kernels/neuron_triton.py merges them (Chan et al. 1979). On the tensors' device, which nobody waits for.
    """
    own = torch.stack([torch.full_like(mean, n), mean, torch.zeros_like(mean), var * n])
    if not _met():
        return own[None]
    rows = own.new_empty(dist.get_world_size(), *own.shape)
    dist.all_gather(list(rows), own)
    return rows


def means(sums: Tensor, n: int) -> Tensor:
    """Sums [2, C] over n values, those of all ranks added up, divided by the number of values of all. On the tensor's device."""
    whole = together(torch.cat([sums.flatten(), sums.new_full((1,), n)]))
    return (whole[:-1] / whole[-1]).view_as(sums)


def together(values: Tensor) -> Tensor:
    """`values` of all ranks added up in place, on the tensor's device, which nobody waits for."""
    if _met():
        dist.all_reduce(values)
    return values


def _met() -> bool:
    """Whether the processes have met: a network's layers ask, which may be called outside of a run."""
    return dist.is_available() and dist.is_initialized()


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    return int(_reduced([number], dist.ReduceOp.MAX)[0])


def _reduced(numbers: list[float], how: Any) -> list[float]:
    values = torch.tensor(numbers, dtype=torch.float64)
    if world().size > 1:
        dist.all_reduce(values, how)
    return values.tolist()


@contextlib.contextmanager
def main_first():
    """Rank 0 runs the block before the others do: what it writes to a cache, they find."""
    if world().rank:
        broadcast(None)
    yield
    if not world().rank:
        broadcast(None)


# ---------------------------------------------------------------- the network


def wrap(model, device):
    """The network to call in training: DistributedDataParallel, which averages gradients, around `model`.

    As torch does, buffers (the running statistics of BatchNorm) are rank 0's.
    """
    if world().size == 1:
        return model
    # of convolutions with one input channel, whose weights have two equal descriptions; costs nothing there
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def share_buffers(model) -> None:
    """Give every rank the buffers of rank 0; DistributedDataParallel does so only before a training step."""
    for buffer in model.buffers() if world().size > 1 else ():
        dist.broadcast(buffer, 0)


def without_sync(net):
    """Leave gradients where they are for now: for all but the last part of an accumulated batch."""
    return net.no_sync() if hasattr(net, "no_sync") else contextlib.nullcontext()


# ---------------------------------------------------------------- failing together


def explain(error: BaseException) -> BaseException:
    """What to report for `error` on this rank: another rank's sentence, where this one only saw it go.

    An error of this rank is left for the others to find. Either way no further run can share these processes.
    """
    global _broken
    here = world()
    if here.size == 1 or _store is None:
        return error
    _broken = True
    lost = isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|peer|[Cc]onnection|timed? ?out", str(error))
    with contextlib.suppress(Exception):  # the store lives in a process that may be gone
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
        "another process of this run ended without a word (killed, or out of memory?); the same command continues"
    )
