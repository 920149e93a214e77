"""Hand a trained network on: its weights with a model card for a model hub, or the network for other tools.

python scripts/export.py runs/NAME/seed0 --to safetensors       a folder for a model hub; load_run reads it back
python scripts/export.py runs/NAME/seed0 --to onnx --weights best --output DIR
"""

import sys
from pathlib import Path

from snn_repro import console
from snn_repro.trained.export import export, help_of, names


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("export.py", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    formats = "; ".join(f"{name}: {help_of(name).rstrip('.')}" for name in names())
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    parser.add_argument(
        "--weights", default="last", help="last: of the last epoch (default); best: of the selected one"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default RUN/export/FORMAT)")
    args = parser.parse_args(argv)
    print(export(args.run, args.to, args.weights, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
