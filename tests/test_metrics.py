"""Metrics: the three accuracies as counts."""

import json
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snn_repro.losses import build_loss
from snn_repro.metrics import correct_cumulative, correct_per_step, count_correct

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())
Y = torch.tensor(GOLDEN["y"], dtype=torch.float64)
LABELS = torch.tensor(GOLDEN["labels"])


def test_golden_predictions():
    predictions = GOLDEN["predictions"]
    for t, classes in enumerate(predictions["per_step"]):
        assert correct_per_step(Y, torch.tensor(classes))[t] == 3
    assert correct_cumulative(Y, torch.tensor(predictions["mean_over_T"]))[-1] == 3
    assert count_correct(Y.mean(0), torch.tensor(predictions["mean_over_T"])) == 3
    assert count_correct(Y[-1], torch.tensor(predictions["last_step"])) == 3


def test_counts_by_hand():
    """Three steps, two samples, two classes."""
    y = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])
    target = torch.tensor([0, 1])
    assert correct_per_step(y, target).tolist() == [2, 0, 0]  # a tie is read as the first class
    assert correct_cumulative(y, target).tolist() == [2, 1, 0]
    assert correct_per_step(y, target).dtype == correct_cumulative(y, target).dtype == torch.int64
    assert isinstance(count_correct(y[0], target), torch.Tensor)  # the training loop must not wait for the device


def test_soft_targets_count_by_their_heaviest_class():
    soft = torch.tensor([[0.1, 0.9], [0.6, 0.4]])
    y = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    assert correct_per_step(y, soft).tolist() == [2]
    assert correct_cumulative(y, soft).tolist() == [2]
    assert count_correct(y[0], soft) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.integers(1, 20), st.integers(2, 10), st.integers(0, 2**31))
def test_the_last_entries_are_the_readouts(timesteps, batch, classes, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(-2, 3, (timesteps, batch, classes), generator=g) / 3  # coarse values: many near ties
    target = torch.randint(classes, (batch,), generator=g)
    assert correct_cumulative(y, target)[-1] == count_correct(build_loss("sdt").readout(y), target)
    assert correct_per_step(y, target)[-1] == count_correct(build_loss("lts").readout(y), target)
    assert correct_cumulative(y, target)[0] == correct_per_step(y, target)[0]
