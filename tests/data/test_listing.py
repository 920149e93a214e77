"""ImageNet's listing: made and checked once, read by runs, dropped when the folders change."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_imagenet

from snn_repro.config import load_config
from snn_repro.data import image_files
from snn_repro.data.sets import SETS, imagenet
from snn_repro.errors import DataError, UserError

SCRIPT = Path(__file__).parents[2] / "scripts/prepare_data.py"
IMAGENET = SETS["imagenet1k"]
pytestmark = pytest.mark.filterwarnings("ignore:.*do not compare")


def config(tmp_path, cache="cache"):
    imagenet._listed.cache_clear()
    options = [
        "dataset=imagenet1k",
        f"data_dir={tmp_path / 'raw'}",
        f"cache_dir={tmp_path / cache}",
        "dataset.frame_size=32",
    ]
    return load_config(options)


def make(cfg):
    return IMAGENET.prepare(cfg, say=lambda line: None)


def test_a_run_reads_the_listing_and_lists_and_checks_nothing(tmp_path, monkeypatch):
    write_imagenet(tmp_path / "raw")
    cfg = config(tmp_path)
    assert not IMAGENET.checked_before(cfg)
    there = IMAGENET.parts(cfg)
    assert make(cfg) == 18
    monkeypatch.setattr(imagenet, "_list", None)
    monkeypatch.setattr(image_files, "look", None)
    for kept, listed in zip(IMAGENET.parts(config(tmp_path)), there, strict=True):
        assert (kept.images, kept.names) == (listed.images, listed.names) and np.array_equal(kept.labels, listed.labels)
    assert IMAGENET.fingerprint(cfg)["listing"] and len(IMAGENET.build(cfg).train) == 1


def test_a_listing_of_tars_is_that_of_their_folders(tmp_path):
    write_imagenet(tmp_path / "tree")
    (tmp_path / "raw/train").mkdir(parents=True)
    (tmp_path / "tree/val").rename(tmp_path / "raw/val")
    for folder in (tmp_path / "tree/train").iterdir():
        with tarfile.open(tmp_path / f"raw/train/{folder.name}.tar", "w") as archive:
            archive.add(folder, "")
    cfg = config(tmp_path)
    there = IMAGENET.parts(cfg)[0].images
    make(cfg)
    assert IMAGENET.checked_before(config(tmp_path)) and (tmp_path / "cache/unpacked").is_dir()
    assert IMAGENET.parts(cfg)[0].images == there and len(there) == 12
    os.utime(tmp_path / "raw/train/n01440764.tar", (1, 1))
    assert not IMAGENET.checked_before(config(tmp_path))


def test_a_changed_folder_is_listed_anew_with_a_line(tmp_path, caplog):
    write_imagenet(tmp_path / "raw")
    make(config(tmp_path))
    more = tmp_path / "raw/train/n01440764/another.JPEG"
    more.write_bytes((tmp_path / "raw/train/n01440764/n01440764_1.JPEG").read_bytes())
    os.utime(more.parent, (1, 1))
    with caplog.at_level("INFO", "snn_repro"):
        assert len(IMAGENET.parts(config(tmp_path))[0].images) == 13
    assert "is not of the images that are there now" in caplog.text
    assert make(config(tmp_path)) == 19 and IMAGENET.checked_before(config(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1, "changed": 3}'])
def test_a_damaged_listing_counts_for_nothing(tmp_path, content):
    write_imagenet(tmp_path / "raw")
    make(config(tmp_path))
    path = tmp_path / "cache/imagenet1k/listing.json"
    path.write_text(content)
    assert len(IMAGENET.parts(config(tmp_path))[0].images) == 12


def test_all_bad_images_are_said_and_no_listing_is_kept(tmp_path):
    write_imagenet(tmp_path / "raw")
    bad = [tmp_path / "raw" / part for part in ("train/n01440764/n01440764_2.JPEG", "train/n01484850/n01484850_4.JPEG")]
    bad[0].write_bytes(b"no image")
    bad[1].write_bytes(bad[1].read_bytes()[:700])
    said = []
    with pytest.raises(DataError, match=r"^2 of 18 images are bad \(.*n01440764_2.JPEG cannot be read"):
        IMAGENET.prepare(config(tmp_path), say=said.append)
    assert [line for line in said if line.startswith("bad: ")] == [
        line for path in bad for line in said if line.startswith(f"bad: {path} cannot be read")
    ]
    assert not (tmp_path / "cache").exists()


def test_the_data_sets_own_folder_is_only_read(tmp_path):
    write_imagenet(tmp_path / "raw")
    with pytest.raises(UserError, match="inside of the data set's own folder"):
        make(config(tmp_path, cache="raw/cache"))


@pytest.mark.slow
def test_the_command(tmp_path):
    write_imagenet(tmp_path / "raw")

    def script(*words):
        words = ["dataset=imagenet1k", f"data_dir={tmp_path / 'raw'}", f"cache_dir={tmp_path / 'cache'}", *words]
        return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)

    done = script()
    assert done.returncode == 0 and done.stdout.endswith("listing.json: 18 images, all good\n"), done
    assert script().stdout.endswith("listing.json: checked before\n")
    refused = script("allow_bad=true")
    assert refused.returncode == 2
    assert refused.stderr == "allow_bad=true is for recordings: leave it out for dataset=imagenet1k\n"
