"""Image files: listed, looked at, opened as pixels, and hashed. An image is the path of its file."""

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
from snn_repro.errors import DataError, UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112  # the EXIF tag of how a camera was held; 1 is upright


# ------------------------------------------------------------------ which there are


@reading()
def class_folders(folder: str | Path) -> dict[str, Path]:
    """{name: path} of the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return dict(sorted((e.name, Path(e.path)) for e in entries if e.name[0] != "." and e.is_dir()))


@reading()
def images_in(folder: str | Path) -> list[str]:
    """Paths below a folder of the images in it and further down, by folder and name; hidden ones are left out.

    Raises DataError without an image, and for a link that leads in a circle.
    """
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise error

    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        below[:] = [name for name in below if name[0] != "."]
        if (real := os.path.realpath(place)) in seen:
            raise DataError(
                f"{place} leads to {real}, which was read before: its images would count twice; remove the link"
            )
        seen.add(real)
        found += [(place, n) for n in names if n[0] != "." and n.lower().endswith(EXTENSIONS)]
    if not found:
        raise DataError(f"{folder} holds no image; they end in {', '.join(EXTENSIONS)}")
    return [os.path.join(place, name)[len(str(folder)) + 1 :] for place, name in sorted(found)]


@reading()
def file_hashes(images: Sequence[tuple[str, str]], whole: int = 0) -> tuple[str, str]:
    """SHA-256 of names and sizes of (name, path), and of contents: of all up to `whole` bytes in sum, else of 64 of them."""
    listing, contents, n = hashlib.sha256(), hashlib.sha256(), len(images)
    sizes = [os.stat(path).st_size for _, path in images]
    few = sum(sizes) > whole
    for at, (name, path) in enumerate(images):
        listing.update(f"{name} {sizes[at]}\n".encode("utf-8", "surrogateescape"))
        if not few or at * 64 // n != (at - 1) * 64 // n:
            contents.update(Path(path).read_bytes())
    return listing.hexdigest(), contents.hexdigest()


def look(images: Sequence[str], threads: int = 16) -> Iterator[tuple[int, int, str] | DataError]:
    """(width, height, PIL's mode) of each image with a readable header, a sane size and an end, or what is wrong with it."""
    with ThreadPoolExecutor(threads, "look") as pool:  # waiting for a file server, not for the processor
        for at in range(0, len(images), 64 * threads):  # a short queue, so that Ctrl-C is heard
            yield from pool.map(_look, images[at : at + 64 * threads])


def facts(images: Sequence[str]) -> list[tuple[int, int, str]]:
    """(width, height, PIL's mode) of each image. Raises DataError with the name of the first bad one."""
    seen: list = [*look(images)]
    if bad := next((fact for fact in seen if isinstance(fact, DataError)), None):
        raise bad
    return seen


def _look(image: str) -> tuple[int, int, str] | DataError:
    try:
        with _opened(image) as (stream, opened):
            marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(opened.format or "")
            at, length = stream.tell(), stream.seek(0, os.SEEK_END)
            stream.seek(max(0, length - 4096))
            if marker is None or marker not in stream.read():  # no end to be seen: it is decoded
                stream.seek(at)
                opened.load()
            return *opened.size, opened.mode
    except DataError as error:
        return error


# ------------------------------------------------------------------ pixels


@contextmanager
def _opened(image: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """A file and its PIL image, of which the header was read; what a damaged one makes PIL raise is a DataError."""
    try:
        with open(image, "rb") as stream:
            opened = Image.open(stream)
            yield stream, opened
    except (MemoryError, UserError):
        raise
    except Exception as error:  # nearly anything
        wrong = "cannot identify image file by its content" if isinstance(error, UnidentifiedImageError) else error
        reason = " ".join(str(wrong).split()) or type(error).__name__
        raise DataError(f"{image} cannot be read as an image: {reason}; get it again or remove it") from None


def decode(image: str, mode: str | None = "RGB", shown: bool = False) -> Image.Image:
    """The image in RGB, or another of PIL's modes (None: its own); shown: `as_shown`. Raises DataError with its name."""
    with _opened(image) as (_, opened):
        return (as_shown(opened) if shown else opened).convert(mode)


def decode_tensor(image: str, mode: str = "RGB", shown: bool = False) -> Tensor:
    """`decode` as uint8 [C, H, W]: JPEGs by torchcodec, which takes a colour image's own luma as its grey, others by PIL."""
    with _opened(image) as (stream, opened):
        turned = shown and opened.getexif().get(ORIENTATION, 1) != 1
        if opened.format == "JPEG" and opened.mode in ("RGB", "L") and not turned:
            stream.seek(0)
            return torchcodec()(stream.read(), mode={"RGB": "RGB", "L": "GRAY"}[mode])
        return vision.functional.pil_to_tensor((as_shown(opened) if shown else opened).convert(mode))


def as_shown(image: Image.Image) -> Image.Image:
    """A PIL image as viewers show it: turned as its EXIF data say, and on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def torchcodec() -> Callable:
    """torchcodec's `decode_jpeg`. Raises UserError where it cannot be imported."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"dataset.decoder=torchcodec needs torchcodec 0.16 or newer ({' '.join(str(error).split())[:150]});"
            " pip install torchcodec, or use dataset.decoder=pil"
        ) from None
    return decode_jpeg
