"""What is said of keys: the sentence for a wrong one, the choices and keys that there are, and `--help`."""

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from snn_repro import outside
from snn_repro.config.identity import FORMER_KERNELS, RENAMED
from snn_repro.config.schema import CONF_DIR, GROUPS, OWN, Config, ConfigError
from snn_repro.errors import nearest
from snn_repro.kernels import KERNELS
from snn_repro.settings import Setting


def explain(error: Exception) -> str:
    """One sentence for an error of Hydra or OmegaConf: the key, the value and what is allowed."""
    text = str(error)
    if isinstance(error, RecursionError):
        return "a configuration is nested two deep, like recipe.lr, and this one is too deep to read; write KEY=VALUE"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
            extra = "parallel" if choice == "joblib" else "slurm"
            return f"this launcher is a package of its own: pip install 'snn_repro[{extra}]'"
        known = error.options or list(choices(group))
        return f"{group}={choice} does not exist; choose one of: {', '.join(known)}{nearest(choice, known)}{outside.broken()}"
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    missing = re.search(r"Could not override '([^']+)'", text)
    if missing:
        return unknown(missing.group(1))
    chain = [error, error.__cause__, error.__context__]
    for link in filter(None, chain):
        full = getattr(link, "full_key", None) or (re.search(r"full_key: (\S+)", str(link)) or [None, None])[1]
        message = str(link).splitlines()[0] if str(link) else ""
        value = re.search(r"Value '(.*?)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", str(link))
        if value and full:
            return f"{full}={value[1]} has the wrong type; it must be {_TYPES.get(value[2], value[2])}"
        if full and ("not in" in message or "is not in struct" in message):
            return unknown(full)
        if full and "missing mandatory value" in message:
            return f"{full} has no value; choose {full.split('.')[0]}= one of: {', '.join(choices(full.split('.')[0]))}"
        if full and ("non optional" in message or "not Optional" in message):
            return f"{full}=null is not allowed; give it a value"
    override = re.search(r"Error merging override (\S+)", text)
    detail = " ".join(str(error.__cause__ or text).split())
    return f"{override.group(1)}: {detail}" if override else detail


_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}


def _unreadable(override: str) -> str:
    """The sentence for an override that is not in Hydra's grammar: with the words to type where quotes are what it lacks."""
    name, equals, value = override.partition("=")
    with contextlib.suppress(HydraException):
        if equals and name and value:
            words = f"{name}={quoted(value)}"
            OverridesParser.create().parse_override(words)
            return f"cannot read the override '{override}': its value needs quotes, which the shell must not take off: type {shlex.quote(words)}"
    return f"cannot read the override '{override}': write key=value"


def quoted(value: str) -> str:
    """A value in quotes that Hydra's grammar takes off again."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'


def unknown(full: str) -> str:
    """The sentence for a key that there is not."""
    if full in GROUPS:
        return f"'{full}' is a choice of files: write {full}=NAME with one of: {', '.join(choices(full))}"
    if full in RENAMED:
        return f"{full} is called {RENAMED[full]} now; write {RENAMED[full]}=..."
    if full in FORMER_KERNELS:
        return f"{full} is no key: one word chooses the kernels of the whole network; write kernels= one of: {', '.join(KERNELS)}"
    known = [*keys(), *GROUPS]
    ends = [k for k in known if k.split(".")[-1] == full.split(".")[-1]]  # the room may be wrong, or missing
    guess = nearest(full, known) if "." in full or not ends else ""
    if not guess:
        guess = f"; did you mean '{ends[0]}'?" if ends else "; `python -m snn_repro.train --help` lists what there is"
    return f"unknown key '{full}'{guess}"


def keys() -> dict[str, Setting]:
    """Every key, as `{"recipe.lr": ...}`; the settings of all neurons, losses, networks and data sets among them."""
    own = {f"{group}.{k}": s for group, choices in OWN.items() for r in choices for k, s in r.all_settings().items()}
    return own | _shared(Config)


def _shared(part: Any, prefix: str = "") -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for f in dataclasses.fields(part):
        if dataclasses.is_dataclass(f.type):
            found |= _shared(f.type, f"{prefix}{f.name}.")
        elif f.metadata and f.name != "run_dir":
            found[prefix + f.name] = f.metadata["setting"]
    return found


def conf_files(group: str) -> dict[str, Path]:
    """`{choice: its file}` of a config group, in alphabetical order, those of packages from outside among them.

    Raises ConfigError where two have the same choice.
    """
    found: dict[str, Path] = {}
    for folder in (CONF_DIR, *outside.conf_dirs()):
        for file in (folder / group).glob("*.yaml"):
            if found.setdefault(file.stem, file) != file:
                raise ConfigError(
                    f"{file} would be {group}={file.stem}, which is {found[file.stem]} already; rename it"
                )
    return dict(sorted(found.items()))


# {key: choices of which no code by their authors was found}
TEXT_ONLY = {
    "neuron.name": ("klif",), "neuron.surrogate": ("dspike", "dspike_adaptive"), "model.norm": ("tdbn",),
    "loss.name": ("rmp", "strong2weak", "weak2strong"),
}  # fmt: skip
SAID_OF_THEM = "text only (no code of its authors was found)"


def text_only(config: Mapping[str, Any]) -> list[str]:
    """`["loss=rmp", ...]`: what a configuration has of TEXT_ONLY."""
    values = {key: config[group].get(last) for key in TEXT_ONLY for group, last in [key.split(".")]}
    return [f"{key.removesuffix('.name')}={value}" for key, value in values.items() if value in TEXT_ONLY[key]]


def choices(group: str) -> dict[str, str]:
    """`{choice: first comment line}` of a config group, in alphabetical order; with a word on those of TEXT_ONLY."""
    lines = {name: file.read_text("utf-8").splitlines() for name, file in conf_files(group).items()}
    return {
        k: next((line[1:].strip() for line in v if line.startswith("# ") and "@package" not in line), "")
        + f"; {SAID_OF_THEM}" * (k.removesuffix("_imp") in TEXT_ONLY.get(f"{group}.name", ()))
        for k, v in lines.items()
    }


def help_text() -> str:
    """What `--help` prints: every choice with one line, then every key with its meaning."""
    out = ["snn_repro trains one spiking network: dataset x model x neuron x loss x recipe, or one row of the paper.", "",
           "  python -m snn_repro.train [GROUP=CHOICE ...] [KEY=VALUE ...]      one run",
           "  python -m snn_repro.train -m GROUP=A,B seed=0,1,2                 a sweep",
           "  python -m snn_repro.train --cfg job [...]                         show the configuration, run nothing", ""]  # fmt: skip
    for group in GROUPS:
        found = choices(group)
        if found:
            width = max(map(len, found))
            out += [f"{group}=", *(f"  {name:<{width}}  {line}" for name, line in found.items()), ""]
    out.append("keys")
    own: dict[tuple[str, ...], list[str]] = {}  # by how its line reads: one line for a setting that several have
    for registry in (r for choices in OWN.values() for r in choices):
        for name in registry:
            for k, setting in registry.own(name).items():
                own.setdefault((registry.group, k, *_meaning(setting)), []).append(name)
    lines = [(name, *_meaning(setting)) for name, setting in _shared(Config).items()]
    for (of, k, meaning, allowed), names in own.items():
        group, of = of.split(".")[0], "" if of == "augment" else f"{of}={', '.join(names)}: "
        known = [name for name in TEXT_ONLY.get(f"{group}.{k}", ()) if name in allowed]
        meaning += f"; {SAID_OF_THEM}: {', '.join(known)}" * bool(known)
        lines.append((f"{group}.{k}", of + meaning, allowed))
    groups = [f.name for f in dataclasses.fields(Config)]
    lines.sort(key=lambda line: groups.index(line[0].split(".")[0]))
    out += [f"  {name:<30} {meaning}{allowed}" for name, meaning, allowed in lines]
    out += [
        "",
        "Hydra's own flags: python -m snn_repro.train --hydra-help; versions: --version; tab completion: README",
    ]
    return "\n".join(out)


def _meaning(setting: Setting) -> tuple[str, str]:
    """What stands behind a key in `--help`: its meaning and unit, and what is allowed."""
    allowed = " | ".join(setting.names) or setting.range
    return setting.help + f" ({setting.unit})" * bool(setting.unit), f" [{allowed}]" * bool(allowed)
