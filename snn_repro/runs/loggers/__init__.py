"""Loggers of a run, one file each, chosen by `logger=NAME` or `logger=[A,B]`.

A logger is a class under `@LOGGERS.register("name")`, made as `Log(config, folder, say, **settings)`; its optional
`settings` are the keys `logger.to.NAME.KEY`. It has three methods: `start(history)` with the lines of metrics.jsonl so
far (of a resumed run), `epoch(line)` with each new line, and `finish(result)`, with None for a run that failed or was
stopped. If one raises, the run continues without the logger after a warning; a UserError of `__init__` ends the run
before any work. Import the package that it logs to inside the methods, because other loggers must not need it.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snn_repro.config import Config, config_hash
from snn_repro.errors import UserError, brief
from snn_repro.registry import LOGGERS, all_values, import_all

LONGEST = 110  # letters of a group: W&B takes up to 128 in a name


class Loggers:
    """All loggers of one run. Raises UserError for an unknown name or refused settings."""

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
            except Exception as error:  # a missing or broken package
                self._drop(name, error)

    def start(self, history: list[dict[str, Any]]) -> None:
        """Start every logger with the epochs so far."""
        self._started = True
        self._tell("start", history)

    def epoch(self, line: dict[str, Any]) -> None:
        """Log the metrics of one more epoch."""
        self._tell("epoch", line)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Log the result and close; None for a run that did not finish."""
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
        self._say(
            f"warning: {name} stopped logging this run ({brief(error, named=True)}); metrics.jsonl has every epoch"
        )


def group_of(config: Config | dict[str, Any], folder: Path) -> str:
    """The runs of one row over seeds: ROW, or ROW/OVERRIDES as in the folder runs/ROW/OVERRIDES/seedK.

    A run in another folder (hydra.run.dir) has a hash of its configuration in place of the overrides.
    """
    c: Any = config if isinstance(config, dict) else vars(config)
    *_, above, parent, own = ("", "", *folder.absolute().parts)
    if own != f"seed{c['seed']}" or c["name"] not in (above, parent):
        return f"{c['name'][: LONGEST - 9]}/{config_hash(config, ('seed',))[:8]}"
    group = parent if parent == c["name"] else f"{above}/{parent}"
    return (
        group if len(group) <= LONGEST else f"{group[: LONGEST - 9]}~{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    )


def scalars(line: Mapping[str, Any], step: str = "_t", rate: str = "firing_rate/") -> dict[str, Any]:
    """A line of metrics.jsonl as `{key: number}`: acc_step_t1, firing_rate/LAYER and plain numbers."""
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
