"""The paper's five claims, tested at the size that fits two CPU cores.

python scripts/small_scale.py run [DATASET ...] [KEY=VALUE ...] [--print] [--seeds N]
                                                the sweeps (Hydra multirun), or just their commands
python scripts/small_scale.py collect           copy what tables need from runs/ to results/runs/
python scripts/small_scale.py report [--check]  results/small_scale.md from results/runs/small_scale
A sweep that was stopped goes on when its command is given again. KEY=VALUE (data_dir=DIR, say) is passed on.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from snn_repro import console
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.paper.claims import SEEDS, SWEEP_DIR, SWEEPS, command, report
from snn_repro.paper.results import collect

ROOT = Path(__file__).resolve().parents[1]


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="small_scale.py", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run the sweeps")
    known = f"any of: {', '.join(SWEEPS)}; default all there are; KEY=VALUE is passed on"
    run.add_argument("words", nargs="*", metavar="DATASET | KEY=VALUE", help=known)
    run.add_argument("--print", action="store_true", help="only print the commands")
    run.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds 0..N-1 (default {SEEDS})")
    actions.add_parser("collect", help=f"copy results from {SWEEP_DIR} to results/runs/small_scale")
    write = actions.add_parser("report", help="write results/small_scale.md")
    write.add_argument("--check", action="store_true", help="exit 1 when the committed report differs")
    for part in actions.choices.values():
        part.add_argument("--results", type=Path, default=ROOT / "results", help="results folder")
    args = parser.parse_args(argv)
    return {"run": _run, "collect": _collect, "report": _report}[args.action](args)


def _run(args: argparse.Namespace) -> int:
    more = [word for word in args.words if "=" in word]
    datasets = [word for word in args.words if "=" not in word]
    for dataset in datasets:
        if dataset not in SWEEPS:
            raise UserError(f"{dataset} has no sweep; choose of: {', '.join(SWEEPS)}")
        if dataset not in SETS:
            raise UserError(f"dataset={dataset} does not exist in this version; choose of: {', '.join(SETS)}")
    codes = []
    for dataset in datasets or [d for d in SWEEPS if d in SETS]:
        words = command(dataset, args.seeds, more)
        print(shlex.join(words), flush=True)
        if not args.print:
            codes.append(subprocess.run([sys.executable, *words[1:]], cwd=ROOT).returncode)
    return max(codes, default=0)


def _collect(args: argparse.Namespace) -> int:
    target = args.results / "runs" / "small_scale"
    print(f"{len(collect([ROOT / SWEEP_DIR], target))} runs in {target}")
    return 0


def _report(args: argparse.Namespace) -> int:
    target, text = args.results / "small_scale.md", report(args.results)
    if not args.check:
        write_text(target, text)
        print(target)
    elif not target.exists() or target.read_text("utf-8") != text:
        print(f"{target} is not what the results give; run `python scripts/small_scale.py report`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
