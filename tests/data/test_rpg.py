"""RPGDrop and RPGMix: what they do with a relevance that is given, and whole runs, with EventMix, that stop and go on."""

import math

import numpy as np
import pytest
import torch

from snn_repro import train
from snn_repro.config import load_config
from snn_repro.data.augment.rpg import Box, RPGDrop, RPGMix, placed, salient_box
from snn_repro.data.batches import MemoryBatches, make_generator
from snn_repro.errors import UserError

T, B, H, W = 3, 4, 8, 10
LABELS = torch.arange(B)


def counts(b=B, most=6):
    return torch.randint(0, most, (T, b, 2, H, W), generator=make_generator(0)).float()


def seen(x, rule):
    """A relevance that is the frames' own: bright places count, sample by sample."""
    return x * torch.linspace(0, 1, W), x.sum(2, keepdim=True)[..., ::2, ::2] ** 3


def step(cls, *args, **options):
    made = cls(*args, **options)
    made.relevance = seen
    return made


def test_rpgdrop_drops_single_events_by_relevance():
    x = torch.full((T, 2, 2, H, W), 400.0)
    x[:, 1, 0] += 0.25  # resized frames
    drop = step(RPGDrop, 1.0)
    out, target = drop(x, LABELS[:2], make_generator(3))
    strength = drop.draw(2, make_generator(3))[0]
    assert torch.equal(target, LABELS[:2]) and ((0.5 <= strength) & (strength <= 1)).all()
    relevance = torch.linspace(0, 1, W)
    for b in range(2):
        expected = 1 - strength[b] * relevance
        found = (out[:, b] / x[:, b]).mean((0, 1, 2))
        assert (found - expected).abs().max() < 0.02
    assert {*(out[:, 1] % 1).unique().tolist()} == {0, 0.25} and (out <= x).all()
    assert torch.equal(drop(x, LABELS[:2], make_generator(3))[0], out)
    assert RPGDrop(0.0).draw(3, make_generator(0)) is None
    taken = [RPGDrop(0.1).draw(2, make_generator(s)) is not None for s in range(1000)]
    assert 70 < sum(taken) < 130


def test_rpgdrop_leaves_no_recording_empty_and_needs_a_network():
    x = torch.zeros(T, 1, 2, H, W)
    x[0, 0, 0, 0, -1] = 1  # its one event is all that counts
    for seed in range(10):
        assert step(RPGDrop, 1.0)(x, LABELS[:1], make_generator(seed))[0].sum() == 1
    with pytest.raises(UserError, match=r"augment.rpg_drop needs the network in training"):
        RPGDrop(1.0)(x, LABELS[:1], make_generator(0))


def test_boxes_lie_beside_one_another_or_in_corners():
    rng, ways = np.random.RandomState(0), set()
    for _ in range(2000):
        one, two = (Box(0, 0, rng.randint(1, H + 1), rng.randint(1, W + 1)) for _ in range(2))
        a, b = placed(one, two, (H, W), rng.rand(6).tolist())
        frames = torch.zeros(2, H, W)
        for frame, box, before in zip(frames, (a, b), (one, two), strict=True):
            assert box[2:] == before[2:] and 0 <= box.top <= H - box.height and 0 <= box.left <= W - box.width
            frame[box.top : box.top + box.height, box.left : box.left + box.width] = 1
        fits = one.height + two.height <= H, one.width + two.width <= W
        overlap = int((frames.sum(0) == 2).sum())
        if any(fits):
            assert overlap == 0
            ways.add((fits, a.left + a.width <= b.left, b.left + b.width <= a.left, a.top + a.height <= b.top))
        else:
            assert overlap == (one.height + two.height - H) * (one.width + two.width - W)
            corners = a.left == 0 and b.left == W - b.width and (a.top == 0) == (b.top == H - b.height)
            assert corners or a.height == H or b.height == H
    assert len(ways) >= 8
    assert salient_box(torch.zeros(H, W)) == (0, 0, H, W)  # without a place, the whole frame


@pytest.mark.parametrize("seed", range(5))
def test_rpgmix_is_its_rule_event_by_event(seed):
    x = torch.where(torch.rand(T, B, 2, H, W, generator=make_generator(seed)) < 0.15, counts(), 0)
    mix = step(RPGMix, B, 1.0)
    out, soft = mix(x, LABELS, make_generator(seed))
    draws = mix.draw(B, make_generator(seed))
    maps = seen(x, "")[1]
    for b in range(B):
        c = (b + 1) % B
        boxes = []
        for i in (b, c):
            m = (maps[:, i] - maps[:, i].min()) / (maps[:, i].max() - maps[:, i].min())
            large = torch.nn.functional.interpolate(m.mean(0, keepdim=True), (H, W), mode="bilinear")[0, 0]
            ys, xs = np.nonzero((large >= large.mean()).numpy())
            boxes.append(Box(ys.min(), xs.min(), ys.max() - ys.min() + 1, xs.max() - xs.min() + 1))
        places = placed(*boxes, (H, W), draws[b].tolist())
        expected = torch.zeros(T, 2, H, W)
        for i, old, new in zip((b, c), boxes, places, strict=True):
            for t, p, y, z in x[:, i].nonzero().tolist():
                to_y, to_x = y + new.top - old.top, z + new.left - old.left
                second = places[1]
                inside = 0 <= to_y - second.top < second.height and 0 <= to_x - second.left < second.width
                if 0 <= to_y < H and 0 <= to_x < W and inside == (i == c):
                    expected[t, p, to_y, to_x] += x[t, i, p, y, z]
        assert torch.equal(out[:, b], expected)
        covered = torch.zeros(2, H, W)
        for frame, box in zip(covered, places, strict=True):
            frame[box.top : box.top + box.height, box.left : box.left + box.width] = 1
        mine = float(covered[0].sum() - (covered.sum(0) == 2).sum())
        assert soft[b, b] == pytest.approx(mine / (mine + float(covered[1].sum())))
    assert torch.allclose(soft.sum(1), torch.ones(B)) and soft.dtype == torch.float32


@pytest.mark.parametrize("made", [lambda: step(RPGDrop, 0.7), lambda: step(RPGMix, 5, 0.7)])
def test_shares_of_a_batch_are_the_batch_of_one(made):
    frames = counts(31).transpose(0, 1).numpy()
    whole = MemoryBatches(frames, np.arange(31) % 5, 12, seed=3, shuffle=True, transforms=[made()])
    one, plain = list(whole.epoch(4)), MemoryBatches(frames, np.arange(31) % 5, 12, seed=3, shuffle=True)
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(one, plain.epoch(4), strict=True))
    for world in (2, 3):
        for rank in range(world):
            for start in (0, 2):
                for (x, y), (own_x, own_y) in zip(one[start:], whole.shard(rank, world).epoch(4, start), strict=True):
                    assert torch.equal(own_x, x[:, rank::world]) and torch.equal(own_y, y[rank::world])


WORDS = ["dataset=digits_dvs", "loss=tet", "augment.rpg_drop=0.5", "augment.rpg_mix=0.5", "augment.eventmix=1", "recipe.epochs=2",
         "debug.max_steps=3", "recipe.batch_size=8", "debug.max_eval_batches=1", "logger.mode=disabled", "threads=1", "timesteps=4"]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("frames")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["slrp", "sltrp"])
def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, rule, cache):
    words = [*WORDS, f"augment.rpg_relevance={rule}", f"cache_dir={cache}"]
    whole = train.run(load_config([*words, f"hydra.run.dir={tmp_path}/whole"]))
    step_of = train.Training.train_step
    with monkeypatch.context() as broken:
        done = []

        def stops(self, *args):
            done.append(1)
            if len(done) == 5:  # in the middle of the second epoch
                self.stop.signum = 15
            return step_of(self, *args)

        broken.setattr(train.Training, "train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            train.run(load_config([*words, f"hydra.run.dir={tmp_path}/again"]))
    again = train.run(load_config([*words, f"hydra.run.dir={tmp_path}/again"]))
    assert again["loss_last"] == whole["loss_last"] and again["train_loss_last"] == whole["train_loss_last"]
    assert math.isfinite(whole["loss_last"])


def test_a_neuron_without_a_rule_is_refused_before_data_are_read(monkeypatch):
    from snn_repro.neurons import NEURONS, Neuron, register

    class Rectified(Neuron):
        def charge(self, v, x):
            return (v + x).relu()

    register("rectified")(Rectified)
    try:
        config = load_config(WORDS)
        config.neuron.name = "rectified"
        with pytest.raises(UserError, match=r"augment.rpg_drop needs relevance .* the neuron 'rectified' \(sn1\)"):
            train.check_settings(config)
    finally:
        NEURONS.pop("rectified")
        NEURONS._owners.pop("rectified")
