"""Batches that can be replayed: order and augmentation depend on (seed, epoch, position) and nothing else.

No random state is carried from batch to batch, so a run resumed in mid-epoch, served by another number of worker processes or
shared by another number of training processes has exactly the inputs of an uninterrupted run of one process.

The way of a batch: `plan` says which samples it has and what its transforms drew; they are read as they are stored, in memory
(MemoryBatches) or by worker processes (LoaderBatches); `_finish` sends them to the device and transforms them. `feed` chooses the
device: where batches are made changes no bit of them, as all that is random is drawn on the CPU.
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
from torch.utils.data import DataLoader, Dataset, get_worker_info

from snn_repro.data.augment import GuidedAugmentation
from snn_repro.data.augment.augmentation import BatchTransform, MovingAugmentation, chained, moved, sent
from snn_repro.data.dataset import Batches, Data, Split
from snn_repro.data.events import ByteFrames
from snn_repro.data.image_files import decode
from snn_repro.errors import DataError, UserError

__all__ = ["Batches", "Data", "LoaderBatches", "MemoryBatches", "PilImages", "Split", "feed"]

log = logging.getLogger("snn_repro")

_T = TypeVar("_T")
_ORDER, _BATCH, _SAMPLE = 0, 1, 2  # keeps the three kinds of draws apart
AS_STORED = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float16): torch.float16}
"""types of frames that portable steps get as they are; others are float32 from the first"""
SHARE = (
    0.25  # of the device's free memory that a data set may take with dataset.on_device=auto; the rest is the network's
)


def keep_freed_memory(map_large: bool = False) -> None:
    """Let this process keep the memory of one batch for the next, instead of returning it to the system.

    Having tens of MiB handed out page by page costs several times what filling them costs. It is a setting of
    glibc's malloc for the whole process; other C libraries have none, and then nothing happens. map_large:
    still return blocks of more than 32 MiB, for a lower peak.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    options = (
        {mmap_threshold: 32 * 2**20, trim_threshold: 128 * 2**20}
        if map_large
        else {mmap_max: 0, trim_threshold: 2**31 - 1}
    )
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for option in options.items():
            ctypes.CDLL(None).mallopt(*option)


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers into one 63-bit seed; equal parts give equal seeds on every machine."""
    return int(np.random.SeedSequence([int(p) for p in parts]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool | Tensor, repeats: int = 1, world: int = 1) -> Tensor:
    """Which sample each draw of an epoch is, int64: those of all `world` processes, of which draw k goes to k % world.

    With repeats = r (repeated augmentation, Hoffer et al. 2020) an epoch still has n draws, but of ceil(n / r)
    different samples: r copies stand next to each other. On one process the copies share a batch and on r processes each
    gets its own copy. Shuffled orders are padded by wrapping so that all ranks have equally many draws; unshuffled ones are not,
    so that evaluation counts every sample once. shuffle: true, or [n] weights by which samples are drawn with replacement.
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


def ahead(items: Iterator[_T], depth: int = 2) -> Iterator[_T]:
    """`items`, made by a thread of its own: up to `depth` of them while the caller is at work on the one before.

    What making them raises is raised here, in its place. The thread ends with the iteration, wherever that is left.
    """
    end = object()
    with ThreadPoolExecutor(1, "batches") as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]  # it is none of `end`
        finally:
            for future in waiting:
                future.cancel()


class Step(NamedTuple):
    """A transform with what it drew, the rows of the batch that it is given and how many of them it returns."""

    transform: BatchTransform
    drawn: Any
    rows: Tensor
    keep: int

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim == 5 and not self.transform.portable:
            x = x.to(torch.float32)
        return self.transform.apply(x, target, self.drawn, self.rows, self.keep)


class Planned(NamedTuple):
    """A batch of one process before it is read: its own samples and then their partners."""

    positions: Tensor  # among the draws of all processes in the epoch
    rows: Tensor  # of the inputs
    steps: list[Step]


def _rows(n: int, indices: Sequence[int] | np.ndarray | None) -> Tensor:
    """Row numbers as a tensor; None: all n."""
    return torch.arange(n) if indices is None else torch.as_tensor(np.asarray(indices, np.int64))


class _Ordered:
    """The part that both kinds of batches share: counting, ordering, and what the batch transforms draw.

    rows: of the inputs, those that belong to this part, in the order in which evaluation sees them.
    transforms: batch transforms, applied in order with one generator a batch of all ranks together.
    shuffle, repeats: see `epoch_order`. drop_last: leave out the last, smaller batch.
    """

    copied = False  # `inputs` is a copy on the device
    device = torch.device("cpu")  # where batches are finished; `feed` chooses another
    ahead = (
        False  # a thread makes batches while the caller is at work on those before; not where it goes by the network
    )

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool | Tensor = False,
        transforms: Sequence[BatchTransform] = (),
        drop_last: bool = False,
        repeats: int = 1,
    ):
        if not len(rows):
            raise DataError("a part of the data set has no samples; check dataset.split and dataset.validation")
        self.rows, self.batch_size, self.seed, self.transforms = rows, int(batch_size), int(seed), list(transforms)
        self._shuffle, self._repeats, self._drop_last = shuffle, repeats, drop_last
        self._serve(0, 1)

    def _serve(self, rank: int, world: int) -> None:
        """Become the share of process `rank` of `world`, of `batch_size` samples a batch."""
        self._rank, self._world, n = rank, world, len(self.rows)
        together, self.n_all = self.batch_size * world, n  # a batch, and an epoch, of all ranks
        if self._drop_last:
            self.n_all -= n % together
        elif self._shuffle is not False and 0 < n % together < world:
            self.n_all += -n % world  # the last batch must have a sample for every rank
        self.n_samples = len(range(rank, self.n_all, world))
        if self.n_samples == 0:
            raise UserError(
                f"recipe.batch_size={together} leaves no full batch of {n} samples; choose less"
                if self._drop_last
                else f"{n} samples are too few for {world} processes; start fewer"
            )

    def shard(self, rank: int, world: int) -> Self:
        """The share of process `rank` of `world` in these batches, whose size is that of all together.

        Draw k goes to rank k % world, so batch b of all ranks holds the draws of batch b of one process; in the
        last batch shares may differ by one sample. A training batch splits evenly (see runtime.py).
        """
        if world == 1:
            return self
        part = copy.copy(self)
        part.batch_size = -(-self.batch_size // world)
        part._serve(rank, world)
        return part

    def all_samples(self, batch: int) -> int:
        """Samples in batch `batch` of all ranks together."""
        together = self.batch_size * self._world
        return min(together, self.n_all - batch * together)

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def plan(self, epoch: int, start: int) -> Iterator[Planned]:
        """The batches of an epoch from `start` on, before they are read. A transform draws for the batch of all ranks."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start={start} is not in 0..{len(self)} (batches an epoch)")
        order = epoch_order(len(self.rows), self.seed, epoch, self._shuffle, self._repeats, self._world)
        for batch in range(start, len(self)):
            generator = make_generator(
                self.seed, epoch, _BATCH, batch, 0
            )  # the 0 keeps the numbers of earlier versions
            drawn = [(t, t.draw(self.all_samples(batch), generator)) for t in self.transforms]
            rows, steps = torch.arange(self._rank, self.all_samples(batch), self._world), list[Step]()
            for transform, draws in reversed(drawn):
                keep = len(rows)
                if self._world > 1:  # else all partners are here
                    partners = transform.partners(draws, rows)
                    rows = torch.cat([rows, partners[~torch.isin(partners, rows)].unique()])
                steps.insert(0, Step(transform, draws, rows, keep))
            positions = batch * self.batch_size * self._world + rows
            yield Planned(positions, self.rows[order[positions]], steps)

    def _finish(self, x: Tensor, target: Tensor, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """What was read for a batch, with the steps that are left: x float32 and target of this rank's own share."""
        x = sent(x, self.device)
        for step in steps:
            x, target = step(x, target)
        return x.to(torch.float32).contiguous(), target


class MemoryBatches(_Ordered):
    """Batches of one array that lies in memory or is memory-mapped.

    inputs: images [N, C, H, W] or event frames [N, T, C, H, W] (tensor, array, memmap or ByteFrames; uint8, uint16,
        uint32 or float). Frames come out time first, [T, B, C, H, W]. All leave as float32, and reach the transforms in
        their stored type, so that crop and flip move bytes and not floats (frames: see BatchTransform.portable).
    targets: N class numbers.
    check: called with (row, frames) of every row of frames that is read, as stored; raises DataError for a bad one.
    indices: the rows that belong to this part (default all). options: those of `_Ordered`.
    """

    over: dict[int, tuple[Tensor, Tensor]]  # of a copy on the device: what bytes do not hold, see ByteFrames

    def __init__(
        self,
        inputs: Tensor | np.ndarray | ByteFrames,
        targets: Tensor | np.ndarray | Sequence[int],
        batch_size: int,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        check: Callable[[int, np.ndarray], None] | None = None,
        **options: Any,
    ):
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
        if self.device.type == "cpu":  # then all of it is the thread's
            finished = starmap(self._finish, read)
            return ahead(finished) if self.ahead else finished
        return starmap(self._finish, ahead(read) if self.ahead else read)

    def _read(self, planned: Planned) -> tuple[Tensor, Tensor, list[Step]]:
        """A batch as it is stored, its target, and the steps that are left: those that move pixels of frames are done here."""
        rows, steps, sources = planned.rows, planned.steps, None
        while self._is_frames and steps and isinstance(steps[0].transform, MovingAugmentation):
            step = steps.pop(0)
            found = step.transform.sources(step.drawn, step.rows, tuple(self.inputs.shape[-2:]))  # type: ignore[attr-defined]
            sources = found if sources is None else chained(sources, found)
        if self.copied:
            x = self._from_copy(rows, sources)
        elif self._is_frames:
            x = self._frames(rows, sources, bool(steps) and steps[0].transform.portable)
        else:
            x = self.inputs.index_select(0, rows)
        return x, self._targets[rows], steps

    def _frames(self, rows: Tensor, sources: Tensor | None, portable: bool) -> Tensor:
        """Frames [T, B, C, H, W] with their pixels taken from `sources`; float32, or as stored if the next step is portable."""
        read, pin = [self.checked(row) for row in rows.tolist()], self.device.type == "cuda"
        kinds = {_kind(frames) for frames in read}
        kind = kinds.pop() if (pin or portable) and len(kinds) == 1 else torch.float32
        t, *chw = self.inputs.shape[1:]
        x = torch.empty(t, len(rows), *chw, dtype=kind, pin_memory=pin)
        for b, frames in enumerate(read):
            if sources is None:
                x.numpy()[:, b] = frames  # one pass: read, convert, transpose
                continue
            own = torch.empty(t, 1, *chw, dtype=_kind(frames))
            own.numpy()[:, 0] = frames
            if own.dtype == kind:
                moved(own, sources[b : b + 1], x, b)
            else:
                x[:, b] = moved(own, sources[b : b + 1])[:, 0]
        return x

    def checked(self, row: int) -> np.ndarray:
        """The frames of a row. Raises DataError where they are damaged."""
        frames = self.inputs[row]
        if self._check is not None:
            self._check(row, frames)
        return frames

    def _from_copy(self, rows: Tensor, sources: Tensor | None) -> Tensor:
        """Images, or frames with their pixels taken from `sources`, of the copy on the device."""
        x = self.inputs.index_select(0, sent(rows, self.device))
        if wide := [(b, self.over[row]) for b, row in enumerate(rows.tolist()) if row in self.over]:
            x = x.to(torch.float32)
            for b, (places, counts) in wide:
                x[b].view(-1)[places] = counts
        x = x.transpose(0, 1) if self._is_frames else x
        return x if sources is None else moved(x, sources)


class RowCheck:
    """Holds rows of a cache against their checksums, each once: at the first read of a run.

    To be given to MemoryBatches, the same one to all parts. Threads may share it: at worst two check one row.
    """

    def __init__(self, cache: Any):  # a Cache of cache.py that has checksums
        self.cache, self.checksums, self.checked = cache, cache.checksums, bytearray(len(cache.names))

    def __call__(self, row: int, frames: np.ndarray) -> None:
        """Raise DataError if `frames`, which were read from this row, are not those that were stored."""
        if not self.checked[row] and not self.intact(row, frames):
            raise DataError(
                f"{self.cache.folder}/frames.npy is damaged: the frames of {self.cache.names[row]} (row {row}) are not those"
                f" that were stored; rebuild it with `{self.cache.rebuild}`, or train on them as they are with"
                " dataset.verify=off"
            )
        self.checked[row] = 1

    def intact(self, row: int, frames: np.ndarray) -> bool:
        """Whether `frames` have the checksum of this row."""
        return zlib.crc32(np.ascontiguousarray(frames).data) == self.checksums[row]


# ------------------------------------------------------------------ samples that are read one by one


class LoaderBatches(_Ordered):
    """Batches of samples that must be read one by one (PIL images, raw recordings), by worker processes.

    samples: a map-style data set; samples[i] is (x, class number), x a tensor [C, H, W] or [T, C, H, W].
        Whatever it draws from `random`, `numpy.random` or torch's global generator is seeded from (seed,
        epoch, position of the draw), so torchvision and timm transforms repeat whatever the number of
        workers. An exception that it raises as DataError reaches the caller as one sentence.
    options: those of `_Ordered`; batch transforms run in the calling process.
    """

    def __init__(
        self,
        samples: Dataset,
        batch_size: int,
        *,
        workers: int = 0,
        indices: Sequence[int] | np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(_rows(len(samples), indices), batch_size, **options)  # type: ignore[arg-type]  # it has a length
        self._sampler = _Sampler()
        self._loader = DataLoader(
            _SeededSamples(samples),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0 and self._shuffle is not False,  # evaluation is rare: its workers may go
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every epoch draws from the caller's global generator
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`; batches before `start` are not read."""
        waiting: deque[list[Step]] = deque()  # the steps of batches that are being read

        def keys() -> Iterator[list]:
            for positions, rows, steps in self.plan(epoch, start):
                waiting.append(steps)
                yield [
                    (row, (self.seed, epoch, _SAMPLE, k))
                    for row, k in zip(rows.tolist(), positions.tolist(), strict=True)
                ]

        self._sampler.batches = keys()
        for loaded in self._loader:
            if isinstance(loaded, DataError):
                raise loaded
            x, target = loaded
            yield self._finish(x.transpose(0, 1) if x.ndim == 5 else x, target, waiting.popleft())


class _Sampler:
    """The batch sampler: what `epoch` sets, so that worker processes outlive an epoch."""

    batches: Iterator[list]

    def __iter__(self) -> Iterator[list]:
        return self.batches


class _SeededSamples(Dataset):
    """Reads one sample with all three global generators seeded for it, and puts those of the training process back."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, key):
        row, parts = key
        ours = get_worker_info() is None  # a worker's generators are nobody else's
        states = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if ours else None
        seed = derive_seed(*parts)
        random.seed(seed), np.random.seed(seed % 2**32), torch.default_generator.manual_seed(seed)
        try:
            return self.samples[row]
        except DataError as error:
            return DataError(str(error))  # raised here, a worker would bury the sentence under its traceback
        finally:
            if states:
                random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])


def _collate(samples):
    if broken := [sample for sample in samples if isinstance(sample, DataError)]:
        return broken[0]
    return torch.stack([x for x, _ in samples]), torch.tensor([int(y) for _, y in samples])


class PilImages(Dataset):
    """Images of an array or of files as PIL images, transformed; a file that cannot be read is a DataError with its name.

    mode: of the images of files, "RGB" or "L" (grey). read: (file, mode) -> what `transform` is given instead of a PIL image.
    """

    def __init__(
        self,
        images: np.ndarray | list[str],
        labels: np.ndarray,
        transform: Callable,
        mode: str = "RGB",
        read: Callable[[str, str], Any] = decode,
    ):
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
    """The parts of a data set (Batches or None) with the same batches, on their way to `device`; the first is that of training.

    on_device, ahead: "auto", True or False, see the keys of `dataset`. Raises UserError where on_device=True does not fit.
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
    """Why the batches of a part cannot be made on a device."""
    if not isinstance(part, MemoryBatches):
        return "samples are read one by one"
    names = (getattr(t, "name", type(t).__name__) for t in part.transforms if not t.portable)
    return next((f"augment.{name} has no form for a device" for name in names), None)


def _kind(inputs: Any) -> torch.dtype:
    """The type of a copy on a device, and of frames that portable steps get."""
    return inputs.dtype if isinstance(inputs, Tensor) else AS_STORED.get(inputs.dtype, torch.float32)


def _fits(arrays: Iterable[Any], device: torch.device, on_device: Any) -> bool:
    """Whether copies fit a GPU's memory; raises UserError where they were asked for and do not."""
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
    """The rows of an array that its parts use, read and checked once, and their part of the table of a ByteFrames."""
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
