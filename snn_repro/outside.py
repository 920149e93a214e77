"""Plug-in packages: installed packages that add neurons, losses, norms, networks, data sets and rows.

Such a package has an entry point of the group `snn_repro` that names one of its modules:

    [project.entry-points.snn_repro]
    mine = "mine"

The registries import that module (and, for a package, the files of its folder) when they list all names or look up a
name they do not have. `conf/` beside the module's file is read like this package's own, without imports. Only installed
entry points count: no value of a configuration can name code.
"""

import importlib
import logging
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from snn_repro.errors import brief

GROUP = "snn_repro"


@cache
def packages() -> list[tuple[str, str, Path]]:
    """(entry point, module, folder of its file) of all packages; missing modules are skipped."""
    usable = []
    for name, module in sorted({(point.name, point.module) for point in entry_points(group=GROUP)}):
        if folder := _folder(module):
            usable.append((name, module, folder))
        else:
            leave_out(name, module, ImportError("there is no such module"))
    return usable


def _folder(module: str) -> Path | None:
    """Folder of a module's file, or of a package; None if the module does not exist."""
    top, *inner = module.split(".")
    if (spec := find_spec(top)) is None:  # a top-level name is found without importing it
        return None
    places = spec.submodule_search_locations or [str(spec.origin).removesuffix(".py")]
    path = Path(next(iter(places)), *inner)
    return path if path.is_dir() else path.parent if path.with_suffix(".py").is_file() else None


_broken: dict[str, str] = {}


def broken() -> str:
    """Why packages cannot be imported, to append to an error message; empty without any."""
    return "".join(f"; {sentence}" for sentence in _broken.values())


def leave_out(name: str, module: str, error: Exception) -> None:
    """Skip a package, with one warning that names it."""
    where = f"the package '{module}' (entry point '{name}' of {GROUP})"
    _broken[module] = f"{where} cannot be imported: {brief(error, named=True)}; fix or uninstall it"
    logging.getLogger("snn_repro").warning(_broken[module])


def versions() -> dict[str, str]:
    """{distribution: version} of the packages, recorded with each run."""
    return dict(sorted((point.dist.name, point.dist.version) for point in entry_points(group=GROUP) if point.dist))


def conf_dirs() -> list[Path]:
    """The `conf/` folders of the packages."""
    return [folder / "conf" for *_, folder in packages() if (folder / "conf").is_dir()]


_loaded: set[str] = set()


def load() -> None:
    """Import every package once, which registers its parts; those that fail are skipped."""
    for name, module, _ in packages():
        if module not in _loaded:
            _loaded.add(module)  # first, since the package may use the registries itself
            try:
                import_all(module, getattr(importlib.import_module(module), "__path__", []))
            except Exception as error:
                leave_out(name, module, error)


def import_all(package: str, path: Iterable[str]) -> None:
    """Import all files of a package except `_private` ones, shortest names first."""
    names = {module.name for module in pkgutil.iter_modules(path) if not module.ispkg and module.name[0] != "_"}
    for name in sorted(names, key=lambda name: (len(name), name)):
        importlib.import_module(f"{package}.{name}")
