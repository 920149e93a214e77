"""`hydra/launcher=gpus`: every worker process of a sweep has one GPU of this machine for itself, or shares it with few others.

The process that launches makes a place for each worker, a lock file; a worker takes the first that is free, and sees its GPU
alone (CUDA_VISIBLE_DEVICES) and its share of the cores. The system frees the place of a worker that was killed.
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

PLACES = "SNN_REPRO_GPU_PLACES"  # of the environment: [folder of the lock files, GPU of each place]
PATIENCE = 30  # seconds until a killed worker's place must be free

_mine: FileLock | None = None


def there() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that torch sees."""
    n = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:n] or [str(i) for i in range(n)]


@contextlib.contextmanager
def places(gpus: list[str], each: int) -> Iterator[int]:
    """Within, worker processes that start find `each` places on every GPU; yields how many there are."""
    with tempfile.TemporaryDirectory(prefix="snn_repro-gpus-", ignore_cleanup_errors=True) as folder:
        os.environ[PLACES] = json.dumps([folder, gpus * each])
        try:
            yield len(gpus) * each
        finally:
            del os.environ[PLACES]


def share(cores: list[int], place: int, places: int) -> list[int]:
    """The cores of one place: loader processes are as many as cores, and those of all runs must not be all of the machine's."""
    first, end = (k * len(cores) // places for k in (place, place + 1))
    return cores[first : max(end, first + 1)]


def take() -> None:
    """In a worker, before its first run: take a free place, and see its GPU alone. Elsewhere nothing happens."""
    global _mine
    if PLACES not in os.environ or _mine is not None:
        return
    folder, gpus = json.loads(os.environ[PLACES])
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for place, gpu in enumerate(gpus):
            _mine = hold(Path(folder, f"{place}.lock"))
            if _mine is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                if hasattr(os, "sched_setaffinity"):
                    os.sched_setaffinity(0, share(sorted(os.sched_getaffinity(0)), place, len(gpus)))
                return
        time.sleep(0.1)
    raise UserError(
        f"all {len(gpus)} places on GPUs are taken by other processes of this sweep; start the same command again when one has ended"
    )
