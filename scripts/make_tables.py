"""Write results/tables: the paper's tables with our runs, as Markdown, CSV and LaTeX.

python scripts/make_tables.py                      from results/runs and results/paper_tables.yaml
python scripts/make_tables.py --check              exit code 1 if the committed tables are out of date
python scripts/make_tables.py --collect RUNS...    first add finished runs to results/runs, one line each

The measured numbers of README.md and docs/performance.md (between marks such as `<!-- accuracy FOLDER -->`) are written from
the same results, and the tables of sources in docs/paper_and_code_*.md from docs/sources.yaml and the rows.
"""

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from snn_repro import console
from snn_repro.config import hashed
from snn_repro.errors import DataError, UserError
from snn_repro.files import write_text
from snn_repro.paper.differences import older_note
from snn_repro.paper.formats import Column, Table, cell, to_csv, to_markdown
from snn_repro.paper.results import group_runs, load, right_or_none
from snn_repro.paper.rows import PaperRow, configs, load_rows
from snn_repro.paper.tables import TITLES, paper_table, runs_table
from snn_repro.runs import checkpoint
from snn_repro.runs.folder import find_results, result_files
from snn_repro.runs.result import RunResult
from snn_repro.trained.verify import claimed, unpacked

RESULTS = Path(__file__).resolve().parents[1] / "results"


def collect(roots: Iterable[str | Path], into: Path, study: str = "") -> list[Path]:
    """Add finished runs to `into`, as lines of FIRST.jsonl (runs below ROOT/FIRST) or of `study`.jsonl.

    A line has the items of result.json without this machine's folders, `right` instead of predictions.npz, and `run`,
    the folder below FIRST. It replaces an earlier line of the same run. Returns the folders that the lines represent.
    """
    files: dict[str, dict[str, str]] = {}
    for root in map(Path, roots):
        for result in load([root]):
            below = Path(result["folder"]).relative_to(root if root.is_dir() else root.parent).parts
            first, *rest = (study, *below) if study else below if len(below) > 1 else (root.absolute().name, *below)
            config = result["config"] | dict.fromkeys(result["config"].keys() & {"run_dir", "data_dir", "cache_dir"})
            content = {k: v for k, v in result.items() if k not in ("folder", "right")} | {"config": config}
            if right := packed_right(result):
                content["right"] = right
            run = "/".join(rest)
            files.setdefault(first, {})[run] = json.dumps({"run": run} | content, allow_nan=False)
    into.mkdir(parents=True, exist_ok=True)
    for first, new in files.items():
        file = into / f"{first}.jsonl"
        lines = collected_lines(file) | new
        write_text(file, "".join(f"{lines[run]}\n" for run in sorted(lines, key=lambda r: r.split("/"))))
    return [into / first / run for first, new in files.items() for run in new]


def packed_right(result: RunResult) -> dict[str, Any] | None:
    """`right` of a collected run: which test samples are correct, in hex.

    None if the run has no predictions.
    """
    right = right_or_none(result)
    return None if right is None else dict(n_test=len(right), bits=np.packbits(right).tobytes().hex())


def contributed(file: Path) -> RunResult:
    """Read the result of an archive of `pack`.

    `verified` is true if FILE.json, the output of `snn-verify FILE --json`, says so of a file with this hash.
    """
    with unpacked(file) as folder:
        result = claimed(folder).result
        result.right = packed_right(result)
    said = file.with_suffix(".json")
    found = json.loads(said.read_text("utf-8")) if said.is_file() else {}
    result.verified = found.get("verified") is True and found.get("sha256") == checkpoint.sha256(file)
    result.folder = str(file.with_suffix(""))
    return result


def collected_lines(file: Path) -> dict[str, str]:
    """{run: line} of a file of collected runs; raises DataError for a damaged line."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    try:
        return {json.loads(line)["run"]: line for line in lines}
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{file} has a line that is not a collected run; delete it and collect again") from None


def generate(results: Path, rows: Iterable[PaperRow]) -> dict[str, str]:
    """{file name: content} of results/tables, from results/runs, results/contributed and the paper's rows."""
    runs, rows = results / "runs", list(rows)
    found = load([runs]) if result_files(runs) else []
    groups, left_out = group_runs([*found, *map(contributed, sorted((results / "contributed").glob("*.zip")))])
    tables = {
        f"table{n}" if isinstance(n, int) else n: paper_table(n, [r for r in rows if r.table == n], groups)
        for n in TITLES
    }
    tables["runs"] = runs_table(groups, [note.replace(f"{runs}/", "") for note in left_out])
    formats = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    written = {f"{name}.{end}": write(table) for name, table in tables.items() for end, write in formats.items()}
    del written["runs.tex"]  # the list of all runs is no table for a paper
    return written


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "<": "$<$", ">": "$>$",
    "≥": r"$\ge$", "≤": r"$\le$", "—": "---", "–": "--", "…": r"\dots{}",
}  # fmt: skip
LINE = 390.0  # points: width of a table; a line of NeurIPS has 397
ACROSS = (40, 28, 20, 14, 10)  # letters in a line of a cell: the first that fits, else the table is split
HEADER = 14  # letters in a line of a header
TALL = 56  # lines on a page


def _tex(text: str) -> str:
    start = "{}" if text.startswith(("[", "*")) else ""  # else LaTeX reads it as the argument of the line break
    return start + "".join(LATEX.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    r"""A booktabs table in type of 8 pt for a line of 5.5 inches (NeurIPS); needs \usepackage{booktabs}.

    Columns without a value are left out, and long cells have several lines. A table that is still too wide is split into
    parts, which repeat the columns that name a row; what is too tall for a page goes on in the next float, without a
    second caption. Notes are below the last part.
    """
    filled = [c for i, c in enumerate(table.shown) if i == 0 or any(cell(row.get(c.key)) for row in table.rows)]
    first, rest = [c for c in filled if c.key in table.named_by], [c for c in filled if c.key not in table.named_by]
    across = next((n for n in ACROSS if _width(table, filled, n) <= LINE), 14)
    parts: list[list[Column]] = [[]]
    for column in rest:
        if parts[-1] and _width(table, [*first, *parts[-1], column], across) > LINE:
            parts.append([])
        parts[-1].append(column)
    blocks = [block for part in parts for block in _tabulars(table, [*first, *part], across)]
    keys = {c.key for c in filled}
    if notes := [note for note in dict.fromkeys(table.notes) if keys & set(table.about.get(note, keys))]:
        for text in textwrap.wrap(
            " ".join(note if note.endswith(".") else f"{note}." for note in notes), 90 * TALL // 2
        ):
            blocks.append(([rf"\raggedright {_tex(text)}"], 1 + len(text) // 90))
    title = re.sub(r"^(Table \d): (.*)", r"\2 (\1 of the paper)", table.title)
    head = [r"\begin{table}", r"\centering", r"\fontsize{8}{9.5}\selectfont", r"\setlength{\tabcolsep}{3pt}"]
    lines, height = [*head, rf"\caption{{{_tex(title)}}}"], 0
    for body, tall in blocks:
        if height and height + tall > TALL:
            lines += [r"\end{table}", *head]
        elif height:
            lines.append(r"\par\medskip")
            tall += height + 1
        lines, height = lines + body, tall
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tabulars(table: Table, columns: Sequence[Column], across: int) -> list[tuple[list[str], int]]:
    """Some columns as one tabular, or as several of at most TALL lines: the LaTeX and the height of each."""
    sides = ["l" if c.kind in ("text", "steps") else "r" for c in columns]

    def line(texts: Iterable[str], at: str) -> tuple[str, int]:
        cells, tall = [], 1
        for c, text, side in zip(columns, texts, sides, strict=True):
            parts = _wrapped(text, HEADER if at == "b" else _letters(table, c, across))
            tall = max(tall, len(parts))
            inside = r" \\ ".join(map(_tex, parts))
            cells.append(
                rf"\begin{{tabular}}[{at}]{{@{{}}{side}@{{}}}}{inside}\end{{tabular}}" if parts[1:] else inside
            )
        return " & ".join(cells) + r" \\", tall

    head, head_tall = line([c.header for c in columns], "b")
    rows: list[list[str]] = [[]]
    heights = [head_tall + 2]
    for row in table.rows:
        text, tall = line([cell(row.get(c.key)) for c in columns], "t")
        if rows[-1] and heights[-1] + tall > TALL:
            rows.append([])
            heights.append(head_tall + 2)
        rows[-1].append(text)
        heights[-1] += tall
    begin, end = (
        [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", head, r"\midrule"],
        [r"\bottomrule", r"\end{tabular}"],
    )
    return [([*begin, *some, *end], tall) for some, tall in zip(rows, heights, strict=True)]


def _letters(table: Table, column: Column, across: int) -> int:
    """Letters in a line of a column: more for long text beside the names."""
    return max(across, 30) if column.kind == "text" and column.key not in table.named_by else across


def _wrapped(text: str, across: int) -> list[str]:
    return textwrap.wrap(text, across) or [""]


def _width(table: Table, columns: Sequence[Column], across: int) -> float:
    """Width in points at 8 pt, estimated from the letters."""

    def of(text: str) -> float:
        return sum(6.2 if c.isupper() or c in "mw%±+@" else 2.8 if c in "ijl.,:;|'()[] " else 4.35 for c in text)

    total = 0.0
    for c in columns:
        texts = {cell(row.get(c.key)) for row in table.rows}
        lines = [line for text in texts for line in _wrapped(text, _letters(table, c, across))]
        total += 6 + max(map(of, [*lines, *_wrapped(c.header, HEADER)]))
    return total


MEASURED = re.compile(r"(<!-- (accuracy|steps|linear|times) ([^>]+) -->).*?(<!-- / -->)", re.DOTALL)


def fill_in(text: str, results: Path) -> str:
    """Fill in measured numbers between `<!-- KIND WHAT -->` and `<!-- / -->`.

    Text without a measurement is kept. accuracy, steps FOLDER: mean ± sd % of the last epoch and number of seeds, or
    accuracy by time step, of the runs in that folder of results/runs. linear DATASET: logistic regression on the same
    samples. times FILE: TITLE: ROW: CPU time of a benchmark's row over its first row; table and row by the start of
    their names. Raises UserError where a folder has runs of several configurations.
    """
    runs = results / "runs"
    found = find_results(runs) if result_files(runs) else []

    def number(match: re.Match[str]) -> str:
        start, kind, what, end = match.groups()
        if kind in ("linear", "times"):
            measured = (_linear if kind == "linear" else _times)(what, results)
            return match.group() if measured is None else start + measured + end
        groups, _ = group_runs(r for r in found if Path(str(r.folder)).is_relative_to(runs / what))
        if not groups:
            return match.group()
        if len(groups) > 1:
            labels = ", ".join(g.label for g in groups)
            raise UserError(f"{runs / what} holds runs of several configurations: {labels}")
        last = groups[0].last
        if kind == "steps":
            return start + cell(groups[0].steps()) + end
        return start + (f"{last.mean:.2f} % (n=1)" if last.n == 1 else f"{last} % ({last.n} seeds)") + end

    return MEASURED.sub(number, text)


def _linear(dataset: str, results: Path) -> str | None:
    file = results / "runs" / "methods" / "measured.json"
    found = json.loads(file.read_text("utf-8")).get(dataset, {}) if file.exists() else {}
    return f"{100 * found['linear']:.2f} %" if "linear" in found else None


def _times(what: str, results: Path) -> str | None:
    name, title, row = what.split(": ")
    file = results / "benchmarks" / f"{name}.json"
    tables = json.loads(file.read_text("utf-8"))["tables"] if file.exists() else []
    for rows in (table["rows"] for table in tables if table["title"].startswith(title)):
        seconds = {name: measured["cpu_seconds"] for name, measured in rows.items()}
        return f"{next(s for n, s in seconds.items() if n.startswith(row)) / next(iter(seconds.values())):.3g}x"
    return None


# key or group of the configuration: its name in the table of sources
WORDS = {
    "model": "network", "neuron": "neuron", "loss": "loss", "dataset": "frames", "augment": "augmentation",
    "dataset.split": "split", "recipe.optimizer": "optimiser", "recipe.lr": "lr", "recipe.batch_size": "batch",
    "recipe.epochs": "epochs", "recipe.schedule": "schedule", "recipe.weight_decay": "decay",
    "recipe.drop_last": "drop_last", "timesteps": "T", "seed": "seed",
}  # fmt: skip
PARTS = {"recipe.accumulate": "batch"}  # parts with separate batch statistics


def word(key: str) -> str:
    """Name of a configuration key in the table of sources."""
    return (WORDS | PARTS).get(key) or WORDS[key.partition(".")[0]]


def with_sources(page: str, sources: Path) -> str:
    """A page whose `<!-- sources KIND -->` blocks hold the tables of KIND: repositories, recipes or methods of other authors."""
    known = yaml.safe_load(sources.read_text("utf-8"))
    repositories = {short: where.split("@") for short, where in known["repositories"].items()}
    head = ["| row | source: settings | unspecified | differences |", "|---|---|---|---|"]
    tables = {"recipes": [*head], "methods": [*head]}
    tables["repositories"] = ["| short name | repository | commit |", "|---|---|---|"]
    for short, (name, commit) in repositories.items():
        link = f"[{name}](https://github.com/{name}/tree/{commit})"
        tables["repositories"].append(f"| {short} | {link} | {commit[:7]} |")
    for row, config in configs(known["rows"]).items():
        values = hashed(config)
        values |= {w: values[k if k in values else f"{k}.name"] for k, w in WORDS.items() if k != "augment"}
        places = []
        for place, words in known["rows"][row].items():
            short, _, file = place.partition(" ")
            if short in repositories:
                name, commit = repositories[short]
                place = f"[{place}](https://github.com/{name}/blob/{commit[:7]}/{file})"
            places.append(f"{place}: {', '.join(_shown(w, values) for w in words.split())}")
        cells = [f"`{row}`", "; ".join(places), ", ".join(map(word, config.unspecified)), "; ".join(config.caveats)]
        tables["methods" if row.endswith("_same_recipe") else "recipes"].append(f"| {' | '.join(cells)} |")
    return re.sub(
        r"(<!-- sources (\w+) -->\n).*?(<!-- / -->)",
        lambda m: m[1] + "\n".join([*tables[m[2]], "", m[3]]),
        page,
        flags=re.S,
    )


def _shown(what: str, values: dict) -> str:
    """`lr=0.1`: a word and the row's value, or the source's own value where sources.yaml has one."""
    if "=" in what or what in ("frames", "augmentation"):
        return what
    value = values[what]
    return f"{what}={value if isinstance(value, str) else json.dumps(value)}"


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Write or check the tables; exit code 0, 1 if outdated, 2 for wrong input."""
    parser = console.Parser("make_tables.py", __doc__)
    parser.add_argument("--check", action="store_true", help="only check whether the committed tables are up to date")
    parser.add_argument("--collect", nargs="+", metavar="RUNS", help="folders of runs to add to results/runs first")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="results folder")
    args = parser.parse_args(argv)
    runs, folder, readme = args.results / "runs", args.results / "tables", args.results.parent / "README.md"
    if args.collect:
        print(f"{len(collect(args.collect, runs))} runs in {runs}")
    files = {folder / name: text for name, text in generate(args.results, load_rows()).items()}
    tables = len(files)
    for page in (readme, readme.parent / "docs" / "performance.md"):
        if page.is_file():
            files[page] = fill_in(page.read_text("utf-8"), args.results)
    for page in (readme.parent / "docs").glob("paper_and_code_*.md"):
        files[page] = with_sources(page.read_text("utf-8"), page.with_name("sources.yaml"))
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    if not args.check:
        folder.mkdir(parents=True, exist_ok=True)
        for path in stale:
            write_text(path, files[path])
        print(f"{tables} files in {folder}")
        return 0
    older = older_note(load([runs])) if result_files(runs) else None
    if older:
        print(f"make_tables.py: warning: {older}; repeat and collect them", file=sys.stderr)
    extra = sorted(path.name for path in folder.glob("*") if path not in files)
    problems = [f"out of date: {', '.join(path.name for path in stale)}"] if stale else []
    problems += [f"{', '.join(extra)} are not generated"] if extra else []
    if problems:
        print(f"make_tables.py: {'; '.join(problems)}; run `python scripts/make_tables.py`", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(console.script(main))
