"""Losses of the first training steps, and the committed ones that tests and `gpu` compare them with."""

from pathlib import Path

import torch

from snn_repro.build import options
from snn_repro.config import load_config
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.optim import build_optimizer

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "losses.txt"


def golden_losses() -> dict[tuple[str, str], list[float]]:
    """{(neuron, loss): committed losses of three steps}, of a CPU."""
    lines = [line.split() for line in GOLDEN.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {(neuron, loss): [*map(float, values)] for neuron, loss, *values in lines}


def first_losses(neuron: str, loss: str, device: str = "cpu", kernels: str = "auto", steps: int = 3) -> list[float]:
    """Losses of the first steps on a fixed batch, float32; raises UserError where `kernels` has none."""
    config = load_config([f"neuron={neuron}", f"loss={loss}"])
    torch.manual_seed(0)
    model = build_model(
        "small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, kernels=kernels,
        neuron=options(config.neuron, "imp_lr", "imp_weight_decay"),
    ).to(device)  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(16, 1, 8, 8, generator=generator).to(device), (torch.arange(16) % 10).to(device)
    loss_fn = build_loss(config.loss.name, **options(config.loss, "name"))
    loss_fn.watch(model)
    loss_fn.begin_epoch(1, 2)  # where a schedule over epochs counts
    optimizer = build_optimizer(model, config.recipe)
    found = []
    for _ in range(steps):
        value = loss_fn(model(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found
