"""ImageNet: every form in which it is handed on gives the same images; its listing; what is wrong is one sentence."""

import gzip
import io
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_imagenet
from fixtures.event_sets import _folder, _tar
from PIL import Image
from scipy.io import savemat
from scripts_of_ours import script
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF

from data.test_static import build, config, denormalised, everything, fingerprint
from snn_repro.data import image_files
from snn_repro.data.sets import SETS, imagenet
from snn_repro.errors import DataError, UserError

CLASSES = ("n01440764", "n01443537", "n01484850")
IMAGENET = SETS["imagenet1k"]
pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")


def built(root, *options, dataset="imagenet1k", cache_dir=None):
    return build(dataset, root, "recipe.batch_size=4", "dataset.workers=0", *options, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(a folder of class folders, what was written), only read."""
    root = tmp_path_factory.mktemp("tree")
    return root, write_imagenet(root)


@pytest.fixture(scope="module")
def archives(written, tmp_path_factory):
    """As published, only read."""
    return in_form("archives", written[0], tmp_path_factory.mktemp("archives") / "raw")


@pytest.fixture
def tree(written, tmp_path):
    """Class folders to be spoiled."""
    return Path(shutil.copytree(written[0], tmp_path / "raw"))


def first(tree: Path, pattern: str) -> Path:
    return min(tree.glob(pattern))


# ------------------------------------------------------------------ images, labels, parts


def test_test_images_and_labels(tmp_path):
    files = write_imagenet(tmp_path, size=(300, 260))
    data = built(tmp_path, "augment.test_resize=236", "augment.interpolation=bicubic")
    x, y = everything(data.test)
    names = sorted(n for n in files if n.startswith("val/"))
    assert data.input_shape == (3, 224, 224) and y.tolist() == [files[n][1] for n in names]
    for name, image in zip(names, denormalised(x, "imagenet1k"), strict=True):
        pil = TF.resize(Image.fromarray(files[name][0]), 236, TF.InterpolationMode.BICUBIC)
        assert torch.equal(image, TF.pil_to_tensor(TF.center_crop(pil, 224)))
    grey_cmyk_png, _ = everything(data.train)
    assert grey_cmyk_png.shape == (12, 3, 224, 224)


def test_imagenet100_takes_its_classes_from_a_larger_tree(tmp_path):
    wnids = SETS["imagenet100"].label_names
    assert len(wnids) == 100 and list(wnids) == sorted(wnids)
    write_imagenet(tmp_path / "imagenet", (wnids[0], wnids[7], "n02123045"))
    shutil.rmtree(tmp_path / "imagenet/train/n02123045")  # never looked at
    (tmp_path / "imagenet/train/n02123045").mkdir()
    data = built(tmp_path, "dataset.validation=0.3", dataset="imagenet100")
    assert everything(data.test)[1].tolist() == [0, 0, 7, 7]  # the place in the list of 100
    assert data.split.id.startswith("imagenet100/official,wnids=86bc5c0b9217,val=0.3")
    assert (data.split.n_train, data.split.n_val) == (6, 2) and everything(data.val)[1].tolist() == [0, 7]


def test_the_order_of_nested_folders_is_that_of_torchvision(tree):
    for i, sub in enumerate(("b", "b/c", "b-d", ".hidden", "a")):
        (tree / "train/n01443537" / sub).mkdir()
        shutil.copy(first(tree, "train/n01440764/*"), tree / "train/n01443537" / sub / f"{9 - i}.png")
    found, _ = IMAGENET.parts(config("imagenet1k", tree))
    expected = [path for path, _ in ImageFolder(str(tree / "train")).samples if ".hidden" not in path]
    assert found.images == expected and len(expected) == 16


def test_a_fingerprint_sees_names_sizes_and_contents(written, tree):
    whole = fingerprint("imagenet1k", written[0])
    assert whole == fingerprint("imagenet1k", tree) and set(whole) == {"listing", "sample"}
    image = first(tree, "train/n01443537/*")
    content = bytearray(image.read_bytes())
    content[-10] ^= 1
    image.write_bytes(content)
    changed = fingerprint("imagenet1k", tree)
    assert changed["listing"] == whole["listing"] and changed["sample"] != whole["sample"]
    image.rename(image.with_name("x.JPEG"))
    assert fingerprint("imagenet1k", tree)["listing"] != whole["listing"]


# ------------------------------------------------------------------ every form of ImageNet


def packed(root: Path, files: dict[str, bytes]) -> bytes:
    """A plain tar, made in `root`."""
    _tar(root / "a.tar.gz", files)
    return gzip.decompress((root / "a.tar.gz").read_bytes())


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


def in_form(form: str, tree: Path, root: Path):
    """Write the images of a tree of class folders again, as they are published or as somebody keeps them."""
    tars = {f"{c}.tar": packed(root.parent, contents(tree / "train" / c)) for c in reversed(CLASSES)}
    flat = {name: content for c in CLASSES for name, content in contents(tree / "val" / c).items()}
    if form == "archives":
        _tar(root / "ilsvrc2012/ILSVRC2012_devkit_t12.tar.gz", devkit(tree))
        for part, files in (("train", tars), ("val", flat)):
            (root / f"ilsvrc2012/ILSVRC2012_img_{part}.tar").write_bytes(packed(root.parent, files))
    elif form == "half unpacked":
        _folder(root, devkit(tree))
        _folder(root / "train", tars)
        _folder(root / "val", flat)
    elif form == "Kaggle's":
        write_imagenet(root, layout="kaggle")
        return root / "ILSVRC/Data/CLS-LOC"
    elif form == "other case and links":
        for part in ("TRAIN", "val"):
            (root / "IMAGENET" / part).mkdir(parents=True)
            for c in CLASSES:
                (root / "IMAGENET" / part / c).symlink_to(tree / part.lower() / c)
    return root


@pytest.mark.parametrize("form", ["archives", "half unpacked", "Kaggle's", "other case and links"])
def test_every_form_is_the_same_data(written, tmp_path, form, caplog):
    """Images, labels, order, the hash of the test list and the fingerprint are those of a tree of class folders."""
    root = in_form(form, written[0], tmp_path / "other")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))
    options, cache = ("dataset.frame_size=32", "dataset.validation=0.25"), tmp_path / "cache"
    with caplog.at_level("INFO", "snn_repro"):
        one, two, _ = (built(p, *options, cache_dir=cache) for p in (written[0], root, root))
    assert caplog.text.count("unpacking") == {"archives": 3, "half unpacked": 3}.get(form, 0)  # each once
    assert one.split == two.split
    for part in ("train", "val", "test"):
        a, b = (everything(getattr(data, part)) for data in (one, two))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert fingerprint("imagenet1k", written[0]) == fingerprint("imagenet1k", root, cache)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*")) == before


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda p: (p / "ILSVRC2012_devkit_t12.tar.gz").unlink(),
         "ILSVRC2012_img_val.tar has no class folders: .* put LOC_val_solution.csv or ILSVRC2012_devkit_t12.tar.gz beside it"),
        (lambda p: (p / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no"), "t12.tar.gz is not a readable archive"),
        (lambda p: (p / "ILSVRC2012_img_val.tar").unlink(), "val is missing: .* or its two archives"),
        (lambda p: os.truncate(p / "ILSVRC2012_img_val.tar", 2000), "ILSVRC2012_img_val.tar is not a readable archive"),
        (lambda p: os.truncate(p / "ILSVRC2012_img_train.tar", 4000), "ILSVRC2012_img_train.tar is not a readable archive"),
        (lambda p: (p / "LOC_val_solution.csv").write_text("a,b\n1,2\n"), "LOC_val_solution.csv cannot be read .*a table of I"),
        (lambda p: (p / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx,n1 1\n"),
         "ILSVRC2012_val_00000001.JPEG has no class in .*LOC_val_solution.csv"),
    ],
)  # fmt: skip
def test_archives_that_do_not_do_are_one_sentence(archives, tmp_path, spoil, sentence):
    root = Path(shutil.copytree(archives, tmp_path / "other"))
    spoil(root / "ilsvrc2012")
    with pytest.raises(DataError, match=sentence) as error:
        IMAGENET.parts(config("imagenet1k", root, cache_dir=tmp_path / "cache"))
    assert "\n" not in str(error.value)


def test_archives_need_a_cache_dir(archives):
    with pytest.raises(UserError, match="cache_dir is not set: pass cache_dir=DIR, a folder that .*img_train.tar is"):
        built(archives)


# ------------------------------------------------------------------ hostile and damaged files


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda p: (p / "train/n01443537/loop").symlink_to("."), "n01443537/loop leads to .*n01443537, which was read before"),
        (lambda p: (p / "val/n01443537/up").symlink_to(p), "up/val/n01443537 leads to .*which was read before"),
        (lambda p: [f.unlink() for f in (p / "train/n01443537").iterdir()], "n01443537 holds no image"),
        (lambda p: (p / "val/n01443537").rename(p / "val/n02123045"), "n01443537 is in train but not in val .2 classes differ"),
        (lambda p: shutil.rmtree(p / "train"), "imagenet1k was not found .*image-net.org"),
    ],
)  # fmt: skip
def test_a_tree_that_does_not_do_is_one_sentence(tree, spoil, sentence):
    spoil(tree)
    with pytest.raises(DataError, match=sentence) as error:
        IMAGENET.parts(config("imagenet1k", tree))
    assert "\n" not in str(error.value)


def test_an_incomplete_set_warns_in_one_line(written):
    with pytest.warns(UserWarning, match="^imagenet1k: .* has 3 of 1000 classes, so results do not compare"):
        IMAGENET.parts(config("imagenet1k", written[0]))


def bomb(image: bytes, size: int) -> bytes:
    """A JPEG whose header promises size x size pixels."""
    at = image.index(b"\xff\xc0") + 5
    return image[:at] + struct.pack(">HH", size, size) + image[at + 4 :]


@pytest.mark.parametrize(
    "damage, sentence, part",
    [
        (lambda b: b[: len(b) // 2], "truncated", "train"),
        (lambda b: b[: len(b) // 2], "truncated", "val"),
        (lambda b: b"", "cannot identify image file", "val"),
        (lambda b: bomb(b, 20_000), "400000000 pixels", "val"),
    ],
    ids=["cut", "cut test", "empty", "bomb"],
)
def test_a_bad_image_is_found_before_the_first_epoch(tree, damage, sentence, part):
    """In the test and the validation part already when the data are built; a training image where it is read."""
    image = first(tree, "val/n01443537/*" if part == "val" else "train/n01443537/*_4.JPEG")
    image.write_bytes(damage(image.read_bytes()))
    expected = f"{image.name} cannot be read as an image: .*({sentence}).*; get it again or remove it$"
    with pytest.raises(DataError, match=expected) as error:
        data = built(tree, "augment.rrc_min_area=0.5")
        assert part == "train"
        everything(data.train)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ the listing


@pytest.fixture
def cfg(tree):
    return config("imagenet1k", tree, "dataset.frame_size=32", cache_dir=tree.parent / "cache")


def make(cfg, say=lambda line: None):
    return IMAGENET.prepare(cfg, say=say)


def test_a_run_reads_the_listing_and_lists_and_checks_nothing(cfg, monkeypatch):
    assert not IMAGENET.checked_before(cfg)
    there = IMAGENET.parts(cfg)
    assert make(cfg) == 18
    monkeypatch.setattr(imagenet, "_list", None)
    monkeypatch.setattr(image_files, "inspect_images", None)
    for kept, listed in zip(IMAGENET.parts(cfg), there, strict=True):
        assert (kept.images, kept.names) == (listed.images, listed.names) and np.array_equal(kept.labels, listed.labels)
    assert IMAGENET.fingerprint(cfg)["listing"] and len(IMAGENET.build(cfg).train) == 1


def test_a_changed_folder_is_listed_again(cfg, tree):
    make(cfg)
    shutil.copy(first(tree, "train/n01440764/*"), tree / "train/n01440764/another.JPEG")
    os.utime(tree / "train/n01440764", (1, 1))
    assert len(IMAGENET.parts(cfg)[0].images) == 13
    assert make(cfg) == 19 and IMAGENET.checked_before(cfg)


def test_an_older_listing_counts_for_nothing(cfg):
    IMAGENET.listing_file(cfg).parent.mkdir(parents=True)
    IMAGENET.listing_file(cfg).write_text('{"format_version": 1, "changed": 3}')
    assert len(IMAGENET.parts(cfg)[0].images) == 12 and not IMAGENET.checked_before(cfg)


def test_all_bad_images_are_said_and_no_listing_is_kept(cfg, tree):
    bad = [tree / part for part in ("train/n01440764/n01440764_2.JPEG", "train/n01484850/n01484850_4.JPEG")]
    bad[0].write_bytes(b"no image")
    bad[1].write_bytes(bad[1].read_bytes()[:700])
    said = []
    with pytest.raises(DataError, match=r"^2 of 18 images are bad \(.*n01440764_2.JPEG cannot be read"):
        make(cfg, said.append)
    lines = [line for line in said if line.startswith("bad: ")]
    assert all(line.startswith(f"bad: {p} cannot be read") for line, p in zip(lines, bad, strict=True))
    assert not Path(cfg.cache_dir).exists()


def test_the_data_sets_own_folder_is_only_read(cfg, tree):
    cfg.cache_dir = str(tree / "cache")
    with pytest.raises(UserError, match="inside of the data set's own folder"):
        make(cfg)


def test_the_command(tree, capsys):
    def printed(*words):
        words = ["dataset=imagenet1k", f"data_dir={tree}", f"cache_dir={tree.parent}/c", *words]
        return script("prepare_data").main(words), *capsys.readouterr()

    assert printed()[1].endswith("listing.json: 18 images, all good\n")
    assert printed()[1].endswith("listing.json: checked before\n")
    refused = "allow_bad=true is for recordings; leave it out for dataset=imagenet1k\n"
    assert printed("allow_bad=true") == (2, "", refused)
