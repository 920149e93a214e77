"""The data of figures: files under results/."""

import json
from pathlib import Path
from typing import Any

from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.runs.folder import result_files

OWN_PAGE = {"methods", "initial_state"}  # studies of some hundred lines, with a page and figures of their own
PROGRAM = "python scripts/make_figures.py"


class MissingData(UserError):
    """A figure's data are not there (yet): the sentence says how to get them."""


def measured(results: Path, name: str, hint: str = "") -> dict[str, Any]:
    """What `measure` of this figure wrote; `hint` is what its command needs beside."""
    path = results / "figures" / f"{name}.json"
    if not path.exists():
        raise MissingData(f"{path} does not exist; make it with `{PROGRAM} measure={name}{hint}`")
    return read(path)


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MissingData(f"{path} is damaged ({' '.join(str(error).split())[:80]}); make it again") from None


def finished_runs(results: Path) -> list[Group]:
    runs = results / "runs"
    if not result_files(runs):
        raise MissingData(
            f"{runs} holds no finished run; collect some with `python scripts/make_tables.py --collect runs`"
        )
    ours = [r for r in load([runs]) if not OWN_PAGE & {*Path(r["folder"]).relative_to(runs).parts}]
    return group_runs(ours)[0]


def write_data(target: Path, content: dict[str, Any]) -> None:
    """Write a data file of a figure, one line a top-level entry or curve, so that a change is readable."""
    lines = []
    for k, v in content.items():
        listed = isinstance(v, list) and v and isinstance(v[0], dict)
        text = "[\n  " + ",\n  ".join(map(json.dumps, v)) + "\n ]" if listed else json.dumps(v)
        lines.append(f" {json.dumps(k)}: {text}")
    write_text(target, "{\n" + ",\n".join(lines) + "\n}\n")
