"""Does an initial state move the anytime front: accuracy against mean time steps and operations under early exit.

The design, with its measures and decision rule, is docs/studies/anytime.md; this file runs and judges it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snn_repro.errors import UserError
from snn_repro.files import replace_atomically

SWEEP_DIR = "runs/anytime"
SEEDS = 8
STATES = ("zero", "constant", "imp", "mp_init")
LOSSES = ("sdt", "tet", "lts")
CURVES = "anytime/curves.npz"  # below results/runs
DELTA = 0.1


class Part(NamedTuple):
    """A data set with its recipe. epsilon: accuracy that early exit may lose."""

    dataset: str
    neuron: str
    states: tuple[str, ...]
    epsilon: float
    overrides: tuple[str, ...]


PARTS = {
    "static": Part(
        "fashion_mnist", "if", STATES, 0.01,
        ("dataset.train_subset=20000", "dataset.validation=0.1", "recipe.epochs=3", "recipe.optimizer=adamw", "recipe.lr=0.005",
         "recipe.weight_decay=0.01", "recipe.batch_size=64", "augment.crop_padding=0", "augment.flip=0"),
    ),
    "events": Part(
        "fashion_mnist_dvs", "lif", STATES, 0.01,
        ("dataset.train_subset=6000", "dataset.validation=0.1", "timesteps=5", "recipe.epochs=3"),
    ),
    "digits": Part("digits", "if", ("zero", "imp"), 0.05, ("dataset.validation=0.3", "recipe.epochs=6")),
}  # fmt: skip


def commands(names: Sequence[str], seeds: int, more: Sequence[str] = ()) -> Iterator[list[str]]:
    """The Hydra multiruns, as words: one per part, seed by seed, so that a stopped study has all cells of some seeds."""
    if unknown := set(names) - PARTS.keys():
        raise UserError(f"{min(unknown)} is no part of this study; choose of: {', '.join(PARTS)}")
    own = [] if any(word.startswith("seed=") for word in more) else [f"seed={','.join(map(str, range(seeds)))}"]
    for name in names or PARTS:
        part = PARTS[name]
        yield [
            "python", "-m", "snn_repro.train", "-m", f"dataset={part.dataset}", "model=small", f"neuron={part.neuron}", *own,
            f"neuron.initial={','.join(part.states)}", f"loss={','.join(LOSSES)}", *part.overrides, *more,
            "logger.mode=disabled", f"hydra.sweep.dir={SWEEP_DIR}",
        ]  # fmt: skip


def measure(results: Path) -> None:
    """Write results/runs/anytime/curves.npz from the checkpoints under SWEEP_DIR, for the runs that it lacks.

    It has, for the runs in the order of `runs`: right [runs, rules, thresholds] correct test samples, steps and operations
    (their sums over the test samples), threshold, lost [runs, rules] of the guarantee.
    """
    from snn_repro.runs.folder import find_results
    from snn_repro.trained.evaluate import anytime_run

    root = Path(SWEEP_DIR)
    if not root.is_dir():
        raise UserError(f"{root} does not exist; run `python scripts/study.py anytime run` here first")
    path = results / "runs" / CURVES
    path.parent.mkdir(parents=True, exist_ok=True)
    there = curves(results)
    for result in find_results(root):
        if result["config_hash"] in there:
            continue
        epsilon = next(part.epsilon for part in PARTS.values() if part.dataset == result["dataset"])
        found = anytime_run(Path(result["folder"]), (), epsilon, DELTA)
        n = found["n"]
        there[result["config_hash"]] = dict(
            name=[f"{rule['rule']}, {rule['scores']}" for rule in found["rules"]],
            right=_sums(found, "acc", n), steps=_sums(found, "steps", n), operations=_sums(found, "operations", n),
            threshold=[rule["guarantee"]["threshold"] for rule in found["rules"]],
            lost=[rule["guarantee"]["lost"] for rule in found["rules"]], n=n,
        )  # fmt: skip
        _write(path, there)  # a stopped measurement resumes here


def _sums(found: dict[str, Any], key: str, n: int) -> np.ndarray:
    """Sums over the test samples [rules, thresholds], which are whole numbers."""
    return np.rint([[n * point[key] for point in rule["curve"]] for rule in found["rules"]]).astype(np.int64)


def curves(results: Path) -> dict[str, dict[str, Any]]:
    """What `measure` wrote, by the runs' config_hash; empty without a file."""
    path = results / "runs" / CURVES
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    names = arrays.pop("name").tolist()
    runs = arrays.pop("runs").tolist()
    return {run: dict(name=names, **{key: value[i] for key, value in arrays.items()}) for i, run in enumerate(runs)}


def _write(path: Path, there: dict[str, dict[str, Any]]) -> None:
    runs = sorted(there)
    names = there[runs[0]]["name"]
    arrays = {key: np.array([there[run][key] for run in runs], float if key in ("threshold", "lost") else np.int64)
              for key in ("right", "steps", "operations", "threshold", "lost", "n")}  # fmt: skip
    with replace_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, runs=runs, name=names, **arrays)
