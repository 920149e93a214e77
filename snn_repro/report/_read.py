"""The runs that a report is of: finished ones and those under way, by row."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from snn_repro.config import ADDED, hashed
from snn_repro.errors import UserError
from snn_repro.paper.differences import debug_keys
from snn_repro.paper.results import Group, facts, group_runs
from snn_repro.paper.statistics import Summary, summary
from snn_repro.runs.folder import CONFIG, METRICS, PREDICTIONS, RESULT, STATUS, in_use, read_files, result_files
from snn_repro.runs.result import RunResult, read_result


class NoRuns(UserError):
    """No run in the folders can be read (yet)."""


@dataclass
class Run:
    """One run's folder. `result` is None while it is not finished; `history` are the lines of metrics.jsonl, if there are any."""

    folder: Path
    config: dict[str, Any]
    state: str  # done | debug | running | stopped (its process is gone) | interrupted | failed
    history: list[dict[str, Any]] = field(default_factory=list)
    result: RunResult | None = None
    error: str | None = None

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def measured(self) -> dict[str, Any]:
        """The last epoch that was tested: `acc`, `acc_step`, `acc_cum`, `firing_rates`; empty before the first."""
        if r := self.result:
            return dict(
                acc=r.acc_last, acc_step=r.acc_step, acc_cum=r.get("acc_cum"), firing_rates=r.get("firing_rates")
            )
        return self.history[-1] if self.history else {}


@dataclass
class Row:
    """Runs that differ in the seed alone; `group` are the finished ones, None where there is none."""

    id: int
    label: str
    runs: list[Run]
    group: Group | None

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config

    @property
    def counted(self) -> list[Run]:
        """The runs that means are over: the finished ones, or, where there is none, those that were tested at least once."""
        return [r for r in self.runs if r.result] or [r for r in self.runs if r.measured]

    def percent(self, key: str, at: int | None = None) -> Summary | None:
        """Summary over seeds of a fraction of `measured` (its item `at`), in percent."""
        values: list[Any] = [r.measured.get(key) for r in self.counted]
        if not values or None in values:
            return None
        return summary([100 * (value if at is None else value[at]) for value in values])

    @cached_property
    def sees_future(self) -> bool | None:
        """Whether a step's output depends on later steps; None where that cannot be found out."""
        if self.group:
            return not all(run.get("causal", True) for run in self.group.runs)
        return _sees_future(json.dumps({k: v for k, v in self.config.items() if k not in ("seed", "run_dir")}))


@lru_cache(maxsize=256)
def _sees_future(config: str) -> bool | None:
    """Of a run that is not finished only its network says it, so that it has to be built."""
    from snn_repro.build import build_network
    from snn_repro.config import checked, frame_shape
    from snn_repro.metrics import sees_future
    from snn_repro.registry import SETS

    try:
        made = checked(json.loads(config) | {"seed": 0, "run_dir": ""})
        return bool(sees_future(build_network(made, SETS[made.dataset.name].of(made).num_classes, frame_shape(made))))
    except UserError:
        return None


@dataclass
class Found:
    """All that was found; `problems` are sentences on what could not be read, `notes` on what was not counted."""

    paths: list[Path]
    rows: list[Row]
    problems: list[str]
    notes: list[str]
    networks: int

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def groups(self) -> list[Group]:
        """Groups of finished runs, without those that a debug key cut short."""
        return [row.group for row in self.rows if row.group and not debug_keys(row.group.first)]


def find(paths: Iterable[str | Path], networks: int = 8, damaged: Mapping[Path, str] | None = None) -> Found:
    """Every run under `paths` (folders, or result.json files) but those whose folders are `damaged`, which says why.

    Raises UserError for a path that does not exist and where there is no run that can be read.
    """
    roots = [Path(path) for path in paths]
    for root in roots:
        if not root.exists() and not result_files(root):
            raise NoRuns(f"{root} does not exist; give folders that hold runs")
    runs: list[Run] = []
    problems: list[str] = []
    once = {folder.resolve(): folder for root in reversed(roots) for folder in run_folders(root)}
    for folder in sorted(once.values()):
        try:
            why = (damaged or {}).get(folder)
            if not why:
                runs.append(_read(folder, problems))
                continue
        except UserError as error:
            problems.append(" ".join(str(error).split()))
            continue
        except Exception as error:  # whatever a damaged or foreign file can be
            why = " ".join(repr(error).split())[:160]
        problems.append(f"{folder} holds a damaged run ({why}); run it again with force=true")
    runs += _collected(roots, problems)
    if not runs:
        where = ", ".join(map(str, roots))
        raise NoRuns(
            f"no run under {where} can be read: {problems[0]}"
            if problems
            else f"{where} holds no run (no {RESULT}, no {CONFIG}); train first, or give another folder"
        )
    groups, notes = group_runs([run.result for run in runs if run.result])
    by_folder = {str(run.folder): run for run in runs}
    rows = [Row(i, g.label, [by_folder[str(r["folder"])] for r in g.runs], g) for i, g in enumerate(groups)]
    _add_unfinished(rows, [run for run in runs if not run.result])
    return Found(roots, rows, problems, notes, networks)


def _collected(roots: Iterable[Path], problems: list[str]) -> list[Run]:
    """The runs of files of lines."""
    found: dict[str, Run] = {}
    for root in roots:
        for read in read_files((file for file in result_files(root) if file.suffix == ".jsonl"), root):
            if isinstance(read, UserError):
                problems.append(str(read))
            else:
                found[str(read.folder)] = _finished(Path(str(read.folder)), read, [])
    return list(found.values())


def _finished(folder: Path, result: RunResult, history: list[dict[str, Any]]) -> Run:
    return Run(folder, result["config"], "debug" if debug_keys(result) else "done", history, result)


def snapshot(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """What changes when a run under `paths` goes on: its files with their times and sizes; or when a path comes to be."""
    files = (CONFIG, STATUS, METRICS, RESULT, PREDICTIONS)
    seen = [(str(path), 0, 0) for path in paths if Path(path).exists()]
    for path in map(Path, paths):
        lines = [file for file in result_files(path) if file.suffix == ".jsonl"]
        for file in [*lines, *(folder / name for folder in run_folders(path) for name in files)]:
            with contextlib.suppress(FileNotFoundError):
                stat = file.stat()
                seen.append((str(file), stat.st_mtime_ns, stat.st_size))
    return seen


def run_folders(root: Path) -> Iterator[Path]:
    """The folders at or under `root` that hold a run, in order."""
    if root.is_file():
        yield from () if root.suffix == ".jsonl" else (root.parent,)
        return
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name != "wandb" and not name.startswith("."))
        if RESULT in files or {CONFIG, STATUS} <= set(files):
            yield Path(folder)


def _read(folder: Path, problems: list[str]) -> Run:
    result = read_result(folder / RESULT) if (folder / RESULT).exists() else None
    try:
        history = [json.loads(line) for line in _text(folder / METRICS).splitlines()]
        if not all(isinstance(line, dict) and {"epoch", "acc", "acc_step"} <= line.keys() for line in history):
            raise ValueError("a line is no epoch")
    except ValueError as error:
        problems.append(
            f"{folder / METRICS} is damaged ({' '.join(str(error).split())[:80]}); no curves of this run are shown"
        )
        history = []
    if result:
        facts(result)  # which raises where the configuration is none
        return _finished(folder, result, history)
    try:
        config = yaml.safe_load(_text(folder / CONFIG))
        assert isinstance(hashed(config)["name"], str) and isinstance(config["seed"], int) and config["timesteps"] >= 1
        assert all(isinstance(config[part]["name"], str) for part in ("dataset", "model", "neuron", "loss"))
        status = json.loads(_text(folder / STATUS))
        state = "stopped" if status["state"] == "running" and not in_use(folder) else str(status["state"])
        return Run(folder, config, state, history, None, status.get("error"))
    except Exception as error:  # whatever a cut or foreign file can be
        why = " ".join(f"{type(error).__name__}: {error}".split())[:80]
        raise UserError(
            f"{folder} holds a run that is not finished and cannot be read ({why}); remove it, or run it again with force=true"
        ) from None


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.exists() else ""


def _add_unfinished(rows: list[Row], runs: Iterable[Run]) -> None:
    """Put each run under way into the row of its finished siblings, or into one of its own."""

    def key(config: dict[str, Any]) -> str:
        return repr(sorted((k, v) for k, v in (ADDED | hashed(config)).items() if k not in ("seed", "fidelity")))

    by_key = {key(row.config): row for row in rows}
    labels = {row.label for row in rows}
    for run in sorted(runs, key=lambda r: (r.config["name"], r.seed)):
        row = by_key.get(key(run.config))
        if row is None:
            name = f"{run.config['name']} [not finished]"
            label = next(text for i in range(1, 10**6) if (text := name if i == 1 else f"{name} {i}") not in labels)
            labels.add(label)
            row = by_key[key(run.config)] = Row(len(rows), label, [], None)
            rows.append(row)
        row.runs.append(run)
