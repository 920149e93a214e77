"""What a data set is: what is known of it before a file is read, where its files lie, and how they become `Data`.

A data set is one file in `data/sets/`: a class with the facts as attributes and what reads its files as methods, under

    @register("name")
    class Mine(ImageSet):  # of images.py; or EventSet, or DataSet itself
        ...

`SETS["name"]` holds one object of the class; where the size of its images or its classes matter, ask `SETS["name"].of(cfg)`, as
those of own data (own.py) are found in data_dir.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor

from snn_repro.config.schema import Config
from snn_repro.data.events import Events
from snn_repro.errors import DataError, UserError
from snn_repro.registry import SETS
from snn_repro.settings import Setting


@dataclass
class Split:
    """Which samples were tested. `sha256_test` is the SHA-256 of the sorted test names, one a line."""

    id: str
    sha256_test: str
    n_train: int
    n_val: int
    n_test: int


@runtime_checkable
class Batches(Protocol):
    """All that training calls of a part of a data set, in order or shuffled in each epoch."""

    def __len__(self) -> int:
        """Batches in an epoch, of this process."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, target) of batches `start`, `start + 1`, ... of this epoch, a function of seed and epoch alone.

        x: float32, static image [B, C, H, W] or event frames [T, B, C, H, W]; target: int64 [B] or soft
        float32 [B, K].
        """

    def shard(self, rank: int, world: int) -> Self:
        """The share of process `rank` of `world` in these batches; itself where there is one process."""

    def all_samples(self, batch: int) -> int:
        """Samples in batch `batch` of all processes together."""


@dataclass
class Data:
    """A data set ready for training. `input_shape` is (C, H, W); `static`: images without a time axis."""

    train: Batches
    val: Batches | None
    test: Batches
    input_shape: tuple[int, int, int]
    num_classes: int
    split: Split
    static: bool


class DataSet:
    """The facts of a data set, and what is asked of one."""

    name: ClassVar[str]  # given by `register`; what it is called everywhere
    settings: ClassVar[dict[str, Setting]] = {}  # keys of its own: dataset.KEY, read as cfg.dataset.KEY
    shape: tuple[int, int, int]  # [C, H, W] of a frame or image as the files have it
    num_classes: int
    static = True  # images, without a time axis; else events
    resizable = True  # whether dataset.frame_size may ask for another size
    prepared = False  # whether runs read frames that scripts/prepare_data.py made
    from_files = False  # images of many sizes, opened one by one: cropped in training, resized and cropped in the test
    splits: tuple[str, ...] = ("official",)  # values of dataset.split; the first is the default
    samples: tuple[int | None, int | None] = (None, None)  # (training, test) of the complete set, where that is known
    about: int | None = None  # training samples, roughly, where `samples` does not say
    draws_test = False  # whether dataset.split_seed draws the test part
    own = False  # whether classes, sizes and statistics are found in the files; a run keeps them as dataset.found
    found: dict[
        str, Any
    ] = {}  # what `of` found, as JSON; of events it decides a cache's content, whose manifest says it
    nda = (5, 30.0)  # strength of augment.nda: (shift in pixels, degrees)
    folders: tuple[str, ...] = ()  # names of folders in data_dir that may hold the files; the usual one first
    expected = "its files"  # which files, for messages
    published = "a place that its file in data/sets/ does not name"  # where the authors publish them, for messages

    def of(self, cfg: Config) -> Self:
        """The set with `shape` and `num_classes` as the files of a configuration show them: itself, where it says them.

        With `cfg.dataset.found` they are those that a run found when it was trained, whatever is in data_dir now.
        Raises UserError or DataError where they are to be found and the files are missing.
        """
        return self

    @property
    def label_names(self) -> Sequence[str]:
        """What the classes are called, in the order of their labels; () where that is not known without the files."""
        return ()

    def frame_shape(self, frame_size: int | None = None) -> tuple[int, int, int]:
        """[C, H, W] as the network sees it."""
        channels, height, width = self.shape
        return channels, frame_size or height, frame_size or width

    def locate(self, cfg: Config) -> list[Path]:
        """Where the files lie; none is read. Raises UserError or DataError where they are missing. []: it has no files."""
        return []

    def check(self, cfg: Config) -> None:
        """Raise UserError or DataError for what a run would not find, without reading it."""
        self.locate(cfg)

    def state(self, cfg: Config) -> tuple[str, str | None]:
        """("ready" | "not prepared" | "missing", what to do about it)."""
        try:
            self.locate(cfg)
        except UserError:
            return "missing", f"the data set {self.name} in data_dir"
        return "ready", None

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{what: hash}, which identifies the data by their content. Raises UserError and DataError as `build` does."""
        raise NotImplementedError

    def build(self, cfg: Config) -> Data:
        """The data set ready to train on. Raises UserError or DataError with one sentence."""
        raise NotImplementedError

    def sample(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        """One raw sample as `build` gives it to a network that is tested: image [1, C, H, W] or frames [T, 1, C, H, W], float32.

        source: the path of a file of the set's own format, or what raw.py takes. `say` hears what was changed to make it fit.
        Raises DataError with one sentence where it cannot be read.
        """
        raise UserError(f"{self.name} does not say how one raw sample is read: its class needs a method `sample`")

    def not_found(self, data_dir: str | None) -> UserError:
        """The sentence where `locate` finds nothing."""
        if not data_dir:
            said = f"data_dir is not set: pass data_dir=DIR, the folder that holds {self.expected}"
            return UserError(f"{said}; {self.name} is published at {self.published}")
        return DataError(
            f"{self.name} was not found in data_dir={data_dir}: expected {self.expected}; it is published at {self.published}"
        )


def register(name: str) -> Callable[[type[DataSet]], type[DataSet]]:
    """A decorator of a DataSet's class: from then on `dataset.name=name` means it. Raises UserError if another has the name."""

    def add(cls: type[DataSet]) -> type[DataSet]:
        cls.name, cls.folders = name, cls.folders or (name,)
        SETS.add(name, cls(), cls)
        return cls

    return add


class Sample(NamedTuple):
    """One labelled recording: a whole file, or the part of it from `start` up to `stop` (microseconds)."""

    name: str  # relative to the data set's root; "user01_led.aedat:3" is row 3 of that file's label table
    file: str
    label: int
    part: str  # "train" | "test" where the split is official, else ""
    start: int = 0
    stop: int = -1  # -1: to the end


class Entry(NamedTuple):
    """One file of an event set."""

    path: str
    problem: str = ""  # why it could not be unpacked


class Recorded(DataSet):
    """The facts of recordings of an event camera, one file each or several in one: an `EventSet` without what is done.

    As it stands, this class knows sets of class folders (or an archive for each class), whose files' names match `pattern`.
    """

    static = False
    prepared = True
    splits: tuple[str, ...] = (
        "random",
    )  # what each draws is said in splits.py; "official" where the samples' parts are
    arguments = ""  # of prepare_data.py, besides those that every set has
    inside: tuple[str, ...] = ()  # names of the folders or archives in it that hold the recordings
    depth = 2  # parts of a recording's name: class folder and file, or the file alone
    pattern = r".+"  # of the files' names in lower case; {c} stands for the class

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the class folders in the order of their labels; () where there are none."""
        return ()

    @property
    def label_names(self) -> Sequence[str]:
        return self.class_names

    @property
    def known_names(self) -> tuple[str, ...]:
        """How folders and archives with the set in them are called."""
        return (*self.folders, *(self.inside or self.class_names))

    def listing(self, files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
        """The samples in `files` {name: where it lies}, and {name: why it cannot be used}."""
        label, samples = {c: k for k, c in enumerate(self.class_names)}, []
        for name in files:
            above, _, file = name.rpartition("/")
            if above in label and re.fullmatch(self.pattern.replace("{c}", re.escape(above.lower())), file):
                samples.append(Sample(name, name, label[above], ""))
        return samples, {}

    def decode(self, data: bytes, name: str) -> Events:
        """The events of a file. Raises DataError (formats.FormatError) that calls it `name`."""
        raise NotImplementedError

    def test_mask(self, split: str, names: Sequence[str], labels: Sequence[int]):
        """bool [N]: which samples of the complete set test; unasked for an official split."""
        raise NotImplementedError

    def published_names(self) -> dict[str, int]:
        """{name: label} of the complete set as it was published, where its split is drawn on that."""
        return {}

    def all_names(self, names: Sequence[str], labels: Iterable[int], excluded: Iterable[str]) -> dict[str, int]:
        """{name: label} of the complete set: the published one, of which `names` and `excluded` are a part.

        A copy with recordings that the published set has not has no list but its own: `names` and `excluded`.
        """
        mine = {n: int(k) for n, k in zip(names, labels, strict=True)}
        mine |= {n: list(self.class_names).index(n.split("/")[0]) for n in excluded if n not in mine}
        published = self.published_names()
        return published if published.keys() >= mine.keys() else mine

    def measured(self, data_dir: str | Path | None, say: Callable[[str], None]) -> Self:
        """The set as it is about to be prepared, with what only a look at all recordings tells."""
        return self

    @property
    def cache_name(self) -> str:
        """The folder of its caches in cache_dir."""
        return self.name

    def person(self, name: str) -> str | None:
        """Who is seen in a sample, where dataset.validation holds out whole people."""
        return None

    @property
    def total(self) -> int | None:
        """Samples in the complete set."""
        train, test = self.samples
        return None if train is None or test is None else train + test
