"""One table of finished runs: mean ± standard deviation over seeds by row, with accuracy at each time step.

python scripts/compare.py runs                                   every run below, as text
python scripts/compare.py runs --format csv --output FILE.csv    the same for a spreadsheet

Rows that differ in more than their names say are marked, [a] [b] ..., and the keys stand below. Text is as wide as the
terminal (80 where there is none; COLUMNS=120 sets it).
"""

import shutil
import sys
from pathlib import Path

from snn_repro import console
from snn_repro.files import write_text
from snn_repro.paper.formats import FORMATS, to_text
from snn_repro.paper.tables import compare


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("compare.py", __doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders that hold runs, or result.json files")
    parser.add_argument("--format", choices=FORMATS, default="text", help="text (default), markdown or csv")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--debug-runs", action="store_true", help="with the runs that a debug.* key cut short")
    args = parser.parse_args(argv)
    table = compare(args.paths, args.debug_runs)
    if args.format == "text":
        width = max(20, shutil.get_terminal_size().columns)
        text = to_text(table, width)
    else:
        text = FORMATS[args.format](table)
    if args.output:
        write_text(args.output, text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
