"""What there is of one kind (neurons, surrogates, losses, norms, networks, data sets, augmentations), by name; anybody may add to it."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from snn_repro import outside, sources
from snn_repro.errors import UserError, nearest
from snn_repro.settings import Setting


class Registry(dict[str, Any]):
    """name -> thing, filled by `decorator("name")` above a class of `module` or outside this package.

    group: the first word of its keys in a configuration. Names and settings are read from the sources as long as `module`,
    and torch with it, is not imported. Asked for all things, or for one that it does not have, it imports the module and the
    installed packages that add to it (outside.py).
    """

    def __init__(self, kind: str, group: str, module: str, decorator: str = "register"):
        super().__init__()
        self.group = group
        self._kind, self._module, self._decorator = kind, module, decorator
        self._owners: dict[str, str] = {}

    # ---------------------------------------------------------------- without importing

    @cached_property
    def _ours(self) -> dict[str, tuple[sources.Source, Any]]:
        path = sources.PACKAGE.joinpath(*self._module.split(".")[1:])
        files = sorted(path.rglob("*.py"), key=_import_order) if path.is_dir() else [path.with_suffix(".py")]
        found: dict[str, tuple[sources.Source, Any]] = {}
        for file in files:
            found |= sources.declared(file, self._decorator)
        return found

    @cached_property
    def _declared(self) -> dict[str, tuple[sources.Source, Any]]:
        found = dict(self._ours)
        for package, file in outside.sources():
            try:
                found |= sources.declared(file, self._decorator, ".".join(self._module.split(".")[:2]))
            except (SyntaxError, ValueError, OSError) as error:
                outside.leave_out(package.name, package.module, error)
        return found

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._declared, *super().keys())))

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if not super().__contains__(name) and name not in self._declared:
            if self._module in sys.modules or outside.packages():  # else nobody could have added to it
                self._load()
        return super().__contains__(name) or name in self._declared

    def settings(self, name: str) -> Mapping[str, Setting]:
        """What a user may set of a thing; it is imported only where its source does not say it plainly."""
        if not super().__contains__(name) and name in self._declared:
            try:
                return sources.settings_of(*self._declared[name])
            except (sources.Unread, AttributeError, TypeError, ValueError):  # its module says it, or what is wrong
                pass
        if not super().__contains__(name):
            self._load()
        return getattr(super().get(name), "settings", {})

    def all_settings(self, ours: bool = False) -> dict[str, Setting]:
        """The settings of all things by their keys, or of those alone that this package has."""
        return {key: s for name in (self._ours if ours else self.names()) for key, s in self.settings(name).items()}

    def checked(self, name: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a thing with its value: the one given, checked, or its default (for None too).

        What only others have may be given with the default of the first of them. Raises UserError, naming the key, the value and what
        is allowed.
        """
        if name not in self:
            raise UserError(
                f"{self.group}.name={name!r} is not one of {', '.join(self.names())}{nearest(name, self.names())}"
                f"{outside.broken()}"
            )
        settings = self.settings(name)
        for key, value in given.items():
            if key in settings:
                continue
            everybody = {n: self.settings(n) for n in self.names()}
            owners = {n: s[key].default for n, s in everybody.items() if key in s}
            if not owners:
                known = dict.fromkeys(k for s in everybody.values() for k in s)
                raise UserError(
                    f"{self.group}.{key} is not a setting of '{name}', which has: {', '.join(settings) or 'none'}"
                    f"{nearest(key, known)}"
                )
            usual = next(iter(owners.values()))
            if value is not None and (tuple(value) if isinstance(value, list) else value) != usual:
                raise UserError(
                    f"{self.group}.{key}={value!r} belongs to {self.group}={' or '.join(owners)}; leave it out for '{name}'"
                )
        return {
            key: setting.checked(f"{self.group}.{key}", setting.default if given.get(key) is None else given[key])
            for key, setting in settings.items()
        }

    # ---------------------------------------------------------------- the things

    def _load(self) -> None:
        importlib.import_module(self._module)
        outside.load()

    def __missing__(self, name: str) -> Any:
        importlib.import_module(self._module)
        if not super().__contains__(name):
            outside.load()
        if super().__contains__(name):
            return self[name]
        if name in self._declared and outside.broken():
            raise UserError(f"{self.group}.name={name} cannot be had{outside.broken()}")
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        self._load()
        return super().__iter__()

    def keys(self):
        self._load()
        return super().keys()

    def values(self):
        self._load()
        return super().values()

    def items(self):
        self._load()
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

    def register(self, name: str) -> Callable:
        """A decorator of the class that is the thing."""

        def add(thing):
            self.add(name, thing, thing)
            return thing

        return add


def _import_order(file: Path) -> tuple[int, str]:
    return len(file.stem), file.stem


def import_all(package: str, path: list[str]) -> None:
    """Import every file in a package's folder, short names first, so that what it registers is known."""
    for name in sorted((module.name for module in pkgutil.iter_modules(path)), key=lambda name: (len(name), name)):
        importlib.import_module(f"{package}.{name}")


SETS = Registry("data set", "dataset", "snn_repro.data.sets")
NEURONS = Registry("neuron", "neuron", "snn_repro.neurons")
SURROGATES = Registry("surrogate", "neuron.surrogate", "snn_repro.neurons", "register_surrogate")
INITIAL_STATES = Registry("initial state", "neuron.initial", "snn_repro.neurons", "register_initial")
MODELS = Registry("network", "model", "snn_repro.models", "register_network")
NORMS = Registry("norm", "model.norm", "snn_repro.models", "register_norm")
LOSSES = Registry("loss", "loss", "snn_repro.losses", "register_loss")
AUGMENTATIONS = Registry("augmentation", "augment", "snn_repro.data.augment", "register_augmentation")
FIGURES = Registry("figure", "", "snn_repro.paper.figures")  # `draw(results)` of a module, no choice of a run's
SECTIONS = Registry("section", "", "snn_repro.report")  # `content(found)` of a module
