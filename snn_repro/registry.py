"""What there is of one kind (neurons, surrogates, losses, norms, networks, data sets, ...), by name; anybody may add to it."""

import importlib
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from snn_repro import outside
from snn_repro.errors import UserError, nearest
from snn_repro.outside import import_all as import_all
from snn_repro.settings import Setting


class Registry(UserDict[str, Any]):
    """name -> thing, filled by `register("name")` above a class of `module` or of an installed package (outside.py).

    group: the key that chooses one, or its first word. inner: {setting: the registry that its value is a name of}; what is chosen
    there adds its settings. The module is imported when something is asked for, other packages for a name that it does not have
    and for all names.
    """

    def __init__(self, kind: str, group: str, module: str, **inner: "Registry"):
        super().__init__()
        self.group, self.inner = group, inner
        self._kind, self._module = kind, module
        self._owners: dict[str, str] = {}

    def ours(self) -> list[str]:
        """The names that this package has; nothing from outside is imported."""
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

    def names(self) -> tuple[str, ...]:
        return tuple(self)

    def add(self, name: str, thing: Any, owner: Any) -> None:
        """Add a thing that the class or function `owner` stands for.

        Raises UserError if another has the name (the same one again, defined anew in a notebook, takes its place).
        """
        where = f"{owner.__module__}.{owner.__qualname__}"
        there = self._owners.setdefault(name, where)
        if there != where:
            raise UserError(f"{where}: there is a {self._kind} '{name}' already, {there}; choose another name")
        self.data[name] = thing

    def register(self, name: str, made_of: Callable[[Any], Any] = lambda thing: thing) -> Callable:
        """A decorator of the class that is the thing, or that `made_of` makes it of."""

        def add(owner):
            self.add(name, made_of(owner), owner)
            return owner

        return add

    # ---------------------------------------------------------------- settings

    def unknown(self, name: Any, known: Sequence[str] | None = None) -> str:
        """The sentence for a name that nobody has, with the packages that cannot be imported."""
        known = known or self.names()
        return f"{self.group}.name={name!r} is not one of {', '.join(known)}{nearest(name, known)}{outside.broken()}"

    def own(self, name: Any) -> Mapping[str, Setting]:
        """What a user may set of a thing itself."""
        return getattr(self[name] if name in self else None, "settings", {})

    def settings(self, name: Any, given: Mapping[str, Any] | None = None) -> dict[str, Setting]:
        """What a user may set of a thing, and of what `given` or its defaults choose for it in `inner`."""
        found = dict(self.own(name))
        for key, registry in self.inner.items():
            if key in found:
                found |= registry.settings((given or {}).get(key) or found[key].default)
        return found

    def all_settings(self, ours: bool = False) -> dict[str, Setting]:
        """The settings of all things by their keys, or of those alone that this package has."""
        return {key: s for name in (self.ours() if ours else self) for key, s in self.own(name).items()}

    def checked(self, name: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a thing with its value: the one given, checked, or its default (for None too).

        Raises UserError, naming the key, the value and what is allowed.
        """
        if name not in self:
            raise UserError(self.unknown(name))
        return all_values(self.group, self.settings(name, given), given, (self, *self.inner.values()), name)


def all_values(
    group: str, settings: Mapping[str, Setting], given: Mapping[str, Any], choices: Sequence[Registry], name: str
) -> dict[str, Any]:
    """The value of each of the settings that the things chosen for `name` have.

    What only others in `choices` have may be given with the default of the first of them. Raises UserError.
    """
    for key in given.keys() - settings.keys():
        owners = [(r, {n: own[key].default for n in r if key in (own := r.own(n))}) for r in choices]
        usual = [default for _, found in owners for default in found.values()]
        value = tuple(given[key]) if isinstance(given[key], list) else given[key]
        if not usual:
            close = nearest(key, [k for r in choices for k in r.all_settings()])
            raise UserError(
                f"{group}.{key} is not a setting of '{name}', which has: {', '.join(settings) or 'none'}{close}"
            )
        if value is not None and value != usual[0]:
            of = " or ".join(f"{r.group}={' or '.join(found)}" for r, found in owners if found)
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
MODELS = Registry("network", "model", "snn_repro.models", norm=NORMS)
LOSSES = Registry("loss", "loss", "snn_repro.losses")
AUGMENTATIONS = Registry("augmentation", "augment", "snn_repro.data.augment")
OPTIMIZERS = Registry("optimiser", "recipe.optimizer", "snn_repro.optim")
SCHEDULES = Registry("schedule", "recipe.schedule", "snn_repro.optim")
FIGURES = Registry("figure", "", "snn_repro.paper.figures")  # `draw(results)` of a module, no choice of a run's
SECTIONS = Registry("section", "", "snn_repro.report")  # `content(found)` with its title and place
LOGGERS = Registry("logger", "logger", "snn_repro.runs.loggers")
EXPORTS = Registry("export format", "", "snn_repro.trained.export")
