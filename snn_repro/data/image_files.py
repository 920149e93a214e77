"""ImageNet's files as they are published and as people unpack them: which images there are, of which class, and their bytes.

    training    train/<wnid>/*.JPEG; or ILSVRC2012_img_train.tar, which holds a <wnid>.tar for each class; or a folder of
                these tars
    validation  val/<wnid>/*.JPEG; or flat, as val/*.JPEG or ILSVRC2012_img_val.tar, with the classes from Kaggle's
                LOC_val_solution.csv or from the development kit ILSVRC2012_devkit_t12 (a folder or its .tar.gz)

Archives are unpacked in cache_dir, once. All forms give the same images in the same order under the same names.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from snn_repro.data.archives import entry, first_entry, unpacked
from snn_repro.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112  # the EXIF tag of how a camera was held; 1 is upright
MAX_PIXELS = 80_000_000  # 240 MB as RGB; PIL warns from 89 million pixels on and refuses 179 million
TRAIN = ("train", "ILSVRC2012_img_train", "ILSVRC2012_img_train.tar")
VAL = ("val", "ILSVRC2012_img_val", "ILSVRC2012_img_val.tar")
KAGGLE, DEVKIT = "LOC_val_solution.csv", "ILSVRC2012_devkit_t12"


class ImageFile(NamedTuple):
    """One image: the file `name` in the folder `container`."""

    container: str
    name: str

    def __str__(self) -> str:
        return os.path.join(self.container, self.name)

    def open(self) -> BinaryIO:
        return open(str(self), "rb")

    def bytes(self) -> int:
        """The number of its bytes."""
        return os.stat(str(self)).st_size


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


Classes = dict[str, Callable[[], list[ImageFile]]]
"""class (wnid) -> its images, listed when they are asked for"""


# ------------------------------------------------------------------ one image


def decode(image: ImageFile, mode: str | None = "RGB", shown: bool = False):
    """The image as a PIL image in RGB, or another mode (None: its own); shown: `as_shown`. Raises DataError with its name."""
    with named(image), image.open() as stream:
        opened = _opened(stream)
        return (as_shown(opened) if shown else opened).convert(mode)


def decode_tensor(image: ImageFile, mode: str = "RGB", shown: bool = False) -> Tensor:
    """`decode` as uint8 [C, H, W]: JPEGs by torchcodec, which takes a colour image's own luma as its grey, others by PIL."""
    from torchvision.transforms.functional import pil_to_tensor

    with named(image), image.open() as stream:
        opened = _opened(stream)
        turned = shown and opened.getexif().get(ORIENTATION, 1) != 1
        if opened.format == "JPEG" and opened.mode in ("RGB", "L") and not turned:
            stream.seek(0)
            return torchcodec()(stream.read(), mode={"RGB": "RGB", "L": "GRAY"}[mode])
        return pil_to_tensor((as_shown(opened) if shown else opened).convert(mode))


def as_shown(image):
    """A PIL image as viewers show it: turned as its EXIF data say, and on white where it is transparent."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def torchcodec() -> Callable:
    """torchcodec's `decode_jpeg`. Raises UserError where it cannot be imported."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"dataset.decoder=torchcodec needs torchcodec 0.16 or newer ({reason}); pip install torchcodec, or use"
            " dataset.decoder=pil"
        ) from None
    return decode_jpeg


def look(images: Sequence[ImageFile]) -> list[tuple[int, int, str]]:
    """`check_image` of each, by threads. Raises DataError with the name of the first bad one."""
    with ThreadPoolExecutor(16, "look") as pool:  # waiting for a file server, not for the processor
        return list(pool.map(check_image, images))


def check_image(image: ImageFile) -> tuple[int, int, str]:
    """(width, height, PIL's mode) of an image with a readable header, a sane size and an end; without an end it is decoded."""
    with named(image), image.open() as stream:
        opened = _opened(stream)
        marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(opened.format)
        at, length = stream.tell(), stream.seek(0, os.SEEK_END)
        stream.seek(max(0, length - 4096))
        if marker is None or marker not in stream.read():
            stream.seek(at)
            opened.load()
        return *opened.size, opened.mode


def _opened(stream: BinaryIO):
    """A PIL image of which only the header was read."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(stream)
    except UnidentifiedImageError:
        raise ValueError("cannot identify image file by its content") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} that are read")
    return image


@contextmanager
def named(image: ImageFile) -> Iterator[None]:
    """Turns whatever a damaged file makes PIL's readers raise, nearly anything, into a DataError with the file's name."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{image} cannot be read as an image: {reason}; get it again or remove it") from None


# ------------------------------------------------------------------ where things are


def find_train(bases: Sequence[Path]) -> Path | None:
    """The training images in the first of `bases` that has some: a folder or a tar."""
    for base in bases:
        for name in TRAIN:
            listed = entry(base, name)
            if listed is not None and (listed.is_dir() or listed.suffix.lower() == ".tar"):
                return listed
    return None


def opened(place: Path, cache_dir: str | None) -> Path:
    """A folder; of an archive, that which it is unpacked in, at the first call."""
    if place.is_dir():
        return place
    folder, _ = unpacked(place, cache_dir, lambda name: name.lower().endswith(".tar"))
    return first_entry([folder], [name for name in TRAIN + VAL if not name.endswith(".tar")]) or folder


def train_classes(container: Path, cache_dir: str | None) -> Classes:
    """The classes of a training folder or tar, sorted. Raises DataError."""
    folder = opened(container, cache_dir)
    if listed := _folders(folder):
        return listed
    tars = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".tar" and p.is_file())
    if not tars:
        raise DataError(f"{container} has no class folders: it must hold <wnid>/*.JPEG, or <wnid>.tar, one a class")
    return {p.stem: partial(_class_tar, p, cache_dir) for p in tars}


def _class_tar(tar: Path, cache_dir: str | None) -> list[ImageFile]:
    return _class_folder(opened(tar, cache_dir), {})


def class_folders(container: Path) -> Classes:
    """The class folders in a folder, sorted; one without images raises DataError when it is listed."""
    return _folders(container)


def val_classes(base: Path, cache_dir: str | None) -> tuple[Path, Classes]:
    """The validation images beside the training images in `base`, and their classes, sorted. Raises DataError."""
    container = first_entry([base], VAL)
    if container is None:
        raise DataError(
            f"{base / 'val'} is missing: ImageNet needs train/ and val/, each with one folder a class, or its two"
            f" archives {TRAIN[-1]} and {VAL[-1]}"
        )
    folder = opened(container, cache_dir)
    if listed := _folders(folder):
        return container, listed
    images = _listed(folder, _above(folder.parent))
    if not images:
        raise DataError(f"{container} holds neither class folders nor images")
    truth, source = _truth([container, base, *list(base.parents)[:3]])
    if source is None:
        raise DataError(
            f"{container} has no class folders: it is flat, as in the original archive, and nothing says which class an image"
            f" is of; put {KAGGLE} or {DEVKIT}.tar.gz beside it, or move each image into {container.stem}/<wnid>/"
        )
    grouped = defaultdict(list)
    for image in images:
        wnid = truth.get(PurePosixPath(image.name).stem)
        if wnid is None:
            raise DataError(f"{image} has no class in {source}: remove it or get the list of the same images")
        grouped[wnid].append(image)
    return container, {wnid: partial(list, grouped[wnid]) for wnid in sorted(grouped)}


# ------------------------------------------------------------------ folders


def _folders(container: Path) -> Classes:
    seen = _above(container)
    return {
        name: partial(_class_folder, container / name, seen)
        for name, is_folder in _entries(str(container))
        if is_folder
    }


def _class_folder(folder: Path, seen: dict) -> list[ImageFile]:
    images = _listed(folder, seen)
    if not images:
        raise DataError(f"{folder} holds no image; they end in {', '.join(EXTENSIONS)}")
    return images


def _listed(folder: Path, seen: dict) -> list[ImageFile]:
    return [ImageFile(str(folder), os.path.join(*names)) for names in sorted(_walk(str(folder), "", seen))]


def _above(container: Path) -> dict:
    """A folder and those that it lies in, by device and number: a link to one of them never ends."""
    real = Path(os.path.realpath(container))
    return {_identity(folder): str(folder) for folder in (real, *real.parents)}


def _identity(folder) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[tuple[str, bool]]:
    """(name, is a folder) of the entries of a folder, sorted; hidden ones and those that are no image are left out."""
    listed = []
    try:
        with os.scandir(folder) as entries:
            for e in entries:
                if e.name.startswith("."):
                    continue
                if e.is_dir():
                    listed.append((e.name, True))
                elif e.name.lower().endswith(EXTENSIONS):
                    if not e.is_file():
                        raise DataError(f"{e.path} is {_kind(e.path)}, not a file; remove it")
                    listed.append((e.name, False))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror or error}") from None
    return sorted(listed)


def _kind(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "a link to nothing"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def _walk(folder: str, below: str, seen: dict) -> Iterator[tuple[str, str]]:
    """(folder below `folder`, file) of the images in it and further down; `seen`: the folders that were entered so far."""
    own = os.path.join(folder, below) if below else folder
    first = seen.setdefault(_identity(own), own)
    if first != own:
        raise DataError(
            f"{own} is the same folder as {first}: its images would count twice, as another class or without end; remove"
            " the link"
        )
    for name, is_folder in _entries(own):
        if is_folder:
            yield from _walk(folder, os.path.join(below, name), seen)
        else:
            yield below, name


# ------------------------------------------------------------------ classes of a flat validation folder


def _truth(folders: Sequence[Path]) -> tuple[dict[str, str], Path | None]:
    """{image name without suffix: wnid} and where that is said, from the first of `folders` that knows; None without."""
    for folder in folders:
        if table := entry(folder, KAGGLE):
            return _kaggle(table), table
        for name in (DEVKIT, f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar"):
            if kit := entry(folder, name):
                return _devkit(kit), kit
    return {}, None


def _kaggle(table: Path) -> dict[str, str]:
    """From lines of an image and boxes, each of a wnid and four numbers; the boxes of an image share their wnid."""
    try:
        with open(table, newline="", encoding="utf-8") as lines:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{table} is not a table of ImageId,PredictionString ({type(error).__name__}: {error}); get it again"
        ) from None


def _devkit(kit: Path) -> dict[str, str]:
    """From the kit's list of class numbers, one a line, and its table of what the numbers mean."""
    from scipy.io import loadmat

    names = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")
    listed = {}
    try:
        if kit.is_dir():
            listed = {n: p.read_bytes() for n in names if (p := first_entry([kit / "data", kit], [n]))}
        else:
            with tarfile.open(kit) as archive:
                for m in archive:
                    if m.isfile() and (name := PurePosixPath(m.name).name) in names:
                        listed[name] = archive.extractfile(m).read()  # type: ignore[union-attr]  # a file has one
        numbers = [int(line) for line in listed[names[0]].split()]
        synsets = loadmat(io.BytesIO(listed[names[1]]), squeeze_me=True)["synsets"].reshape(-1)
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
        return {f"ILSVRC2012_val_{i:08d}": wnids[k] for i, k in enumerate(numbers, 1)}
    except Exception as error:  # loadmat has no base class for what a damaged file raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{kit} cannot be read ({reason}); it must hold data/{names[0]} and data/{names[1]}") from None
