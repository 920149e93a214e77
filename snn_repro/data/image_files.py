"""Image files: listing, checking, decoding and hashing; an image is the path of its file."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from snn_repro.data import vision
from snn_repro.data.archives import reading
from snn_repro.errors import DataError, UserError, brief

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112  # the EXIF tag of the camera's rotation; 1 is upright


# ------------------------------------------------------------------ listing and checking


@reading()
def class_folders(folder: str | Path) -> dict[str, Path]:
    """{name: path} of the visible folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        return dict(sorted((e.name, Path(e.path)) for e in entries if e.name[0] != "." and e.is_dir()))


@reading()
def images_in(folder: str | Path, known: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Relative paths of the visible images below a folder, sorted by folder and name.

    known: their endings, in lower case. Raises DataError if there are none, and for a link that leads in a circle.
    """
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise error

    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        below[:] = [name for name in below if name[0] != "."]
        if (real := os.path.realpath(place)) in seen:
            raise DataError(f"{place} leads to {real}, which was read before: remove the link, or images count twice")
        seen.add(real)
        found += [(place, n) for n in names if n[0] != "." and n.lower().endswith(known)]
    if not found:
        raise DataError(
            f"{folder} holds no image{' or recording' * (known != EXTENSIONS)}; they end in {', '.join(known)}"
        )
    return [os.path.join(place, name)[len(str(folder)) + 1 :] for place, name in sorted(found)]


@reading()
def file_hashes(images: Sequence[tuple[str, str]], whole: int = 0) -> tuple[str, str]:
    """SHA-256 of names with sizes, and of contents: 64 files if above `whole` bytes."""
    listing, contents, n = hashlib.sha256(), hashlib.sha256(), len(images)
    sizes = [os.stat(path).st_size for _, path in images]
    few = sum(sizes) > whole
    for at, (name, path) in enumerate(images):
        listing.update(f"{name} {sizes[at]}\n".encode("utf-8", "surrogateescape"))
        if not few or at * 64 // n != (at - 1) * 64 // n:
            contents.update(Path(path).read_bytes())
    return listing.hexdigest(), contents.hexdigest()


def inspect_images(images: Sequence[str], threads: int = 16) -> Iterator[tuple[int, int, str] | DataError]:
    """(width, height, PIL mode) of each image, or the DataError of a bad one."""
    with ThreadPoolExecutor(threads, "inspect") as pool:  # waits for a file server, not for the CPU
        for at in range(0, len(images), 64 * threads):  # a short queue, so that Ctrl-C works
            yield from pool.map(_inspect, images[at : at + 64 * threads])


def image_facts(images: Sequence[str]) -> list[tuple[int, int, str]]:
    """(width, height, PIL mode) of each image. Raises DataError naming the first bad one."""
    seen: list = [*inspect_images(images)]
    if bad := next((fact for fact in seen if isinstance(fact, DataError)), None):
        raise bad
    return seen


def _inspect(image: str) -> tuple[int, int, str] | DataError:
    """Check header, size and end of a file, decoding it only without an end marker."""
    try:
        with _opened(image) as (stream, opened):
            marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(opened.format or "")
            at, length = stream.tell(), stream.seek(0, os.SEEK_END)
            stream.seek(max(0, length - 4096))
            if marker is None or marker not in stream.read():  # no visible end: decode it
                stream.seek(at)
                opened.load()
            return *opened.size, opened.mode
    except DataError as error:
        return error


# ------------------------------------------------------------------ pixels


@contextmanager
def _opened(image: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """An open file and its PIL image, header read; PIL's errors become DataError."""
    try:
        with open(image, "rb") as stream:
            opened = Image.open(stream)
            yield stream, opened
    except (MemoryError, UserError):
        raise
    except Exception as error:  # PIL raises nearly anything
        reason = (
            "cannot identify image file by its content" if isinstance(error, UnidentifiedImageError) else brief(error)
        )
        raise DataError(f"{image} cannot be read as an image: {reason}; get it again or remove it") from None


def decode(image: str, mode: str | None = "RGB", shown: bool = False) -> Image.Image:
    """The image in a PIL mode (None: its own); shown: apply `as_shown`. Raises DataError."""
    with _opened(image) as (_, opened):
        return (as_shown(opened) if shown else opened).convert(mode)


def decode_tensor(image: str, mode: str = "RGB", shown: bool = False) -> Tensor:
    """`decode` as uint8 [C, H, W]; torchcodec reads JPEGs and takes luma as grey."""
    with _opened(image) as (stream, opened):
        turned = shown and opened.getexif().get(ORIENTATION, 1) != 1
        if opened.format == "JPEG" and opened.mode in ("RGB", "L") and not turned:
            stream.seek(0)
            return torchcodec()(stream.read(), mode={"RGB": "RGB", "L": "GRAY"}[mode])
        return vision.functional.pil_to_tensor((as_shown(opened) if shown else opened).convert(mode))


def as_shown(image: Image.Image) -> Image.Image:
    """A PIL image as viewers show it: rotated by EXIF, transparent parts on white."""
    if (image := ImageOps.exif_transpose(image)).has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def torchcodec() -> Callable:
    """torchcodec's `decode_jpeg`. Raises UserError if it cannot be imported."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"dataset.decoder=torchcodec needs torchcodec 0.16 or newer ({brief(error)});"
            " pip install torchcodec, or use dataset.decoder=pil"
        ) from None
    return decode_jpeg
