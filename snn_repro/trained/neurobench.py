"""Write NeuroBench's metrics of finished runs to their neurobench.json.

python -m snn_repro.trained.neurobench RUN... [--weights best] [data_dir=DIR] [cache_dir=DIR] [device=cpu]

`neurobench=true` does the same at the end of a run, or for a finished run when its command is repeated.
"""

import dataclasses
import sys
from pathlib import Path

from snn_repro import console
from snn_repro.data import build_data
from snn_repro.errors import UserError
from snn_repro.runs.folder import NEUROBENCH
from snn_repro.runtime import pick_device
from snn_repro.trained.load import WEIGHTS, count_operations, load_run

PLACES = ("data_dir", "cache_dir", "device")


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Write neurobench.json for each RUN and print its path."""
    parser = console.Parser("python -m snn_repro.trained.neurobench", __doc__)
    parser.add_argument("words", nargs="+", metavar="RUN | KEY=VALUE", help=f"run folders; keys: {', '.join(PLACES)}")
    parser.add_argument("--weights", choices=WEIGHTS, default="last", help="last epoch or selected epoch")
    args = parser.parse_args(argv)
    places = dict(word.split("=", 1) for word in args.words if word.split("=")[0] in PLACES and "=" in word)
    if not (folders := [Path(word) for word in args.words if word.split("=")[0] not in places]):
        raise UserError(f"{' '.join(args.words)} names no run; give the folder that holds a run's result.json")
    for folder in folders:
        run = load_run(folder, args.weights)
        config = dataclasses.replace(run.config, energy=False, neurobench=True, **places)
        run.facts(config)
        model = run.model.to(pick_device(config))
        count_operations(folder, config, run.result, model, build_data(config))  # type: ignore[arg-type]
        print(folder / NEUROBENCH)
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
