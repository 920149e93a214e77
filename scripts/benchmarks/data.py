"""Event integration, preparation, parsing and batches, against spikingjelly, tonic and torchvision.

malloc keeps freed memory in all cases, except in preparation, where each library has its own process.
"""

import multiprocessing.dummy
import sys
import tempfile
import types
from collections import deque
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2

from benchmarks._harness import Place, Seconds, clocked, in_own_process, memory, peer, place, timings
from benchmarks._report import Report, Table, rated
from snn_repro.config import load_config
from snn_repro.data.augment import Normalize, batch_transforms, sample_transform
from snn_repro.data.augment.crop import RandomCrop
from snn_repro.data.augment.flip import RandomFlip
from snn_repro.data.batches import LoaderBatches, MemoryBatches, PilImages, feed, keep_freed_memory
from snn_repro.data.cache import Settings, prepare
from snn_repro.data.events import Events, integrate
from snn_repro.data.formats import read_aedat3
from snn_repro.data.image_files import decode, decode_tensor
from snn_repro.data.sets import SETS
from snn_repro.distributed import cores

SIZE = (128, 128)
DECODERS = ("pil", "torchcodec") if find_spec("torchcodec") else ("pil",)
OURS = "ours (find, read, CRC-32, decode, integrate, checksum, write, journal, index)"
THEIRS = ("spikingjelly, its default (compressed)", "spikingjelly, uncompressed")


def measure(rounds: int = 15, quick: bool = False, device: str = "cpu") -> Report:
    """Run the benchmark and return its report."""
    if device != "cpu":
        return on_gpu(place(device), max(5, rounds // 2), quick)
    keep_freed_memory()  # else many cases mostly measure page faults, which vary
    spikingjelly = _spikingjelly("utils", "integration, preparation, parsing, serving")
    tonic = peer("tonic.transforms", "integration")
    n, few = (2_000, rounds) if quick else (200_000, max(5, rounds // 2))
    with tempfile.TemporaryDirectory() as scratch:
        tables = [
            _integration(rounds, n, spikingjelly, tonic),
            _preparation(rounds if quick else max(rounds, 9), n, Path(scratch), quick),
            _parsing(few, n, spikingjelly, Path(scratch)),
            _serving(few, n, spikingjelly, Path(scratch), 4 if quick else 16),
            _crop_and_flip(few, 8 if quick else 256),
            *(_event_recipe(few, row, quick) for row in EVENT_ROWS),
            *(_image_recipe(few, row, n, Path(scratch) / row, quick) for row, n in IMAGE_ROWS.items()),
            _main_process(few, "table3_sew_r18_lts", 256 if quick else 4096),
            _peak_memory(Path(scratch), ["cifar10_dvs"] if quick else list(RECORDINGS), 0.01 if quick else 1),
        ]
    packages = ("numpy", "numba", "torch", "torchvision", "spikingjelly", "tonic")
    how = "malloc keeps freed memory, for the peers as well, but where each library has a process of its own."
    return Report("Reading, preparing and serving data", how, tables, packages)


def on_gpu(on: Place, rounds: int, quick: bool) -> Report:
    """Measure batches until they are on the GPU, ready for a network."""
    keep_freed_memory()
    tables = [_to_device(rounds, row, on, quick) for row in EVENT_ROWS]
    images = np.random.RandomState(0).randint(0, 256, (64 if quick else 8192, 3, 32, 32), np.uint8)
    transforms: list = [RandomCrop(4), RandomFlip(0.5), Normalize([125.3, 123.0, 113.9], [51.6, 50.8, 51.3])]
    title = "Batches of 32x32 images, crop with padding 4, flip, normalise"
    tables.append(_ways(rounds, title, images, 64 if quick else 256, transforms, on))
    tables.append(_main_process(rounds, "table3_sew_r18_lts", 256 if quick else 4096, on))
    with tempfile.TemporaryDirectory() as scratch:
        tables.append(_decoders(rounds, "table3_sew_r18_lts", 4 if quick else 512, Path(scratch), on, quick))
    how = (
        "Nothing trains meanwhile: what is prepared ahead hides behind the steps of a network as far as it is shorter."
    )
    return Report("Serving data to a GPU", how, tables, ("numpy", "torch"), gpu=on.facts)


def _to_device(rounds: int, row: str, on: Place, quick: bool) -> Table:
    frames, size, transforms = _frames(row, 1 if quick else 4)
    title = f"Training batches of {row}: {list(frames.shape[1:])} {frames.dtype}, {size} a batch"
    return _ways(rounds, title, frames, size, transforms, on)


def _ways(rounds: int, title: str, inputs: np.ndarray, size: int, transforms: list, on: Place) -> Table:
    """An epoch of batches by each way to the device."""
    device = torch.device(on.device)
    batches = MemoryBatches(inputs, np.zeros(len(inputs), np.int64), size, shuffle=True, transforms=transforms)
    ways: dict[str, dict] = {
        "made on the device (dataset.on_device=true)": dict(on_device=True),
        "made on the host, ahead (dataset.ahead=true)": dict(on_device=False, ahead=True),
        "made on the host between two steps": dict(on_device=False, ahead=False),
    }

    def epoch(fed) -> Callable:
        def call():
            for x, target in fed.epoch(0):
                x.to(device, non_blocking=True), target.to(device, non_blocking=True)

        return call

    cases = {name: epoch(feed([batches], device, **way)[0]) for name, way in ways.items()}
    return Table(title, rated(timings(cases, rounds, on.clock), len(inputs), "samples"))


def _spikingjelly(module: str, why: str):
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # spikingjelly imports it only for speech data
    return peer(f"spikingjelly.datasets.{module}", why)


def _quiet(*_) -> None:
    pass


# ------------------------------------------------------------------ synthetic recordings


def random_events(n: int, seed: int = 0) -> Events:
    """n random events on 128x128 pixels, uniform in position, polarity and time (one second)."""
    rng = np.random.RandomState(seed)
    return Events(
        np.sort(rng.randint(0, 10**6, n)).astype(np.int64),
        rng.randint(0, 128, n).astype(np.int16),
        rng.randint(0, 128, n).astype(np.int16),
        rng.randint(0, 2, n).astype(np.uint8),
    )


def aedat2(events: Events) -> bytes:
    """Encode a recording as an AEDAT 2.0 file of a DVS128."""
    words = np.empty((len(events.t), 2), ">u4")
    words[:, 0] = events.p.astype(np.uint32) | events.x.astype(np.uint32) << 1 | events.y.astype(np.uint32) << 8
    words[:, 1] = events.t
    return b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n" + words.tobytes()


def aedat3(events: Events, packet: int = 4096) -> bytes:
    """Encode a recording as AEDAT 3.1, in polarity packets of `packet` events."""
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


def atis(events: Events) -> bytes:
    """Encode a recording as a 40-bit ATIS file."""
    t = events.t
    columns = (events.x, events.y, events.p.astype(np.int64) << 7 | t >> 16, t >> 8 & 255, t & 255)
    return np.stack([c.astype(np.uint8) for c in columns], 1).tobytes()


def _write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ------------------------------------------------------------------ measurements


def _integration(rounds: int, n: int, spikingjelly, tonic) -> Table:
    events = random_events(n)
    as_dict = {"t": events.t, **{c: getattr(events, c).astype(np.int64) for c in "xyp"}}
    structured = np.empty(n, [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i8")])
    for name in "xytp":
        structured[name] = getattr(events, name)
    to_frame = tonic.ToFrame(sensor_size=(*SIZE, 2), n_event_bins=10)
    cases: dict[str, Callable] = {
        "ours": lambda: integrate(events, 10, SIZE),
        "spikingjelly": lambda: spikingjelly.integrate_events_by_fixed_frames_number(as_dict, "number", 10, *SIZE),
        "tonic ToFrame": lambda: to_frame(structured),
    }
    assert np.array_equal(cases["ours"](), cases["spikingjelly"]()), "our frames differ from spikingjelly's"
    return Table(
        f"Frame integration: {n:,} events, 128x128, T=10, by number (frames equal spikingjelly's)",
        rated(timings(cases, rounds), n, "events"),
        "Goal: at least 3x spikingjelly and 20x tonic.",
    )


def _preparation(rounds: int, n: int, folder: Path, quick: bool) -> Table:
    """One process per library, since in one process they affect each other's memory allocation."""
    file = _write(folder / "events.aedat", aedat2(random_events(n)))
    context = multiprocessing.dummy if quick else multiprocessing.get_context("spawn")  # dummy: threads
    cases, pipes = {}, []
    for i, kind in enumerate((OURS, *THEIRS, f"{OURS} again")):
        pipe, other = context.Pipe()
        turn = 2 if quick else 64 if kind.startswith("ours") else 8  # ours: one data set per call, with its index
        process = context.Process(target=_preparing, args=(kind, folder / f"p{i}", file, turn, other))
        process.daemon = True
        process.start()

        def case(pipe=pipe):
            pipe.send("go")
            return pipe.recv()

        cases[kind] = case
        pipes.append(pipe)
    rows = timings(cases, rounds, measure=lambda case: case())
    for pipe in pipes:
        pipe.send(None)
    return Table(
        f"Raw recordings to cached frames: AEDAT 2.0, {n:,} events, T=10, end to end, a process each",
        rated(rows, 1, "recordings"),
        "Goal: at least 100x spikingjelly's default (nearly all of it is compression) and 12x its uncompressed mode.",
    )


def _preparing(kind: str, folder: Path, file: Path, turn: int, pipe) -> None:
    """Child process: prepare `turn` recordings at each request and answer with the time of one."""
    make = _our_preparation if kind.startswith("ours") else _their_preparation
    run = make(kind, folder, file, turn)
    while pipe.recv():
        pipe.send(Seconds(*(seconds / turn for seconds in clocked(run))))


def _our_preparation(kind: str, folder: Path, file: Path, turn: int) -> Callable[[], None]:
    keep_freed_memory(map_large=True)  # as prepare's workers do
    names = (folder / "raw" / "cat" / f"cifar10_cat_{i}.aedat" for i in range(turn))
    (folder / "raw" / "cat").mkdir(parents=True)
    for name in names:
        name.hardlink_to(file)

    def run() -> None:
        done = prepare(
            Settings(SETS["cifar10_dvs"], 10), folder / "raw", folder / "cache", workers=0, rebuild=True, say=_quiet
        )
        assert done.read == turn and not done.problems, done

    return run


def _their_preparation(kind: str, folder: Path, file: Path, turn: int) -> Callable[[], None]:
    utils, reader = _spikingjelly("utils", "preparation"), _spikingjelly("cifar10_dvs", "preparation")
    utils.np_savez = np.savez if "uncompressed" in kind else np.savez_compressed
    (folder / "frames").mkdir(parents=True)

    def run() -> None:
        for i in range(turn):
            reader._read_aedat_save_to_np(file, folder / f"{i}.npz")
            utils.integrate_events_file_to_frames_file_by_fixed_frames_number(
                np.load, folder / f"{i}.npz", folder / "frames", "number", 10, *SIZE, False
            )

    return run


def _parsing(rounds: int, n: int, spikingjelly, folder: Path) -> Table:
    file = _write(folder / "gesture.aedat", aedat3(random_events(n)))
    cases: dict[str, Callable] = {
        "ours": lambda: read_aedat3(file.read_bytes(), file.name),
        "spikingjelly": lambda: spikingjelly.load_aedat_v3(file),
    }
    ours, theirs = cases["ours"](), cases["spikingjelly"]()
    assert all(np.array_equal(getattr(ours, c), theirs[c]) for c in "txyp"), "our events differ from spikingjelly's"
    return Table(
        f"AEDAT 3.1 to events: {n:,} events (all equal spikingjelly's)",
        rated(timings(cases, rounds), n, "events"),
        "Goal: at least 50x spikingjelly.",
    )


def _serving(rounds: int, events: int, spikingjelly, folder: Path, batch: int) -> Table:
    n = 4 * batch
    kinds = min(8, n)
    counts = np.stack([integrate(random_events(events, i), 10, SIZE) for i in range(kinds)])
    np.save(folder / "cached.npy", np.tile(counts, (n // kinds, 1, 1, 1, 1)))
    files = [folder / f"{i}.npz" for i in range(n)]
    for i, file in enumerate(files):
        np.savez_compressed(file, frames=counts[i % kinds].astype(np.float64))
    cached = np.load(folder / "cached.npy", mmap_mode="r")
    batches = MemoryBatches(cached, np.zeros(n, np.int64), batch, shuffle=True)

    def theirs():
        order = torch.randperm(n).tolist()
        for start in range(0, n, batch):
            frames = [torch.from_numpy(spikingjelly.load_npz_frames(files[i])) for i in order[start : start + batch]]
            default_collate([(x, 0) for x in frames])[0].transpose(0, 1)

    cases = {"ours": lambda: deque(batches.epoch(0), maxlen=0), "spikingjelly": theirs}
    return Table(
        f"Serving cached frames as float32 batches [10, {batch}, 2, 128, 128], page cache warm",
        rated(timings(cases, rounds), n, "samples"),
        "Goal: at least 10x spikingjelly's default .npz files.",
    )


def _crop_and_flip(rounds: int, batch: int) -> Table:
    n = 4 * batch
    images = np.random.RandomState(0).randint(0, 256, (n, 3, 32, 32), np.uint8)
    mean, std = [125.3, 123.0, 113.9], [51.6, 50.8, 51.3]
    transforms: list = [RandomCrop(4), RandomFlip(0.5), Normalize(mean, std)]
    batches = MemoryBatches(images, np.zeros(n, np.int64), batch, shuffle=True, transforms=transforms)
    normalize = v2.Normalize([m / 255 for m in mean], [s / 255 for s in std])
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    per_sample = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *to_float, normalize])
    pixels = images.transpose(0, 2, 3, 1).copy()

    def theirs():
        order = torch.randperm(n).tolist()
        for start in range(0, n, batch):
            default_collate([(per_sample(Image.fromarray(pixels[i])), 0) for i in order[start : start + batch]])

    cases = {
        "ours": lambda: deque(batches.epoch(0), maxlen=0),
        "torchvision v2, sample by sample": theirs,
    }
    return Table(
        "CIFAR batches: crop with padding 4, flip, normalise, 32x32",
        rated(timings(cases, rounds), n, "images"),
        "Goal: at least 8x torchvision v2 sample by sample.",
    )


EVENT_ROWS = (
    "table2_cifar10dvs48_t10_tet", "table2_cifar10dvs128_t16_imp", "table2_ncaltech48_t10_tet", "table2_ncaltech128_t16_imp",
)  # fmt: skip
IMAGE_ROWS = {"table1_cifar10_sdt": 256, "table3_sew_r18_lts": 32}  # rows with PIL augmentation: images per call


def _frames(row: str, batches: int) -> tuple[np.ndarray, int, list]:
    """Random frames for some batches of a row, its batch size and batch transforms."""
    config = load_config([f"experiment={row}"])
    dataset, size = SETS[config.dataset.name], config.recipe.batch_size
    shape = (size * batches, config.timesteps, *dataset.frame_shape(config.dataset.frame_size))
    frames = np.random.RandomState(0).poisson(0.3, shape)
    return (
        frames.astype(np.float16 if config.dataset.frame_size else np.uint8),
        size,
        batch_transforms(config.augment, dataset),
    )


def _event_recipe(rounds: int, row: str, quick: bool) -> Table:
    """Batches of an event row from random frames, against the same transforms one by one."""
    frames, size, transforms = _frames(row, 1 if quick else 2)
    n, *shape = frames.shape
    batches = MemoryBatches(frames, np.zeros(n, np.int64), size, shuffle=True, transforms=transforms)
    bare = MemoryBatches(frames, np.zeros(n, np.int64), size, shuffle=True)
    (copied,) = feed([batches], torch.device("cpu"), on_device=True)

    def step_by_step():
        for x, target in bare.epoch(0):
            for transform in transforms:
                x, target = transform(x, target, torch.Generator().manual_seed(0))

    cases = {
        "a batch from the cache": lambda: deque(batches.epoch(0), maxlen=0),
        "from a copy in memory (dataset.on_device=true)": lambda: deque(copied.epoch(0), maxlen=0),
        "in float32, step by step": step_by_step,
    }
    steps = ", ".join(type(t).__name__ for t in transforms)
    return Table(
        f"Training batches of {row}: [{shape[0]}, {size}, {', '.join(map(str, shape[1:]))}] {frames.dtype}; {steps}",
        rated(timings(cases, rounds), n, "samples"),
    )


def _image_recipe(rounds: int, row: str, n: int, folder: Path, quick: bool) -> Table:
    """Training batches of an image row on one core: whole, and a loader process's part.

    A loader process decodes and augments; whole batches are also normalised to floats and mixed.
    """
    config = load_config([f"experiment={row}"])
    dataset, n = SETS[config.dataset.name], 4 if quick else n
    rng = np.random.RandomState(0)
    images: Any
    channels, pixels, _ = dataset.shape
    if dataset.from_files:
        images = [_photo(rng, folder, i) for i in range(n)]
    else:
        images = rng.randint(0, 256, (n, channels, pixels, pixels), np.uint8)
    mean, std = dataset.statistics
    transforms = batch_transforms(config.augment, dataset, Normalize(mean, std), in_pil=True)

    def samples(tensors: bool) -> PilImages:
        augmented = sample_transform(config.augment, dataset, pixels, mean, tensors=tensors)
        return PilImages(images, np.zeros(n, np.int64), augmented, read=decode_tensor if tensors else decode)

    def whole(batches: LoaderBatches) -> None:
        deque(batches.epoch(0), maxlen=0)

    def worker(loader: torch.utils.data.DataLoader, plan: list) -> None:
        loader.collate_fn([loader.dataset[key] for key in plan])

    cases: dict[str, Callable] = {}
    for decoder in DECODERS if dataset.from_files else DECODERS[:1]:
        suffix = f", dataset.decoder={decoder}" if dataset.from_files else ""
        batches = LoaderBatches(samples(decoder == "torchcodec"), n, shuffle=True, transforms=transforms)
        cases[f"whole{suffix}"] = partial(whole, batches)
        cases[f"a loader process{suffix}"] = partial(worker, batches._loader, [(i, (0, 0, 2, i)) for i in range(n)])
    kind = "JPEG files of 500 x 375 pixels" if dataset.from_files else f"images of {pixels} x {pixels} pixels"
    return Table(f"Training batches of {row}: {kind}, one core", rated(timings(cases, rounds), n, "images"))


class _Ready(torch.utils.data.Dataset):
    """Images that need no decoding."""

    def __init__(self, image: torch.Tensor, n: int):
        self.image, self.n = image, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.image, i % 2


def _main_process(rounds: int, row: str, n: int, on: Place | None = None) -> Table:
    """An epoch of a loader whose two processes have nothing to do.

    Without a GPU the device is torch's `meta`, which computes nothing.
    """
    config = load_config([f"experiment={row}"])
    dataset = SETS[config.dataset.name]
    transforms = batch_transforms(config.augment, dataset, Normalize(*dataset.statistics), in_pil=True)
    samples = _Ready(torch.zeros(dataset.shape, dtype=torch.uint8), n)
    batches = LoaderBatches(samples, 128, shuffle=True, workers=2, transforms=transforms)
    [fed] = feed([batches], torch.device(on.device if on else "meta"))
    case = {"all but reading": lambda: deque(fed.epoch(0), maxlen=0)}
    title = f"Training batches of {row}: what the process that trains has to do"
    note = "" if on else "CPU time of that process alone, without what a device does; nothing is pinned."
    return Table(title, rated(timings(case, rounds, on.clock if on else clocked), n, "images"), note)


def _decoders(rounds: int, row: str, n: int, folder: Path, on: Place, quick: bool) -> Table:
    """An epoch of a row's JPEGs to the device, by each decoder, on all cores."""
    config = load_config([f"experiment={row}"])
    dataset = SETS[config.dataset.name]
    mean, pixels, workers = dataset.statistics[0], dataset.shape[-1], 0 if quick else max(1, cores() - 1)
    transforms = batch_transforms(config.augment, dataset, Normalize(*dataset.statistics), in_pil=True)
    rng = np.random.RandomState(0)
    images, labels = [_photo(rng, folder, i) for i in range(n)], np.zeros(n, np.int64)
    cut, cut_tensors = (
        sample_transform(config.augment, dataset, pixels, mean, tensors=tensors) for tensors in (False, True)
    )
    samples = {
        "pil": PilImages(images, labels, cut, read=decode),
        "torchcodec": PilImages(images, labels, cut_tensors, read=decode_tensor),
    }
    cases: dict[str, Callable] = {}
    for decoder in DECODERS:
        those = samples[decoder]
        batches = LoaderBatches(those, min(64, n), shuffle=True, workers=workers, transforms=transforms)
        [fed] = feed([batches], torch.device(on.device))
        cases[f"dataset.decoder={decoder}"] = lambda fed=fed: deque(fed.epoch(0), maxlen=0)
    title = f"Training batches of {row}: JPEG files of 500 x 375 pixels, {workers} loader processes"
    return Table(title, rated(timings(cases, rounds, on.clock), n, "images"))


def _photo(rng: np.random.RandomState, folder: Path, number: int) -> str:
    """A JPEG like ImageNet's: smooth with noise, about 60 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    smooth = Image.fromarray(rng.randint(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, np.int16) + rng.randint(-12, 13, (375, 500, 3))
    path = folder / f"{number}.JPEG"
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return str(path)


RECORDINGS = {  # data set -> file, events (well above the largest real file), encoder, T, samples
    "cifar10_dvs": ("cat/cifar10_cat_0.aedat", 2_000_000, aedat2, 10, 1),
    "dvs_gesture": ("DvsGesture/user01_led.aedat", 16_000_000, aedat3, 16, 13),
    "ncaltech101": ("Caltech101/accordion/image_0001.bin", 1_000_000, atis, 10, 1),
}


def _peak_memory(folder: Path, datasets: list[str], share: float) -> Table:
    rows = {}
    for dataset in datasets:
        name, n, encode, timesteps, parts = RECORDINGS[dataset]
        n, raw = int(n * share), folder / f"raw {dataset}"
        file = _write(raw / name, encode(random_events(n)))
        if dataset == "dvs_gesture":
            edges = np.linspace(0, 10**6, parts + 1).astype(int)
            lines = [f"{i % 11 + 1},{edges[i]},{edges[i + 1]}" for i in range(parts)]
            _write(file.with_name("user01_led_labels.csv"), "class,startTime_usec,endTime_usec\n" + "\n".join(lines))
            _write(file.with_name("trials_to_train.txt"), f"{file.name}\n")
            _write(file.with_name("trials_to_test.txt"), "")
        name = f"{dataset}: one file of {n:,} events, {file.stat().st_size / 2**20:.0f} MiB"
        rows[name] = {"MiB": in_own_process(_peak, dataset, raw, folder / "caches", timesteps, parts)}
        file.unlink()
    title = "Peak memory of preparing (one process, PyTorch included)"
    return Table(title, rows, "Goal: under 1,024 MiB a process for any data set.")


def _peak(dataset: str, raw: Path, cache: Path, timesteps: int, samples: int) -> float:
    """In a fresh process: peak MiB while one large file is turned into frames."""
    keep_freed_memory(map_large=True)  # as prepare's workers do
    for frame_size in (None, 48):
        done = prepare(Settings(SETS[dataset], timesteps, "number", frame_size), raw, cache, workers=0, say=_quiet)
        assert done.samples == samples and not done.problems, done
    return memory("VmHWM")
