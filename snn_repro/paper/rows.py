"""The rows of the paper: its printed numbers, and the experiments that reproduce them as their files say them.

A row is one file `conf/experiment/NAME.yaml`. Its `paper_row` names a line of `results/paper_tables.yaml`, its
`baselines` the experiments of the same recipe that its gain is measured against. A line that the paper quotes has a row as
its own authors trained it, and mostly one more, NAME_same_recipe, that puts the method alone into the paper's recipe.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from snn_repro.config import PAPER_TABLES, Config, checked, conf_files
from snn_repro.errors import UserError

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
