"""Image files: every form in which ImageNet is handed on gives the same images; what is wrong is one sentence; fingerprints."""

import io
import os
import shutil
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_cifar10, write_cifar100, write_fashion_mnist, write_imagenet
from PIL import Image
from scipy.io import savemat

from data.test_static import build, everything, imagenet
from snn_repro.config import load_config
from snn_repro.data import image_files, images
from snn_repro.data.sets import SETS, small_images
from snn_repro.data.sets import imagenet as imagenet_files
from snn_repro.data.sets.digits import load_digits
from snn_repro.errors import DataError, UserError

CLASSES = ("n01440764", "n01443537", "n01484850")
complete = pytest.mark.filterwarnings("ignore:.*do not compare")


# ------------------------------------------------------------------ incomplete sets (A2)


@pytest.mark.parametrize(
    "dataset, write, sentence",
    [
        ("cifar10", write_cifar10, r"cifar10 was found with 100 of 50,000 training and 20 of 10,000 test images"),
        ("cifar100", write_cifar100, r"cifar100 was found with 200 of 50,000 training and 100 of 10,000 test images"),
        ("fashion_mnist", write_fashion_mnist, r"fashion_mnist was found with 100 of 60,000 training and 50 of 10,000"),
        (
            "fashion_mnist_dvs",
            write_fashion_mnist,
            r"fashion_mnist_dvs was found with 100 of 60,000 training and 50 of",
        ),
        ("imagenet1k", write_imagenet, r"imagenet1k: .* has 3 of 1000 classes"),
    ],
)
def test_an_incomplete_set_warns_in_one_line(tmp_path, dataset, write, sentence):
    write(tmp_path / "data")
    with pytest.warns(UserWarning, match=sentence + ".*, so results do not compare with") as caught:
        build(dataset, tmp_path / "data", f"cache_dir={tmp_path / 'cache'}", "dataset.workers=0")
    (warning,) = [w for w in caught if "compare" in str(w.message)]
    assert "\n" not in str(warning.message)


def test_a_complete_set_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.warn_if_incomplete(SETS["cifar10"], 50_000, 10_000)
        images.warn_if_incomplete(SETS["imagenet100"], 126_689, 5_000)
    with pytest.warns(UserWarning, match="imagenet1k was found with 49,999 of 50,000 test images, so"):
        images.warn_if_incomplete(SETS["imagenet1k"], 1_281_167, 49_999)


# ------------------------------------------------------------------ fingerprints (A2)


def fingerprint(dataset, root, cache="cache"):
    return SETS[dataset].fingerprint(load_config([f"dataset={dataset}", f"data_dir={root}", f"cache_dir={cache}"]))


def test_a_fingerprint_knows_the_images_and_not_their_place_or_form(tmp_path):
    write_cifar10(tmp_path / "a")
    write_cifar10(tmp_path / "b/cifar10", archive=True)
    write_cifar10(tmp_path / "c", seed=1)
    a, b, c = (fingerprint("cifar10", tmp_path / x) for x in "abc")
    assert a == b != c and set(a) == {"files"} and len(a["files"]) == 64
    write_fashion_mnist(tmp_path / "d", packed=True)
    write_fashion_mnist(tmp_path / "e/FashionMNIST/raw", packed=False)
    d, e = (fingerprint("fashion_mnist", tmp_path / x) for x in "de")
    assert d == e == fingerprint("fashion_mnist_dvs", tmp_path / "d") and d != a
    labels = tmp_path / "e/FashionMNIST/raw/t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    labels.write_bytes(content)  # one test label, in a file of the same size
    os.utime(labels, ns=(1, 1))
    assert fingerprint("fashion_mnist", tmp_path / "e") != d
    digits = fingerprint("digits", "")
    assert digits == fingerprint("digits_dvs", tmp_path) and set(digits) == {"digits"}
    assert images.sha256([load_digits()]).startswith("d3d28ac383ee")


@complete
def test_a_fingerprint_and_the_data_are_read_once(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    read, count = small_images.cifar_batch, []
    monkeypatch.setattr(small_images, "cifar_batch", lambda *a, **k: count.append(0) or read(*a, **k))
    fingerprint("cifar10", tmp_path)
    fingerprint("cifar10", tmp_path)
    build("cifar10", tmp_path)
    assert len(count) == 6


@complete
def test_imagenets_fingerprint_sees_names_sizes_and_contents(tmp_path):
    write_imagenet(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b/imagenet")
    first = fingerprint("imagenet1k", tmp_path / "a")
    assert first == fingerprint("imagenet1k", tmp_path / "b") and set(first) == {"listing", "sample"}
    image = next((tmp_path / "a/train/n01443537").glob("*.JPEG"))
    content = bytearray(image.read_bytes())
    content[-10] ^= 1
    image.write_bytes(content)
    changed = fingerprint("imagenet1k", tmp_path / "a")
    assert changed["listing"] == first["listing"] and changed["sample"] != first["sample"]
    image.rename(image.with_name("x.JPEG"))
    assert fingerprint("imagenet1k", tmp_path / "a")["listing"] != first["listing"]


# ------------------------------------------------------------------ every form of ImageNet (D)


def add(archive: tarfile.TarFile, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return out.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def devkit(tree: Path) -> dict[str, bytes]:
    """The development kit's two files for the validation images of a tree; its numbers are not in the order of the names."""
    numbers = {"n01440764": 2, "n01443537": 3, "n01484850": 1}
    table = np.array([(k, w) for w, k in numbers.items()], dtype=[("ILSVRC2012_ID", "u1"), ("WNID", object)])
    out = io.BytesIO()
    savemat(out, {"synsets": table})
    by_image = sorted((p.name, numbers[p.parent.name]) for p in (tree / "val").rglob("*.JPEG"))
    lines = "".join(f"{k}\n" for _, k in by_image).encode()
    return {"ILSVRC2012_devkit_t12/data/meta.mat": out.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines}  # fmt: skip


def write(root: Path, files: dict[str, bytes]):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def in_form(form: str, tree: Path, root: Path):
    """Write the images of a tree of class folders again, as they are published or as somebody keeps them."""
    tars = {f"{c}.tar": tar_of(contents(tree / "train" / c)) for c in reversed(CLASSES)}
    flat = {name: content for c in CLASSES for name, content in contents(tree / "val" / c).items()}
    if form == "archives":
        kit = io.BytesIO()
        with tarfile.open(fileobj=kit, mode="w:gz") as archive:
            for name, content in devkit(tree).items():
                add(archive, name, content)
        write(root / "ilsvrc2012", {"ILSVRC2012_img_train.tar": tar_of(tars), "ILSVRC2012_img_val.tar": tar_of(flat),
                                    "ILSVRC2012_devkit_t12.tar.gz": kit.getvalue()})  # fmt: skip
    elif form == "half unpacked":
        write(
            root, {f"train/{n}": c for n, c in tars.items()} | {f"val/{n}": c for n, c in flat.items()} | devkit(tree)
        )
    elif form == "Kaggle's":
        write_imagenet(root, layout="kaggle")
    elif form == "Kaggle's, from the inside":
        write_imagenet(root, layout="kaggle")
        return root / "ILSVRC/Data/CLS-LOC"
    elif form == "other case":
        shutil.copytree(tree / "train", root / "IMAGENET/Train")
        shutil.copytree(tree / "val", root / "IMAGENET/VAL")
    return root


FORMS = ["archives", "half unpacked", "Kaggle's", "Kaggle's, from the inside", "other case"]


@complete
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_imagenet_is_the_same_data(tmp_path, form):
    """Images, labels, order, the hash of the test list and the fingerprint are those of a tree of class folders."""
    write_imagenet(tmp_path / "tree")
    root = in_form(form, tmp_path / "tree", tmp_path / "other")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))
    options = "dataset.frame_size=32", "dataset.validation=0.25", f"cache_dir={tmp_path / 'cache'}"
    one, two = (imagenet(p, *options) for p in (tmp_path / "tree", root))
    assert one.split == two.split
    for part in ("train", "val", "test"):
        a, b = (list(getattr(data, part).epoch(1)) for data in (one, two))
        assert len(a) == len(b) > 0
        assert all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
    assert fingerprint("imagenet1k", tmp_path / "tree") == fingerprint("imagenet1k", root, tmp_path / "cache")
    assert sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*")) == before


@complete
def test_archives_are_unpacked_once_and_into_cache_dir_alone(tmp_path, caplog):
    write_imagenet(tmp_path / "tree")
    root = in_form("archives", tmp_path / "tree", tmp_path / "other")
    with pytest.raises(UserError, match="cache_dir is not set: pass cache_dir=DIR, a folder that .*img_train.tar is"):
        imagenet(root)
    with caplog.at_level("INFO", "snn_repro"):
        for _ in range(2):
            imagenet_files._listed.cache_clear()
            imagenet(root, f"cache_dir={tmp_path / 'cache'}", dataset="imagenet100")
    assert caplog.text.count("unpacking") == 2


@complete
def test_imagenet100_opens_its_classes_alone(tmp_path, monkeypatch):
    write_imagenet(tmp_path / "tree", classes=("n01440764", "n01443537", "n99999999"))
    tars = {f"{p.name}.tar": tar_of(contents(p)) for p in (tmp_path / "tree/train").iterdir()}
    tars["n99999999.tar"] = b"\0" * 1536  # never looked at
    write(tmp_path / "tree", {"ILSVRC2012_img_train.tar": tar_of(tars)})
    shutil.rmtree(tmp_path / "tree/train")
    data = imagenet(tmp_path / "tree", f"cache_dir={tmp_path / 'cache'}", dataset="imagenet100")
    assert (data.split.n_train, data.split.n_test) == (8, 4)


@complete
@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda p: (p / "ILSVRC2012_devkit_t12.tar.gz").unlink(),
         "ILSVRC2012_img_val.tar has no class folders: .* put LOC_val_solution.csv or ILSVRC2012_devkit_t12.tar.gz beside it"),
        (lambda p: (p / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no"), "ILSVRC2012_devkit_t12.tar.gz cannot be read"),
        (lambda p: (p / "ILSVRC2012_img_val.tar").unlink(), "val is missing: .* or its two archives"),
        (lambda p: os.truncate(p / "ILSVRC2012_img_val.tar", 2000), "ILSVRC2012_img_val.tar is not a readable archive"),
        (lambda p: os.truncate(p / "ILSVRC2012_img_train.tar", 4000), "ILSVRC2012_img_train.tar is not a readable archive"),
        (lambda p: (p / "LOC_val_solution.csv").write_text("a,b\n1,2\n"), "LOC_val_solution.csv cannot be read .*must hold a table of ImageId"),
        (lambda p: (p / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx,n1 1\n"),
         "ILSVRC2012_val_00000001.JPEG has no class in .*LOC_val_solution.csv"),
    ],
)  # fmt: skip
def test_archives_that_do_not_do_are_one_sentence(tmp_path, spoil, sentence):
    write_imagenet(tmp_path / "tree")
    root = in_form("archives", tmp_path / "tree", tmp_path / "other")
    spoil(root / "ilsvrc2012")
    with pytest.raises(DataError, match=sentence) as error:
        imagenet(root, f"cache_dir={tmp_path / 'cache'}")
    assert "\n" not in str(error.value)


@complete
@pytest.mark.parametrize("archive", [False, True])
def test_small_sets_are_found_in_any_case_and_from_the_inside(tmp_path, archive):
    write_cifar10(tmp_path / "a", archive=archive)
    for folder in ("CIFAR10", "Cifar-10"):
        for p in (tmp_path / "a").iterdir():
            place = tmp_path / folder / p.name.upper()
            shutil.copytree(p, place) if p.is_dir() else (place.parent.mkdir(), shutil.copy(p, place))
        assert build("cifar10", tmp_path).split.n_test == 20
        shutil.rmtree(tmp_path / folder)
    if not archive:
        assert build("cifar10", tmp_path / "a/cifar-10-batches-py").split.n_test == 20
    write_fashion_mnist(tmp_path / "f/fashionmnist/RAW", packed=archive)
    assert build("fashion_mnist", tmp_path / "f").split.n_test == 50


# ------------------------------------------------------------------ hostile and damaged files (C)


def bomb(image: bytes, size: int) -> bytes:
    """A JPEG whose header promises size x size pixels."""
    at = image.index(b"\xff\xc0") + 5
    return image[:at] + struct.pack(">HH", size, size) + image[at + 4 :]


@complete
@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda p: (p / "train/n01443537/loop").symlink_to("."), "n01443537/loop is the same folder as .*n01443537, .* link"),
        (lambda p: (p / "train/n01443537/loop").symlink_to(".."), "is the same folder as .*train"),
        (lambda p: (p / "val/n01443537/up").symlink_to(p), "n01443537/up/.* is the same folder as .*val"),
        (lambda p: (p / "train/n01443537/x").symlink_to("../n01440764"), "is the same folder as .*n01440764"),
        (lambda p: [f.unlink() for f in (p / "train/n01443537").iterdir()], "n01443537 holds no image"),
    ],
)  # fmt: skip
def test_links_that_loop_and_pipes_are_one_sentence(tmp_path, spoil, sentence):
    write_imagenet(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=sentence) as error:
        imagenet(tmp_path)
    assert "\n" not in str(error.value)


@complete
def test_links_that_do_not_loop_are_followed(tmp_path):
    write_imagenet(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for part in ("train", "val"):
        (tmp_path / "b" / part).mkdir()
        for c in CLASSES:
            (tmp_path / "b" / part / c).symlink_to(tmp_path / "a" / part / c)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/train").symlink_to(tmp_path / "a/train")
    (tmp_path / "c/val").symlink_to(tmp_path / "a/val")
    a, b, c = (imagenet(tmp_path / x).split for x in "abc")
    assert a == b == c and a.n_train == 12


@complete
def test_the_order_of_nested_folders_is_that_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    write_imagenet(tmp_path)
    for i, sub in enumerate(("b", "b/c", "b-d", ".hidden", "a")):
        (tmp_path / "train/n01443537" / sub).mkdir()
        shutil.copy(next((tmp_path / "train/n01440764").iterdir()), tmp_path / "train/n01443537" / sub / f"{9 - i}.png")
    found, _ = SETS["imagenet1k"].parts(load_config(["dataset=imagenet1k", f"data_dir={tmp_path}"]))
    expected = [path for path, _ in ImageFolder(str(tmp_path / "train")).samples if ".hidden" not in path]
    assert found.images == expected and len(expected) == 16


@complete
@pytest.mark.parametrize("part", ["val", "train"])
@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda b: b[: len(b) // 2], "truncated"),
        (lambda b: b"", "cannot identify image file"),
        (lambda b: bytes(len(b)), "cannot identify image file"),
        (lambda b: bomb(b, 20_000), "400000000 pixels|20000 x 20000 pixels"),
        (lambda b: bomb(b, 9_200), "9200 x 9200 pixels, more than the 80,000,000 that are read"),
    ],
    ids=["cut", "empty", "zeros", "bomb", "small bomb"],
)
def test_a_bad_image_is_found_before_the_first_epoch(tmp_path, damage, sentence, part):
    """In the test and the validation part already when the data are built; a training image where it is read."""
    written = write_imagenet(tmp_path)
    names = [n for n in written if n.startswith("train/n01443537") and n.endswith("_4.JPEG")] if part == "train" else []
    name = (names or [n for n in written if n.startswith("val/n01443537")])[0]
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    expected = f"{Path(name).name} cannot be read as an image: .*({sentence})"
    if part == "val":
        with pytest.raises(DataError, match=expected) as error:
            imagenet(tmp_path)
    else:
        with pytest.raises(DataError, match=expected) as error:
            everything(imagenet(tmp_path, "augment.rrc_min_area=0.5").train)
        found, _ = SETS["imagenet1k"].parts(load_config(["dataset=imagenet1k", f"data_dir={tmp_path}"]))
        bad = [f for f in found.images if f.endswith(name)]
        with pytest.raises(DataError, match=expected):
            image_files.facts(bad)  # as it would be, were it held out for validation
    assert "\n" not in str(error.value)


def test_the_check_reads_headers_alone(tmp_path, monkeypatch):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(out, "JPEG", quality=95)
    (tmp_path / "whole.JPEG").write_bytes(out.getvalue())
    (tmp_path / "trailing.JPEG").write_bytes(out.getvalue() + bytes(9000))  # whole, its end marker is not at its end
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    image_files.facts([str(tmp_path / "whole.JPEG")] * 200)
    assert not decoded
    monkeypatch.undo()
    image_files.facts([str(tmp_path / "trailing.JPEG")])
