"""CIFAR-10, CIFAR-100 (Krizhevsky 2009) and Fashion-MNIST (Xiao et al. 2017), official splits.

CIFAR's files are Python pickles, read without importing or calling anything; Fashion-MNIST's are IDX, the format of
MNIST. A truncated file is an error, and sizes in a file are not trusted until the bytes are present.
"""

import gzip
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from snn_repro.data.dataset import register
from snn_repro.data.formats import FormatError
from snn_repro.data.images import ImageSet
from snn_repro.errors import DataError, brief

FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
IDX = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


@register("cifar10")
class CIFAR10(ImageSet):
    """CIFAR-10."""

    shape, num_classes = (3, 32, 32), 10
    label_names = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    samples = 50_000, 10_000
    statistics = [125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255]
    folders = ("cifar10", "cifar-10")
    files = (("cifar-10-batches-py", "cifar-10-python.tar.gz"),)
    expected = "cifar-10-python.tar.gz, or the folder cifar-10-batches-py that it unpacks to"
    published = "https://www.cs.toronto.edu/~kriz/cifar.html"
    batches, key = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels"

    def read(self, path):
        held = {n: cifar_batch(data, f"{path}/{n}", self.key, self.num_classes) for n, data in self.contents(path)}
        if missing := [name for name in self.batches if name not in held]:
            raise DataError(f"{path} holds no {', '.join(missing)}; it should hold {', '.join(self.batches)}")
        *train, test = (held[name] for name in self.batches)
        return tuple(np.concatenate(parts) for parts in zip(*train, strict=True)), test

    def contents(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of the batch files in a folder or archive."""
        if path.is_dir():
            yield from ((name, (path / name).read_bytes()) for name in self.batches if (path / name).exists())
            return
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if (name := PurePosixPath(member.name).name) in self.batches and member.isfile():
                        yield name, archive.extractfile(member).read()  # type: ignore[union-attr]  # a file has one
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked ({error}); get it again") from None


@register("cifar100")
class CIFAR100(CIFAR10):
    """CIFAR-100, with its fine labels."""

    num_classes, label_names = 100, tuple(FINE.split())
    statistics = [129.304, 124.070, 112.434], [68.170, 65.392, 70.418]
    folders = ("cifar100", "cifar-100")
    files = (("cifar-100-python", "cifar-100-python.tar.gz"),)
    expected = "cifar-100-python.tar.gz, or the folder cifar-100-python that it unpacks to"
    batches, key = ["train", "test"], "fine_labels"


@register("fashion_mnist")
class FashionMNIST(ImageSet):
    """Fashion-MNIST, from data_dir or from Debian's package."""

    shape, num_classes = (1, 28, 28), 10
    label_names = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
    samples = 60_000, 10_000
    statistics = [72.940], [90.021]
    folders = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST")
    files = tuple((f"{name}.gz", name) for name in IDX)
    installed = Path("/usr/share/datasets/fashion-mnist")
    expected = f"{IDX[0]}.gz and its three companions"
    published = "https://github.com/zalandoresearch/fashion-mnist (Debian, Ubuntu: apt install dataset-fashion-mnist)"

    def read(self, *files):
        x_train, y_train, x_test, y_test = (idx(file.read_bytes(), str(file)) for file in files)
        return (x_train[:, None], y_train), (x_test[:, None], y_test)


def idx(data: bytes, name: str) -> np.ndarray:
    """A uint8 array in IDX, plain or gzipped. Raises FormatError.

    Two zero bytes, the type code 8, the number of dimensions, these as big-endian 32-bit integers, then the values.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError(name, 0, f"cannot be unpacked ({error}): the file is damaged") from None
    if data[:3] != b"\0\0\x08" or not 1 <= (n := sum(data[3:4])) <= 8 or len(data) < 4 + 4 * n:
        raise FormatError(name, 0, f"it begins with {data[:4].hex(' ') or 'nothing'}, not with an IDX header of bytes")
    shape, start = struct.unpack_from(f">{n}I", data, 4), 4 + 4 * n
    if not prod(shape) or len(data) - start != prod(shape):
        raise FormatError(name, start, f"an array of {prod(shape)} bytes, {shape}, but {len(data) - start} are present")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]  # the one in Python: a damaged index takes no memory
    """Unpickles dictionaries, lists, numbers, strings and arrays; imports nothing that the file names."""

    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8}  # type: ignore[attr-defined]
    meanings = {
        "numpy ndarray": None,
        "numpy dtype": lambda code, *_: np.dtype(code, copy=True),
        "numpy.core.multiarray _reconstruct": lambda *_: np.empty(0, np.uint8),  # an array's state brings all of it
        "numpy.core.numeric _frombuffer": lambda raw, kind, shape, order: np.frombuffer(raw, kind).reshape(
            shape, order=order
        ),
        "_codecs encode": lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes into a protocol 2 pickle
    }

    def find_class(self, module: str, name: str):
        if (known := f"{module.replace('numpy._core', 'numpy.core')} {name}") not in self.meanings:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR files do not need")
        return self.meanings[known]


def cifar_batch(data: bytes, name: str, key: str = "labels", classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR pickle: images uint8 [N, 3, 32, 32] (RGB planes), labels int64 [N]. Raises FormatError."""
    stream = io.BytesIO(data)
    try:
        batch = _Unpickler(stream, encoding="bytes").load()
        batch = {k.decode() if isinstance(k, bytes) else k: value for k, value in batch.items()}
    except Exception as error:  # a damaged pickle can fail in any way that its operations can
        raise FormatError(
            name, stream.tell(), f"it is not a complete pickle of a dictionary ({brief(error)})"
        ) from None
    images: Any = batch.get("data")
    labels: Any = batch.get(key)
    if getattr(images, "dtype", None) != np.uint8 or images.shape[1:] != (3072,) or not len(images):
        raise FormatError(name, 0, "'data' is not uint8 with 3,072 bytes per image; is the file from another data set?")
    whole = isinstance(labels, list) and len(labels) == len(images)
    if not whole or any(type(label) is not int or not 0 <= label < classes for label in labels):
        raise FormatError(name, 0, f"'{key}' is not a list of {len(images)} integers from 0 to {classes - 1}")
    return np.ascontiguousarray(images).reshape(-1, 3, 32, 32), np.array(labels, np.int64)
