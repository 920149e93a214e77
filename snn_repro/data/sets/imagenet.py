"""ImageNet-1k (ILSVRC 2012): 1,281,167 training images; and ImageNet-100, 100 of its classes.

    training    train/<wnid>/*.JPEG; or ILSVRC2012_img_train.tar with a <wnid>.tar per class; or a folder of these tars
    validation  50,000 images, the test part: val/<wnid>/*.JPEG; or flat, as val/*.JPEG or ILSVRC2012_img_val.tar, with
                classes from Kaggle's LOC_val_solution.csv or the devkit ILSVRC2012_devkit_t12 (folder or .tar.gz)

Archives are unpacked once, into cache_dir. All forms give the same images in the same order with the same names.

scripts/prepare_data.py lists and checks all images once, so that runs do not: `cache_dir/<dataset>/listing.json` has
them with the modification times of their folders and archives. If one of these changes, the listing is ignored.
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
from snn_repro.data.image_files import class_folders, file_hashes, images_in, inspect_images
from snn_repro.data.images import ImageFiles, Images, warn_if_incomplete
from snn_repro.errors import DataError, UserError, brief
from snn_repro.files import write_text

FORMAT_VERSION = 2
TRAIN = ("train", "ILSVRC2012_img_train", "ILSVRC2012_img_train.tar")
VAL = ("val", "ILSVRC2012_img_val", "ILSVRC2012_img_val.tar")
KAGGLE, DEVKIT = "LOC_val_solution.csv", "ILSVRC2012_devkit_t12"

# {class (wnid): (folder, paths of the class's images in it)}, sorted
Part = dict[str, tuple[str, list[str]]]


@register("imagenet1k")
class ImageNet1k(ImageFiles):
    """ImageNet-1k, in class folders or archives."""

    shape, num_classes = (3, 224, 224), 1000
    samples: tuple[int | None, int | None] = (1_281_167, 50_000)
    statistics = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    folders: tuple[str, ...] = ("imagenet1k", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
    published = "https://www.image-net.org/download.php"
    expected = (
        "train/<class>/*.JPEG and val/<class>/*.JPEG, or ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, there or in a"
        " folder imagenet1k, imagenet100, ILSVRC2012 or Data/CLS-LOC"
    )
    label_names: tuple[str, ...] = ()  # (): all classes that are present, sorted
    files = (TRAIN,)

    def listing_file(self, cfg: Config) -> Path | None:
        """Path of the stored listing; None without cache_dir."""
        return Path(cfg.cache_dir, self.name, "listing.json") if cfg.cache_dir else None

    def listed(self, cfg: Config) -> tuple[dict[str, Part], bool]:
        """({"train": Part, "val": Part}, whether prepare_data.py checked all images), cached per process."""
        (train,), path = self.locate(cfg), self.listing_file(cfg)
        made = path.stat().st_mtime_ns if path and path.is_file() else None
        return _listed(train, self.label_names, cfg.cache_dir, path if made else None, (made, *_times(train)))

    def checked_before(self, cfg: Config) -> bool:
        path = self.listing_file(cfg)
        return path is not None and path.is_file() and self.listed(cfg)[1]

    def prepare(self, cfg: Config, threads: int = 16, say: Callable[[str], None] = print) -> int:
        """Check every image and store the listing; returns the number of images.

        Raises UserError and DataError; bad images are reported through `say` first.
        """
        (train,), path = self.locate(cfg), self.listing_file(cfg)
        if path is None:
            raise UserError("cache_dir is not set: pass cache_dir=DIR, a folder for the listing")
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(train.parent)):
            raise UserError(
                f"cache_dir={cfg.cache_dir} would put the listing inside of the data set's own folder {train.parent},"
                " which is never written to; choose a folder outside"
            )
        times, parts = _times(train), _list(train, self.label_names, cfg.cache_dir)
        images, bad = [image for part in parts.values() for image in _paths(part)], []
        with progress("images", len(images), say) as advance:
            for done, seen in enumerate(inspect_images(images, threads), 1):
                if isinstance(seen, DataError):
                    say(f"bad: {seen}")
                    bad.append(seen)
                advance(done)
        if bad:
            raise DataError(f"{len(bad)} of {len(images):,} images are bad ({bad[0]}), so no listing is stored")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"format_version": FORMAT_VERSION, "times": times, "parts": parts}))
        except OSError as error:
            raise UserError(f"cache_dir={cfg.cache_dir} cannot be written: {error}") from None
        return len(images)

    def parts(self, cfg: Config) -> tuple[Images, Images]:
        """(training, test) images; labels are positions in `label_names`, or among the classes present."""
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
        """{"listing": hash of all names and sizes, "sample": hash of the contents of 64 images}."""
        train, test = self.parts(cfg)
        images = zip([*train.names, *test.names], [*train.images, *test.images], strict=True)
        return dict(zip(("listing", "sample"), file_hashes(sorted(images)), strict=True))


WNIDS_100 = Path(__file__).with_name("imagenet100_wnids.txt").read_bytes()  # of the paper's code, sorted


@register("imagenet100")
class ImageNet100(ImageNet1k):
    """100 classes of ImageNet, from a tree of these or of all 1,000."""

    num_classes = 100
    samples = None, 5_000  # the 100 classes have no round number of training images
    about = 128_117  # a tenth of ImageNet-1k
    folders = ("imagenet100", "imagenet-100", *ImageNet1k.folders)
    label_names = tuple(WNIDS_100.decode().split())
    # other lists of 100 classes have the same name: the id tells them apart
    split_id = f"official,wnids={hashlib.sha256(WNIDS_100).hexdigest()[:12]}"


# ------------------------------------------------------------------ listing


def _paths(part: Part) -> list[str]:
    return [os.path.join(folder, name) for folder, names in part.values() for name in names]


def _times(train: Path) -> list[str]:
    """Folders and archives with images, and their modification times."""
    parts = [part for part in (train, find_entry(train.parent, *VAL)) if part]
    inside = [
        p for part in parts if part.is_dir() for p in (*class_folders(part).values(), *sorted(part.glob("*.tar")))
    ]
    return [f"{p} {p.stat().st_mtime_ns}" for p in (train.parent, *parts, *inside)]


@lru_cache(maxsize=1)
def _listed(train: Path, wnids: tuple[str, ...], cache_dir: str | None, path: Path | None, times: tuple) -> tuple:
    if path:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # an outdated listing is ignored
            kept = json.loads(path.read_text())
            if kept["format_version"] == FORMAT_VERSION and kept["times"] == [*times[1:]]:
                return kept["parts"], True
    return _list(train, wnids, cache_dir), False


def _list(train: Path, wnids: tuple[str, ...], cache_dir: str | None) -> dict[str, Part]:
    """List the images of `wnids` (empty: all classes). Raises DataError."""
    if (val := find_entry(train.parent, *VAL)) is None:
        raise DataError(
            f"{train.parent / 'val'} is missing: ImageNet needs train/ and val/, each with one folder per class, or its"
            f" two archives {TRAIN[-1]} and {VAL[-1]}"
        )
    parts = {"train": _part(train, wnids, cache_dir), "val": _part(val, wnids, cache_dir)}
    if different := sorted(parts["train"].keys() ^ parts["val"].keys()):
        where, other = (train, val) if different[0] in parts["train"] else (val, train)
        raise DataError(
            f"{train.parent}: class {different[0]} is in {where.name} but not in {other.name} ({len(different)} classes"
            " differ); labels would not agree"
        )
    return parts


def _part(place: Path, wnids: tuple[str, ...], cache_dir: str | None) -> Part:
    """Images of `wnids` in a folder or archive: class folders, class tars, or flat."""
    folder = _opened(place, cache_dir)
    held = class_folders(folder) or {p.stem: p for p in sorted(folder.glob("*.tar"))}
    flat = {} if held else _flat(place, folder, cache_dir)
    return {
        c: flat[c] if flat else (str(inside := _opened(held[c], cache_dir)), images_in(inside))
        for c in sorted(held or flat)
        if not wnids or c in wnids
    }


def _opened(place: Path, cache_dir: str | None) -> Path:
    """A folder itself; for an archive, the folder that it is unpacked into."""
    if place.is_dir():
        return place
    folder, _ = unpacked(place, cache_dir, lambda name: name.lower().endswith(".tar"))
    return find_entry(folder, *TRAIN[:2], *VAL[:2]) or folder


def _flat(place: Path, folder: Path, cache_dir: str | None) -> Part:
    """Images without class folders, with classes from Kaggle's list or the development kit."""
    names = KAGGLE, DEVKIT, f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar"
    source = next((found for f in (place, *list(place.parents)[:4]) if (found := find_entry(f, *names))), None)
    if source is None:
        raise DataError(
            f"{place} has no class folders: it is flat, as in the original archive, and the classes of its images are"
            f" unknown; put {KAGGLE} or {DEVKIT}.tar.gz beside it, or move each image into {place.stem}/<wnid>/"
        )
    truth, grouped = _truth(source if source.suffix == ".csv" else _opened(source, cache_dir)), defaultdict(list)
    for name in images_in(folder):
        if (wnid := truth.get(PurePosixPath(name).stem)) is None:
            raise DataError(f"{folder / name} has no class in {source}: remove it or get the list of the same images")
        grouped[wnid].append(name)
    return {c: (str(folder), of_class) for c, of_class in grouped.items()}


def _truth(source: Path) -> dict[str, str]:
    """{image name without suffix: wnid}, from Kaggle's table or the development kit."""
    numbers, meaning = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
    # Kaggle's table has boxes, each a wnid and four numbers; the boxes of an image share their wnid
    table = source.suffix == ".csv"
    try:
        if table:
            with open(source, newline="", encoding="utf-8") as lines:
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
        places = {path.name: path for path in source.rglob("data/*")}
        synsets = loadmat(places[meaning], squeeze_me=True)["synsets"].reshape(-1)
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
        return {f"ILSVRC2012_val_{i:08d}": wnids[int(k)] for i, k in enumerate(places[numbers].read_text().split(), 1)}
    except Exception as error:  # loadmat's errors have no common base class
        wanted = "a table of ImageId,PredictionString" if table else f"data/{numbers} and data/{meaning}"
        raise DataError(
            f"{source} cannot be read ({brief(error, named=True)}); it must hold {wanted}; get it again"
        ) from None
