"""Image sets: what was written is what arrives, by way of memory and by way of PIL, and what is wrong is told."""

import copy
import os
import shutil
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from fixtures import write_cifar10, write_cifar100, write_fashion_mnist
from torchvision.transforms import functional as TF

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data.batches import LoaderBatches, MemoryBatches, PilImages
from snn_repro.data.images import _resized, sha256, warn_if_incomplete
from snn_repro.data.sets import SETS
from snn_repro.data.sets.digits import load_digits
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
NO_AUGMENT = [
    "augment.crop_padding=0", "augment.flip=0", "augment.rrc_min_area=0", "augment.randaugment_ops=0",
    "augment.mixup=0", "augment.cutmix=0", "augment.label_smoothing=0", "recipe.repeated_augmentation=1",
]  # fmt: skip
loaded = cache(lambda *overrides: load_config([*overrides]))


def config(dataset, root, *options, cache_dir=None):
    cfg = copy.deepcopy(loaded(f"dataset={dataset}", *NO_AUGMENT, *options))
    cfg.data_dir, cfg.cache_dir = str(root) if root else None, cache_dir and str(cache_dir)
    return cfg


def build(dataset, root, *options, cache_dir=None):
    return build_data(config(dataset, root, *options, cache_dir=cache_dir))


def fingerprint(dataset, root, cache_dir=None):
    return SETS[dataset].fingerprint(config(dataset, root, cache_dir=cache_dir))


def everything(batches):
    parts = list(batches.epoch(0))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def denormalised(x, dataset, order="rgb"):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in SETS[dataset].statistics)
    x = (x * std + mean).round().to(torch.uint8)
    return x.flip(1) if order == "bgr" else x


WRITERS = {"cifar10": write_cifar10, "cifar100": write_cifar100, "fashion_mnist": write_fashion_mnist}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{set: (folder with its files, what was written)}, only read."""
    folders = {dataset: tmp_path_factory.mktemp(dataset) for dataset in WRITERS}
    return {dataset: (folder, WRITERS[dataset](folder)) for dataset, folder in folders.items()}


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
def test_cifar10_arrives_pixel_by_pixel(tmp_path, archive):
    batches, order = write_cifar10(tmp_path, archive=archive), "rgb" if archive else "bgr"
    data = build("cifar10", tmp_path, f"dataset.channel_order={order}")
    assert data.input_shape == (3, 32, 32) and data.static and data.num_classes == 10
    images, labels = batches.pop("test_batch")
    x, y = everything(data.test)
    assert np.array_equal(denormalised(x, "cifar10", order).numpy(), images) and y.tolist() == labels.tolist()
    x, y = everything(data.train)
    assert isinstance(data.train, MemoryBatches) and data.split.n_train == 100
    found = {im.tobytes(): int(k) for im, k in zip(denormalised(x, "cifar10", order).numpy(), y, strict=True)}
    assert found == {im.tobytes(): int(k) for part in batches.values() for im, k in zip(*part, strict=True)}


def test_cifar100_has_fine_labels(written):
    root, files = written["cifar100"]
    images, labels = files["test"]
    x, y = everything(build("cifar100", root, "dataset.channel_order=rgb").test)
    assert y.tolist() == labels.tolist() and np.array_equal(denormalised(x, "cifar100").numpy(), images)


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist(tmp_path, packed):
    files = write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed=packed)
    data = build("fashion_mnist", tmp_path)
    x, y = everything(data.test)
    assert data.input_shape == (1, 28, 28) and y.tolist() == files["t10k-labels-idx1-ubyte"].tolist()
    assert np.array_equal(denormalised(x, "fashion_mnist")[:, 0].numpy(), files["t10k-images-idx3-ubyte"])


@pytest.mark.skipif(not SETS["fashion_mnist"].installed.is_dir(), reason="Debian's dataset-fashion-mnist is absent")
def test_debians_fashion_mnist():
    data = build("fashion_mnist", None, "dataset.validation=0.1")
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (54_000, 6_000, 10_000)
    x, y = next(data.test.epoch(0))
    assert y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7] and x.std() == pytest.approx(1, abs=0.05)


def test_validation_subset_and_a_size_that_is_made_once(written):
    root, files = written["cifar10"]
    data = build("cifar10", root, "dataset.validation=0.2", "dataset.train_subset=50", "dataset.frame_size=24")
    assert (data.train.n_samples, data.val.n_samples, data.test.n_samples) == (40, 10, 20)
    assert data.split.id == "cifar10/official,subset=50,val=0.2,seed=0" and data.input_shape == (3, 24, 24)
    expected = TF.resize(torch.from_numpy(files["test_batch"][0]), [24, 24], antialias=True)
    assert torch.equal(denormalised(everything(data.test)[0], "cifar10").flip(1), expected)


def test_pil_path_repeats_whatever_the_number_of_workers(written):
    recipe = ["augment.rrc_min_area=0.875", "augment.flip=0.5", "augment.randaugment_ops=2", "augment.mixup=0.1"]
    recipe += ["augment.cutmix=1", "recipe.repeated_augmentation=3", "recipe.batch_size=32"]
    one, two = (build("cifar10", written["cifar10"][0], *recipe, f"dataset.workers={n}").train for n in (0, 2))
    assert isinstance(one, LoaderBatches)
    a, b = list(one.epoch(3)), list(two.epoch(3, 1))
    assert all(torch.equal(p, q) for x, y in zip(a[1:], b, strict=True) for p, q in zip(x, y, strict=True))
    assert a[0][0].shape == (32, 3, 32, 32) and a[0][1].ndim == 2


def test_pil_images_carry_the_same_pixels():
    pixels = PilImages(np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4), [5], TF.pil_to_tensor)
    assert pixels[0][0].flatten().tolist() == list(range(48)) and pixels[0][1] == 5


def test_missing_files_are_told(tmp_path):
    with pytest.raises(DataError, match=r"cifar10 was not found .*cifar-10-python.tar.gz.*cs.toronto.edu"):
        build("cifar10", tmp_path)
    with pytest.raises(UserError, match="data_dir is not set"):
        build("cifar100", None)
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(DataError, match="holds no data_batch_3; it should hold data_batch_1"):
        build("cifar10", tmp_path)
    write_cifar100(tmp_path, archive=True)
    os.truncate(tmp_path / "cifar-100-python.tar.gz", 5000)
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz cannot be unpacked"):
        build("cifar100", tmp_path)
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte.gz"):
        build("fashion_mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").mkdir()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte.gz cannot be read: Is a directory"):
        build("fashion_mnist", tmp_path)


@pytest.mark.parametrize("archive", [False, True])
def test_small_sets_are_found_in_any_case_and_from_the_inside(tmp_path, archive):
    write_cifar10(tmp_path / "a", archive=archive)
    (name,) = os.listdir(tmp_path / "a")
    for folder in ("CIFAR10", "Cifar-10"):
        (tmp_path / folder).mkdir()
        shutil.move(tmp_path / "a" / name, tmp_path / folder / name.upper())
        assert build("cifar10", tmp_path).split.n_test == 20
        shutil.move(tmp_path / folder / name.upper(), tmp_path / "a" / name)
    if not archive:
        assert build("cifar10", tmp_path / "a/cifar-10-batches-py").split.n_test == 20
    write_fashion_mnist(tmp_path / "f/fashionmnist/RAW", packed=archive)
    assert build("fashion_mnist", tmp_path / "f").split.n_test == 50


def test_an_incomplete_set_warns_in_one_line(written):
    with pytest.warns(UserWarning, match="^cifar10 was found with .00 of 50,000 training and ") as caught:
        build("cifar10", written["cifar10"][0])
    assert len([w for w in caught if "images, so results do not compare with" in str(w.message)]) == 1


def test_a_complete_set_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_incomplete(SETS["cifar10"], 50_000, 10_000)
        warn_if_incomplete(SETS["imagenet100"], 126_689, 5_000)
    with pytest.warns(UserWarning, match="imagenet1k was found with 49,999 of 50,000 test images, so"):
        warn_if_incomplete(SETS["imagenet1k"], 1_281_167, 49_999)


def test_a_fingerprint_knows_the_images_and_not_their_place_or_form(tmp_path, written):
    a, d = (fingerprint(dataset, written[dataset][0]) for dataset in ("cifar10", "fashion_mnist"))
    write_cifar10(tmp_path / "b/cifar10", archive=True)
    write_cifar10(tmp_path / "c", seed=1)
    assert a == fingerprint("cifar10", tmp_path / "b") != fingerprint("cifar10", tmp_path / "c")
    assert set(a) == {"files"} and len(a["files"]) == 64 and a != d
    write_fashion_mnist(tmp_path / "e/FashionMNIST/raw", packed=False)
    assert d == fingerprint("fashion_mnist", tmp_path / "e")
    labels = tmp_path / "e/FashionMNIST/raw/t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    labels.write_bytes(content)  # one test label, in a file of the same size
    os.utime(labels, ns=(1, 1))
    assert fingerprint("fashion_mnist", tmp_path / "e") != d
    assert sha256([load_digits()]).startswith("d3d28ac383ee")


def test_a_pixel_that_is_no_number_is_named():
    images = np.zeros((3, 1, 4, 4), np.float32)
    images[2, 0, 1, 1] = np.nan
    with pytest.raises(DataError, match="image 2 of 3 holds a pixel that is NaN or infinite"):
        _resized(images, None)
