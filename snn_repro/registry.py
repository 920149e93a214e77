"""Registries of neurons, losses, norms, networks, data sets, ...; plug-ins may add names."""

import importlib
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from snn_repro import outside
from snn_repro.errors import UserError, nearest
from snn_repro.outside import import_all as import_all
from snn_repro.settings import Setting


class Registry(UserDict[str, Any]):
    """name -> thing, filled by `register("name")` on classes of `module` or of a plug-in package.

    group: the key that chooses one, or its first word. inner: {setting: registry of its values}; the chosen value adds
    its settings. The module is imported at the first access; plug-in packages for an unknown name, and to list all
    names.
    """

    def __init__(self, kind: str, group: str, module: str, **inner: "Registry"):
        super().__init__()
        self.group, self.inner, self._kind, self._module = group, inner, kind, module
        self._owners: dict[str, str] = {}

    def ours(self) -> list[str]:
        """Names in this package; imports no plug-in."""
        importlib.import_module(self._module)
        return [name for name in self.data if self._owners[name].startswith("snn_repro.")]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.data or name in self.ours() or name in [*self])

    def __missing__(self, name: str) -> Any:
        if name in self:
            return self.data[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self._module)
        outside.load()
        return iter(self.data)

    def add(self, name: str, thing: Any, owner: Any) -> None:
        """Add `thing`, defined by the class or function `owner`.

        Raises UserError if the name belongs to another one; a redefinition of the same one (in a notebook) replaces it.
        """
        where = f"{owner.__module__}.{owner.__qualname__}"
        there = self._owners.setdefault(name, where)
        if there != where:
            raise UserError(f"{where}: the {self._kind} '{name}' already exists in {there}; choose another name")
        self.data[name] = thing

    def register(self, name: str, made_of: Callable[[Any], Any] = lambda thing: thing) -> Callable:
        """Decorator of a class or function; `made_of` turns it into the thing to store."""

        def add(owner):
            self.add(name, made_of(owner), owner)
            return owner

        return add

    # ---------------------------------------------------------------- settings

    def unknown(self, name: Any, known: Sequence[str] | None = None) -> str:
        """The error message for an unknown name; also lists packages that cannot be imported."""
        known = known or tuple(self)
        return f"{self.group}.name={name!r} is not one of {', '.join(known)}{nearest(name, known)}{outside.broken()}"

    def own(self, name: Any) -> Mapping[str, Setting]:
        """The own settings of a thing."""
        return getattr(self[name] if name in self else None, "settings", {})

    def settings(self, name: Any, given: Mapping[str, Any] | None = None) -> dict[str, Setting]:
        """Settings of a thing and of the values that `given` or defaults choose in `inner`."""
        chosen = dict(self.own(name))
        for key, registry in self.inner.items():
            if key in chosen:
                chosen |= registry.settings((given or {}).get(key) or chosen[key].default)
        return chosen

    def all_settings(self, ours: bool = False) -> dict[str, Setting]:
        """Settings of all things by key; `ours`: without plug-ins."""
        return {key: s for name in (self.ours() if ours else self) for key, s in self.own(name).items()}

    def checked(self, name: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a thing with its checked or default value; raises UserError.

        A class with a `completed(values)` may replace values, such as the hash of a file that another one names.
        """
        if name not in self:
            raise UserError(self.unknown(name))
        values = all_values(self.group, self.settings(name, given), given, (self, *self.inner.values()), name)
        return getattr(self[name], "completed", dict)(values)


def all_values(
    group: str, settings: Mapping[str, Setting], given: Mapping[str, Any], choices: Sequence[Registry], name: str
) -> dict[str, Any]:
    """Checked value of each of the settings that apply to `name`; raises UserError.

    A setting that only others in `choices` have may be given with its default there.
    """
    for key in given.keys() - settings.keys():
        owners = [(r, {n: own[key].default for n in r if key in (own := r.own(n))}) for r in choices]
        usual = [default for _, defaults in owners for default in defaults.values()]
        value = tuple(given[key]) if isinstance(given[key], list) else given[key]
        if not usual:
            close = nearest(key, [k for r in choices for k in r.all_settings()])
            raise UserError(
                f"{group}.{key} is not a setting of '{name}', which has: {', '.join(settings) or 'none'}{close}"
            )
        if value is not None and value != usual[0]:
            of = " or ".join(f"{r.group}={' or '.join(defaults)}" for r, defaults in owners if defaults)
            raise UserError(f"{group}.{key}={given[key]!r} belongs to {of}; leave it out for '{name}'")
    return {
        key: setting.checked(f"{group}.{key}", setting.default if given.get(key) is None else given[key])
        for key, setting in settings.items()
    }


SETS = Registry("data set", "dataset", "snn_repro.data.sets")
SURROGATES = Registry("surrogate", "neuron.surrogate", "snn_repro.neurons")
INITIAL_STATES = Registry("initial state", "neuron.initial", "snn_repro.neurons")
NEURONS = Registry("neuron", "neuron", "snn_repro.neurons", surrogate=SURROGATES, initial=INITIAL_STATES)
NORMS = Registry("norm", "model.norm", "snn_repro.models")
INITS = Registry("initialisation", "model.init", "snn_repro.models")
MODELS = Registry("network", "model", "snn_repro.models", norm=NORMS, init=INITS)
LOSSES = Registry("loss", "loss", "snn_repro.losses")
AUGMENTATIONS = Registry("augmentation", "augment", "snn_repro.data.augment")
OPTIMIZERS = Registry("optimiser", "recipe.optimizer", "snn_repro.optim")
SCHEDULES = Registry("schedule", "recipe.schedule", "snn_repro.optim")
FIGURES = Registry("figure", "", "snn_repro.paper.figures")  # `draw(results)` of a module; not a key of a run
SECTIONS = Registry("section", "", "snn_repro.report")  # `content(found)`, with title and position
LOGGERS = Registry("logger", "logger", "snn_repro.runs.loggers")
EXPORTS = Registry("export format", "", "snn_repro.trained.export")
