"""Event data sets as users have them: folders and archives by other names, archives in archives, links and odd files."""

import contextlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from fixtures import make_cache as prepare
from fixtures import open_cache, write_cifar10_dvs, write_dvs_gesture, write_ncaltech101

from snn_repro.data.recordings import find_recordings
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError

WRITERS = {"cifar10_dvs": write_cifar10_dvs, "dvs_gesture": write_dvs_gesture, "ncaltech101": write_ncaltech101}
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def run(dataset, raw, cache, **options):
    return prepare(dataset, raw, cache, 2, **{"workers": 0, "say": lambda _: None, **options})


def laid(raw, write, name, compression=STORED, under="", **options):
    """What a fixture writes, in the folder or archive `name`."""
    there, place = raw / "there", raw / name
    write(there, **options)
    place.parent.mkdir(parents=True, exist_ok=True)
    if name.lower().endswith("zip"):
        with zipfile.ZipFile(place, "w", compression) as z:
            for path in sorted(p for p in there.rglob("*") if p.is_file()):
                z.write(path, under + path.relative_to(there).as_posix())
    elif "tar" in name or "tgz" in name:
        with tarfile.open(place, "w" if name.endswith("tar") else "w:gz") as t:
            t.add(there, ".")
    else:
        (there / {write_dvs_gesture: "DvsGesture", write_ncaltech101: "Caltech101"}.get(write, ".")).rename(place)
    shutil.rmtree(there, ignore_errors=True)


def class_zips(raw, write, suffix):
    write(raw / "a")
    for folder in list((raw / "a").iterdir()):
        laid(raw, lambda there, folder=folder: folder.rename(there), f"{folder.name.capitalize()}{suffix}")
    (raw / "a").rmdir()


def zip_in_zip_in_zip(raw, write, name):
    laid(raw / "a", write, "Caltech101.zip", archive=True)
    laid(raw, lambda there: (raw / "a").rename(there), name, DEFLATED)


DVS, GESTURE, CALTECH = "cifar10_dvs", "dvs_gesture", "ncaltech101"
LAYOUTS = [
    (DVS, laid, "CIFAR10DVS/Download"), (DVS, class_zips, ".ZIP"),
    (DVS, laid, "4724671.zip", STORED, "data/", "archive"), (DVS, laid, "cifar10-dvs.zip", DEFLATED, "CIFAR10DVS/"),
    (DVS, laid, "cifar10dvs.tar.gz"), (GESTURE, laid, "dvs128gesture"), (GESTURE, laid, "DvsGesture.tar"),
    (GESTURE, laid, "dvsgesture.tgz"), (GESTURE, laid, "DVS128Gesture.zip", DEFLATED, "", "archive"),
    (CALTECH, laid, "caltech101"), (CALTECH, laid, "N-Caltech101/Caltech101/Caltech101"),
    (CALTECH, laid, "n-caltech101"), (CALTECH, laid, "caltech101.zip", DEFLATED, "", "archive"),
    (CALTECH, laid, "N-Caltech101-archive.zip", STORED, "N-Caltech101-archive/", "archive"),
    (CALTECH, zip_in_zip_in_zip, "N-Caltech101.zip"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """{data set: the cache of its plain folders}."""
    folder, made = tmp_path_factory.mktemp("plain"), {}
    for dataset, write in WRITERS.items():
        write(folder / dataset / "raw")
        made[dataset] = run(dataset, folder / dataset / "raw", folder / dataset / "cache").folder
    return made


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[2]}")
def test_data_sets_are_found_by_the_names_that_users_give_them(tmp_path, plain, layout):
    """Every layout gives the cache of the plain folders, and nothing is written beside the data."""
    (dataset, lay, name, *how), raw = layout, tmp_path / "raw"
    raw.mkdir()
    lay(raw, WRITERS[dataset], name, *how[:2], **{key: True for key in how[2:]})
    before = {p: p.stat().st_mtime_ns for p in raw.rglob("*")}
    report = run(dataset, raw, tmp_path / "cache")
    assert not report.problems
    for file in ("frames.npy", "index.csv", "manifest.json"):
        assert (report.folder / file).read_bytes() == (plain[dataset] / file).read_bytes()
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*")} == before
    assert run(dataset, raw, tmp_path / "cache").read == 0


def test_an_archive_is_unpacked_once_and_again_when_it_changed(tmp_path, caplog):
    def opened():
        return open_cache("ncaltech101", tmp_path / "cache", 2, data_dir=tmp_path / "raw")

    write_ncaltech101(tmp_path / "raw", archive=True)
    with caplog.at_level("INFO", "snn_repro"):
        for by in ("number", "time"):
            run("ncaltech101", tmp_path / "raw", tmp_path / "cache", by=by)
        opened()
        assert caplog.text.count("unpacking") == 1
        write_ncaltech101(tmp_path / "raw", archive=True, per_class=2)
        opened()  # not unpacked yet
        run("ncaltech101", tmp_path / "raw", tmp_path / "cache", by="braincog")
        assert caplog.text.count("unpacking") == 2
    with pytest.raises(DataError, match="is stale: .* is in it, but no longer in data_dir"):
        opened()
    with pytest.raises(UserError, match="cache_dir is not set: pass cache_dir=DIR, a folder that .*Caltech101.zip is"):
        find_recordings(SETS["ncaltech101"], tmp_path / "raw")


@pytest.mark.parametrize("name", ["../accordion/image_0001.bin", "/accordion/image_0001.bin", "a/../../../x.bin"])
@pytest.mark.parametrize("archive", ["Caltech101.zip", "Caltech101.tar"])
def test_archives_do_not_reach_outside(tmp_path, archive, name):
    (tmp_path / "raw").mkdir()
    if archive.endswith("zip"):
        with zipfile.ZipFile(tmp_path / "raw" / archive, "w") as z:
            z.writestr(name, b"12345")
    else:
        with tarfile.open(tmp_path / "raw" / archive, "w") as t:
            t.addfile(tarfile.TarInfo(name))
    with contextlib.suppress(DataError):
        find_recordings(SETS["ncaltech101"], tmp_path / "raw", tmp_path / "cache")
    written = [p for p in tmp_path.rglob("*") if p.is_file() and not p.match("*.lock")]
    inside = next((tmp_path / "cache/unpacked").glob("*/"), tmp_path / "none")
    assert [p for p in written if not p.is_relative_to(inside)] == [tmp_path / "raw" / archive]
    assert not Path("/accordion").exists()


def test_damaged_archives_are_one_sentence_and_a_damaged_member_is_one_bad_file(tmp_path):
    write_ncaltech101(tmp_path / "raw", archive=True)
    archive = tmp_path / "raw" / "Caltech101.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"Caltech101.zip is not a readable archive"):
        find_recordings(SETS["ncaltech101"], tmp_path / "raw", tmp_path / "cache")
    (tmp_path / "outer").mkdir()
    with zipfile.ZipFile(tmp_path / "outer/ncaltech101.zip", "w") as z:
        z.write(archive, "Caltech101.zip")
    with pytest.raises(DataError, match=r"Caltech101.zip in .*ncaltech101.zip is not a readable archive"):
        find_recordings(SETS["ncaltech101"], tmp_path / "outer", tmp_path / "cache")
    archive.write_bytes(whole)
    with zipfile.ZipFile(archive) as z:
        info = z.getinfo("Caltech101/accordion/image_0002.bin")
    data = bytearray(whole)
    data[info.header_offset + 30 + len(info.filename) + 3] ^= 0xFF
    archive.write_bytes(data)
    report = run("ncaltech101", tmp_path / "raw", tmp_path / "cache", allow_bad=True)
    assert report.samples == 11 and [*report.problems] == ["accordion/image_0002.bin"]


def test_a_set_that_is_not_found_names_what_was_looked_for(tmp_path):
    with pytest.raises(
        DataError, match="not found.*airplane.zip.*looked for .* named cifar10_dvs, CIFAR10-DVS.*figshare"
    ):
        find_recordings(SETS["cifar10_dvs"], tmp_path)
    with pytest.raises(DataError, match="data_dir=.*absent does not exist: pass the folder that holds Caltech101.zip"):
        find_recordings(SETS["ncaltech101"], tmp_path / "absent")
    (tmp_path / "Caltech101.zip").write_bytes(b"")
    with pytest.raises(DataError, match="data_dir=.*Caltech101.zip is a file: pass the folder"):
        find_recordings(SETS["ncaltech101"], tmp_path / "Caltech101.zip")
    with pytest.raises(UserError, match="data_dir is not set"):
        find_recordings(SETS["dvs_gesture"], None)


def test_links_are_followed_and_loops_end(tmp_path):
    """Class folders and files may be links to anywhere; a link back up adds nothing and does not go on for ever."""
    written = write_ncaltech101(tmp_path / "store")
    raw = tmp_path / "raw" / "Caltech101"
    raw.mkdir(parents=True)
    for folder in (tmp_path / "store" / "Caltech101").iterdir():
        if folder.is_dir():
            (raw / folder.name).symlink_to(folder)
    (tmp_path / "store" / "Caltech101" / "accordion" / "Caltech101").symlink_to(raw)
    (raw / "again").symlink_to(raw)
    (raw / "itself").symlink_to(raw / "itself")
    found = find_recordings(SETS["ncaltech101"], tmp_path / "raw")
    assert [s.name for s in found.samples] == sorted(written)


def test_pipes_dangling_links_and_copies_further_down(tmp_path):
    write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    os.mkfifo(tmp_path / "raw/cat/cifar10_cat_1.aedat")
    (tmp_path / "raw/cat/cifar10_cat_2.aedat").symlink_to("/nowhere")
    for file in (tmp_path / "raw/cat").glob("*_0.aedat"):
        (tmp_path / "raw/download/cat").mkdir(parents=True)
        (tmp_path / "raw/download/cat" / file.name).write_bytes(b"an older copy")
    with pytest.raises(DataError, match="2 of 6 recordings of cifar10_dvs are bad .*not a file: a broken link"):
        run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache")


def test_odd_lists_and_tables_of_gesture(tmp_path):
    """A list that repeats a line, a table that cannot be read, a name that no index can hold, a trial in both lists."""
    trials = write_dvs_gesture(tmp_path, train_users=3)
    root = tmp_path / "DvsGesture"
    first, second, third = sorted(t for t in trials if trials[t].part == "train")
    lists = {part: root / f"trials_to_{part}.txt" for part in ("train", "test")}
    with open(lists["train"], "a") as file:
        file.write(f"{first}\n" + 'user,"04"_led.aedat\n')
    table = root / second.replace(".aedat", "_labels.csv")
    table.unlink()
    os.mkfifo(table)
    found = find_recordings(SETS["dvs_gesture"], root)
    assert {s.file for s in found.samples} == set(trials) - {second} and len(found.samples) == 36
    assert sorted(found.problems) == sorted(['user,"04"_led.aedat', second])
    assert "not the name of a trial" in str(found.problems) and "not a file: a broken link, a pipe" in str(
        found.problems
    )
    lists["test"].write_text(lists["test"].read_text() + third)
    with pytest.raises(DataError, match=f"{third} is in trials_to_train.txt and in trials_to_test.txt"):
        find_recordings(SETS["dvs_gesture"], tmp_path)
    lists["test"].unlink()
    with pytest.raises(DataError, match="trials_to_test.txt is missing"):
        find_recordings(SETS["dvs_gesture"], tmp_path)


@pytest.mark.parametrize("dataset, archive", [("cifar10_dvs", True), ("cifar10_dvs", False), ("ncaltech101", False)])
def test_a_cache_inside_of_the_data_sets_own_folder_is_refused(tmp_path, dataset, archive):
    WRITERS[dataset](tmp_path / dataset, archive=archive)
    (tmp_path / "link").symlink_to(tmp_path / dataset)
    before = sorted(tmp_path.rglob("*"))
    for data_dir in (tmp_path, tmp_path / dataset):
        for cache_dir in (tmp_path, tmp_path / dataset, tmp_path / "link" / "cache"):
            with pytest.raises(UserError, match="inside of the data set's own folder .*choose a folder outside"):
                run(dataset, data_dir, cache_dir)
    assert sorted(tmp_path.rglob("*")) == before


def test_archives_beside_the_cache_are_no_overlap(tmp_path):
    write_cifar10_dvs(tmp_path, archive=True, classes=("cat", "dog"))
    assert run("cifar10_dvs", tmp_path, tmp_path).read == 8
    assert run("cifar10_dvs", tmp_path, tmp_path).read == 0
