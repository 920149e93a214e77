"""Weights & Biases: online, offline or disabled. The only module that imports wandb."""

import contextlib
import importlib
import io
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from snn_repro.config import config_hash, to_dict
from snn_repro.errors import UserError, brief
from snn_repro.registry import LOGGERS
from snn_repro.runs.loggers import group_of, scalars

START_SECONDS = 20  # after which an unreachable online run logs offline instead (or WANDB_INIT_TIMEOUT)
CALL_SECONDS = 120  # limit of the start and of an epoch
FINISH_SECONDS = 60  # limit at the end of a run
STOP_SECONDS = 15  # the same for a failed or stopped run, which a cluster kills soon
GROWTH = (25, 50, 75)  # percent of the epochs whose accuracy per time step is shown beside the final one


@LOGGERS.register("wandb")
class Log:
    """Logs one run to W&B; calls have time limits, and do nothing if disabled.

    The W&B id is derived from row, seed and configuration, so a resumed run continues its dashboard entry. An offline
    run replaces the earlier one with its whole history. Raises UserError for `logger.mode=online` without a key.

    config: a Config, or a dict of the same structure. run_id: overrides the derived id.
    """

    def __init__(self, config: Any, folder: Path, say: Callable[[str], None] = print, run_id: str | None = None):
        c = config if isinstance(config, dict) else to_dict(config)
        logger, self._folder, self._say = c["logger"], Path(folder), say
        self.mode = checked_mode(logger["mode"])
        self._lines: list[dict[str, Any]] = []  # logged so far
        initial = c["neuron"].get("initial", "zero")  # as a tag: lif, lif_imp, lif_mp_init
        neuron = c["neuron"]["name"] + ("_imp" if c["neuron"]["imp"] else "" if initial == "zero" else f"_{initial}")
        table = [c["name"].split("_")[0]] if c["paper_row"] else []  # table1, table2, ...
        if run_id is None and "WANDB_SWEEP_ID" not in os.environ:  # `wandb agent` has given the run an id already
            run_id = f"{config_hash(c)}-{c['seed']}"
        group = group_of(c, self._folder)
        self._arguments = dict(
            project=logger["project"], entity=logger["entity"], id=run_id, name=f"{group}/seed{c['seed']}",
            group=group, job_type="train", config=c, dir=str(self._folder.resolve()),
            tags=[*table, c["dataset"]["name"], c["model"]["name"], neuron, c["loss"]["name"], *logger["tags"]],
        )  # fmt: skip

    def start(self, history: list[dict[str, Any]]) -> None:
        """Open the W&B run, offline if the server cannot be reached, and log the history."""
        self._within(CALL_SECONDS, self._begin, history)

    def epoch(self, line: dict[str, Any]) -> None:
        """Log the scalars of an epoch."""
        self._within(CALL_SECONDS, self._log, line)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Log accuracy per time step and a summary (if the run finished), and close."""
        self._within(STOP_SECONDS if result is None else FINISH_SECONDS, self._end, result)

    def _within(self, seconds: float, call: Callable[[Any], None], content: Any) -> None:
        if self.mode == "disabled":
            return
        try:
            limited(seconds, lambda: call(content))
        except BaseException:  # a second Ctrl-C too: W&B's exit handler would wait without a limit
            with contextlib.suppress(Exception, SystemExit):  # teardown removes that handler first, and may then hang
                limited(2, lambda: self._wandb.teardown())
            raise

    def _begin(self, history: list[dict[str, Any]]) -> None:
        self._wandb = wandb = importlib.import_module("wandb")
        seconds = {} if os.environ.get("WANDB_INIT_TIMEOUT") else {"init_timeout": START_SECONDS}
        self._arguments["settings"] = wandb.Settings(
            silent=True, console="off", x_disable_stats=True, save_code=False, **seconds
        )
        try:  # a run without history replaces an earlier one
            resume = "allow" if history and self.mode == "online" else None
            self._run = wandb.init(mode=self.mode, resume=resume, **self._arguments)
        except Exception as error:
            if self.mode != "online":
                raise
            self._say(f"warning: W&B could not be reached ({brief(error, named=True)}); logging offline instead")
            wandb.teardown()  # the failed start still holds the id
            self._run = wandb.init(mode="offline", **self._arguments)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        for curves in ("final/acc_step", "final/acc_cum", "time_steps/*"):
            self._run.define_metric(curves, step_metric="final/time_step")
        for line in history:
            self._log(line)
        for earlier in (self._folder / "wandb").glob(f"offline-run-*-{self._run.id}"):
            if earlier.resolve() != Path(self._run.dir).resolve().parent:  # its epochs are contained in this run
                shutil.rmtree(earlier, ignore_errors=True)

    def _log(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._at(line["epoch"], scalars(line))

    def _at(self, step: int, numbers: dict[str, Any]) -> None:
        if step >= self._run.starting_step:  # else the server has it already
            self._run.log(numbers, step=step, commit=True)

    def _end(self, result: Mapping[str, Any] | None) -> None:
        """Accuracy per time step is logged on its own axis, so that runs share a chart."""
        if result is not None:
            epochs, curves = len(self._lines), {f"final/{k}": result[k] for k in ("acc_step", "acc_cum")}
            for percent in GROWTH:
                then = self._lines[math.ceil(epochs * percent / 100) - 1]
                curves[f"time_steps/acc_step_{percent}"] = then["acc_step"]
            for t in range(len(result["acc_step"])):
                at_step = {name: accuracies[t] for name, accuracies in curves.items()}
                self._at(epochs + t + 1, {"final/time_step": t + 1} | at_step)
            self._run.summary.update({k: v for k, v in result.items() if isinstance(v, int | float)})
        self._run.finish(exit_code=int(result is None))
        self._wandb.teardown()


def limited(seconds: float, call: Callable[[], None]) -> None:
    """Run `call` in a thread and re-raise its error, or TimeoutError after `seconds`."""
    done = Future[None]()

    def work() -> None:
        try:
            call()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        done.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"not done after {seconds:g} s") from None


def checked_mode(mode: str) -> str:
    """`logger.mode`, unless WANDB_MODE asks for less. Raises UserError for online without a key."""
    asked = {os.environ.get("WANDB_MODE", "").lower().replace("dryrun", "offline"), mode}
    if less := [name for name in ("disabled", "offline") if name in asked]:
        return less[0]
    if not has_key():
        raise UserError(
            "logger.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY, or use logger.mode=offline"
        )
    return mode


def has_key() -> bool:
    """Whether wandb can log in; True without wandb, whose absence `start` reports."""
    try:
        wandb: Any = importlib.import_module("wandb")
        with contextlib.redirect_stderr(io.StringIO()):  # it prints where it found the key
            return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.api.api_key)
    except Exception:
        return True
