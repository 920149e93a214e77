"""The rows of the paper: its printed numbers, the experiments that reproduce them, and our runs beside.

A row is one file `conf/experiment/NAME.yaml`. Its `paper_row` names a line of `results/paper_tables.yaml`, its
`baselines` the experiments of the same recipe that its gain is measured against. A line that the paper quotes has a row as
its own authors trained it, and mostly one more, NAME_same_recipe, that puts the method alone into the paper's recipe. All
functions only read.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from snn_repro.config import PAPER_TABLES, Config, conf_files, config_hash, load_config, to_dict
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.runs.folder import RunResult

TABLES = (1, 2, 3, "code", "rivals")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's tables; `results/paper_tables.yaml` says what each field means."""

    id: str
    table: int | str
    dataset: str
    method: str
    network: str
    T: int | None
    size: int | None  # pixels
    params_M: float | None  # millions
    accuracy: float  # percent
    own: bool
    corrected: float | None = None  # percent
    gain: float | None = None  # points
    gain_over: str | None = None
    absent: str = ""  # why a quoted row has no experiment
    notes: str = ""


def load_rows(path: Path = PAPER_TABLES) -> list[PaperRow]:
    """The paper's rows in their order. Raises UserError naming the file, the row and what is wrong with it."""
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
        assert isinstance(content, list), "it is no list of rows"
    except (OSError, yaml.YAMLError, AssertionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    rows = [_paper_row(path, entry) for entry in content]
    ids = [row.id for row in rows]
    for row in rows:
        if ids.count(row.id) > 1:
            raise UserError(f"{path}: the id {row.id} stands twice; ids name single rows")
        if row.gain_over is not None and row.gain_over not in ids:
            raise UserError(f"{path}: {row.id} has gain_over={row.gain_over}, which is no row")
    return rows


def _paper_row(path: Path, entry: Any) -> PaperRow:
    name = entry.get("id", "a row without id") if isinstance(entry, dict) else f"{entry!r}"
    try:
        row = PaperRow(**entry)
    except TypeError:
        known = ", ".join(f.name for f in fields(PaperRow))
        raise UserError(f"{path}: {name} does not have the right fields; they are: {known}") from None
    if row.table not in TABLES or not 0 < row.accuracy <= 100:
        raise UserError(
            f"{path}: {name} has table={row.table}, accuracy={row.accuracy}; the table is one of "
            f"{', '.join(map(str, TABLES))}, the accuracy a percentage"
        )
    return row


def experiments() -> list[str]:
    """The names of all experiments: tables first, then released code that no table prints, figures and rivals."""
    return sorted(conf_files("experiment"), key=lambda name: (not name.startswith("table"), name.split("_")))


def compared(name: str, paper: Iterable[PaperRow]) -> bool:
    """Whether an experiment is about a method of others: as its authors trained it, or in the paper's recipe."""
    return name.endswith("_same_recipe") or any(row.id == name and not row.own for row in paper)


def compose(names: Iterable[str], overrides: Sequence[str] = ()) -> dict[str, Config]:
    """The checked configuration of each experiment, with overrides as on the command line."""
    return {name: load_config([f"experiment={name}", *overrides]) for name in names}


def facts(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the yaml files of experiments and of what they choose say, as {experiment: plain containers}; nothing is composed."""
    files: dict[str, dict[str, Path]] = {}

    @cache
    def read(group: str, choice: str) -> dict[str, Any]:
        """A file laid over those that it builds on; what it overrides stands in `choices`."""
        if group not in files:
            files[group] = conf_files(group)
        keys = LOADER(files[group][choice].read_text("utf-8")).get_single_data() or {}
        found: dict[str, Any] = {"choices": {}}
        for entry in keys.pop("defaults", []):
            if isinstance(entry, dict):
                found["choices"] |= {k.removeprefix("override /"): v for k, v in entry.items()}
            elif entry != "_self_":
                found = _laid_over(found, read(group, entry))
        return _laid_over(found, keys)

    shared = ("dataset", "model", "neuron", "loss")
    usual: dict[str, Any] = {
        "fidelity": "published",
        "paper_row": None,
        "baselines": [],
        "caveats": [],
        "unspecified": [],
    }
    rows = {name: read("experiment", name) for name in names}
    return {n: _laid_over(usual | {g: read(g, row["choices"][g]) for g in shared}, row) for n, row in rows.items()}


def _laid_over(below: dict, above: dict) -> dict:
    both = {
        k: _laid_over(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)
    }
    return below | above | both


@dataclass
class Row:
    """An experiment, the paper's number for it and what we have: our runs of exactly this configuration, any seed."""

    config: Config
    paper: PaperRow | None
    results: list[RunResult]  # by seed
    departing: int  # finished runs of this name with other settings
    data: str | None  # "ready", "not prepared" or "missing"; None where nobody looked
    missing: list[str]  # what is lacking for a number, in words

    @property
    def name(self) -> str:
        return self.config.name

    def command(self, overrides: Sequence[str] = ()) -> str:
        """The command that runs this row, with the overrides that it was composed with, quoted for a shell."""
        return command(to_dict(self.config), overrides)

    @property
    def seeds(self) -> list[int]:
        return sorted({r["seed"] for r in self.results})

    def mean(self, key: str) -> float | None:
        """Mean over seeds of an accuracy of result.json (`acc_last`, `acc_best_test`, ...), in percent."""
        values = [100 * r[key] for r in self.results if r.get(key) is not None]
        return fmean(values) if values else None


def command(row: dict[str, Any], overrides: Sequence[str] = ()) -> str:
    """The command that runs a row, from its configuration or `facts`."""
    folder = "cache_dir" if SETS[row["dataset"]["name"]].prepared else "data_dir"
    data = f"{folder}={row.get(folder) or 'DIR'}"
    for override in overrides:
        if override.startswith(f"{folder}="):
            data = override  # as it was written: Hydra reads it again
    others = [o for o in overrides if not o.startswith(("data_dir=", "cache_dir="))]
    return shlex.join(["python", "-m", "snn_repro.train", f"experiment={row['name']}", data, *others])


def join(configs: dict[str, Config], paper: Iterable[PaperRow], results: Iterable[RunResult]) -> list[Row]:
    """One Row an experiment. A run belongs to it when nothing but the seed differs from the row's configuration."""
    by_id = {row.id: row for row in paper}
    results = list(results)
    rows = []
    for name, config in configs.items():
        if config.paper_row is not None and config.paper_row not in by_id:  # only with tables other than PAPER_TABLES
            raise UserError(f"experiment={name} has paper_row={config.paper_row}, which {PAPER_TABLES.name} lacks")
        mine = [r for r in results if r["name"] == name]
        same = [r for r in mine if r["recipe_hash"] == config_hash(config, without=("seed",))]
        one_a_seed = {r["seed"]: r for r in reversed(same)}  # runs are also copied to results/runs
        of_row = [one_a_seed[seed] for seed in sorted(one_a_seed)]
        paper_row = by_id[config.paper_row] if config.paper_row is not None else None
        rows.append(Row(config, paper_row, of_row, len(mine) - len(same), None, []))
    finished = {row.name for row in rows if row.results}
    for row in rows:
        if not row.results:
            row.missing.append("a run")
        elif absent := [b for b in row.config.baselines if b not in finished and b in configs]:
            row.missing.append(f"runs of its baselines {', '.join(absent)}")
    return rows


def look_for_files(rows: Iterable[Row]) -> None:
    """Set `data` of each row and add to `missing`: prepared frames, raw files, initial weights. Reads no sample."""
    from snn_repro.runs.checkpoint import find_weights

    known: dict[tuple[object, ...], tuple[str, str | None]] = {}
    weights: dict[str, str | None] = {}
    for row in rows:
        c = row.config
        needs = (c.dataset.name, c.timesteps, c.dataset.integrate_by, c.dataset.frame_size)
        if needs not in known:
            known[needs] = SETS[c.dataset.name].state(c)
        row.data, reason = known[needs]
        name = c.model.weights
        if name and name not in weights:
            try:
                weights[name] = None if find_weights(name, c.data_dir) else f"initial weights {name}"
            except UserError:
                weights[name] = f"initial weights {name}"
        row.missing[:0] = [wanted for wanted in (reason, weights[name] if name else None) if wanted]


@dataclass(frozen=True)
class Cost:
    """Hours of training that one run of a row takes on the kind of device where a speed was measured."""

    hours: float
    device: str  # "cuda" or "cpu"
    samples_per_s: float
    source: str  # the row whose runs were measured
    estimated: bool = False  # from a step on random data, on this machine


def estimate_cost(row: Row, results: Iterable[RunResult]) -> Cost | None:
    """epochs * n_train / samples_per_s, from the median speed of finished runs, or None where nothing was measured.

    The row's own runs count first, else those of the same data set, network, T, frame size and batch. Speeds on a GPU
    come before those on a CPU, and the two are never mixed; epochs of fewer than 20 steps say nothing. Time spent in
    evaluation is not in it.
    """
    alike = [r for r in results if r.get("samples_per_s") and _same_work(row.config, r)]
    for device in ("cuda", "cpu"):
        timed = [r for r in alike if r["device"] == device]
        measured = [r for r in timed if r["name"] == row.name] or timed
        if measured:
            speed = median(r["samples_per_s"] for r in measured)
            n_train = SETS[row.config.dataset.name].samples[0] or max(r["n_train"] for r in measured)
            hours = row.config.recipe.epochs * n_train / speed / 3600
            return Cost(hours, device, speed, measured[0]["name"])
    return None


def _same_work(config: Config, result: RunResult) -> bool:
    """Whether a training step of the run costs what one of the row costs, IMP and loss aside, and was timed."""
    theirs, recipe = result["config"], result["config"]["recipe"]
    if 0 < theirs["debug"]["max_steps"] < 20:
        return False
    return (result["dataset"], result["model"], result["timesteps"]) == (
        config.dataset.name, config.model.name, config.timesteps
    ) and (theirs["dataset"]["frame_size"], recipe["batch_size"], recipe["accumulate"]) == (
        config.dataset.frame_size, config.recipe.batch_size, config.recipe.accumulate
    )  # fmt: skip
