"""Export a trained network: weights and model card for a model hub, or other formats.

python scripts/export.py runs/NAME/seed0 --to safetensors       a folder for a model hub; load_run reads it back
python scripts/export.py runs/NAME/seed0 --to onnx --weights best --output DIR
"""

import sys
from pathlib import Path

from snn_repro import console
from snn_repro.registry import EXPORTS
from snn_repro.trained.export import export


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Export one run; exit code 0, or 2 for wrong input."""
    parser = console.Parser("export.py", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    formats = "; ".join(
        f"{name}: {(write.__doc__ or name).splitlines()[0].rstrip('.')}" for name, write in sorted(EXPORTS.items())
    )
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    parser.add_argument("--weights", default="last", help="last: last epoch (default); best: selected epoch")
    parser.add_argument("--output", type=Path, metavar="DIR", help="output folder (default: RUN/export/FORMAT)")
    args = parser.parse_args(argv)
    print(export(args.run, args.to, args.weights, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
