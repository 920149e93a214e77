"""The rows of the paper: its printed numbers, the experiments that reproduce them, and our runs beside.

A row is one file `conf/experiment/NAME.yaml`. Its `paper_row` names a line of `results/paper_tables.yaml`, its
`baselines` the experiments of the same recipe that its gain is measured against. A line that the paper quotes has a row as
its own authors trained it, and mostly one more, NAME_same_recipe, that puts the method alone into the paper's recipe. All
functions only read.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from snn_repro.config import PAPER_TABLES, Config, checked, conf_files, config_hash, load_config, to_dict
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.runs.checkpoint import find_weights
from snn_repro.runs.folder import RunResult

PLACES = ("data_dir=", "cache_dir=")  # overrides that change no row
SHARED = ("dataset", "model", "neuron", "loss")
LISTS = ("baselines", "caveats", "unspecified")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's tables; `results/paper_tables.yaml` says what each field means."""

    id: str
    table: int | str  # 1, 2, 3, code or rivals
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
    """The paper's rows in their order. Raises UserError for a file that holds none."""
    try:
        return [PaperRow(**entry) for entry in yaml.load(Path(path).read_text("utf-8"), LOADER)]
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def experiments() -> list[str]:
    """The names of all experiments: tables first, then released code that no table prints, figures and rivals."""
    return sorted(conf_files("experiment"), key=lambda name: (not name.startswith("table"), name.split("_")))


def compared(name: str, paper: Iterable[PaperRow]) -> bool:
    """Whether an experiment is about a method of others: as its authors trained it, or in the paper's recipe."""
    return name.endswith("_same_recipe") or any(row.id == name and not row.own for row in paper)


@cache
def files(group: str) -> dict[str, Path]:
    return conf_files(group)


@cache
def choice(group: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the yaml of a choice says, laid over those that it builds on; and what it chooses of other groups."""
    keys = yaml.load(files(group)[name].read_text("utf-8"), LOADER) or {}
    found: dict[str, Any] = {}
    others: dict[str, str] = {}
    for entry in keys.pop("defaults", []):
        if isinstance(entry, dict):
            others |= {k.removeprefix("override /"): v for k, v in entry.items()}
        elif entry != "_self_":
            below, chosen = choice(group, entry)
            found, others = _laid_over(found, below), others | chosen
    return _laid_over(found, keys), others


def facts(names: Iterable[str], fidelity: str | None = None) -> dict[str, dict[str, Any]]:
    """What the yaml files of experiments and of what they choose say, as {experiment: plain containers}; nothing is composed."""
    rows = {}
    for name in names:
        chosen = choice("experiment", name)[1]
        found: dict[str, Any] = {"fidelity": "published", "paper_row": None, "augment": {}} | {k: [] for k in LISTS}
        found |= {group: choice(group, chosen[group])[0] for group in SHARED}
        more = {"recipe": chosen.get("recipe", chosen["dataset"]), "experiment": name, "fidelity": fidelity}
        for group, one in more.items():
            found = _laid_over(found, choice(group, one)[0]) if one else found
        rows[name] = found
    return rows


def configs(names: Iterable[str], fidelity: str | None = None) -> dict[str, Config]:
    """The checked configuration of each experiment, of `facts`; where it runs is left open."""
    return {name: checked(said | {"run_dir": ""}) for name, said in facts(names, fidelity).items()}


def _laid_over(below: dict, above: dict) -> dict:
    both = {
        k: _laid_over(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)
    }
    return below | above | both


@dataclass
class Row:
    """An experiment, the paper's number for it and what we have: our runs of exactly this configuration, any seed."""

    said: dict[str, Any]  # its configuration: as its files say it, or with overrides
    overrides: Sequence[str] = ()
    paper: PaperRow | None = None
    results: list[RunResult] = field(default_factory=list)  # by seed
    departing: int = 0  # finished runs of this name with other settings
    data: str | None = None  # "ready", "not prepared" or "missing"; None where nobody looked
    missing: list[str] = field(default_factory=list)  # what is lacking for a number, in words

    @property
    def name(self) -> str:
        return self.said["name"]

    @cached_property
    def config(self) -> Config:
        """The checked configuration; Hydra composes it where there are overrides."""
        if self.overrides:
            return load_config([f"experiment={self.name}", *self.overrides])
        return configs([self.name])[self.name]

    def command(self) -> str:
        """The command that runs this row, with its overrides, quoted for a shell."""
        folder = "cache_dir" if SETS[self.said["dataset"]["name"]].prepared else "data_dir"
        data = next((o for o in self.overrides if o.startswith(f"{folder}=")), f"{folder}=DIR")
        others = [o for o in self.overrides if not o.startswith(PLACES)]
        return shlex.join(["python", "-m", "snn_repro.train", f"experiment={self.name}", data, *others])

    @property
    def seeds(self) -> list[int]:
        return [r["seed"] for r in self.results]

    def mean(self, key: str) -> float | None:
        """Mean over seeds of an accuracy of result.json (`acc_last`, `acc_best_test`, ...), in percent."""
        values = [100 * r[key] for r in self.results if r.get(key) is not None]
        return fmean(values) if values else None


def join(
    names: Iterable[str], paper: Iterable[PaperRow], results: Sequence[RunResult], overrides: Sequence[str] = ()
) -> list[Row]:
    """One Row an experiment. A run belongs to it when nothing but the seed differs from the row's configuration."""
    by_id = {row.id: row for row in paper}
    rows = {name: Row(said, overrides) for name, said in facts(names).items()}
    for name, row in rows.items():
        if any(not o.startswith(PLACES) for o in overrides):
            row.said = to_dict(row.config)
        row.paper = by_id.get(row.said["paper_row"])
        if mine := [r for r in results if r["name"] == name]:
            same = [r for r in mine if r["recipe_hash"] == config_hash(row.config, without=("seed",))]
            one_a_seed = {r["seed"]: r for r in reversed(same)}  # runs are also copied to results/runs
            row.results, row.departing = [one_a_seed[s] for s in sorted(one_a_seed)], len(mine) - len(same)
    for row in rows.values():
        if not row.results:
            row.missing.append("a run")
        elif absent := [b for b in row.said["baselines"] if b in rows and not rows[b].results]:
            row.missing.append(f"runs of its baselines {', '.join(absent)}")
    return list(rows.values())


def look_for_files(rows: Iterable[Row]) -> None:
    """Set `data` of each row and add to `missing`: prepared frames, raw files, initial weights. Reads no sample."""
    known: dict[
        str, tuple[str, str | None]
    ] = {}  # a configuration is composed for each kind of frames and file of weights
    for row in rows:
        needs, weights = repr((row.said["dataset"], row.said.get("timesteps"))), row.said["model"].get("weights")
        if needs not in known:
            known[needs] = SETS[row.said["dataset"]["name"]].state(row.config)
        if weights and weights not in known:
            try:
                known[weights] = str(find_weights(weights, row.config.data_dir)), None
            except UserError:
                known[weights] = "", f"initial weights {weights}"
        row.data = known[needs][0]
        row.missing[:0] = [lacks for key in (needs, weights) if key and (lacks := known[key][1])]


@dataclass(frozen=True)
class Cost:
    """Hours of training that one run of a row takes on the kind of device where a speed was measured."""

    hours: float
    device: str  # "cuda" or "cpu"
    samples_per_s: float
    source: str  # the row whose runs were measured
    estimated: bool = False  # from a step on random data, on this machine
