"""The one gate from a composed configuration to a `Config`: types, ranges, what goes together, and keys without effect."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snn_repro.config.identity import FORMER_KERNELS
from snn_repro.config.schema import GROUPS, MISSING, OWN, PAPER_TABLES, AugmentConfig, Config, ConfigError
from snn_repro.config.sentences import explain, keys, unknown
from snn_repro.errors import UserError, nearest
from snn_repro.registry import AUGMENTATIONS, SETS, all_values
from snn_repro.settings import Setting


def checked(node: DictConfig | dict) -> Config:
    """Turn a composed configuration into a `Config`, or raise ConfigError with one sentence.

    The merge with a fresh schema also refuses keys that were added with `+key=`. A dictionary is a stored configuration, whose
    FORMER_KERNELS are left out. What a run found in own data passes as it is: a class may be called ${...}.
    """
    found = None
    if isinstance(node, dict) and isinstance(node.get("dataset"), dict):
        found = node["dataset"].get("found")
        node = node | {"dataset": node["dataset"] | {"found": None}}
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
        for group, _, last in (key.partition(".") for key in FORMER_KERNELS if isinstance(node, dict)):
            if isinstance(plain.get(group), dict):
                plain[group].pop(last, None)
        set_own_apart(plain)
        config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(explain(error)) from None
    config.dataset.found = found
    check(config)
    return config


_PARTS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config)}
_SHARED = {group: {f.name for f in dataclasses.fields(_PARTS[group])} - {"own"} for group in OWN}


def set_own_apart(plain: dict) -> None:
    """Move the keys that the schema does not have into `own`: all settings of what is chosen, each with its value.

    Raises ConfigError for one that nothing has, and for a value that its Setting refuses.
    """
    for group, shared in _SHARED.items():
        part = plain.get(group)
        if not isinstance(part, dict) or ("name" in shared and part.get("name") in (None, MISSING)):
            continue  # said by the merge with the schema
        given = {str(k): part.pop(k) for k in [*part] if k not in shared}
        try:
            part["own"] = _own(group, part, given)
        except UserError as error:
            raise ConfigError(str(error)) from None
        if group == "neuron" and "initial" in part["own"]:
            _settle_initial(part)


def _own(group: str, part: dict, given: dict[str, Any]) -> dict[str, Any]:
    registry, name = OWN[group][0], str(part.get("name"))
    if group == "augment":
        return _augmentations(given)
    if group == "recipe":
        choices = [(r, part.get(r.group.split(".")[1])) for r in OWN[group]]
        settings = {k: s for r, chosen in choices for k, s in r.own(chosen).items()}
        name = " and ".join(str(chosen) for _, chosen in choices)
    else:
        settings = registry.settings(name, given)
    for k in given.keys() - settings.keys() if group == "recipe" or name in registry else ():
        if f"{group}.{k}" not in keys():
            raise ConfigError(unknown(f"{group}.{k}"))
    return all_values(group, settings, given, OWN[group], name) if group == "recipe" else registry.checked(name, given)


def _settle_initial(neuron: dict) -> None:
    """One value a neuron, learned, has two names, neuron.imp=true and neuron.initial=imp: where one is said, so is the other."""
    initial = neuron["own"]["initial"]
    if neuron.get("imp") is True and initial not in ("zero", "imp"):
        raise ConfigError(
            f"neuron.imp=true and neuron.initial={initial} both say where a neuron starts; use neuron={neuron['name']} with it"
        )
    if neuron.get("imp") is True or initial == "imp":
        neuron["imp"], neuron["own"]["initial"] = True, "imp"


def _augmentations(given: dict) -> dict[str, Any]:
    """The values of all settings of augmentations; of packages from outside those that are not as if it were not installed."""
    settings = ours = AUGMENTATIONS.all_settings(ours=True)
    if given.keys() - ours.keys():
        settings = AUGMENTATIONS.all_settings()
    for k in given.keys() - settings.keys():
        raise ConfigError(unknown(f"augment.{k}"))
    own = {k: s.checked(f"augment.{k}", given.get(k, s.default)) for k, s in settings.items()}
    return {k: v for k, v in own.items() if k in ours or v != settings[k].default}


def check(config: Config) -> None:
    """Raise ConfigError for a value out of range, or values that do not go together; the types are right already."""
    for name, value, setting in _leaves(config):
        try:
            if value is not None:
                setting.check_range(name, value)
        except UserError as error:
            raise ConfigError(str(error)) from None
    for sentence in _wrong(config):
        raise ConfigError(sentence)


def _leaves(part: Any, prefix: str = "") -> Iterator[tuple[str, Any, Setting]]:
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        elif f.metadata:
            yield prefix + f.name, value, f.metadata["setting"]


def _wrong(c: Config) -> Iterator[str]:
    """A sentence for each value that the words, names and other values do not allow."""
    for word in {*c.recipe.no_decay} - {"bias", "norm", "te"}:
        yield f"recipe.no_decay has '{word}'; its words are: bias, norm, te (IMP has neuron.imp_weight_decay)"
    if not re.fullmatch(r"[\w.,=+\[\]-]+", c.name):
        yield f"name={c.name} names a folder; use letters, digits and any of . , = + - _ [ ]"
    if not c.name.strip(".") or len(c.name.encode()) > 200:
        why = "is too long" if c.name.strip(".") else "would leave the folder of all runs"
        yield f"name={c.name} names a folder and {why}; use a name of up to 200 characters"
    if c.paper_row is not None and PAPER_TABLES.is_file():  # results/ is no part of a package that was built
        known = re.findall(r"^- id: (\S+)$", PAPER_TABLES.read_text("utf-8"), re.MULTILINE)
        if c.paper_row not in known:
            yield (
                f"paper_row={c.paper_row} is no row of results/{PAPER_TABLES.name}{nearest(c.paper_row, known)}; "
                "leave it out for a run that reproduces none"
            )
    d, facts, r, a = c.dataset, SETS[c.dataset.name], c.recipe, c.augment
    if not facts.resizable and d.frame_size not in (None, facts.shape[1]):
        yield (
            f"dataset.frame_size={d.frame_size}: {d.name} has {facts.shape[1]} pixels and cannot be resized; leave "
            "dataset.frame_size out" + ", and choose model=vgg128 or small instead of vgg48" * (c.model.name == "vgg48")
        )
    if d.split not in facts.splits:
        known = facts.splits
        yield f"dataset.split={d.split} is unknown for {d.name}; choose one of: {', '.join(known)}{nearest(d.split, known)}"
    if c.model.name == "vgg48" and (shape := _known_shape(c)) and shape[1:] != (48, 48):
        size = "x".join(map(str, shape[1:]))
        fix = "set dataset.frame_size=48 or choose model=vgg128" if facts.resizable else "choose model=vgg128 or small"
        yield f"model=vgg48 is wired for 48x48 pixels and dataset={d.name} gives {size}; {fix}"
    if a.label_smoothing > 0 and c.loss.name == "tet_s":
        yield f"augment.label_smoothing={a.label_smoothing} would smooth twice with loss=tet_s; use loss.epsilon"
    if a.mixup == 0 and a.cutmix == 0 and a.mix_prob < 1:
        yield f"augment.mix_prob={a.mix_prob} mixes nothing; set augment.mixup or augment.cutmix as well"
    if r.warmup_epochs >= r.epochs and r.warmup_epochs > 0:
        yield f"recipe.warmup_epochs={r.warmup_epochs} leaves no epoch of recipe.epochs={r.epochs}; make it smaller"
    if r.min_lr > r.lr:
        yield f"recipe.min_lr={r.min_lr} is above recipe.lr={r.lr}; make it smaller"
    if r.accumulate > r.batch_size:
        yield f"recipe.accumulate={r.accumulate} is more than recipe.batch_size={r.batch_size} can be split into"
    if sentence := misplaced(a, facts):
        yield sentence


def shown(value: Any) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def misplaced(augment: AugmentConfig, dataset: Any) -> str | None:
    """What to say where `augment` turns on what cannot work on this data set; None where all can."""
    has = ["images"] if dataset.static else ["frames", "recordings"] if dataset.prepared else ["frames"]
    words = {"images": "images", "frames": "event frames", "recordings": "recordings"}
    for cls in augment.turned_on():
        if not {*cls.works_on} & {*has}:
            value, wanted = shown(augment.of(cls)[cls.name]), " and ".join(words[kind] for kind in cls.works_on)
            only = "only " if not dataset.static and "recordings" in cls.works_on else ""
            return f"augment.{cls.name}={value} works on {wanted} and dataset={dataset.name} has {only}{words[has[0]]}; leave it out"
    return None


def frame_shape(c: Config) -> tuple[int, int, int]:
    """[C, H, W] of one frame as the network sees it, known before any data is read.

    Raises UserError or DataError for own data (data/own.py) that are missing, or not prepared.
    """
    return SETS[c.dataset.name].of(c).frame_shape(c.dataset.frame_size)


def _known_shape(c: Config) -> tuple[int, int, int] | None:
    """`frame_shape`; None for own data that are not at hand, which a run says when it looks for them."""
    try:
        return frame_shape(c)
    except UserError:
        return None


def check_machine(config: Config) -> None:
    """Raise ConfigError for more threads than this machine can sensibly run."""
    cores = os.cpu_count() or 1
    limit = max(4 * cores, 16)
    if config.threads > limit:
        raise ConfigError(
            f"threads={config.threads} is more than this machine takes: it has {cores} CPU cores, the limit is {limit}"
        )


# ---------------------------------------------------------------- keys without effect


def given_keys(overrides: Iterable[str]) -> dict[str, str]:
    """`{"recipe.lr": "recipe.lr=0.05", ...}`: the keys that were set one by one, not those of a chosen file."""
    pairs = ((o.lstrip("+").split("=")[0], o) for o in overrides if "=" in o and not o.startswith("~"))
    return {name: o for name, o in pairs if name not in GROUPS and not name.startswith("hydra")}


class _Idle(NamedTuple):
    """Keys that only some configurations read."""

    keys: tuple[str, ...]
    read: Callable[[Config], bool]  # whether this configuration reads them
    because: str  # the key that decides it
    needs: str


def _learned(c: Config) -> bool:
    """Whether neurons start from learned potentials, one a neuron, channel or layer."""
    return getattr(c.neuron, "initial", "zero").startswith("imp")


_IDLE = (
    _Idle(("recipe.warmup_factor",), lambda c: c.recipe.warmup_epochs > 0, "recipe.warmup_epochs", "recipe.warmup_epochs above 0"),
    _Idle(("neuron.initial_value",), lambda c: c.neuron.initial == "constant", "neuron.initial", "neuron.initial=constant"),
    _Idle(("neuron.initial_layers",), lambda c: c.neuron.imp or getattr(c.neuron, "initial", "zero") != "zero", "neuron.initial", "another initial state, such as neuron=if_imp"),
    _Idle(("neuron.imp_init",), lambda c: _learned(c) or c.neuron.initial == "random", "neuron.imp", "a neuron with IMP, such as neuron=if_imp"),
    _Idle(
        ("neuron.imp_trainable", "neuron.imp_lr", "neuron.imp_weight_decay"), lambda c: _learned(c), "neuron.imp", "a neuron with IMP, such as neuron=if_imp",
    ),
    _Idle(
        ("neuron.imp_lr", "neuron.imp_weight_decay"),
        lambda c: c.neuron.imp_trainable, "neuron.imp_trainable", "neuron.imp_trainable=true",
    ),
    _Idle(("neuron.v_reset",), lambda c: c.neuron.reset == "hard", "neuron.reset", "neuron.reset=hard"),
    _Idle(("dataset.integrate_by",), lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
    _Idle(("dataset.channel_order",), lambda c: (_known_shape(c) or (3,))[0] == 3, "dataset.name", "colour images"),
    _Idle(
        ("dataset.split_seed",),
        lambda c: c.dataset.validation > 0 or c.dataset.train_subset > 0 or SETS[c.dataset.name].draws_test, "dataset.validation",
        "dataset.validation or dataset.train_subset above 0",
    ),
    _Idle(
        ("augment.randaugment_level", "augment.randaugment_std"), lambda c: c.augment.randaugment_ops > 0,
        "augment.randaugment_ops", "augment.randaugment_ops above 0",
    ),
    _Idle(
        ("augment.interpolation",), lambda c: c.augment.rrc_min_area > 0 or SETS[c.dataset.name].from_files, "augment.rrc_min_area",
        "augment.rrc_min_area above 0",
    ),
    _Idle(
        ("logger.mode", "logger.entity", "logger.tags"), lambda c: c.logger.to.get("wandb") or c.logger.mode == "disabled",
        "logger.to", "logger=wandb, or logger=[wandb,...] for several",
    ),
    _Idle(
        ("logger.project",), lambda c: any(map(c.logger.to.get, ("wandb", "trackio"))), "logger.to",
        "logger=wandb or trackio, or both in a list",
    ),
    _Idle(("recipe.no_decay",), lambda c: c.recipe.weight_decay > 0, "recipe.weight_decay", "recipe.weight_decay above 0"),
    _Idle(("loss.phi",), lambda c: c.loss.lam > 0, "loss.lam", "loss.lam above 0"),
    _Idle(("dataset.timesteps",), lambda c: c.timesteps == c.dataset.timesteps, "timesteps", "timesteps left out"),
    _Idle(("dataset.verify",), lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
    _Idle(("augment.test_resize",), lambda c: SETS[c.dataset.name].from_files, "dataset.name", "dataset=imagenet1k or another set of image files"),
    _Idle(("augment.mix_prob",), lambda c: c.augment.mixup > 0 or c.augment.cutmix > 0, "augment.mixup", "augment.mixup or augment.cutmix above 0"),
    _Idle(("augment.cutmix_axes",), lambda c: c.augment.cutmix > 0, "augment.cutmix", "augment.cutmix above 0"),
    _Idle(("augment.cutmix_axes",), lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
)  # fmt: skip


def idle(config: Config, overrides: Iterable[str]) -> dict[str, str]:
    """`{key: sentence}` of the keys that the user set by hand and that this configuration does not read."""
    found: dict[str, str] = {}
    given = given_keys(overrides)
    for name in given:  # another choice has it, and it was given with the value that it has there
        group, _, key = name.partition(".")
        if group in OWN and group != "augment" and not hasattr(getattr(config, group), key):
            of = "this optimizer and schedule" if group == "recipe" else f"{group}={getattr(config, group).name}"
            found[name] = f"{given[name]} has no effect with {of}; leave it out"
        for registry in OWN["recipe"] if group == "recipe" else ():
            readers = [n for n, choice in registry.items() if key in choice.reads]
            now = getattr(config.recipe, registry.group.split(".")[1])
            if readers and now not in readers:
                needs = " or ".join(", ".join(readers).rsplit(", ", 1))
                found[name] = (
                    f"{given[name]} has no effect with {registry.group}={now}; it needs {registry.group}={needs}, or leave it out"
                )
    if given.get("neuron.initial", "").endswith("=zero") and config.neuron.imp:  # as it is where nothing is said
        found["neuron.initial"] = (
            f"{given['neuron.initial']} has no effect with neuron.imp=true; use neuron={config.neuron.name} with it"
        )
    for rule in _IDLE:
        for name in rule.keys:
            if name in given and name not in found and not rule.read(config):
                room, _, last = rule.because.partition(".")
                value = shown(functools.reduce(getattr, rule.because.split("."), config))
                because = room if last == "name" else rule.because
                found[name] = (
                    f"{given[name]} has no effect with {because}={value}; it needs {rule.needs}, or leave it out"
                )
    ruled = {name for rule in _IDLE for name in rule.keys}
    on = {f"augment.{k}" for cls in config.augment.turned_on() for k in cls.settings}
    for cls in config.augment.classes():
        values, switch = config.augment.of(cls), f"augment.{cls.name}"
        for name in given.keys() & {f"augment.{k}" for k in values if k not in cls.switches} - on - ruled:
            found[name] = (
                f"{given[name]} has no effect with {switch}={shown(values[cls.name])}; it needs {switch}, or leave it out"
            )
    return found
