import numpy as np
import pytest

from snn_repro.data.emulator import Camera, _simulate, emulate, emulate_recording, saccades
from snn_repro.data.events import compiled
from snn_repro.errors import UserError

QUIET = Camera(noise=0.0, mismatch=0.0)


def spot(size=8, value=1.0):
    image = np.zeros((size, size))
    image[size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1] = value
    return image


def same(a, b):
    return all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))


def test_a_recording_is_sorted_typed_and_inside_of_the_sensor():
    t, x, y, p = emulate_recording(spot())
    assert (t.dtype, x.dtype, y.dtype, p.dtype) == (np.int64, np.int16, np.int16, np.uint8)
    assert len(t) > 100 and np.all(np.diff(t) >= 0) and t[0] >= 0 and t[-1] <= 300_000
    assert x.min() >= 0 and x.max() < 24 and y.min() >= 0 and y.max() < 24 and set(p) == {0, 1}


def test_equal_seeds_give_equal_events_and_others_do_not():
    first = emulate_recording(spot(), seed=3)
    assert same(first, emulate_recording(spot(), seed=3))
    assert not same(first, emulate_recording(spot(), seed=4))


def test_one_by_one_and_all_at_once_agree():
    images = np.stack([spot(), spot(value=0.5), spot()])[:, None].astype(np.float32)
    recordings = list(emulate(images, seed=7))
    for i, recording in enumerate(recordings):
        assert same(recording, emulate_recording(images[i], seed=7, index=i))
    assert not same(recordings[0], recordings[2])  # the same camera and image, other noise


def test_a_uniform_scene_gives_noise_alone():
    black = np.zeros((8, 8))
    assert len(emulate_recording(black, camera=QUIET).t) == 0
    noisy = [len(e.t) for e in emulate(np.zeros((50, 8, 8)), camera=Camera())]
    assert 25 < np.mean(noisy) < 45  # 0.2 Hz x 576 pixels x 0.3 s = 34.6


def test_events_carry_the_change_of_log_luminance():
    """Each event stands for one threshold: what a pixel fired in sum is its change, to within one threshold."""
    camera = Camera(noise=0.0, mismatch=0.0, refractory=0, scale=1.0, scene=10, pad=1, amplitude=4.0)
    events = emulate_recording(spot(), camera=camera)
    first_saccade = events.t < 100_000
    signs = np.where(events.p == 1, 1, -1)[first_saccade]
    fired = np.zeros((10, 10))
    np.add.at(fired, (events.y[first_saccade], events.x[first_saccade]), 0.25 * signs)

    def seen(dx, dy):  # integer shifts need no interpolation
        scene = np.zeros((10, 10))
        scene[4 + dy : 6 + dy, 4 + dx : 6 + dx] = 1
        return np.log(0.15 + 0.85 * scene)

    change = seen(0, 2) - seen(-2, -2)
    assert np.abs(change - fired).max() < 0.25 + 1e-9


def test_a_moving_bright_spot_fires_both_polarities_and_returns_to_its_start():
    events = emulate_recording(spot(), camera=QUIET)
    assert 0.4 < events.p.mean() < 0.6
    rate = np.histogram(events.t, np.arange(0, 300_001, 10_000))[0].reshape(3, 10)
    assert (rate.argmax(1) > 1).all() and (rate.argmax(1) < 8).all()  # three saccades, each slow-fast-slow
    path = saccades(Camera())
    np.testing.assert_allclose(path[0], path[-1], atol=1e-12)
    np.testing.assert_allclose(path[[0, 20, 40]], [(-1.5, -1.5), (0, 1.5), (1.5, -1.5)], atol=1e-12)


def test_the_refractory_time_is_kept():
    events = emulate_recording(spot(), camera=Camera(noise=0.0, threshold=0.02, mismatch=0.0, refractory=5_000))
    for pixel in np.unique(events.y * 24 + events.x):
        t = events.t[events.y * 24 + events.x == pixel]
        assert np.all(np.diff(t) >= 4_999)  # times are cut to whole microseconds


def test_a_recording_larger_than_the_first_buffer_is_complete():
    sensitive = Camera(noise=0.0, mismatch=0.0, threshold=0.01, refractory=0)
    image = spot()
    image[:, 2] = 0.7
    many = emulate_recording(image, camera=sensitive)
    assert len(many.t) > 1 << 12
    assert same(many, list(emulate(np.stack([image, image]), camera=sensitive))[1])


def test_compiled_and_plain_python_agree():
    rng = np.random.default_rng(0)
    scene, path = 0.15 + 0.85 * rng.random((6, 6)), saccades(Camera(steps=12))
    thresholds = rng.normal(0.25, 0.03, (2, 6, 6))
    buffers = [np.zeros((4096, 3), np.int64) for _ in range(2)]
    counts = [
        f(scene, path, thresholds, 25e3, 1e3, b) for f, b in zip((_simulate, compiled(_simulate)), buffers, strict=True)
    ]
    assert counts[0] == counts[1] > 100
    assert np.abs(buffers[0] - buffers[1]).max() <= 1  # a time may round to the next microsecond


@pytest.mark.parametrize(
    "image, camera, message",
    [
        (np.full((8, 8), 1.5), Camera(), "values in 0..1"),
        (np.full((8, 8), np.nan), Camera(), "values in 0..1"),
        (np.zeros((28, 28)), Camera(), "does not fit in a scene of 24 x 24"),
        (np.zeros((3, 8, 8)), Camera(), "not \\(1, 3, 8, 8\\)"),
    ],
)
def test_bad_images(image, camera, message):
    with pytest.raises(UserError, match=message):
        emulate_recording(image, camera=camera)
