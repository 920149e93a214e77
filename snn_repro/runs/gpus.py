"""`hydra/launcher=gpus`: each worker process of a sweep gets one GPU, or shares one.

The launching process creates a slot, a lock file, for each worker. A worker takes the first free slot and sees only its
GPU (CUDA_VISIBLE_DEVICES) and its share of the cores. The operating system frees the slot of a killed worker.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock

from snn_repro.errors import UserError
from snn_repro.files import hold

SLOTS = "SNN_REPRO_GPU_SLOTS"  # environment variable: [folder of the lock files, GPU of each slot]
PATIENCE = 30  # seconds to wait for the slot of a killed worker

_mine: FileLock | None = None


def visible() -> list[str]:
    """The GPUs that torch sees, named as in CUDA_VISIBLE_DEVICES."""
    n = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:n] or [str(i) for i in range(n)]


@contextlib.contextmanager
def slots(gpus: list[str], each: int) -> Iterator[int]:
    """Offer `each` slots on every GPU to worker processes; yields the number of slots."""
    with tempfile.TemporaryDirectory(prefix="snn_repro-gpus-", ignore_cleanup_errors=True) as folder:
        os.environ[SLOTS] = json.dumps([folder, gpus * each])
        try:
            yield len(gpus) * each
        finally:
            del os.environ[SLOTS]


def share(cores: list[int], slot: int, slots: int) -> list[int]:
    """The cores of one slot: loader processes of all runs must fit the machine."""
    first, end = (k * len(cores) // slots for k in (slot, slot + 1))
    return cores[first : max(end, first + 1)]


def take() -> None:
    """Take a free slot, in a worker before its first run; does nothing elsewhere."""
    global _mine
    if SLOTS not in os.environ or _mine is not None:
        return
    folder, gpus = json.loads(os.environ[SLOTS])
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for slot, gpu in enumerate(gpus):
            if (_mine := hold(Path(folder, f"{slot}.lock"))) is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                if hasattr(os, "sched_setaffinity"):
                    os.sched_setaffinity(0, share(sorted(os.sched_getaffinity(0)), slot, len(gpus)))
                return
        time.sleep(0.1)
    raise UserError(
        f"all {len(gpus)} GPU slots are taken by processes of this sweep; run the command again when one has ended"
    )
