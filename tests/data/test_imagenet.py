"""ImageNet: every form in which it is handed on gives the same images; its listing; what is wrong is one sentence."""

import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_imagenet
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF

from data.test_static import build, config, denormalised, everything, fingerprint
from snn_repro.data import image_files
from snn_repro.data.sets import SETS, imagenet
from snn_repro.errors import DataError, UserError

CLASSES = ("n01440764", "n01443537", "n01484850")
IMAGENET = SETS["imagenet1k"]
SCRIPT = Path(__file__).parents[2] / "scripts/prepare_data.py"
pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")


def built(root, *options, dataset="imagenet1k", cache_dir=None):
    return build(dataset, root, "recipe.batch_size=4", "dataset.workers=0", *options, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(a folder of class folders, what was written), only read."""
    root = tmp_path_factory.mktemp("tree")
    return root, write_imagenet(root)


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


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
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
        write(root / "ilsvrc2012", {"ILSVRC2012_img_train.tar": tar_of(tars), "ILSVRC2012_img_val.tar": tar_of(flat),
                                    "ILSVRC2012_devkit_t12.tar.gz": tar_of(devkit(tree), "w:gz")})  # fmt: skip
    elif form == "half unpacked":
        train, val = ({f"{part}/{n}": c for n, c in of.items()} for part, of in (("train", tars), ("val", flat)))
        write(root, train | val | devkit(tree))
    elif form.startswith("Kaggle's"):
        write_imagenet(root, layout="kaggle")
        return root / "ILSVRC/Data/CLS-LOC" if "inside" in form else root
    elif form == "other case":
        shutil.copytree(tree, root / "IMAGENET")
        for part in ("train", "val"):
            (root / "IMAGENET" / part).rename(root / "IMAGENET" / part.upper())
    elif form == "links":
        for part in ("train", "val"):
            (root / part).mkdir(parents=True)
            for c in CLASSES:
                (root / part / c).symlink_to(tree / part / c)
    return root


@pytest.mark.parametrize(
    "form", ["archives", "half unpacked", "Kaggle's", "Kaggle's, from the inside", "other case", "links"]
)
def test_every_form_is_the_same_data(written, tmp_path, form):
    """Images, labels, order, the hash of the test list and the fingerprint are those of a tree of class folders."""
    root = in_form(form, written[0], tmp_path / "other")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))
    options, cache = ("dataset.frame_size=32", "dataset.validation=0.25"), tmp_path / "cache"
    one, two = (built(p, *options, cache_dir=cache) for p in (written[0], root))
    assert one.split == two.split
    for part in ("train", "val", "test"):
        a, b = (everything(getattr(data, part)) for data in (one, two))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert fingerprint("imagenet1k", written[0]) == fingerprint("imagenet1k", root, cache)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*")) == before


def test_archives_are_unpacked_once_and_into_cache_dir_alone(written, tmp_path, caplog):
    root = in_form("archives", written[0], tmp_path / "other")
    with pytest.raises(UserError, match="cache_dir is not set: pass cache_dir=DIR, a folder that .*img_train.tar is"):
        built(root)
    with caplog.at_level("INFO", "snn_repro"):
        for _ in range(2):
            imagenet._listed.cache_clear()
            built(root, cache_dir=tmp_path / "cache", dataset="imagenet100")
    assert caplog.text.count("unpacking") == 2


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda p: (p / "ILSVRC2012_devkit_t12.tar.gz").unlink(),
         "ILSVRC2012_img_val.tar has no class folders: .* put LOC_val_solution.csv or ILSVRC2012_devkit_t12.tar.gz beside it"),
        (lambda p: (p / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no"), "ILSVRC2012_devkit_t12.tar.gz cannot be read"),
        (lambda p: (p / "ILSVRC2012_img_val.tar").unlink(), "val is missing: .* or its two archives"),
        (lambda p: os.truncate(p / "ILSVRC2012_img_val.tar", 2000), "ILSVRC2012_img_val.tar is not a readable archive"),
        (lambda p: os.truncate(p / "ILSVRC2012_img_train.tar", 4000), "ILSVRC2012_img_train.tar is not a readable archive"),
        (lambda p: (p / "LOC_val_solution.csv").write_text("a,b\n1,2\n"), "LOC_val_solution.csv cannot be read .*a table of I"),
        (lambda p: (p / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nx,n1 1\n"),
         "ILSVRC2012_val_00000001.JPEG has no class in .*LOC_val_solution.csv"),
    ],
)  # fmt: skip
def test_archives_that_do_not_do_are_one_sentence(written, tmp_path, spoil, sentence):
    root = in_form("archives", written[0], tmp_path / "other")
    spoil(root / "ilsvrc2012")
    with pytest.raises(DataError, match=sentence) as error:
        built(root, cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ hostile and damaged files


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda p: (p / "train/n01443537/loop").symlink_to("."), "n01443537/loop leads to .*n01443537, which was read before"),
        (lambda p: (p / "train/n01443537/loop").symlink_to(".."), "loop/n01443537 leads to .*which was read before"),
        (lambda p: (p / "val/n01443537/up").symlink_to(p), "up/val/n01443537 leads to .*which was read before"),
        (lambda p: [f.unlink() for f in (p / "train/n01443537").iterdir()], "n01443537 holds no image"),
        (lambda p: (p / "val/n01443537").rename(p / "val/n02123045"), "n01443537 is in train but not in val .2 classes differ"),
        (lambda p: shutil.rmtree(p / "train"), "imagenet1k was not found .*image-net.org"),
    ],
)  # fmt: skip
def test_a_tree_that_does_not_do_is_one_sentence(tree, spoil, sentence):
    spoil(tree)
    with pytest.raises(DataError, match=sentence) as error:
        built(tree)
    assert "\n" not in str(error.value)


def test_an_incomplete_set_warns_in_one_line(written):
    with pytest.warns(
        UserWarning, match="^imagenet1k: .* has 3 of 1000 classes, so results do not compare with those on"
    ):
        built(written[0])


def bomb(image: bytes, size: int) -> bytes:
    """A JPEG whose header promises size x size pixels."""
    at = image.index(b"\xff\xc0") + 5
    return image[:at] + struct.pack(">HH", size, size) + image[at + 4 :]


@pytest.mark.parametrize("part", ["val", "train"])
@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda b: b[: len(b) // 2], "truncated"),
        (lambda b: b"", "cannot identify image file"),
        (lambda b: bomb(b, 20_000), "400000000 pixels|20000 x 20000 pixels"),
        (lambda b: bomb(b, 9_200), "9200 x 9200 pixels, more than the 80,000,000 that are read"),
    ],
    ids=["cut", "empty", "bomb", "small bomb"],
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
    with pytest.raises(DataError, match=expected):
        image_files.facts([str(image)])  # as it would be, were it held out for validation


def test_the_check_reads_headers_alone(tmp_path, monkeypatch):
    whole, trailing = str(tmp_path / "whole.JPEG"), tmp_path / "trailing.JPEG"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(whole, quality=95)
    trailing.write_bytes(Path(whole).read_bytes() + bytes(9000))  # its end marker is not at its end
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "load", None)
        assert image_files.facts([whole] * 20) == [(400, 300, "RGB")] * 20
    image_files.facts([str(trailing)])


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
    monkeypatch.setattr(image_files, "look", None)
    for kept, listed in zip(IMAGENET.parts(cfg), there, strict=True):
        assert (kept.images, kept.names) == (listed.images, listed.names) and np.array_equal(kept.labels, listed.labels)
    assert IMAGENET.fingerprint(cfg)["listing"] and len(IMAGENET.build(cfg).train) == 1


def test_a_listing_of_tars_is_that_of_their_folders(cfg, tree):
    for folder in list((tree / "train").iterdir()):
        folder.with_suffix(".tar").write_bytes(tar_of(contents(folder)))
        shutil.rmtree(folder)
    there = IMAGENET.parts(cfg)[0].images
    make(cfg)
    assert IMAGENET.checked_before(cfg) and Path(cfg.cache_dir, "unpacked").is_dir()
    assert IMAGENET.parts(cfg)[0].images == there and len(there) == 12
    os.utime(tree / "train/n01440764.tar", (1, 1))
    assert not IMAGENET.checked_before(cfg)


def test_a_changed_folder_is_listed_again_with_a_line(cfg, tree, caplog):
    make(cfg)
    shutil.copy(first(tree, "train/n01440764/*"), tree / "train/n01440764/another.JPEG")
    os.utime(tree / "train/n01440764", (1, 1))
    with caplog.at_level("INFO", "snn_repro"):
        assert len(IMAGENET.parts(cfg)[0].images) == 13
    assert "is not of the images that are there now" in caplog.text
    assert make(cfg) == 19 and IMAGENET.checked_before(cfg)


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1, "changed": 3}'])
def test_a_damaged_or_older_listing_counts_for_nothing(cfg, content):
    IMAGENET.listing_file(cfg).parent.mkdir(parents=True)
    IMAGENET.listing_file(cfg).write_text(content)
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


@pytest.mark.slow
def test_the_command(tree):
    def script(*words):
        words = ["dataset=imagenet1k", f"data_dir={tree}", f"cache_dir={tree.parent / 'cache'}", *words]
        return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)

    done = script()
    assert done.returncode == 0 and done.stdout.endswith("listing.json: 18 images, all good\n"), done
    assert script().stdout.endswith("listing.json: checked before\n")
    refused = script("allow_bad=true")
    assert refused.returncode == 2
    assert refused.stderr == "allow_bad=true is for recordings: leave it out for dataset=imagenet1k\n"
