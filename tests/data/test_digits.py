import hashlib

import numpy as np
import pytest
import torch
from fixtures import digits_dvs_frames

from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.data.sets import digits
from snn_repro.data.sets.digits import load_digits, sample_names
from snn_repro.data.splits import carve_validation
from snn_repro.errors import DataError, UserError

TEST_SHA256 = "6a5efb0f77612c0c0e1b3f34c22728b043a274f5c6a1150100354ad5d9f33fc7"


def split_digits(labels, validation=0.0, split_seed=0):
    train, test = digits.train_test()
    return *carve_validation(train, labels, validation, split_seed), test


def test_the_test_part_is_fixed_and_stratified():
    labels = load_digits()[1]
    train, val, test = split_digits(labels)
    assert (len(train), len(val), len(test)) == (1347, 0, 450)
    assert set(train) | set(test) == set(range(1797))
    assert np.ptp(np.bincount(labels[test])) <= 3
    listing = "".join(f"{name}\n" for name in sorted(sample_names(test)))
    assert hashlib.sha256(listing.encode()).hexdigest() == TEST_SHA256


def test_images_and_test_part_are_scikit_learns():
    from sklearn import datasets, model_selection

    theirs = datasets.load_digits()
    images, labels = load_digits()
    np.testing.assert_array_equal(images[:, 0] * 16, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32 and labels.dtype == np.int64
    drawn = model_selection.train_test_split(np.arange(1797), test_size=450, stratify=labels, random_state=0)
    for ours, part in zip(split_digits(labels)[::2], drawn, strict=True):
        np.testing.assert_array_equal(ours, np.sort(part))


@pytest.mark.parametrize(
    "found, sentence",
    [(None, "pip install scikit-learn"), ("nowhere/__init__.py", "nowhere/datasets/data/digits.csv.gz")],
)
def test_digits_that_are_not_there(monkeypatch, found, sentence):
    spec = found and type("Spec", (), {"origin": found})
    monkeypatch.setattr(digits, "find_spec", lambda name: spec)
    digits._table.cache_clear()
    with pytest.raises(DataError, match=sentence):
        load_digits()
    digits._table.cache_clear()


def test_validation_is_carved_from_train_alone():
    labels = load_digits()[1]
    test = split_digits(labels)[2]
    train, val, same_test = split_digits(labels, 0.1, split_seed=5)
    np.testing.assert_array_equal(test, same_test)
    assert len(train) + len(val) == 1347 and not set(val) & set(test) and not set(val) & set(train)
    assert np.bincount(labels[val]).min() >= 13
    assert val.tolist() != split_digits(labels, 0.1, split_seed=6)[1].tolist()


def test_frames_count_every_event():
    frames = digits_dvs_frames(10)
    assert frames.shape == (1797, 10, 2, 24, 24) and frames.dtype == np.uint8
    per_frame = frames.sum((2, 3, 4), dtype=np.int64)
    assert np.all(per_frame[:, :-1] == per_frame[:, :1]) and np.all(per_frame[:, -1] - per_frame[:, 0] < 10)
    assert 1500 < per_frame.sum(1).mean() < 1850


@pytest.fixture
def few_digits(monkeypatch):
    images, labels = load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (images[:20], labels[:20]))


@pytest.mark.filterwarnings("error")
def test_frames_depend_on_their_settings_alone_and_are_kept(tmp_path, few_digits):
    cache = tmp_path / "new" / "folder"
    frames = digits_dvs_frames(2, cache_dir=cache)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    for again in (digits_dvs_frames(2), digits_dvs_frames(2, cache_dir=cache)):
        np.testing.assert_array_equal(frames, again)
    assert file.stat().st_mtime_ns == written
    for other in (dict(seed=1), dict(by="time")):
        assert not np.array_equal(frames, digits_dvs_frames(2, cache_dir=cache, **other))
    assert len(list(cache.iterdir())) == 3


def _flip_one_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_one_byte,
        lambda file: file.write_bytes(file.read_bytes()[:1000]),
        lambda file: np.save(file, np.zeros((20, 2, 2, 24, 24), np.uint8)),
        lambda file: np.save(file, np.array([{"a": 1}], object), allow_pickle=True),
    ],
)
def test_a_damaged_or_foreign_cache_is_never_used(tmp_path, few_digits, damage):
    frames = digits_dvs_frames(2, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    damage(file)
    with pytest.warns(UserWarning, match="made again"):
        np.testing.assert_array_equal(frames, digits_dvs_frames(2, cache_dir=tmp_path))
    assert file.read_bytes() == good and len(list(tmp_path.iterdir())) == 1


def test_a_cache_folder_that_cannot_be_written_costs_a_warning(tmp_path, few_digits):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot keep frames"):
        assert digits_dvs_frames(2, cache_dir=tmp_path / "file/cache").shape == (20, 2, 2, 24, 24)


def test_build_digits():
    data = build_data(load_config(["dataset=digits", "dataset.validation=0.1", "recipe.batch_size=64"]))
    assert data.static and data.input_shape == (1, 8, 8) and data.num_classes == 10
    split = data.split
    assert split.n_train + split.n_val == 1347 and split.n_test == 450 and split.sha256_test == TEST_SHA256
    x, target = next(data.train.epoch(0))
    assert x.shape == (64, 1, 8, 8) and x.dtype == torch.float32 and target.dtype == torch.int64
    seen = torch.cat([y for _, y in data.test.epoch(0)]).numpy()
    labels = load_digits()[1]
    np.testing.assert_array_equal(seen, labels[split_digits(labels)[2]])


def test_build_digits_dvs(tmp_path):
    options = ["dataset=digits_dvs", "timesteps=3", f"cache_dir={tmp_path}"]
    data = build_data(load_config(options))
    assert not data.static and data.input_shape == (2, 24, 24)
    assert data.split.sha256_test == TEST_SHA256
    x, _ = next(data.test.epoch(0))
    assert x.shape[0] == 3 and x.shape[2:] == (2, 24, 24) and x.dtype == torch.float32
    first = split_digits(load_digits()[1])[2][0]
    np.testing.assert_array_equal(x[:, 0].numpy(), digits_dvs_frames(3, cache_dir=tmp_path)[first])


def test_the_run_seed_changes_the_order_and_not_the_parts():
    a, b = (build_data(load_config(["dataset=digits", f"seed={seed}"])) for seed in (0, 1))
    assert a.split == b.split
    assert not torch.equal(next(a.train.epoch(0))[1], next(b.train.epoch(0))[1])


@pytest.mark.parametrize(
    "dataset, wrong",
    [
        ("digits", "augment.randaugment_ops=2"),
        ("digits_dvs", "augment.eventdrop=true"),
        ("digits_dvs", "dataset.frame_size=48"),
    ],
)
def test_what_the_embedded_data_cannot_do(dataset, wrong):
    with pytest.raises(UserError, match=wrong.split("=")[0]):
        build_data(load_config([f"dataset={dataset}", wrong]))
