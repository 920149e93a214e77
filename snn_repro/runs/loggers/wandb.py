"""Weights & Biases: online, offline or disabled. The only module that imports wandb.

W&B works in a process of its own (`serve`), which copies metrics.jsonl and result.json as training writes them. Whatever happens in there, a missing package, a crash or a hang, costs a run one warning and never time, and
a run that is killed leaves a W&B run that is closed properly.
"""

import contextlib
import inspect
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snn_repro.errors import UserError
from snn_repro.runs.loggers import scalars, sentence
from snn_repro.signals import ASKED

START_SECONDS = 20  # how long an online run waits for the server before it goes on offline (or WANDB_INIT_TIMEOUT)
FINISH_SECONDS = 60  # how long the end of a run waits for W&B, at most
STOP_SECONDS = 15  # the same for a run that failed or was told to stop: a cluster kills it soon
GROWTH = (25, 50, 75)  # percent of the epochs after which accuracy against time step stands beside the final one
AGAIN = "metrics.jsonl has every epoch; scripts/wandb_import.py makes the W&B run from it"


class Log:
    """Logs one run; every method is a no-op when W&B is disabled.

    The W&B id is derived from row, seed and configuration, so a resumed run continues the same dashboard entry, and each
    start hands over the whole history: an offline run is complete in itself, an online one gets what it lacks. A step is
    an epoch. Never raises but for one case, UserError when `logger.mode=online` has no API key.

    config: a Config, or a dict of the same shape. run_id: in place of the derived id.
    """

    _process: Any = None  # Popen, with pipes that do not block

    def __init__(self, config: Any, folder: Path, say: Callable[[str], None] = print, run_id: str | None = None):
        from snn_repro.config import config_hash, to_dict

        c = config if isinstance(config, dict) else to_dict(config)
        logger, self._folder, self._say = c["logger"], Path(folder), say
        self.gave_up = self._started = False
        self.mode = checked_mode(logger["mode"], say)
        if self.mode == "disabled":
            return
        self._seconds = _start_seconds(say)
        initial = c["neuron"].get("initial", "zero")  # as a tag: lif, lif_imp, lif_mp_init
        neuron = c["neuron"]["name"] + ("_imp" if c["neuron"]["imp"] else "" if initial == "zero" else f"_{initial}")
        table = [c["name"].split("_")[0]] if c["paper_row"] else []  # table1, table2, ...
        if run_id is None and "WANDB_SWEEP_ID" not in os.environ:  # `wandb agent` has given the run an id already
            run_id = f"{config_hash(c)}-{c['seed']}"
        self._arguments = dict(
            project=logger["project"], entity=logger["entity"], id=run_id, name=f"{c['name']}/seed{c['seed']}",
            group=c["name"], job_type="train", config=c,
            tags=[*table, c["dataset"]["name"], c["model"]["name"], neuron, c["loss"]["name"], *logger["tags"]],
        )  # fmt: skip

    def start(self, history: list[dict]) -> None:
        """Begin, with the epochs that metrics.jsonl has so far."""
        if self.mode == "disabled":
            return
        environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_INIT_TIMEOUT")}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        message = dict(folder=str(self._folder.resolve()), mode=self.mode, seconds=self._seconds, argv=sys.argv,
                       program=_program(), arguments=self._arguments, epochs=len(history))  # fmt: skip
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()", str(os.getpid())], env=environment, bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the training
            )  # fmt: skip
            self._process.stdin.write(_line(message))
            for pipe in (self._process.stdin, self._process.stdout):
                os.set_blocking(pipe.fileno(), False)
        except Exception as error:
            self._give_up(sentence(error))

    def epoch(self, line: dict) -> None:
        """Log one more line of metrics.jsonl."""
        self._send(dict(epochs=line["epoch"]))

    def finish(self, result: Mapping[str, Any] | None, seconds: float | None = None) -> None:
        """Log result.json, accuracy against time step and numbers for the summary, and close; no result: failed.

        seconds: how long to wait for W&B.
        """
        self._send(dict(finish=result is not None))
        process = self._process
        if process is None:
            return
        limit = seconds or (STOP_SECONDS if result is None else FINISH_SECONDS + self._seconds * (not self._started))
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return self._give_up(f"it was not done {limit:g} s after the run's end")
        except BaseException:  # a second Ctrl-C
            self._kill()
            raise
        self._hear()
        if self._process is not None and process.returncode:
            self._give_up("its process was killed")
        self._kill()

    def _send(self, message: dict) -> None:
        self._hear()
        if self._process is None:
            return
        try:
            if self._process.stdin.write(_line(message)) is None:
                self._give_up("its process does not answer")
        except OSError:
            self._hear()
            if self._process is not None:
                self._give_up("its process was killed")

    def _hear(self) -> None:
        """Pass on what the W&B process has to say."""
        said = self._process and self._process.stdout.read()  # at once: the pipe does not block
        for line in (said or b"").splitlines():
            message = json.loads(line)
            self._started = True
            if "warning" in message:
                self._say(f"warning: {message['warning']}")
            if "failed" in message:
                self._give_up(message["failed"])

    def _give_up(self, why: str) -> None:
        self._kill()
        self.gave_up = True
        self._say(f"warning: W&B gets nothing more of this run ({why}); {AGAIN}")

    def _kill(self) -> None:
        """End the W&B process, whatever it does. wandb-core ends when it sees that."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def checked_mode(mode: str, say=print) -> str:
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


def _start_seconds(say) -> float:
    asked = os.environ.get("WANDB_INIT_TIMEOUT", "")
    try:
        seconds = float(asked or START_SECONDS)
        if 0 < seconds < 3600:
            return seconds
    except ValueError:
        pass
    say(f"warning: WANDB_INIT_TIMEOUT={asked} is no number of seconds (of an hour at most); {START_SECONDS} is taken")
    return START_SECONDS


def has_key() -> bool:
    """Whether wandb knows how to log in. Without wandb there is nothing to check: the warning comes at the start."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        import wandb

        with contextlib.redirect_stderr(io.StringIO()):  # it says where it found the key
            if "prompt" in inspect.signature(wandb.login).parameters:
                return bool(wandb.login(prompt=False, verify=False))
            return bool(wandb.api.api_key)
    except Exception:
        return True


def _program() -> str:
    """What the W&B page shows as the command."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return f"-m {spec.name.removesuffix('.__main__')}" if spec else getattr(main, "__file__", "<python>")


def _line(message: dict) -> bytes:
    return json.dumps(message, default=str).encode() + b"\n"


# ---------------------------------------------------------------- in the process of its own


def serve() -> None:
    """Do what the lines on stdin say, up to `finish` or their end: the training was killed."""
    # wandb and wandb-core get neither pipe: they print, and may outlive this process
    messages, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)

    def tell(**message):
        with contextlib.suppress(OSError):
            answers.write(_line(message))

    parent = int(sys.argv[1])
    for number in {*ASKED} - {signal.SIGINT}:  # a cluster sends them to every process of a job
        signal.signal(number, lambda *_: None)
    # the stop button of a run's page
    signal.signal(signal.SIGINT, lambda *_: os.kill(parent, signal.SIGINT) if os.getppid() == parent else None)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    home = None
    try:
        start = json.loads(next(messages))
        home = Path(start["folder"], "wandb", "home")
        _make_home(home)
        sys.argv = start["argv"]
        log = _Run(start, tell)
        log.epochs(start["epochs"])
        log.remove_earlier()
        tell(started=log.run.id)
        finished = False
        for message in map(json.loads, messages):
            if "finish" in message:
                finished = message["finish"]
                break
            log.epochs(message["epochs"])
        log.finish(finished)
    except BaseException as error:
        tell(failed=sentence(error))
        shutil.rmtree(home or "", ignore_errors=True)
        os._exit(1)  # wandb's own clean-up may hang
    import wandb

    wandb.teardown()
    shutil.rmtree(home, ignore_errors=True)


def _make_home(home: Path) -> None:
    """What W&B keeps in the user's home goes to the run's folder for the time being; the home may not be writable."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(name, str(home))


def _end_with(parent: int) -> None:
    """Outlive the training only as long as it takes to close the W&B run."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(STOP_SECONDS)
    os._exit(1)


class _Run:
    """A W&B run that follows the files of a run folder."""

    def __init__(self, start: dict, tell):
        os.environ.setdefault("WANDB_PROGRAM", start["program"])
        import wandb

        self._folder = Path(start["folder"])
        self._lines: list[dict] = []  # what is logged so far
        arguments = dict(
            start["arguments"], dir=start["folder"],
            settings=wandb.Settings(
                init_timeout=start["seconds"], login_timeout=start["seconds"], silent=True, console="off",
                x_disable_stats=True, save_code=False,
            ),
        )  # fmt: skip
        if start["mode"] == "online":
            try:  # a run from the first epoch on takes the place of an earlier one
                self.run = wandb.init(mode="online", resume="allow" if start["epochs"] else None, **arguments)
            except Exception as error:
                why = " ".join(str(error).split())[:150]
                tell(warning=f"W&B could not be reached ({why}); logging offline instead")
                wandb.teardown()  # the failed start still holds the id
                self.run = wandb.init(mode="offline", **arguments)
        else:
            self.run = wandb.init(mode="offline", **arguments)
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        for curves in ("final/acc_step", "final/acc_cum", "time_steps/*"):
            self.run.define_metric(curves, step_metric="final/time_step")

    def epochs(self, count: int) -> None:
        """Log metrics.jsonl up to `count` epochs."""
        lines = (self._folder / "metrics.jsonl").read_text().splitlines() if count else []
        for line in map(json.loads, lines[len(self._lines) : count]):
            self._lines.append(line)
            self._at(line["epoch"], scalars(line))

    def _at(self, step: int, numbers: dict) -> None:
        if step >= self.run.starting_step:  # else the server has it
            self.run.log(numbers, step=step, commit=True)

    def remove_earlier(self) -> None:
        """This run holds what those of earlier starts hold, and syncing both would mix them."""
        for earlier in (self._folder / "wandb").glob(f"offline-run-*-{self.run.id}"):
            if earlier.resolve() != Path(self.run.dir).resolve().parent:
                shutil.rmtree(earlier, ignore_errors=True)

    def finish(self, done: bool) -> None:
        """Accuracy against time step: numbers with an axis of their own, which several runs share in one chart (a table,
        `wandb.plot.line_series`, would stage two files for each, and stand beside those of other runs)."""
        if done:
            result = json.loads((self._folder / "result.json").read_text())
            epochs = len(self._lines)
            curves = {"final/acc_step": result["acc_step"], "final/acc_cum": result["acc_cum"]}
            for percent in GROWTH:
                then = self._lines[math.ceil(epochs * percent / 100) - 1]
                curves[f"time_steps/acc_step_{percent}"] = then["acc_step"]
            for t in range(1, len(result["acc_step"]) + 1):
                at_step = {name: accuracies[t - 1] for name, accuracies in curves.items()}
                self._at(epochs + t, {"final/time_step": t} | at_step)
            self.run.summary.update({k: v for k, v in result.items() if isinstance(v, int | float)})
        self.run.finish(exit_code=0 if done else 1)
