"""EventMix and EventDrop's cross against references written from their papers' rules; augmentations as choices."""

import math

import numpy as np
import pytest
import torch

from snn_repro.build import check_settings
from snn_repro.config import ConfigError, config_hash, keys, load_config
from snn_repro.data.augment.eventdrop import EventDrop
from snn_repro.data.augment.eventmix import EventMix
from snn_repro.data.batches import MemoryBatches, make_generator
from snn_repro.data.events import Events
from snn_repro.losses import Loss
from snn_repro.registry import AUGMENTATIONS

T, B, H, W = 3, 6, 7, 9
LABELS = torch.arange(B)


def counts(seed=0, b=B):
    return torch.randint(0, 5, (T, b, 2, H, W), generator=make_generator(seed)).float()


def reference(x, labels, draws, num_classes):
    """EventMix, place by place, in float64."""
    out, soft = x.clone(), torch.eye(num_classes)[labels]
    for i, j in enumerate(draws.other.tolist()):
        part = float(draws.part[i])
        if part == 0:
            continue
        density = np.zeros((T, H, W))
        for weight, mean, width in zip(draws.weight[i], draws.mean[i], draws.width[i], strict=True):
            for t, y, z in np.ndindex(T, H, W):
                exponent = sum(
                    (place - math.floor(float(m) * n)) ** 2 / (n * max(float(w), 0.1) / 2) ** 2
                    for place, n, m, w in zip((t, y, z), (T, H, W), mean, width, strict=True)
                )
                density[t, y, z] += float(weight) * math.exp(-exponent / 2)
        ranks = density.ravel().argsort().argsort().reshape(density.shape)
        mask = ranks >= int(density.size * (1 - part))
        a, b = (float(v.numpy().sum(1)[mask].sum() / v.sum()) for v in (x[:, i], x[:, j]))
        if 1 - a + b == 0:
            continue
        own = (1 - a) / (1 - a + b)
        where = torch.from_numpy(mask).unsqueeze(1)
        out[:, i] = torch.where(where, x[:, j], x[:, i])
        soft[i] = own * torch.eye(num_classes)[labels[i]] + (1 - own) * torch.eye(num_classes)[labels[j]]
    return out, soft


@pytest.mark.parametrize("seed", range(4))
def test_eventmix_is_the_mixture_of_gaussians_of_its_paper(seed):
    x, step = counts(seed), EventMix(B, 1.0, 0.8)
    out, soft = step(x, LABELS, make_generator(seed))
    expected, labels = reference(x, LABELS, step.draw(B, make_generator(seed)), B)
    assert torch.equal(out, expected)
    assert torch.allclose(soft, labels, atol=1e-6) and torch.allclose(soft.sum(1), torch.ones(B))


def test_eventmix_draws_what_it_says():
    draws = EventMix(10, 1.0, 0.7).draw(4000, make_generator(0))
    mixed = draws.part > 0
    assert 0.67 < mixed.float().mean() < 0.73 and 0.47 < draws.part[mixed].mean() < 0.53  # Beta(1, 1) is uniform
    components = (draws.weight > 0).sum(1)
    assert components.unique().tolist() == [2, 3, 4] and 0.3 < (components == 2).float().mean() < 0.37
    assert sorted(draws.other.tolist()) == list(range(4000))


def test_eventmix_weighs_labels_by_events_and_leaves_no_recording_empty():
    x = torch.zeros(T, 2, 2, H, W)
    x[:, 0] = 1  # the other is empty
    for seed in range(20):
        out, soft = EventMix(2, 0.5)(x, torch.tensor([0, 1]), make_generator(seed))
        assert out.sum((0, 2, 3, 4))[0] > 0
        if soft[1, 0] > 0:  # a recording without events that took some is what they are
            assert soft[1, 0] == pytest.approx(out[:, 1].mean().item() / (1 + out[:, 1].mean().item()), abs=1e-6)
    everything = EventMix(2, 1.0)
    draws = everything.draw(2, make_generator(0))._replace(other=torch.tensor([1, 0]), part=torch.ones(2).double())
    out, soft = everything.apply(x, torch.tensor([0, 1]), draws, torch.arange(2), 2)
    assert torch.equal(out[:, 0], x[:, 0]) and soft[0].tolist() == [1, 0]  # it would have been left without any


def test_eventmix_in_batches_shares_and_resumes():
    frames = counts(1, 31).transpose(0, 1).numpy()
    whole = MemoryBatches(frames, np.arange(31) % 5, 12, seed=3, shuffle=True, transforms=[EventMix(5, 1.0, 0.6)])
    one = list(whole.epoch(4))
    for rank in range(2):
        for start in (0, 2):
            for (x, y), (own_x, own_y) in zip(one[start:], whole.shard(rank, 2).epoch(4, start), strict=True):
                assert torch.equal(own_x, x[:, rank::2]) and torch.equal(own_y, y[rank::2])


def recording(n=3000):
    rng = np.random.RandomState(0)
    t = np.sort(np.append(0, rng.randint(0, 10**6, n - 1))).astype(np.int64)
    x, y = rng.randint(0, 40, n).astype(np.int16), rng.randint(0, 20, n).astype(np.int16)
    return Events(t, x, y, rng.randint(0, 2, n).astype(np.uint8))


@pytest.mark.parametrize("area", ["cross", "eventrpg"])
def test_eventdrop_takes_columns_and_rows_and_with_eventrpgs_ranges_a_box_of_any_aspect(area):
    """In EventRPG a window of time may be the whole recording, which then comes back; of random events 9 in 10 go at most."""
    events, seen, parts, rpg, step = recording(), set(), set(), area == "eventrpg", EventDrop(eventdrop_area=area)
    for seed in range(100):
        np.random.seed(seed)
        kept = step.apply(events, (20, 40))
        np.random.seed(seed)
        if (kind := np.random.randint(4)) != 2:
            part = np.random.randint(1, 11 if rpg else 10) / 10
            if kind:
                parts.add((kind, part))
                gone = part if kind == 3 else part % 1  # of 1,000 ms
                assert len(events.t) - len(kept.t) == pytest.approx(3000 * min(gone, 0.9), abs=120)
            seen.add(len(kept.t))
            continue
        part = np.random.randint(1, 7 if rpg else 6) / 20
        stretch = np.random.uniform(0.5, 1.5) if rpg else 1
        w, h = 40 * part * stretch, 20 * part / stretch
        x0, y0 = np.random.uniform(40), np.random.uniform(20)  # the middle
        left, top = int(max(0, x0 - w / 2)), int(max(0, y0 - h / 2))
        inside = (left <= events.x) & (events.x <= left + w), (top <= events.y) & (events.y <= top + h)
        parts.add((2, part))
        assert np.array_equal(kept.t, events.t[~(inside[0] & inside[1] if rpg else inside[0] | inside[1])])
        assert kept.x.dtype == np.int16 and kept.p.dtype == np.uint8
    assert len(events.t) in seen and len(seen) > 5
    assert {(1, 1.0), (2, 0.3), (3, 1.0)} & parts == ({(1, 1.0), (2, 0.3), (3, 1.0)} if rpg else set())
    empty = Events(*(a[:0] for a in events))
    assert len(step.apply(empty, (20, 40)).t) == 0


def test_every_one_turns_on_by_a_setting_of_its_own():
    for name, cls in dict.items(AUGMENTATIONS):
        assert {*cls.switches} <= cls.settings.keys(), name
        assert all(not cls.settings[key].default for key in cls.switches), name
    assert {f"augment.{k}" for k in AUGMENTATIONS.all_settings(ours=True)} <= keys().keys()


def test_what_is_wrong_is_one_sentence_and_what_is_off_changes_no_hash():
    for words, said in {
        "augment.eventmix=1": "augment.eventmix=1.0 works on event frames and dataset=digits has images; leave it out",
        "dataset=digits_dvs augment.eventdrop=true": (
            "augment.eventdrop=true works on recordings and dataset=digits_dvs has only event frames; leave it out"
        ),
        "dataset=digits_dvs augment.eventmix_prob=0.5": (
            "augment.eventmix_prob=0.5 has no effect with augment.eventmix=0.0; it needs augment.eventmix, or leave it out"
        ),
    }.items():
        with pytest.raises(ConfigError) as error:
            load_config(words.split())
        assert str(error.value) == said
    words = ["dataset=digits_dvs"]
    assert config_hash(load_config(words)) == config_hash(load_config([*words, "augment.eventmix=0"]))


def test_a_loss_that_needs_labels_refuses_soft_targets(monkeypatch):
    soft = {key for cls in AUGMENTATIONS.values() if cls.soft_targets for key in cls.switches}
    assert soft == {"mixup", "cutmix", "label_smoothing", "eventmix", "rpg_mix"}
    config = load_config(["dataset=digits_dvs", "augment.cutmix=0.5"])
    monkeypatch.setattr(Loss, "soft_targets", False)
    said = "augment.cutmix=0.5 makes soft targets and loss=lts needs labels; set it to 0"
    with pytest.raises(ConfigError, match=said):
        check_settings(config)
