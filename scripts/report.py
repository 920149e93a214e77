"""Write one self-contained HTML report of all runs, finished or in progress.

python scripts/report.py PATH... [--output FILE.html]     table of runs, accuracy by time step, learning curves, ...
python scripts/report.py runs --watch [SECONDS]           update it when a run's files change, until Ctrl-C

PATH: folders of runs (runs, results/runs, a single run), or result.json files.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from snn_repro import console
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.runs.folder import CONFIG, RESULT, STATUS

EVERY = 10.0  # seconds


def seconds(word: str) -> float:
    """Parse a positive number of seconds."""
    try:
        if 0 < float(word) < float("inf"):
            return float(word)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"'{word}' is not a number of seconds above 0; give folders first: report.py runs --watch"
    )


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Write the report; exit code 0, or 2 for wrong input."""
    parser = console.Parser("report.py", __doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders of runs, or result.json files")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=seconds,
        const=EVERY,
        metavar="SECONDS",
        help="interval of checks for changes (default: 10)",
    )
    parser.add_argument(
        "--networks", type=int, default=8, metavar="N",
        help="show IMP, spikes and input from the checkpoints of the latest N rows (default: 8; 0: none)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.networks < 0:
        raise UserError(f"--networks {args.networks} must be at least 0")
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; give the name of a file in it, like report.html")
    if not args.output.absolute().parent.is_dir():
        raise UserError(f"--output {args.output}: the folder {args.output.parent} does not exist; make it first")
    if not os.access(args.output if args.output.exists() else args.output.absolute().parent, os.W_OK):
        raise UserError(f"--output {args.output} cannot be written: no permission; choose another folder")
    if args.watch is None:
        make(args.paths, args.output, args.networks)
        return 0
    try:
        watch(args.paths, args.output, args.networks, args.watch)
    except KeyboardInterrupt:
        print("stopped")
    return 0


def make(paths: Sequence[str], output: Path, networks: int, refresh: float | None = None) -> None:
    """Write the report once."""
    import studies.section  # noqa: F401 - registers itself
    from snn_repro.report import render

    page, found = render(paths, networks, refresh)
    for sentence in found.problems:
        print(f"report.py: left out: {console.harmless(sentence)}", file=sys.stderr)
    write_text(output, page)
    print(f"{output}: {len(found.runs)} runs in {len(found.rows)} rows, {len(page) / 1e6:.1f} MB", flush=True)


def watch(paths: Sequence[str], output: Path, networks: int, every: float) -> None:
    """Write the report whenever files of runs change; wait while there is no run yet."""
    from snn_repro.report import NoRuns

    before, last = None, ""
    while True:
        if (now := snapshot(paths)) != before:
            before = now
            try:
                make(paths, output, networks, refresh=every)
            except NoRuns as error:
                if str(error) != last:
                    last = str(error)
                    print(f"report.py: {console.harmless(error)}; waiting", file=sys.stderr)
        time.sleep(every)


def snapshot(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """(path, mtime, size) of the files under `paths` that change while runs progress."""
    seen = []
    names = (CONFIG, STATUS, RESULT, "*.jsonl", "anytime.json")
    for file in (
        f for p in map(Path, paths) for f in (p, *(found for name in names for found in sorted(p.rglob(name))))
    ):
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            seen.append((str(file), *((stat.st_mtime_ns, stat.st_size) if file.is_file() else (0, 0))))
    return seen


if __name__ == "__main__":
    sys.exit(console.script(main))
