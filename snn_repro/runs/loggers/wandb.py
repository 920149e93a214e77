"""Weights & Biases: online, offline or disabled. The only module that imports wandb."""

import contextlib
import importlib
import io
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snn_repro.config import config_hash, to_dict
from snn_repro.errors import UserError
from snn_repro.registry import LOGGERS
from snn_repro.runs.loggers import scalars, sentence

START_SECONDS = 20  # how long an online run waits for the server before it goes on offline (or WANDB_INIT_TIMEOUT)
CALL_SECONDS = 120  # how long the start, or an epoch, waits for W&B
FINISH_SECONDS = 60  # the same at the end of a run
STOP_SECONDS = 15  # and of one that failed or was told to stop: a cluster kills it soon
TEARDOWN_SECONDS = 2
GROWTH = (25, 50, 75)  # percent of the epochs after which accuracy against time step stands beside the final one


@LOGGERS.register("wandb")
class Log:
    """Logs one run; a hang of W&B is an error after some time, and every method is a no-op when W&B is disabled.

    The W&B id is derived from row, seed and configuration, so a resumed run continues the same dashboard entry; an offline
    one is written with its whole history, in place of the one before. Raises UserError for `logger.mode=online` without a key.

    config: a Config, or a dict of the same shape. run_id: in place of the derived id. seconds: the limit of every call.
    """

    def __init__(
        self, config: Any, folder: Path, say: Callable[[str], None] = print, run_id: str | None = None, seconds: float = 0
    ):  # fmt: skip
        c = config if isinstance(config, dict) else to_dict(config)
        logger, self._folder, self._say, self._seconds = c["logger"], Path(folder), say, seconds
        self.mode = checked_mode(logger["mode"], say)
        self._lines: list[dict[str, Any]] = []  # what is logged so far
        initial = c["neuron"].get("initial", "zero")  # as a tag: lif, lif_imp, lif_mp_init
        neuron = c["neuron"]["name"] + ("_imp" if c["neuron"]["imp"] else "" if initial == "zero" else f"_{initial}")
        table = [c["name"].split("_")[0]] if c["paper_row"] else []  # table1, table2, ...
        if run_id is None and "WANDB_SWEEP_ID" not in os.environ:  # `wandb agent` has given the run an id already
            run_id = f"{config_hash(c)}-{c['seed']}"
        self._arguments = dict(
            project=logger["project"], entity=logger["entity"], id=run_id, name=f"{c['name']}/seed{c['seed']}",
            group=c["name"], job_type="train", config=c, dir=str(self._folder.resolve()),
            tags=[*table, c["dataset"]["name"], c["model"]["name"], neuron, c["loss"]["name"], *logger["tags"]],
        )  # fmt: skip

    def start(self, history: list[dict[str, Any]]) -> None:
        self._within(CALL_SECONDS, self._begin, history)

    def epoch(self, line: dict[str, Any]) -> None:
        self._within(CALL_SECONDS, self._log, line)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        self._within(STOP_SECONDS if result is None else FINISH_SECONDS, self._end, result)

    def _within(self, seconds: float, call: Callable[[Any], None], content: Any) -> None:
        if self.mode == "disabled":
            return
        try:
            limited(self._seconds or seconds, lambda: call(content))
        except BaseException:  # a second Ctrl-C too: W&B's own end, when Python ends, would wait without a limit
            with contextlib.suppress(Exception, SystemExit):  # it takes that back first, and may hang then
                limited(TEARDOWN_SECONDS, lambda: self._wandb.teardown())
            raise

    def _begin(self, history: list[dict[str, Any]]) -> None:
        self._wandb = wandb = importlib.import_module("wandb")
        seconds = {} if os.environ.get("WANDB_INIT_TIMEOUT") else {"init_timeout": START_SECONDS}
        self._arguments["settings"] = wandb.Settings(
            silent=True, console="off", x_disable_stats=True, save_code=False, **seconds
        )
        try:  # a run from the first epoch on takes the place of an earlier one
            resume = "allow" if history and self.mode == "online" else None
            self._run = wandb.init(mode=self.mode, resume=resume, **self._arguments)
        except Exception as error:
            if self.mode != "online":
                raise
            self._say(f"warning: W&B could not be reached ({sentence(error)}); logging offline instead")
            wandb.teardown()  # the failed start still holds the id
            self._run = wandb.init(mode="offline", **self._arguments)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        for curves in ("final/acc_step", "final/acc_cum", "time_steps/*"):
            self._run.define_metric(curves, step_metric="final/time_step")
        for line in history:
            self._log(line)
        for earlier in (self._folder / "wandb").glob(f"offline-run-*-{self._run.id}"):
            if earlier.resolve() != Path(self._run.dir).resolve().parent:  # contained in this one
                shutil.rmtree(earlier, ignore_errors=True)

    def _log(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._at(line["epoch"], scalars(line))

    def _at(self, step: int, numbers: dict[str, Any]) -> None:
        if step >= self._run.starting_step:  # else the server has it
            self._run.log(numbers, step=step, commit=True)

    def _end(self, result: Mapping[str, Any] | None) -> None:
        """Accuracy against time step is numbers with an axis of their own, which several runs share in one chart."""
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
    """Call in a thread, and raise here what it raises there, or TimeoutError where it is not done in time."""
    failed: list[BaseException] = [TimeoutError(f"it was not done after {seconds:g} s")]

    def work() -> None:
        try:
            call()
            failed.clear()
        except BaseException as error:
            failed[:] = [error]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in failed:
        raise error


def checked_mode(mode: str, say: Callable[[str], None] = print) -> str:
    """`logger.mode`, unless WANDB_MODE asks for less. Raises UserError for online without a key."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked not in ("", "online", "run", "shared", "offline", "dryrun", "disabled"):
        say(f"warning: WANDB_MODE={asked} is none of online, offline, disabled; logger.mode={mode} stands")
    if "disabled" in (mode, asked):
        return "disabled"
    mode = "offline" if asked in ("offline", "dryrun") else mode
    if mode == "online" and not has_key():
        raise UserError(
            "logger.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY, or use logger.mode=offline"
        )
    return mode


def has_key() -> bool:
    """Whether wandb knows how to log in. Without wandb there is nothing to check: the warning comes at the start."""
    try:
        import wandb

        with contextlib.redirect_stderr(io.StringIO()):  # it says where it found the key
            return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or wandb.api.api_key)
    except Exception:
        return True
