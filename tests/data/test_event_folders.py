"""Event data sets as users have them: folders and archives by other names, archives in archives, links and odd files."""

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures import make_cache as prepare
from fixtures import open_cache, write_cifar10_dvs, write_dvs_gesture, write_ncaltech101

from snn_repro.data.events import integrate
from snn_repro.data.recordings import find_recordings
from snn_repro.data.sets import SETS
from snn_repro.errors import DataError, UserError

WRITERS = {"cifar10_dvs": write_cifar10_dvs, "dvs_gesture": write_dvs_gesture, "ncaltech101": write_ncaltech101}
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def run(dataset, raw, cache, **options):
    return prepare(dataset, raw, cache, 2, **{"workers": 0, "say": lambda _: None, **options})


def zip_up(folder: Path, archive: Path, compression=STORED, under: str = "") -> None:
    """All files below a folder into a zip, and the folder away."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", compression) as z:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            z.write(path, under + path.relative_to(folder).as_posix())
    shutil.rmtree(folder)


def tar_up(folder: Path, archive: Path, mode: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, mode) as t:
        t.add(folder, ".")
    shutil.rmtree(folder)


def dvs_folder(raw, name):
    write_cifar10_dvs(raw / name)


def dvs_capital_zips(raw):
    write_cifar10_dvs(raw / "extract", archive=True)
    for path in (raw / "extract").iterdir():
        path.rename(path.with_name(path.name.capitalize()))


def dvs_flat_zips(raw):
    write_cifar10_dvs(raw / "there")
    for folder in list((raw / "there").iterdir()):
        zip_up(folder, raw / f"{folder.name}.ZIP")


def dvs_zip_of_zips(raw, compression, archive="CIFAR10DVS.zip", under=""):
    write_cifar10_dvs(raw / "there", archive=True)
    zip_up(raw / "there", raw / archive, compression, under)


def dvs_zip_of_folders(raw):
    write_cifar10_dvs(raw / "there")
    zip_up(raw / "there", raw / "cifar10-dvs.zip", DEFLATED, "CIFAR10DVS/")


def dvs_tar(raw):
    write_cifar10_dvs(raw / "there")
    tar_up(raw / "there", raw / "cifar10dvs.tar.gz", "w:gz")


def gesture_folder(raw, name):
    write_dvs_gesture(raw / "there")
    (raw / "there" / "DvsGesture").rename(raw / name)
    shutil.rmtree(raw / "there")


def gesture_tar(raw, name, mode):
    write_dvs_gesture(raw / "there")
    tar_up(raw / "there", raw / name, mode)


def gesture_zip(raw, name):
    write_dvs_gesture(raw / "there")
    zip_up(raw / "there", raw / name)


def gesture_tar_in_zip(raw, compression):
    write_dvs_gesture(raw / "there", archive=True)
    zip_up(raw / "there", raw / "DVS128Gesture.zip", compression)


def caltech_folder(raw, name):
    write_ncaltech101(raw / "there")
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / "there" / "Caltech101").rename(raw / name)
    shutil.rmtree(raw / "there")


def caltech_zip_in_zip(raw, archive, compression, under=""):
    write_ncaltech101(raw / "there", archive=True)
    zip_up(raw / "there", raw / archive, compression, under)


def caltech_zip_in_folder(raw):
    write_ncaltech101(raw / "caltech101", archive=True)


def caltech_zip_in_zip_in_zip(raw):
    caltech_zip_in_zip(raw / "a", "Caltech101.zip", DEFLATED)
    zip_up(raw / "a", raw / "N-Caltech101.zip", DEFLATED)


LAYOUTS = {
    "cifar10dvs": ("cifar10_dvs", lambda raw: dvs_folder(raw, "cifar10dvs")),
    "CIFAR10DVS/download": ("cifar10_dvs", lambda raw: dvs_folder(raw, "CIFAR10DVS/Download")),
    "Airplane.zip": ("cifar10_dvs", dvs_capital_zips),
    "airplane.ZIP without its folder": ("cifar10_dvs", dvs_flat_zips),
    "zip of zips, stored": ("cifar10_dvs", lambda raw: dvs_zip_of_zips(raw, STORED)),
    "zip of zips, compressed": ("cifar10_dvs", lambda raw: dvs_zip_of_zips(raw, DEFLATED)),
    "figshare's zip of zips": ("cifar10_dvs", lambda raw: dvs_zip_of_zips(raw, STORED, "4724671.zip", "data/")),
    "zip of folders": ("cifar10_dvs", dvs_zip_of_folders),
    "tar of folders": ("cifar10_dvs", dvs_tar),
    "dvs128gesture": ("dvs_gesture", lambda raw: gesture_folder(raw, "dvs128gesture")),
    "dvsgesture": ("dvs_gesture", lambda raw: gesture_folder(raw, "dvsgesture")),
    "DvsGesture.tar": ("dvs_gesture", lambda raw: gesture_tar(raw, "DvsGesture.tar", "w")),
    "dvsgesture.tgz": ("dvs_gesture", lambda raw: gesture_tar(raw, "dvsgesture.tgz", "w:gz")),
    "DvsGesture.zip": ("dvs_gesture", lambda raw: gesture_zip(raw, "DvsGesture.zip")),
    "tar.gz in a zip, stored": ("dvs_gesture", lambda raw: gesture_tar_in_zip(raw, STORED)),
    "tar.gz in a zip, compressed": ("dvs_gesture", lambda raw: gesture_tar_in_zip(raw, DEFLATED)),
    "caltech101": ("ncaltech101", lambda raw: caltech_folder(raw, "caltech101")),
    "Caltech101/Caltech101": ("ncaltech101", lambda raw: caltech_folder(raw, "N-Caltech101/Caltech101/Caltech101")),
    "class folders": ("ncaltech101", lambda raw: caltech_folder(raw, "n-caltech101")),
    "Caltech101.zip in a folder caltech101": ("ncaltech101", caltech_zip_in_folder),
    "Caltech101.zip in caltech101.zip": (
        "ncaltech101",
        lambda raw: caltech_zip_in_zip(raw, "caltech101.zip", DEFLATED),
    ),
    "Caltech101.zip in N-Caltech101-archive.zip": (
        "ncaltech101",
        lambda raw: caltech_zip_in_zip(raw, "N-Caltech101-archive.zip", STORED, "N-Caltech101-archive/"),
    ),
    "zip in zip in zip": ("ncaltech101", caltech_zip_in_zip_in_zip),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_sets_are_found_by_the_names_that_users_give_them(tmp_path, layout):
    """Every layout gives the cache of the plain folders, and nothing is written beside the data."""
    dataset, write = LAYOUTS[layout]
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw)
    before = {p: p.stat().st_mtime_ns for p in raw.rglob("*")}
    report = run(dataset, raw, tmp_path / "cache")
    WRITERS[dataset](tmp_path / "plain")
    plain = run(dataset, tmp_path / "plain", tmp_path / "expected")
    assert report.samples == plain.samples and not report.problems
    for file in ("frames.npy", "index.csv", "manifest.json"):
        assert (report.folder / file).read_bytes() == (plain.folder / file).read_bytes()
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*")} == before
    open_cache(dataset, tmp_path / "cache", 2, data_dir=raw)
    assert run(dataset, raw, tmp_path / "cache").read == 0


def test_a_damaged_zip_in_a_zip_is_one_sentence(tmp_path):
    write_ncaltech101(tmp_path / "there", archive=True)
    inner = (tmp_path / "there" / "Caltech101.zip").read_bytes()
    for content in (inner[:-30], b"nothing"):
        with zipfile.ZipFile(tmp_path / "ncaltech101.zip", "w") as z:
            z.writestr("Caltech101.zip", content)
        with pytest.raises(DataError, match=r"Caltech101.zip in .*ncaltech101.zip is not a readable archive"):
            find_recordings(SETS["ncaltech101"], tmp_path, tmp_path / "cache")


def test_a_set_that_is_not_found_names_what_was_looked_for(tmp_path):
    with pytest.raises(
        DataError, match="not found.*airplane.zip.*looked for the names cifar10_dvs, CIFAR10-DVS.*figshare"
    ):
        find_recordings(SETS["cifar10_dvs"], tmp_path)
    with pytest.raises(DataError, match="data_dir=.*absent does not exist: pass the folder that holds Caltech101.zip"):
        find_recordings(SETS["ncaltech101"], tmp_path / "absent")
    (tmp_path / "Caltech101.zip").write_bytes(b"")
    with pytest.raises(DataError, match="data_dir=.*Caltech101.zip is a file: pass the folder"):
        find_recordings(SETS["ncaltech101"], tmp_path / "Caltech101.zip")


# ------------------------------------------------------------------ links and odd files


def test_links_are_followed_and_loops_end(tmp_path):
    """Class folders and files may be links to anywhere; a link back up adds nothing and does not go on for ever."""
    written = write_ncaltech101(tmp_path / "store")
    raw = tmp_path / "raw" / "Caltech101"
    raw.mkdir(parents=True)
    for folder in (tmp_path / "store" / "Caltech101").iterdir():
        if folder.is_dir():
            (raw / folder.name).symlink_to(folder)
    (tmp_path / "store" / "Caltech101" / "accordion" / "loop").symlink_to(raw)
    (raw / "again").symlink_to(raw)
    (raw / "itself").symlink_to(raw / "itself")
    assert [s.name for s in find_recordings(SETS["ncaltech101"], tmp_path / "raw").samples] == sorted(written)
    run("ncaltech101", tmp_path / "raw", tmp_path / "cache")
    cache = open_cache("ncaltech101", tmp_path / "cache", 2)
    for i, name in enumerate(cache.names):
        assert np.array_equal(cache.frames[i], integrate(written[name], 2, (180, 240)))


def test_a_copy_further_down_does_not_replace_a_recording(tmp_path):
    trials = write_dvs_gesture(tmp_path)
    backup = tmp_path / "DvsGesture" / "old"
    backup.mkdir()
    for file in trials:
        (backup / file).write_bytes(b"an older copy")
    assert not run("dvs_gesture", tmp_path, tmp_path / "cache").problems


def test_a_pipe_and_a_dangling_link_are_bad_files_and_hang_nothing(tmp_path):
    write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    os.mkfifo(tmp_path / "raw/cat/cifar10_cat_1.aedat")
    (tmp_path / "raw/cat/cifar10_cat_2.aedat").symlink_to("/nowhere")
    with pytest.raises(DataError, match="2 of 6 recordings of cifar10_dvs are bad .*no file but a link to nothing"):
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
    found = find_recordings(SETS["dvs_gesture"], tmp_path)
    assert {s.file for s in found.samples} == set(trials) - {second} and len(found.samples) == 36
    assert sorted(found.problems) == ["'user,\"04\"_led.aedat'", second]
    assert "no name of a trial" in str(found.problems) and "no file but a link to nothing, a pipe" in str(
        found.problems
    )
    lists["test"].write_text(lists["test"].read_text() + third)
    with pytest.raises(DataError, match=f"{third} stands in trials_to_train.txt and in trials_to_test.txt"):
        find_recordings(SETS["dvs_gesture"], tmp_path)


# ------------------------------------------------------------------ where a cache may lie


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(("dataset", "name"), [("cifar10_dvs", "cifar10_dvs"), ("ncaltech101", "ncaltech101")])
def test_cache_dir_is_data_dir_is_refused_where_the_set_has_a_folder_of_that_name(tmp_path, dataset, name, archive):
    WRITERS[dataset](tmp_path / name, archive=archive)
    before = sorted(tmp_path.rglob("*"))
    for data_dir in (tmp_path, tmp_path / name):
        for cache_dir in (tmp_path, tmp_path / name, tmp_path / name / "cache"):
            with pytest.raises(UserError, match="inside of the data set's own folder .*choose a folder outside"):
                run(dataset, data_dir, cache_dir)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "link").symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="inside of the data set's own folder"):
        run(dataset, tmp_path, tmp_path / "link" / "cache")
    assert run(dataset, tmp_path, tmp_path / "cache").read


def test_archives_beside_the_cache_are_no_overlap(tmp_path):
    write_cifar10_dvs(tmp_path, archive=True)
    assert run("cifar10_dvs", tmp_path, tmp_path).read == 40
    assert run("cifar10_dvs", tmp_path, tmp_path).read == 0


def test_links_of_the_data_folder_do_not_make_every_cache_dir_inside(tmp_path):
    """A link to something at / once made / a folder of the data set."""
    write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    (tmp_path / "raw/cat/cifar10_cat_5.aedat").symlink_to("/cifar10_cat_5.aedat")
    (tmp_path / "cache").mkdir()
    shutil.move(tmp_path / "raw/cat/cifar10_cat_0.aedat", tmp_path / "cache/cifar10_cat_0.aedat")
    (tmp_path / "raw/cat/cifar10_cat_0.aedat").symlink_to(tmp_path / "cache/cifar10_cat_0.aedat")
    report = run("cifar10_dvs", tmp_path / "raw", tmp_path / "cache", allow_bad=True)
    assert report.samples == 4 and [p.name for p in report.problems] == ["cat/cifar10_cat_5.aedat"]
