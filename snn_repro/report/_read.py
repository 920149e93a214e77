"""Read the runs of a report, finished or under way, and group them by row."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from snn_repro.config import ADDED, hashed
from snn_repro.errors import UserError
from snn_repro.paper.differences import debug_keys
from snn_repro.paper.results import Group, group_runs
from snn_repro.paper.statistics import Summary, summary
from snn_repro.runs.checkpoint import LAST
from snn_repro.runs.folder import CONFIG, METRICS, RESULT, STATUS, in_use, read_files, result_files
from snn_repro.runs.result import RunResult
from snn_repro.trained import TrainedRun, load_run


class NoRuns(UserError):
    """No run in the folders can be read (yet)."""


@dataclass
class Run:
    """One run, read from its folder."""

    folder: Path
    config: dict[str, Any]
    state: str  # done | debug | running | stopped (its process is gone) | interrupted | failed
    history: list[dict[str, Any]]  # lines of metrics.jsonl
    result: RunResult | None = None  # None while it is not finished
    error: str | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]

    @property
    def measured(self) -> dict[str, Any]:
        """Last tested epoch: acc, acc_step, acc_cum, firing_rates; empty before the first."""
        if r := self.result:
            return {"acc": r.acc_last} | {key: r.get(key) for key in ("acc_step", "acc_cum", "firing_rates")}
        return self.history[-1] if self.history else {}


@dataclass
class Row:
    """Runs that differ in the seed only."""

    id: int
    label: str
    runs: list[Run]
    group: Group | None  # the finished runs, None if there are none

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the first run."""
        return self.runs[0].config

    @property
    def counted(self) -> list[Run]:
        """Runs to average: the finished ones, else those tested at least once."""
        return [r for r in self.runs if r.result] or [r for r in self.runs if r.measured]

    def percent(self, key: str, at: int | None = None) -> Summary | None:
        """Summary over seeds of a fraction in `measured` (its item `at`), in percent."""
        values: list[Any] = [r.measured.get(key) for r in self.counted]
        if not values or None in values:
            return None
        return summary([100 * (value if at is None else value[at]) for value in values])

    @property
    def has_steps(self) -> bool:
        """Whether a run is finished and no output depends on later steps."""
        return bool(self.group and self.group.steps())


@dataclass
class Found:
    """All runs found under some paths, by row."""

    paths: list[Path]
    rows: list[Row]
    problems: list[str]  # sentences on what could not be read
    notes: list[str]  # sentences on what is not counted
    networks: int  # number of rows whose networks are loaded

    @property
    def runs(self) -> list[Run]:
        """All runs of all rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def groups(self) -> list[Group]:
        """Groups of finished runs, without those that a debug key cut short."""
        return [row.group for row in self.rows if row.group and not debug_keys(row.group.first)]

    def trained(self, wanted: Callable[[Row], bool] = lambda _: True) -> Iterator[tuple[Row, Run, TrainedRun | str]]:
        """Load one network of each of the latest `networks` rows with a checkpoint.

        wanted: filter of rows. The last item is the reason instead, if the network cannot be loaded.
        """
        latest = []
        for row in filter(wanted, self.rows):
            for run in row.runs:
                with contextlib.suppress(FileNotFoundError):  # no checkpoint, or a running run just replaced it
                    latest.append((-(run.folder / LAST).stat().st_mtime_ns, row.id, row, run))
                    break
        for _, _, row, run in sorted(sorted(latest)[: self.networks], key=lambda item: item[1]):
            try:
                yield row, run, load_run(run.folder)
            except (UserError, OSError) as error:
                yield row, run, " ".join(str(error).split())


def find(paths: Iterable[str | Path], networks: int = 8) -> Found:
    """Find all runs under `paths` (folders, or files of results).

    Raises NoRuns for a path that does not exist, or if no run can be read.
    """
    roots, problems = [Path(path) for path in paths], dict[str, None]()
    by_folder: dict[Path, Run] = {}
    for root in roots:
        if not root.exists() and not result_files(root):
            raise NoRuns(f"{root} does not exist; give folders that hold runs")
        for read in _runs(root):
            if isinstance(read, Run):
                by_folder.setdefault(read.folder.resolve(), read)
            else:
                problems[" ".join(str(read).split())] = None
    if not by_folder:
        where = ", ".join(map(str, roots))
        nothing = f"{where} holds no run (no {RESULT}, no {CONFIG}); train first, or give another folder"
        raise NoRuns(f"no run under {where} can be read: {next(iter(problems))}" if problems else nothing)
    finished = {str(run.folder): run for run in by_folder.values() if run.result}
    groups, notes = group_runs([run.result for run in finished.values() if run.result])
    rows = [Row(i, g.label, [finished[str(r["folder"])] for r in g.runs], g) for i, g in enumerate(groups)]
    _add_unfinished(rows, [run for run in by_folder.values() if not run.result])
    return Found(roots, rows, list(problems), notes, networks)


def _runs(root: Path) -> Iterator[Run | UserError]:
    """Yield the runs at or under `root`, or a UserError for a damaged one."""
    for result in read_files(result_files(root), root):
        yield from [result] if isinstance(result, UserError) else _read(Path(str(result.folder)), result)
    for file in sorted(root.rglob(STATUS)):
        if not (file.parent / RESULT).exists():
            yield from _read(file.parent, None)


def _read(folder: Path, result: RunResult | None) -> Iterator[Run | UserError]:
    """Yield a run with its history, or a UserError if its files are cut off or foreign."""
    try:
        if result:
            run = Run(folder, result.config, "debug" if debug_keys(result) else "done", [], result)
        else:
            status = json.loads(_text(folder / STATUS))
            state = "stopped" if status["state"] == "running" and not in_use(folder) else str(status["state"])
            run = Run(folder, yaml.safe_load(_text(folder / CONFIG)), state, [], None, status.get("error"))
        named = [run.config, *(run.config[part] for part in ("dataset", "model", "neuron", "loss"))]
        assert all(isinstance(part["name"], str) for part in named) and hashed(run.config)
        assert isinstance(run.seed, int) and run.config["timesteps"] >= 1
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:80]
        yield UserError(f"{folder} holds a damaged run ({why}); remove it, or run it again with force=true")
        return
    try:
        lines = [json.loads(line) for line in _text(folder / METRICS).splitlines()]
        if not all(isinstance(line, dict) and {"epoch", "acc", "acc_step"} <= line.keys() for line in lines):
            raise ValueError("a line is not an epoch")
        run.history = lines
    except ValueError as error:
        why = " ".join(str(error).split())[:80]
        yield UserError(f"{folder / METRICS} is damaged ({why}); no curves of this run are shown")
    yield run


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def _add_unfinished(rows: list[Row], runs: Iterable[Run]) -> None:
    """Add each unfinished run to the row of its finished siblings, or to a new row."""

    def key(config: dict[str, Any]) -> str:
        return repr(sorted((k, v) for k, v in (ADDED | hashed(config)).items() if k not in ("seed", "fidelity")))

    by_key, labels = {key(row.config): row for row in rows}, {row.label for row in rows}
    for run in sorted(runs, key=lambda r: (r.config["name"], r.seed)):
        if (mine := key(run.config)) not in by_key:
            name = f"{run.config['name']} [not finished]"
            label = next(text for i in count(1) if (text := name if i == 1 else f"{name} {i}") not in labels)
            labels.add(label)
            by_key[mine] = Row(len(rows), label, [], None)
            rows.append(by_key[mine])
        by_key[mine].runs.append(run)
