"""Finished runs with chosen accuracies, written by the code that writes real ones; nothing is trained."""

import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from snn_repro.config import Config, load_config
from snn_repro.data.dataset import Split
from snn_repro.files import write_json
from snn_repro.neurons import build_neuron
from snn_repro.runs.result import RunResult, build_result
from snn_repro.runtime import conditions
from snn_repro.trained.anytime import anytime


@cache
def _config(overrides: tuple[str, ...]) -> Config:
    invented = [o for o in overrides if o.startswith("paper_row=")]  # rows of a test's own tables
    config = load_config([o for o in overrides if o not in invented])
    for override in invented:
        config.paper_row = override.removeprefix("paper_row=")
    return config


def fake_run(
    root: Path, *overrides: str, seed: int = 0, acc: float = 0.9, val_acc: float | None = 0.95, best: float | None = None,
    n_test: int = 200, right: np.ndarray | None = None, precision: str = "float32", split: str = "a" * 64,
    params: tuple[int, int] = (1000, 100), folder: str | None = None, extra: dict | None = None,
) -> RunResult:  # fmt: skip
    """Write root/<name>/seed<k>/result.json and predictions.npz; `right` [n_test] marks the right answers (else from acc).

    `extra` are further keys of result.json; those whose value is None are taken out.
    """
    config = copy.deepcopy(_config(overrides))
    config.seed = seed
    steps = config.timesteps
    if right is None:
        right = np.arange(n_test) < round(acc * n_test)
    acc, n_test = float(np.mean(right)), len(right)
    step = [acc * (t + 1) / steps for t in range(steps)]
    line = dict(loss=0.3, train_loss=0.2, train_acc=0.99, acc_cum=step, firing_rates={"layer1": 0.1}, seconds=2.0,
                samples_per_s=100.0, peak_memory_mb=300.0, lr=0.1)  # fmt: skip
    val = {} if val_acc is None else {"val_acc": val_acc, "val_loss": 0.3, "val_acc_step": step, "val_acc_cum": step}
    early = {**line, "epoch": 1, "acc": acc if best is None else best, "acc_step": step, **val}
    last = {**line, "epoch": 2, "acc": acc, "acc_step": step, **val}
    data = SimpleNamespace(split=Split("fixed", split, 800, 80, n_test), input_shape=(1, 8, 8), num_classes=10)
    readout = "last" if config.loss.name == "lts" else "mean"
    ran_under = conditions(config, torch.device("cpu"), precision, build_neuron("if"))
    result = dict(build_result(config, data, *params, [early, last], ran_under, readout, n_test)) | (extra or {})
    for key in [key for key, value in (extra or {}).items() if value is None]:
        del result[key]
    place = root / (folder or f"{config.name}/seed{seed}")
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "result.json", result)
    label = np.arange(n_test) % 10
    logits = np.zeros((n_test, steps, 10), np.float32)
    logits[np.arange(n_test), :, np.where(right, label, (label + 1) % 10)] = 1.0
    np.savez_compressed(place / "predictions.npz", label=label, logits=logits)
    return RunResult(result)


def fake_anytime(root: Path, name: str, seed: int, *overrides: str, **more: float) -> dict[str, np.ndarray]:
    """A fake run with eval/anytime.json of random outputs; by rule: its percent, steps and operations [3, thresholds]."""
    steps = fake_run(root, f"name={name}", *overrides, seed=seed, **more)["timesteps"]
    n, generator = 40, np.random.default_rng([seed, len(name)])
    labels, z = generator.integers(0, 5, n), generator.normal(size=(steps, n, 5))
    z[np.arange(steps)[:, None], np.arange(n), labels] += np.arange(1, steps + 1)[:, None]
    operations = generator.integers(100, 99_999, (n, steps)).astype(float)
    found = anytime(dict(labels=labels, mean=z.cumsum(0), readout=z, operations=operations), None)
    (folder := root / name / f"seed{seed}/eval").mkdir()
    write_json(folder / "anytime.json", found)
    points = {f"{r['rule']}, {r['scores']}": r["curve"] for r in found["rules"]}
    return {k: np.array([(100 * p["acc"], p["steps"], p["operations"]) for p in v]).T for k, v in points.items()}
