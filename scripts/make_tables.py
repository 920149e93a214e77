"""Write results/tables: the paper's tables with our runs beside, as Markdown, CSV and LaTeX.

python scripts/make_tables.py                      from results/runs and results/paper_tables.yaml
python scripts/make_tables.py --check              exit 1 when the committed tables are not what the results give
python scripts/make_tables.py --collect RUNS...    first add finished runs to results/runs, a line each

The measured numbers of README.md (between its `<!-- accuracy FOLDER -->` marks) are written from the same runs.
"""

import sys
from pathlib import Path

from snn_repro import console
from snn_repro.files import write_text
from snn_repro.paper.differences import older_note
from snn_repro.paper.results import collect, load
from snn_repro.paper.rows import load_rows
from snn_repro.paper.tables import fill_in, generate
from snn_repro.runs.folder import result_files

RESULTS = Path(__file__).resolve().parents[1] / "results"


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("make_tables.py", __doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed tables, write nothing")
    parser.add_argument("--collect", nargs="+", metavar="RUNS", help="folders of runs to add to results/runs first")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="results folder")
    args = parser.parse_args(argv)
    runs, folder, readme = args.results / "runs", args.results / "tables", args.results.parent / "README.md"
    if args.collect:
        print(f"{len(collect(args.collect, runs))} runs in {runs}")
    files = {folder / name: text for name, text in generate(args.results, load_rows()).items()}
    tables = len(files)
    if readme.is_file():
        files[readme] = fill_in(readme.read_text("utf-8"), runs)
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    if not args.check:
        folder.mkdir(parents=True, exist_ok=True)
        for path in stale:
            write_text(path, files[path])
        print(f"{tables} files in {folder}")
        return 0
    older = older_note(load([runs])) if result_files(runs) else None
    if older:
        print(f"make_tables.py: warning: {older}; run them again and collect them", file=sys.stderr)
    extra = sorted(path.name for path in folder.glob("*") if path not in files)
    said = [f"{', '.join(path.name for path in stale)} differ from the results"] if stale else []
    said += [f"{', '.join(extra)} are not generated"] if extra else []
    if said:
        print(f"make_tables.py: {'; '.join(said)}; run `python scripts/make_tables.py`", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(console.script(main))
