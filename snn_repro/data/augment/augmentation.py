"""Base classes of augmentations: their keys in `augment.`, data, order and operation.

Each file in this folder is one augmentation: a class under `@register_augmentation("key")`, switched on by
`augment.key`. `augment.turned_on()` lists the active ones.

    BatchAugmentation      a step on whole batches of images or event frames
    MovingAugmentation     a batch step that only moves pixels
    GuidedAugmentation     a batch step that uses the relevance of pixels to the network (rpg.py)
    PilAugmentation        a step on single images, before batching
    RecordingAugmentation  a step on the events of a recording, before they become frames
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from snn_repro.data.dataset import DataSet
from snn_repro.data.events import Events
from snn_repro.kernels.compiled import cuts, in_parallel, tried
from snn_repro.registry import AUGMENTATIONS
from snn_repro.settings import Setting

NORMALIZE = 50


def register_augmentation(name: str) -> Callable:
    """Class decorator: `augment.NAME` turns this augmentation on. Raises UserError for a taken name."""

    def named(cls: type["Augmentation"]) -> type["Augmentation"]:
        cls.name, cls.switches = name, cls.switches or (name,)
        return cls

    return AUGMENTATIONS.register(name, named)


class Augmentation:
    """Base class of augmentations: their settings, data and order.

    settings: {key of `augment.`: Setting}, including the switch; a false value is off. works_on: any of images, frames
    and recordings. order: ascending; images are normalised at NORMALIZE, samples and labels are mixed after that.
    """

    name: ClassVar[str]  # set by `register_augmentation`
    switches: ClassVar[Sequence[str]] = ()  # keys that turn it on; default: its name
    settings: ClassVar[Mapping[str, Setting]] = {}
    works_on: ClassVar[Sequence[str]] = ("images", "frames")
    order: ClassVar[int] = 45
    soft_targets: ClassVar[bool] = False  # targets become distributions instead of class numbers
    on_tensors: ClassVar[bool] = False  # `pil_step` also takes uint8 tensors [C, H, W]
    crops: ClassVar[bool] = False  # crops images that share one size
    resizes: ClassVar[bool] = False  # crops images of any size to the network's input size

    @classmethod
    def build(cls, values: Mapping[str, Any], dataset: DataSet) -> Self:
        """Create it from the values of its settings and facts of the data set."""
        return cls(**values)

    def pil_step(self, size: int, fill: Sequence[float]) -> Callable | None:
        """The same operation on one PIL image; None if it runs on batches only.

        size: side of the network's input, in pixels. fill: colour outside the image, 0..255 per channel.
        """
        return None


class PilAugmentation(Augmentation):
    """A step on PIL images (`pil_step`), drawing from global generators that are seeded per sample."""

    works_on = ("images",)


class RecordingAugmentation(Augmentation):
    """A step on raw events during training, drawing from NumPy's global generator, seeded per sample."""

    works_on = ("recordings",)

    def apply(self, events: Events, size: tuple[int, int]) -> Events:
        """Augmented events of a sample, sensor size (H, W); the input is not modified."""
        raise NotImplementedError


class BatchTransform:
    """A step on a batch: (x, target, generator) -> (x, target).

    x is [B, C, H, W] or [T, B, C, H, W] (batch: dim -4); all T frames of a sample share its draw. When processes share
    a batch, each must compute for its rows what a single process would. So `draw` receives only the size of the whole
    batch, and `apply` works on the rows of this process. `partners` names other samples that a step reads.

    portable: `apply` takes x on any device in its stored type (bytes, float16), with rows, draws and target on the CPU.
    Other steps receive event frames as float32 on the CPU.
    """

    portable: ClassVar[bool] = False

    def draw(self, n: int, generator: Generator) -> Any:
        """Random draws for the n samples of the whole batch, all from `generator`."""
        return None

    def partners(self, draws: Any, rows: Tensor) -> Tensor:
        """Rows (int64) whose inputs are needed to transform `rows`, besides `rows` themselves."""
        return rows[:0]

    def apply(self, x: Tensor, target: Tensor, draws: Any, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Transformed (x, target) of the first `keep` rows; x is not modified in place.

        x and target hold `rows` of the batch; those after `keep` are partners. Without partners keep is len(rows).
        """
        raise NotImplementedError

    def __call__(self, x: Tensor, target: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Apply the step to a whole batch."""
        n = x.shape[-4]
        return self.apply(x, target, self.draw(n, generator), torch.arange(n), n)


class BatchAugmentation(Augmentation, BatchTransform):
    """A step on batches: `draw` and `apply` of BatchTransform."""


class SoftAugmentation(BatchAugmentation):
    """A batch step whose targets are class distributions; its first argument is `num_classes`."""

    soft_targets = True

    @classmethod
    def build(cls, values: Mapping[str, Any], dataset: DataSet) -> Self:
        return cls(dataset.num_classes, **values)  # type: ignore[call-arg]  # the subclass's arguments


class Normalize(BatchTransform):
    """x <- (x - mean) / std per channel (dim -3), float32.

    mean and std are in units of the stored values. channel_order="bgr" reverses the channels first: blue is then
    normalised with red's statistics, as in the paper's CIFAR code.
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
    """Positions of the rows `wanted` in x, which holds `rows` of the batch."""
    places = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
    places[rows] = torch.arange(len(rows))
    return places[wanted]


def soft(target: Tensor, num_classes: int) -> Tensor:
    """Class numbers [B] or distributions [B, K] -> distributions, float32 [B, K]."""
    return F.one_hot(target, num_classes).to(torch.float32) if target.ndim == 1 else target


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on a device; copies to a GPU are pinned and non-blocking."""
    if device.type != "cuda":
        return x.to(device)
    return (x.pin_memory() if x.device.type == "cpu" else x).to(device, non_blocking=True)


# ------------------------------------------------------------------ moving pixels


class MovingAugmentation(BatchAugmentation):
    """A step that moves or zeroes pixels, alike in all frames of a sample.

    Channels move together too. Consecutive steps are composed, so that each value is moved once, in its stored type.
    """

    portable = True

    def sources(self, draws: Any, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Source y*W + x of each pixel, int64 [len(rows), H*W]; H*W means zero."""
        raise NotImplementedError

    def apply(self, x: Tensor, target: Tensor, draws: Any, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        return move_pixels(x, self.sources(draws, rows, (x.shape[-2], x.shape[-1]))), target


def chained(first: Tensor, then: Tensor) -> Tensor:
    """Sources [B, H*W] of two composed steps: `first`, then `then`."""
    return F.pad(first, (0, 1), value=first.shape[-1]).gather(-1, then)


def sources_of(move: Callable[[Tensor], Tensor], size: tuple[int, int]) -> Tensor:
    """Sources int64 [H*W] of a nearest-neighbour, zero-filling operation on float images [1, H, W]."""
    height, width = size
    seen = move(torch.arange(1.0, height * width + 1).view(1, height, width)).flatten().long()  # exact to 2^24 pixels
    return torch.where(seen == 0, height * width, seen - 1)


def move_pixels(x: Tensor, sources: Tensor) -> Tensor:
    """Pixels of x [..., B, C, H, W] taken per sample from `sources` [B, H*W].

    Raises IndexError for a negative source.
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
    return pixels.gather(-1, sent(sources, x.device).unsqueeze(-2).expand(*x.shape[:-2], n)).view(x.shape)


SHARE = 2**20  # values per thread
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def shared(loop: Callable[[int, int], object], samples: int, values: int) -> None:
    """Call loop(start, stop) on ranges of samples in threads, one per SHARE of all values."""
    threads = min(torch.get_num_threads(), -(-values // SHARE), samples)
    in_parallel(loop, cuts(samples, threads), threads)


@cache
def _move_loop(size: int) -> Callable | None:
    """`_move` compiled for values of `size` bytes, faster than indexing; None if numba cannot."""
    one = np.zeros((1, 1, 1, 1), f"i{size}" if size > 1 else "u1")
    rest = np.zeros((1, 1), np.int64), 0, 1, np.empty((3, 2), np.uint64)
    return tried(_move, one, one.copy(), *rest, without="moving pixels is slower, not different")


def _move(given, wanted, sources, first, last, room):
    """Split each sample's sources into runs, then copy each forwards or backwards, or zero it.

    Most steps have few runs: one or two per row of pixels for a shift, shear or flip. given, wanted: [T, B, C, H, W].
    room: buffer for the runs; unsigned, since numba checks signed indices for negative values.
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
