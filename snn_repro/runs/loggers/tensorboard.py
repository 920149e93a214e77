"""TensorBoard: event files in the run's `tensorboard/` folder; view all: `tensorboard --logdir runs`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from snn_repro.config import Config, hashed, to_dict
from snn_repro.registry import LOGGERS
from snn_repro.runs.loggers import scalars

FINAL = ("acc_last", "acc_best_test", "acc_valsel")


@LOGGERS.register("tensorboard")
class Log:
    """Logs the configuration, scalars of every epoch and the final accuracy per time step.

    Each start writes the whole history to a new file, tells readers to drop earlier events (`purge_step`) and removes
    the earlier files: a resumed run has every step once, and a killed one has everything that metrics.jsonl has.
    """

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None]):
        self._config, self._folder = config, Path(folder, "tensorboard")

    def start(self, history: list[dict[str, Any]]) -> None:
        """Write the configuration and the history to a new event file."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        earlier = list(self._folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(self._folder), purge_step=0)
        text = yaml.safe_dump(to_dict(self._config), sort_keys=False)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))  # Markdown: code
        steps = range(1, self._config.timesteps + 1)
        charts = {
            f"{name}: {what}; a line for each of t1 .. t{len(steps)}": ["Multiline", [f"^{name}/t{t}$" for t in steps]]
            for name, what in (("acc_step", "y_t alone"), ("acc_cum", "mean of y_1 .. y_t"))
        }
        self._writer.add_custom_scalars({"accuracy at the time steps": charts})
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hashed(self._config).items()}
        *begin, self._end = hparams(flat, dict.fromkeys(["acc", *(f"final/{name}" for name in FINAL)]))
        self._add(*begin)
        for line in history:
            self._scalars(line)
        self._writer.flush()
        for file in earlier:
            file.unlink(missing_ok=True)

    def epoch(self, line: dict[str, Any]) -> None:
        """Write the scalars of an epoch to disk."""
        self._scalars(line)
        self._writer.flush()

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Write the final accuracies, unless the run did not finish, and close the file."""
        if result is not None:
            for name in ("acc_step", "acc_cum"):
                for t, accuracy in enumerate(result[name], 1):
                    self._writer.add_scalar(f"final/{name} against time step", accuracy, t)
            self._scalars({"epoch": result["epochs"]} | {f"final/{name}": result[name] for name in FINAL})
            self._add(self._end)
        self._writer.close()

    def _scalars(self, line: dict[str, Any]) -> None:
        for name, value in scalars(line, step="/t").items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, line["epoch"])

    def _add(self, *summaries: Any) -> None:
        writer: Any = self._writer.file_writer
        for summary in summaries:
            writer.add_summary(summary)
