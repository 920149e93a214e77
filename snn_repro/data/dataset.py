"""Base classes of data sets: facts, location of files, and reading them as `Data`.

A data set is one file in `data/sets/`: a class with its facts as attributes and its readers as methods, under

    @register("name")
    class Mine(ImageSet):  # of images.py; or EventSet, or DataSet itself
        ...

`SETS["name"]` holds one object of the class. Where image size or classes matter, use `SETS["name"].of(cfg)`: those of
own data (own.py) are found in data_dir.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor

from snn_repro.config.schema import Config
from snn_repro.data.events import Events
from snn_repro.errors import UserError
from snn_repro.registry import SETS
from snn_repro.settings import Setting


@dataclass
class Split:
    """Identity and sizes of a split; `sha256_test` hashes the sorted test names, one per line."""

    id: str
    sha256_test: str
    n_train: int
    n_val: int
    n_test: int


@runtime_checkable
class Batches(Protocol):
    """One part of a data set, in order or shuffled in each epoch."""

    def __len__(self) -> int:
        """Number of batches per epoch, of this process."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, target) from batch `start` on, a function of seed and epoch only.

        x: float32, images [B, C, H, W] or event frames [T, B, C, H, W]; target: int64 [B] or soft float32 [B, K].
        """

    def shard(self, rank: int, world: int) -> Self:
        """The share of process `rank` of `world`; the object itself for one process."""

    def all_samples(self, batch: int) -> int:
        """Samples in batch `batch` over all processes."""


@dataclass
class Data:
    """A data set ready for training."""

    train: Batches
    val: Batches | None
    test: Batches
    input_shape: tuple[int, int, int]  # (C, H, W)
    num_classes: int
    split: Split
    static: bool  # images without a time axis


class DataSet:
    """Facts of a data set, and the methods that locate, check and read it."""

    name: ClassVar[str]  # set by `register`; its name everywhere
    settings: ClassVar[dict[str, Setting]] = {}  # its own keys, dataset.KEY
    shape: tuple[int, int, int]  # [C, H, W] of a frame or image as stored
    num_classes: int
    static = True  # images without a time axis; otherwise events
    resizable = True  # whether dataset.frame_size may change the size
    prepared = False  # whether runs read frames made by scripts/prepare_data.py
    from_files = False  # images of many sizes, read one by one: cropped in training, resized and cropped in the test
    splits: tuple[str, ...] = ("official",)  # values of dataset.split; the first is the default
    samples: tuple[int | None, int | None] = (None, None)  # (training, test) in the complete set, if known
    about: int | None = None  # approximate number of training samples, if `samples` does not say
    own = False  # users' files: classes, sizes and statistics are found in them, and stored by a run in dataset.found
    found: dict[str, Any] = {}  # what `of` found, as JSON; part of the manifest of an event cache
    nda = (5, 30.0)  # strength of augment.nda: (shift in pixels, degrees)
    folders: tuple[str, ...] = ()  # possible names of its folder in data_dir; the usual one first
    expected = "its files"  # which files, for messages
    published = "a place that its file in data/sets/ does not name"  # where to download them, for messages

    def of(self, cfg: Config) -> Self:
        """The set with `shape` and `num_classes` of a configuration's files; itself if they are fixed.

        With `cfg.dataset.found` they are those found when the run was trained, whatever is in data_dir now. Raises
        UserError or DataError if they must be found and the files are missing.
        """
        return self

    @property
    def label_names(self) -> Sequence[str]:
        """Class names in the order of their labels; () if unknown without the files."""
        return ()

    def frame_shape(self, frame_size: int | None = None) -> tuple[int, int, int]:
        """[C, H, W] of the network's input."""
        return self.shape[0], frame_size or self.shape[1], frame_size or self.shape[2]

    def locate(self, cfg: Config) -> list[Path]:
        """Paths of the files ([]: none needed), unread. Raises UserError or DataError if missing."""
        return []

    def check(self, cfg: Config) -> None:
        """Raise UserError or DataError for anything a run would miss, without reading it."""
        self.locate(cfg)

    def state(self, cfg: Config) -> tuple[str, str | None]:
        """Its state, "ready", "not prepared" or "missing", and what is needed."""
        try:
            self.locate(cfg)
        except UserError:
            return "missing", f"the data set {self.name} in data_dir"
        return "ready", None

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{name: hash} that identifies the data by content. Raises the errors of `build`."""
        raise NotImplementedError

    def build(self, cfg: Config) -> Data:
        """The data set ready to train on. Raises UserError or DataError."""
        raise NotImplementedError

    def sample(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        """One raw sample, preprocessed as in the test.

        float32 image [1, C, H, W] or frames [T, 1, C, H, W]. source: path of a file in the set's own format, or an
        input of raw.py. `say` is called with each change that made it fit. Raises DataError if it cannot be read.
        """
        raise UserError(f"{self.name} cannot read single raw samples: its class needs a method `sample`")


def register(name: str) -> Callable[[type[DataSet]], type[DataSet]]:
    """Class decorator: `dataset.name=name` selects this set. Raises UserError for a taken name."""

    def add(cls: type[DataSet]) -> type[DataSet]:
        cls.name, cls.folders = name, cls.folders or (name,)
        SETS.add(name, cls(), cls)
        return cls

    return add


class Sample(NamedTuple):
    """A labelled recording: a file, or its part from `start` to `stop` (microseconds)."""

    name: str  # relative to the root of the data set; "user01_led.aedat:3" is row 3 of that file's label table
    file: str
    label: int
    part: str  # "train" | "test" if the split is official, else ""
    start: int = 0
    stop: int = -1  # -1: to the end


class Entry(NamedTuple):
    """One file of an event set."""

    path: str
    problem: str = ""  # why it could not be unpacked


class Recorded(DataSet):
    """Facts and file listing of event camera recordings; `EventSet` adds what runs do.

    A file holds one recording or several. By default, class folders or archives hold files that match `pattern`.
    """

    static = False
    prepared = True
    splits: tuple[str, ...] = ("random",)  # see splits.py; "official" if each sample has a part
    arguments = ""  # extra arguments of prepare_data.py
    inside: tuple[str, ...] = ()  # names of the folders or archives in it that hold the recordings
    depth = 2  # parts of a recording's name: class folder and file, or file only
    pattern = r".+"  # of the lower-case file names; {c} stands for the class
    class_names: Sequence[str] = ()  # names of the class folders in the order of their labels; () if none

    @property
    def label_names(self) -> Sequence[str]:
        return self.class_names

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names of folders and archives that hold the set."""
        return (*self.folders, *(self.inside or self.class_names))

    def listing(self, files: dict[str, Entry]) -> tuple[list[Sample], dict[str, str]]:
        """The samples in `files` {name: Entry}, and {name: why it cannot be used}."""
        label, samples = {c: k for k, c in enumerate(self.class_names)}, []
        for name in files:
            above, _, file = name.rpartition("/")
            if above in label and re.fullmatch(self.pattern.replace("{c}", re.escape(above.lower())), file):
                samples.append(Sample(name, name, label[above], ""))
        return samples, {}

    def decode(self, data: bytes, name: str) -> Events:
        """Events of a file; errors call it `name`. Raises DataError (formats.FormatError)."""
        raise NotImplementedError

    def published_names(self) -> dict[str, int]:
        """{name: label} of the complete published set, if its split is drawn on that."""
        return {}

    def all_names(self, names: Sequence[str], labels: Iterable[int], excluded: Iterable[str]) -> dict[str, int]:
        """{name: label} of the complete set: the published one if it includes `names` and `excluded`.

        Otherwise `names` and `excluded` themselves.
        """
        mine = {n: int(k) for n, k in zip(names, labels, strict=True)}
        mine |= {n: list(self.class_names).index(n.split("/")[0]) for n in excluded if n not in mine}
        published = self.published_names()
        return published if published.keys() >= mine.keys() else mine

    def measured(self, data_dir: str | Path | None, say: Callable[[str], None]) -> Self:
        """The set with facts that only reading all recordings gives, for preparation."""
        return self

    @property
    def cache_name(self) -> str:
        """Name of its folder in cache_dir."""
        return self.name

    def person(self, name: str) -> str | None:
        """The person recorded in a sample, if dataset.validation holds out whole people."""
        return None

    @property
    def total(self) -> int | None:
        """Samples in the complete set; None if unknown."""
        return sum(n or 0 for n in self.samples) or None
