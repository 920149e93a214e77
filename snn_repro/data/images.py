"""Image sets: arrays in memory, or files in class folders, become `Data`.

Published files are only read. A small set is one uint8 tensor in memory, cropped and flipped in batches. What needs PIL
images (RandomResizedCrop, RandAugment, all of ImageNet) goes image by image through worker processes
(`dataset.workers`).
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_repro.config.schema import Config
from snn_repro.data import augment, image_files, raw, vision
from snn_repro.data.archives import find_entry, reading
from snn_repro.data.batches import PilImages
from snn_repro.data.build import Part, assemble
from snn_repro.data.dataset import Data, DataSet, Split
from snn_repro.data.splits import split_parts
from snn_repro.distributed import world
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting


class Images(NamedTuple):
    """Training or test images, in their official order."""

    images: Any  # an array [N, C, H, W], or a list of paths
    labels: np.ndarray  # [N]
    names: Sequence[str]  # of the samples, for the hash of the test list


class ImageSet(DataSet):
    """Images that fit in memory, from a few files that `read` turns into arrays."""

    # per-channel mean and standard deviation of the training images, RGB, in units of the stored values
    statistics: tuple[list[float], list[float]]
    split_id = "official"  # name of its one split in results
    files: tuple[tuple[str, ...], ...] = ()  # possible names of each file; a folder counts as one
    installed: Path | None = None  # where a system package installs the files; used without data_dir

    def read(self, *files: Path) -> tuple[Sequence, Sequence]:
        """(training, test), each (images [N, C, H, W], labels [N]) and optionally sample names.

        `files` are those of `locate`. Images are uint8, or float if they never go through PIL.
        """
        raise NotImplementedError

    def locate(self, cfg: Config) -> list[Path]:
        """The files, all from one folder: data_dir or one of `folders` in it."""
        if not self.files:
            return []
        root = Path(cfg.data_dir) if cfg.data_dir else self.installed
        if root and len(self.files) == 1 and root.name.lower() in map(str.lower, self.files[0]) and root.is_dir():
            return [root]
        published = f"{self.name} is published at {self.published}"
        for base in [root, *filter(None, (find_entry(root, name) for name in self.folders))] if root else ():
            paths = [find_entry(base, *names) for names in self.files]
            if found := [path for path in paths if path]:
                if None not in paths:
                    return found
                raise DataError(f"{base} lacks {self.files[paths.index(None)][0]}; {published}")
        if not cfg.data_dir:
            raise UserError(
                f"data_dir is not set: pass data_dir=DIR, the folder that holds {self.expected}; {published}"
            )
        raise DataError(f"{self.name} was not found in data_dir={cfg.data_dir}: expected {self.expected}; {published}")

    @reading()
    def published_parts(self, cfg: Config) -> tuple[Sequence, Sequence]:
        """The result of `read`."""
        return self.read(*self.locate(cfg))

    def parts(self, cfg: Config) -> tuple[Images, Images]:
        """(training, test) as published, not to be modified. Warns if the set is incomplete."""
        train, test = (
            Images(images, labels, *(names or [[f"{part}/{i:05d}" for i in range(len(labels))]]))
            for part, (images, labels, *names) in zip(("train", "test"), self.published_parts(cfg), strict=True)
        )
        warn_if_incomplete(self, len(train.labels), len(test.labels))
        return train, test

    def split(self, cfg: Config, train: Images, test: Images) -> tuple[np.ndarray, np.ndarray, Split]:
        """(training rows, validation rows, Split) of the training images."""
        labels = np.asarray(train.labels)
        rows = np.arange(len(labels)), np.arange(len(test.labels))
        return split_parts(cfg, *rows, labels, test.names, split=self.split_id)

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{"files": SHA-256 of all images and labels}."""
        return {"files": sha256(self.published_parts(cfg))}

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels [C, H, W] as `read` gives images; overridden by sets of floats."""
        return pixels

    def image(self, source: Any, say: Callable[[str], None]) -> np.ndarray:
        """One raw image (see raw.py) as `read` gives it, [C, H, W]."""
        usual = self.stored(np.zeros(self.shape, np.uint8))
        if hasattr(source, "shape") and (own := np.asarray(source)).shape == self.shape and own.dtype == usual.dtype:
            return own  # it is already in that form
        return self.stored(raw.pixels(source, self.shape, say))

    def sample(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        normalize = augment.Normalize(*self.statistics, cfg.dataset.channel_order)
        return normalize(self.raw_image(cfg, source, say), torch.zeros(1), torch.Generator())[0].contiguous()

    def raw_image(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        """A raw image as the test reads it, [1, C, H, W], not yet normalised."""
        return torch.as_tensor(_resized(self.image(source, say)[None], cfg.dataset.frame_size))

    def build(self, cfg: Config) -> Data:
        train, test = self.parts(cfg)
        labels = np.asarray(train.labels)
        train_rows, val_rows, split = self.split(cfg, train, test)
        normalize = augment.Normalize(*self.statistics, cfg.dataset.channel_order)
        # RandAugment fills with the mean colour; the paper's code gives it in BGR order
        fill = self.statistics[0][:: -1 if cfg.dataset.channel_order == "bgr" else 1]
        augmented, plain, tested = self.inputs(cfg, train, test, val_rows, fill)
        parts = Part(augmented, labels, train_rows), Part(plain, labels, val_rows), Part(tested, test.labels)
        transforms = augment.batch_transforms(cfg.augment, self, normalize, in_pil=isinstance(augmented, PilImages))
        return assemble(cfg, self, parts, split, transforms, [normalize])

    def inputs(
        self, cfg: Config, train: Images, test: Images, val_rows: np.ndarray, fill: Sequence[float]
    ) -> Sequence[Any]:
        """Training images with and without augmentation, and the test images.

        With dataset.frame_size they are resized once (bilinear, antialiased).
        """
        plain, tested = (_resized(part.images, cfg.dataset.frame_size) for part in (train, test))
        if not (in_pil := cfg.augment.turned_on(augment.PilAugmentation)):
            return plain, plain, tested
        if plain.dtype != np.uint8:
            raise UserError(f"augment.{in_pil[0].name} is for larger images; set it to 0 for {self.name}")
        size = self.frame_shape(cfg.dataset.frame_size)[-1]
        steps = augment.sample_transform(cfg.augment, self, size, fill)
        return PilImages(plain, np.asarray(train.labels), steps), plain, tested


class ImageFiles(ImageSet):
    """Images of many sizes, one file each, read during training."""

    from_files = True
    settings = {
        "decoder": Setting(
            "pil",
            "image decoding and resizing: PIL, as in the paper, or torchcodec and torchvision; equal up to rounding",
            choices=("pil", "torchcodec"),
        )
    }
    test_margin = 256 / 224  # short side of test images before the centre crop, relative to the crop
    as_shown = False  # whether EXIF rotation is applied and transparent parts become white

    def reader(self, cfg: Config) -> Callable[[str, str], Any]:
        """The function that opens an image in a mode, by `dataset.decoder`."""
        return partial(image_files.decode_tensor if in_tensors(cfg) else image_files.decode, shown=self.as_shown)

    def test_steps(self, cfg: Config) -> Callable[[Any], Tensor]:
        """The test transform of one image: resize and crop."""
        size = self.frame_shape(cfg.dataset.frame_size)[-1]
        return augment.eval_sample_transform(cfg.augment, size, self.test_margin)

    def raw_image(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        read = raw.picture_tensor if in_tensors(cfg) else raw.picture
        return self.test_steps(cfg)(read(source, self.shape[0], say, self.as_shown))[None]

    def checked_before(self, cfg: Config) -> bool:
        """Whether scripts/prepare_data.py has checked all files."""
        return False

    def inputs(
        self, cfg: Config, train: Images, test: Images, val_rows: np.ndarray, fill: Sequence[float]
    ) -> Sequence[Any]:
        if world().rank == 0 and not self.checked_before(cfg):
            used = cfg.debug.max_eval_batches * cfg.recipe.eval_batch_size or None  # images of one evaluation
            image_files.image_facts([*test.images[:used], *(train.images[i] for i in val_rows[:used])])
        if tensors := in_tensors(cfg):
            image_files.torchcodec()  # raises if it is missing
        size = self.frame_shape(cfg.dataset.frame_size)[-1]
        # without RandomResizedCrop, training images get the size of test images
        first = augment.eval_steps(cfg.augment, size, self.test_margin)
        augmented = augment.sample_transform(cfg.augment, self, size, fill, first, tensors)
        kinds = (train, augmented), (train, self.test_steps(cfg)), (test, self.test_steps(cfg))
        how = raw.MODES[self.shape[0]], self.reader(cfg)
        return [PilImages(part.images, np.asarray(part.labels), steps, *how) for part, steps in kinds]


def in_tensors(cfg: Config) -> bool:
    """Whether image files are opened and resized as tensors (dataset.decoder=torchcodec)."""
    return cfg.dataset.own.get("decoder") == "torchcodec"


def warn_if_incomplete(dataset: DataSet, n_train: int, n_test: int) -> None:
    """Warn if a data set does not have the published number of images."""
    counted = zip(("training", "test"), (n_train, n_test), dataset.samples, strict=True)
    differ = [f"{there:,} of {whole:,} {part}" for part, there, whole in counted if whole not in (None, there)]
    if differ:
        said = f"{dataset.name} was found with {' and '.join(differ)} images, so results do not compare with those on"
        warnings.warn(f"{said} the whole data set", stacklevel=3)


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    if images.dtype.kind == "f" and not (good := np.isfinite(images)).all():
        raise DataError(f"image {np.argwhere(~good)[0][0]} of {len(images)} holds a pixel that is NaN or infinite")
    if size is None or images.shape[-2:] == (size, size):
        return images
    parts = torch.as_tensor(images).split(4096)
    return torch.cat([vision.functional.resize(part, [size, size], antialias=True) for part in parts]).numpy()


def sha256(parts: Iterable[Sequence]) -> str:
    """SHA-256 of images and labels, including their shapes and types."""
    digest = hashlib.sha256()
    for values in (np.asarray(values) for part in parts for values in part[:2]):
        digest.update(f"{values.shape} {values.dtype.str}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
