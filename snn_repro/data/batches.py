"""Batches that can be replayed: order and augmentation depend on (seed, epoch, position) and nothing else.

Because no random state is carried from batch to batch, a run resumed in mid-epoch, served by another number of
worker processes or shared by another number of training processes sees exactly the inputs that an uninterrupted
run of one process sees.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from snn_repro.data.augment.augmentation import (
    BatchTransform,
    MovingAugmentation,
    chained,
    moved,
    sent,
)
from snn_repro.data.dataset import Batches, Data, Split
from snn_repro.data.events import ByteFrames
from snn_repro.data.image_files import decode
from snn_repro.errors import DataError, UserError

__all__ = ["Batches", "Data", "LoaderBatches", "MemoryBatches", "PilImages", "Split"]

_T = TypeVar("_T")
_ORDER, _BATCH, _SAMPLE = 0, 1, 2  # keeps the three kinds of draws apart


def keep_freed_memory(map_large: bool = False) -> None:
    """Let this process keep the memory of one batch for the next, instead of returning it to the system.

    Having tens of MiB handed out page by page costs several times what filling them costs. It is a setting of
    glibc's malloc for the whole process; other C libraries have none, and then nothing happens. map_large:
    still return blocks of more than 32 MiB, for a lower peak.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if map_large:
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 128 * 2**20)
    else:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


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


class _Step(NamedTuple):
    """A batch transform with what it drew, the rows that it is given and how many of them it returns."""

    transform: BatchTransform | Callable
    drawn: Any
    rows: Tensor
    keep: int

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim == 5 and not portable(self.transform):
            x = x.to(torch.float32)
        if isinstance(self.transform, BatchTransform):
            return self.transform.apply(x, target, self.drawn, self.rows, self.keep)
        return self.transform(x, target, self.drawn)


def portable(transform: BatchTransform | Callable | None) -> bool:
    """Whether a step works on any device and on what is stored."""
    return isinstance(transform, BatchTransform) and transform.portable


def _rows(n: int, indices: Sequence[int] | np.ndarray | None) -> Tensor:
    """Row numbers as a tensor; None: all n."""
    return torch.arange(n) if indices is None else torch.as_tensor(np.asarray(indices, np.int64))


class _Ordered:
    """The part that both kinds of batches share: counting, ordering, and what the batch transforms draw.

    rows: of the inputs, those that belong to this part, in the order in which evaluation sees them.
    transforms: batch transforms, applied in order with one generator a batch of all ranks together. Where one
    process serves alone they may be plain functions (x, target, generator) -> (x, target).
    shuffle, repeats: see `epoch_order`. drop_last: leave out the last, smaller batch.
    """

    device = torch.device("cpu")  # where batches are finished; feed.py chooses another
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
        self.rows = rows
        if batch_size < 1:
            raise UserError(f"recipe.batch_size={batch_size} must be at least 1")
        if repeats < 1:
            raise UserError(f"recipe.repeated_augmentation={repeats} must be at least 1 (1 = no repeated augmentation)")
        if not len(self.rows):
            raise DataError("a part of the data set has no samples; check dataset.split and dataset.validation")
        self.batch_size, self.seed = int(batch_size), int(seed)
        self._n, self._shuffle, self._repeats, self._drop_last = len(self.rows), shuffle, repeats, drop_last
        self._shuffled = shuffle is not False
        self.transforms = list(transforms)
        self._serve(0, 1)

    def _serve(self, rank: int, world: int) -> None:
        """Become the share of process `rank` of `world`, of `batch_size` samples a batch."""
        self._rank, self._world = rank, world
        if world > 1 and (alone := [t for t in self.transforms if not isinstance(t, BatchTransform)]):
            raise TypeError(f"{alone[0]} cannot be shared by {world} processes: derive it from BatchTransform")
        together, self.n_all = self.batch_size * world, self._n  # a batch, and an epoch, of all ranks
        if self._drop_last:
            self.n_all -= self._n % together
        elif self._shuffled and 0 < self._n % together < world:
            self.n_all += -self._n % world  # the last batch must have a sample for every rank
        self.n_samples = len(range(rank, self.n_all, world))
        if self.n_samples == 0:
            raise UserError(
                f"recipe.batch_size={together} leaves no full batch of {self._n} samples; choose less"
                if self._drop_last
                else f"{self._n} samples are too few for {world} processes; start fewer"
            )

    def shard(self, rank: int, world: int) -> Self:
        """The share of process `rank` of `world` in these batches, whose size is that of all together.

        Draw k goes to rank k % world, so batch b of all ranks holds the draws of batch b of one process; in the
        last batch shares may differ by one sample. A training batch must split evenly.
        """
        if world == 1:
            return self
        if self._shuffled and self.batch_size % world:
            raise ValueError(f"batches of {self.batch_size} cannot be split evenly over {world} processes")
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

    def _reads(self, epoch: int, start: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (batch number, positions, indices) from batch `start` on: the draws that this rank reads for a batch.

        They are its own share and then the partners of these. A position counts the draws of all ranks.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start={start} is not in 0..{len(self)} (batches an epoch)")
        order = epoch_order(self._n, self.seed, epoch, self._shuffle, self._repeats, self._world)
        for batch in range(start, len(self)):
            rows = self._own(batch) if self._world == 1 else self._draw(epoch, batch)[1][0]
            positions = batch * self.batch_size * self._world + rows
            yield batch, positions, order[positions]

    def _own(self, batch: int) -> Tensor:
        """This rank's rows of a batch of all ranks."""
        return torch.arange(self._rank, self.all_samples(batch), self._world)

    def _generator(self, epoch: int, batch: int) -> torch.Generator:
        return make_generator(self.seed, epoch, _BATCH, batch, 0)  # the 0 keeps the numbers of earlier versions

    def _draw(self, epoch: int, batch: int) -> tuple[list, list[Tensor]]:
        """What each transform draws for a batch of all ranks, and the rows of it that each is given; last, our own."""
        generator = self._generator(epoch, batch)
        draws = [transform.draw(self.all_samples(batch), generator) for transform in self.transforms]
        rows = [self._own(batch)]
        for transform, drawn in zip(reversed(self.transforms), reversed(draws), strict=True):
            partners = transform.partners(drawn, rows[0])
            rows.insert(0, torch.cat([rows[0], partners[~torch.isin(partners, rows[0])].unique()]))
        return draws, rows

    def _steps(self, epoch: int, batch: int) -> Iterator[_Step]:
        """What is done to a batch, one after another; of one process each draws when it is asked for."""
        if self._world == 1:
            generator, rows = self._generator(epoch, batch), self._own(batch)
            for transform in self.transforms:
                drawn = transform.draw(len(rows), generator) if isinstance(transform, BatchTransform) else generator
                yield _Step(transform, drawn, rows, len(rows))
        else:
            draws, given = self._draw(epoch, batch)
            yield from map(_Step, self.transforms, draws, given, map(len, given[1:]))

    def _finish(self, x: Tensor, target: Tensor, steps: Iterator[_Step]) -> tuple[Tensor, Tensor]:
        """What was read for a batch, with the steps that are left: x float32 and target of this rank's own share."""
        x = sent(x, self.device)
        for step in steps:
            x, target = step(x, target)
        return x.to(torch.float32).contiguous(), target


AS_STORED = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float16): torch.float16}
"""types of frames that portable steps get as they are; others are float32 from the first"""


class MemoryBatches(_Ordered):
    """Batches of one array that lies in memory or is memory-mapped.

    inputs: images [N, C, H, W] or event frames [N, T, C, H, W] (tensor, array, memmap or ByteFrames; uint8, uint16,
        uint32 or float). Frames come out time first, [T, B, C, H, W]. All leave as float32, and reach the transforms in
        their stored type, so that crop and flip move bytes and not floats (frames: see BatchTransform.portable).
    targets: N class numbers.
    check: called with (row, frames) of every row of frames that is read, as stored; raises DataError for a bad one.
    indices: the rows that belong to this part (default all). options: those of `_Ordered`.
    """

    _resident = False
    _over: dict[int, tuple[Tensor, Tensor]]  # of resident ones: see ByteFrames

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
        if inputs.ndim not in (4, 5):
            raise ValueError(f"inputs must be [N, C, H, W] or [N, T, C, H, W], not {tuple(inputs.shape)}")
        super().__init__(_rows(len(inputs), indices), batch_size, **options)
        self._targets = torch.as_tensor(np.asarray(targets, np.int64))
        self._is_frames = inputs.ndim == 5
        self.inputs: Any = inputs
        if not self._is_frames:
            self.inputs = torch.as_tensor(inputs)
        elif not isinstance(inputs, ByteFrames):
            self.inputs = np.asarray(inputs)  # keeps a memmap mapped: only the rows of a batch are read
        self._check = check

    def on_device(self, device: torch.device, inputs: Tensor, over: dict[int, tuple[Tensor, Tensor]]) -> Self:
        """These batches from a copy of all inputs that lies on the device, with the table of a ByteFrames."""
        part = copy.copy(self)
        part.device, part.inputs, part._over, part._resident = device, inputs, over, True
        return part

    def _read(self, epoch: int, batch: int, indices: Tensor) -> tuple[Tensor, Tensor, Iterator[_Step]]:
        """A batch as it is stored, its pixels where the first steps move them, its target, and the steps that are left."""
        rows, steps, sources = self.rows[indices], self._steps(epoch, batch), None
        for step in steps if self._is_frames else ():
            if not isinstance(step.transform, MovingAugmentation):
                steps = itertools.chain([step], steps)
                break
            size = self.inputs.shape[-2:]
            found = step.transform.sources(step.drawn, step.rows, (size[0], size[1]))
            sources = found if sources is None else chained(sources, found)
        x = self._resident_rows(rows, sources) if self._resident else self._gather(rows, sources)
        return x, self._targets[rows], steps

    def _gather(self, rows: Tensor, sources: Tensor | None) -> Tensor:
        """Images [B, C, H, W], or frames [T, B, C, H, W] with their pixels taken from `sources`."""
        pin = self.device.type == "cuda"
        if not self._is_frames:
            x = torch.empty(len(rows), *self.inputs.shape[1:], dtype=self.inputs.dtype, pin_memory=pin)
            return torch.index_select(self.inputs, 0, rows, out=x)
        read = [self.checked(row) for row in rows.tolist()]
        next_step = next((t for t in self.transforms if not isinstance(t, MovingAugmentation)), None)
        kinds = {frames.dtype for frames in read}
        as_stored = (pin or portable(next_step)) and len(kinds) == 1 and kinds <= AS_STORED.keys()
        kind = AS_STORED[kinds.pop()] if as_stored else torch.float32
        t, *chw = self.inputs.shape[1:]
        x = torch.empty(t, len(rows), *chw, dtype=kind, pin_memory=pin)
        for b, frames in enumerate(read):
            if sources is None:
                x.numpy()[:, b] = frames  # one pass: read, convert, transpose
            else:
                own = torch.empty(t, 1, *chw, dtype=AS_STORED.get(frames.dtype, torch.float32))
                own.numpy()[:, 0] = frames
                if own.dtype == kind:
                    moved(own, sources[b : b + 1], x[:, b : b + 1])
                else:
                    x[:, b] = moved(own, sources[b : b + 1])[:, 0]
        return x

    def checked(self, row: int) -> np.ndarray:
        """The frames of a row. Raises DataError where they are damaged."""
        frames = self.inputs[row]
        if self._check is not None:
            self._check(row, frames)
        return frames

    def _resident_rows(self, rows: Tensor, sources: Tensor | None) -> Tensor:
        """As `_gather`, from the inputs on the device."""
        x = self.inputs.index_select(0, sent(rows, self.device))
        if wide := [(b, self._over[row]) for b, row in enumerate(rows.tolist()) if row in self._over]:
            x = x.to(torch.float32)
            for b, (places, counts) in wide:
                x[b].view(-1)[places] = counts
        x = x.transpose(0, 1) if self._is_frames else x
        return x if sources is None else moved(x, sources)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`."""
        read = (self._read(epoch, batch, indices) for batch, _, indices in self._reads(epoch, start))
        if self.device.type == "cpu":  # then all of it is the thread's
            finished = (self._finish(*made) for made in read)
            yield from ahead(finished) if self.ahead else finished
        else:
            for made in ahead(read) if self.ahead else read:
                yield self._finish(*made)


class RowCheck:
    """Holds rows of a cache against their checksums, each once: at the first read of a run.

    To be given to MemoryBatches, the same one to all parts. Threads may share it: at worst two check one row.
    """

    def __init__(self, cache: Any):  # a Cache of cache.py
        assert cache.checksums is not None  # the caller looked
        self.cache, self.checksums = cache, cache.checksums
        self.checked = bytearray(len(cache.names))

    def __call__(self, row: int, frames: np.ndarray) -> None:
        """Raise DataError if `frames`, which were read from this row, are not those that were stored."""
        if not self.checked[row]:
            if not self.intact(row, frames):
                cache = self.cache
                raise DataError(
                    f"{cache.folder}/frames.npy is damaged: the frames of {cache.names[row]} (row {row}) are not those"
                    f" that were stored; rebuild it with `{cache.rebuild}`, or train on them as they are with"
                    " dataset.verify=off"
                )
            self.checked[row] = 1

    def intact(self, row: int, frames: np.ndarray) -> bool:
        """Whether `frames` have the checksum of this row."""
        return zlib.crc32(np.ascontiguousarray(frames).data) == self.checksums[row]


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
        n = len(samples)  # type: ignore[arg-type]  # map-style: it has a length
        super().__init__(_rows(n, indices), batch_size, **options)
        if workers < 0:
            raise UserError(f"workers={workers} must be 0 (read in the main process) or more")
        self._plan = _Plan()
        self._loader = DataLoader(
            _SeededSamples(samples),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0 and self._shuffled,  # evaluation is rare: its workers may go
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every epoch draws from the caller's global generator
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`; batches before `start` are not read."""
        reads = list(self._reads(epoch, start))
        self._plan.batches = [
            [
                (row, (self.seed, epoch, _SAMPLE, position))
                for row, position in zip(self.rows[indices].tolist(), positions.tolist(), strict=True)
            ]
            for _, positions, indices in reads
        ]
        for (batch, *_), loaded in zip(reads, self._loader, strict=True):
            if isinstance(loaded, DataError):
                raise loaded
            x, target = loaded
            if x.ndim == 5:
                x = x.transpose(0, 1)  # [B, T, ...] -> [T, B, ...]
            yield self._finish(x, target, self._steps(epoch, batch))


class PilImages(torch.utils.data.Dataset):
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
        from PIL import Image

        image = self.images[i]
        if isinstance(image, str):
            image = self.read(image, self.mode)
        else:
            pixels = image.transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        return self.transform(image), int(self.labels[i])


class _Plan:
    """The batch sampler: a list that `epoch` fills, so that worker processes outlive an epoch."""

    batches: list[list] = []

    def __iter__(self) -> Iterator[list]:
        return iter(self.batches)


class _SeededSamples(Dataset):
    """Reads one sample with all three global generators seeded for it, and puts those of the training process back."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, key):
        row, parts = key
        with borrowed_generators():
            seed_sample(derive_seed(*parts))
            try:
                return self.samples[row]
            except DataError as error:
                return DataError(str(error))  # raised here, a worker would bury the sentence under its traceback


@contextmanager
def borrowed_generators() -> Iterator[None]:
    """Within, the three global generators may be seeded; afterwards they are those of the training process again."""
    if get_worker_info() is not None:  # a worker's are nobody else's
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_sample(seed: int) -> None:
    """Seed the three global generators, from which a sample's transforms draw."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _collate(samples):
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    return torch.stack([x for x, _ in samples]), torch.tensor([int(y) for _, y in samples])
