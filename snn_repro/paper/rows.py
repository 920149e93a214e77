"""The rows of the paper: printed numbers and the experiments that reproduce them.

A row is one file `conf/experiment/NAME.yaml`. Its `paper_row` names a line of `results/paper_tables.yaml`; its
`baselines` are the experiments of the same recipe that its gain is measured against. A quoted method has one row with
its authors' recipe and usually another, NAME_same_recipe, with the method alone in the paper's recipe.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from snn_repro.config import PAPER_TABLES, Config, checked, conf_files
from snn_repro.errors import UserError, brief

SHARED = ("dataset", "model", "neuron", "loss")
LISTS = ("baselines", "caveats", "unspecified")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's tables; `results/paper_tables.yaml` documents the fields."""

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
    """The paper's rows in order. Raises UserError if the file is unreadable."""
    try:
        return [PaperRow(**entry) for entry in yaml.load(Path(path).read_text("utf-8"), LOADER)]
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {brief(error)}") from None


files = cache(conf_files)  # reads the folders once


@cache
def choice(group: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(keys of a choice's yaml merged over its defaults, `{group: choice}` of other groups)."""
    keys = yaml.load(files(group)[name].read_text("utf-8"), LOADER) or {}
    found: dict[str, Any] = {}
    others: dict[str, str] = {}
    for entry in keys.pop("defaults", []):
        if isinstance(entry, dict):
            others |= {k.removeprefix("override /"): v for k, v in entry.items()}
        elif entry != "_self_":
            below, chosen = choice(group, entry)
            found, others = _merged(found, below), others | chosen
    return _merged(found, keys), others


def facts(names: Iterable[str], fidelity: str | None = None) -> dict[str, dict[str, Any]]:
    """`{experiment: its keys}`, merged from yaml files in plain containers, without Hydra's composition."""
    rows = {}
    for name in names:
        chosen = choice("experiment", name)[1]
        found: dict[str, Any] = {"fidelity": "published", "paper_row": None, "augment": {}} | {k: [] for k in LISTS}
        found |= {group: choice(group, chosen[group])[0] for group in SHARED}
        more = {"recipe": chosen.get("recipe", chosen["dataset"]), "experiment": name, "fidelity": fidelity}
        for group, one in more.items():
            found = _merged(found, choice(group, one)[0]) if one else found
        rows[name] = found
    return rows


def configs(names: Iterable[str], fidelity: str | None = None) -> dict[str, Config]:
    """The checked configuration of each experiment, with an empty `run_dir`."""
    return {name: checked(keys | {"run_dir": ""}) for name, keys in facts(names, fidelity).items()}


def _merged(below: dict, above: dict) -> dict:
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return below | above | both
