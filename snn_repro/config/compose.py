"""Compose a checked `Config` from command-line overrides with Hydra, for one run or a sweep.

Only this file imports from `hydra._internal`: sweeps, a launcher's context and the flags have no public names.
"""

import contextlib
import copy
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, version
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser as get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snn_repro import outside
from snn_repro.config.check import checked, choices, explain, given_keys, quoted, refuse_idle, unknown
from snn_repro.config.schema import CONF_DIR, FORMER_KERNELS, GROUPS, NOT_HASHED, OWN, Config, ConfigError
from snn_repro.registry import AUGMENTATIONS

_HYDRA_13 = version.__version__.startswith("1.3.")  # with OmegaConf 2.3; 1.4 (with 2.4) deprecates what 1.3 needs
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if _HYDRA_13 else {}
# What Hydra 1.4 may call: the log lines of conf/train.yaml, and the samplers of the Optuna sweeper
WHITELIST: dict[str, Any] = {} if _HYDRA_13 else {"execution_whitelist": ["snn_repro.console.LogLines", "optuna.*"]}
_register_resolver: Any = OmegaConf.register_new_resolver if _HYDRA_13 else OmegaConf.register_resolver


def _schema() -> DictConfig:
    """The schema for Hydra. The groups in OWN accept other keys, which `checked` validates."""
    node = OmegaConf.structured(Config)
    for group in OWN:
        OmegaConf.set_struct(node[group], False)
        node[group].pop("own")
    node.augment.update({k: s.default for k, s in AUGMENTATIONS.all_settings(ours=True).items()})
    return node


for _registry in (registry for registries in OWN.values() for registry in registries):
    _registry.ours()  # import the classes that check a configuration first, once
ConfigStore.instance().store(name="schema", node=_schema())

# Overrides that are part of a run's folder name anyway, or that change no result.
_NOT_IN_FOLDER = ("name", "seed", *NOT_HASHED)


def tweaks(overrides: list[str]) -> str:
    """The overrides as a folder name, between row and seed in a run's path.

    Left out are row, seed, keys of NOT_HASHED and, without experiment or name, the four choices (in the default name).
    Above 200 characters: a hash.
    """
    named = {o.split("=")[0] for o in overrides}
    skip = {*_NOT_IN_FOLDER, *(() if "name" in named else ("experiment",))}
    if not named & {"name", "experiment"}:
        skip |= {"dataset", "model", "neuron", "loss"}
    whole = tuple(f"{k}." for k in skip if k not in GROUPS or k in NOT_HASHED)  # and the keys below them
    names = {override: override.split("=")[0].lstrip("+~") for override in sorted(overrides)}
    changed = [o for o, name in names.items() if name not in skip and not name.startswith(whole)]
    text = ",".join(re.sub(r"""^([^=]*=)(["'])(.*)\2$""", r"\1\3", override).replace("/", "_") for override in changed)
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:16]


_register_resolver("tweaks", lambda overrides: tweaks(list(overrides)), replace=True)
# For conf/fidelity/described.yaml: false for lif, the family that can decay its input, else the key's default.
_register_resolver("undecayed", lambda family: family != "lif", replace=True)


# ---------------------------------------------------------------- composing


def load_config(overrides: list[str] | None = None) -> Config:
    """Compose `conf/` with command-line overrides and validate; raises ConfigError.

    `hydra.run.dir=...` sets `run_dir`.
    """
    return compose_checked(readable(overrides or []))


def compose_checked(overrides: list[str], sweep: bool = False) -> Config:
    """`load_config` for overrides that went through `readable`.

    With `sweep`, `run_dir` is that of the multirun job, and the caller rejects keys without effect (`idle`).
    """
    refuse_misplaced(overrides, sweep)
    with _hydra():
        refuse_code(overrides)
        node = compose("train", overrides=overrides, return_hydra_config=True)
        with _current(node):
            folder = Path(node.hydra.sweep.dir, node.hydra.sweep.subdir) if sweep else Path(node.hydra.run.dir)
            launcher = node.hydra.runtime.choices["hydra/launcher"]
            elsewhere = "submitit" in node.hydra.launcher._target_
            OmegaConf.set_struct(node, False)
            node.pop("hydra")
            config = settled(node, overrides, quiet=sweep)
    for name, typed in given_keys(overrides).items():
        needs = (
            "slurm" if name.startswith("slurm.") and not elsewhere else "gpus" if name == "runs_per_gpu" else launcher
        )
        if needs != launcher:
            raise ConfigError(
                f"{typed} has no effect with hydra/launcher={launcher}; it needs -m and hydra/launcher={needs}, or leave it out"
            )
    if not sweep:
        refuse_idle(config, overrides)
    config.run_dir = str(folder.absolute())
    return config


def recomposed(base: dict, overrides: list[str]) -> Config:
    """A stored configuration (of `to_dict`) with some keys, or `dataset=NAME`, replaced; raises ConfigError."""
    refuse_misplaced(overrides, sweep=False)
    plain = copy.deepcopy(base)
    with _hydra():
        parsed = OverridesParser.create().parse_overrides(overrides)
        for override in sorted(parsed, key=lambda o: o.key_or_group != "dataset"):
            if override.key_or_group == "dataset":  # it may have no recipe of its own
                node = compose("train", overrides=[f"dataset={override.value()}", "recipe=digits"])
                plain["dataset"] = OmegaConf.to_container(node.dataset)
            else:
                group, _, last = override.key_or_group.rpartition(".")
                (plain.setdefault(group, {}) if group else plain)[last] = override.value()
    config = checked(plain)
    refuse_idle(config, overrides)
    return config


# ---------------------------------------------------------------- overrides

PATHS = ("data_dir", "cache_dir", "model.weights", "hydra.run.dir", "hydra.sweep.dir")


def readable(overrides: Iterable[str], sweep: bool = False) -> list[str]:
    """The overrides with `~` expanded in paths, and quotes where Hydra's grammar needs them.

    Quoted are paths with `=`, accents, brackets, or (in a single run) commas. Other overrides are unchanged.
    """
    return [_readable_path(o, sweep) if o.lstrip("+").split("=")[0] in PATHS else o for o in overrides]


def _readable_path(override: str, sweep: bool) -> str:
    name, _, value = override.partition("=")
    in_quotes = value[:1] in ("'", '"') and value[-1] == value[0]
    if value in ("", "null") or "${" in value or (sweep and (in_quotes or "(" in value)):
        return override
    values = value.split(",") if sweep else [value[1:-1] if in_quotes else value]
    paths = (os.path.expanduser(part.strip() if sweep else part) for part in values)
    return f"{name}={','.join(p if re.fullmatch('[a-zA-Z0-9_./-]*/[a-zA-Z0-9_./-]*', p) else quoted(p) for p in paths)}"


def refuse_misplaced(overrides: Iterable[str], sweep: bool) -> None:
    """Raise ConfigError for overrides that would be ignored or have another meaning here."""
    for override in overrides:
        name, equals, value = override.lstrip("+").partition("=")
        group, _, last = name.partition(".")
        if name in FORMER_KERNELS:
            raise ConfigError(unknown(name))
        wrong = {
            f"{override} is not a key: a run records there what it found in own data; leave it out":
                name == "dataset.found",
            f"{name} is for a single run; in a sweep use hydra.sweep.dir=DIR (each run gets DIR/<row>/seed<k>)":
                name == "hydra.run.dir" and sweep,
            f"{override} is for sweeps (-m) and this is a single run; add -m, or leave it out (hydra.run.dir=DIR sets the folder)":
                name.startswith("hydra") and name != "hydra.run.dir" and not sweep,
            f"{override} would change the name without the other values of conf/{group}/; write {group}={value or 'NAME'}":
                last == "name" and group in ("dataset", "model", "neuron", "loss"),
            f"{override} names no folder; write {name}=DIR, or leave it out":
                name in ("hydra.run.dir", "hydra.sweep.dir") and equals and value in ("", "null", "''", '""'),
        }  # fmt: skip
        for sentence in (sentence for sentence, holds in wrong.items() if holds):
            raise ConfigError(sentence)


def settled(node: DictConfig, overrides: Iterable[str], quiet: bool = False) -> Config:
    """`checked(node)`; a `recipe.epochs` set by hand below the warm-up shortens it in proportion."""
    given, recipe = given_keys(overrides), node.get("recipe") or {}
    epochs, warmup = recipe.get("epochs"), recipe.get("warmup_epochs")
    by_hand = "recipe.epochs" in given and "recipe.warmup_epochs" not in given
    if by_hand and isinstance(epochs, int) and isinstance(warmup, int) and 0 < epochs <= warmup:
        with _hydra():
            others = [o for o in overrides if o.lstrip("+").split("=")[0] != "recipe.epochs"]
            usual = compose("train", overrides=others).recipe.epochs
        node.recipe.warmup_epochs = warmup * epochs // max(usual, epochs + 1)
        if not quiet:
            was = f"instead of the recipe's {warmup} (of {usual} epochs), because of recipe.epochs={epochs}"
            logging.getLogger("snn_repro").warning(f"recipe.warmup_epochs is {node.recipe.warmup_epochs} {was}")
    return checked(node)


@contextlib.contextmanager
def multirun_config(overrides: list[str]) -> Iterator[tuple[DictConfig, Any]]:
    """Context manager: Hydra's configuration of a sweep and the HydraContext for its launcher."""
    with _hydra() as hydra:
        refuse_code(overrides)
        node = hydra.compose_config("train", [*overrides, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(), **WHITELIST)
    with _current(node):
        configure_log(node.hydra.hydra_logging, node.hydra.verbose)
        yield node, context


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Expand multirun overrides (`neuron=if,if_imp`, `glob(...)`) to one list of overrides per job."""
    with _hydra() as hydra:
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(overrides)
        if not (jobs := BasicSweeper.split_arguments(parsed, None)[0]):
            empty = [str(o.input_line) for o in parsed if o.is_sweep_override() and not list(o.sweep_string_iterator())]
            known = ", ".join(choices("experiment")) or "none"
            raise ConfigError(f"{' and '.join(empty)} matches nothing, so the sweep is empty; experiments are: {known}")
    return jobs


# ---------------------------------------------------------------- Hydra


class OutsideConf(SearchPathPlugin):
    """Adds the `conf/` folders of plug-in packages to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in outside.conf_dirs():
            search_path.append("snn_repro", folder.as_uri())


def search_outside() -> None:
    """Register plug-in `conf/` folders with Hydra, for this process."""
    if outside.conf_dirs():
        Plugins.instance().register(OutsideConf)


_one_thread = threading.RLock()  # Hydra's state is global


@contextlib.contextmanager
def _hydra() -> Iterator[Any]:
    """Context manager: Hydra with `conf/`, also inside a Hydra job; one thread at a time.

    Errors of Hydra and OmegaConf become ConfigError.
    """
    with _one_thread:
        search_outside()
        saved = dict(GlobalHydra.instance().__dict__)
        GlobalHydra.instance().clear()
        initialize_config_dir(str(CONF_DIR), **VERSION_BASE)
        try:
            yield GlobalHydra.instance().hydra
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, RecursionError) as error:
            raise ConfigError(explain(error)) from None
        finally:
            GlobalHydra.instance().clear()
            GlobalHydra.instance().__dict__.update(saved)


@contextlib.contextmanager
def _current(node: DictConfig) -> Iterator[None]:
    """Context manager: `${hydra:...}` refers to this configuration."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(node)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


# Keys of hydra.* that may be typed; all others, and so every name of code, come from files of conf/ and Hydra's plugins
_TYPED = (
    r"hydra\.(run|sweep|launcher|sweeper)\.(?!.*_target_|setup|additional_parameters)|hydra\.(verbose|job\.name)$|slurm"
)


def refuse_code(overrides: Iterable[str]) -> None:
    """Raise ConfigError where `hydra.*` or `slurm.*` could name code or batch-script lines.

    The project's own keys need no such check: nothing is instantiated from them, and the schema has no `_target_`.
    """
    for override in OverridesParser.create().parse_overrides([*overrides]):
        name, line = override.key_or_group, str(override.input_line)
        hidden = re.search(r"_target_|\$\{", line) and not name.startswith(("hydra.run.", "hydra.sweep."))
        if re.match(r"(hydra|slurm)(\.|$)", name) and (hidden or not line.isprintable() or not re.match(_TYPED, name)):
            raise ConfigError(
                f"{line!r} would run code from the configuration; choose hydra/launcher= or hydra/sweeper=, give plain one-line "
                "values, and put anything else into a file in conf/hydra/launcher/"
            )
