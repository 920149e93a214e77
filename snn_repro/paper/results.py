"""Finished runs, read and grouped: those that differ in the seed alone are one group, and nothing else is averaged."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from snn_repro.config import ADDED, hashed
from snn_repro.errors import DataError, UserError
from snn_repro.files import write_text
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
    fidelity = hashed(result["config"]).get("fidelity")  # extended counts as published, which it was called before
    return (
        result["name"], result["recipe_hash"], result["split_sha256"], str(fidelity), result["precision"],
        str(result.get("images_per_statistic")), str(data_id(result)),
    )  # fmt: skip


def group_runs(results: Iterable[RunResult]) -> tuple[list[Group], list[str]]:
    """Group runs that differ in the seed alone; returns (groups sorted by label, notes on what was left out)."""
    alike: dict[tuple[str, ...], dict[int, RunResult]] = {}
    notes = []
    for result in sorted(results, key=lambda r: (identity(r), r["seed"], r["folder"])):
        kept = alike.setdefault(identity(result), {}).setdefault(result["seed"], result)
        if kept is not result:
            notes.append(f"{result['folder']} repeats seed {result['seed']} of {kept['folder']} and is not counted")
    groups = []
    for key, seeds in alike.items():
        same_name = [facts(next(iter(other.values()))) for k, other in alike.items() if k[0] == key[0]]
        mine = facts(next(iter(seeds.values())))
        apart = [k for k in sorted(set().union(*same_name)) if len({repr(flat.get(k)) for flat in same_name}) > 1]
        said = ", ".join(f"{k}={mine.get(k)}" for k in apart) or key[1]
        label = key[0] if len(same_name) == 1 else f"{key[0]} [{said}]"
        groups.append(Group(label, tuple(seeds.values())))
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

RIGHT = "right.json"  # where collected runs that are folders have what is `right` in the others


def right_answers(result: RunResult) -> np.ndarray | None:
    """bool [N]: which test samples the final network answers rightly at its readout; None where no file says so.

    Raises DataError where the file is damaged or does not belong to the result.
    """
    folder = Path(result["folder"])
    path = next((folder / name for name in (RIGHT, PREDICTIONS) if (folder / name).exists()), folder)
    content = result.get("right")
    if content is None and path == folder:
        return None
    try:
        if content or path.name == RIGHT:
            content = content or json.loads(path.read_text("utf-8"))
            bits = np.frombuffer(bytes.fromhex(content["bits"]), np.uint8)
            right = np.unpackbits(bits, count=content["n_test"]).astype(bool)
        else:
            right = _read_out(path, result)
        hits, n = int(right.sum()), len(right)
    except UserError as error:
        raise DataError(f"{path} cannot be read out: {error}") from None
    except Exception as error:  # zip, JSON, shapes, keys: whatever a foreign file can be
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"{path} is damaged ({why}); remove it, or run it again with force=true") from None
    if abs(hits - result["correct"]) > 1e-3 * n + 1 or n != result["n_test"]:
        raise DataError(
            f"{path} has {hits} of {n} right and {RESULT} says {result['correct']} of {result['n_test']}; "
            "they are not of one run, so run it again with force=true"
        )
    return right


def _read_out(path: Path, result: RunResult) -> np.ndarray:
    """Right answers bool [N] from logits [N, T, K], read as the run's loss reads them.

    A loss that is not installed, but reads the mean or the last step, is read so. Raises UserError where none knows how.
    """
    import torch

    from snn_repro.losses import LOSSES, Loss, build_loss

    written = result["config"].get("loss") or {}
    name, readout = written.get("name", result["loss"]), result["readout"]
    if name in LOSSES:
        loss = build_loss(name, **{k: v for k, v in written.items() if k in LOSSES[name].settings and v is not None})
    elif readout in ("mean", "last"):
        loss = Loss()
        loss.readout_name = readout
    else:
        raise UserError(
            f"its loss '{name}' reads by '{readout}' and is not installed here; install the package that has it"
        )
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


def collect(roots: Iterable[str | Path], into: Path, study: str = "") -> list[Path]:
    """Add finished runs to the files of lines in the folder `into`: FIRST.jsonl for the runs below ROOT/FIRST, or `study`.jsonl.

    A run's line has the items of its result.json without the folders of this machine, `right` in place of predictions.npz, and
    `run`, its folder below FIRST. It takes the place of an earlier one. Returns the folders that the lines stand for.
    """
    files: dict[str, dict[str, str]] = {}
    for root in map(Path, roots):
        for result in load([root]):
            below = Path(result["folder"]).relative_to(root if root.is_dir() else root.parent).parts
            first, *rest = (study, *below) if study else below if len(below) > 1 else (root.absolute().name, *below)
            config = result["config"] | dict.fromkeys(result["config"].keys() & {"run_dir", "data_dir", "cache_dir"})
            content = {k: v for k, v in result.items() if k not in ("folder", "right")} | {"config": config}
            if (right := right_or_none(result)) is not None:
                content["right"] = dict(n_test=len(right), bits=np.packbits(right).tobytes().hex())
            run = "/".join(rest)
            files.setdefault(first, {})[run] = json.dumps({"run": run} | content, allow_nan=False)
    for first, new in files.items():
        lines = collected_lines(into / f"{first}.jsonl") | new
        into.mkdir(parents=True, exist_ok=True)
        write_text(
            into / f"{first}.jsonl", "".join(f"{lines[run]}\n" for run in sorted(lines, key=lambda r: r.split("/")))
        )
    return [into / first / run for first, new in files.items() for run in new]


def collected_lines(file: Path) -> dict[str, str]:
    """{run: its line} of a file of collected runs; {} where it does not exist. Raises DataError for a damaged line."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    try:
        return {json.loads(line)["run"]: line for line in lines}
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{file} has a line that is no collected run; take it out, and collect again") from None
