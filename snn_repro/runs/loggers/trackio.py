"""trackio: a local database of runs (TRACKIO_DIR), nothing is sent; `trackio show` opens it."""

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snn_repro.config import Config, config_hash, to_dict
from snn_repro.registry import LOGGERS
from snn_repro.runs.loggers import group_of, scalars


@LOGGERS.register("trackio")
class Log:
    """Logs one run of project `logger.project`, grouped by row and overrides."""

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None]):
        self._config, self._group = config, group_of(config, folder)
        self._name = f"{self._group}/seed{config.seed}/{config_hash(config)[:8]}"

    def start(self, history: list[dict[str, Any]]) -> None:
        """Log the whole history as a new run, which replaces the earlier one."""
        import trackio

        project, earlier = self._config.logger.project, []
        with contextlib.suppress(ValueError):  # no such project yet
            earlier = [run for run in trackio.Api().runs(project) if run.name == self._name]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a greeting
            self._run = trackio.init(
                project, self._name, self._group, config=to_dict(self._config), embed=False,
                auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
        for line in history:
            self.epoch(line)
        for run in earlier:
            run.delete()

    def epoch(self, line: dict[str, Any]) -> None:
        """Log the scalars of an epoch."""
        self._run.log(scalars(line, step="/t"), line["epoch"])

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Log the final accuracies, unless the run did not finish, and close."""
        if result is not None:
            last = result["epochs"]
            for t, (step, cumulative) in enumerate(zip(result["acc_step"], result["acc_cum"], strict=True), 1):
                self._run.log({"final/time_step": t, "final/acc_step": step, "final/acc_cum": cumulative}, last + t)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
