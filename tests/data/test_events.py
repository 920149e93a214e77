import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tonic.transforms import ToFrame

from snn_repro.data.events import Events, _count_events, integrate, to_frames
from snn_repro.errors import DataError, UserError


def recording(n, size=(12, 10), seed=0, duration=1000):
    rng = np.random.default_rng(seed)
    return Events(
        np.sort(rng.integers(0, duration, n)),
        rng.integers(0, size[1], n).astype(np.int16),
        rng.integers(0, size[0], n).astype(np.int16),
        rng.integers(0, 2, n).astype(np.uint8),
    )


def by_the_rule(events, timesteps, size, by):
    """The published rule, one event at a time."""
    t, x, y, p = (values.tolist() for values in events)
    frames = np.zeros((timesteps, 2, *size), np.int64)
    width = len(t) // timesteps if by == "number" else (t[-1] - t[0]) // timesteps if t else 0
    for i in range(len(t)):
        place = i if by == "number" else t[i] - t[0]
        frame = place // width if width else timesteps
        if frame < timesteps or by != "braincog":
            frames[min(frame, timesteps - 1), p[i], y[i], x[i]] += 1
    return frames


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 60),
    timesteps=st.integers(1, 17),
    by=st.sampled_from(["number", "time", "braincog"]),
    duration=st.sampled_from([1, 5, 1000]),
    seed=st.integers(0, 2**31),
)
def test_every_event_lands_where_the_rule_puts_it(n, timesteps, by, duration, seed):
    events = recording(n, seed=seed, duration=duration)
    frames = integrate(events, timesteps, (12, 10), by)
    assert frames.dtype == np.uint8 and frames.shape == (timesteps, 2, 12, 10)
    np.testing.assert_array_equal(frames, by_the_rule(events, timesteps, (12, 10), by))
    assert by == "braincog" or frames.sum() == n


def test_braincogs_frames_are_those_of_tonic_resized_from_corner_to_corner():
    """get_NCALTECH101_data of BrainCog's datasets.py (commit 3998fd5), and tonic's reader, which moves events to the origin."""
    events = recording(4000, (90, 120))
    moved = events._replace(x=events.x + np.int16(20), y=events.y + np.int16(9), t=events.t + 5)
    kinds = [("x", int), ("y", int), ("t", int), ("p", int)]
    table = np.array(list(zip(events.x, events.y, events.t, events.p, strict=True)), kinds)
    counts = torch.tensor(ToFrame(sensor_size=None, n_time_bins=7)(table), dtype=torch.float)
    assert counts.sum() < 4000  # the rest of the time is in no frame
    expected = torch.nn.functional.interpolate(counts, size=[48, 48], mode="bilinear", align_corners=True)
    np.testing.assert_array_equal(to_frames(moved, (180, 240), 7, "braincog", 48), expected.half())
    jittered = moved._replace(t=np.concatenate([moved.t[:1], moved.t[1:-1][::-1], moved.t[-1:]]))
    assert integrate(jittered, 7, (180, 240), "braincog").sum() == counts.sum()


def test_the_last_frame_takes_the_remainder():
    assert integrate(recording(2005), 10, (12, 10)).sum((1, 2, 3)).tolist() == [200] * 9 + [205]
    assert integrate(recording(3), 10, (12, 10)).sum((1, 2, 3)).tolist() == [0] * 9 + [3]


def test_an_empty_time_bin_is_an_empty_frame():
    events = recording(4)._replace(t=np.array([100, 101, 109, 130]))
    assert integrate(events, 3, (12, 10), "time").sum((1, 2, 3)).tolist() == [3, 0, 1]


def test_times_that_jitter_backwards_are_binned_one_by_one():
    events = recording(5)._replace(t=np.array([0, 60, 49, 51, 100]))
    assert integrate(events, 2, (12, 10), "time").sum((1, 2, 3)).tolist() == [2, 3]


def test_channel_0_is_polarity_0():
    one = Events(np.array([5]), np.array([3], np.int16), np.array([7], np.int16), np.array([0], np.uint8))
    assert integrate(one, 1, (12, 10))[0, 0, 7, 3] == 1
    assert integrate(one._replace(p=np.array([1], np.uint8)), 1, (12, 10))[0, 1, 7, 3] == 1


@pytest.mark.parametrize(
    "n, dtype", [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32), (70000, np.uint32)]
)
def test_a_hot_pixel_widens_the_counts(n, dtype):
    hot = Events(np.arange(n), np.zeros(n, np.int16), np.zeros(n, np.int16), np.zeros(n, np.uint8))
    frames = integrate(hot, 1, (2, 2))
    assert frames.dtype == dtype and frames[0, 0, 0, 0] == n and frames.sum() == n


def test_many_events_on_many_pixels_stay_narrow():
    frames = integrate(recording(20_000), 1, (12, 10))  # 83 a pixel
    assert frames.dtype == np.uint8 and frames.sum() == 20_000


@pytest.mark.parametrize("field, value", [("x", 10), ("x", -1), ("y", 12), ("y", -1), ("p", 2)])
def test_an_event_outside_of_the_sensor_is_named(field, value):
    events = recording(50)
    getattr(events, field).view(np.int16 if field != "p" else np.int8)[17] = value
    with pytest.raises(DataError, match="event 17 of 50 .*12 x 10"):
        integrate(events, 4, (12, 10))


def test_wide_arrays_are_accepted_but_never_wrapped():
    events = recording(50)
    wide = Events(*(values.astype(np.int64) for values in events))
    np.testing.assert_array_equal(integrate(wide, 4, (12, 10)), integrate(events, 4, (12, 10)))
    wide.x[3] = 65536 + 5
    with pytest.raises(DataError, match=r"events\.x reaches"):
        integrate(wide, 4, (12, 10))


def test_bad_arguments():
    events = recording(5)
    with pytest.raises(UserError, match="timesteps=0"):
        integrate(events, 0, (12, 10))
    with pytest.raises(UserError, match="dataset.integrate_by='size'"):
        integrate(events, 2, (12, 10), "size")
    with pytest.raises(DataError, match="four arrays of N integers"):
        integrate(events._replace(x=events.x[:3]), 2, (12, 10))
    with pytest.raises(DataError, match="four arrays of N integers, not float64"):
        integrate(events._replace(t=events.t.astype(float)), 2, (12, 10))
    with pytest.raises(DataError, match="before it begins"):
        integrate(events._replace(t=events.t[::-1] + np.arange(5)[::-1]), 2, (12, 10), "time")


def test_compiled_and_plain_python_agree():
    x, y, p = recording(500)[1:]
    frames = np.zeros((3, 240), np.uint16)
    assert _count_events(x, y, p, np.array([100, 100, 500]), frames, 12, 10, 65535)
    np.testing.assert_array_equal(frames[0].reshape(2, 12, 10), integrate(Events(x, x, y, p), 5, (12, 10))[0])
    assert frames.sum(1).tolist() == [100, 0, 400]
