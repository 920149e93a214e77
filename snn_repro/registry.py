"""What there is of one kind (neurons, surrogates, losses, norms, networks, data sets), by name; anybody may add to it."""

import importlib
import pkgutil
from typing import Any

from snn_repro import outside
from snn_repro.errors import UserError


class Registry(dict):
    """name -> thing, filled by `@REGISTRY.register("name")` above a class, in this package or outside it.

    Asked for all names, or for one that it does not have, it imports the installed packages that add to it (outside.py).
    """

    def __init__(self, kind: str):
        super().__init__()
        self._kind, self._owners = kind, {}

    def __missing__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name):
            outside.load()
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __iter__(self):
        outside.load()
        return super().__iter__()

    def keys(self):
        outside.load()
        return super().keys()

    def values(self):
        outside.load()
        return super().values()

    def items(self):
        outside.load()
        return super().items()

    def add(self, name: str, thing: Any, owner: Any) -> None:
        """Add a thing that the class or function `owner` stands for.

        Raises UserError if another has the name (the same one again, defined anew in a notebook, takes its place).
        """
        where = f"{owner.__module__}.{owner.__qualname__}"
        there = self._owners.setdefault(name, where)
        if there != where:
            raise UserError(f"{where}: there is a {self._kind} '{name}' already, {there}; choose another name")
        self[name] = thing

    def register(self, name: str):
        """A decorator of the class that is the thing."""

        def add(thing):
            self.add(name, thing, thing)
            return thing

        return add


def import_all(package: str, path: list[str]) -> None:
    """Import every file in a package's folder, short names first, so that what it registers is known."""
    for name in sorted((module.name for module in pkgutil.iter_modules(path)), key=lambda name: (len(name), name)):
        importlib.import_module(f"{package}.{name}")
