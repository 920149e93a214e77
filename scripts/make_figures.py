"""Draw the figures from committed data: results/figures/*.svg and *.png.

python scripts/make_figures.py [figure=NAME|all]              draw one or all
python scripts/make_figures.py measure=convergence            train the synthetic task anew (some 10 minutes of one core)
python scripts/make_figures.py measure=learned_imp run=DIR    take the learned IMP from a run's checkpoint (run= may repeat)
results=DIR chooses another results folder.
"""

import sys
from pathlib import Path

from snn_repro import console
from snn_repro.errors import UserError, nearest

RESULTS = Path(__file__).parents[1] / "results"
KEYS = ("figure", "measure", "run", "results")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__, end="")
        return 0
    try:
        return _main(argv)
    except UserError as error:
        print(f"make_figures.py: {error}", file=sys.stderr)
        return 2


def _main(argv: list[str]) -> int:
    given: dict[str, list[str]] = {}
    for word in argv:
        key, _, value = word.partition("=")
        if key not in KEYS or not value:
            raise UserError(
                f"'{word}' is not understood; write KEY=VALUE with one of: {', '.join(KEYS)}{nearest(key, KEYS)}"
            )
        given.setdefault(key, []).append(value)
    from snn_repro.paper import figures  # imports torch and matplotlib, so after the check of what was typed

    results = Path(given.get("results", [RESULTS])[-1])
    measures = {"convergence": figures.measure_convergence, "learned_imp": figures.measure_learned_imp}
    for name in given.get("measure", []):
        if name not in measures:
            raise UserError(f"measure={name} is unknown; choose one of: {', '.join(measures)}{nearest(name, measures)}")
        runs = [[Path(run) for run in given.get("run", [])]] if name == "learned_imp" else []
        (results / "figures").mkdir(parents=True, exist_ok=True)
        measures[name](results / "figures" / f"{name}.json", *runs)
    names = given.get("figure", given.get("measure", ["all"]))
    for name in names:
        if name not in (*figures.FIGURES, "all"):
            known = ["all", *figures.FIGURES]
            raise UserError(f"figure={name} is unknown; choose one of: {', '.join(known)}{nearest(name, known)}")
    everything = "all" in names
    missing = figures.make(list(figures.FIGURES) if everything else names, results)
    for sentence in missing:
        print(f"make_figures.py: {sentence}", file=sys.stderr)
    return 2 if missing and not everything else 0


if __name__ == "__main__":
    sys.exit(console.script(main))
