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
from numpy.testing import assert_array_equal

from snn_repro.data.events import integrate
from snn_repro.data.recordings import find_recordings, read_entry
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


def moved(write, name, **options):
    """What a fixture writes, in the folder `name`."""

    def lay(raw):
        write(raw / "there", **options)
        inside = {write_dvs_gesture: "DvsGesture", write_ncaltech101: "Caltech101"}.get(write, ".")
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / "there" / inside).rename(raw / name)
        shutil.rmtree(raw / "there", ignore_errors=True)

    return lay


def packed(write, name, compression=STORED, under="", **options):
    """What a fixture writes, in an archive."""

    def lay(raw):
        write(raw / "there", **options)
        if name.endswith("zip"):
            return zip_up(raw / "there", raw / name, compression, under)
        with tarfile.open(raw / name, "w" if name.endswith("tar") else "w:gz") as t:
            t.add(raw / "there", ".")
        shutil.rmtree(raw / "there")

    return lay


def dvs_capital_zips(raw):
    write_cifar10_dvs(raw / "extract", archive=True)
    for path in (raw / "extract").iterdir():
        path.rename(path.with_name(path.name.capitalize()))


def dvs_flat_zips(raw):
    write_cifar10_dvs(raw / "there")
    for folder in list((raw / "there").iterdir()):
        zip_up(folder, raw / f"{folder.name}.ZIP")


def caltech_zip_in_zip_in_zip(raw):
    packed(write_ncaltech101, "Caltech101.zip", DEFLATED, archive=True)(raw / "a")
    zip_up(raw / "a", raw / "N-Caltech101.zip", DEFLATED)


DVS, GESTURE, CALTECH = write_cifar10_dvs, write_dvs_gesture, write_ncaltech101
LAYOUTS = {
    "cifar10_dvs": {
        "cifar10dvs": moved(DVS, "cifar10dvs"),
        "CIFAR10DVS/download": moved(DVS, "CIFAR10DVS/Download"),
        "Airplane.zip": dvs_capital_zips,
        "airplane.ZIP without its folder": dvs_flat_zips,
        "zip of zips": packed(DVS, "CIFAR10DVS.zip", DEFLATED, archive=True),
        "figshare's zip of zips": packed(DVS, "4724671.zip", STORED, "data/", archive=True),
        "zip of folders": packed(DVS, "cifar10-dvs.zip", DEFLATED, "CIFAR10DVS/"),
        "tar of folders": packed(DVS, "cifar10dvs.tar.gz"),
    },
    "dvs_gesture": {
        "dvs128gesture": moved(GESTURE, "dvs128gesture"),
        "dvsgesture": moved(GESTURE, "dvsgesture"),
        "DvsGesture.tar": packed(GESTURE, "DvsGesture.tar"),
        "dvsgesture.tgz": packed(GESTURE, "dvsgesture.tgz"),
        "DvsGesture.zip": packed(GESTURE, "DvsGesture.zip"),
        "tar.gz in a zip": packed(GESTURE, "DVS128Gesture.zip", DEFLATED, archive=True),
    },
    "ncaltech101": {
        "caltech101": moved(CALTECH, "caltech101"),
        "Caltech101/Caltech101": moved(CALTECH, "N-Caltech101/Caltech101/Caltech101"),
        "class folders": moved(CALTECH, "n-caltech101"),
        "Caltech101.zip in a folder caltech101": lambda raw: write_ncaltech101(raw / "caltech101", archive=True),
        "Caltech101.zip in caltech101.zip": packed(CALTECH, "caltech101.zip", DEFLATED, archive=True),
        "with a folder in it": packed(
            CALTECH, "N-Caltech101-archive.zip", STORED, "N-Caltech101-archive/", archive=True
        ),
        "zip in zip in zip": caltech_zip_in_zip_in_zip,
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """{data set: the cache of its plain folders}."""
    folder, made = tmp_path_factory.mktemp("plain"), {}
    for dataset, write in WRITERS.items():
        write(folder / dataset / "raw")
        made[dataset] = run(dataset, folder / dataset / "raw", folder / dataset / "cache").folder
    return made


@pytest.mark.parametrize("dataset, layout", [(d, name) for d, layouts in LAYOUTS.items() for name in layouts])
def test_data_sets_are_found_by_the_names_that_users_give_them(tmp_path, plain, dataset, layout):
    """Every layout gives the cache of the plain folders, and nothing is written beside the data."""
    raw = tmp_path / "raw"
    raw.mkdir()
    LAYOUTS[dataset][layout](raw)
    before = {p: p.stat().st_mtime_ns for p in raw.rglob("*")}
    report = run(dataset, raw, tmp_path / "cache")
    assert not report.problems
    for file in ("frames.npy", "index.csv", "manifest.json"):
        assert (report.folder / file).read_bytes() == (plain[dataset] / file).read_bytes()
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*")} == before
    assert run(dataset, raw, tmp_path / "cache").read == 0


# ------------------------------------------------------------------ archives


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
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_do_not_reach_outside(tmp_path, kind, name):
    (tmp_path / "raw").mkdir()
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "raw/Caltech101.zip", "w") as z:
            z.writestr(name, b"12345")
    else:
        with tarfile.open(tmp_path / "raw/DvsGesture.tar.gz", "w:gz") as t:
            t.addfile(tarfile.TarInfo(name))
    with contextlib.suppress(DataError):
        find_recordings(SETS["ncaltech101" if kind == "zip" else "dvs_gesture"], tmp_path / "raw", tmp_path / "cache")
    written = [p for p in tmp_path.rglob("*") if p.is_file() and not p.match("*.lock")]
    inside = next((tmp_path / "cache/unpacked").glob("*/"), tmp_path / "none")
    assert [p for p in written if not p.is_relative_to(inside)] == [next((tmp_path / "raw").iterdir())]
    assert not Path("/accordion").exists()


def test_damaged_archives_are_one_sentence_and_a_damaged_member_is_one_bad_file(tmp_path):
    write_ncaltech101(tmp_path / "raw", archive=True)
    archive = tmp_path / "raw" / "Caltech101.zip"
    whole = archive.read_bytes()
    for content in (whole[:-30], b"nothing"):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"Caltech101.zip is not a readable archive"):
            find_recordings(SETS["ncaltech101"], tmp_path / "raw", tmp_path / "cache")
        (tmp_path / "outer").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / "outer/ncaltech101.zip", "w") as z:
            z.writestr("Caltech101.zip", content)
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
        DataError, match="not found.*airplane.zip.*looked for the names cifar10_dvs, CIFAR10-DVS.*figshare"
    ):
        find_recordings(SETS["cifar10_dvs"], tmp_path)
    with pytest.raises(DataError, match="data_dir=.*absent does not exist: pass the folder that holds Caltech101.zip"):
        find_recordings(SETS["ncaltech101"], tmp_path / "absent")
    (tmp_path / "Caltech101.zip").write_bytes(b"")
    with pytest.raises(DataError, match="data_dir=.*Caltech101.zip is a file: pass the folder"):
        find_recordings(SETS["ncaltech101"], tmp_path / "Caltech101.zip")
    with pytest.raises(UserError, match="data_dir is not set"):
        find_recordings(SETS["dvs_gesture"], None)


# ------------------------------------------------------------------ links and odd files


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
    for name, entry in found.files.items():
        assert_array_equal(integrate(SETS["ncaltech101"].decode(read_entry(entry, name), name), 2, (180, 240)),
                           integrate(written[name], 2, (180, 240)))  # fmt: skip


def test_pipes_dangling_links_and_copies_further_down(tmp_path):
    write_cifar10_dvs(tmp_path / "raw", classes=("cat",))
    os.mkfifo(tmp_path / "raw/cat/cifar10_cat_1.aedat")
    (tmp_path / "raw/cat/cifar10_cat_2.aedat").symlink_to("/nowhere")
    for file in (tmp_path / "raw/cat").glob("*_0.aedat"):
        (tmp_path / "raw/download/cat").mkdir(parents=True)
        (tmp_path / "raw/download/cat" / file.name).write_bytes(b"an older copy")
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
    found = find_recordings(SETS["dvs_gesture"], root)
    assert {s.file for s in found.samples} == set(trials) - {second} and len(found.samples) == 36
    assert sorted(found.problems) == sorted(['user,"04"_led.aedat', second])
    assert "no name of a trial" in str(found.problems) and "no file but a link to nothing, a pipe" in str(
        found.problems
    )
    lists["test"].write_text(lists["test"].read_text() + third)
    with pytest.raises(DataError, match=f"{third} stands in trials_to_train.txt and in trials_to_test.txt"):
        find_recordings(SETS["dvs_gesture"], tmp_path)
    lists["test"].unlink()
    with pytest.raises(DataError, match="trials_to_test.txt is missing"):
        find_recordings(SETS["dvs_gesture"], tmp_path)


# ------------------------------------------------------------------ where a cache may lie


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
