"""Three optimiser steps of every loss x neuron, against committed text: a guard against silent change.

python tests/test_golden_losses.py      # writes tests/golden/losses.txt anew; say in the commit why it changed
"""

import math
from pathlib import Path

import pytest
import torch

from snn_repro.build import options
from snn_repro.config import choices, load_config
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.optim import build_optimizer

GOLDEN = Path(__file__).parent / "golden" / "losses.txt"


def three_losses(neuron: str, loss: str) -> list[float]:
    """Losses of the first three steps on a fixed batch, one thread, float32."""
    config = load_config([f"neuron={neuron}", f"loss={loss}"])
    torch.manual_seed(0)
    model = build_model(
        "small", num_classes=10, input_shape=(1, 8, 8), timesteps=4,
        neuron=options(config.neuron, "imp_lr", "imp_weight_decay"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(16, 1, 8, 8, generator=generator), torch.arange(16) % 10
    loss_fn = build_loss(config.loss.name, **options(config.loss, "name"))
    loss_fn.watch(model)
    loss_fn.begin_epoch(1, 2)  # where a schedule over epochs counts
    optimizer = build_optimizer(model, config.recipe)
    found = []
    for _ in range(3):
        value = loss_fn(model(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


def table() -> dict[tuple[str, str], list[float]]:
    """The paper's neurons with every loss, all others with one."""
    torch.set_num_threads(1)
    papers = [n for n in choices("neuron") if n.removesuffix("_imp") in ("if", "lif", "leaky")]
    pairs = [
        *((n, name) for n in papers for name in choices("loss")),
        *((n, "sdt") for n in choices("neuron") if n not in papers),
    ]
    return {pair: three_losses(*pair) for pair in pairs}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_losses_are_what_they_were(every):
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    torch.set_num_threads(1)
    for neuron, loss, *values in lines:
        if every or loss == "sdt" or neuron == "if_imp":
            # Convolutions may round differently on another processor; a changed equation moves far more than this.
            pairs = zip(three_losses(neuron, loss), map(float, values), strict=True)
            assert all(math.isclose(a, b, rel_tol=2e-5) for a, b in pairs), (neuron, loss)


if __name__ == "__main__":
    rows = [f"{n} {name} " + " ".join(repr(v) for v in values) for (n, name), values in table().items()]
    GOLDEN.write_text("# neuron loss, then the loss of three steps (float32, one thread)\n" + "\n".join(rows) + "\n")
