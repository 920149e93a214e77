"""Three optimiser steps of every loss x neuron, against committed text: a guard against silent change.

python tests/test_golden_losses.py      # writes tests/golden/losses.txt anew; say in the commit why it changed
"""

import math
import sys

import pytest
import torch
from scripts_of_ours import SCRIPTS

from snn_repro.config import choices

sys.path.append(str(SCRIPTS))  # pytest has it, `python tests/test_golden_losses.py` has not
from benchmarks._golden import GOLDEN, first_losses, golden_losses  # noqa: E402


def table() -> dict[tuple[str, str], list[float]]:
    """The paper's neurons with every loss, all others with one."""
    torch.set_num_threads(1)
    papers = [n for n in choices("neuron") if n.removesuffix("_imp") in ("if", "lif", "leaky")]
    pairs = [
        *((n, name) for n in papers for name in choices("loss")),
        *((n, "sdt") for n in choices("neuron") if n not in papers),
    ]
    return {pair: first_losses(*pair) for pair in pairs}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_losses_are_what_they_were(every):
    torch.set_num_threads(1)
    for (neuron, loss), values in golden_losses().items():
        if every or loss == "sdt" or neuron == "if_imp":
            # Convolutions may round differently on another processor; a changed equation moves far more than this.
            pairs = zip(first_losses(neuron, loss), values, strict=True)
            assert all(math.isclose(a, b, rel_tol=2e-5) for a, b in pairs), (neuron, loss)


if __name__ == "__main__":
    rows = [f"{n} {name} " + " ".join(repr(v) for v in values) for (n, name), values in table().items()]
    GOLDEN.write_text("# neuron loss, then the loss of three steps (float32, one thread)\n" + "\n".join(rows) + "\n")
