"""`image_folder`: users' images in class folders; the facts of the set are found in data_dir.

    data_dir/<class>/*.png                   dataset.test_share (0.2) of each class tests, drawn with dataset.split_seed
    data_dir/{train,test}/<class>/*.png      folders are parts; val/<class>/, if present, is the validation part

pixels      as viewers show them: rotated by EXIF, transparent parts white
size        dataset.frame_size: the short side is resized to it, then the image is centre-cropped. Default: the size of
            the images if all are square, of one size and at most 224 pixels, else 64
channels    1 if all images are grey, else 3
statistics  mean and standard deviation of up to 4,096 training images, evenly spaced, cropped as in the test
fingerprint all names, sizes and contents (64 contents above 1 GiB)
"""

import copy
import os
import warnings
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from snn_repro.data.dataset import register
from snn_repro.data.image_files import EXTENSIONS, class_folders, file_hashes, image_facts, images_in
from snn_repro.data.images import ImageFiles, Images
from snn_repro.data.own import SETTINGS, common_classes, layout, own_split, parts_of
from snn_repro.data.raw import MODES
from snn_repro.errors import DataError

DEFAULT_SIZE, LARGEST_NATIVE = 64, 224  # pixels
STATISTICS_OF = 4096  # images
WHOLE = 2**30  # bytes up to which all contents enter the fingerprint
GREY = ("1", "L", "LA")


@register("image_folder")
class ImageFolder(ImageFiles):
    """Users' images in class folders."""

    own = True
    test_margin = 1.0
    settings = SETTINGS | ImageFiles.settings
    label_names = ()
    expected = "class folders with images"
    as_shown = True

    def of(self, cfg):
        found, kept = copy.copy(self), cfg.dataset.found
        if not kept:
            classes, images, *_ = self.listed(cfg)
            size, channels = _looked_at(tuple(images), tuple((s.st_size, s.st_mtime_ns) for s in map(os.stat, images)))
            kept = {"classes": classes, "size": size, "channels": channels}
        found.cfg, found.label_names, found.num_classes = cfg, tuple(kept["classes"]), len(kept["classes"])
        found.shape = kept["channels"], kept["size"], kept["size"]
        if cfg.dataset.found:
            found.statistics = kept["mean"], kept["deviation"]
        return found

    @property
    def found(self):
        """Facts that a run stores."""
        (mean, deviation), (channels, size, _) = self.statistics, self.shape
        return dict(classes=[*self.label_names], size=size, channels=channels, mean=mean, deviation=deviation)

    def listed(self, cfg) -> tuple[list[str], ...]:
        """(classes; path, name, label and part of each image, sorted by name).

        Names are "cat/a.png" in part "", or "train/cat/a.png" in part "train", "test" or "val".
        """
        folders = layout(cfg.data_dir, f"images ({', '.join(EXTENSIONS)})")
        present = {part: class_folders(folder) for part, folder in folders.items()}
        classes = common_classes(Path(cfg.data_dir), present)
        if cfg.dataset.found:  # in the order of the trained run
            present_classes, classes = classes, cfg.dataset.found["classes"]
            if more := sorted({*present_classes} - {*classes}):
                raise DataError(
                    f"data_dir={cfg.data_dir} holds the class {more[0]}, which the run was not trained on (its classes:"
                    f" {', '.join(classes)}); move that folder away, or give another data_dir"
                )
        rows = [
            ("/".join(filter(None, (part, c, name))), str(folder / name), classes.index(c), part)
            for part, those in present.items()
            for c, folder in those.items()
            for name in images_in(folder)
        ]
        names, images, labels, parts = map(list, zip(*sorted(rows), strict=True))
        return classes, images, names, labels, parts

    def locate(self, cfg):
        self.listed(cfg)
        return [Path(cfg.data_dir)]

    def build(self, cfg):
        found = [os.path.join(f, n) for f, _, names in os.walk(Path(cfg.data_dir)) for n in names if n[0] != "."]
        if left := sorted({*found} - {*self.listed(cfg)[1]}):
            warnings.warn(
                f"image_folder: {len(left)} of {len(found)} files in data_dir={cfg.data_dir} are not read,"
                f" {left[0]} among them; images must be in class folders and end in {', '.join(EXTENSIONS)}",
                stacklevel=2,
            )
        return super(ImageFolder, self.of(cfg)).build(cfg)

    def sample(self, cfg, source, say):
        return super(ImageFolder, self.of(cfg)).sample(cfg, source, say)

    def parts(self, cfg):
        """(training images followed by those of val/, test images)."""
        _, *columns, given = self.listed(cfg)
        _, part = parts_of(cfg, given, *columns[1:])

        def images(*wanted: str) -> Images:
            rows = [i for name in wanted for i, here in enumerate(part) if here == name]
            files, names, labels = ([column[i] for i in rows] for column in columns)
            return Images(files, np.array(labels), names)

        return images("train", "val"), images("test")

    def split(self, cfg, train, test):
        _, _, listed, labels, given = self.listed(cfg)
        split, parts = parts_of(cfg, given, listed, labels)
        part, names = dict(zip(listed, parts, strict=True)), [*train.names, *test.names]
        rows, val, _, of_run = own_split(cfg, split, [part[n] for n in names], names, [*train.labels, *test.labels])
        return rows, val, of_run

    @cached_property
    def statistics(self):
        """Of the training images, from exact integer sums, so equal on every machine."""
        images = self.parts(self.cfg)[0].images
        images = images[: len(images) - self.listed(self.cfg)[-1].count("val")]
        count, sums = min(len(images), STATISTICS_OF), np.zeros((2, self.shape[0]), np.int64)
        read, steps = self.reader(self.cfg), self.test_steps(self.cfg)
        for i in range(count):
            pixels = steps(read(images[i * len(images) // count], MODES[self.shape[0]])).numpy().astype(np.int64)
            sums += pixels.sum((1, 2)), (pixels**2).sum((1, 2))
        mean, squares = sums / (count * self.shape[1] * self.shape[2])
        deviation = np.sqrt(np.maximum(squares - mean**2, 0))
        return mean.tolist(), np.where(deviation > 0, deviation, 1.0).tolist()

    def fingerprint(self, cfg):
        """{"listing": hash of names and sizes, "contents": hash of the files}."""
        _, images, names, *_ = self.listed(cfg)
        listing, contents = file_hashes([*zip(names, images, strict=True)], WHOLE)
        return {"listing": listing, "contents": contents}


@lru_cache(maxsize=2)
def _looked_at(images: tuple[str, ...], states: tuple) -> tuple[int, int]:
    """(pixels, channels) of the network's input. Raises DataError for files without 8-bit images."""
    seen = image_facts(images)
    for image, (_, _, mode) in zip(images, seen, strict=True):
        if mode[0] in "IF":
            raise DataError(f"{image} has more than 8 bits per pixel ({mode}), which would be cut off; save it with 8")
    (width, height), *others = {(width, height) for width, height, _ in seen}
    native = not others and width == height <= LARGEST_NATIVE
    return width if native else DEFAULT_SIZE, 1 if all(mode in GREY for *_, mode in seen) else 3
