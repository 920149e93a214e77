"""Studies: each file defines the runs of one study, its decision rule and its report.

A study has `SWEEP_DIR` (folder of its runs), `commands(parts, seeds, more)` (Hydra multiruns, as words) and `report(results)`
(`{file under results/: text}`, from the runs collected under results/runs/<name>). It may have `measure(results)` for
measurements that are not runs. `scripts/study.py NAME` calls them.
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
