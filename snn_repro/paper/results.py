"""Finished runs, read and grouped: those that differ in the seed alone are one group, and nothing else is averaged."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from snn_repro.config import ADDED, hashed
from snn_repro.errors import DataError, UserError
from snn_repro.losses import build_loss
from snn_repro.paper.statistics import Summary, summary
from snn_repro.runs.folder import PREDICTIONS, RESULT, RunResult, find_results, result_files, skipped

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone; `runs` are sorted by seed, one a seed. `label` is unique in its table."""

    label: str
    runs: tuple[RunResult, ...]

    @property
    def first(self) -> RunResult:
        return self.runs[0]

    @property
    def last(self) -> Summary:
        """Accuracy of the last epoch in percent, over seeds."""
        return summary([100 * run["acc_last"] for run in self.runs])

    def percent(self, key: str) -> Summary | None:
        """A fraction of result.json in percent, over seeds; None where the runs do not have it."""
        values = [run[key] for run in self.runs]
        return None if None in values else summary([100 * v for v in values])

    def steps(self) -> list[float]:
        """Mean accuracy of each time step's own output in percent, [T]; [] where a step sees later ones: it then says nothing."""
        if not all(run.get("causal", True) for run in self.runs):
            return []
        return [100 * fmean(step) for step in zip(*(run["acc_step"] for run in self.runs), strict=True)]

    def operations(self) -> dict[str, float | None]:
        """Synaptic operations `synops` and `macs` of a test sample in thousands, `energy` in nJ: mean of the runs that counted them."""
        counted = [run["energy"] for run in self.runs if run.get("energy")]
        keys = {"synops": "synops", "macs": "macs", "energy": "energy_pj"}
        return {k: fmean(e[key] for e in counted) / 1e3 if counted else None for k, key in keys.items()}


def load(roots: Iterable[str | Path]) -> list[RunResult]:
    """Every finished run under `roots`; damaged ones are left out with a line on stderr.

    Raises UserError for a missing path, a folder without runs, and where no run can be read.
    """
    paths = [Path(root) for root in roots]
    for path in paths:
        if path.is_dir() and not result_files(path):
            raise UserError(f"{path} holds no finished run (no {RESULT}); train first, or give another folder")
    return list({Path(result["folder"]).resolve(): result for result in find_results(*paths)}.values())


def data_id(result: RunResult) -> str | None:
    """Eight hex digits for the fingerprint of the data; None where the run did not record it."""
    data = result.get("data")
    return data and hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def facts(result: RunResult) -> dict[str, Any]:
    """Flat `{"recipe.lr": 0.1, ..., "split": ...}` of all that makes a run what it is, but for its seed."""
    return ADDED | {k: v for k, v in hashed(result["config"]).items() if k != "seed"} | dict(
        split=result["split_sha256"][:8], precision=result["precision"],
        images_per_statistic=result.get("images_per_statistic"), data=data_id(result),
    )  # fmt: skip


def identity(result: RunResult) -> tuple[str, ...]:
    """What must agree before two runs may be averaged.

    Row, configuration without the seed, test list, arithmetic, images per batch statistic and the data themselves.
    """
    fidelity = str(result["config"].get("fidelity")).replace("extended", "published")  # which it was called before
    parts = result["name"], result["recipe_hash"], result["split_sha256"], fidelity, result["precision"]
    return (*parts, str(result.get("images_per_statistic")), str(data_id(result)))


def group_runs(results: Iterable[RunResult]) -> tuple[list[Group], list[str]]:
    """Group runs that differ in the seed alone; returns (groups sorted by label, notes on what was left out)."""
    alike: dict[tuple[str, ...], dict[int, RunResult]] = {}
    notes = []
    keyed = [(identity(result), result["seed"], result["folder"], result) for result in results]
    for key, seed, folder, result in sorted(keyed, key=lambda item: item[:3]):
        kept = alike.setdefault(key, {}).setdefault(seed, result)
        if kept is not result:
            notes.append(f"{folder} repeats seed {seed} of {kept['folder']} and is not counted")
    groups = []
    for name, keys in groupby(alike, key=lambda key: key[0]):  # sorted above
        flats = {key: facts(next(iter(alike[key].values()))) for key in keys}
        apart = [k for k in sorted(set().union(*flats.values())) if len({repr(f.get(k)) for f in flats.values()}) > 1]
        for key, mine in flats.items():
            said = ", ".join(f"{k}={mine.get(k)}" for k in apart) or key[1]
            groups.append(Group(name if len(flats) == 1 else f"{name} [{said}]", tuple(alike[key].values())))
    return sorted(groups, key=lambda g: g.label), notes


def to_frame(results: Iterable[RunResult]) -> "pandas.DataFrame":
    """A row a run, a column a number or word of result.json; accuracies are fractions.

    What result.json has inside goes by its path: `config.recipe.lr`, `energy.synops`. `acc_step` and `acc_cum` have a column a
    time step, from 1: `acc_step_1`, ... Other lists stay lists. Raises UserError where pandas is not installed.
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


# ---------------------------------------------------------------- right answers, sample by sample


def right_answers(result: RunResult) -> np.ndarray | None:
    """bool [N]: which test samples the final network answers rightly at its readout; None where nothing says so.

    Raises DataError where predictions are damaged or do not belong to the result.
    """
    path, kept = Path(result["folder"], PREDICTIONS), result.get("right")
    if kept is None and not path.exists():
        return None
    try:
        if kept is not None:
            bits = np.frombuffer(bytes.fromhex(kept["bits"]), np.uint8)
            right = np.unpackbits(bits, count=kept["n_test"]).astype(bool)
        else:
            right = _read_out(path, result)
    except UserError as error:
        raise DataError(f"{path} cannot be read out: {error}") from None
    except Exception as error:  # zip, shapes, keys: whatever a foreign file can be
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"{path} is damaged ({why}); remove it, or run it again with force=true") from None
    if abs(right.sum() - result["correct"]) > 1e-3 * len(right) + 1 or len(right) != result["n_test"]:
        raise DataError(
            f"{path} has {right.sum()} of {len(right)} right and {RESULT} says {result['correct']} of {result['n_test']}; "
            "they are not of one run, so run it again with force=true"
        )
    return right


def _read_out(path: Path, result: RunResult) -> np.ndarray:
    """Right answers bool [N] from logits [N, T, K], read as the run's loss reads them. Raises UserError for one that is not there."""
    written = result["config"].get("loss") or {"name": result["loss"]}
    loss = build_loss(**{k: v for k, v in written.items() if v is not None})
    with np.load(path, allow_pickle=False) as file:
        scores = loss.readout(torch.from_numpy(file["logits"].astype(np.float32)).transpose(0, 1))
        return scores.argmax(-1).numpy() == file["label"]


def right_or_none(result: RunResult) -> np.ndarray | None:
    """`right_answers`, or None after a line on stderr where they cannot be used."""
    try:
        return right_answers(result)
    except DataError as error:
        skipped(str(error))
        return None


def packed_right(result: RunResult) -> dict[str, Any] | None:
    """`right` of a collected run: number of test samples, and in hex which were answered rightly; None where nothing says so."""
    right = right_or_none(result)
    return None if right is None else dict(n_test=len(right), bits=np.packbits(right).tobytes().hex())
