"""Many rows composed at once: each file of conf/ is read once and merged as plain dictionaries.

Hydra takes a tenth of a second a row. This knows only how conf/train.yaml and the rows are written today; whatever else
it meets raises `Unlike`, and the caller asks Hydra.
"""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from snn_repro.config.check import check, set_own_apart
from snn_repro.config.compose import tweaks
from snn_repro.config.identity import NOT_HASHED
from snn_repro.config.schema import CONF_DIR, OWN, Config, LoggerConfig, SlurmConfig
from snn_repro.config.sentences import conf_files

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PLACES = {"seed", *NOT_HASHED} - {"run_dir", "baselines", "unspecified", "caveats"}
INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


class Unlike(Exception):
    """Something that only Hydra knows what to do with."""


class QuickRows:
    """Composes rows with overrides that choose a fidelity, a debug file, a seed or places; others raise Unlike.

    first: the configuration that Hydra made of some row with the same overrides. The values that overrides give are
    taken from it, so that they are read in one way.
    """

    def __init__(self, overrides: list[str], first: Config):
        self.overrides, self.first = overrides, first
        self.chosen: dict[str, str] = {}
        self.given: list[list[str]] = []  # paths of keys
        self.files: dict[tuple[str, str], tuple[bool, list, dict]] = {}
        for override in overrides:
            key, _, value = override.partition("=")
            if "$" in override or not re.fullmatch(r"[\w.]+", key):
                raise Unlike(override)
            if key in ("fidelity", "debug"):
                self.chosen[key] = value
            elif any(key == place or key.startswith(f"{place}.") for place in PLACES):
                self.given.append(key.split("."))
            else:
                raise Unlike(override)
        _, self.order, self.main = self.read("", "train")

    def read(self, group: str, choice: str) -> tuple[bool, list, dict]:
        """(whether its keys start at the top, its defaults, its keys) of conf/<group>/<choice>.yaml."""
        if (group, choice) not in self.files:
            path = conf_files(group).get(choice, Path(CONF_DIR, group, f"{choice}.yaml"))
            try:
                text = path.read_text("utf-8")
                keys = LOADER(text).get_single_data() or {}
            except (OSError, ValueError, yaml.YAMLError):
                raise Unlike(path) from None
            if not isinstance(keys, dict):
                raise Unlike(path)
            package = re.search(r"^# @package (.*)$", text, re.MULTILINE)
            if package and package[1].strip() != "_global_":
                raise Unlike(path)
            self.files[group, choice] = bool(package), keys.pop("defaults", []), keys
        return self.files[group, choice]

    def compose(self, name: str) -> Config:
        """As `load_config(["experiment=NAME", *overrides])`. Raises Unlike, or ConfigError."""
        groups: dict[str, Any] = {}
        for entry in self.order:
            if isinstance(entry, dict):
                groups |= entry
            elif entry not in ("schema", "_self_"):
                raise Unlike(entry)
        groups |= {"experiment": name} | self.overridden(name, groups) | self.chosen

        tree = _defaults(Config)
        for entry in self.order:
            if entry == "_self_":
                _merge(tree, {k: v for k, v in self.main.items() if k != "hydra"})
            for group in entry if isinstance(entry, dict) else ():
                choice = groups[group]
                if isinstance(choice, str) and (other := INTERPOLATION.fullmatch(choice)):
                    choice = groups.get(other[1])
                if choice is None:
                    continue
                self.merge(tree, group, choice)
        for path in self.given:
            part, value = tree, self.first
            for word in path:
                value = getattr(value, word)
            for word in path[:-1]:
                part = part[word]
            part[path[-1]] = dataclasses.asdict(value) if isinstance(value, LoggerConfig | SlurmConfig) else value
        tree = _resolved(tree, tree, "")
        set_own_apart(tree)
        config = _typed(Config, tree)
        config.run_dir = self.folder(config)
        check(config)
        return config

    def overridden(self, name: str, groups: dict[str, Any]) -> dict[str, Any]:
        """The choices of a row, over those of the row that it builds on."""
        found: dict[str, Any] = {}
        for place, entry in enumerate(defaults := self.read("experiment", name)[1]):
            if isinstance(entry, str):
                if place == 0 and defaults[-1] == "_self_":
                    found = self.overridden(entry, groups)
                elif entry != "_self_" or place != len(defaults) - 1:
                    raise Unlike(entry)
                continue
            for key, choice in entry.items():
                if not key.startswith("override /") or key[10:] not in groups:
                    raise Unlike(entry)
                found[key[10:]] = choice
        return found

    def merge(self, tree: dict, group: str, choice: str) -> None:
        """Lay conf/<group>/<choice>.yaml over the tree, after the choices of its group that it builds on."""
        on_top, defaults, keys = self.read(group, choice)
        for other in defaults:
            if other != "_self_" and not (group == "experiment" and isinstance(other, dict)):
                if not isinstance(other, str) or defaults[-1] != "_self_":
                    raise Unlike(other)
                self.merge(tree, group, other)
        _merge(tree, keys if on_top else {group: keys})

    def folder(self, config: Config) -> str:
        """hydra.run.dir of a row."""
        values = {
            "${name}": config.name,
            "${seed}": str(config.seed),
            "${tweaks:${hydra:overrides.task}}": tweaks([f"experiment={config.name}", *self.overrides]),
        }
        pattern = self.main["hydra"]["run"]["dir"]
        for key, value in values.items():
            pattern = pattern.replace(key, value)
        if "${" in pattern:
            raise Unlike(pattern)
        return str(Path(pattern).absolute())


def _defaults(part: Any) -> dict:
    tree: dict[str, Any] = {}
    for f in dataclasses.fields(part):
        if dataclasses.is_dataclass(f.type):
            tree[f.name] = _defaults(f.type)
        elif f.name != "own":  # those keys come from the yamls
            tree[f.name] = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    return tree


def _merge(tree: dict, more: dict, own: bool = False) -> None:
    for key, value in more.items():
        if key not in tree and not own or isinstance(tree.get(key), dict) != isinstance(value, dict):
            raise Unlike(key)
        if isinstance(value, dict):
            _merge(tree[key], value, key in OWN or not tree[key])  # {} takes any key
        else:
            tree[key] = value


def _resolved(part: Any, tree: dict, path: str) -> Any:
    """The tree without interpolations; those that name another key are followed here, functions are OmegaConf's."""
    if isinstance(part, dict):
        return {k: _resolved(v, tree, f"{path}.{k}" if path else k) for k, v in part.items()}
    if not isinstance(part, str) or "${" not in part:
        if part == "???":
            raise Unlike(path)
        return part
    if other := INTERPOLATION.fullmatch(part):
        value = tree
        for word in other[1].split("."):
            if not isinstance(value, dict) or word not in value:
                raise Unlike(part)
            value = value[word]
        return _resolved(value, tree, other[1])
    try:
        return OmegaConf.select(OmegaConf.create(tree), path)
    except Exception:  # Hydra says it better
        raise Unlike(part) from None


def _typed(hint: Any, value: Any) -> Any:
    """A value as the schema has it; anything that would have to be converted is Hydra's."""
    if dataclasses.is_dataclass(hint):
        make: Any = hint
        return make(**{f.name: _typed(f.type, value[f.name]) for f in dataclasses.fields(hint)})
    if hint is Any or typing.get_origin(hint) is dict:  # any word; `own`
        return value
    for one in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if typing.get_origin(one) is list and isinstance(value, list):
            return [_typed(typing.get_args(one)[0], v) for v in value]
        if type(value) is one:
            return value
        if one is float and type(value) is int:
            return float(value)
    raise Unlike(f"{value!r} is no {hint}")
