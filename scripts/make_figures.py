"""Draw the figures from committed data: results/figures/*.svg and *.pdf.

python scripts/make_figures.py                                draw all
python scripts/make_figures.py figure=NAME                    draw one
python scripts/make_figures.py measure=convergence            retrain the synthetic task (about 10 minutes on one core)
python scripts/make_figures.py measure=learned_imp run=DIR    read the learned IMP of a checkpoint (run= may repeat)
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from snn_repro import console
from snn_repro.errors import UserError, nearest

RESULTS = Path(__file__).parents[1] / "results"
KEYS = ("figure", "measure", "run")


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Draw figures; exit code 0, or 2 for wrong input or missing data."""
    parser = console.Parser("make_figures.py", __doc__)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=f"keys: {', '.join(KEYS)}")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="results folder")
    args = parser.parse_intermixed_args(argv)
    results = args.results
    given: dict[str, list[str]] = {}
    for word in args.words:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            raise UserError(
                f"'{word}' is not understood; write KEY=VALUE with one of: {', '.join(KEYS)}{nearest(key, KEYS)}"
            )
        given.setdefault(key, []).append(value)
    from studies import figures  # imports torch and matplotlib, so only after the arguments are checked

    def chosen(key: str, names: Sequence[str], choices: Sequence[str]) -> Sequence[str]:
        for name in names:
            if name not in choices:
                advice = f"choose one of: {', '.join(choices)}{nearest(name, choices)}"
                raise UserError(f"{key}={name} is unknown; {advice}")
        return names

    if "measure" in given:
        measured = [name for name in figures.names() if hasattr(figures.figure(name), "measure")]
        for name in chosen("measure", given["measure"], measured):
            (results / "figures").mkdir(parents=True, exist_ok=True)
            target = results / "figures" / f"{name}.json"
            figures.figure(name).measure(target, [Path(run) for run in given.get("run", [])])
    names = chosen("figure", given.get("figure", given.get("measure", ["all"])), ["all", *figures.names()])
    missing = figures.make(figures.names() if "all" in names else names, results)
    for sentence in missing:
        print(f"make_figures.py: {sentence}", file=sys.stderr)
    return 2 if missing and "all" not in names else 0


if __name__ == "__main__":
    sys.exit(console.script(main))
