"""ImageNet-1k (ILSVRC 2012): 1,281,167 training images; its 50,000 validation images test. And 100 of its classes.

    training    train/<wnid>/*.JPEG; or ILSVRC2012_img_train.tar, which holds a <wnid>.tar for each class; or a folder of
                these tars
    validation  val/<wnid>/*.JPEG; or flat, as val/*.JPEG or ILSVRC2012_img_val.tar, with the classes from Kaggle's
                LOC_val_solution.csv or from the development kit ILSVRC2012_devkit_t12 (a folder or its .tar.gz)

Archives are unpacked in cache_dir, once. All forms give the same images in the same order under the same names.

scripts/prepare_data.py lists and looks at all images once, so that runs need do neither: `cache_dir/<dataset>/listing.json`
holds them with the times of the folders and archives that they are in. Once one of those has changed it counts no more.
"""

import contextlib
import csv
import hashlib
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.io import loadmat

from snn_repro.config.schema import Config
from snn_repro.console import progress
from snn_repro.data.archives import find_entry, unpacked
from snn_repro.data.dataset import register
from snn_repro.data.image_files import class_folders, file_hashes, images_in, look
from snn_repro.data.images import ImageFiles, Images, warn_if_incomplete
from snn_repro.errors import DataError, UserError
from snn_repro.files import write_text

FORMAT_VERSION = 2
TRAIN = ("train", "ILSVRC2012_img_train", "ILSVRC2012_img_train.tar")
VAL = ("val", "ILSVRC2012_img_val", "ILSVRC2012_img_val.tar")
KAGGLE, DEVKIT = "LOC_val_solution.csv", "ILSVRC2012_devkit_t12"

Part = dict[str, tuple[str, list[str]]]
"""{class (wnid): (folder, paths below it of the class's images)}, sorted"""


@register("imagenet1k")
class ImageNet1k(ImageFiles):
    """Images by class in folders or archives."""

    shape, num_classes = (3, 224, 224), 1000
    samples: tuple[int | None, int | None] = (1_281_167, 50_000)
    statistics = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    folders: tuple[str, ...] = ("imagenet1k", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
    published = "https://www.image-net.org/download.php"
    expected = (
        "train/<class>/*.JPEG and val/<class>/*.JPEG, or ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, there or in a"
        " folder imagenet1k, imagenet100, ILSVRC2012 or Data/CLS-LOC"
    )
    label_names: tuple[str, ...] = ()  # the classes in the order of their labels; none: all that are there, sorted
    files = (TRAIN,)

    def listing_file(self, cfg: Config) -> Path | None:
        return Path(cfg.cache_dir, self.name, "listing.json") if cfg.cache_dir else None

    def listed(self, cfg: Config) -> tuple[dict[str, Part], bool]:
        """({"train": Part, "val": Part}, whether scripts/prepare_data.py has looked at all images), found once in a process."""
        (train,), path = self.locate(cfg), self.listing_file(cfg)
        made = path.stat().st_mtime_ns if path and path.is_file() else None
        return _listed(train, self.label_names, cfg.cache_dir, path if made else None, (made, *_times(train)))

    def checked_before(self, cfg: Config) -> bool:
        path = self.listing_file(cfg)
        return path is not None and path.is_file() and self.listed(cfg)[1]

    def prepare(self, cfg: Config, threads: int = 16, say: Callable[[str], None] = print) -> int:
        """Look at every image, and keep the listing; returns their number.

        Raises UserError and DataError, the latter where images cannot be read, of which each is said.
        """
        (train,), path = self.locate(cfg), self.listing_file(cfg)
        if path is None:
            raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the listing")
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(train.parent)):
            raise UserError(
                f"cache_dir={cfg.cache_dir} would put the listing inside of the data set's own folder {train.parent}, which is"
                " only ever read; choose a folder outside"
            )
        times, parts = _times(train), _list(train, self.label_names, cfg.cache_dir)
        images, bad = [image for part in parts.values() for image in _paths(part)], []
        with progress("images", len(images), say) as advance:
            for done, seen in enumerate(look(images, threads), 1):
                if isinstance(seen, DataError):
                    say(f"bad: {seen}")
                    bad.append(seen)
                advance(done)
        if bad:
            raise DataError(
                f"{len(bad)} of {len(images):,} images are bad ({bad[0]}); the listing is kept once all are good"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"format_version": FORMAT_VERSION, "times": times, "parts": parts}))
        except OSError as error:
            raise UserError(f"cache_dir={cfg.cache_dir} cannot be written: {error}") from None
        return len(images)

    def parts(self, cfg: Config) -> tuple[Images, Images]:
        """(training, test), labelled by the class's place in `classes()` or among all that are there."""
        (train_place,), parts = self.locate(cfg), self.listed(cfg)[0]
        there, classes = list(parts["train"]), self.num_classes
        if not 0 < len(there) <= classes:
            raise DataError(f"{train_place.parent} has {len(there)} of the {classes} classes of {self.name}")
        train, test = (
            Images(
                _paths(of),
                np.repeat([(self.label_names or there).index(c) for c in of], [len(names) for _, names in of.values()]),
                [f"{part}/{c}/{name}" for c, (_, names) in of.items() for name in names],
            )
            for part, of in parts.items()
        )
        if len(there) == classes:
            warn_if_incomplete(self, len(train.labels), len(test.labels))
        else:
            said = f"{self.name}: {train_place.parent} has {len(there)} of {classes} classes, so results do not compare"
            warnings.warn(f"{said} with those on all of them", stacklevel=3)
        return train, test

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{"listing": of the names and sizes of all images, "sample": of the contents of 64 of them}."""
        train, test = self.parts(cfg)
        images = zip([*train.names, *test.names], [*train.images, *test.images], strict=True)
        return dict(zip(("listing", "sample"), file_hashes(sorted(images)), strict=True))


WNIDS_100 = Path(__file__).with_name("imagenet100_wnids.txt").read_bytes()  # that the paper's code names, sorted


@register("imagenet100")
class ImageNet100(ImageNet1k):
    """From a tree of its classes or of all 1,000. Others call other lists so: the split's id has this one's SHA-256."""

    num_classes = 100
    samples = None, 5_000  # of training images the 100 classes have no round number
    about = 128_117  # a tenth of ImageNet-1k
    folders = ("imagenet100", "imagenet-100", *ImageNet1k.folders)
    label_names = tuple(WNIDS_100.decode().split())
    split_id = f"official,wnids={hashlib.sha256(WNIDS_100).hexdigest()[:12]}"


# ------------------------------------------------------------------ which images there are


def _paths(part: Part) -> list[str]:
    return [os.path.join(folder, name) for folder, names in part.values() for name in names]


def _times(train: Path) -> list[str]:
    """The folders and archives with images, and when each was changed."""
    parts = [part for part in (train, find_entry(train.parent, *VAL)) if part]
    inside = [
        p for part in parts if part.is_dir() for p in (*class_folders(part).values(), *sorted(part.glob("*.tar")))
    ]
    return [f"{p} {p.stat().st_mtime_ns}" for p in (train.parent, *parts, *inside)]


@lru_cache(maxsize=1)
def _listed(train: Path, wnids: tuple[str, ...], cache_dir: str | None, path: Path | None, times: tuple) -> tuple:
    if path:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # an older one counts for nothing
            kept = json.loads(path.read_text())
            if kept["format_version"] == FORMAT_VERSION and kept["times"] == [*times[1:]]:
                return kept["parts"], True
    return _list(train, wnids, cache_dir), False


def _list(train: Path, wnids: tuple[str, ...], cache_dir: str | None) -> dict[str, Part]:
    """The images of `wnids` (none: of all classes), listed now. Raises DataError."""
    val = find_entry(train.parent, *VAL)
    if val is None:
        raise DataError(
            f"{train.parent / 'val'} is missing: ImageNet needs train/ and val/, each with one folder a class, or its two"
            f" archives {TRAIN[-1]} and {VAL[-1]}"
        )
    parts = {"train": _part(train, wnids, cache_dir), "val": _part(val, wnids, cache_dir)}
    if different := sorted(parts["train"].keys() ^ parts["val"].keys()):
        where, other = (train, val) if different[0] in parts["train"] else (val, train)
        raise DataError(
            f"{train.parent}: class {different[0]} is in {where.name} but not in {other.name} ({len(different)} classes differ);"
            " labels would not agree"
        )
    return parts


def _part(place: Path, wnids: tuple[str, ...], cache_dir: str | None) -> Part:
    """The images of `wnids` in a folder or archive: in class folders, in a tar for each class, or flat."""
    folder = _opened(place, cache_dir)
    held = class_folders(folder) or {p.stem: p for p in sorted(folder.glob("*.tar"))}
    flat = {} if held else _flat(place, folder, cache_dir)
    return {
        c: flat[c] if flat else (str(inside := _opened(held[c], cache_dir)), images_in(inside))
        for c in sorted(held or flat)
        if not wnids or c in wnids
    }


def _opened(place: Path, cache_dir: str | None) -> Path:
    """A folder; of an archive, that which it is unpacked in, at the first call."""
    if place.is_dir():
        return place
    folder, _ = unpacked(place, cache_dir, lambda name: name.lower().endswith(".tar"))
    return find_entry(folder, *TRAIN[:2], *VAL[:2]) or folder


def _flat(place: Path, folder: Path, cache_dir: str | None) -> Part:
    """Images without class folders, by the classes that Kaggle's list or the development kit says."""
    names = KAGGLE, DEVKIT, f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar"
    source = next((found for f in (place, *list(place.parents)[:4]) if (found := find_entry(f, *names))), None)
    if source is None:
        raise DataError(
            f"{place} has no class folders: it is flat, as in the original archive, and nothing says which class an image is"
            f" of; put {KAGGLE} or {DEVKIT}.tar.gz beside it, or move each image into {place.stem}/<wnid>/"
        )
    truth, grouped = _truth(source if source.suffix == ".csv" else _opened(source, cache_dir)), defaultdict(list)
    for name in images_in(folder):
        if (wnid := truth.get(PurePosixPath(name).stem)) is None:
            raise DataError(f"{folder / name} has no class in {source}: remove it or get the list of the same images")
        grouped[wnid].append(name)
    return {c: (str(folder), of_class) for c, of_class in grouped.items()}


def _truth(source: Path) -> dict[str, str]:
    """{image name without suffix: wnid}, from Kaggle's table or from the folder of the development kit."""
    numbers, meaning = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
    table = (
        source.suffix == ".csv"
    )  # an image, and boxes, each of a wnid and four numbers; those of an image share their wnid
    try:
        if table:
            with open(source, newline="", encoding="utf-8") as lines:
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
        places = {path.name: path for path in source.rglob("data/*")}
        synsets = loadmat(places[meaning], squeeze_me=True)["synsets"].reshape(-1)
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
        return {f"ILSVRC2012_val_{i:08d}": wnids[int(k)] for i, k in enumerate(places[numbers].read_text().split(), 1)}
    except Exception as error:  # loadmat has no base class for what a damaged file raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        wanted = "a table of ImageId,PredictionString" if table else f"data/{numbers} and data/{meaning}"
        raise DataError(f"{source} cannot be read ({reason}); it must hold {wanted}; get it again") from None
