"""A study of several runs by a rule written before them: run it, collect its results, write its report.

python scripts/study.py small_scale run digits seed=0 --print   the commands of its sweeps; without --print it runs them
python scripts/study.py initial_state dataset=cifar10 data_dir=DIR --dry-run    with the number of runs, and hours
python scripts/study.py small_scale collect                     add what reports need from runs/ to results/runs/NAME.jsonl
python scripts/study.py small_scale measure                     what is no run: times, memory, baselines
python scripts/study.py small_scale report --check              write its report, or hold it against the results

A sweep that was stopped goes on when its command is given again. KEY=VALUE (data_dir=DIR, say) is passed on. With --missing only
those runs are left that results/runs/NAME.jsonl lacks: to add seeds, or to finish a study that another clone began.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from types import ModuleType

from benchmarks._hours import hours_of_training
from make_tables import collect, collected_lines
from snn_repro import console
from snn_repro.config import load_config, sweep_jobs
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.runs.sweeps import plan
from studies import names, study

ROOT = Path(__file__).resolve().parents[1]


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("study.py", __doc__)
    parser.add_argument("name", help=f"one of: {', '.join(names())}")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run the sweeps")
    run.add_argument(
        "words", nargs="*", metavar="DATASET | PART | KEY=VALUE", help="default all its data sets or parts"
    )
    show = run.add_mutually_exclusive_group()
    show.add_argument("--print", action="store_true", help="only print the commands")
    show.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the commands, how many runs they are, and hours, from a step on this machine",
    )
    run.add_argument("--missing", action="store_true", help="leave out the runs that results/ has")
    run.add_argument("--seeds", type=int, help="seeds 0..N-1 (default: the study's)")
    actions.add_parser("collect", help="add results from runs/ to results/runs/")
    actions.add_parser("measure", help="measure what is no run")
    write = actions.add_parser("report", help="write the report")
    write.add_argument("--check", action="store_true", help="exit 1 when the committed report differs")
    for part in actions.choices.values():
        part.add_argument("--results", type=Path, default=ROOT / "results", help="results folder")
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) > 1 and argv[0] in names() and argv[1] not in (*actions.choices, "-h", "--help"):
        argv.insert(1, "run")
    args = parser.parse_args(argv)
    return {"run": _run, "collect": _collect, "measure": _measure, "report": _report}[args.action](
        args, study(args.name)
    )


def _run(args: argparse.Namespace, chosen: ModuleType) -> int:
    more = [word for word in args.words if "=" in word]
    codes, runs, hours = [], 0, 0.0
    wanted = chosen.commands([w for w in args.words if "=" not in w], args.seeds or chosen.SEEDS, more)
    if args.missing:
        there = collected_lines(args.results / "runs" / f"{args.name}.jsonl")
        wanted = (less for words in wanted for less in _missing(words, chosen.SWEEP_DIR, there))
    sweeps = list(wanted)
    if not (args.print or args.dry_run):
        _check_data(sweeps)
    for words in sweeps:
        print(shlex.join(words), flush=True)
        if args.dry_run:
            jobs = _jobs(words)
            runs += len(jobs)
            hours += len(jobs) * hours_of_training(load_config(jobs[0]), lambda said: print(said, file=sys.stderr))[0]
        elif not args.print:
            codes.append(subprocess.run([sys.executable, *words[1:]], cwd=ROOT).returncode)
    if args.dry_run:
        print(f"{runs} runs; ~{hours:.1f} hours of training here, one run after the other (from a step on random data)")
    return max(codes, default=0)


def _jobs(words: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep."""
    return sweep_jobs([word for word in words[4:] if not word.startswith("hydra.")])


def _check_data(sweeps: list[list[str]]) -> None:
    """Raise UserError or DataError for data that a sweep would not find, before the first one starts."""
    checked = set()
    for words in sweeps:
        config = load_config(_jobs(words)[0])
        place = config.dataset.name, config.data_dir, config.cache_dir
        if place not in checked:
            SETS[config.dataset.name].check(config)
            checked.add(place)


def _missing(words: list[str], sweep_dir: str, there: Container[str]) -> Iterator[list[str]]:
    """The sweep without the runs `there`: as it is, or one for each of its cells that lacks seeds."""
    jobs = plan(words[4:])
    lacking = [job for job in jobs if job.folder.relative_to(Path(sweep_dir).absolute()).as_posix() not in there]
    if len(lacking) == len(jobs):
        yield words
        return
    seeds: dict[tuple[str, ...], list[str]] = {}
    for job in lacking:
        cell = tuple(word for word in job.overrides if not word.startswith("seed="))
        seeds.setdefault(cell, []).append(str(job.config.seed))
    for cell, those in seeds.items():
        yield [*words[:4], *cell, f"seed={','.join(those)}"]


def _collect(args: argparse.Namespace, chosen: ModuleType) -> int:
    target = args.results / "runs"
    print(f"{len(collect([ROOT / chosen.SWEEP_DIR], target, args.name))} runs in {target / args.name}.jsonl")
    return 0


def _measure(args: argparse.Namespace, chosen: ModuleType) -> int:
    if not hasattr(chosen, "measure"):
        raise UserError(f"{args.name} has nothing to measure apart from its runs")
    chosen.measure(args.results)
    return 0


def _report(args: argparse.Namespace, chosen: ModuleType) -> int:
    from studies.figures import make, stale  # matplotlib, which the other actions need not wait for

    wrong, figures = [], getattr(chosen, "FIGURES", ())
    if figures and not args.check:
        chosen.report(args.results)  # where it has no runs, this says so before anything is drawn
        for sentence in make(figures, args.results):
            print(f"study.py: {sentence}", file=sys.stderr)
    for name, text in chosen.report(args.results).items():
        target = args.results / name
        if not args.check:
            write_text(target, text)
            print(target)
        elif not target.exists() or target.read_text("utf-8") != text:
            wrong.append(str(target))
    if args.check:
        wrong += [str(path) for path in stale(figures, args.results)]
    if wrong:
        print(f"{', '.join(wrong)} is not what the results give; run `study.py {args.name} report`", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(console.script(main))
