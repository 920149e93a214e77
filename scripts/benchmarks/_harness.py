"""Timing harness: shuffled rounds, one thread, CPU or GPU time, A/A control; machine facts."""

import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any, NamedTuple

from snn_repro.errors import UserError

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_AS_STARTED = {key: os.environ.get(key) for key in THREADS}
HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))  # torch.compile needs one on a CPU


class Seconds(NamedTuple):
    """Time of one call: CPU (with finished children) or GPU seconds, and wall-clock seconds."""

    used: float
    wall: float


def one_thread() -> None:
    """One thread for PyTorch, and for every library imported from now on, here and in child processes."""
    os.environ.update(THREADS)
    if "torch" in sys.modules:  # it has read the environment
        sys.modules["torch"].set_num_threads(1)


@contextmanager
def threads_as_started() -> Iterator[None]:
    """Context manager: processes started within get the thread settings from before `one_thread`."""
    os.environ.update({key: value for key, value in _AS_STARTED.items() if value is not None})
    for key in [key for key, value in _AS_STARTED.items() if value is None]:
        os.environ.pop(key, None)
    try:
        yield
    finally:
        one_thread()


def in_own_process(function: Callable, *arguments, limit: float | None = None) -> Any:
    """function(*arguments), computed in a fresh process that is killed with its children after `limit` seconds.

    Raises TimeoutError, and RuntimeError with the error of the function or the exit code of the process.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            raise TimeoutError(f"it took more than {limit:.0f} s")
        error, result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
    finally:
        with suppress(ProcessLookupError):  # it has ended, without children, or not begun
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
    if error:
        raise RuntimeError(error)
    return result


def _answer(pipe, function: Callable, arguments: tuple) -> None:
    os.setsid()  # a group of its own, to be killed as one
    try:
        pipe.send(("", function(*arguments)))
    except Exception as error:
        pipe.send((in_words(error), None))


def in_words(error: Exception) -> str:
    """An error in one line."""
    kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]


def clocked(call: Callable[[], object]) -> Seconds:
    """Measure one call on the CPU."""

    def cpu() -> float:
        children = getrusage(RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    used, start = cpu(), time.perf_counter()
    call()
    return Seconds(cpu() - used, time.perf_counter() - start)


def clocked_on_gpu(call: Callable[[], object]) -> Seconds:
    """Measure one call between two CUDA events on an idle GPU, host waits included."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return Seconds(begin.elapsed_time(end) / 1e3, time.perf_counter() - start)


class Place(NamedTuple):
    """Device of a benchmark and its clock."""

    device: str = "cpu"
    clock: Callable[[Callable], Seconds] = clocked
    facts: dict[str, str] = {}  # facts about the GPU


CPU = Place()


def place(device: str) -> Place:
    """The Place for `device=`, made torch's current device; raises UserError where it does not exist."""
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UserError(f"device={device} must be cpu, cuda or cuda:N")
    if kind == "cpu":
        return CPU
    if int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device} does not exist: torch sees {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(int(index or 0))
    memory = torch.cuda.get_device_properties(int(index or 0)).total_memory / 2**30
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    facts = {"GPU": f"{torch.cuda.get_device_name()}, {memory:.0f} GiB", "compute capability": capability}
    return Place(device, clocked_on_gpu, facts | {"driver": _driver(), "CUDA": str(torch.version.cuda)})


def _driver() -> str:
    """Version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0]
    return "unknown"


def seconds(row: dict) -> float:
    """CPU or GPU seconds of a row of `timings`."""
    return row["gpu_seconds"] if "gpu_seconds" in row else row["cpu_seconds"]


def shuffled(cases: dict[str, Callable], rounds: int, measure: Callable = clocked) -> dict[str, list[Seconds]]:
    """`measure` of each case once per round, in random order.

    The first case is measured twice, also as "<its name> again" (A/A control), unless that case exists.
    """
    first = next(iter(cases))
    cases = {**cases, f"{first} again": cases.get(f"{first} again", cases[first])}
    order, shuffle = list(cases), random.Random(0).shuffle
    samples: dict[str, list[Seconds]] = {name: [] for name in cases}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(measure(cases[name]))
    return samples


def timings(cases: dict[str, Callable], rounds: int, measure: Callable = clocked, warm: bool = True) -> dict[str, dict]:
    """case -> {"cpu_seconds", "quartiles", "wall_seconds", "over_first"}: medians and ratios.

    With `measure` clocked_on_gpu the first key is "gpu_seconds"; over_first is the time divided by the first case's.
    warm: call each case once before, to compile and to fill caches.
    """
    for case in cases.values() if warm else ():
        measure(case)
    rows: dict[str, dict] = {}
    key = "gpu_seconds" if measure is clocked_on_gpu else "cpu_seconds"
    for name, samples in shuffled(cases, rounds, measure).items():
        used, wall = ([*values] for values in zip(*samples, strict=True))
        low, middle, high = statistics.quantiles(used, n=4) if len(used) > 1 else used * 3
        rows[name] = {key: middle, "quartiles": [low, high], "wall_seconds": statistics.median(wall)}
        rows[name]["over_first"] = middle / next(iter(rows.values()))[key]
    return rows


def peer(name: str, why: str, absent: dict[str, str] | None = None) -> Any:
    """Import a library to compare with; else raise UserError, or note it in `absent`."""
    try:
        return import_module(name)
    except ImportError as error:
        if absent is None:
            raise UserError(f"the benchmark compares with {name} ({why}), which cannot be imported: {error}") from None
        absent[name] = f"cannot be imported: {error}"
        return None


def memory(key: str) -> float:
    """Memory of this process in MiB: "VmRSS" (now) or "VmHWM" (peak)."""
    # getrusage would include the parent's memory at the fork
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) / 1024


def saved_bytes(model, x, own=()) -> int:
    """Bytes that autograd saves in a forward, each storage once, without `own` tensors."""
    import torch

    not_counted = {t.untyped_storage()._cdata for t in own}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in not_counted:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = model(x)
    total = sum(kept.values())
    del y  # only now, since the address of a freed storage may be reused
    return total


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(*packages: str, before: dict[str, str] | None = None) -> dict[str, str]:
    """Facts of the machine: processor, cores, memory, load, versions; no host or folder names."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = f"{os.getloadavg()[0]:.1f}"
    facts = {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{gib:.0f} GiB",
        "load": f"{before['load']} before, {load} after" if before else load,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts
