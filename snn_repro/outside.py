"""Installed packages that add neurons, losses, norms, networks, data sets and rows of their own.

Such a package has an entry point of the group `snn_repro`, which names a module of it:

    [project.entry-points.snn_repro]
    mine = "mine"

The registries import that module, and the files of its folder where it is a package, when they are asked for all names or for
one that they do not have. `conf/` beside the module's file is read as this package's own is, without importing anything. Only
installed entry points count: no value of a configuration can name code.
"""

import importlib
import logging
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "snn_repro"


@cache
def packages() -> list[tuple[str, str, Path]]:
    """(entry point, module, folder that the module's file lies in) of all; nothing is imported. One without its module is left
    out (`broken`)."""
    found = []
    for name, module in sorted({(point.name, point.module) for point in entry_points(group=GROUP)}):
        if folder := _folder(module):
            found.append((name, module, folder))
        else:
            leave_out(name, module, ImportError("there is no such module"))
    return found


def _folder(module: str) -> Path | None:
    """The folder of a module's file, a package's own; None: there is no such module."""
    top, *inner = module.split(".")
    spec = find_spec(top)  # of a top-level name: finds it without importing it
    if spec is None:
        return None
    places = spec.submodule_search_locations or [str(spec.origin).removesuffix(".py")]
    path = Path(next(iter(places)), *inner)
    return path if path.is_dir() else path.parent if path.with_suffix(".py").is_file() else None


_broken: dict[str, str] = {}


def broken() -> str:
    """Which packages cannot be used and why, to be put behind the sentence on a name that nobody has; "" without any."""
    return "".join(f"; {sentence}" for sentence in _broken.values())


def leave_out(name: str, module: str, error: Exception) -> None:
    """Go on without a package, after one warning that names it."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    _broken[module] = (
        f"the package '{module}' (entry point '{name}' of {GROUP}) cannot be imported: {said}; mend it or uninstall it"
    )
    logging.getLogger("snn_repro").warning(_broken[module])


def versions() -> dict[str, str]:
    """{distribution: version} of the packages, for the record of a run."""
    dists = {point.dist for point in entry_points(group=GROUP) if point.dist}
    return {dist.name: dist.version for dist in sorted(dists, key=lambda dist: dist.name)}


def conf_dirs() -> list[Path]:
    """The folders `conf/` of the packages that have one."""
    return [folder / "conf" for *_, folder in packages() if (folder / "conf").is_dir()]


_loaded: set[str] = set()


def load() -> None:
    """Import every package once, so that it registers what it has; one that cannot be is left out (`broken`)."""
    for name, module, _ in packages():
        if module not in _loaded:
            _loaded.add(module)  # before: it asks the registries itself
            try:
                import_all(module, getattr(importlib.import_module(module), "__path__", []))
            except Exception as error:
                leave_out(name, module, error)


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every file in a package's folder, short names first, so that what it registers is known; not `_private` ones."""
    names = {module.name for module in pkgutil.iter_modules(path) if not module.ispkg and module.name[0] != "_"}
    for name in sorted(names, key=lambda name: (len(name), name)):
        importlib.import_module(f"{package}.{name}")
