"""Image sets: arrays in memory, or files of class folders, become `Data`.

Files are read as published and only read. Images of the small sets live as one uint8 tensor; crop and flip
are gathered in batches. What needs a PIL image (RandomResizedCrop, RandAugment, all of ImageNet) goes image
by image through torchvision and timm in worker processes (`dataset.workers`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from snn_repro.data import batches, image_files
from snn_repro.data.augment import (
    Normalize,
    eval_sample_transform,
    eval_steps,
    image_transforms,
    needs_pil,
    sample_transform,
)
from snn_repro.data.image_files import ImageFile, first_entry
from snn_repro.data.splits import split_parts
from snn_repro.distributed import world
from snn_repro.errors import DataError, UserError

if TYPE_CHECKING:
    from snn_repro.config import Config
    from snn_repro.data.dataset import DataSet, ImageFolders, ImageSet

log = logging.getLogger("snn_repro")


class Part(NamedTuple):
    """The training or the test images, in their official order."""

    images: np.ndarray | list[ImageFile]  # an array is [N, C, H, W]
    labels: np.ndarray  # [N]
    names: Sequence[str]  # of the samples, as they enter the hash of the test list


def warn_if_incomplete(dataset: DataSet, n_train: int, n_test: int) -> None:
    """Warn, in one line, where a data set does not have the number of images that its authors published."""
    differ = [
        f"{found:,} of {published:,} {part}"
        for part, found, published in zip(("training", "test"), (n_train, n_test), dataset.samples, strict=True)
        if published not in (None, found)
    ]
    if differ:
        warnings.warn(
            f"{dataset.name} was found with {' and '.join(differ)} images, so results do not compare with those on the whole"
            " data set",
            stacklevel=3,
        )


def build(dataset: ImageSet, cfg: Config) -> batches.Data:
    """See `DataSet.build`. With dataset.frame_size, images in memory are resized once (bilinear, antialiased)."""
    train, test = dataset.parts(cfg)
    labels, k = np.asarray(train.labels), dataset.num_classes
    train_rows, val_rows, split = split_parts(
        cfg, np.arange(len(labels)), np.arange(len(test.labels)), labels, test.names, split=dataset.split_id
    )
    size = dataset.frame_shape(cfg.dataset.frame_size)[-1]
    mean, std = dataset.statistics
    normalize = Normalize(mean, std, cfg.dataset.channel_order)
    # RandAugment's colour for pixels from outside: the mean; the paper's code gives it in the order of a BGR image
    fill = mean[::-1] if cfg.dataset.channel_order == "bgr" else mean
    if dataset.from_files:
        if world().rank == 0:
            image_files.check(_used(test.images, cfg) + _used([train.images[i] for i in val_rows], cfg))
        # without RandomResizedCrop the network still needs one size: that of the test
        augmented = sample_transform(cfg.augment, size, fill, eval_steps(cfg.augment, size))
        plain = eval_sample_transform(cfg.augment, size)
        train_inputs = PilImages(train.images, labels, augmented)
        val_inputs, test_inputs = (PilImages(part.images, part.labels, plain) for part in (train, test))
    else:
        train_inputs = val_inputs = _resized(train.images, cfg.dataset.frame_size)
        test_inputs = _resized(test.images, cfg.dataset.frame_size)
        if needs_pil(cfg.augment):
            if train_inputs.dtype != np.uint8:
                raise UserError(
                    "augment.randaugment_ops and augment.rrc_min_area are for larger images; set both to 0 for"
                    f" {dataset.name}"
                )
            train_inputs = PilImages(val_inputs, labels, sample_transform(cfg.augment, size, fill))
    return batches.assemble(
        cfg,
        dataset,
        batches.Part(train_inputs, labels, train_rows),
        batches.Part(val_inputs, labels, val_rows),
        batches.Part(test_inputs, test.labels),
        split,
        image_transforms(cfg.augment, k, normalize, in_pil=dataset.from_files),
        [normalize],
    )


class PilImages(torch.utils.data.Dataset):
    """Images of an array or of files as PIL images, transformed; a file that cannot be read is a DataError with its name."""

    def __init__(self, images: np.ndarray | list[ImageFile], labels: np.ndarray, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        from PIL import Image

        image = self.images[i]
        if isinstance(image, ImageFile):
            image = image_files.decode(image)
        else:
            pixels = image.transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        return self.transform(image), int(self.labels[i])


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or images.shape[-2:] == (size, size):
        return images
    from torchvision.transforms.functional import resize

    parts = torch.as_tensor(images).split(4096)
    return torch.cat([resize(part, [size, size], antialias=True) for part in parts]).numpy()


# ------------------------------------------------------------------ in memory


def read(dataset: ImageSet, cfg: Config) -> tuple[Part, Part]:
    """(training, test) of a set that fits in memory, as published. Test samples without names are "test/00000" and so on.

    The set that was read last is kept: who asks for its fingerprint builds it next. Nobody may write to the arrays.
    """
    files = dataset.locate(cfg)
    parts = _kept(dataset.read, _state(files)) if files else dataset.read()
    return tuple(
        Part(*part) if len(part) > 2 else Part(*part, [f"{name}/{i:05d}" for i in range(len(part[1]))])
        for name, part in zip(("train", "test"), parts, strict=True)
    )


def digest(dataset: ImageSet, cfg: Config) -> str:
    """SHA-256 of all images and labels."""
    files = dataset.locate(cfg)
    return _digest(dataset.read, _state(files)) if files else _sha256(dataset.read())


def _state(places: list[Path]) -> tuple:
    """Paths with the size and time of each file there, by which a changed file is noticed."""
    try:
        files = [f for p in places for f in ([p] if p.is_file() else sorted(p.iterdir())) if f.is_file()]
        return tuple(map(str, places)), tuple((str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in files)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=1)
def _kept(read: Callable, state: tuple):
    return read(*state[0])


@lru_cache(maxsize=8)
def _digest(read: Callable, state: tuple) -> str:
    return _sha256(_kept(read, state))


def _sha256(parts: Iterable[Sequence]) -> str:
    found = hashlib.sha256()
    for values in (values for part in parts for values in part[:2]):
        found.update(f"{values.shape} {values.dtype.str}".encode())
        found.update(np.ascontiguousarray(values))
    return found.hexdigest()


# ------------------------------------------------------------------ class folders


class Tree(NamedTuple):
    """What there is of a set of class folders, whatever their form: class by class, and the images of a class by name."""

    base: Path
    classes: list[str]  # wnids that are there
    train: list[ImageFile]
    train_labels: np.ndarray  # places in `classes`
    test: list[ImageFile]
    test_labels: np.ndarray

    def names(self, part: str) -> list[str]:
        """The names of the images as a tree of class folders has them: "val/n01440764/ILSVRC2012_val_00000293.JPEG"."""
        files, labels = (self.train, self.train_labels) if part == "train" else (self.test, self.test_labels)
        return [
            f"{part}/{self.classes[k]}/{PurePath(f.name).as_posix()}"
            for f, k in zip(files, labels.tolist(), strict=True)
        ]


def find_tree(dataset: ImageFolders, cfg: Config) -> Tree:
    """The images of the data set's classes. A tar's contents are listed once in a process."""
    (place,) = dataset.locate(cfg)
    wnids = dataset.classes()
    changed = [(str(place.parent), place.parent.stat().st_mtime_ns)]
    for part in filter(None, (place, first_entry([place.parent], image_files.VAL))):
        changed.append((str(part), part.stat().st_mtime_ns))
        if part.is_dir():
            with os.scandir(part) as entries:
                changed += sorted((e.path, e.stat().st_mtime_ns) for e in entries if e.is_dir())
    return _listed_tree(place, wnids and tuple(wnids), tuple(changed))


def _shown(place: Path) -> str:
    return f"{place.name}/" if place.is_dir() else place.name


@lru_cache(maxsize=1)
def _listed_tree(place: Path, wnids: tuple[str, ...] | None, changed: tuple) -> Tree:
    base = place.parent
    found = {"train": image_files.train_classes(place)}
    test_place, found["val"] = image_files.val_classes(base)
    if wnids is not None:
        found = {part: {c: classes[c] for c in wnids if c in classes} for part, classes in found.items()}
    different = sorted(set(found["train"]) ^ set(found["val"]))
    if different:
        where, other = (place, test_place) if different[0] in found["train"] else (test_place, place)
        raise DataError(
            f"{base}: class {different[0]} is in {_shown(where)} but not in {_shown(other)} ({len(different)} classes"
            " differ); labels would not agree"
        )
    started, said, lists = time.monotonic(), False, []
    for part in ("train", "val"):
        files, counts = [], []
        for n, (_, images) in enumerate(sorted(found[part].items())):
            if time.monotonic() > started + 10 and not said:
                said = True
                log.info(f"listing the images of {base} takes a while: {n} of {len(found[part])} classes in 10 s")
            more = images()
            files += more
            counts.append(len(more))
        lists += [files, np.repeat(np.arange(len(counts)), counts)]
    return Tree(base, sorted(found["train"]), *lists)


def parts_of_folders(dataset: ImageFolders, cfg: Config) -> tuple[Part, Part]:
    """(training, test), labelled by the class's place in `dataset.classes()` or among all that are there."""
    name, k, found = dataset.name, dataset.num_classes, find_tree(dataset, cfg)
    classes = found.classes
    if len(classes) > k or not classes:
        raise DataError(f"{found.base} has {len(classes)} of the {k} classes of {name}")
    if len(classes) < k:
        warnings.warn(
            f"{name}: {found.base} has {len(classes)} of {k} classes, so results do not compare with those on all of them",
            stacklevel=3,
        )
    else:
        warn_if_incomplete(dataset, len(found.train), len(found.test))
    places = np.array([(dataset.classes() or classes).index(c) for c in classes])
    return (
        Part(found.train, places[found.train_labels], found.names("train")),
        Part(found.test, places[found.test_labels], found.names("val")),
    )


def fingerprint_of_folders(dataset: ImageFolders, cfg: Config) -> dict[str, str]:
    """See `ImageFolders.fingerprint`."""
    found = find_tree(dataset, cfg)
    images = sorted(zip([*found.names("train"), *found.names("val")], [*found.train, *found.test], strict=True))
    listing, sample = hashlib.sha256(), hashlib.sha256()
    for at, (name, image) in enumerate(images):
        try:
            listing.update(f"{name} {image.bytes()}\n".encode())
            if at * _SAMPLE // len(images) != (at - 1) * _SAMPLE // len(images):
                with image.open() as file:
                    sample.update(file.read())
        except OSError as error:
            raise DataError(f"{image} cannot be read: {error.strerror or error}") from None
    return {"listing": listing.hexdigest(), "sample": sample.hexdigest()}


_SAMPLE = 64  # images whose contents enter a fingerprint


def _used(files: list[ImageFile], cfg: Config) -> list[ImageFile]:
    """The files that an evaluation reads."""
    batches = cfg.debug.max_eval_batches
    return files[: batches * cfg.recipe.eval_batch_size] if batches else files
