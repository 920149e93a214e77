"""dataset.decoder=torchcodec: the same images, crops and mistakes as with PIL, up to rounding."""

import sys
import types

import numpy as np
import pytest
import torch
from fixtures import write_imagenet
from PIL import Image

from data.test_imagenet import built
from data.test_static import denormalised, everything
from snn_repro.config import config_hash, load_config
from snn_repro.data import image_files
from snn_repro.data.image_files import decode, decode_tensor
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
TORCHCODEC = "dataset.decoder=torchcodec"
CUT = ("dataset.frame_size=48", "augment.rrc_min_area=0.08", "augment.flip=0.5")


@pytest.fixture(autouse=True)
def torchcodec(monkeypatch):
    """torchcodec, and where it is not installed torchvision's decoder of the same JPEGs under its name."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        vision = pytest.importorskip("torchvision.io")

        def decode_jpeg(source: bytes, *, mode: str) -> torch.Tensor:
            content = torch.frombuffer(bytearray(source), dtype=torch.uint8)
            return vision.decode_jpeg(content, vision.ImageReadMode[mode])

        for name in ("torchcodec", "torchcodec.decoders"):
            monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(decode_jpeg=decode_jpeg))


def photo(seed: int, size=(80, 60)) -> Image.Image:
    """Smooth, as photographs are: where the crops agree, their pixels do."""
    values = np.random.RandomState(seed).randint(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The tree of `write_imagenet` with photographs in it."""
    root = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate(write_imagenet(root, size=(80, 60))):
        photo(seed).save(root / name, "JPEG", quality=95)
    return root


def levels(a, b):
    """(mean, largest) difference of normalised images, in levels of 255."""
    apart = (denormalised(a, "imagenet1k").int() - denormalised(b, "imagenet1k").int()).abs().float()
    return apart.mean().item(), apart.max().item()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_of_file_has_the_pixels_that_pil_reads(tmp_path, mode):
    picture = photo(1)
    kinds = {"colour.jpg": picture, "grey.jpg": picture.convert("L"), "cmyk.jpg": picture.convert("CMYK")}
    kinds |= {"colour.png": picture, "palette.png": picture.convert("P"), "alpha.webp": picture.convert("RGBA")}
    for name, image in kinds.items():
        image.save(path := str(tmp_path / name))
        pil = np.atleast_3d(np.asarray(decode(path, mode))).transpose(2, 0, 1)
        ours = decode_tensor(path, mode)
        assert ours.dtype == torch.uint8 and ours.shape == pil.shape == (3 if mode == "RGB" else 1, 60, 80)
        apart = np.abs(ours.numpy().astype(int) - pil.astype(int)).max()
        # JPEGs may pass through two builds of one library; PIL makes grey of RGB, torchvision takes the file's luma
        allowed = 0 if not name.endswith("jpg") else 4 if (name, mode) == ("colour.jpg", "L") else 2
        assert apart <= allowed, (name, apart)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_flips_and_test_images_are_those_of_pil(photographs, monkeypatch, interpolation):
    options = f"augment.interpolation={interpolation}", *CUT
    pil = [everything(part) for data in [built(photographs, *options)] for part in (data.train, data.test)]
    monkeypatch.setattr(image_files, "decode", None)  # asked no more
    ours = built(photographs, *options, TORCHCODEC)
    for (x, target), part in zip(pil, (ours.train, ours.test), strict=True):
        y, labels = everything(part)
        assert torch.equal(target, labels) and y.dtype == torch.float32
        mean, largest = levels(x, y)
        assert mean < 0.2 and largest <= 4


def test_steps_that_need_pil_get_it(photographs):
    """RandAugment is timm's, on PIL images: the same draws, and the tensor is cut before."""
    options = *CUT, "augment.randaugment_ops=2"
    x, y = (everything(built(photographs, *options, *more).train)[0] for more in ([], [TORCHCODEC]))
    plain = everything(built(photographs, *CUT).train)[0]
    assert levels(x, y)[0] < 2 < levels(x, plain)[0]  # thresholds (solarize, posterize) move some pixels far


def test_a_damaged_file_is_the_same_sentence(tmp_path):
    photo(1, (500, 375)).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    for name, damaged in {"cut.jpg": content[: len(content) // 2], "no.jpg": b"x" * 100}.items():
        (tmp_path / name).write_bytes(damaged)
        for read in (decode, decode_tensor):
            with pytest.raises(
                DataError, match=f"{name} cannot be read as an image: .*; get it again or remove it"
            ) as e:
                read(str(tmp_path / name))
            assert "\n" not in str(e.value) and str(e.value).count("cannot be read") == 1


def test_without_torchcodec_one_sentence_before_any_batch(photographs, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match="^dataset.decoder=torchcodec needs torchcodec 0.16 .*use dataset.decoder=pil$"):
        built(photographs, TORCHCODEC)


def test_own_folders_and_raw_samples(tmp_path):
    for n in range(4):
        (tmp_path / "ab"[n % 2]).mkdir(exist_ok=True)
        photo(n).convert("L").save(tmp_path / "ab"[n % 2] / f"{n}.jpg")
    cfg = load_config(["dataset=image_folder", f"data_dir={tmp_path}", TORCHCODEC, "dataset.frame_size=32"])
    dataset = SETS["image_folder"].of(cfg)
    assert dataset.shape[0] == 1
    x, _ = everything(dataset.build(cfg).test)
    for row, image in enumerate(dataset.parts(cfg)[1].images):
        assert torch.equal(dataset.sample(cfg, image, pytest.fail)[0], x[row])
        from_pixels = dataset.sample(cfg, decode(image, "L"), pytest.fail)[0]
        assert (from_pixels - x[row]).abs().max() < 0.1


def test_who_decodes_shows_in_the_configuration():
    plain, pil, other = (
        load_config(["dataset=imagenet1k", *word]) for word in ((), ("dataset.decoder=pil",), (TORCHCODEC,))
    )
    assert config_hash(plain) == config_hash(pil) != config_hash(other)
    with pytest.raises(UserError, match="dataset.decoder='nvjpeg' is not one of pil, torchcodec"):
        load_config(["dataset=imagenet1k", "dataset.decoder=nvjpeg"])
    with pytest.raises(UserError, match="dataset.decoder"):
        load_config(["dataset=digits", TORCHCODEC])
