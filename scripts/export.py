"""Hand a trained network on: its weights with a model card for a model hub, or the network for other tools.

python scripts/export.py RUN --to FORMAT [--weights best] [--output DIR] [--force]
"""

import argparse
import sys
from pathlib import Path

from snn_repro import console
from snn_repro.trained.export import export, help_of, names


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    formats = "\n".join(f"  {name:14}{help_of(name)}" for name in names())
    parser = argparse.ArgumentParser(
        prog="export.py",
        description=f"{__doc__.splitlines()[0]}\n\nformats:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"one of: {', '.join(names())}")
    parser.add_argument(
        "--weights", default="last", help="last: of the last epoch (default); best: of the selected one"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default RUN/export/FORMAT)")
    parser.add_argument("--force", action="store_true", help="write an existing export anew")
    args = parser.parse_args(argv)
    print(export(args.run, args.to, args.weights, args.output, args.force))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
