"""Image sets: arrays in memory, or files of class folders, become `Data`.

Files are read as published and only read. Images of the small sets live as one uint8 tensor; crop and flip
are gathered in batches. What needs a PIL image (RandomResizedCrop, RandAugment, all of ImageNet) goes image
by image through torchvision and timm in worker processes (`dataset.workers`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from snn_repro.data.archives import entry, first_entry
from snn_repro.data.dataset import Data, DataSet, Split
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from snn_repro.config.schema import Config
    from snn_repro.data.image_files import ImageFile, Tree

log = logging.getLogger("snn_repro")


class Images(NamedTuple):
    """The training or the test images, in their official order."""

    images: Any  # an array [N, C, H, W], or a list of ImageFile
    labels: np.ndarray  # [N]
    names: Sequence[str]  # of the samples, as they enter the hash of the test list


DECODER = {
    "decoder": Setting(
        "pil",
        "what opens and resizes the images: PIL, as in the paper, or torchcodec and torchvision; pixels differ by rounding",
        choices=("pil", "torchcodec"),
    )
}


class ImageSet(DataSet):
    """Images that fit in memory, from a few files that `read` turns into arrays."""

    # mean and standard deviation a channel of the training images, in RGB order and the unit of the stored values
    statistics: tuple[list[float], list[float]]
    test_margin = 256 / 224  # of image files: the test's short side before the centre crop, as a factor of the crop's
    as_shown = False  # of image files: whether EXIF's rotation is applied and transparent parts are white
    split_id = "official"  # what the one split is called in results
    files: tuple[tuple[str, ...], ...] = ()  # the names that each file may have; a folder counts as one
    installed: Path | None = None  # where a package of the system puts the files; looked at without data_dir

    def read(self, *files: str) -> tuple[Sequence, Sequence]:
        """(training, test), each (images [N, C, H, W], labels [N]) and perhaps the samples' names.

        `files` are those of `locate`. Images are uint8, or float where PIL never sees them.
        """
        raise NotImplementedError

    def locate(self, cfg: Config) -> list[Path]:
        """The files, all from one folder: data_dir or one of `folders` in it."""
        bases = [self.installed] if self.installed else []
        if cfg.data_dir:  # whoever names a folder means that one
            root = Path(cfg.data_dir)
            if len(self.files) == 1 and root.name.lower() in map(str.lower, self.files[0]) and root.is_dir():
                return [root]
            bases = [root, *filter(None, (entry(root, name) for name in self.folders))]
        for base in bases:
            paths = [first_entry([base], names) for names in self.files]
            if None not in paths:
                return [path for path in paths if path]
            if any(paths):
                absent = self.files[paths.index(None)][0]
                raise DataError(f"{base} lacks {absent}; {self.name} is published at {self.published}")
        if self.files:
            raise self.not_found(cfg.data_dir)
        return []

    def arrays(self, cfg: Config) -> tuple[Images, Images]:
        """(training, test) of a set that fits in memory, as published.

        The set that was read last is kept: who asks for its fingerprint builds it next. Nobody may write to the arrays.
        """
        import numpy as np

        files = self.locate(cfg)
        parts = _kept(self.read, _state(files)) if files else self.read()
        train, test = (
            Images(part[0], part[1], part[2] if len(part) > 2 else [f"{name}/{i:05d}" for i in range(len(part[1]))])
            for name, part in zip(("train", "test"), parts, strict=True)
        )
        for part in (train, test):
            _check_finite(np.asarray(part.images), self.name)
        return train, test

    def parts(self, cfg: Config) -> tuple[Images, Images]:
        """(training, test); warns where the set is not complete."""
        train, test = self.arrays(cfg)
        warn_if_incomplete(self, len(train.labels), len(test.labels))
        return train, test

    def split(self, cfg: Config, train: Images, test: Images) -> tuple[np.ndarray, np.ndarray, Split]:
        """(training and validation rows of the training images, the Split)."""
        import numpy as np

        from snn_repro.data.splits import split_parts

        labels = np.asarray(train.labels)
        rows = np.arange(len(labels)), np.arange(len(test.labels))
        return split_parts(cfg, *rows, labels, test.names, split=self.split_id)

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{"files": SHA-256 of all images and labels}."""
        files = self.locate(cfg)
        return {"files": _digest(self.read, _state(files)) if files else _sha256(self.read())}

    def checked_before(self, cfg: Config) -> bool:
        """Whether scripts/prepare_data.py has looked at all image files."""
        return False

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """One image of uint8 pixels [C, H, W] as `read` gives it: where that is floats, the set says here which."""
        return pixels

    def image(self, source: Any, say: Callable[[str], None]) -> np.ndarray:
        """One raw image [C, H, W] as `read` gives it; `source` as in raw.py, or such an array itself."""
        import numpy as np

        from snn_repro.data import raw

        usual = self.stored(np.zeros(self.shape, np.uint8))
        if hasattr(source, "shape") and (own := np.asarray(source)).shape == self.shape and own.dtype == usual.dtype:
            _check_finite(own[None], "the image")
            return own
        return self.stored(raw.pixels(source, self.shape, say))

    def sample(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        """Image files of any size are resized and cropped as those of the test, without a word."""
        import torch

        from snn_repro.data import augment, raw

        x: Any
        if self.from_files:
            read = raw.picture_tensor if in_tensors(cfg) else raw.picture
            picture = read(source, self.shape[0], say, self.as_shown)
            size = self.frame_shape(cfg.dataset.frame_size)[-1]
            x = augment.eval_sample_transform(cfg.augment, size, self.test_margin)(picture)[None]
        else:
            x = torch.as_tensor(_resized(self.image(source, say)[None], cfg.dataset.frame_size))
        normalize = augment.Normalize(*self.statistics, cfg.dataset.channel_order)
        return normalize(x, torch.zeros(1), torch.Generator())[0].contiguous()

    def build(self, cfg: Config) -> Data:
        """With dataset.frame_size, images in memory are resized once (bilinear, antialiased)."""
        import numpy as np

        from snn_repro.data import augment, batches, build, image_files
        from snn_repro.distributed import world

        train, test = self.parts(cfg)
        labels = np.asarray(train.labels)
        train_rows, val_rows, split = self.split(cfg, train, test)
        size = self.frame_shape(cfg.dataset.frame_size)[-1]
        mean, std = self.statistics
        normalize = augment.Normalize(mean, std, cfg.dataset.channel_order)
        # RandAugment's colour for pixels from outside: the mean; the paper's code gives it in the order of a BGR image
        fill = mean[::-1] if cfg.dataset.channel_order == "bgr" else mean
        in_pil = augment.needs_pil(cfg.augment)
        train_inputs: Any
        val_inputs: Any
        test_inputs: Any
        if self.from_files:
            if world().rank == 0 and not self.checked_before(cfg):
                image_files.look(_used(test.images, cfg) + _used([train.images[i] for i in val_rows], cfg))
            # without RandomResizedCrop the network still needs one size: that of the test
            first, mode = augment.eval_steps(cfg.augment, size, self.test_margin), "RGB" if self.shape[0] == 3 else "L"
            tensors = in_tensors(cfg)
            if tensors:
                image_files.torchcodec()  # that it is there
            augmented = augment.sample_transform(cfg.augment, self, size, fill, first, tensors)
            plain = augment.eval_sample_transform(cfg.augment, size, self.test_margin)
            read = partial(image_files.decode_tensor if tensors else image_files.decode, shown=self.as_shown)
            samples = partial(batches.PilImages, read=read)
            train_inputs = samples(train.images, labels, augmented, mode)
            val_inputs, test_inputs = (samples(p.images, p.labels, plain, mode) for p in (train, test))
        else:
            train_inputs = val_inputs = _resized(train.images, cfg.dataset.frame_size)
            test_inputs = _resized(test.images, cfg.dataset.frame_size)
            if in_pil and train_inputs.dtype != np.uint8:
                raise UserError(f"augment.{in_pil[0]} is for larger images; set it to 0 for {self.name}")
            if in_pil:
                augmented = augment.sample_transform(cfg.augment, self, size, fill)
                train_inputs = batches.PilImages(val_inputs, labels, augmented)
        parts = (
            build.Part(train_inputs, labels, train_rows), build.Part(val_inputs, labels, val_rows),
            build.Part(test_inputs, test.labels),
        )  # fmt: skip
        transforms = augment.batch_transforms(cfg.augment, self, normalize, in_pil=bool(in_pil) or self.from_files)
        return build.assemble(cfg, self, parts, split, transforms, [normalize])


class ImageFolders(ImageSet):
    """Images by class in folders or archives, as ImageNet has them (image_files.py), read while training."""

    from_files = True
    settings = DECODER

    def classes(self) -> list[str] | None:
        """The names of the classes in the order of their labels; None: all that are there, sorted."""
        return None

    @property
    def label_names(self) -> Sequence[str]:
        return self.classes() or ()

    def locate(self, cfg: Config) -> list[Path]:
        """The folder or archive of the training images."""
        from snn_repro.data import image_files

        if cfg.data_dir:
            root = Path(cfg.data_dir)
            below = (entry(root, name) for name in self.folders)
            if present := image_files.find_train([root, *filter(None, below)]):
                return [present]
        raise self.not_found(cfg.data_dir)

    def tree(self, cfg: Config) -> Tree:
        """The images of the data set's classes, from the listing in cache_dir if there is one that holds."""
        return self.prepared_tree(cfg) or self.listed(cfg)

    def prepared_tree(self, cfg: Config) -> Tree | None:
        """The images as scripts/prepare_data.py found and checked them; None if it did not, or not these."""
        from snn_repro.data import listing

        path = listing.place(self.name, cfg.cache_dir)
        return _kept_tree(path, self.changed(cfg)) if path and path.is_file() else None

    def checked_before(self, cfg: Config) -> bool:
        return self.prepared_tree(cfg) is not None

    def listed(self, cfg: Config) -> Tree:
        """The images that are there, listed once in a process."""
        (container,) = self.locate(cfg)
        wnids = self.classes()
        return _listed_tree(container, None if wnids is None else tuple(wnids), cfg.cache_dir, self.changed(cfg))

    def changed(self, cfg: Config) -> tuple[tuple[str, int], ...]:
        """The folders and archives with images, and when each was changed."""
        from snn_repro.data import image_files

        (container,) = self.locate(cfg)
        changed = [(str(container.parent), container.parent.stat().st_mtime_ns)]
        for part in filter(None, (container, first_entry([container.parent], image_files.VAL))):
            changed.append((str(part), part.stat().st_mtime_ns))
            if part.is_dir():
                with os.scandir(part) as entries:
                    changed += sorted(
                        (e.path, e.stat().st_mtime_ns) for e in entries if e.is_dir() or e.name.endswith(".tar")
                    )
        return tuple(changed)

    def parts(self, cfg: Config) -> tuple[Images, Images]:
        """(training, test), labelled by the class's place in `classes()` or among all that are there."""
        import numpy as np

        name, k, tree = self.name, self.num_classes, self.tree(cfg)
        classes = tree.classes
        if len(classes) > k or not classes:
            raise DataError(f"{tree.base} has {len(classes)} of the {k} classes of {name}")
        if len(classes) < k:
            warnings.warn(
                f"{name}: {tree.base} has {len(classes)} of {k} classes, so results do not compare with those on all of them",
                stacklevel=3,
            )
        else:
            warn_if_incomplete(self, len(tree.train), len(tree.test))
        places = np.array([(self.classes() or classes).index(c) for c in classes])
        return (
            Images(tree.train, places[tree.train_labels], tree.names("train")),
            Images(tree.test, places[tree.test_labels], tree.names("val")),
        )

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{"listing": of the names and sizes of all images, "sample": of the contents of 64 of them}."""
        tree = self.tree(cfg)
        images = zip([*tree.names("train"), *tree.names("val")], [*tree.train, *tree.test], strict=True)
        return dict(zip(("listing", "sample"), file_hashes(sorted(images)), strict=True))


def in_tensors(cfg: Config) -> bool:
    """Whether image files are opened and resized as tensors: what their `decoder` says."""
    return cfg.dataset.own.get("decoder") == "torchcodec"


def warn_if_incomplete(dataset: DataSet, n_train: int, n_test: int) -> None:
    """Warn, in one line, where a data set does not have the number of images that its authors published."""
    differ = [
        f"{present:,} of {published:,} {part}"
        for part, present, published in zip(("training", "test"), (n_train, n_test), dataset.samples, strict=True)
        if published not in (None, present)
    ]
    if differ:
        warnings.warn(
            f"{dataset.name} was found with {' and '.join(differ)} images, so results do not compare with those on the whole"
            " data set",
            stacklevel=3,
        )


# ------------------------------------------------------------------ in memory


def _check_finite(images: np.ndarray, name: str) -> None:
    """Raise DataError for a pixel that is NaN or infinite."""
    if images.dtype.kind == "f" and (bad := ~(abs(images) < math.inf)).any():
        raise DataError(f"{name}: image {bad.nonzero()[0][0]} of {len(images)} holds a pixel that is NaN or infinite")


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or images.shape[-2:] == (size, size):
        return images
    import torch
    from torchvision.transforms.functional import resize

    parts = torch.as_tensor(images).split(4096)
    return torch.cat([resize(part, [size, size], antialias=True) for part in parts]).numpy()


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
    import numpy as np

    digest = hashlib.sha256()
    for values in (np.asarray(values) for part in parts for values in part[:2]):
        digest.update(f"{values.shape} {values.dtype.str}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


# ------------------------------------------------------------------ class folders


def _shown(container: Path) -> str:
    return f"{container.name}/" if container.is_dir() else container.name


@lru_cache(maxsize=1)
def _kept_tree(path: Path, changed: tuple) -> Tree | None:
    from snn_repro.data import listing

    return listing.kept(path, changed)


@lru_cache(maxsize=1)
def _listed_tree(container: Path, wnids: tuple[str, ...] | None, cache_dir: str | None, changed: tuple) -> Tree:
    import numpy as np

    from snn_repro.data import image_files

    base = container.parent
    test_place, held = image_files.val_classes(base, cache_dir)
    present = {"train": image_files.train_classes(container, cache_dir), "val": held}
    if wnids is not None:
        present = {part: {c: classes[c] for c in wnids if c in classes} for part, classes in present.items()}
    different = sorted(set(present["train"]) ^ set(present["val"]))
    if different:
        where, other = (container, test_place) if different[0] in present["train"] else (test_place, container)
        raise DataError(
            f"{base}: class {different[0]} is in {_shown(where)} but not in {_shown(other)} ({len(different)} classes"
            " differ); labels would not agree"
        )
    started, said, lists = time.monotonic(), False, list[Any]()
    for part in ("train", "val"):
        files, counts = [], []
        for n, (_, images) in enumerate(sorted(present[part].items())):
            if time.monotonic() > started + 10 and not said:
                said = True
                log.info(f"listing the images of {base} takes a while: {n} of {len(present[part])} classes in 10 s")
            more = images()
            files += more
            counts.append(len(more))
        lists += [files, np.repeat(np.arange(len(counts)), counts)]
    return image_files.Tree(base, sorted(present["train"]), *lists)


def file_hashes(images: Sequence[tuple[str, ImageFile]], whole: int = 0) -> tuple[str, str]:
    """SHA-256 of names and sizes, and of contents: of all where they are at most `whole` bytes, else of 64 of them."""
    listing, contents = hashlib.sha256(), hashlib.sha256()
    image, n = None, len(images)
    try:
        few = not whole or sum((image := i).bytes() for _, i in images) > whole
        for at, (name, image) in enumerate(images):
            listing.update(f"{name} {image.bytes()}\n".encode("utf-8", "surrogateescape"))
            if not few or at * 64 // n != (at - 1) * 64 // n:
                with image.open() as file:
                    contents.update(file.read())
    except OSError as error:
        raise DataError(f"{image} cannot be read: {error.strerror or error}") from None
    return listing.hexdigest(), contents.hexdigest()


def _used(files: list[ImageFile], cfg: Config) -> list[ImageFile]:
    """The files that an evaluation reads."""
    batches = cfg.debug.max_eval_batches
    return files[: batches * cfg.recipe.eval_batch_size] if batches else files
