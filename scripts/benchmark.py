# ruff: noqa: E402 (thread counts are set before anything that starts threads is imported)
"""Measure our speed against the libraries we replace, and write the figures to results/benchmarks/.

    python scripts/benchmark.py data [rounds=N]
    python scripts/benchmark.py neuron [rounds=N]
    python scripts/benchmark.py startup [rounds=N] [base=DIR]     # DIR: another checkout, to compare with
    python scripts/benchmark.py step [rounds=N]

How it is timed: one thread, CPU time of the process, the order shuffled in every round, medians over the
rounds, and one function timed twice (the A/A control): a ratio that is no further from 1 than the control's
means nothing. Peers are imported only here, on request.
"""

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"

import json
import platform
import random
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from snn_repro.errors import UserError

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


# ------------------------------------------------------------------ timing and reporting, for every subcommand


def timings(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every call; the first case also runs as "<name> again". The order is shuffled in every round."""
    first = next(iter(cases))
    cases = {**cases, f"{first} again": cases[first]}
    for function in cases.values():
        function()  # compile, fill caches
    times: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = time.process_time()
            cases[name]()
            times[name].append(time.process_time() - start)
    return times


def compare(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds a call of each case, see `timings`."""
    return {name: statistics.median(seconds) for name, seconds in timings(cases, rounds).items()}


def machine(*packages: str) -> dict[str, str]:
    """What the figures were measured on: processor, cores, memory, versions. No names of hosts or folders."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def peer(name: str, why: str):
    """Import a library to compare with, or say which one is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"the benchmark compares with {name} ({why}), which cannot be imported: {error}") from None


def report(name: str, title: str, sections: list[dict], facts: dict[str, str]) -> None:
    """Write results/benchmarks/<name>.json and .md, and print the latter.

    A section is {"title", "unit", "goal", "seconds": {case: seconds a call}, "per_call": how many units a
    call does}; ratios are those to its first case.
    """
    lines = [
        f"# {title}",
        "",
        f"Made by `python scripts/benchmark.py {name}`. One thread, CPU time, shuffled order,",
    ]
    lines += ["medians; the line `again` times the first function twice (A/A control). malloc keeps freed memory,"]
    lines += ["for the peers as well, except where each library has a process of its own.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()] + [""]
    for section in sections:
        lines += [f"## {section['title']}", ""]
        if "seconds" in section:
            ours = next(iter(section["seconds"].values()))
            lines += [
                "| case | ms a call | " + section["unit"] + " | time against ours |",
                "| --- | --- | --- | --- |",
            ]
            for case, seconds in section["seconds"].items():
                rate = section["per_call"] / seconds
                lines.append(f"| {case} | {seconds * 1e3:.3f} | {rate:,.4g} | {seconds / ours:.2f} |")
        else:
            lines += ["| case | " + section["unit"] + " |", "| --- | --- |"]
            digits = section.get("digits", 0)
            lines += [f"| {case} | {value:,.{digits}f} |" for case, value in section["values"].items()]
        lines += ["", f"Goal: {section['goal']}.", ""]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps({"machine": facts, "sections": sections}, indent=1) + "\n")
    text = "\n".join(lines)
    (OUT / f"{name}.md").write_text(text)
    print(text)


# ------------------------------------------------------------------ data


def random_events(n: int, seed: int = 0):
    """n events of a 128x128 sensor, uniform in place, polarity and (one second of) time."""
    from snn_repro.data.events import Events

    rng = np.random.RandomState(seed)
    return Events(
        np.sort(rng.randint(0, 10**6, n)).astype(np.int64),
        rng.randint(0, 128, n).astype(np.int16),
        rng.randint(0, 128, n).astype(np.int16),
        rng.randint(0, 2, n).astype(np.uint8),
    )


def aedat2_bytes(events) -> bytes:
    """The recording as an AEDAT 2.0 file of a DVS128."""
    words = np.empty((len(events.t), 2), ">u4")
    words[:, 0] = events.p.astype(np.uint32) | events.x.astype(np.uint32) << 1 | events.y.astype(np.uint32) << 8
    words[:, 1] = events.t
    return b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n" + words.tobytes()


def aedat3_bytes(events, packet: int = 4096) -> bytes:
    """The recording as an AEDAT 3.1 file: polarity packets of `packet` events."""
    x, y, p = (a.astype(np.uint32) for a in events[1:])
    words = np.empty((len(events.t), 2), "<u4")
    words[:, 0] = x << 17 | y << 2 | p << 1 | 1
    words[:, 1] = events.t
    parts = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"]
    for start in range(0, len(words), packet):
        body = words[start : start + packet]
        head = np.zeros(1, "<u2,<u2,<u4,<u4,<u4,<u4,<u4,<u4")
        head[0] = (1, 1, 8, 4, 0, len(body), len(body), len(body))
        parts += [head.tobytes(), body.tobytes()]
    return b"".join(parts)


def atis_bytes(events) -> bytes:
    """The recording as a 40-bit ATIS file."""
    t = events.t
    columns = (events.x, events.y, events.p.astype(np.int64) << 7 | t >> 16, t >> 8 & 255, t & 255)
    return np.stack([c.astype(np.uint8) for c in columns], 1).tobytes()


def bench_data(rounds: int = 15) -> None:
    """Integration, preparation, parsing and serving, against spikingjelly, tonic and torchvision."""
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # spikingjelly.datasets imports it for speech
    import torch

    from snn_repro.data.batches import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # for all alike: else page faults, which vary, are most of many cases
    sj = peer("spikingjelly.datasets.utils", "integration, preparation, parsing, serving")
    tonic = peer("tonic.transforms", "integration")
    v2 = peer("torchvision.transforms.v2", "crop and flip")
    sections = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sections.append(_integration(rounds, sj, tonic))
        sections.append(_preparation(max(rounds, 9), folder))
        sections.append(_parsing(rounds, sj, folder))
        sections.append(_serving(rounds, sj, folder))
        sections.append(_crop_and_flip(rounds, v2))
        sections.append(_memory(folder))
    packages = ("numpy", "numba", "torch", "torchvision", "spikingjelly", "tonic")
    report("data", "Reading, preparing and serving data", sections, machine(*packages))


def _integration(rounds, sj, tonic) -> dict:
    from snn_repro.data.events import integrate

    n, size = 200_000, (128, 128)
    events = random_events(n)
    as_dict = {
        "t": events.t,
        "x": events.x.astype(np.int64),
        "y": events.y.astype(np.int64),
        "p": events.p.astype(np.int64),
    }
    structured = np.empty(n, [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i8")])
    for name in "xytp":
        structured[name] = getattr(events, name)
    to_frame = tonic.ToFrame(sensor_size=(128, 128, 2), n_event_bins=10)
    cases = {
        "ours": lambda: integrate(events, 10, size),
        "spikingjelly": lambda: sj.integrate_events_by_fixed_frames_number(as_dict, "number", 10, *size),
        "tonic ToFrame": lambda: to_frame(structured),
    }
    same = np.array_equal(cases["ours"](), cases["spikingjelly"]())
    assert same, "our frames differ from spikingjelly's"
    return {
        "title": "Frame integration: 200,000 events, 128x128, T=10, by number (frames equal spikingjelly's)",
        "unit": "events/s",
        "goal": "at least 3x spikingjelly and 20x tonic",
        "seconds": compare(cases, rounds),
        "per_call": n,
    }


def _prepare_ours(folder: Path, file: Path, calls: int) -> Callable[[int], None]:
    from snn_repro.data.batches import keep_freed_memory
    from snn_repro.data.event_sets import Entry, Sample
    from snn_repro.data.prepare import Settings, _Partial, _work

    keep_freed_memory(map_large=True)  # as prepare's workers do
    name, settings = "cat/cifar10_cat_0.aedat", Settings("cifar10_dvs", 10, "number", None)
    samples = [Sample(f"{i:04d}", name, 3, "") for i in range(calls)]
    partial = _Partial(folder / "cache.partial", settings, samples)
    entry = Entry("file", str(file), "", file.stat().st_size)
    return lambda i: partial.add(_work(entry, name, [(i, samples[i])], settings))


def _prepare_theirs(folder: Path, file: Path, savez: Callable) -> Callable[[int], None]:
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    from spikingjelly.datasets import cifar10_dvs, utils

    utils.np_savez = savez
    (folder / "frames").mkdir()

    def run(i: int) -> None:
        cifar10_dvs._read_aedat_save_to_np(file, folder / f"{i}.npz")
        utils.integrate_events_file_to_frames_file_by_fixed_frames_number(
            np.load, folder / f"{i}.npz", folder / "frames", "number", 10, 128, 128, False
        )

    return run


TURN = 8  # recordings in a row: a preparing process does nothing else


def _prepare_process(kind: str, folder: str, file: str, turns: int, pipe) -> None:
    """A process of its own that prepares TURN recordings whenever it is asked to; answers CPU seconds a recording."""
    import torch

    torch.set_num_threads(1)
    Path(folder).mkdir()
    if kind.startswith("ours"):
        run = _prepare_ours(Path(folder), Path(file), turns * TURN)
    else:
        run = _prepare_theirs(Path(folder), Path(file), np.savez if "uncompressed" in kind else np.savez_compressed)
    for turn in range(turns):
        pipe.recv()
        start = time.process_time()
        for i in range(turn * TURN, (turn + 1) * TURN):
            run(i)
        pipe.send((time.process_time() - start) / TURN)


def _preparation(rounds, folder: Path) -> dict:
    """Each library in a process of its own, as in use: in one process they change each other's memory allocation."""
    file = folder / "cifar10_cat_0.aedat"
    file.write_bytes(aedat2_bytes(random_events(200_000)))
    ours = "ours (read, CRC-32, decode, integrate, checksum, write, journal)"
    kinds = [ours, "spikingjelly, its default (compressed)", "spikingjelly, uncompressed", f"{ours} again"]
    context, pipes, times = get_context("spawn"), {}, {kind: [] for kind in kinds}
    for n, kind in enumerate(kinds):
        pipes[kind], other = context.Pipe()
        context.Process(
            target=_prepare_process,
            args=(kind, str(folder / f"p{n}"), str(file), rounds + 2, other),
            daemon=True,
        ).start()
    shuffle = random.Random(0).shuffle
    for _ in range(rounds + 2):
        shuffle(kinds)
        for kind in kinds:
            pipes[kind].send("go")
            times[kind].append(pipes[kind].recv())
    return {
        "title": "Raw recording to cached frames: AEDAT 2.0, 200,000 events, T=10, end to end, a process each",
        "unit": "recordings/s",
        "goal": "at least 100x spikingjelly's default (nearly all of it is compression) and 12x its uncompressed mode",
        "seconds": {kind: statistics.median(t[2:]) for kind, t in times.items()},
        "per_call": 1,
    }


def _parsing(rounds, sj, folder: Path) -> dict:
    from snn_repro.data.formats import read_aedat3

    events = random_events(200_000)
    file = folder / "gesture.aedat"
    file.write_bytes(aedat3_bytes(events))
    cases = {
        "ours": lambda: read_aedat3(file.read_bytes(), file.name),
        "spikingjelly": lambda: sj.load_aedat_v3(file),
    }
    ours, theirs = cases["ours"](), cases["spikingjelly"]()
    assert all(np.array_equal(getattr(ours, c), theirs[c]) for c in "txyp"), "our events differ from spikingjelly's"
    return {
        "title": "AEDAT 3.1 to events: 200,000 events (all equal spikingjelly's)",
        "unit": "events/s",
        "goal": "at least 50x spikingjelly",
        "seconds": compare(cases, max(5, rounds // 2)),
        "per_call": len(events.t),
    }


def _serving(rounds, sj, folder: Path) -> dict:
    import torch
    from torch.utils.data import default_collate

    from snn_repro.data.batches import MemoryBatches
    from snn_repro.data.events import integrate

    n, batch = 64, 16
    counts = np.stack([integrate(random_events(200_000, i), 10, (128, 128), dtype=np.uint8) for i in range(8)])
    np.save(folder / "cached.npy", np.tile(counts, (n // 8, 1, 1, 1, 1)))
    files = []
    for i in range(n):
        files.append(folder / f"{i}.npz")
        np.savez_compressed(files[-1], frames=counts[i % 8].astype(np.float64))
    cached = np.load(folder / "cached.npy", mmap_mode="r")
    batches = MemoryBatches(cached, np.zeros(n, np.int64), batch, shuffle=True)

    def ours():
        for _ in batches.epoch(0):
            pass

    def theirs():
        order = torch.randperm(n).tolist()
        for start in range(0, n, batch):
            samples = [(torch.from_numpy(sj.load_npz_frames(files[i])), 0) for i in order[start : start + batch]]
            default_collate(samples)[0].transpose(0, 1)

    return {
        "title": "Serving cached frames as float32 batches [10, 16, 2, 128, 128], page cache warm",
        "unit": "samples/s",
        "goal": "at least 10x spikingjelly's default .npz files",
        "seconds": compare({"ours": ours, "spikingjelly": theirs}, max(5, rounds // 2)),
        "per_call": n,
    }


def _crop_and_flip(rounds, v2) -> dict:
    import torch
    from PIL import Image
    from torch.utils.data import default_collate

    from snn_repro.data.augment import Normalize, RandomCrop, RandomFlip
    from snn_repro.data.batches import MemoryBatches

    n, batch = 1024, 256
    images = np.random.RandomState(0).randint(0, 256, (n, 3, 32, 32), np.uint8)
    mean, std = [125.3, 123.0, 113.9], [51.6, 50.8, 51.3]
    transforms = [RandomCrop(4), RandomFlip(0.5), Normalize(mean, std)]
    batches = MemoryBatches(images, np.zeros(n, np.int64), batch, shuffle=True, transforms=transforms)
    per_sample = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([m / 255 for m in mean], [s / 255 for s in std]),
        ]
    )
    pixels = images.transpose(0, 2, 3, 1).copy()

    def ours():
        for _ in batches.epoch(0):
            pass

    def theirs():
        order = torch.randperm(n).tolist()
        for start in range(0, n, batch):
            default_collate([(per_sample(Image.fromarray(pixels[i])), 0) for i in order[start : start + batch]])

    return {
        "title": "CIFAR batches: crop with padding 4, flip, normalise, 32x32",
        "unit": "images/s",
        "goal": "at least 8x torchvision v2 sample by sample",
        "seconds": compare({"ours": ours, "torchvision v2, sample by sample": theirs}, max(5, rounds // 2)),
        "per_call": n,
    }


def _peak(dataset: str, file: str, size: int, samples: list) -> float:
    """Run in a fresh process: MiB of memory that it took to turn one large file into frames."""
    from snn_repro.data.event_sets import Entry
    from snn_repro.data.prepare import Settings, _start_worker, _work

    _start_worker()
    timesteps = {"dvs_gesture": 16}.get(dataset, 10)
    for frame_size in (None, 48):
        done = _work(Entry("file", file, "", size), file, samples, Settings(dataset, timesteps, "number", frame_size))
        assert not done.problems, done.problems
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory at the fork
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _memory(folder: Path) -> dict:
    from snn_repro.data.event_sets import Sample

    recordings = {
        # events in a file: well above the largest of each real set
        "cifar10_dvs": (2_000_000, aedat2_bytes, 1),
        "dvs_gesture": (16_000_000, aedat3_bytes, 13),
        "ncaltech101": (1_000_000, atis_bytes, 1),
    }
    values = {}
    for name, (n, writer, parts) in recordings.items():
        events = random_events(n)
        file = folder / f"{name}.raw"
        file.write_bytes(writer(events))
        edges = np.linspace(0, 10**6, parts + 1).astype(int)
        samples = [
            (i, Sample(f"s{i}", str(file), 0, "", int(edges[i]), int(edges[i + 1]) if parts > 1 else -1))
            for i in range(parts)
        ]
        with get_context("spawn").Pool(1) as pool:
            values[f"{name}: one file of {n:,} events, {file.stat().st_size / 2**20:.0f} MiB"] = pool.apply(
                _peak, (name, str(file), file.stat().st_size, samples)
            )
        file.unlink()
    return {
        "title": "Peak memory of one preparing worker (whole process, PyTorch included)",
        "unit": "MiB",
        "goal": "under 1,024 MiB a worker for any data set",
        "values": values,
    }


# ------------------------------------------------------------------ step


NETWORKS = {  # name, input shape, time steps, static image or frames
    "SEW-ResNet-18 CIFAR": ("sew_resnet18_cifar", (3, 32, 32), 4, True),
    "VGG-48": ("vgg48", (2, 48, 48), 10, False),
}
STEP_GOALS = {6: ("2x", "3x"), 27: ("1.5x", "2.1x")}  # training and evaluation, density in per cent
OURS, THEIRS, TWIN = "ours", "the same weights on spikingjelly's nodes", "ReLU twin on T*B images"
THEIRS_LAST = f"{THEIRS}, channels-last"
OURS_DENSE, OURS_SMALL = "ours, conv_backend=dense", "ours, checkpointing=blocks"
OPTIONS = {OURS: {}, OURS_SMALL: {"checkpointing": "blocks"}}  # of the other networks: dense


def _network(kind: str, network: str, shift: float):
    """One network, always with the same weights and every norm's bias at `shift`, as `kind` says."""
    import torch
    from torch import nn

    from snn_repro.kernels.conv import Conv2d
    from snn_repro.models import build_model

    name, shape, timesteps, _ = NETWORKS[network]
    torch.manual_seed(0)
    options = OPTIONS.get(kind, {"conv_backend": "dense"})
    model = build_model(
        name, num_classes=10, input_shape=shape, timesteps=timesteps, neuron={"name": "if"}, **options,
        **({"dropout": 0.0} if name == "vgg48" else {}),
    )  # fmt: skip
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, shift)
        for child_name, child in list(module.named_children()):
            if kind in (THEIRS, THEIRS_LAST) and isinstance(child, Conv2d):
                plain = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size, child.stride,
                                  child.padding, bias=child.bias is not None)  # fmt: skip
                plain.load_state_dict(child.state_dict())
                setattr(module, child_name, plain)
            elif kind in (THEIRS, THEIRS_LAST, TWIN) and _is_neuron(child):
                setattr(module, child_name, nn.ReLU() if kind == TWIN else _their_node())
    return model if kind == THEIRS else model.to(memory_format=torch.channels_last)  # as train.py does


def _is_neuron(module) -> bool:
    from spikingjelly.activation_based.neuron import BaseNode

    return isinstance(module, BaseNode)


def _their_node():
    """spikingjelly's IF node with the settings of our `if`."""
    from spikingjelly.activation_based import neuron, surrogate

    return neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")


def _batch(network: str, batch: int, kind: str):
    import torch

    _, shape, timesteps, static = NETWORKS[network]
    draw = torch.Generator().manual_seed(1)
    if not static:
        return torch.poisson(torch.full((timesteps, batch, *shape), 0.3), generator=draw)
    x = torch.randn(batch, *shape, generator=draw)
    return x.expand(timesteps, *x.shape).contiguous() if kind == TWIN else x


def _training(model, x) -> Callable[[], None]:
    """One training step but for the optimiser, which costs all alike."""
    from spikingjelly.activation_based import functional

    def step() -> None:
        model.train()
        functional.reset_net(model)
        model(x).mean(0).logsumexp(-1).mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def _evaluation(model, x) -> Callable[[], object]:
    import torch
    from spikingjelly.activation_based import functional

    def step() -> object:
        model.eval()
        functional.reset_net(model)
        with torch.inference_mode():
            return model(x)

    return step


def _input_densities(model, x) -> dict[str, float]:
    """Part of each convolution's input that is not zero, the first convolution (images, counts) left out."""
    import torch
    from torch import nn

    counts, hooks = {}, []
    convolutions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)][1:]
    for name, module in convolutions:
        hooks.append(
            module.register_forward_hook(
                lambda m, i, o, name=name: counts.__setitem__(name, (int(i[0].count_nonzero()), i[0].numel()))
            )
        )
    with torch.inference_mode():
        model.train()(x)
    for hook in hooks:
        hook.remove()
    mean = sum(c for c, _ in counts.values()) / sum(n for _, n in counts.values())
    return {"mean over all inputs": mean, **{name: c / n for name, (c, n) in counts.items()}}


def _shift_for(network: str, target: float, x) -> float:
    """The norms' bias at which the mean density of the convolutions' inputs is the wanted one."""
    low, high = -2.0, 2.0
    for _ in range(9):
        middle = (low + high) / 2
        found = _input_densities(_network(OURS, network, middle), x)["mean over all inputs"]
        low, high = (middle, high) if found < target else (low, middle)
    return middle


def _prepared(kind: str, network: str, shift: float, x):
    """The network with running statistics of this batch, so that evaluation sees the same densities."""
    import torch
    from torch import nn

    model = _network(kind, network, shift)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.0
    return model


def _step_memory(kind: str, network: str, batch: int, shift: float) -> float:
    """Run in a fresh process: MiB that one training step takes beyond the network and its input."""
    import torch

    torch.set_num_threads(1)
    model = _prepared(kind, network, shift, _batch(network, 1, kind))
    _training(model, _batch(network, 1, kind))()  # load and compile what is needed
    x = _batch(network, batch, kind)
    step = _training(model, x)
    status = lambda key: int(Path("/proc/self/status").read_text().partition(key)[2].split()[0]) / 1024  # noqa: E731
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return status("VmHWM:") - before


def _saved_bytes(model, x) -> int:
    """Bytes that autograd keeps of a training forward, every storage once, the network's own left out."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = model.train()(x)
    total = sum(kept.values())
    del logits
    return total


def _neuron_steps(model, x) -> int:
    """Spikes that could be in one forward."""
    import torch

    counts, hooks = [], []
    for module in model.modules():
        if _is_neuron(module):
            hooks.append(module.register_forward_hook(lambda m, i, o: counts.append(o.numel())))
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def bench_step(rounds: int = 7) -> None:
    """Training and evaluation steps of whole networks at several spike densities, and their peak memory."""
    import torch

    from snn_repro.data.batches import keep_freed_memory

    peer("spikingjelly.activation_based.neuron", "the same network on its nodes")
    torch.set_num_threads(1)
    keep_freed_memory()
    sections = []
    for network, batch, percents in (
        ("SEW-ResNet-18 CIFAR", 8, (6, 27, 50)), ("SEW-ResNet-18 CIFAR", 32, (6,)), ("VGG-48", 2, (6, 27, 50)),
    ):  # fmt: skip
        for percent in percents:
            sections += _step_sections(network, batch, percent, rounds if batch < 32 else 3)
    sections += _trained_densities()
    packages = ("torch", "numba", "spikingjelly")
    report("step", "Whole steps of a network", sections, machine(*packages))


def _step_sections(network: str, batch: int, percent: int, rounds: int) -> list[dict]:
    import torch

    timesteps = NETWORKS[network][2]
    shift = _shift_for(network, percent / 100, _batch(network, min(batch, 4), OURS))
    inputs = {kind: _batch(network, batch, kind) for kind in (OURS, OURS_SMALL, OURS_DENSE, THEIRS, THEIRS_LAST, TWIN)}
    models = {kind: _prepared(kind, network, shift, x) for kind, x in inputs.items()}
    one = _batch(network, 1, OURS).double()  # rounding cannot turn a spike over in double precision
    a, b = (_evaluation(_network(kind, network, shift).double(), one)() for kind in (OURS, THEIRS))
    assert torch.allclose(a, b, atol=1e-8), "our network computes something else than spikingjelly's"
    densities = _input_densities(models[OURS], inputs[OURS])
    title = f"{network}, B={batch}, T={timesteps}, mean input density {densities['mean over all inputs']:.1%}"
    print(f"# {title}", file=sys.stderr, flush=True)
    sections = []
    goals = STEP_GOALS.get(percent, ("", ""))
    for what, make, goal in zip(("training", "evaluation"), (_training, _evaluation), goals, strict=True):
        goal = (
            f"at least {goal} spikingjelly's nodes, and faster than the ReLU twin" if goal else "not slower than dense"
        )
        sections.append({
            "title": f"{title}: {what}", "unit": "samples/s", "goal": goal, "per_call": batch,
            "seconds": compare({
                kind: make(models[kind], inputs[kind]) for kind in models if (what, kind) != ("evaluation", OURS_SMALL)
            }, rounds),
        })  # fmt: skip
    with torch.inference_mode():
        rates = {name: 100 * d for name, d in densities.items()}
    if percent == 27:
        steps = _neuron_steps(models[OURS], inputs[OURS])
        saved = {kind: _saved_bytes(models[kind], inputs[kind]) / steps for kind in (OURS, OURS_SMALL, THEIRS, TWIN)}
    del models
    if percent == 27:  # saved activations do not depend on it
        memory = {}
        for kind in (OURS, OURS_SMALL, THEIRS, TWIN):
            with get_context("spawn").Pool(1) as pool:
                memory[kind] = pool.apply(_step_memory, (kind, network, batch, shift))
        shares = [f"{memory[kind] / memory[THEIRS]:.2f}" for kind in (OURS, OURS_SMALL)]
        sections.append({
            "title": f"{title}: peak memory of a training step", "unit": "MiB", "values": memory,
            "goal": f"at most 0.75 of spikingjelly's; ours is {shares[0]} of it, with checkpointing=blocks {shares[1]}",
        })  # fmt: skip
        sections.append({
            "title": f"{title}: kept for the backward pass", "unit": "bytes a neuron-step", "values": saved, "digits": 1,
            "goal": f"at most half of spikingjelly's; ours is {saved[OURS] / saved[THEIRS]:.2f} of it",
        })  # fmt: skip
    sections.append({
        "title": f"{title}: density of each convolution's input", "unit": "per cent", "values": rates,
        "goal": f"a mean of {percent} per cent, set by the norms' bias ({shift:.2f})",
    })  # fmt: skip
    return sections


def _trained_densities() -> list[dict]:
    """Firing rates of networks that were trained, from the results kept in results/runs/."""
    values: dict[str, list[float]] = {}
    for file in sorted(OUT.parent.glob("runs/**/result.json")):
        result = json.loads(file.read_text())
        for layer, rate in result.get("firing_rates", {}).items():
            values.setdefault(f"{result['name']}: {layer}", []).append(100 * rate)
    if not values:
        return []
    return [{
        "title": "Firing rates of trained networks (mean over seeds)", "unit": "per cent",
        "values": {key: statistics.mean(rates) for key, rates in values.items()},
        "goal": "to know which of the densities above are real",
    }]  # fmt: skip


def bench_neuron(rounds: int = 25) -> None:
    """One spiking layer against the libraries'."""
    from benchmark_neuron import bench_neuron

    bench_neuron(rounds, peer, machine, OUT)


def bench_startup(rounds: int = 5, base: str | None = None) -> None:
    """What a fresh process costs, and the README's first command, if asked beside that of another checkout."""
    from benchmark_neuron import bench_startup

    bench_startup(rounds, machine, OUT, base)


SUBCOMMANDS: dict[str, Callable[..., None]] = {
    "neuron": bench_neuron,
    "startup": bench_startup,
    "data": bench_data,
    "step": bench_step,
}


def main(arguments: list[str]) -> int:
    """Run one subcommand; 0, or 2 after one sentence on stderr."""
    if not arguments or arguments[0] not in SUBCOMMANDS:
        print(__doc__)
        print("subcommands:", ", ".join(SUBCOMMANDS))
        return 0 if arguments[:1] in ([], ["--help"], ["-h"]) else 2
    options = {}
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key == "base" and value and arguments[0] == "startup":
            options[key] = value
        elif key == "rounds" and value.isdecimal() and int(value) >= 3:
            options[key] = int(value)
        else:
            print(f"{argument} is not an option; rounds=N (3 or more) is, and base=DIR of startup", file=sys.stderr)
            return 2
    try:
        SUBCOMMANDS[arguments[0]](**options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
