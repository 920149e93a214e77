"""From what was typed to a checked `Config`: Hydra composes `conf/`, one run or all runs of a sweep."""

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

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
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
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from snn_repro import outside
from snn_repro.config.check import checked, choices, conf_files, explain, given_keys, quoted, refuse_idle, unknown
from snn_repro.config.schema import CONF_DIR, FORMER_KERNELS, GROUPS, NOT_HASHED, OWN, Config, ConfigError
from snn_repro.registry import AUGMENTATIONS

log = logging.getLogger("snn_repro")


def _schema() -> DictConfig:
    """What Hydra composes with. The parts in OWN let other keys pass; `checked` says which of them there are."""
    node = OmegaConf.structured(Config)
    for group in OWN:
        OmegaConf.set_struct(node[group], False)
        node[group].pop("own")
    node.augment.update({k: s.default for k, s in AUGMENTATIONS.all_settings(ours=True).items()})
    return node


for _registry in (registry for registries in OWN.values() for registry in registries):
    _registry.ours()  # what a configuration is checked by is imported once, and before
ConfigStore.instance().store(name="schema", node=_schema())

# Overrides that already show in a run's folder name, or that change no number.
_NOT_IN_FOLDER = ("name", "seed", *NOT_HASHED)


def tweaks(overrides: list[str]) -> str:
    """The part of a run's folder between row and seed: the overrides that neither the row's name nor the seed says.

    Without an experiment the name holds the four choices; with one, each override departs from the row. A name of the
    user's own says none of them.
    """
    named = {o.split("=")[0] for o in overrides}
    skip = {*_NOT_IN_FOLDER, *(() if "name" in named else ("experiment",))}
    if not named & {"name", "experiment"}:
        skip |= {"dataset", "model", "neuron", "loss"}
    whole = tuple(f"{k}." for k in skip if k not in GROUPS or k in NOT_HASHED)  # with the keys in them
    parts = []
    for override in sorted(overrides):
        name = override.split("=")[0].lstrip("+~")
        if name not in skip and not name.startswith(whole):
            parts.append(re.sub(r"""^([^=]*=)(["'])(.*)\2$""", r"\1\3", override).replace("/", "_"))
    text = ",".join(parts)
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:16]


OmegaConf.register_new_resolver("tweaks", lambda overrides: tweaks(list(overrides)), replace=True)
# For conf/fidelity/described.yaml: false for the one family that can decay its input, else the key's default.
OmegaConf.register_new_resolver("undecayed", lambda family: family != "lif", replace=True)


# ---------------------------------------------------------------- composing


def load_config(overrides: list[str] | None = None) -> Config:
    """Compose `conf/` with Hydra overrides (as on the command line) and check the result.

    `hydra.run.dir=...` among the overrides sets `run_dir`. Raises ConfigError with one sentence.
    """
    return compose_checked(readable(overrides or []))


def compose_checked(overrides: list[str], sweep: bool = False) -> Config:
    """As `load_config`, for overrides that `readable` has seen; with `sweep`, `run_dir` is where a multirun puts this
    job, and it is left to the caller to refuse keys without effect (`idle`)."""
    refuse_misplaced(overrides, sweep)
    with _hydra():
        node = compose("train", overrides=overrides, return_hydra_config=True)
        with _current(node):
            refuse_code(node)
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
    """The configuration `base` (of `to_dict`) with some keys, or a whole `dataset=NAME`, replaced, checked as any other.

    Raises ConfigError with one sentence.
    """
    refuse_misplaced(overrides, sweep=False)
    plain = copy.deepcopy(base)
    with _hydra():
        parsed = OverridesParser.create().parse_overrides(overrides)
        for override in sorted(parsed, key=lambda o: o.key_or_group != "dataset"):
            if override.key_or_group == "dataset":  # which need have no recipe of its own
                node = compose("train", overrides=[f"dataset={override.value()}", "recipe=digits"])
                plain["dataset"] = OmegaConf.to_container(node.dataset)
            else:
                group, _, last = override.key_or_group.rpartition(".")
                (plain.setdefault(group, {}) if group else plain)[last] = override.value()
    config = checked(plain)
    refuse_idle(config, overrides)
    return config


# ---------------------------------------------------------------- what was typed

PATHS = ("data_dir", "cache_dir", "model.weights", "hydra.run.dir", "hydra.sweep.dir")


def readable(overrides: Iterable[str], sweep: bool = False) -> list[str]:
    """The overrides with `~` of a path expanded, and with quotes around paths that Hydra's grammar cannot read bare
    (`=`, accents, brackets, commas of a single run). What needs neither stays as it is."""
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
    """Raise ConfigError for an override that would be ignored, or that means something else where it stands."""
    for override in overrides:
        name, equals, value = override.lstrip("+").partition("=")
        group, _, last = name.partition(".")
        if name in FORMER_KERNELS:
            raise ConfigError(unknown(name))
        if name == "dataset.found":
            raise ConfigError(f"{override} is no key: what a run finds in own data it keeps itself; leave it out")
        if name == "hydra.run.dir" and sweep:
            raise ConfigError(
                f"{name} is for a single run; in a sweep use hydra.sweep.dir=DIR (each run gets DIR/<row>/seed<k>)"
            )
        if name.startswith("hydra") and name != "hydra.run.dir" and not sweep:
            raise ConfigError(
                f"{override} is for sweeps (-m), and this is a single run; add -m, or leave it out (hydra.run.dir=DIR says where)"
            )
        if last == "name" and group in ("dataset", "model", "neuron", "loss"):
            raise ConfigError(
                f"{override} would change the name without the other values of conf/{group}/; write {group}={value or 'NAME'}"
            )
        if name in ("hydra.run.dir", "hydra.sweep.dir") and equals and value in ("", "null", "''", '""'):
            raise ConfigError(f"{override} names no folder; write {name}=DIR, or leave it out")


def settled(node: DictConfig, overrides: Iterable[str], quiet: bool = False) -> Config:
    """`checked(node)`; with `recipe.epochs` set by hand, the recipe's own warm-up keeps its share of a shorter training."""
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
            log.warning(f"recipe.warmup_epochs is {node.recipe.warmup_epochs} {was}")
    return checked(node)


@contextlib.contextmanager
def multirun_config(overrides: list[str]) -> Iterator[tuple[DictConfig, Any]]:
    """Hydra's configuration of a whole sweep, and the HydraContext that its launchers ask for."""
    with _hydra() as hydra:
        node = hydra.compose_config("train", [*overrides, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        with _current(node):
            refuse_code(node)
    with _current(node):
        configure_log(node.hydra.hydra_logging, node.hydra.verbose)
        yield node, context


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Expand multirun overrides (`neuron=if,if_imp`, `glob(...)`) into one list of overrides a job."""
    with _hydra() as hydra:
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(overrides)
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
        if not jobs:
            empty = [str(o.input_line) for o in parsed if o.is_sweep_override() and not list(o.sweep_string_iterator())]
            known = ", ".join(choices("experiment")) or "none"
            raise ConfigError(f"{' and '.join(empty)} matches nothing, so the sweep is empty; experiments are: {known}")
    return jobs


# ---------------------------------------------------------------- Hydra


class OutsideConf(SearchPathPlugin):
    """Tells Hydra of the folders `conf/` of packages from outside."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in outside.conf_dirs():
            search_path.append("snn_repro", folder.as_uri())


def search_outside() -> None:
    """Let Hydra look for choices in the folders of packages from outside too, wherever it composes in this process."""
    if outside.conf_dirs():
        Plugins.instance().register(OutsideConf)


_one_thread = threading.RLock()  # Hydra's state is the process's


@contextlib.contextmanager
def _hydra() -> Iterator[Hydra]:
    """Hydra with `conf/`, ready to compose, inside a running Hydra job or outside of one; one thread at a time has it.

    What Hydra and OmegaConf raise leaves it as a ConfigError.
    """
    if not CONF_DIR.is_dir():
        raise ConfigError(f"{CONF_DIR} is missing: install snn_repro again, from a wheel or with `pip install -e .`")
    with _one_thread:
        search_outside()
        saved = dict(GlobalHydra.instance().__dict__)
        GlobalHydra.instance().clear()
        initialize_config_dir(str(CONF_DIR), version_base="1.3")
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            yield hydra
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, RecursionError) as error:
            raise ConfigError(explain(error)) from None
        finally:
            GlobalHydra.instance().clear()
            GlobalHydra.instance().__dict__.update(saved)


@contextlib.contextmanager
def _current(node: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` mean this configuration."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(node)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


# Hydra makes objects from these and from nothing else: launchers and sweepers of its own and of its plugins
_MAKERS = {
    "hydra.launcher._target_": ("hydra._internal.core_plugins.", "hydra_plugins."),
    "hydra.sweeper._target_": ("hydra._internal.core_plugins.", "hydra_plugins."),
    "hydra.sweeper.sampler._target_": ("optuna.samplers.",),
}


def refuse_code(node: DictConfig) -> None:
    """Raise ConfigError when `hydra.*` or `slurm.*` of a composed configuration names code to run, or a line of a batch script.

    The project's own keys need no such check: nothing is ever instantiated from them, and the schema knows no `_target_`.
    """
    hydra = node.hydra
    with read_write(hydra), open_dict(hydra):
        hydra.runtime.output_dir = ""  # not known yet, and the log file's name asks for it
    if not OmegaConf.is_dict(hydra.launcher):
        raise ConfigError(f"hydra.launcher={hydra.launcher} is no launcher; choose one with hydra/launcher=NAME")
    own = conf_files("hydra/launcher").get(hydra.runtime.choices["hydra/launcher"])
    written: Any = OmegaConf.to_container(OmegaConf.load(own)) if own else {}
    typed: Any = OmegaConf.to_container(hydra.launcher)
    refused = [
        (f"hydra.launcher.{k}", typed[k], f"write it into {own or 'a file of conf/hydra/launcher/'}")
        for k in ("setup", "additional_parameters")  # of a batch script: conf/ alone says them
        if typed.get(k) and typed[k] != written.get(k)
    ]
    if hydra.job.get("env_set"):
        refused.append(("hydra.job.env_set", hydra.job.env_set, "set it in the shell instead"))
    rooms = [(f"hydra.{k}", hydra.get(k)) for k in ("launcher", "sweeper", "callbacks", "job_logging", "hydra_logging")]
    for path, part in [("slurm", node.get("slurm")), *rooms]:
        refused += _code(OmegaConf.to_container(part, resolve=True) if part else {}, path)
    for path, value, fix in refused:
        raise ConfigError(f"{path}={value} would run code from the configuration; {fix}")


def _code(part: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """What would run code: path, value and the fix."""
    script = path.startswith(("slurm", "hydra.launcher")) and not path.startswith("hydra.launcher.setup")
    for k, v in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        at = f"{path}.{k}"
        if k in ("_target_", "()", "class") or (isinstance(v, str) and v.startswith(("ext://", "cfg://"))):
            known = ("logging.", "colorlog.", "ext://sys.std") if "_logging." in at else _MAKERS.get(at, ())
            if not str(v).startswith(known):
                yield at, v, "choose with hydra/launcher=, hydra/sweeper= or hydra/job_logging= instead"
        if script and not (f"{k}".isprintable() and (not isinstance(v, str) or v.isprintable())):
            yield at.encode("unicode_escape").decode(), repr(v), "a value in a batch script is one line"
        yield from _code(v, at)
