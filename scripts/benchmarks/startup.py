"""Start-up times of a fresh process: first command, one step, `--help`, kernel compilation.

base=DIR also measures another checkout of this repository (git worktree add DIR COMMIT) in the same shuffled rounds.
The first command is the README's; it uses seed 0 in the first round, 1 in the second, and so on, so that its accuracy
is a mean over seeds. CPU time includes child processes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks._harness import timings
from benchmarks._report import Report, Table
from snn_repro.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("-m", "snn_repro.train")
ONE_STEP = (*TRAIN, "recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1")
IMPORT, HELP, STEP, FIRST = "import torch", "train --help", "one training step", "the first command"
NOT_COMPILED = f"{FIRST}, kernels not compiled yet"
COMMANDS = {
    FIRST: TRAIN,
    f"{FIRST} again": TRAIN,
    NOT_COMPILED: TRAIN,
    f"{FIRST}, logger.mode=disabled": (*TRAIN, "logger.mode=disabled"),
    STEP: ONE_STEP,
    HELP: (*TRAIN, "--help"),
    IMPORT: ("-c", IMPORT),
}


def measure(rounds: int = 5, quick: bool = False, base: str = "") -> Report:
    """Run the benchmark and return its report."""
    commands = {FIRST: ONE_STEP, HELP: COMMANDS[HELP]} if quick else COMMANDS
    other = checkout(base) if base else ""
    with tempfile.TemporaryDirectory() as scratch:
        accuracies: dict[str, list[float]] = defaultdict(list)
        todo = [(name, words, ROOT) for name, words in commands.items()]
        if base:
            tree = Path(base).resolve()
            todo += [(f"{n}, {other}", commands[n], tree) for n in (FIRST, STEP, HELP) if n in commands]
        cases = {job[0]: _command(*job, Path(scratch), accuracies, own_cache=not quick) for job in todo}
        if not quick:
            for case in cases.values():
                case()  # compile, tune the convolutions, fill the system's file cache
            accuracies.clear()
        rows = timings(cases, 1 if quick else rounds, warm=False)
    for name, row in rows.items():
        kind = next(n for n in (FIRST, STEP, HELP, IMPORT) if name.startswith(n))
        del row["over_first"]
        row["CPU time / ours"] = row["cpu_seconds"] / rows[kind]["cpu_seconds"]
        row["test accuracy"] = _mean(accuracies[name]) if name.startswith(FIRST) and accuracies[name] else None
    note = f"Accuracy on the test set, seeds 0 to {rounds - 1}."
    if base:
        before, after = rows[f"{FIRST}, {other}"], rows[FIRST]
        cpu, wall = (before[key] / after[key] for key in ("cpu_seconds", "wall_seconds"))
        note += f" The first command takes {cpu:.2f} times less CPU time than {other}, {wall:.2f} times less wall time."
    how = "Fresh processes; CPU time of the process and its children. The first command is the README's."
    packages = ("torch", "numba", "spikingjelly", "wandb", "hydra-core")
    tables, every = [Table("Commands", rows, note, "s")], {name: accuracies[name] for name in rows if accuracies[name]}
    return Report("Start-up and the first command", how, tables, packages, extra={"accuracies": every})


def checkout(folder: str) -> str:
    """Name of another checkout: its commit. Raises UserError where there is none."""
    if not Path(folder, "snn_repro", "train.py").is_file():
        raise UserError(
            f"base={folder} has no snn_repro; give the folder of another checkout (git worktree add DIR COMMIT)"
        )
    asked = subprocess.run(["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return f"commit {asked.stdout.strip()}" if asked.returncode == 0 else "another checkout"


def _mean(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} %"


def _command(
    name: str, words: tuple[str, ...], tree: Path, folder: Path, accuracies: dict, own_cache: bool
) -> Callable[[], None]:
    """A call that runs the command in a fresh process, with the next seed, and notes the accuracy."""
    trains = not name.startswith((HELP, IMPORT))

    def call() -> None:
        run = Path(tempfile.mkdtemp(dir=folder))
        keys = [f"seed={len(accuracies[name])}", f"hydra.run.dir={run}/run"] if trains else []
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        if own_cache:  # cache of compiled kernels
            environment["NUMBA_CACHE_DIR"] = str(run if name == NOT_COMPILED else folder)
        done = subprocess.run([sys.executable, *words, *keys], cwd=run, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{name} ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        if trains:
            accuracies[name].append(json.loads((run / "run" / "result.json").read_text())["acc_last"])

    return call
