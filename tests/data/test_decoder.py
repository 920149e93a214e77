"""dataset.decoder=torchvision: the same images, crops and mistakes as with PIL, up to rounding."""

import io
import sys
import types

import numpy as np
import pytest
import torch
from fixtures import write_imagenet
from PIL import Image

from data.test_static import denormalised, everything, imagenet
from snn_repro.config import config_hash, load_config
from snn_repro.data import image_files, jpegs
from snn_repro.data.image_files import ImageFile, decode, decode_tensor
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")
TORCHVISION = "dataset.decoder=torchvision"


def photo(seed: int, size=(80, 60)) -> Image.Image:
    """Smooth, as photographs are: where the crops agree, their pixels do."""
    values = np.random.RandomState(seed).randint(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def photographs(root) -> None:
    """The tree of `write_imagenet` with photographs in it."""
    for seed, name in enumerate(write_imagenet(root, size=(80, 60))):
        photo(seed).save(root / name, "JPEG", quality=95)


def levels(a, b, dataset="imagenet1k"):
    """(mean, largest) difference of normalised images, in levels of 255."""
    apart = (denormalised(a, dataset).int() - denormalised(b, dataset).int()).abs().float()
    return apart.mean().item(), apart.max().item()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_of_file_has_the_pixels_that_pil_reads(tmp_path, mode):
    picture = photo(1)
    kinds = {"colour.jpg": picture, "grey.jpg": picture.convert("L"), "cmyk.jpg": picture.convert("CMYK")}
    kinds |= {"colour.png": picture, "palette.png": picture.convert("P"), "alpha.webp": picture.convert("RGBA")}
    for name, image in kinds.items():
        image.save(tmp_path / name)
        pil = np.atleast_3d(np.asarray(decode(ImageFile(str(tmp_path), name), mode))).transpose(2, 0, 1)
        ours = decode_tensor(ImageFile(str(tmp_path), name), mode)
        assert ours.dtype == torch.uint8 and ours.shape == pil.shape == (3 if mode == "RGB" else 1, 60, 80)
        apart = np.abs(ours.numpy().astype(int) - pil.astype(int)).max()
        # JPEGs may pass through two builds of one library; PIL makes grey of RGB, torchvision takes the file's luma
        allowed = 0 if not name.endswith("jpg") else 4 if (name, mode) == ("colour.jpg", "L") else 2
        assert apart <= allowed, (name, apart)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_flips_and_test_images_are_those_of_pil(tmp_path, monkeypatch, interpolation):
    photographs(tmp_path)
    options = [
        f"augment.interpolation={interpolation}",
        "dataset.frame_size=48",
        "augment.rrc_min_area=0.08",
        "augment.flip=0.5",
    ]
    pil = imagenet(tmp_path, *options)
    monkeypatch.setattr(image_files, "decode", None)  # asked no more
    ours = imagenet(tmp_path, *options, TORCHVISION)
    for a, b in ((pil.train, ours.train), (pil.test, ours.test)):
        (x, target), (y, labels) = everything(a), everything(b)
        assert torch.equal(target, labels) and y.dtype == torch.float32
        mean, largest = levels(x, y)
        assert mean < 0.2 and largest <= 4
    again = everything(imagenet(tmp_path, *options, TORCHVISION, "dataset.workers=2").train)[0]
    assert torch.equal(again, everything(ours.train)[0])


def test_steps_that_need_pil_get_it(tmp_path):
    """RandAugment is timm's, on PIL images: the same draws, and the tensor is cut before."""
    photographs(tmp_path)
    options = ["dataset.frame_size=48", "augment.rrc_min_area=0.08", "augment.flip=0.5", "augment.randaugment_ops=2"]
    x, y = (everything(imagenet(tmp_path, *options, *more).train)[0] for more in ([], [TORCHVISION]))
    plain = everything(imagenet(tmp_path, *options[:3]).train)[0]
    mean, _ = levels(x, y)
    assert mean < 2 < levels(x, plain)[0]  # thresholds (solarize, posterize) move some pixels far


def test_a_damaged_file_is_the_same_sentence(tmp_path):
    out = io.BytesIO()
    photo(1, (500, 375)).save(out, "JPEG")
    for name, content in {"cut.jpg": out.getvalue()[: out.tell() // 2], "no.jpg": b"x" * 100}.items():
        (tmp_path / name).write_bytes(content)
        for read in (decode, decode_tensor):
            with pytest.raises(
                DataError, match=f"{name} cannot be read as an image: .*; get it again or remove it"
            ) as e:
                read(ImageFile(str(tmp_path), name))
            assert "\n" not in str(e.value) and str(e.value).count("cannot be read") == 1


@pytest.fixture
def without_a_gpu(monkeypatch):
    """nvjpeg's way, on the CPU."""
    monkeypatch.setattr(jpegs, "check", lambda cfg, in_pil: None)


def test_nvjpeg_makes_the_batches_of_torchvision_from_bytes(tmp_path, without_a_gpu):
    """What differs is who decodes: here nobody, so all is equal; what workers hand over are bytes, and pixels of what is no JPEG."""
    photographs(tmp_path)
    first = next(iter(sorted((tmp_path / "train").rglob("*.JPEG"))))
    with Image.open(first) as image:
        image.save(first, "PNG")  # as some of ImageNet's are, under the same name
    options = ["dataset.frame_size=48", "augment.rrc_min_area=0.08", "augment.flip=0.5"]
    wanted = imagenet(tmp_path, *options, TORCHVISION)
    for workers in (0, 2):
        ours = imagenet(tmp_path, *options, "dataset.decoder=nvjpeg", f"dataset.workers={workers}")
        for a, b in ((wanted.train, ours.train), (wanted.test, ours.test)):
            state = torch.get_rng_state()
            assert all(map(torch.equal, everything(a), everything(b)))
            assert torch.equal(state, torch.get_rng_state())
    stored = ours.train._loader.dataset.samples
    assert {stored[i][0].ndim for i in range(len(stored))} == {1, 3}


def test_nvjpeg_names_the_damaged_file_of_a_batch(tmp_path, without_a_gpu):
    photographs(tmp_path)
    broken = sorted((tmp_path / "train").rglob("*.JPEG"))[1]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    batches = imagenet(tmp_path, "dataset.frame_size=48", "augment.rrc_min_area=0.08", "dataset.decoder=nvjpeg").train
    with pytest.raises(DataError, match=f"{broken.name} cannot be read as an image: .*; get it again or remove it"):
        everything(batches)


def test_what_a_gpu_cannot_is_not_blamed_on_a_file(tmp_path, monkeypatch):
    photo(1).save(tmp_path / "a.jpg")
    decode, samples = jpegs.decode_jpegs, jpegs.Jpegs([ImageFile(str(tmp_path), "a.jpg")], [0], lambda x: x)

    def full(files, mode, device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(files, mode, device)

    monkeypatch.setattr(jpegs, "decode_jpegs", full)
    with pytest.raises(torch.OutOfMemoryError):
        samples.finished([0], [samples[0][0]], [0], torch.device("cuda", 0))


def test_nvjpeg_needs_a_gpu_and_no_pil(tmp_path):
    photographs(tmp_path)
    nvjpeg = "dataset.decoder=nvjpeg"
    with pytest.raises(UserError, match=f"{nvjpeg} decodes on the GPU and device=cpu; use dataset.decoder=torchvision"):
        imagenet(tmp_path, nvjpeg, "device=cpu")
    with pytest.raises(UserError, match=f"{nvjpeg} decodes on the GPU and augment.randaugment_ops needs images of PIL"):
        imagenet(tmp_path, nvjpeg, "augment.rrc_min_area=0.08", "augment.randaugment_ops=2")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=f"{nvjpeg} decodes on the GPU and torch sees none"):
            imagenet(tmp_path, nvjpeg)


def test_torchcodec_decodes_where_torchvision_does_no_more(tmp_path, monkeypatch):
    photo(1).save(tmp_path / "a.jpg")
    image, asked = ImageFile(str(tmp_path), "a.jpg"), []
    wanted = {mode: decode_tensor(image, mode) for mode in ("RGB", "L")}

    def decode_jpeg(sources, *, mode, device):  # as torchcodec's
        asked.append((mode, str(device)))
        return [wanted[{"RGB": "RGB", "GRAY": "L"}[mode]] for _ in sources]

    import torchvision.transforms.v2  # noqa: F401  # which asks for it too

    monkeypatch.delattr("torchvision.io.decode_jpeg")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(decode_jpeg=decode_jpeg))
    for mode in wanted:
        assert torch.equal(decode_tensor(image, mode), wanted[mode])
    assert asked == [("RGB", "cpu"), ("GRAY", "cpu")]
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    sentence = (
        "^dataset.decoder=torchvision and nvjpeg need torchvision up to 0.29, or torchcodec 0.16 or newer; pip install"
    )
    photographs(tmp_path)
    for read in (lambda: decode_tensor(image), lambda: imagenet(tmp_path, TORCHVISION)):  # the second before any batch
        with pytest.raises(UserError, match=sentence):
            read()


def test_own_folders_and_raw_samples(tmp_path):
    for n in range(6):
        folder = tmp_path / "ab"[n % 2]
        folder.mkdir(exist_ok=True)
        photo(n).convert("L").save(folder / f"{n}.jpg")
    cfg = load_config(["dataset=image_folder", f"data_dir={tmp_path}", TORCHVISION, "dataset.frame_size=32"])
    dataset = SETS["image_folder"].of(cfg)
    assert dataset.shape[0] == 1
    x, _ = everything(dataset.build(cfg).test)
    _, test = dataset.parts(cfg)
    for row, image in enumerate(test.images):
        assert torch.equal(dataset.sample(cfg, str(image), pytest.fail)[0], x[row])
        from_pixels = dataset.sample(cfg, decode(image, "L"), pytest.fail)[0]
        assert (from_pixels - x[row]).abs().max() < 0.1


def test_who_decodes_shows_in_the_configuration():
    def config(*words):
        return load_config(["dataset=imagenet1k", "data_dir=/nowhere", *words])

    assert config_hash(config()) == config_hash(config("dataset.decoder=pil")) != config_hash(config(TORCHVISION))
    with pytest.raises(
        UserError, match="dataset.decoder='pill' is not one of pil, torchvision, nvjpeg; did you mean 'pil'"
    ):
        config("dataset.decoder=pill")
    with pytest.raises(UserError, match="dataset.decoder"):
        load_config(["dataset=digits", TORCHVISION])
