"""Image sets: what was written is what arrives, by way of memory and by way of PIL, and what is wrong is told."""

import numpy as np
import pytest
import torch
from fixtures import write_cifar10, write_cifar100, write_fashion_mnist, write_imagenet
from PIL import Image
from torchvision.transforms import functional as TF

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data.batches import LoaderBatches, MemoryBatches, PilImages
from snn_repro.data.sets import SETS
from snn_repro.data.sets.imagenet import imagenet100_wnids
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
NO_AUGMENT = [
    "augment.crop_padding=0", "augment.flip=0", "augment.rrc_min_area=0", "augment.randaugment_ops=0",
    "augment.mixup=0", "augment.cutmix=0", "augment.label_smoothing=0", "recipe.repeated_augmentation=1",
]  # fmt: skip


def build(dataset, root, *options):
    return build_data(load_config([f"dataset={dataset}", f"data_dir={root}", *NO_AUGMENT, *options]))


def everything(batches):
    parts = list(batches.epoch(0))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def denormalised(x, dataset, order="rgb"):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in SETS[dataset].statistics)
    x = (x * std + mean).round().to(torch.uint8)
    return x.flip(1) if order == "bgr" else x


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_cifar10_arrives_pixel_by_pixel(tmp_path, archive, order):
    written = write_cifar10(tmp_path, archive=archive)
    data = build("cifar10", tmp_path, f"dataset.channel_order={order}")
    assert data.input_shape == (3, 32, 32) and data.static and data.num_classes == 10
    images, labels = written["test_batch"]
    x, y = everything(data.test)
    assert np.array_equal(denormalised(x, "cifar10", order).numpy(), images) and y.tolist() == labels.tolist()
    x, y = everything(data.train)
    assert isinstance(data.train, MemoryBatches) and data.split.n_train == 100
    found = {im.tobytes(): int(k) for im, k in zip(denormalised(x, "cifar10", order).numpy(), y, strict=True)}
    wanted = {
        im.tobytes(): int(k)
        for name, part in written.items()
        if name != "test_batch"
        for im, k in zip(*part, strict=True)
    }
    assert found == wanted


def test_cifar100_has_fine_labels(tmp_path):
    written = write_cifar100(tmp_path)
    data = build("cifar100", tmp_path)
    assert everything(data.test)[1].tolist() == written["test"][1].tolist() and data.num_classes == 100


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist(tmp_path, packed):
    written = write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed=packed)
    data = build("fashion_mnist", tmp_path)
    x, y = everything(data.test)
    assert data.input_shape == (1, 28, 28)
    assert np.array_equal(denormalised(x, "fashion_mnist")[:, 0].numpy(), written["t10k-images-idx3-ubyte"])
    assert y.tolist() == written["t10k-labels-idx1-ubyte"].tolist()


@pytest.mark.skipif(not SETS["fashion_mnist"].installed.is_dir(), reason="Debian's dataset-fashion-mnist is absent")
def test_debians_fashion_mnist():
    data = build_data(load_config(["dataset=fashion_mnist", "dataset.validation=0.1"]))
    assert (data.split.n_train, data.split.n_val, data.split.n_test) == (54_000, 6_000, 10_000)
    x, y = next(data.test.epoch(0))
    assert y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert x.std() == pytest.approx(1, abs=0.05)


def test_validation_and_subset(tmp_path):
    write_cifar10(tmp_path)
    data = build("cifar10", tmp_path, "dataset.validation=0.2", "dataset.train_subset=50")
    assert (data.train.n_samples, data.val.n_samples, data.test.n_samples) == (40, 10, 20)
    assert data.split.id == "cifar10/official,subset=50,val=0.2,seed=0"


def test_frame_size_resizes_once(tmp_path):
    written = write_cifar10(tmp_path)
    data = build("cifar10", tmp_path, "dataset.frame_size=24")
    x, _ = everything(data.test)
    expected = TF.resize(torch.from_numpy(written["test_batch"][0]), [24, 24], antialias=True)
    assert data.input_shape == (3, 24, 24) and torch.equal(denormalised(x, "cifar10").flip(1), expected)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "fashion_mnist"])
def test_pil_path_repeats_whatever_the_number_of_workers(tmp_path, dataset):
    write = {"cifar10": write_cifar10, "cifar100": write_cifar100, "fashion_mnist": write_fashion_mnist}[dataset]
    write(tmp_path)
    plain = build(dataset, tmp_path)
    size = plain.input_shape[-1]
    whole = build(dataset, tmp_path, "augment.randaugment_ops=1", "augment.randaugment_std=0")
    assert isinstance(whole.train, LoaderBatches) and isinstance(plain.train, MemoryBatches)
    recipe = ["augment.rrc_min_area=0.875", "augment.flip=0.5", "augment.randaugment_ops=2"]
    recipe += [
        "augment.mixup=0.1",
        "augment.cutmix=1",
        "recipe.repeated_augmentation=3",
        "recipe.batch_size=32",
    ]
    one, two = (build(dataset, tmp_path, *recipe, f"dataset.workers={n}").train for n in (0, 2))
    a, b = list(one.epoch(3)), list(two.epoch(3, 1))
    assert all(torch.equal(p, q) for x, y in zip(a[1:], b, strict=True) for p, q in zip(x, y, strict=True))
    assert a[0][0].shape == (32, plain.input_shape[0], size, size) and a[0][1].ndim == 2
    # the PIL images carry the same pixels: draw by draw, without any augmentation
    pixels = PilImages(np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4), [5], TF.pil_to_tensor)
    assert pixels[0][0].flatten().tolist() == list(range(48)) and pixels[0][1] == 5


def test_missing_files_are_told(tmp_path):
    with pytest.raises(DataError, match=r"cifar10 was not found .*cifar-10-python.tar.gz.*cs.toronto.edu"):
        build("cifar10", tmp_path)
    with pytest.raises(UserError, match="data_dir is not set"):
        build_data(load_config(["dataset=cifar100"]))
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(DataError, match="holds no data_batch_3"):
        build("cifar10", tmp_path)
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="lacks train-labels-idx1-ubyte.gz"):
        build("fashion_mnist", tmp_path)


# ------------------------------------------------------------------ ImageNet


def imagenet(root, *options, dataset="imagenet1k"):
    return build(dataset, root, "recipe.batch_size=4", "dataset.workers=0", *options)


def test_imagenet_test_images_and_labels(tmp_path):
    written = write_imagenet(tmp_path, size=(300, 260))
    data = imagenet(tmp_path, "augment.test_resize=236", "augment.interpolation=bicubic")
    x, y = everything(data.test)
    names = sorted(n for n in written if n.startswith("val/"))
    assert data.input_shape == (3, 224, 224) and y.tolist() == [written[n][1] for n in names]
    for name, image in zip(names, denormalised(x, "imagenet1k"), strict=True):
        bicubic = TF.InterpolationMode.BICUBIC
        pil = TF.center_crop(TF.resize(Image.fromarray(written[name][0]), 236, bicubic), 224)
        assert torch.equal(image, TF.pil_to_tensor(pil))
    grey_cmyk_png, _ = everything(data.train)
    assert grey_cmyk_png.shape == (12, 3, 224, 224)


def test_imagenet_recipe_is_the_same_with_workers(tmp_path):
    write_imagenet(tmp_path)
    recipe = [
        "augment.rrc_min_area=0.08",
        "augment.flip=0.5",
        "augment.randaugment_ops=2",
        "dataset.frame_size=32",
    ]
    one, two = (imagenet(tmp_path, *recipe, f"dataset.workers={n}") for n in (0, 2))
    assert one.input_shape == (3, 32, 32)
    assert torch.equal(everything(one.train)[0], everything(two.train)[0])


def test_imagenet100_takes_its_classes_from_a_larger_tree(tmp_path):
    wnids, digest = imagenet100_wnids()
    assert len(wnids) == 100 and wnids == sorted(wnids)
    classes = (wnids[0], wnids[7], "n02123045")
    write_imagenet(tmp_path / "imagenet", classes)
    data = imagenet(tmp_path, "dataset.validation=0.3", dataset="imagenet100")
    assert everything(data.test)[1].tolist() == [0, 0, 7, 7]  # the place in the list of 100
    assert data.split.id.startswith(f"imagenet100/official,wnids={digest[:12]},val=0.3")
    assert (data.split.n_train, data.split.n_val) == (6, 2) and everything(data.val)[1].tolist() == [0, 7]


def test_imagenet_trees_that_do_not_fit(tmp_path):
    write_imagenet(tmp_path / "a", layout="kaggle")
    (tmp_path / "a/LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match=r"val has no class folders: it is flat.*LOC_val_solution.csv"):
        imagenet(tmp_path / "a")
    write_imagenet(tmp_path / "b")
    (tmp_path / "b/val/n01443537").rename(tmp_path / "b/val/n02123045")
    with pytest.raises(DataError, match="class n01443537 is in train/ but not in val/ .2 classes differ"):
        imagenet(tmp_path / "b")
    with pytest.raises(DataError, match="imagenet1k was not found .*image-net.org"):
        imagenet(tmp_path / "c")
    write_imagenet(tmp_path / "d")
    broken = next((tmp_path / "d/val").rglob("*.JPEG"))
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{broken.name} cannot be read as an image"):
        everything(imagenet(tmp_path / "d").test)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "fashion_mnist", "imagenet100", "imagenet1k"])
def test_one_epoch_of_the_data_sets_own_recipe(tmp_path, dataset):
    from snn_repro.train import run

    writers = {"cifar10": write_cifar10, "cifar100": write_cifar100, "fashion_mnist": write_fashion_mnist}
    writers.get(dataset, write_imagenet)(tmp_path / "data")
    options = [f"dataset={dataset}", f"data_dir={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}"]
    options += ["debug=smoke", "debug.max_steps=0", "debug.max_eval_batches=0", "logger.mode=disabled"]
    result = run(load_config([*options, "recipe.epochs=1", "dataset.workers=0"]))
    assert result.epochs == 1 and 0 <= result.acc_last <= 100
