"""Studies of our own: each file in this folder says what is run, by which rule it is judged, and writes its report.

A study has `SWEEP_DIR` (where its runs go), `commands(parts, seeds, more)` (Hydra multiruns, as words), `report(results)`
(`{file under results/: text}`, from the runs collected under results/runs/<its name>), and may have `measure(results)` for what
is no run. `scripts/study.py NAME` runs them.
"""

import importlib
import pkgutil
from types import ModuleType

from snn_repro.errors import UserError, nearest


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("figures", "section"))


def study(name: str) -> ModuleType:
    """A study by name. Raises UserError for another."""
    if name not in names():
        raise UserError(f"{name} is no study; choose one of: {', '.join(names())}{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
