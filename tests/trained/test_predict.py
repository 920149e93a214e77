"""One raw sample becomes what the test's data are, for every kind of data set; and the network answers as it did."""

import json

import numpy as np
import pytest
import torch
from fixtures import digits_dvs_frames
from fixtures import make_cache as prepare
from fixtures.event_sets import write_cifar10_dvs, write_dvs_gesture, write_ncaltech101
from fixtures.image_sets import write_cifar10, write_fashion_mnist, write_imagenet
from PIL import Image

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data.cache import open_cache
from snn_repro.data.sets import SETS
from snn_repro.data.sets.digits import load_digits, train_test
from snn_repro.data.sets.emulated import DIGITS_CAMERA, emulate_recording
from snn_repro.errors import UserError
from snn_repro.trained import load_run, predict
from snn_repro.trained.predict import predict as ask


def silent(sentence: str) -> None:
    pytest.fail(f"something had to be changed: {sentence}")


def first_test_image(*overrides: str):
    """(configuration, the first test image as the network gets it [1, C, H, W])."""
    cfg = load_config(["recipe=digits", *overrides])
    x, _ = next(iter(build_data(cfg).test.epoch(0)))
    return cfg, x[:1]


pytestmark = pytest.mark.filterwarnings("ignore:.*results do not compare:UserWarning")


@pytest.mark.parametrize("more", [[], ["dataset.channel_order=bgr", "dataset.frame_size=20"]])
def test_an_image_of_cifar10(more, tmp_path):
    pixels = write_cifar10(tmp_path)["test_batch"][0][0]
    cfg, x = first_test_image("dataset=cifar10", f"data_dir={tmp_path}", *more)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "x.png")
    for source in (tmp_path / "x.png", Image.open(tmp_path / "x.png"), pixels, pixels.transpose(1, 2, 0)):
        assert torch.equal(SETS["cifar10"].sample(cfg, source, silent), x)


def test_a_grey_image(tmp_path):
    pixels = write_fashion_mnist(tmp_path)["t10k-images-idx3-ubyte"][0]
    cfg, x = first_test_image("dataset=fashion_mnist", f"data_dir={tmp_path}")
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert torch.equal(SETS["fashion_mnist"].sample(cfg, str(tmp_path / "x.png"), silent), x)
    said = []
    Image.fromarray(pixels).convert("RGB").resize((56, 40)).save(tmp_path / "large.png")
    assert SETS["fashion_mnist"].sample(cfg, tmp_path / "large.png", said.append).shape == (1, 1, 28, 28)
    assert "colours (RGB) are converted to grey" in said[0]
    assert "its 40x56 pixels (height x width) are resized to 28x28" in said[1] and len(said) == 2


def test_an_image_of_imagenet(tmp_path):
    write_imagenet(tmp_path, layout="folders")
    with pytest.warns(UserWarning, match="3 of 1000 classes"):
        cfg, x = first_test_image(
            "dataset=imagenet1k", "dataset.frame_size=32", "dataset.workers=0", f"data_dir={tmp_path}"
        )
    file = min((tmp_path / "val").rglob("*.JPEG"))
    assert torch.equal(SETS["imagenet1k"].sample(cfg, file, silent), x)


def test_a_digit_is_recorded_as_the_data_are():
    images, cfg = load_digits()[0], load_config(["dataset=digits_dvs", "timesteps=3"])
    frames = digits_dvs_frames(3)
    as_pixels = np.round(images[0, 0] * 255).astype(np.uint8)
    for k, source in ((0, as_pixels), (0, images[0]), (5, emulate_recording(images[5], 0, DIGITS_CAMERA, 5))):
        x = SETS["digits_dvs"].sample(cfg, source, silent)
        assert x.shape == (3, 1, 2, 24, 24) and np.array_equal(x[:, 0], frames[k])


@pytest.mark.parametrize(
    ("name", "write", "file", "size"),
    [
        ("cifar10_dvs", write_cifar10_dvs, "{}", ["dataset.frame_size=16", "dataset.integrate_by=time"]),
        ("ncaltech101", write_ncaltech101, "Caltech101/{}", ["dataset.frame_size=16", "dataset.integrate_by=braincog"]),
        ("dvs_gesture", write_dvs_gesture, "DvsGesture/{}", ["dataset.frame_size=16", "dataset.integrate_by=time"]),
    ],
)
def test_a_recording_equals_its_row_of_the_cache(name, write, file, size, tmp_path):
    few = dict(classes=("airplane", "cat")) if name == "cifar10_dvs" else {}
    write(tmp_path / "raw", **few)
    cfg = load_config(["recipe=digits", f"dataset={name}", "timesteps=3", f"cache_dir={tmp_path}", *size])
    by = cfg.dataset.integrate_by
    prepare(name, tmp_path / "raw", tmp_path, 3, by, cfg.dataset.frame_size)
    cache = open_cache(SETS[name].cache_settings(cfg), tmp_path)
    for row in (0, len(cache.names) - 1):
        x = SETS[name].sample(cfg, tmp_path / "raw" / file.format(cache.names[row]), silent)
        assert x.dtype == torch.float32 and np.array_equal(x[:, 0], cache.frames[row].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("cifar10", "gone.png", "gone.png does not exist"),
        ("cifar10", "notes.txt", "notes.txt cannot be read as an image: cannot identify image file by its content"),
        ("cifar10", "deep.png", "deep.png has pixels of more than 8 bits"),
        ("cifar10", np.zeros((3, 32, 32)), r"an array float64 \[3, 32, 32\] is no image: use uint8"),
        ("cifar10_dvs", "gone.aedat", "gone.aedat cannot be read: No such file"),
        ("cifar10_dvs", "notes.txt", "notes.txt, byte 0: the file does not begin with"),
        ("cifar10_dvs", np.zeros((2, 3)), "is made of recordings: give a file, or events"),
        ("cifar10_dvs", ([], [], [], []), "holds no events"),
        ("dvs_gesture", "user24_lab.aedat", "user24_lab.aedat: .* lists 12 trials, .*:00 to .*:11"),
        ("dvs_gesture", "user24_lab.aedat:12", "user24_lab.aedat:12: .* lists 12 trials"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_one_sentence(name, source, sentence, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    write_dvs_gesture(tmp_path)
    cfg = load_config(["recipe=digits", f"dataset={name}", "timesteps=2"])
    if isinstance(source, str):
        source = tmp_path / ("DvsGesture" if "user" in source else "") / source
    elif isinstance(source, tuple):
        source = tuple(np.array(a, int) for a in source)
    with pytest.raises(UserError, match=sentence) as error:
        SETS[name].sample(cfg, source, silent)
    assert "\n" not in str(error.value)


def test_the_network_answers_as_in_its_run(digits):
    images, (_, test), run = load_digits()[0], train_test(), load_run(digits)
    saved = np.load(digits / "predictions.npz")["logits"]
    found = ask(run, images[test[:3]])
    for k, p in enumerate(found):
        np.testing.assert_allclose(p.logits, saved[k], atol=1e-5)
        assert len(p.steps) == 4 and (p.label, p.name, p.confidence) == p.steps[-1]
        assert p.label == saved[k, -1].argmax()  # LTS reads the last step
        step = np.exp(saved[k, 1].astype(float)) / np.exp(saved[k, 1].astype(float)).sum()
        assert p.steps[1] == (step.argmax(), str(step.argmax()), pytest.approx(step.max(), abs=1e-5))
    assert run.class_names == list("0123456789") and len(found) == 3


def test_the_command(digits, tmp_path, entered):
    zero = Image.fromarray(np.round(load_digits()[0][0, 0] * 255).astype(np.uint8)).resize((16, 16))
    zero.save(tmp_path / "zero.png")
    code, out, err = entered(predict.entry, digits, tmp_path / "zero.png", "weights=best", "device=cpu")
    assert code == 0 and len(out.splitlines()) == 6
    assert out.startswith(f"{tmp_path / 'zero.png'}: ") and "resized to 8x8" in err
    (found,) = json.loads(entered(predict.entry, digits, tmp_path / "zero.png", "--json")[1])
    assert found["steps"][-1] == {k: found[k] for k in ("label", "name", "confidence")} and len(found["logits"]) == 4
    for name in ("b/one.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        zero.save(tmp_path / "all" / name, "png")
    (tmp_path / "all/bad.png").write_text("no picture")
    code, out, err = entered(predict.entry, digits, tmp_path / "all", tmp_path / "zero.png")
    files = [str(tmp_path / name) for name in ("all/a.jpg", "all/b/one.PNG", "zero.png")]
    assert code == 0 and [line.split(": ")[0] for line in out.splitlines()] == files
    assert "a.jpg: its 16x16" in err and "one.PNG" not in err
    assert f"skipped: {tmp_path / 'all/bad.png'} cannot be read" in err
    (tmp_path / "none").mkdir()
    for words, sentence in (
        [[digits, tmp_path / "none"], "holds no image or recording; they end in .jpg"],
        [[digits], "the following arguments are required: FILE"], [[digits, "gone.png"], "gone.png does not exist"],
        [[digits, "x", "device=tpu"], "device=tpu must be"],
    ):  # fmt: skip
        code, _, err = entered(predict.entry, *words)
        assert code == 2 and err.startswith("snn-predict: ") and sentence in err and err.count("\n") == 1
