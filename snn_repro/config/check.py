"""Validation of configurations, error messages for keys, and the text of `--help`."""

import contextlib
import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snn_repro import outside
from snn_repro.config import schema
from snn_repro.config.schema import GROUPS, OWN, PAPER_TABLES, AugmentConfig, Config, ConfigError
from snn_repro.errors import UserError, nearest
from snn_repro.kernels import KERNELS
from snn_repro.registry import SETS, all_values
from snn_repro.settings import Setting


def checked(node: DictConfig | dict) -> Config:
    """Turn a composed configuration into a `Config`; raises ConfigError with one sentence.

    A dictionary is a stored configuration: its FORMER keys are dropped. The merge with the schema also rejects keys
    added with `+key=`. `dataset.found` bypasses OmegaConf, since a class may be called ${...}.
    """
    found = None
    if isinstance(node, dict) and isinstance(node.get("dataset"), dict):
        found = node["dataset"].get("found")
        node = node | {"dataset": node["dataset"] | {"found": None}}
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
        for group, _, last in (key.partition(".") for key in schema.FORMER if isinstance(node, dict)):
            if isinstance(plain.get(group), dict):
                plain[group].pop(last, None)
        separate_own(plain)
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
        config.dataset.found = found
        validate(config)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(explain(error)) from None
    except UserError as error:
        raise ConfigError(str(error)) from None
    return config


_PARTS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config) if f.name in OWN}
_SHARED = {group: {f.name for f in dataclasses.fields(part)} - {"own"} for group, part in _PARTS.items()}


def separate_own(plain: dict) -> None:
    """Move each group's keys outside the schema into `own`; raises UserError for invalid ones."""
    for group, shared in _SHARED.items():
        part = plain.get(group)
        if not isinstance(part, dict) or ("name" in shared and part.get("name") in (None, schema.MISSING)):
            continue  # the merge with the schema reports it
        part["own"] = _own(group, part, {str(k): part.pop(k) for k in [*part] if k not in shared})
        if group == "neuron" and "initial" in part["own"]:
            _settle_initial(part)


def _own(group: str, part: dict, given: dict[str, Any]) -> dict[str, Any]:
    registry, name = OWN[group][0], str(part.get("name"))
    if group == "augment":  # all of ours; of plug-ins those that differ from their defaults
        settings = ours = registry.all_settings(ours=True)
        if given.keys() - ours.keys():
            settings = registry.all_settings()
    elif group == "recipe":
        choices = [(r, part.get(r.group.split(".")[1])) for r in OWN[group]]
        settings = {k: s for r, chosen in choices for k, s in r.own(chosen).items()}
        name = " and ".join(str(chosen) for _, chosen in choices)
    else:
        settings = registry.settings(name, given)
    for k in given.keys() - settings.keys() if group in ("augment", "recipe") or name in registry else ():
        if group == "augment" or f"{group}.{k}" not in keys():
            raise ConfigError(unknown(f"{group}.{k}"))
    if group not in ("augment", "recipe"):
        return registry.checked(name, given)
    values = all_values(group, settings, given, OWN[group], name)
    return {k: v for k, v in values.items() if group != "augment" or k in ours or v != settings[k].default}


def _settle_initial(neuron: dict) -> None:
    """Set both names of the paper's IMP, neuron.imp=true and neuron.initial=imp, if one is set."""
    initial = neuron["own"]["initial"]
    if neuron.get("imp") is True and initial not in ("zero", "imp"):
        raise ConfigError(
            f"neuron.imp=true and neuron.initial={initial} both set the initial potential; use neuron={neuron['name']} with the latter"
        )
    if neuron.get("imp") is True or initial == "imp":
        neuron["imp"], neuron["own"]["initial"] = True, "imp"


def validate(config: Config) -> None:
    """Raise UserError for values out of range or in conflict; types are already checked."""
    for name, setting in _shared(Config).items():
        if (value := functools.reduce(getattr, name.split("."), config)) is not None:
            setting.check_range(name, value)
    for sentence in _wrong(config):
        raise ConfigError(sentence)


def _wrong(c: Config) -> Iterator[str]:
    """Yield a sentence for each invalid value or combination."""
    d, facts, r, a = c.dataset, SETS[c.dataset.name], c.recipe, c.augment
    for word in {*r.no_decay} - {"bias", "norm", "te"}:
        yield f"recipe.no_decay has '{word}'; choose of: bias, norm, te (for IMP set neuron.imp_weight_decay)"
    if c.paper_row is not None and PAPER_TABLES.is_file():  # not in a wheel
        known = re.findall(r"^- id: (\S+)$", PAPER_TABLES.read_text("utf-8"), re.MULTILINE)
        if c.paper_row not in known:
            yield (
                f"paper_row={c.paper_row} is not a row of results/{PAPER_TABLES.name}{nearest(c.paper_row, known)}; "
                "leave it out if the run reproduces none"
            )
    if d.split not in facts.splits:
        known = facts.splits
        yield f"dataset.split={d.split} is unknown for {d.name}; choose one of: {', '.join(known)}{nearest(d.split, known)}"
    if c.model.name == "vgg48" and (shape := _known_shape(c)) and shape[1:] != (48, 48):
        fix = "set dataset.frame_size=48 or choose model=vgg128" if facts.resizable else "choose model=vgg128 or small"
        yield f"model=vgg48 needs 48x48 pixels and dataset={d.name} gives {'x'.join(map(str, shape[1:]))}; {fix}"
    size, lr = None if facts.resizable else facts.shape[1], r.scaled().lr
    wrong = {
        f"name={c.name} cannot name a folder; use up to 200 letters, digits and . , = + - _ [ ], not dots alone":
            not re.fullmatch(r"(?=.*[^.])[\w.,=+\[\]-]{1,200}", c.name),
        f"dataset.frame_size={d.frame_size}: {d.name} has {size} pixels and cannot be resized; leave it out":
            size is not None and d.frame_size not in (None, size),
        f"augment.label_smoothing={a.label_smoothing} would smooth labels twice with loss=tet_s; use loss.epsilon":
            a.label_smoothing > 0 and c.loss.name == "tet_s",
        f"recipe.warmup_epochs={r.warmup_epochs} leaves no epoch of recipe.epochs={r.epochs}; make it smaller":
            r.warmup_epochs >= r.epochs and r.warmup_epochs > 0,
        f"recipe.min_lr={r.min_lr} is above recipe.lr={lr}{' (scaled by recipe.lr_per)' * bool(r.lr_per)}; make it smaller":
            r.min_lr > lr,
        f"recipe.accumulate={r.accumulate} exceeds recipe.batch_size={r.batch_size}; make it smaller":
            r.accumulate > r.batch_size,
    }  # fmt: skip
    yield from (sentence for sentence, holds in wrong.items() if holds)
    yield from _misplaced(a, facts)


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _misplaced(augment: AugmentConfig, dataset: Any) -> Iterator[str]:
    """Yield a sentence for each active augmentation that does not work on this data set."""
    has = ["images"] if dataset.static else ["frames", "recordings"] if dataset.prepared else ["frames"]
    words = {"images": "images", "frames": "event frames", "recordings": "recordings"}
    for cls in augment.turned_on():
        if not {*cls.works_on} & {*has}:
            value, wanted = shown(augment.of(cls)[cls.name]), " and ".join(words[kind] for kind in cls.works_on)
            only = "only " if not dataset.static and "recordings" in cls.works_on else ""
            yield f"augment.{cls.name}={value} works on {wanted} and dataset={dataset.name} has {only}{words[has[0]]}; leave it out"


def frame_shape(c: Config) -> tuple[int, int, int]:
    """[C, H, W] of one input frame, known before any data is read.

    Raises UserError or DataError for own data (data/own.py) that are missing or not prepared.
    """
    return SETS[c.dataset.name].of(c).frame_shape(c.dataset.frame_size)


def _known_shape(c: Config) -> tuple[int, int, int] | None:
    """`frame_shape`; None for own data that are missing, which the run reports later."""
    with contextlib.suppress(UserError):
        return frame_shape(c)
    return None


def given_keys(overrides: Iterable[str]) -> dict[str, str]:
    """Overrides of single keys, `{"recipe.lr": "recipe.lr=0.05", ...}`, without chosen files and hydra.*."""
    pairs = ((o.lstrip("+").split("=")[0], o) for o in overrides if "=" in o and not o.startswith("~"))
    return {name: o for name, o in pairs if name not in GROUPS and not name.startswith("hydra")}


def _learned(c: Config) -> bool:
    """Whether initial potentials are learned, per neuron, channel or layer."""
    return getattr(c.neuron, "initial", "zero").startswith("imp")


# (keys used only in some configurations, whether this one uses them, the key that decides it, what they need)
_IDLE: tuple[tuple[str, Callable[[Config], Any], str, str], ...] = (
    ("recipe.warmup_factor", lambda c: c.recipe.warmup_epochs > 0, "recipe.warmup_epochs", "recipe.warmup_epochs above 0"),
    ("neuron.initial_value", lambda c: c.neuron.initial == "constant", "neuron.initial", "neuron.initial=constant"),
    ("neuron.initial_layers", lambda c: c.neuron.imp or getattr(c.neuron, "initial", "zero") != "zero", "neuron.initial", "another initial state, such as neuron=if_imp"),
    ("neuron.imp_init", lambda c: _learned(c) or c.neuron.initial == "random", "neuron.imp", "a neuron with IMP, such as neuron=if_imp"),
    ("neuron.imp_trainable neuron.imp_lr neuron.imp_weight_decay", _learned, "neuron.imp", "a neuron with IMP, such as neuron=if_imp"),
    ("neuron.imp_lr neuron.imp_weight_decay", lambda c: c.neuron.imp_trainable, "neuron.imp_trainable", "neuron.imp_trainable=true"),
    ("neuron.v_reset", lambda c: c.neuron.reset == "hard", "neuron.reset", "neuron.reset=hard"),
    ("dataset.integrate_by dataset.verify", lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
    ("dataset.channel_order", lambda c: (_known_shape(c) or (3,))[0] == 3, "dataset.name", "colour images"),
    ("dataset.split_seed", lambda c: c.dataset.validation > 0 or c.dataset.train_subset > 0 or SETS[c.dataset.name].own, "dataset.validation", "dataset.validation or dataset.train_subset above 0"),
    ("dataset.timesteps", lambda c: c.timesteps == c.dataset.timesteps, "timesteps", "timesteps left out"),
    ("augment.randaugment_level augment.randaugment_std", lambda c: c.augment.randaugment_ops > 0, "augment.randaugment_ops", "augment.randaugment_ops above 0"),
    ("augment.interpolation", lambda c: c.augment.rrc_min_area > 0 or SETS[c.dataset.name].from_files, "augment.rrc_min_area", "augment.rrc_min_area above 0"),
    ("augment.test_resize", lambda c: SETS[c.dataset.name].from_files, "dataset.name", "dataset=imagenet1k or another set of image files"),
    ("augment.mix_prob", lambda c: c.augment.mixup > 0 or c.augment.cutmix > 0, "augment.mixup", "augment.mixup or augment.cutmix above 0"),
    ("augment.cutmix_axes", lambda c: c.augment.cutmix > 0, "augment.cutmix", "augment.cutmix above 0"),
    ("augment.cutmix_axes", lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
    ("logger.mode logger.entity logger.tags", lambda c: c.logger.to.get("wandb") or c.logger.mode == "disabled", "logger.to", "logger=wandb, or logger=[wandb,...] for several"),
    ("logger.project", lambda c: any(map(c.logger.to.get, ("wandb", "trackio"))), "logger.to", "logger=wandb or trackio, or both in a list"),
    ("recipe.no_decay", lambda c: c.recipe.weight_decay > 0, "recipe.weight_decay", "recipe.weight_decay above 0"),
    ("model.conv_init", lambda c: c.model.init == "torch", "model.init", "model.init=torch"),
    ("loss.phi", lambda c: c.loss.lam > 0, "loss.lam", "loss.lam above 0"),
)  # fmt: skip


def idle(config: Config, overrides: Iterable[str]) -> dict[str, str]:
    """`{key: sentence}` of the keys set by hand that have no effect in this configuration."""
    given, unused = given_keys(overrides), dict[str, str]()

    def add(name: str, because: str, fix: str) -> None:
        if name in given:
            unused.setdefault(name, f"{given[name]} has no effect with {because}; {fix}")

    for name in given:
        group, _, key = name.partition(".")
        if group in OWN and group != "augment" and not hasattr(getattr(config, group), key):
            of = "this optimizer and schedule" if group == "recipe" else f"{group}={getattr(config, group).name}"
            add(name, of, "leave it out")  # belongs to another choice, and has its default there
        for registry in OWN["recipe"] if group == "recipe" else ():
            readers = [n for n, choice in registry.items() if key in choice.reads]
            now = getattr(config.recipe, registry.group.split(".")[1])
            if readers and now not in readers:
                needs = f"{registry.group}={' or '.join(', '.join(readers).rsplit(', ', 1))}"
                add(name, f"{registry.group}={now}", f"it needs {needs}, or leave it out")
    if given.get("neuron.initial", "").endswith("=zero") and config.neuron.imp:  # the default
        add("neuron.initial", "neuron.imp=true", f"use neuron={config.neuron.name} with it")
    for names, read, key, needs in _IDLE:
        for name in {*names.split()} & given.keys() - unused.keys():
            if not read(config):
                because = f"{key.removesuffix('.name')}={shown(functools.reduce(getattr, key.split('.'), config))}"
                add(name, because, f"it needs {needs}, or leave it out")
    read_by = {f"augment.{k}" for cls in config.augment.turned_on() for k in cls.settings}
    read_by |= {name for names, *_ in _IDLE for name in names.split()}
    for cls in config.augment.classes():
        switch, values = f"augment.{cls.name}", config.augment.of(cls)
        for name in {f"augment.{k}" for k in values if k not in cls.switches} - read_by:
            add(name, f"{switch}={shown(values[cls.name])}", f"it needs {switch}, or leave it out")
    return unused


def refuse_idle(config: Config, overrides: Iterable[str]) -> None:
    """Raise ConfigError for a key set by hand that has no effect."""
    for sentence in idle(config, overrides).values():
        raise ConfigError(sentence)


# ---------------------------------------------------------------- messages and help


def explain(error: Exception) -> str:
    """One sentence for an error of Hydra or OmegaConf: key, value and what is allowed."""
    text = str(error)
    if isinstance(error, RecursionError):
        return "the configuration is nested too deep; keys have at most two levels, like recipe.lr"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
            return f"this launcher needs another package: pip install 'snn_repro[{'parallel' if choice == 'joblib' else 'slurm'}]'"
        known = error.options or list(choices(group))
        return f"{group}={choice} does not exist; choose one of: {', '.join(known)}{nearest(choice, known)}{outside.broken()}"
    if isinstance(error, OverrideParseException):
        name, _, given = str(error.override).partition("=")
        quotes = f"; a value with , = or brackets needs quotes that the shell does not remove: type {shlex.quote(f'{name}={quoted(given)}')}"
        return f"cannot read the override '{error.override}': write key=value{quotes * bool(name and given)}"
    if missing := re.search(r"Could not override '([^']+)'", text):
        return unknown(missing[1])
    for link in filter(None, (error, error.__cause__, error.__context__)):
        message = str(link)
        full = getattr(link, "full_key", None) or (re.search(r"full_key: (\S+)", message) or [None, ""])[1]
        value = re.search(r"Value '(.*?)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", message)
        if full and value:
            return f"{full}={value[1]} has the wrong type; it must be {_TYPES.get(value[2], value[2])}"
        group, first = str(full).split(".")[0], message.partition("\n")[0]
        if full and "missing mandatory value" in first:
            return f"{full} has no value; choose {group}= one of: {', '.join(choices(group))}"
        if full and re.search("no[nt] [oO]ptional", first):
            return f"{full}=null is not allowed; give it a value"
        if full and "not in" in first:
            return unknown(full)
    override = re.search(r"Error merging override (\S+)", text)
    detail = " ".join(str(error.__cause__ or text).split())
    return f"{override[1]}: {detail}" if override else detail


_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}


def quoted(value: str) -> str:
    """The value in double quotes, escaped for Hydra's grammar."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'


def unknown(full: str) -> str:
    """The error message for a key that does not exist."""
    if full in GROUPS:
        return f"'{full}' is a group: write {full}=NAME with one of: {', '.join(choices(full))}"
    if now := schema.RENAMED.get(full):
        return f"{full} is now called {now}; write {now}=..."
    if full in schema.FORMER_KERNELS:
        return f"{full} is no longer a key: kernels chooses the backend of all layers; write kernels= one of: {', '.join(KERNELS)}"
    known = [*keys(), *GROUPS]
    ends = [k for k in known if k.split(".")[-1] == full.split(".")[-1]]  # the group may be wrong or missing
    guess = nearest(full, known) if "." in full or not ends else ""
    guess = guess or "".join(f"; did you mean '{k}'?" for k in ends[:1])
    return f"unknown key '{full}'{guess or '; `python -m snn_repro.train --help` lists all keys'}"


def keys() -> dict[str, Setting]:
    """Every key, as `{"recipe.lr": Setting, ...}`, with those of all neurons, losses, networks, ..."""
    own = {f"{group}.{k}": s for group, choices in OWN.items() for r in choices for k, s in r.all_settings().items()}
    return own | _shared(Config)


def _shared(part: Any, prefix: str = "") -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    for f in dataclasses.fields(part):
        if dataclasses.is_dataclass(f.type):
            settings |= _shared(f.type, f"{prefix}{f.name}.")
        elif f.metadata and f.name != "run_dir":
            settings[prefix + f.name] = f.metadata["setting"]
    return settings


def conf_files(group: str) -> dict[str, Path]:
    """`{choice: file}` of a config group in alphabetical order, plug-ins included.

    Raises ConfigError where two files define the same choice.
    """
    files: dict[str, Path] = {}
    for folder in (schema.CONF_DIR, *outside.conf_dirs()):
        for file in (folder / group).glob("*.yaml"):
            if files.setdefault(file.stem, file) != file:
                raise ConfigError(f"{file} and {files[file.stem]} both define {group}={file.stem}; rename one of them")
    return dict(sorted(files.items()))


# {key: choices without code by their authors}
TEXT_ONLY = {
    "neuron.name": ("klif", "lnm", "qb_lif"), "neuron.surrogate": ("dspike", "dspike_adaptive"), "model.norm": ("tdbn",),
    "loss.name": ("rmp", "strong2weak", "weak2strong"),
}  # fmt: skip
TEXT_ONLY_NOTE = "text only (no code of its authors was found)"


def text_only(config: Mapping[str, Any]) -> list[str]:
    """`["loss=rmp", ...]`: choices of a configuration that are in TEXT_ONLY."""
    values = {key: config[group].get(last) for key in TEXT_ONLY for group, last in [key.split(".")]}
    return [f"{key.removesuffix('.name')}={value}" for key, value in values.items() if value in TEXT_ONLY[key]]


def choices(group: str) -> dict[str, str]:
    """`{choice: first comment line}` of a config group, in alphabetical order."""
    lines = {name: file.read_text("utf-8").splitlines() for name, file in conf_files(group).items()}
    return {
        k: next((line[1:].strip() for line in v if line.startswith("# ") and "@package" not in line), "")
        + f"; {TEXT_ONLY_NOTE}" * (k.removesuffix("_imp") in TEXT_ONLY.get(f"{group}.name", ()))
        for k, v in lines.items()
    }


def help_text() -> str:
    """The text of `--help`: every choice and every key, one line each."""
    out = ["Train a spiking network: dataset x model x neuron x loss x recipe, or one row of the paper.", "",
           "  python -m snn_repro.train [GROUP=CHOICE ...] [KEY=VALUE ...]      one run",
           "  python -m snn_repro.train -m GROUP=A,B seed=0,1,2                 a sweep",
           "  python -m snn_repro.train --cfg job [...]                         print the configuration only", ""]  # fmt: skip
    for group in GROUPS:
        if listed := choices(group):
            width = max(map(len, listed))
            out += [f"{group}=", *(f"  {name:<{width}}  {line}" for name, line in listed.items()), ""]
    out.append("keys")
    own: dict[tuple[str, ...], list[str]] = {}  # by text: one line for a setting that several share
    for registry in (r for choices in OWN.values() for r in choices):
        for name in registry:
            for k, setting in registry.own(name).items():
                own.setdefault((registry.group, k, *_meaning(setting)), []).append(name)
    sizes = {registry.group: len(registry) for choices in OWN.values() for registry in choices}
    lines = [(name, *_meaning(setting)) for name, setting in _shared(Config).items()]
    for (of, k, meaning, allowed), names in own.items():
        group, of = of.split(".")[0], "" if of == "augment" or len(names) == sizes[of] else f"{of}={', '.join(names)}: "
        known = [name for name in TEXT_ONLY.get(f"{group}.{k}", ()) if name in allowed]
        meaning += f"; {TEXT_ONLY_NOTE}: {', '.join(known)}" * bool(known)
        lines.append((f"{group}.{k}", of + meaning, allowed))
    groups = [f.name for f in dataclasses.fields(Config)]
    lines.sort(key=lambda line: groups.index(line[0].split(".")[0]))
    out += [f"  {name:<30} {meaning}{allowed}" for name, meaning, allowed in lines]
    tail = 'Hydra\'s flags: --hydra-help; versions: --version; tab completion: eval "$(snn-train -sc install=bash)"'
    return "\n".join([*out, "", tail])


def _meaning(setting: Setting) -> tuple[str, str]:
    """Meaning with unit, and the allowed values, of a key's line in `--help`."""
    allowed = " | ".join(setting.names) or setting.range
    return setting.help + f" ({setting.unit})" * bool(setting.unit), f" [{allowed}]" * bool(allowed)
