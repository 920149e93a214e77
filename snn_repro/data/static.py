"""Image data sets: CIFAR-10, CIFAR-100 and Fashion-MNIST in memory, ImageNet-1k and its 100-class subset from files.

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
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch

from snn_repro.config import DATASET_FACTS, Config
from snn_repro.data import formats, image_files
from snn_repro.data.augment import (
    Normalize,
    eval_sample_transform,
    eval_steps,
    image_transforms,
    needs_pil,
    sample_transform,
)
from snn_repro.data.batches import Data, LoaderBatches, MemoryBatches
from snn_repro.data.digits import load_digits
from snn_repro.data.image_files import ImageFile, entry, first_entry
from snn_repro.data.splits import make_split
from snn_repro.distributed import world
from snn_repro.errors import DataError, UserError

log = logging.getLogger("snn_repro")

# mean and standard deviation a channel of the training images, 0..255, in RGB order
STATISTICS = {
    "cifar10": ([125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255]),
    "cifar100": ([129.304, 124.070, 112.434], [68.170, 65.392, 70.418]),
    "imagenet100": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "imagenet1k": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    "fashion_mnist": ([72.940], [90.021]),
}
PUBLISHED = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist (Debian, Ubuntu: apt install dataset-fashion-mnist)",
    "imagenet100": "https://www.image-net.org/download.php",
    "imagenet1k": "https://www.image-net.org/download.php",
}
PUBLISHED_IMAGES = {  # (training, test); of the 100 classes of ImageNet only the test images are a round number
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "fashion_mnist_dvs": (60_000, 10_000),
    "imagenet100": (None, 5_000),
    "imagenet1k": (1_281_167, 50_000),
}
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def _not_found(name: str, data_dir, expected: str) -> UserError:
    if not data_dir:
        return UserError(
            f"data_dir is not set: pass data_dir=DIR, the folder that holds {expected}; {name} is published at"
            f" {PUBLISHED[name]}"
        )
    return DataError(
        f"{name} was not found in data_dir={data_dir}: expected {expected}; it is published at {PUBLISHED[name]}"
    )


def warn_if_incomplete(name: str, n_train: int, n_test: int) -> None:
    """Warn, in one line, where a data set does not have the number of images that its authors published."""
    differ = [
        f"{found:,} of {published:,} {part}"
        for part, found, published in zip(("training", "test"), (n_train, n_test), PUBLISHED_IMAGES[name], strict=True)
        if published not in (None, found)
    ]
    if differ:
        warnings.warn(
            f"{name} was found with {' and '.join(differ)} images, so results do not compare with those on the whole"
            " data set",
            stacklevel=3,
        )


# ------------------------------------------------------------------ in memory


class _PilImages(torch.utils.data.Dataset):
    """Images of an array [N, C, H, W] as PIL images, transformed."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        from PIL import Image

        pixels = self.images[i].transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
        return self.transform(image), int(self.labels[i])


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or images.shape[-2:] == (size, size):
        return images
    from torchvision.transforms.functional import resize

    parts = torch.as_tensor(images).split(4096)
    return torch.cat([resize(part, [size, size], antialias=True) for part in parts]).numpy()


def in_memory(cfg: Config, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Data:
    """`Data` of a small image set: train and test are (uint8 images [N, C, H, W], labels [N]), in their official order.

    With dataset.frame_size the images are resized once (bilinear, antialiased). Test samples are called
    "test/00000" and so on: these sets name no files.
    """
    name, k = cfg.dataset.name, DATASET_FACTS[cfg.dataset.name].num_classes
    warn_if_incomplete(name, len(train[0]), len(test[0]))
    images, labels = _resized(train[0], cfg.dataset.frame_size), np.asarray(train[1])
    mean, std = STATISTICS[name]
    normalize = Normalize(mean, std, cfg.dataset.channel_order)
    train_rows, val_rows, split = make_split(
        name,
        np.arange(len(images)),
        np.arange(len(test[0])),
        labels,
        [f"test/{i:05d}" for i in range(len(test[0]))],
        validation=cfg.dataset.validation,
        subset=cfg.dataset.train_subset,
        seed=cfg.dataset.split_seed,
    )
    training = {
        "seed": cfg.seed,
        "shuffle": True,
        "indices": train_rows,
        "transforms": image_transforms(cfg.augment, k, normalize),
        "drop_last": cfg.recipe.drop_last,
        "repeats": cfg.recipe.repeated_augmentation,
    }
    if needs_pil(cfg.augment):
        transform = sample_transform(cfg.augment, images.shape[-1], _fill(cfg))
        samples = _PilImages(images, labels, transform)
        batches = LoaderBatches(samples, cfg.recipe.batch_size, workers=cfg.dataset.workers, **training)
    else:
        batches = MemoryBatches(images, labels, cfg.recipe.batch_size, **training)

    def evaluation(images, labels, rows=None):
        return MemoryBatches(images, labels, cfg.recipe.eval_batch_size, transforms=[normalize], indices=rows)

    return Data(
        train=batches,
        val=evaluation(images, labels, val_rows) if len(val_rows) else None,
        test=evaluation(_resized(test[0], cfg.dataset.frame_size), test[1]),
        input_shape=tuple(images.shape[1:]),
        num_classes=k,
        split=split,
        static=True,
    )


def _fill(cfg: Config) -> list[float]:
    """RandAugment's colour for pixels from outside: the mean; the paper's code gives it in the order of a BGR image."""
    mean = STATISTICS[cfg.dataset.name][0]
    return mean[::-1] if cfg.dataset.channel_order == "bgr" else mean


CIFAR = {  # the folder that the archive unpacks to, the archive
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}


def _cifar_place(cfg: Config) -> Path:
    name, root = cfg.dataset.name, Path(cfg.data_dir or "")
    folder, archive = CIFAR[name]
    place = None
    if cfg.data_dir and root.name.lower() == folder and root.is_dir():
        place = root
    elif cfg.data_dir:
        below = (entry(root, n) for n in (name, name.replace("cifar", "cifar-")))
        place = first_entry([root, *filter(None, below)], CIFAR[name])
    if place is None:
        raise _not_found(name, cfg.data_dir, f"{archive}, or the folder {folder} that it unpacks to")
    return place


def build_cifar10(cfg: Config) -> Data:
    """CIFAR-10 (Krizhevsky 2009), official split 50,000 / 10,000."""
    return in_memory(cfg, *read_images(cfg))


def build_cifar100(cfg: Config) -> Data:
    """CIFAR-100 (Krizhevsky 2009), the 100 fine labels, official split 50,000 / 10,000."""
    return in_memory(cfg, *read_images(cfg))


def fashion_mnist_files(cfg: Config) -> list[Path]:
    """Images and labels of training and test."""
    bases = [DEBIAN_FASHION_MNIST]
    if cfg.data_dir:  # whoever names a folder means that one
        root = Path(cfg.data_dir)
        below = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST")
        bases = [root, *(found for name in below if (found := entry(root, name)))]
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for base in bases:
        files = [first_entry([base], [f"{n}.gz", n]) for n in names]
        if any(files):
            break
    if not any(files):
        raise _not_found("fashion_mnist", cfg.data_dir, f"{names[0]}.gz and its three companions")
    if not all(files):
        absent = names[files.index(None)]
        raise DataError(f"{base} lacks {absent}.gz; fashion_mnist is published at {PUBLISHED['fashion_mnist']}")
    return files


def build_fashion_mnist(cfg: Config) -> Data:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 / 10,000, from data_dir or from Debian's package."""
    return in_memory(cfg, *read_images(cfg))


class _Part(NamedTuple):
    images: np.ndarray  # uint8 [N, C, H, W]
    labels: np.ndarray  # [N]


def _read_fashion_mnist(*files: str) -> tuple[_Part, _Part]:
    x_train, y_train, x_test, y_test = (formats.read_idx(f) for f in files)
    return _Part(x_train[:, None], y_train), _Part(x_test[:, None], y_test)


_READERS: dict[str, tuple[Callable[[Config], list[Path]], Callable]] = {  # the files or folder, and what reads them
    "cifar10": (lambda cfg: [_cifar_place(cfg)], formats.read_cifar10),
    "cifar100": (lambda cfg: [_cifar_place(cfg)], formats.read_cifar100),
    "fashion_mnist": (fashion_mnist_files, _read_fashion_mnist),
    "fashion_mnist_dvs": (fashion_mnist_files, _read_fashion_mnist),
}


def read_images(cfg: Config) -> tuple[_Part, _Part]:
    """(training, test) of a small image set, each (images uint8 [N, C, H, W], labels [N]), as published.

    The set that was read last is kept: who asks for its fingerprint builds it next. Nobody may write to the arrays.
    """
    find, read = _READERS[cfg.dataset.name]
    return _kept(read, _state(find(cfg)))


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
    return _sha256(values for part in _kept(read, state) for values in part)


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(f"{values.shape} {values.dtype.str}".encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


# ------------------------------------------------------------------ ImageNet


class _Images(torch.utils.data.Dataset):
    """Image files, opened as RGB and transformed; one that cannot be read is a DataError with its name."""

    def __init__(self, files: list[ImageFile], labels: np.ndarray, transform):
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int):
        return self.transform(image_files.decode(self.files[i])), int(self.labels[i])


def imagenet100_wnids() -> tuple[list[str], str]:
    """The paper's 100 classes, sorted, and the SHA-256 of the list: other lists go by the name ImageNet-100 too."""
    data = (Path(__file__).parent / "imagenet100_wnids.txt").read_bytes()
    return data.decode().split(), hashlib.sha256(data).hexdigest()


def _imagenet_train(cfg: Config) -> Path:
    """The training images of ImageNet: a folder or a tar."""
    folders, found = _IMAGENET_FOLDERS[cfg.dataset.name], None
    if cfg.data_dir:
        root = Path(cfg.data_dir)
        found = image_files.find_train([root, *filter(None, (entry(root, f) for f in folders))])
    if found is None:
        expected = (
            "train/<class>/*.JPEG and val/<class>/*.JPEG, or ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, there"
            f" or in one of: {', '.join(folders)}"
        )
        raise _not_found(cfg.dataset.name, cfg.data_dir, expected)
    return found


class _ImageNet(NamedTuple):
    """What there is of ImageNet, whatever its form: class by class, and the images of a class by name."""

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


def _find_imagenet(cfg: Config) -> _ImageNet:
    """The images of ImageNet, or of its 100 classes. A tar's contents are listed once in a process."""
    place = _imagenet_train(cfg)
    wnids = imagenet100_wnids()[0] if cfg.dataset.name == "imagenet100" else None
    changed = [(str(place.parent), place.parent.stat().st_mtime_ns)]
    for part in filter(None, (place, first_entry([place.parent], image_files.VAL))):
        changed.append((str(part), part.stat().st_mtime_ns))
        if part.is_dir():
            with os.scandir(part) as entries:
                changed += sorted((e.path, e.stat().st_mtime_ns) for e in entries if e.is_dir())
    return _listed_imagenet(place, wnids and tuple(wnids), tuple(changed))


def _shown(place: Path) -> str:
    return f"{place.name}/" if place.is_dir() else place.name


@lru_cache(maxsize=1)
def _listed_imagenet(place: Path, wnids: tuple[str, ...] | None, changed: tuple) -> _ImageNet:
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
    return _ImageNet(base, sorted(found["train"]), *lists)


def _imagenet(cfg: Config, wnids: list[str] | None, split_name: str) -> Data:
    """ImageNet; only the classes `wnids`, labelled by their place in it, or all, by their sorted place."""
    name, facts = cfg.dataset.name, DATASET_FACTS[cfg.dataset.name]
    found = _find_imagenet(cfg)
    classes = found.classes
    if len(classes) > facts.num_classes or not classes:
        raise DataError(f"{found.base} has {len(classes)} of the {facts.num_classes} classes of {name}")
    if len(classes) < facts.num_classes:
        warnings.warn(
            f"{name}: {found.base} has {len(classes)} of {facts.num_classes} classes, so results do not compare with"
            " those on all of them",
            stacklevel=3,
        )
    else:
        warn_if_incomplete(name, len(found.train), len(found.test))
    places = np.array([(wnids or classes).index(c) for c in classes])
    train, targets = found.train, places[found.train_labels]
    train_rows, val_rows, split = make_split(
        name,
        np.arange(len(train)),
        np.arange(len(found.test)),
        targets,
        found.names("val"),
        split=split_name,
        validation=cfg.dataset.validation,
        subset=cfg.dataset.train_subset,
        seed=cfg.dataset.split_seed,
    )
    if world().rank == 0:
        image_files.check(_used(found.test, cfg) + _used([train[i] for i in val_rows], cfg))
    size = cfg.dataset.frame_size or facts.height
    normalize = Normalize(*STATISTICS[name], cfg.dataset.channel_order)
    # without RandomResizedCrop the network still needs one size: that of the test
    first = eval_steps(cfg.augment, size)
    batches = LoaderBatches(
        _Images(train, targets, sample_transform(cfg.augment, size, _fill(cfg), first)),
        cfg.recipe.batch_size,
        seed=cfg.seed,
        shuffle=True,
        indices=train_rows,
        transforms=image_transforms(cfg.augment, facts.num_classes, normalize, in_pil=True),
        drop_last=cfg.recipe.drop_last,
        repeats=cfg.recipe.repeated_augmentation,
        workers=cfg.dataset.workers,
    )

    def evaluation(files, labels, rows=None):
        return LoaderBatches(
            _Images(files, labels, eval_sample_transform(cfg.augment, size)),
            cfg.recipe.eval_batch_size,
            transforms=[normalize],
            indices=rows,
            workers=cfg.dataset.workers,
        )

    return Data(
        train=batches,
        val=evaluation(train, targets, val_rows) if len(val_rows) else None,
        test=evaluation(found.test, places[found.test_labels]),
        input_shape=(3, size, size),
        num_classes=facts.num_classes,
        split=split,
        static=True,
    )


def _used(files: list[ImageFile], cfg: Config) -> list[ImageFile]:
    """The files that an evaluation reads."""
    batches = cfg.debug.max_eval_batches
    return files[: batches * cfg.recipe.eval_batch_size] if batches else files


_ANY_IMAGENET = ("imagenet1k", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_IMAGENET_FOLDERS = {
    "imagenet1k": _ANY_IMAGENET,
    "imagenet100": ("imagenet100", "imagenet-100", *_ANY_IMAGENET),
}


def build_imagenet1k(cfg: Config) -> Data:
    """ImageNet-1k (ILSVRC 2012), as a tree of class folders, Kaggle's or the archives; its 50,000 validation images test."""
    return _imagenet(cfg, None, "official")


def build_imagenet100(cfg: Config) -> Data:
    """The 100 classes of ImageNet-1k that the paper's code names, from a tree of them or of all 1,000; 5,000 test.

    The split's id holds the beginning of the class list's SHA-256.
    """
    wnids, digest = imagenet100_wnids()
    return _imagenet(cfg, wnids, f"official,wnids={digest[:12]}")


def fingerprint(cfg: Config) -> dict[str, str]:
    """What identifies the images that a run reads by their content, wherever they lie and however they are packed.

    Sets that fit in memory: "files", the SHA-256 of all images and labels. ImageNet: "listing", of the names and sizes
    of all images, and "sample", of the contents of 64 of them. Sets of emulated events: that of the images that they
    are made of. Raises UserError and DataError as the builder does.
    """
    if cfg.dataset.name in ("digits", "digits_dvs"):
        return {"files": _sha256(load_digits())}
    if cfg.dataset.name in _READERS:
        find, read = _READERS[cfg.dataset.name]
        return {"files": _digest(read, _state(find(cfg)))}
    found = _find_imagenet(cfg)
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

_PLACES = {
    "cifar10": _cifar_place,
    "cifar100": _cifar_place,
    "fashion_mnist": lambda cfg: fashion_mnist_files(cfg)[0].parent,
    "imagenet1k": lambda cfg: _imagenet_train(cfg).parent,
    "imagenet100": lambda cfg: _imagenet_train(cfg).parent,
}


def locate(cfg: Config) -> Path:
    """Where the files of an image data set lie; none is read. Raises UserError and DataError as its builder does."""
    return _PLACES[cfg.dataset.name](cfg)
