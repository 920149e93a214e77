"""Image data sets: CIFAR-10, CIFAR-100 and Fashion-MNIST in memory, ImageNet-1k and its 100-class subset from files.

Files are read as published and only read. Images of the small sets live as one uint8 tensor; crop and flip
are gathered in batches. What needs a PIL image (RandomResizedCrop, RandAugment, all of ImageNet) goes image
by image through torchvision and timm in worker processes (`dataset.workers`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from snn_repro.config import DATASET_FACTS, Config
from snn_repro.data import formats
from snn_repro.data.augment import (
    Normalize,
    eval_sample_transform,
    eval_steps,
    image_transforms,
    needs_pil,
    sample_transform,
)
from snn_repro.data.batches import Data, LoaderBatches, MemoryBatches
from snn_repro.data.splits import make_split
from snn_repro.errors import DataError, UserError

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


def _first(paths: Sequence[Path]) -> Path | None:
    return next((p for p in paths if p.exists()), None)


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
    bases = [root, root / name, root / name.upper()]
    place = _first([base / n for base in bases for n in (folder, archive)]) if cfg.data_dir else None
    if place is None:
        raise _not_found(name, cfg.data_dir, f"{archive}, or the folder {folder} that it unpacks to")
    return place


def build_cifar10(cfg: Config) -> Data:
    """CIFAR-10 (Krizhevsky 2009), official split 50,000 / 10,000."""
    return in_memory(cfg, *formats.read_cifar10(_cifar_place(cfg)))


def build_cifar100(cfg: Config) -> Data:
    """CIFAR-100 (Krizhevsky 2009), the 100 fine labels, official split 50,000 / 10,000."""
    return in_memory(cfg, *formats.read_cifar100(_cifar_place(cfg)))


def fashion_mnist_files(cfg: Config) -> list[Path]:
    """Images and labels of training and test."""
    bases = [DEBIAN_FASHION_MNIST]
    if cfg.data_dir:  # whoever names a folder means that one
        root = Path(cfg.data_dir)
        bases = [root, root / "fashion_mnist", root / "fashion-mnist", root / "FashionMNIST" / "raw"]
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for base in bases:
        files = [_first([base / f"{n}.gz", base / n]) for n in names]
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
    x_train, y_train, x_test, y_test = (formats.read_idx(f) for f in fashion_mnist_files(cfg))
    return in_memory(cfg, (x_train[:, None], y_train), (x_test[:, None], y_test))


# ------------------------------------------------------------------ ImageNet


class _Images(torch.utils.data.Dataset):
    """(path, label) pairs, opened as RGB and transformed; a file that cannot be read is a DataError with its name."""

    def __init__(self, samples: list[tuple[str, int]], transform):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int):
        from torchvision.datasets.folder import pil_loader

        path, label = self.samples[i]
        try:
            image = pil_loader(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from None
        return self.transform(image), label


def imagenet100_wnids() -> tuple[list[str], str]:
    """The paper's 100 classes, sorted, and the SHA-256 of the list: other lists go by the name ImageNet-100 too."""
    data = (Path(__file__).parent / "imagenet100_wnids.txt").read_bytes()
    return data.decode().split(), hashlib.sha256(data).hexdigest()


def _imagenet_root(cfg: Config, folders: tuple[str, ...]) -> Path:
    root = Path(cfg.data_dir or "")
    bases = [root, *(root / f for f in folders)]
    found = _first([b / "train" for b in bases]) if cfg.data_dir else None
    if found is None:
        expected = f"train/<class>/*.JPEG and val/<class>/*.JPEG, there or in one of: {', '.join(folders)}"
        raise _not_found(cfg.dataset.name, cfg.data_dir, expected)
    return found.parent


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: ImageNet needs train/ and val/, each with one folder a class")
    names = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(
            f"{folder} has no class folders: it is flat, as in the original archive; move each image into"
            f" {folder.name}/<wnid>/ by the ground truth of the development kit or LOC_val_solution.csv"
        )
    return names


def _listing(root: Path, part: str, classes: list[str], labels: dict[str, int]) -> list[tuple[str, int]]:
    from torchvision.datasets import ImageFolder

    class Tree(ImageFolder):
        def find_classes(self, directory):
            return classes, {c: labels[c] for c in classes}

    try:
        return Tree(str(root / part)).samples
    except FileNotFoundError as error:
        raise DataError(f"{root / part}: {error}") from None


def _imagenet(cfg: Config, folders: tuple[str, ...], wnids: list[str] | None, split_name: str) -> Data:
    """ImageNet from one folder a class; only `wnids`, labelled by their place in it, or all, by their sorted place."""
    name, facts = cfg.dataset.name, DATASET_FACTS[cfg.dataset.name]
    root = _imagenet_root(cfg, folders)
    found = {part: _class_folders(root / part) for part in ("train", "val")}
    if wnids is not None:
        found = {part: [c for c in classes if c in set(wnids)] for part, classes in found.items()}
    different = sorted(set(found["train"]) ^ set(found["val"]))
    if different:
        where, other = ("train", "val") if different[0] in found["train"] else ("val", "train")
        raise DataError(
            f"{root}: class {different[0]} is in {where}/ but not in {other}/ ({len(different)} classes differ);"
            " labels would not agree"
        )
    classes = found["train"]
    if len(classes) != facts.num_classes:
        if len(classes) > facts.num_classes or not classes:
            raise DataError(f"{root} has {len(classes)} of the {facts.num_classes} classes of {name}")
        warnings.warn(
            f"{name}: {root} has {len(classes)} of {facts.num_classes} classes, so results do not compare with those"
            " on all of them",
            stacklevel=3,
        )
    labels = {c: k for k, c in enumerate(wnids or classes)}
    train, test = (_listing(root, part, classes, labels) for part in ("train", "val"))
    targets = np.array([label for _, label in train])
    train_rows, val_rows, split = make_split(
        name,
        np.arange(len(train)),
        np.arange(len(test)),
        targets,
        [Path(path).relative_to(root).as_posix() for path, _ in test],
        split=split_name,
        validation=cfg.dataset.validation,
        subset=cfg.dataset.train_subset,
        seed=cfg.dataset.split_seed,
    )
    size = cfg.dataset.frame_size or facts.height
    normalize = Normalize(*STATISTICS[name], cfg.dataset.channel_order)
    # without RandomResizedCrop the network still needs one size: that of the test
    first = eval_steps(cfg.augment, size)
    batches = LoaderBatches(
        _Images(train, sample_transform(cfg.augment, size, _fill(cfg), first)),
        cfg.recipe.batch_size,
        seed=cfg.seed,
        shuffle=True,
        indices=train_rows,
        transforms=image_transforms(cfg.augment, facts.num_classes, normalize, in_pil=True),
        drop_last=cfg.recipe.drop_last,
        repeats=cfg.recipe.repeated_augmentation,
        workers=cfg.dataset.workers,
    )

    def evaluation(samples, rows=None):
        return LoaderBatches(
            _Images(samples, eval_sample_transform(cfg.augment, size)),
            cfg.recipe.eval_batch_size,
            transforms=[normalize],
            indices=rows,
            workers=cfg.dataset.workers,
        )

    return Data(
        train=batches,
        val=evaluation(train, val_rows) if len(val_rows) else None,
        test=evaluation(test),
        input_shape=(3, size, size),
        num_classes=facts.num_classes,
        split=split,
        static=True,
    )


_IMAGENET_FOLDERS = ("imagenet1k", "imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
_IMAGENET100_FOLDERS = ("imagenet100", "imagenet-100", "ImageNet100", *_IMAGENET_FOLDERS)


def build_imagenet1k(cfg: Config) -> Data:
    """ImageNet-1k (ILSVRC 2012) from train/<wnid>/ and val/<wnid>/; the 50,000 validation images test."""
    return _imagenet(cfg, _IMAGENET_FOLDERS, None, "official")


def build_imagenet100(cfg: Config) -> Data:
    """The 100 classes of ImageNet-1k that the paper's code names, from a tree of them or of all 1,000; 5,000 test.

    The split's id holds the beginning of the class list's SHA-256.
    """
    wnids, digest = imagenet100_wnids()
    return _imagenet(cfg, _IMAGENET100_FOLDERS, wnids, f"official,wnids={digest[:12]}")


_PLACES = {
    "cifar10": _cifar_place,
    "cifar100": _cifar_place,
    "fashion_mnist": lambda cfg: fashion_mnist_files(cfg)[0].parent,
    "imagenet1k": lambda cfg: _imagenet_root(cfg, _IMAGENET_FOLDERS),
    "imagenet100": lambda cfg: _imagenet_root(cfg, _IMAGENET100_FOLDERS),
}


def locate(cfg: Config) -> Path:
    """Where the files of an image data set lie; none is read. Raises UserError and DataError as its builder does."""
    return _PLACES[cfg.dataset.name](cfg)
