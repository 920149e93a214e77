"""Every row of the paper: its experiment, the data it needs, our runs, the paper's number beside ours, what is missing.

python scripts/list_rows.py --table 1 data_dir=DIR cache_dir=DIR
python scripts/list_rows.py --own --cost --format csv

data_dir=DIR cache_dir=DIR    where to look for the data sets, prepared frames and initial weights
fidelity=described, ...       any override: lists the rows with it, and the runs that had it
--own                         without the methods of others that the paper compares with (quoted from their papers: as their
                              authors trained them; NAME_same_recipe: the method alone in this paper's recipe)
--runs DIR                    folders that hold runs (default: runs and results/runs, where they exist)
--cost                        hours of training, from the speed of finished runs; for a row that has none (a short run
                              is enough: ... debug=smoke recipe.epochs=2 debug.max_steps=50) an estimate, marked ~,
                              from a step on random data on this machine, timed once for each network
--format commands             only the commands of the rows that have no run yet, to be typed or sent to a cluster
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from compare import to_text
from snn_repro import console
from snn_repro.config import SAID_OF_THEM, Config, conf_files, config_hash, load_config, text_only, to_dict
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.paper.formats import Column, Table, to_csv
from snn_repro.paper.rows import PaperRow, configs, facts, load_rows
from snn_repro.runs.checkpoint import find_weights
from snn_repro.runs.folder import RunResult, find_results

PLACES = ("data_dir=", "cache_dir=")  # overrides that change no row


# ---------------------------------------------------------------- rows


def experiments() -> list[str]:
    """The names of all experiments: tables first, then released code that no table prints, figures and rivals."""
    return sorted(conf_files("experiment"), key=lambda name: (not name.startswith("table"), name.split("_")))


def compared(name: str, paper: Iterable[PaperRow]) -> bool:
    """Whether an experiment is about a method of others: as its authors trained it, or in the paper's recipe."""
    return name.endswith("_same_recipe") or any(row.id == name and not row.own for row in paper)


@dataclass
class Row:
    """An experiment, the paper's number for it and what we have: our runs of exactly this configuration, any seed."""

    said: dict[str, Any]  # its configuration: as its files say it, or with overrides
    overrides: Sequence[str] = ()
    paper: PaperRow | None = None
    results: list[RunResult] = field(default_factory=list)  # by seed
    departing: int = 0  # finished runs of this name with other settings
    data: str | None = None  # "ready", "not prepared" or "missing"; None where nobody looked
    missing: list[str] = field(default_factory=list)  # what is lacking for a number, in words

    @property
    def name(self) -> str:
        return self.said["name"]

    @cached_property
    def config(self) -> Config:
        """The checked configuration; Hydra composes it where there are overrides."""
        if self.overrides:
            return load_config([f"experiment={self.name}", *self.overrides])
        return configs([self.name])[self.name]

    def command(self) -> str:
        """The command that runs this row, with its overrides, quoted for a shell."""
        folder = "cache_dir" if SETS[self.said["dataset"]["name"]].prepared else "data_dir"
        data = next((o for o in self.overrides if o.startswith(f"{folder}=")), f"{folder}=DIR")
        others = [o for o in self.overrides if not o.startswith(PLACES)]
        return shlex.join(["python", "-m", "snn_repro.train", f"experiment={self.name}", data, *others])

    @property
    def seeds(self) -> list[int]:
        return [r["seed"] for r in self.results]

    def mean(self, key: str) -> float | None:
        """Mean over seeds of an accuracy of result.json (`acc_last`, `acc_best_test`, ...), in percent."""
        values = [100 * r[key] for r in self.results if r.get(key) is not None]
        return fmean(values) if values else None


def join(
    names: Iterable[str], paper: Iterable[PaperRow], results: Sequence[RunResult], overrides: Sequence[str] = ()
) -> list[Row]:
    """One Row an experiment. A run belongs to it when nothing but the seed differs from the row's configuration."""
    by_id = {row.id: row for row in paper}
    rows = {name: Row(said, overrides) for name, said in facts(names).items()}
    for name, row in rows.items():
        if any(not o.startswith(PLACES) for o in overrides):
            row.said = to_dict(row.config)
        row.paper = by_id.get(row.said["paper_row"])
        if mine := [r for r in results if r["name"] == name]:
            same = [r for r in mine if r["recipe_hash"] == config_hash(row.config, without=("seed",))]
            one_a_seed = {r["seed"]: r for r in reversed(same)}  # runs are also copied to results/runs
            row.results, row.departing = [one_a_seed[s] for s in sorted(one_a_seed)], len(mine) - len(same)
    for row in rows.values():
        if not row.results:
            row.missing.append("a run")
        elif absent := [b for b in row.said["baselines"] if b in rows and not rows[b].results]:
            row.missing.append(f"runs of its baselines {', '.join(absent)}")
    return list(rows.values())


def look_for_files(rows: Iterable[Row]) -> None:
    """Set `data` of each row and add to `missing`: prepared frames, raw files, initial weights. Reads no sample."""
    known: dict[
        str, tuple[str, str | None]
    ] = {}  # a configuration is composed for each kind of frames and file of weights
    for row in rows:
        needs, weights = repr((row.said["dataset"], row.said.get("timesteps"))), row.said["model"].get("weights")
        if needs not in known:
            known[needs] = SETS[row.said["dataset"]["name"]].state(row.config)
        if weights and weights not in known:
            try:
                known[weights] = str(find_weights(weights, row.config.data_dir)), None
            except UserError:
                known[weights] = "", f"initial weights {weights}"
        row.data = known[needs][0]
        row.missing[:0] = [lacks for key in (needs, weights) if key and (lacks := known[key][1])]


@dataclass(frozen=True)
class Cost:
    """Hours of training that one run of a row takes on the kind of device where a speed was measured."""

    hours: float
    device: str  # "cuda" or "cpu"
    samples_per_s: float
    source: str  # the row whose runs were measured
    estimated: bool = False  # from a step on random data, on this machine


# ---------------------------------------------------------------- the list


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Print the rows; the exit code is 0, or 2 after one sentence on stderr."""
    parser = console.Parser("list_rows.py", __doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="data_dir=DIR, cache_dir=DIR, or any other")
    parser.add_argument("--runs", nargs="+", metavar="DIR", help="folders that hold runs")
    parser.add_argument("--table", choices=("1", "2", "3", "code", "figures", "rivals"),
                        help="only the rows of one table, of released code that no table prints, figures, or later methods")  # fmt: skip
    parser.add_argument("--own", action="store_true", help="without the methods of others")
    parser.add_argument("--cost", action="store_true", help="hours of training, measured or estimated")
    forms = ("text", "csv", "json", "commands")
    parser.add_argument("--format", choices=forms, default="text", help="csv and json hold the commands too")
    for form in forms[1:]:  # --csv is short for --format csv
        parser.add_argument(f"--{form}", dest="format", action="store_const", const=form, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args(argv)
    lines, notes = listing(args)
    if args.format == "json":
        print(json.dumps(lines, indent=2))
    elif args.format == "commands":
        print("".join(f"{line['command']}\n" for line in lines if line["command"] and not line["runs"]), end="")
    else:
        print(written(lines, notes, args), end="")
    return 0


def listing(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines, and remarks for a reader."""
    prefix = {None: "", "figures": "figure", "code": "code_", "rivals": "rivals_"}.get(
        args.table, f"table{args.table}_"
    )
    paper = load_rows()
    own = args.own or "fidelity=described" in args.overrides  # the equations are the paper's
    chosen = [n for n in experiments() if n.startswith(prefix) and not (own and compared(n, paper))]
    results = find_results(*(args.runs or [root for root in ("runs", "results/runs") if Path(root).is_dir()]))
    rows = join(chosen, paper, results, args.overrides)
    notes = [
        "paper: one run, best epoch on test; best*: ours chosen by the test set, so optimistic; last: our last epoch",
        "runs: seeds of exactly this configuration (+k: finished runs of this row with other settings)",
        "fidelity: published, the released code does it; extended, no code was released or it cannot run; described, the "
        "paper's equations (results/README.md)",
        "run one: python -m snn_repro.train experiment=ROW data_dir=DIR cache_dir=DIR seed=0,1,2 -m",
    ]
    if any(o.startswith(("data_dir=", "cache_dir=")) for o in args.overrides):
        look_for_files(rows)
    else:
        notes.append("data: give data_dir=DIR cache_dir=DIR to look for the data sets and prepared frames")
    lines = [_line(row) for row in rows]
    if args.cost:
        costs = [estimate_cost(r, results) or _from_a_step(r) for r in rows]
        hours: dict[str, float] = {}
        for line, cost in zip(lines, costs, strict=True):
            line["cost"] = asdict(cost) if cost else None
            if cost:
                hours[cost.device] = hours.get(cost.device, 0) + cost.hours
        total = ", ".join(f"{n:,.1f} h on {device}" for device, n in sorted(hours.items())) or "no hours"
        notes.append(
            f"cost: training alone, one seed; {sum(map(bool, costs))} of {len(lines)} rows, {total}; "
            f"~ ({sum(c.estimated for c in costs if c)} rows): estimated from a step on random data on this machine"
        )
    for quoted in paper:  # a quoted number that nothing reproduces
        if quoted.absent and quoted.id.startswith(prefix) and not own:
            nothing: dict[str, Any] = dict.fromkeys(lines[0]) if lines else {}
            lines.append(nothing | dict(
                paper_row=quoted.id, runs=[], departing=0, paper=quoted.accuracy, fidelity="none", caveats=[], baselines=[],
                unspecified=[], missing=[quoted.absent],
            ))  # fmt: skip
    return lines, notes + [f"[{number}] {caveat}" for caveat, number in numbered_caveats(lines).items()]


def _from_a_step(row: Row) -> Cost | None:
    """The cost of a row without runs: of a step on random data, timed here; None where it does not fit the memory."""
    from benchmarks._hours import TooLarge, hours_of_training  # takes torch

    try:
        hours = hours_of_training(row.config, lambda said: print(said, file=sys.stderr))
        return Cost(*hours, "a step here", estimated=True)
    except TooLarge:
        return None


def _line(row: Row) -> dict[str, Any]:
    """What is shown of a row."""
    c = row.said
    return dict(
        experiment=row.name, paper_row=c["paper_row"], data=row.data, runs=row.seeds, departing=row.departing,
        paper=row.paper and row.paper.accuracy, best=row.mean("acc_best_test"), last=row.mean("acc_last"), fidelity=c["fidelity"],
        baselines=c["baselines"], caveats=[*c["caveats"], *(f"{choice}: {SAID_OF_THEM}" for choice in text_only(c))],
        unspecified=c["unspecified"], missing=row.missing, command=row.command(),
    )  # fmt: skip


def estimate_cost(row: Row, results: Iterable[RunResult]) -> Cost | None:
    """epochs * n_train / samples_per_s, from the median speed of finished runs, or None where nothing was measured.

    The row's own runs count first, else those of the same data set, network, T, frame size and batch. Speeds on a GPU
    come before those on a CPU, and the two are never mixed; epochs of fewer than 20 steps say nothing. Time spent in
    evaluation is not in it.
    """

    def work(config: dict[str, Any]) -> list[Any]:
        """What a training step costs by, IMP and loss aside."""
        keys = ("dataset.name", "dataset.frame_size", "model.name", "recipe.batch_size", "recipe.accumulate")
        return [config["timesteps"], *(config[k.partition(".")[0]][k.partition(".")[2]] for k in keys)]

    timed = [r for r in results if r.get("samples_per_s") and not 0 < r["config"]["debug"]["max_steps"] < 20]
    mine = work(to_dict(row.config)) if timed else []
    alike = [r for r in timed if work(r["config"]) == mine]
    for device in ("cuda", "cpu"):
        there = [r for r in alike if r["device"] == device]
        if measured := [r for r in there if r["name"] == row.name] or there:
            speed = median(r["samples_per_s"] for r in measured)
            n_train = SETS[row.config.dataset.name].samples[0] or max(r["n_train"] for r in measured)
            hours = row.config.recipe.epochs * n_train / speed / 3600
            return Cost(hours, device, speed, measured[0]["name"])
    return None


def numbered_caveats(lines: list[dict[str, Any]]) -> dict[str, int]:
    """The number of each caveat, in the order of the lines."""
    return {c: i for i, c in enumerate(dict.fromkeys(c for line in lines for c in line["caveats"]), 1)}


def rounded(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 2}f}"


def written(lines: list[dict[str, Any]], notes: list[str], args: argparse.Namespace) -> str:
    """Text, or CSV with the commands."""
    whole = [Column("caveats", "caveats"), Column("command", "command")]
    columns = [
        Column("experiment", "experiment"), Column("fidelity", "fidelity"), Column("data", "data"), Column("runs", "runs"),
        Column("paper", "paper %", "number"), Column("best", "best* %", "number"), Column("last", "last %", "number"),
        *([Column("hours", "hours"), Column("speed", "from")] if args.cost else []), Column("missing", "missing"),
        *(whole if args.format == "csv" else []),
    ]  # fmt: skip
    if not any(line["data"] for line in lines):
        del columns[2]
    numbers, shown = numbered_caveats(lines), []
    for line in lines:
        runs = ",".join(map(str, line["runs"])) or "none"
        runs += f" +{line['departing']}" if line["departing"] else ""
        name = line["experiment"] or f"({line['paper_row']})"
        shown.append(
            line
            | dict(experiment=name, runs=runs, missing="; ".join(line["missing"]), caveats="; ".join(line["caveats"]))
        )
        if not args.format == "csv":
            shown[-1]["experiment"] += "".join(f" [{numbers[caveat]}]" for caveat in line["caveats"])
        if args.cost:
            c = line["cost"]
            shown[-1]["hours"] = f"{'~' * c['estimated']}{rounded(c['hours'])}" if c else "unknown"
            shown[-1]["speed"] = f"{c['source']} on {c['device']}, {rounded(c['samples_per_s'])}/s" if c else ""
    rows = [line for line in lines if line["experiment"]]
    title = f"{len(rows)} rows, {sum(bool(line['runs']) for line in rows)} with a run"
    if len(lines) > len(rows):
        title += f"; {len(lines) - len(rows)} quoted numbers without a row"
    table = Table(title, columns, shown, notes)
    return to_csv(table) if args.format == "csv" else to_text(table)


if __name__ == "__main__":
    sys.exit(console.script(main))
