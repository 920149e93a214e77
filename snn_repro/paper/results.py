"""Finished runs, grouped: only runs that differ in nothing but the seed are averaged."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from snn_repro.config import ADDED, hashed
from snn_repro.errors import DataError, UserError, brief
from snn_repro.losses import build_loss
from snn_repro.paper.statistics import Summary, summary
from snn_repro.runs.folder import PREDICTIONS, RESULT, RunResult, find_results, result_files, skipped

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed, sorted by it; the label is unique."""

    label: str
    runs: tuple[RunResult, ...]

    @property
    def first(self) -> RunResult:
        """The run of the lowest seed."""
        return self.runs[0]

    @property
    def last(self) -> Summary:
        """Last-epoch accuracy over seeds, in percent."""
        return summary([100 * run["acc_last"] for run in self.runs])

    def percent(self, key: str) -> Summary | None:
        """A fraction of result.json over seeds, in percent; None if a run lacks it."""
        values = [run[key] for run in self.runs]
        return None if None in values else summary([100 * v for v in values])

    def steps(self) -> list[float]:
        """Mean accuracy of each step's own output in percent, [T]; [] if not causal."""
        steps = zip(*(run["acc_step"] for run in self.runs), strict=True)
        return [100 * fmean(step) for step in steps] if all(run.get("causal", True) for run in self.runs) else []

    def operations(self) -> dict[str, float | None]:
        """Mean `synops` and `macs` (thousands) and `energy` (nJ) per test sample; None if not counted."""
        counted = [run["energy"] for run in self.runs if run.get("energy")]
        keys = {"synops": "synops", "macs": "macs", "energy": "energy_pj"}
        return {k: fmean(e[key] for e in counted) / 1e3 if counted else None for k, key in keys.items()}


def over_seeds(groups: Sequence[Group], of: Callable[[RunResult], Any]) -> tuple[list[int], list[list[Any]]]:
    """The seeds that all groups have, and `of` each group's runs of these seeds, [groups][seeds]."""
    runs = [{run["seed"]: run for run in group.runs} for group in groups]
    seeds = sorted(set.intersection(*map(set, runs)))
    return seeds, [[of(mine[seed]) for seed in seeds] for mine in runs]


def load(roots: Iterable[str | Path]) -> list[RunResult]:
    """Every finished run under `roots`; damaged ones are skipped with a line on stderr.

    Raises UserError for a missing path, a folder without finished runs, or if no run can be read.
    """
    paths = [Path(root) for root in roots]
    for path in paths:
        if path.is_dir() and not result_files(path):
            raise UserError(f"{path} holds no finished run (no {RESULT}); train first, or give another folder")
    return list({Path(result["folder"]).resolve(): result for result in find_results(*paths)}.values())


def data_id(result: RunResult) -> str | None:
    """Eight hex digits of the data's fingerprint; None if the run did not record it."""
    data = result.get("data")
    return data and hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def facts(result: RunResult) -> dict[str, Any]:
    """Flat `{"recipe.lr": 0.1, ..., "split": ...}` of everything that defines a run except its seed."""
    return ADDED | {k: v for k, v in hashed(result["config"]).items() if k != "seed"} | dict(
        split=result["split_sha256"][:8], precision=result["precision"],
        images_per_statistic=result.get("images_per_statistic"), data=data_id(result),
    )  # fmt: skip


def group_key(result: RunResult) -> tuple[str, ...]:
    """What must be equal for two runs to be averaged: everything but the seed."""
    fidelity = str(result["config"].get("fidelity")).replace("extended", "published")  # its former name
    parts = result["name"], result["recipe_hash"], result["split_sha256"], fidelity, result["precision"]
    return (*parts, str(result.get("images_per_statistic")), str(data_id(result)))


def group_runs(results: Iterable[RunResult]) -> tuple[list[Group], list[str]]:
    """Group runs that differ only in the seed; returns (sorted groups, notes on repeats)."""
    alike: dict[tuple[str, ...], dict[int, RunResult]] = {}
    notes = []
    keyed = [(group_key(result), result["seed"], result["folder"], result) for result in results]
    for key, seed, folder, result in sorted(keyed, key=lambda item: item[:3]):
        if (first := alike.setdefault(key, {}).setdefault(seed, result)) is not result:
            notes.append(f"{folder} is not counted, because it repeats seed {seed} of {first['folder']}")
    groups = []
    for name, keys in groupby(alike, key=lambda key: key[0]):  # sorted above
        flats = {key: facts(next(iter(alike[key].values()))) for key in keys}
        varied = [k for k in sorted(set().union(*flats.values())) if len({repr(f.get(k)) for f in flats.values()}) > 1]
        for key, mine in flats.items():
            values = ", ".join(f"{k}={mine.get(k)}" for k in varied) or key[1]
            groups.append(Group(name if len(flats) == 1 else f"{name} [{values}]", tuple(alike[key].values())))
    return sorted(groups, key=lambda g: g.label), notes


def to_frame(results: Iterable[RunResult]) -> "pandas.DataFrame":
    """A pandas DataFrame: one row per run, one column per key of result.json.

    Accuracies are fractions. Nested keys become paths (`config.recipe.lr`), `acc_step` and `acc_cum` one column per
    time step from 1 (`acc_step_1`, ...); other lists stay lists. Raises UserError if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError('to_frame needs pandas: pip install "snn_repro[notebook]"') from None
    frame = pandas.json_normalize([dict(result) for result in results])
    for key in ("acc_step", "acc_cum"):
        for t in range(1, 1 + max(map(len, frame.get(key, ())), default=0)):
            frame[f"{key}_{t}"] = [steps[t - 1] if t <= len(steps) else None for steps in frame[key]]
    return frame


# ---------------------------------------------------------------- right answers per sample


def right_answers(result: RunResult) -> np.ndarray | None:
    """Which test samples the final network classifies correctly at its readout, bool [N].

    None if the run has no predictions. Raises DataError if they are damaged or belong to another run.
    """
    path, packed = Path(result["folder"], PREDICTIONS), result.get("right")
    if packed is None and not path.exists():
        return None
    try:
        if packed is not None:
            bits = np.frombuffer(bytes.fromhex(packed["bits"]), np.uint8)
            right = np.unpackbits(bits, count=packed["n_test"]).astype(bool)
        else:
            right = _read_out(path, result)
    except UserError as error:
        raise DataError(f"{path} cannot be evaluated: {error}") from None
    except Exception as error:  # a foreign file can fail in any way: zip, shapes, keys
        raise DataError(
            f"{path} is damaged ({brief(error, named=True)}); remove it, or repeat the run with force=true"
        ) from None
    if abs(right.sum() - result["correct"]) > 1e-3 * len(right) + 1 or len(right) != result["n_test"]:
        raise DataError(
            f"{path} has {right.sum()} of {len(right)} right, {RESULT} has {result['correct']} of {result['n_test']}: "
            "they are not of one run; repeat it with force=true"
        )
    return right


def _read_out(path: Path, result: RunResult) -> np.ndarray:
    """Correct answers bool [N] from saved logits [N, T, K]. Raises UserError if the run's loss is unknown."""
    written = result["config"].get("loss") or {"name": result["loss"]}
    loss = build_loss(**{k: v for k, v in written.items() if v is not None})
    with np.load(path, allow_pickle=False) as file:
        scores = loss.readout(torch.from_numpy(file["logits"].astype(np.float32)).transpose(0, 1))
        return scores.argmax(-1).numpy() == file["label"]


def right_or_none(result: RunResult) -> np.ndarray | None:
    """`right_answers`, or None with a line on stderr if they cannot be used."""
    try:
        return right_answers(result)
    except DataError as error:
        skipped(str(error))
        return None
