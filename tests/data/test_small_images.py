"""The files of CIFAR and Fashion-MNIST: what other readers read, what Python 3 wrote again, and what is refused and where."""

import os
import pickle
import struct

import numpy as np
import pytest
from fixtures import CIFAR10_CLASSES, encode_cifar_batch, encode_idx, write_cifar10, write_fashion_mnist
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file

from snn_repro.data.formats import FormatError
from snn_repro.data.sets.small_images import cifar_batch, idx


def test_torchvision_reads_the_fixtures(tmp_path):
    class Unchecked(datasets.CIFAR10):
        train_list = [[f"data_batch_{i}", None] for i in range(1, 6)]
        test_list = [["test_batch", None]]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": None}

    images, labels = write_cifar10(tmp_path, per_batch=7)["test_batch"]
    test = Unchecked(tmp_path, train=False)
    np.testing.assert_array_equal(test.data.transpose(0, 3, 1, 2), images)
    assert test.targets == labels.tolist() and test.classes == CIFAR10_CLASSES
    written = write_fashion_mnist(tmp_path, packed=False)
    theirs = read_image_file(str(tmp_path / "t10k-images-idx3-ubyte"))
    np.testing.assert_array_equal(theirs.numpy(), written["t10k-images-idx3-ubyte"])


VALUES = np.arange(24, dtype=np.uint8).reshape(4, 6)
GOOD, PACKED = encode_idx(VALUES), encode_idx(VALUES, packed=True)


@pytest.mark.parametrize(
    "data, offset, reason",
    [
        (b"", 0, "begins with nothing"),
        (b"\0\1" + GOOD[2:], 0, "begins with 00 01 08 02, not with an IDX header"),
        (encode_idx(VALUES / np.float32(24)), 0, "begins with 00 00 0d 02, not with an IDX header of bytes"),
        (GOOD[:9], 0, "not with an IDX header"),
        (GOOD[:-1], 12, r"an array of 24 bytes, \(4, 6\), but 23 are present"),
        (GOOD + b"\0", 12, "24 bytes.* but 25 are present"),
        (GOOD[:4] + bytes(8) + GOOD[12:], 12, "an array of 0 bytes"),
        (PACKED[:-9], 0, "cannot be unpacked"),
        (PACKED[:-6] + b"\0" + PACKED[-5:], 0, "cannot be unpacked"),  # the checksum
    ],
)
def test_idx_refuses(data, offset, reason):
    with pytest.raises(FormatError, match=f"^set/file, byte {offset}: .*{reason}"):
        idx(data, "set/file")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [str, str.encode])
@pytest.mark.parametrize("order", [np.ascontiguousarray, np.asfortranarray])
def test_cifar_pickled_again_by_python_3(protocol, key, order):
    data = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
    batch = {key("data"): order(data), key("labels"): [3, 0, 9], key("filenames"): ["a", "b", "c"]}
    images, labels = cifar_batch(pickle.dumps(batch, protocol), "batch")
    np.testing.assert_array_equal(images.reshape(3, 3072), data)
    assert images.dtype == np.uint8 and images.flags.c_contiguous and labels.tolist() == [3, 0, 9]


class Evil:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_malicious_pickle_is_never_run(tmp_path, protocol):
    target = tmp_path / "owned"
    for call in [
        (os.system, (f"touch {target}",)), (eval, (f"open({str(target)!r}, 'w')",)), (target.touch, ()),
        (getattr, ("text", "upper")),
    ]:  # fmt: skip
        with pytest.raises(FormatError, match="which CIFAR files do not need"):
            cifar_batch(pickle.dumps({"data": Evil(call), "labels": [1]}, protocol), "batch")
    assert not target.exists()


IMAGES = np.zeros((3, 3, 32, 32), np.uint8)
BATCH = encode_cifar_batch(IMAGES, np.array([1, 2, 3]))


@pytest.mark.parametrize(
    "data, reason",
    [
        (BATCH[:-1], "not a complete pickle of a dictionary"),
        (pickle.dumps([1, 2], 2), "not a complete pickle of a dictionary"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.", "not a complete pickle of a dictionary"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "'data'"),  # Python's unpickler in C would clear 32 GiB
        (BATCH.replace(b"labels", b"lobels"), "'labels' is not a list of 3 integers"),
        (encode_cifar_batch(IMAGES, np.array([1, 10, 3])), "integers from 0 to 9"),
        (encode_cifar_batch(IMAGES, np.array([1, 2])), "3 integers"),
        (pickle.dumps({"data": np.zeros((3, 3072), np.uint16), "labels": [1, 2, 3]}, 4), "'data' is not uint8"),
        (pickle.dumps({"data": np.zeros((3, 3071), np.uint8), "labels": [1, 2, 3]}, 4), "'data' is not uint8"),
    ],
)
def test_cifar_refuses(data, reason):
    with pytest.raises(FormatError, match=f"^batch, byte .*{reason}"):
        cifar_batch(data, "batch")
