"""`image_folder`: images of your own in class folders. Classes, size, channels and statistics are found in data_dir.

    data_dir/<class>/*.png                          dataset.test_share (0.2) of each class tests, drawn with dataset.split_seed
    data_dir/train/<class>/*.png, test/<class>/     the folders say it; val/<class>/ is the validation part, where there is one

pixels      as viewers show them: turned as EXIF says, transparent parts white
size        dataset.frame_size: the short side becomes so long, and the centre is cut out. Without it: that of the images
            where all are square and of one size of up to 224 pixels, else 64
channels    1 where all images are grey, else 3
statistics  mean and standard deviation of up to 4,096 training images, evenly spaced, as the test cuts them
fingerprint of all names, sizes and contents (of 64 contents where there is more than 1 GiB)
"""

from __future__ import annotations

import copy
import os
import warnings
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snn_repro.data.dataset import register
from snn_repro.data.image_files import EXTENSIONS, class_folders, facts, file_hashes, images_in
from snn_repro.data.images import ImageFiles, Images, file_state
from snn_repro.data.own import SETTINGS, common_classes, known_classes, layout, own_split, parts_of
from snn_repro.errors import DataError

DEFAULT_SIZE, LARGEST_NATIVE = 64, 224  # pixels
STATISTICS_OF = 4096  # images
WHOLE = 2**30  # bytes, up to which all contents enter the fingerprint
GREY = ("1", "L", "LA")


class Listed(NamedTuple):
    """The images of a folder, sorted by name ("train/cat/a.png", or "cat/a.png")."""

    classes: list[str]
    images: list[str]
    names: list[str]
    labels: list[int]
    parts: list[str]  # "train", "test", "val", or "" where nothing says it


@register("image_folder")
class ImageFolder(ImageFiles):
    own = True
    draws_test = True
    test_margin = 1.0
    settings = SETTINGS | ImageFiles.settings
    label_names = ()
    expected = "class folders with images"
    as_shown = True

    def of(self, cfg):
        found, kept = copy.copy(self), cfg.dataset.found
        if not kept:
            listed = self.listed(cfg)
            size, channels = _looked_at(tuple(listed.images), file_state(map(Path, listed.images)))
            kept = {"classes": listed.classes, "size": size, "channels": channels}
        try:
            found.cfg, found.label_names = cfg, tuple(map(str, kept["classes"]))
            found.num_classes = len(found.label_names)
            found.shape = (int(kept["channels"]), int(kept["size"]), int(kept["size"]))
            if cfg.dataset.found:
                found.statistics = tuple(
                    [float(kept[k][c]) for c in range(found.shape[0])] for k in ("mean", "deviation")
                )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"dataset.found of this run is damaged ({type(error).__name__}: {error}); train it again"
            ) from None
        return found

    @property
    def found(self):
        (mean, deviation), (channels, size, _) = self.statistics, self.shape
        return dict(classes=[*self.label_names], size=size, channels=channels, mean=mean, deviation=deviation)

    def listed(self, cfg) -> Listed:
        folders = layout(cfg.data_dir, f"images ({', '.join(EXTENSIONS)})")
        present = {part: class_folders(folder) for part, folder in folders.items()}
        classes = common_classes(Path(cfg.data_dir), present)
        if cfg.dataset.found:
            classes = known_classes(cfg, classes)
        rows = [
            ("/".join(filter(None, (part, c, name))), str(folder / name), classes.index(c), part)
            for part, those in present.items()
            for c, folder in those.items()
            for name in images_in(folder)
        ]
        names, images, labels, parts = map(list, zip(*sorted(rows), strict=True))
        return Listed(classes, images, names, labels, parts)

    def locate(self, cfg):
        self.listed(cfg)
        return [Path(cfg.data_dir)]

    def build(self, cfg):
        found = [os.path.join(f, n) for f, _, names in os.walk(Path(cfg.data_dir)) for n in names if n[0] != "."]
        if left := sorted({*found} - {*self.listed(cfg).images}):
            warnings.warn(
                f"image_folder: {len(left)} of {len(found)} files in data_dir={cfg.data_dir} are not read, {left[0]} among"
                f" them; images lie in class folders and end in {', '.join(EXTENSIONS)}",
                stacklevel=2,
            )
        return super(ImageFolder, self.of(cfg)).build(cfg)

    def sample(self, cfg, source, say):
        return super(ImageFolder, self.of(cfg)).sample(cfg, source, say)

    def parts(self, cfg):
        """(training images with those of val/ at their end, test images)."""
        listed = self.listed(cfg)
        _, part = parts_of(cfg, listed.parts, listed.names, listed.labels)

        def images(*wanted: str) -> Images:
            rows = [i for name in wanted for i, here in enumerate(part) if here == name]
            files, labels, names = (
                [column[i] for i in rows] for column in (listed.images, listed.labels, listed.names)
            )
            return Images(files, np.array(labels), names)

        return images("train", "val"), images("test")

    def split(self, cfg, train, test):
        listed = self.listed(cfg)
        split, parts = parts_of(cfg, listed.parts, listed.names, listed.labels)
        part = dict(zip(listed.names, parts, strict=True))
        names = [*train.names, *test.names]
        rows, val, _, of_run = own_split(cfg, split, [part[n] for n in names], names, [*train.labels, *test.labels])
        return rows, val, of_run

    @cached_property
    def statistics(self):
        """Of the training images; exact sums of whole numbers, so the same on every machine."""
        if not hasattr(self, "cfg"):
            raise AttributeError("statistics are those of a folder: see `of`")
        images = self.parts(self.cfg)[0].images
        images = images[: len(images) - self.listed(self.cfg).parts.count("val")]
        count = min(len(images), STATISTICS_OF)
        read, steps = self.reader(self.cfg), self.test_steps(self.cfg)
        n, total, squares = 0, np.zeros(1, np.int64), np.zeros(1, np.int64)
        for i in range(count):
            image = steps(read(images[i * len(images) // count], self.mode))
            pixels = image.numpy().astype(np.int64).reshape(self.shape[0], -1)
            n, total, squares = n + pixels.shape[1], total + pixels.sum(1), squares + (pixels**2).sum(1)
        mean = total / n
        deviation = np.sqrt(np.maximum(squares / n - mean**2, 0))
        return mean.tolist(), np.where(deviation > 0, deviation, 1.0).tolist()

    def fingerprint(self, cfg):
        """{"listing": of names and sizes, "contents": of the files}."""
        listed = self.listed(cfg)
        images = list(zip(listed.names, listed.images, strict=True))
        return dict(zip(("listing", "contents"), file_hashes(images, WHOLE), strict=True))


@lru_cache(maxsize=2)
def _looked_at(images: tuple[str, ...], times: tuple) -> tuple[int, int]:
    """(pixels, channels) as the module's docstring says. Raises DataError for a file that is no image of 8-bit values."""
    seen = facts(images)
    for image, (_, _, mode) in zip(images, seen, strict=True):
        if mode[0] in "IF":
            raise DataError(f"{image} has more than 8 bits a pixel ({mode}), which would be cut off; save it with 8")
    (width, height), *others = {(width, height) for width, height, _ in seen}
    native = not others and width == height <= LARGEST_NATIVE
    return width if native else DEFAULT_SIZE, 1 if all(mode in GREY for *_, mode in seen) else 3
