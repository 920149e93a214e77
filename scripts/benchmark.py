"""Benchmark snn_repro against the libraries it replaces, one subject per command.

python scripts/benchmark.py neuron rounds=21
python scripts/benchmark.py step quick=true
python scripts/benchmark.py gpu
python scripts/benchmark.py SUBJECT --help

rounds     measurements of each case (default: the subject's)
quick      true: toy sizes in a few seconds, to test that everything runs; the numbers are not meaningful
device     cuda or cuda:N (data, gpu, neuron, step): GPU time between CUDA events; reports SUBJECT_cuda.json and .md

Method: one thread, CPU time of the process, random order in every round, medians over rounds. One function is timed
twice (A/A control): a ratio within the control's distance from 1 is not significant.
"""

import ast
import importlib
import inspect
import sys
from pathlib import Path

from benchmarks._harness import machine, one_thread
from benchmarks._report import write
from snn_repro import console
from snn_repro.errors import UserError, nearest

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "benchmarks"


def subjects() -> dict[str, str]:
    """{name: docstring} of every subject, read from benchmarks/ without importing."""
    files = sorted(p for p in (HERE / "benchmarks").glob("*.py") if not p.stem.startswith("_"))
    return {p.stem: ast.get_docstring(ast.parse(p.read_text())) or "" for p in files}


def options(name: str, arguments: list[str], measure) -> dict:
    """Keyword arguments for `measure`, parsed from KEY=VALUE; raises UserError."""
    parameters = inspect.signature(measure).parameters.values()
    kinds = {p.name: type(p.default) for p in parameters}
    given: dict = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in kinds:
            allowed = ", ".join(f"{k}=" for k in kinds)
            raise UserError(f"{argument} is not an option of {name}; it has: {allowed}{nearest(key, kinds)}")
        if kinds[key] is int and not (value.isdecimal() and int(value) >= 3):
            raise UserError(f"{argument}: {key} must be a whole number, 3 or more")
        if kinds[key] is bool and value not in ("true", "false"):
            raise UserError(f"{argument}: {key} must be true or false")
        if not value:
            raise UserError(f"{argument} needs a value, {key}=DIR")
        given[key] = value == "true" if kinds[key] is bool else kinds[key](value)
    return given


@console.one_sentence
def main(arguments: list[str] | None = None) -> int:
    """Measure one subject; exit code 0, or 2 for wrong input."""
    known, arguments = subjects(), sys.argv[1:] if arguments is None else arguments
    lines = [f"{subject:10} {text.splitlines()[0]}" for subject, text in known.items()]
    parser = console.Parser("benchmark.py", "\n".join([__doc__, "Subjects:", *lines]))
    parser.add_argument("subject", metavar="SUBJECT", help="benchmark to run")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="rounds, quick, and options of the subject")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="folder of the report (default: results/benchmarks, gpu: results/contributed/gpu; quick=true: none)",
    )  # fmt: skip
    if {"-h", "--help"} & set(arguments) and arguments[0] in known:
        print(known[arguments[0]])
        return 0
    args = parser.parse_intermixed_args(arguments or ["--help"])
    name = args.subject
    if name not in known:
        raise UserError(f"{name} is not a subject; choose: {', '.join(known)}{nearest(name, known)}")
    one_thread()  # before any import that starts threads
    module = importlib.import_module(f"benchmarks.{name}")
    given = options(name, args.words, module.measure)
    out = args.output or (None if given.get("quick") else getattr(module, "FOLDER", RESULTS))
    before = machine()
    report = module.measure(**given)
    asked = " ".join([name, *(f"{k}={'DIR' if k == 'base' else str(v).lower()}" for k, v in given.items())])
    print(write(report, asked, machine(*report.packages, before=before), out, name))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
