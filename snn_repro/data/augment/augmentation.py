"""What an augmentation is: its keys of `augment.`, the data that it works on, its place in the order, and what it does.

One augmentation is one file in this folder, a class under `@register_augmentation("key")`, where `augment.key` turns it on. It is

    a BatchAugmentation  a step on whole batches of images or of event frames
    a MovingAugmentation  such a step that only moves pixels
    a GuidedAugmentation  such a step that uses what the network sees in them (rpg.py)
    a PilAugmentation  a step on single images, before they are batched
    a RecordingAugmentation  a step on the events of a recording, before they become frames

A configuration's `augment.turned_on()` says which of them it has.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snn_repro.data.dataset import DataSet
from snn_repro.data.events import Events
from snn_repro.kernels.compiled import cuts, in_parallel, tried
from snn_repro.registry import AUGMENTATIONS
from snn_repro.settings import Setting

AnAugmentation = TypeVar("AnAugmentation", bound="Augmentation")
NORMALIZE = 50


def register_augmentation(name: str) -> Callable[[type[AnAugmentation]], type[AnAugmentation]]:
    """A decorator of an augmentation's class: `augment.NAME` turns it on. Raises UserError if another has the name."""

    def add(cls: type[AnAugmentation]) -> type[AnAugmentation]:
        cls.name, cls.switches = name, cls.switches or (name,)
        AUGMENTATIONS.add(name, cls, cls)
        return cls

    return add


class Augmentation:
    """settings: {key of `augment.`: Setting}, the one that turns it on among them; a value that is false is off.

    works_on: of images, frames and recordings, those whose data sets can have it. order: who has less goes first; stored values of images are
    normalised at NORMALIZE, and whole samples and labels are mixed behind that.
    """

    name: ClassVar[str]  # given by `register_augmentation`
    switches: ClassVar[Sequence[str]] = ()  # keys that turn it on; by default its name alone
    settings: ClassVar[Mapping[str, Setting]] = {}
    works_on: ClassVar[Sequence[str]] = ("images", "frames")
    order: ClassVar[int] = 45
    soft_targets: ClassVar[bool] = False  # its targets are distributions, not class numbers
    on_tensors: ClassVar[bool] = False  # its `pil_step` takes uint8 tensors [C, H, W] too
    crops: ClassVar[bool] = False  # it cuts images of one size
    resizes: ClassVar[bool] = False  # it cuts any image to the network's size, so that nothing else need

    @classmethod
    def is_on(cls, values: Mapping[str, Any]) -> bool:
        """Whether the values of its settings ask for it."""
        return any(values[key] for key in cls.switches)

    @classmethod
    def build(cls, values: Mapping[str, Any], dataset: DataSet) -> Self:
        """The augmentation with the values of its settings, for a data set of whose facts it may need some."""
        return cls(**values)

    def pil_step(self, size: int, fill: Sequence[float]) -> Callable | None:
        """What does the same to one PIL image, for images that are read one by one; None: it waits for the batch.

        size: pixels of the network's input. fill: a colour for what lies outside of the image, 0..255 a channel.
        """
        return None


class PilAugmentation(Augmentation):
    """A step on PIL images: `pil_step`, which draws from the global generators; LoaderBatches seeds them for each sample."""

    works_on = ("images",)


class RecordingAugmentation(Augmentation):
    """A step on recordings, which are then read while training. Draws from NumPy's global generator, seeded a sample."""

    works_on = ("recordings",)

    def apply(self, events: Events, size: tuple[int, int]) -> Events:
        """The events of one sample, of a sensor of size (H, W); those given are not changed in place."""
        raise NotImplementedError


class BatchTransform:
    """One step on a batch: (x, target, generator) -> (x, target), x [B, C, H, W] or [T, B, C, H, W] (batch: dim -4).

    Several processes share a batch, and each must find in its rows what one process finds there. So `draw` is asked
    for the whole batch, without having seen it, and `apply` works on the rows that this process holds. A step whose
    results take the input of other samples names them in `partners`; they are then read here as well. All T frames of a
    sample share its draw.

    portable: `apply` takes x on any device and as it is stored (bytes, float16), with rows, draws and target on the CPU. Event
    frames reach other steps as float32 on the CPU.
    """

    portable: ClassVar[bool] = False

    def draw(self, n: int, generator: Generator) -> Any:
        """All that is random, for the n samples of the batch of all processes together. Draws from `generator` alone."""
        return None

    def partners(self, draws: Any, rows: Tensor) -> Tensor:
        """The rows, int64, whose input the results of `rows` take besides their own."""
        return rows[:0]

    def apply(self, x: Tensor, target: Tensor, draws: Any, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """(x, target) of the first `keep` rows; x and target hold `rows` of the batch, and x is not changed in place.

        The rows behind the first `keep` are partners of these; without partners keep is len(rows).
        """
        raise NotImplementedError

    def __call__(self, x: Tensor, target: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The step on a whole batch."""
        n = x.shape[-4]
        return self.apply(x, target, self.draw(n, generator), torch.arange(n), n)


class BatchAugmentation(Augmentation, BatchTransform):
    """A step on batches: `draw` and `apply`, see BatchTransform."""


class SoftAugmentation(BatchAugmentation):
    """A step on batches whose targets are distributions over the data set's classes: the first argument that builds it."""

    soft_targets = True

    @classmethod
    def build(cls, values: Mapping[str, Any], dataset: DataSet) -> Self:
        return cls(dataset.num_classes, **values)  # type: ignore[call-arg]  # those of the classes below it


class Normalize(BatchTransform):
    """x <- (x - mean) / std per channel (dim -3), float32; mean and std in the unit of the stored values.

    channel_order="bgr" turns the channels of x round first: blue is then normalised with red's statistics, as
    the paper's CIFAR code does.
    """

    portable = True

    def __init__(self, mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb"):
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.scale = 1 / torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.reverse = channel_order == "bgr"

    def apply(self, x: Tensor, target: Tensor, draws: Any, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        self.mean, self.scale = self.mean.to(x.device), self.scale.to(x.device)
        x = x.flip(-3) if self.reverse else x
        return (x.to(torch.float32) - self.mean).mul_(self.scale), target


def held(rows: Tensor, wanted: Tensor) -> Tensor:
    """Where x holds the rows `wanted` of a batch, of which it holds `rows`."""
    places = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
    places[rows] = torch.arange(len(rows))
    return places[wanted]


def soft(target: Tensor, num_classes: int) -> Tensor:
    """Class numbers [B] or distributions [B, K] as distributions, float32 [B, K]."""
    return F.one_hot(target, num_classes).to(torch.float32) if target.ndim == 1 else target


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on a device: to a GPU by way of pinned memory, non-blocking."""
    if device.type != "cuda":
        return x.to(device)
    return (x.pin_memory() if x.device.type == "cpu" else x).to(device, non_blocking=True)


# ------------------------------------------------------------------ moving pixels


class MovingAugmentation(BatchAugmentation):
    """A step that takes each pixel of a frame from some place in it, or makes it zero; alike in all frames and channels of a sample.

    Such steps in a row are applied as one: their `sources` are put together, and each value is moved once, as it is stored.
    """

    portable = True

    def sources(self, draws: Any, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """The place y W + x from which each pixel of a frame of size (H, W) is taken, int64 [len(rows), H W]; H W: it is zero."""
        raise NotImplementedError

    def apply(self, x: Tensor, target: Tensor, draws: Any, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        return moved(x, self.sources(draws, rows, (x.shape[-2], x.shape[-1]))), target


def chained(first: Tensor, then: Tensor) -> Tensor:
    """The sources [B, H W] of two steps, of which `first` comes first."""
    return F.pad(first, (0, 1), value=first.shape[-1]).gather(-1, then)


def sources_of(move: Callable[[Tensor], Tensor], size: tuple[int, int]) -> Tensor:
    """The sources int64 [H W] of an operation on float images [1, H, W] that samples nearest neighbours, zeros from outside."""
    height, width = size
    seen = move(torch.arange(1.0, height * width + 1).view(1, height, width)).flatten().long()  # exact to 2^24 pixels
    return torch.where(seen == 0, height * width, seen - 1)


def moved(x: Tensor, sources: Tensor) -> Tensor:
    """x [B, C, H, W] or [T, B, C, H, W] with the pixels of each sample taken from `sources` [B, H W], see MovingAugmentation.

    Raises IndexError for a source before the frame.
    """
    n = sources.shape[-1]
    if x.device.type == "cpu" and (loop := _move_loop(x.element_size())):
        if int(sources.min()) < 0:
            raise IndexError(f"the sources of moved pixels are 0 to {n}, not {int(sources.min())}")
        out = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_pinned())
        given, wanted = (
            v.view(-1, *v.shape[-4:-2], n).view(INTEGERS[v.element_size()]).numpy() for v in (x.contiguous(), out)
        )
        places = sources.contiguous().numpy()
        shared(
            lambda *part: loop(given, wanted, places, *part, np.empty((3, n + 1), np.uint64)), len(sources), x.numel()
        )
        return out
    pixels = x.flatten(-2) if int(sources.max()) < n else F.pad(x.flatten(-2), (0, 1))
    index = sent(sources, x.device).unsqueeze(-2).expand(*x.shape[:-2], n)
    return pixels.gather(-1, index).view(x.shape)


SHARE = 2**20  # values that are worth a thread
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def shared(loop: Callable[[int, int], object], samples: int, values: int) -> None:
    """Call loop(first, behind the last) of all samples of a batch, which has so many values, shared among the threads."""
    threads = min(torch.get_num_threads(), -(-values // SHARE), samples)
    in_parallel(loop, cuts(samples, threads), threads)


@cache
def _move_loop(size: int) -> Callable | None:
    """`_move` compiled for values of so many bytes: several times as fast as to look every pixel up. None where numba cannot."""
    one = np.zeros((1, 1, 1, 1), f"i{size}" if size > 1 else "u1")
    rest = np.zeros((1, 1), np.int64), 0, 1, np.empty((3, 2), np.uint64)
    return tried(_move, one, one.copy(), *rest, without="moving pixels is slower, not different")


def _move(given, wanted, sources, first, last, room):
    """A sample's sources as runs, each a piece of a frame that is copied, copied backwards or zero; then run by run.

    Most steps have few runs: a shift, a shear or a flip one or two a row of pixels. given, wanted: [T, B, C, H W]. room: for the
    runs; unsigned, as numba looks whether other places are negative.
    """
    n = sources.shape[1]
    begins, source, way = room[0], room[1], room[2]
    for b in range(first, last):
        places, runs, i = sources[b], 0, 0
        while i < n:
            begins[runs], source[runs] = i, places[i]
            i += 1
            if places[i - 1] >= n:
                step = 0
                while i < n and places[i] >= n:
                    i += 1
            else:
                step = -1 if i < n and places[i] == places[i - 1] - 1 else 1
                while i < n and places[i] == places[i - 1] + step and places[i] < n:
                    i += 1
            way[runs] = 1 - step
            runs += 1
        begins[runs] = n
        for t in range(given.shape[0]):
            for c in range(given.shape[2]):
                frame, to = given[t, b, c], wanted[t, b, c]
                for run in range(runs):
                    begin, place, count = begins[run], source[run], begins[run + 1] - begins[run]
                    if way[run] == 0:
                        for j in range(count):
                            to[begin + j] = frame[place + j]
                    elif way[run] == 1:
                        for j in range(count):
                            to[begin + j] = 0
                    else:
                        for j in range(count):
                            to[begin + j] = frame[place - j]
