"""NeuroBench's metrics of a finished run, written beside its result as neurobench.json.

python -m snn_repro.trained.neurobench RUN... [--weights best] [data_dir=DIR] [cache_dir=DIR] [device=cpu]

`neurobench=true` does the same at the end of a run, or for a finished run when its command is given again.
"""

import dataclasses
import sys
from pathlib import Path

from snn_repro import console
from snn_repro.data import build_data
from snn_repro.errors import UserError
from snn_repro.runs.folder import NEUROBENCH
from snn_repro.runtime import pick_device
from snn_repro.trained.load import WEIGHTS, load_run, write_neurobench

PLACES = ("data_dir", "cache_dir", "device")


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("python -m snn_repro.trained.neurobench", __doc__)
    parser.add_argument(
        "words", nargs="+", metavar="RUN | KEY=VALUE", help=f"folders of runs; keys: {', '.join(PLACES)}"
    )
    parser.add_argument("--weights", choices=WEIGHTS, default="last", help="of the last epoch, or the selected one")
    args = parser.parse_args(argv)
    places = dict(word.split("=", 1) for word in args.words if word.split("=")[0] in PLACES and "=" in word)
    folders = [Path(word) for word in args.words if word.split("=")[0] not in places]
    if not folders:
        raise UserError(f"{' '.join(args.words)} names no run; give the folder that holds a run's result.json")
    for folder in folders:
        run = load_run(folder, args.weights)
        config = dataclasses.replace(run.config, **places)
        run.facts(config)
        device, data = pick_device(config), build_data(config)
        content = write_neurobench(folder, config, run.model.to(device), data, device)
        operations = content["SynapticOperations"]
        print(
            f"{folder / NEUROBENCH}: {operations['Effective_ACs']:,.0f} ACs and {operations['Effective_MACs']:,.0f} MACs a sample "
            f"of {operations['Dense']:,.0f}, {100 * content['ActivationSparsity']:.1f} % of activations are zero"
        )
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
