"""Weights & Biases: online, offline or disabled. The only module that imports wandb."""

import os
from pathlib import Path

from snn_repro.config import Config, config_hash, to_dict
from snn_repro.errors import UserError

START_SECONDS = 20  # how long an online run may wait for the server before it goes on offline (or WANDB_INIT_TIMEOUT)


class Tracker:
    """Logs one run; every method is a no-op when `logger.mode=disabled`.

    The W&B id is derived from row, seed and configuration, so a resumed run continues the same dashboard entry.
    A server that cannot be reached turns the run into an offline one, with a line that says so; it never hangs.
    Raises UserError when `logger.mode=online` has no API key.
    """

    def __init__(self, config: Config, folder: Path, say=print):
        self._run = None
        mode = config.logger.mode
        if mode == "disabled":
            return
        import wandb

        if mode == "online" and not _has_key(wandb):
            raise UserError(
                "logger.mode=online needs a W&B key: run `wandb login` or set WANDB_API_KEY, or use logger.mode=offline"
            )
        c = config
        neuron = c.neuron.name + ("_imp" if c.neuron.imp else "")
        table = [c.name.split("_")[0]] if c.paper_row else []  # table1, table2, ...
        agent = "WANDB_SWEEP_ID" in os.environ  # `wandb agent` has given the run an id already
        arguments = dict(
            dir=str(folder), project=c.logger.project, entity=c.logger.entity,
            id=None if agent else f"{config_hash(c)}-{c.seed}",
            name=f"{c.name}/seed{c.seed}", group=c.name, job_type="train", resume="allow",
            tags=[*table, c.dataset.name, c.model.name, neuron, c.loss.name, *c.logger.tags],
            config=to_dict(c), reinit="finish_previous",
        )  # fmt: skip
        try:
            self._run = wandb.init(mode=mode, settings=_settings(wandb), **arguments)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, TimeoutError) as error:
            say(f"warning: W&B could not be reached ({' '.join(str(error).split())[:150]}); logging offline instead")
            wandb.teardown()  # the failed start still holds the id
            self._run = wandb.init(mode="offline", settings=_settings(wandb), **arguments)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")  # an epoch may be logged again after a resume
        self._run.define_metric("final/acc_step", step_metric="final/time_step")
        self._run.define_metric("final/acc_cum", step_metric="final/time_step")
        self._table = wandb.Table

    def epoch(self, line: dict) -> None:
        """Log one line of metrics.jsonl, with a table of accuracy against time step."""
        if self._run is None:
            return
        flat = {}
        for name, value in line.items():
            if name.endswith(("acc_step", "acc_cum")):
                flat |= {f"{name}_t{t}": v for t, v in enumerate(value, 1)}
            elif name == "firing_rates":
                flat |= {f"firing_rate/{layer}": rate for layer, rate in value.items()}
            else:
                flat[name] = value
        steps = enumerate(zip(line["acc_step"], line["acc_cum"], strict=True), 1)
        rows = [[line["epoch"], t, step, cumulative] for t, (step, cumulative) in steps]
        flat["time_steps"] = self._table(columns=["epoch", "time step", "acc_step", "acc_cum"], data=rows)
        self._run.log(flat)

    def finish(self, result: dict | None) -> None:
        """Log the result's accuracy against time step, put its numbers into the summary and close; no result: failed."""
        if self._run is None:
            return
        if result is not None:
            for t, (step, cumulative) in enumerate(zip(result["acc_step"], result["acc_cum"], strict=True), 1):
                self._run.log({"final/time_step": t, "final/acc_step": step, "final/acc_cum": cumulative})
            self._run.summary.update({k: v for k, v in result.items() if isinstance(v, int | float)})
        self._run.finish(exit_code=0 if result is not None else 1)
        self._run = None


def _settings(wandb):
    seconds = int(os.environ.get("WANDB_INIT_TIMEOUT", START_SECONDS))
    return wandb.Settings(init_timeout=seconds, login_timeout=seconds, silent=True, console="off",
                          x_disable_stats=True, save_code=False)  # fmt: skip


def _has_key(wandb) -> bool:
    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
