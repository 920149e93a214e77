"""Installed packages that add neurons, losses, norms, networks, data sets and rows of their own.

Such a package has an entry point of the group `snn_repro`, which names a module of it:

    [project.entry-points.snn_repro]
    mine = "mine"

The registries import that module, and the files of its folder where it is a package, when they are asked for a name that
they do not have. `conf/` beside the module's file is read as this package's own is, without importing anything. Only
installed entry points count: no value of a configuration can name code.
"""

import importlib
import pkgutil
import threading
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from snn_repro.errors import UserError

GROUP = "snn_repro"


class Package(NamedTuple):
    """One entry point: its module, and the folder that the module's file lies in (a package's own)."""

    name: str
    module: str
    folder: Path


@cache
def packages() -> tuple[Package, ...]:
    """What is installed, by name; nothing is imported. Raises UserError for an entry point without its module."""
    points = sorted({(point.name, point.module) for point in entry_points(group=GROUP)})
    return tuple(Package(name, module, _folder(name, module)) for name, module in points)


def _folder(name: str, module: str) -> Path:
    top, *inner = module.split(".")
    try:
        spec = find_spec(top)  # of a top-level name: finds it without importing it
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        path = Path(next(iter(spec.submodule_search_locations)), *inner)
        if path.is_dir():
            return path
        if inner and path.with_suffix(".py").is_file():
            return path.parent
    elif spec is not None and spec.origin and not inner:
        return Path(spec.origin).parent
    raise UserError(
        f"the entry point '{name} = {module}' ({GROUP}) has no such module; install its package anew or remove it"
    )


def versions() -> dict[str, str]:
    """{distribution: version} of the packages, for the record of a run."""
    dists = {point.dist for point in entry_points(group=GROUP) if point.dist}
    return {dist.name: dist.version for dist in sorted(dists, key=lambda dist: dist.name)}


def conf_dirs() -> list[Path]:
    """The folders `conf/` of the packages that have one."""
    return [folder for package in packages() if (folder := package.folder / "conf").is_dir()]


def sources() -> list[tuple[str, Path]]:
    """(name, file) of every module that `load` imports."""
    found = []
    for package in packages():
        last = package.folder / f"{package.module.rpartition('.')[2]}.py"
        files = sorted(package.folder.glob("*.py")) if (package.folder / "__init__.py").is_file() else [last]
        single = package.folder.name != package.module.rpartition(".")[2] and last.is_file()
        found += [(f"{package.module}/{file.name}", file) for file in ([last] if single else files)]
    return found


_once = threading.RLock()
_loaded: set[Package] = set()


def load() -> None:
    """Import every package once, so that it registers what it has. Raises UserError naming the one that cannot be."""
    with _once:
        for package in packages():
            if package in _loaded:
                continue
            _loaded.add(package)  # before: it asks the registries itself
            try:
                module = importlib.import_module(package.module)
                for _, name, is_folder in sorted(
                    pkgutil.iter_modules(getattr(module, "__path__", [])), key=lambda m: m.name
                ):
                    if not is_folder and not name.startswith("_"):
                        importlib.import_module(f"{package.module}.{name}")
            except UserError:
                _loaded.discard(package)
                raise
            except Exception as error:
                _loaded.discard(package)
                said = " ".join(f"{type(error).__name__}: {error}".split())
                raise UserError(
                    f"the package '{package.module}' (entry point '{package.name}' of {GROUP}) cannot be imported: {said}; "
                    "mend it or uninstall it"
                ) from error
