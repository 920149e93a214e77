"""Where a run is logged besides its own files: one file a logger, chosen by `logger=NAME`, or several by `logger=[A,B]`.

A file here imports the package that it logs to where it is used: another logger must not need it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from snn_repro.config import Config
from snn_repro.errors import UserError, nearest
from snn_repro.registry import LOGGERS, import_all


class Logger(Protocol):
    """What a class under `@LOGGERS.register("name")` is, made as `Log(config, folder, say)`; a step is an epoch.

    It may have `settings`: they are keys, `logger.to.NAME.KEY`, and arguments of it by name.

    metrics.jsonl and result.json hold what it is told. It may raise: the run goes on without it, after one warning. A
    UserError of its `__init__` alone ends the run, before any work.
    """

    def start(self, history: list[dict[str, Any]]) -> None:
        """Begin, or go on with a resumed run: `history` is what metrics.jsonl has so far."""

    def epoch(self, line: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Close what was begun, with what result.json holds; None: the run failed or was stopped."""


class Loggers:
    """The loggers of one run. Raises UserError for a name that none has, and for what a logger refuses."""

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None]):
        self._say, self._logs, self._started = say, dict[str, Logger](), False
        for name, on in config.logger.to.items():
            if not on:
                continue
            if name not in LOGGERS:
                known = sorted(LOGGERS)
                raise UserError(f"logger={name} is unknown; choose among: {', '.join(known)}{nearest(name, known)}")
            try:
                self._logs[name] = LOGGERS[name](config, folder, say, **settings(name, on))
            except UserError:
                raise
            except Exception as error:  # a package that is missing, or broken
                self._drop(name, error)

    def start(self, history: list[dict[str, Any]]) -> None:
        self._started = True
        self._tell("start", history)

    def epoch(self, line: dict[str, Any]) -> None:
        self._tell("epoch", line)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if self._started:
            self._tell("finish", result)

    def _tell(self, what: str, content: Any) -> None:
        for name, log in list(self._logs.items()):
            try:
                getattr(log, what)(content)
            except Exception as error:
                del self._logs[name]
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._say(f"warning: {name} gets nothing more of this run ({sentence(error)}); metrics.jsonl has every epoch")


def settings(name: str, given: Any) -> dict[str, Any]:
    """The settings of a logger, from the value of `logger.to.NAME`: true, or some of them. Raises UserError naming the key."""
    own, given = getattr(LOGGERS[name], "settings", {}), given if isinstance(given, Mapping) else {}
    for key in given.keys() - own.keys():
        raise UserError(f"logger.to.{name}.{key} is no setting of '{name}', which has: {', '.join(own) or 'none'}")
    return {key: s.checked(f"logger.to.{name}.{key}", given.get(key, s.default)) for key, s in own.items()}


def sentence(error: BaseException) -> str:
    """An error of a library in a few words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


def scalars(line: Mapping[str, Any], step: str = "_t", rate: str = "firing_rate/") -> dict[str, Any]:
    """A line of metrics.jsonl with a number a key: acc_step_t1, firing_rate/LAYER, and what is a number already."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        if name.endswith(("acc_step", "acc_cum")) and isinstance(value, list):
            flat |= {f"{name}{step}{t}": v for t, v in enumerate(value, 1)}
        elif name == "firing_rates":
            flat |= {f"{rate}{layer}": v for layer, v in value.items()}
        else:
            flat[name] = value
    return flat


import_all(__name__, __path__)
