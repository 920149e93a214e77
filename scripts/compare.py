"""One table of finished runs: mean ± standard deviation over seeds by row, with accuracy at each time step.

python scripts/compare.py PATH... [--format text|markdown|csv] [--out FILE]
"""

import argparse
import sys
from pathlib import Path

from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.tables import FORMATS, compare


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders that hold runs, or result.json files")
    parser.add_argument("--format", choices=FORMATS, default="text", help="text (default), markdown or csv")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to the terminal")
    args = parser.parse_args(argv)
    try:
        text = FORMATS[args.format](compare(args.paths))
        if args.out:
            write_text(args.out, text)
        else:
            print(text, end="")
    except UserError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
