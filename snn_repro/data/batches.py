"""Reproducible batches: order and augmentation depend only on (seed, epoch, position).

No random state is carried between batches, so a run that is resumed in mid-epoch, or uses another number of worker or
training processes, receives exactly the inputs of an uninterrupted run of one process.

`plan` chooses the samples of a batch and draws for its transforms; the samples are read as stored, from memory
(MemoryBatches) or by worker processes (LoaderBatches); `_finish` moves them to the device and transforms them. `feed`
chooses the device, which changes no bit of a batch: everything random is drawn on the CPU.
"""

import contextlib
import copy
import ctypes
import logging
import math
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snn_repro.data.augment import GuidedAugmentation
from snn_repro.data.augment.augmentation import BatchTransform, MovingAugmentation, chained, move_pixels, sent
from snn_repro.data.dataset import Batches
from snn_repro.data.events import ByteFrames
from snn_repro.data.image_files import decode
from snn_repro.errors import DataError, UserError

log = logging.getLogger("snn_repro")

_T = TypeVar("_T")
_ORDER, _BATCH, _SAMPLE = 0, 1, 2  # separate the seeds of the three kinds of draws
# Types of frames that portable steps receive as stored; others become float32 first.
AS_STORED = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float16): torch.float16}
SHARE = 0.25  # of the device's free memory that a data set may take with dataset.on_device=auto


def keep_freed_memory(map_large: bool = False) -> None:
    """Let malloc keep the memory of one batch for the next instead of returning it.

    Page faults on tens of MiB cost several times what filling them costs. This sets glibc's malloc for the process;
    other C libraries are left alone. map_large: still return blocks of more than 32 MiB, for a lower peak.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    options = {mmap_max: 0, trim_threshold: 2**31 - 1}
    if map_large:
        options = {mmap_threshold: 32 * 2**20, trim_threshold: 128 * 2**20}
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for option in options.items():
            ctypes.CDLL(None).mallopt(*option)


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers into one 63-bit seed, the same on every machine."""
    return int(np.random.SeedSequence([int(p) for p in parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool | Tensor, repeats: int = 1, world: int = 1) -> Tensor:
    """Sample numbers (int64) of an epoch's draws; draw k goes to process k % world.

    With repeats = r (repeated augmentation, Hoffer et al. 2020) an epoch still has n draws, but of ceil(n / r)
    different samples, r copies in a row: one process has them in one batch, r processes get one copy each. Shuffled
    orders are padded by wrapping so that all ranks have equally many draws; unshuffled ones are not, so that evaluation
    counts every sample once. shuffle: True, or weights [n] for drawing with replacement.
    """
    generator = make_generator(seed, epoch, _ORDER)
    if isinstance(shuffle, Tensor):  # as torch's WeightedRandomSampler draws
        order = torch.multinomial(shuffle, n, replacement=True, generator=generator)
    else:
        order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
    if repeats > 1:
        order = order.repeat_interleave(repeats)[:n]
    if shuffle is not False and n % world:
        order = torch.cat([order, order.repeat(world // n + 1)[: world - n % world]])
    return order


def prefetch(items: Iterator[_T], depth: int = 2) -> Iterator[_T]:
    """Iterate over `items`, produced by a background thread up to `depth` ahead.

    Exceptions in the thread are raised here, in order. The thread ends with the iteration, however it is left.
    """
    end = object()
    with ThreadPoolExecutor(1, "batches") as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]  # never `end`
        finally:
            for future in waiting:
                future.cancel()


class Step(NamedTuple):
    """A transform with its draws, its input rows and the number of rows it returns."""

    transform: BatchTransform
    drawn: Any
    rows: Tensor  # of the batch
    keep: int

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim == 5 and not self.transform.portable:
            x = x.to(torch.float32)
        return self.transform.apply(x, target, self.drawn, self.rows, self.keep)


class Planned(NamedTuple):
    """A batch of one process before it is read: its own samples, then their partners."""

    positions: Tensor  # among the draws of all processes in the epoch
    rows: Tensor  # of the inputs
    steps: list[Step]


def _rows(n: int, indices: Sequence[int] | np.ndarray | None) -> Tensor:
    """Row numbers as a tensor; None: all n rows."""
    return torch.arange(n) if indices is None else torch.as_tensor(np.asarray(indices, np.int64))


class _Ordered:
    """Order, shares and transform draws, common to both kinds of batches.

    rows: rows of the inputs in this part, in the order of evaluation. transforms: applied in order, with one generator
    per batch of all ranks. shuffle, repeats: see `epoch_order`. drop_last: drop the last, smaller batch.
    """

    copied = False  # whether `inputs` is a copy on the device
    device = torch.device("cpu")  # on which batches are finished; set by `feed`
    ahead = False  # whether a thread makes batches in advance; not if they depend on the network

    def __init__(
        self, rows: Tensor, batch_size: int, *, seed: int = 0, shuffle: bool | Tensor = False,
        transforms: Sequence[BatchTransform] = (), drop_last: bool = False, repeats: int = 1,
    ):  # fmt: skip
        if not len(rows):
            raise DataError("a part of the data set has no samples; check dataset.split and dataset.validation")
        self.rows, self.batch_size, self.seed, self.transforms = rows, int(batch_size), int(seed), list(transforms)
        self._shuffle, self._repeats, self._drop_last = shuffle, repeats, drop_last
        self._serve(0, 1)

    def _serve(self, rank: int, world: int) -> None:
        """Set the share of process `rank` of `world`, with `batch_size` samples per batch."""
        self._rank, self._world, n = rank, world, len(self.rows)
        together, self.n_all = self.batch_size * world, n  # samples per batch and per epoch, over all ranks
        if self._drop_last:
            self.n_all -= n % together
        elif self._shuffle is not False and 0 < n % together < world:
            self.n_all += -n % world  # the last batch must have a sample for every rank
        self.n_samples = len(range(rank, self.n_all, world))
        if self.n_samples == 0:
            raise UserError(
                f"recipe.batch_size={together} leaves no full batch of {n} samples; reduce it"
                if self._drop_last
                else f"{n} samples are too few for {world} processes; start fewer"
            )

    def shard(self, rank: int, world: int) -> Self:
        """The share of process `rank` of `world`, which together make batches of batch_size.

        Draw k goes to rank k % world, so batch b of all ranks holds the draws of batch b of one process; in the last
        batch shares may differ by one sample. A training batch divides evenly (see runtime.py).
        """
        if world == 1:
            return self
        part = copy.copy(self)
        part.batch_size = -(-self.batch_size // world)
        part._serve(rank, world)
        return part

    def all_samples(self, batch: int) -> int:
        """Samples in batch `batch` over all ranks."""
        together = self.batch_size * self._world
        return min(together, self.n_all - batch * together)

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def plan(self, epoch: int, start: int) -> Iterator[Planned]:
        """The epoch's batches from `start` on, unread; transforms draw for all ranks together."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start={start} is not in 0..{len(self)} (batches per epoch)")
        order = epoch_order(len(self.rows), self.seed, epoch, self._shuffle, self._repeats, self._world)
        for batch in range(start, len(self)):
            # the 0 keeps the draws of earlier versions
            generator = make_generator(self.seed, epoch, _BATCH, batch, 0)
            drawn = [(t, t.draw(self.all_samples(batch), generator)) for t in self.transforms]
            rows, steps = torch.arange(self._rank, self.all_samples(batch), self._world), list[Step]()
            for transform, draws in reversed(drawn):
                keep = len(rows)
                if self._world > 1:  # otherwise all partners are here
                    partners = transform.partners(draws, rows)
                    rows = torch.cat([rows, partners[~torch.isin(partners, rows)].unique()])
                steps.insert(0, Step(transform, draws, rows, keep))
            positions = batch * self.batch_size * self._world + rows
            yield Planned(positions, self.rows[order[positions]], steps)

    def _finish(self, x: Tensor, target: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Apply the remaining steps: x float32, and target, of this rank's share."""
        x = sent(x, self.device)
        for step in steps:
            x, target = step(x, target)
        return x.to(torch.float32).contiguous(), target


class MemoryBatches(_Ordered):
    """Batches of one array that is in memory or memory-mapped.

    inputs: images [N, C, H, W] or event frames [N, T, C, H, W] (tensor, array, memmap or ByteFrames; uint8, uint16,
        uint32 or float). Frames are returned time first, [T, B, C, H, W]. All are returned as float32, but reach the
        transforms in their stored type, so that crop and flip move bytes (frames: see BatchTransform.portable).
    targets: N class numbers. indices: rows of this part (default: all). options: those of `_Ordered`.
    check: called with (row, stored frames) for each row of frames that is read; raises DataError for a bad one.
    """

    over: dict[int, tuple[Tensor, Tensor]]  # of a copy on the device: counts above a byte, see ByteFrames

    def __init__(
        self, inputs: Tensor | np.ndarray | ByteFrames, targets: Tensor | np.ndarray | Sequence[int], batch_size: int, *,
        indices: Sequence[int] | np.ndarray | None = None, check: Callable[[int, np.ndarray], None] | None = None,
        **options: Any,
    ):  # fmt: skip
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs but {len(targets)} targets")
        super().__init__(_rows(len(inputs), indices), batch_size, **options)
        self._targets = torch.as_tensor(np.asarray(targets, np.int64))
        self.source, self._is_frames, self._check = inputs, inputs.ndim == 5, check
        self.inputs: Any = inputs
        if not self._is_frames:
            self.inputs = torch.as_tensor(inputs)
        elif not isinstance(inputs, ByteFrames):
            self.inputs = np.asarray(inputs)  # keeps a memmap mapped: only the rows of a batch are read

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`."""
        read = map(self._read, self.plan(epoch, start))
        if self.device.type == "cpu":  # the thread does all of it
            finished = starmap(self._finish, read)
            return prefetch(finished) if self.ahead else finished
        return starmap(self._finish, prefetch(read) if self.ahead else read)

    def _read(self, planned: Planned) -> tuple[Tensor, Tensor, list[Step]]:
        """A stored batch, its target and the remaining steps, after pixels of frames are moved."""
        rows, steps, sources = planned.rows, planned.steps, None
        while self._is_frames and steps and isinstance(steps[0].transform, MovingAugmentation):
            step = steps.pop(0)
            found = step.transform.sources(step.drawn, step.rows, tuple(self.inputs.shape[-2:]))  # type: ignore[attr-defined]
            sources = found if sources is None else chained(sources, found)
        if self.copied:
            x = self._from_copy(rows, sources)
        elif self._is_frames:
            x = self._frames(rows, sources is not None or len(steps) > 0)
            x = x if sources is None else move_pixels(x, sources)
        else:
            x = self.inputs.index_select(0, rows)
        return x, self._targets[rows], steps

    def _frames(self, rows: Tensor, stored: bool) -> Tensor:
        """Frames [T, B, C, H, W] as stored if steps or a GPU follow, else float32."""
        read, pin = [self.checked(row) for row in rows.tolist()], self.device.type == "cuda"
        kinds = {_kind(frames) for frames in read}
        t, *chw = self.inputs.shape[1:]
        kind = kinds.pop() if (stored or pin) and len(kinds) == 1 else torch.float32
        x = torch.empty(t, len(rows), *chw, dtype=kind, pin_memory=pin)
        for b, frames in enumerate(read):
            x.numpy()[:, b] = frames
        return x

    def checked(self, row: int) -> np.ndarray:
        """The frames of a row; raises DataError if they are damaged."""
        frames = self.inputs[row]
        if self._check is not None:
            self._check(row, frames)
        return frames

    def _from_copy(self, rows: Tensor, sources: Tensor | None) -> Tensor:
        """Images, or frames with their pixels moved by `sources`, from the copy on the device."""
        x = self.inputs.index_select(0, sent(rows, self.device))
        if wide := [(b, self.over[row]) for b, row in enumerate(rows.tolist()) if row in self.over]:
            x = x.to(torch.float32)
            for b, (places, counts) in wide:
                x[b].view(-1)[places] = counts
        x = x.transpose(0, 1) if self._is_frames else x
        return x if sources is None else move_pixels(x, sources)


class RowCheck:
    """Verifies rows of a cache against their checksums, each at its first read.

    Give the same object to MemoryBatches of all parts. Threads may share it: at worst two check one row.
    """

    def __init__(self, cache: Any):  # a Cache of cache.py that has checksums
        self.cache, self.checksums, self.checked = cache, cache.checksums, bytearray(len(cache.names))

    def __call__(self, row: int, frames: np.ndarray) -> None:
        """Raise DataError if `frames`, as read from this row, are not those that were stored."""
        if not self.checked[row] and not self.intact(row, frames):
            raise DataError(
                f"{self.cache.folder}/frames.npy is damaged: the frames of {self.cache.names[row]} (row {row}) do not"
                f" match their checksum; rebuild it with `{self.cache.rebuild}`, or skip the check with dataset.verify=off"
            )
        self.checked[row] = 1

    def intact(self, row: int, frames: np.ndarray) -> bool:
        """Whether `frames` match the checksum of this row."""
        return zlib.crc32(np.ascontiguousarray(frames).data) == self.checksums[row]


# ------------------------------------------------------------------ samples that are read one by one


class LoaderBatches(_Ordered):
    """Batches of samples read one by one (PIL images, raw recordings) by worker processes.

    samples: map-style data set; samples[i] is (x, class number), x a tensor [C, H, W] or [T, C, H, W]. Its draws from
        `random`, `numpy.random` and torch's global generator are seeded from (seed, epoch, position of the draw), so
        torchvision and timm transforms repeat with any number of workers. Its DataErrors are raised in the caller.
    options: those of `_Ordered`; batch transforms run in the calling process.
    """

    def __init__(
        self, samples: Dataset, batch_size: int, *, workers: int = 0,
        indices: Sequence[int] | np.ndarray | None = None, **options: Any,
    ):  # fmt: skip
        super().__init__(_rows(len(samples), indices), batch_size, **options)  # type: ignore[arg-type]  # it has a length
        self._sampler = _Sampler()
        self._loader = DataLoader(
            _SeededSamples(samples),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0 and self._shuffle is not False,  # evaluation is rare: its workers may exit
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise every epoch draws from the caller's global generator
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`; batches before `start` are not read."""
        waiting: deque[list[Step]] = deque()  # the steps of batches being read

        def keys() -> Iterator[list]:
            for positions, rows, steps in self.plan(epoch, start):
                waiting.append(steps)
                draws = zip(rows.tolist(), positions.tolist(), strict=True)
                yield [(row, (self.seed, epoch, _SAMPLE, k)) for row, k in draws]

        self._sampler.batches = keys()
        for loaded in self._loader:
            if isinstance(loaded, DataError):
                raise loaded
            x, target = loaded
            yield self._finish(x.transpose(0, 1) if x.ndim == 5 else x, target, waiting.popleft())


class _Sampler:
    """Batch sampler whose batches `epoch` sets, so that worker processes outlive an epoch."""

    batches: Iterator[list]

    def __iter__(self) -> Iterator[list]:
        return self.batches


class _SeededSamples(Dataset):
    """Reads a sample with all three global generators seeded for it, then restores them."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, key):
        row, parts = key
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = derive_seed(*parts)
        random.seed(seed), np.random.seed(seed % 2**32), torch.default_generator.manual_seed(seed)
        try:
            return self.samples[row]
        except DataError as error:
            return DataError(str(error))  # if raised, a worker would bury it under its traceback
        finally:
            random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])


def _collate(samples):
    if broken := [sample for sample in samples if isinstance(sample, DataError)]:
        return broken[0]
    return torch.stack([x for x, _ in samples]), torch.tensor([int(y) for _, y in samples])


class PilImages(Dataset):
    """PIL images of an array or of files, transformed; an unreadable file raises DataError.

    mode: of files, "RGB" or "L" (grey). read: (file, mode) -> the input of `transform`, by default a PIL image.
    """

    def __init__(
        self, images: np.ndarray | list[str], labels: np.ndarray, transform: Callable, mode: str = "RGB",
        read: Callable[[str, str], Any] = decode,
    ):  # fmt: skip
        self.images, self.labels, self.transform, self.mode, self.read = images, labels, transform, mode, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        image: Any = self.images[i]
        if isinstance(image, str):
            image = self.read(image, self.mode)
        else:
            pixels = image.transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        return self.transform(image), int(self.labels[i])


# ------------------------------------------------------------------ on their way to a device


def feed(parts: Sequence[Any], device: torch.device, on_device: Any = "auto", ahead: Any = "auto") -> list[Any]:
    """The parts of a data set (Batches or None) with their batches made on `device`.

    The first is the training part. on_device, ahead: "auto", True or False, see the keys of `dataset`. The batches stay
    the same. Raises UserError if on_device=True does not fit.
    """
    gpu = device.type == "cuda"
    wanted, reasons = gpu if on_device == "auto" else on_device, [_why_not(part) for part in parts]
    copies: dict[int, tuple[Tensor, dict]] = {}
    if wanted and reasons[0]:
        log.info(f"dataset.on_device={str(on_device).lower()}: training batches are made on the host, as {reasons[0]}")
    if wanted:
        stay = [part for part, reason in zip(parts, reasons, strict=True) if not reason]
        sources = {id(part.source): part.inputs for part in stay}
        if _fits(sources.values(), device, on_device):
            copies = {key: _copy([p for p in stay if id(p.source) == key], device) for key in sources}
    fed = []
    for part, reason in zip(parts, reasons, strict=True):
        if isinstance(part, _Ordered):
            part = copy.copy(part)
            if isinstance(part, MemoryBatches) and not reason and id(part.source) in copies:
                (part.inputs, part.over), part.copied = copies[id(part.source)], True
            guided = any(isinstance(t, GuidedAugmentation) for t in part.transforms)
            part.ahead = (gpu if ahead == "auto" else ahead) and not guided and not part.copied
            part.device = device if all(t.portable for t in part.transforms) else part.device
        fed.append(part)
    return fed


def _why_not(part: Batches | None) -> str | None:
    """Why a part's batches cannot be made on a device; None if they can."""
    if not isinstance(part, MemoryBatches):
        return "samples are read one by one"
    names = (getattr(t, "name", type(t).__name__) for t in part.transforms if not t.portable)
    return next((f"augment.{name} runs on the CPU only" for name in names), None)


def _kind(inputs: Any) -> torch.dtype:
    """Type of a copy on a device, and of frames for portable steps."""
    return inputs.dtype if isinstance(inputs, Tensor) else AS_STORED.get(inputs.dtype, torch.float32)


def _fits(arrays: Iterable[Any], device: torch.device, on_device: Any) -> bool:
    """Whether copies fit into a GPU's memory; raises UserError if on_device=True and they do not."""
    size = sum(math.prod(inputs.shape) * _kind(inputs).itemsize for inputs in arrays)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    if size <= free * (SHARE if on_device == "auto" else 1):
        return True
    sizes = f"the data set takes {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free"
    if on_device != "auto":
        raise UserError(f"dataset.on_device=true: {sizes}; use auto or false")
    log.info(f"dataset.on_device=auto: {sizes}, so batches are made on the host")
    return False


def _copy(parts: Sequence[MemoryBatches], device: torch.device) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """Rows of an array that its parts use, on a device; counts above a byte."""
    inputs = parts[0].inputs
    if isinstance(inputs, Tensor):
        return inputs.to(device), {}
    over = inputs.over if isinstance(inputs, ByteFrames) else {}
    copied = torch.empty(tuple(inputs.shape), dtype=_kind(inputs), device=device)
    row_of = torch.empty(tuple(inputs.shape[1:]), dtype=_kind(inputs))
    for row in torch.cat([p.rows for p in parts]).unique().tolist():
        frames = parts[0].checked(row)
        row_of.numpy()[...] = inputs.stored[row] if row in over else frames
        copied[row] = row_of
    return copied, {
        row: (torch.from_numpy(places).to(device), torch.from_numpy(counts.astype(np.float32)).to(device))
        for row, (places, counts) in over.items()
    }
