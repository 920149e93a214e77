"""Where a run is logged besides its own files: one file a logger, chosen by `logger=NAME`, or several by `logger=[A,B]`.

A logger is a class under `@LOGGERS.register("name")`, made as `Log(config, folder, say)`; its `settings`, if it has some, are keys
`logger.to.NAME.KEY`, and arguments by name. It has `start(history)`, with what metrics.jsonl has so far (of a resumed run),
`epoch(line)`, one more line of it, and `finish(result)`, None for a run that failed or was stopped. It may raise: the run goes on
without it, after one warning; a UserError of its `__init__` alone ends the run, before any work. The package that it logs to is
imported where it is used: another logger must not need it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snn_repro.config import Config
from snn_repro.errors import UserError
from snn_repro.registry import LOGGERS, all_values, import_all


class Loggers:
    """The loggers of one run. Raises UserError for a name that none has, and for what a logger refuses."""

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None]):
        self._say, self._logs, self._started = say, dict[str, Any](), False
        for name, given in config.logger.to.items():
            if not given:
                continue
            if name not in LOGGERS:
                raise UserError(LOGGERS.unknown(name))
            own = LOGGERS.own(name)
            settings = all_values(f"logger.to.{name}", own, given if isinstance(given, Mapping) else {}, (), name)
            try:
                self._logs[name] = LOGGERS[name](config, folder, say, **settings)
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
            except (Exception, SystemExit) as error:
                del self._logs[name]
                self._drop(name, error)

    def _drop(self, name: str, error: BaseException) -> None:
        self._say(f"warning: {name} gets nothing more of this run ({sentence(error)}); metrics.jsonl has every epoch")


def sentence(error: BaseException) -> str:
    """An error of a library in a few words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


def scalars(line: Mapping[str, Any], step: str = "_t", rate: str = "firing_rate/") -> dict[str, Any]:
    """A line of metrics.jsonl with a number a key: acc_step_t1, firing_rate/LAYER, and what is a number already."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, list):
            flat |= {f"{name}{step}{t}": v for t, v in enumerate(value, 1)}
        elif isinstance(value, dict):
            flat |= {f"{rate}{layer}": v for layer, v in value.items()}
        else:
            flat[name] = value
    return flat


import_all(__name__, __path__)
